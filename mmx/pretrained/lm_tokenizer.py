"""The tokenizer of a published language model: ``tokenizer.json`` and who says what ends a text."""

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.data.lm_text import LmTokenizer
from mmx.pretrained.config_json import read_json
from mmx.pretrained.hub import Repository


def load_tokenizer(repository: Repository) -> LmTokenizer:
    """Of a repository of `transformers`' form.

    Raises:
      UserError: without tokenizer.json, or special ids that are none of its own.
    """
    file = repository.find("tokenizer.json")
    if file is None:
        raise UserError(
            f"{repository.source}: no tokenizer.json in it (a tokenizer.model alone is not read): "
            "save it anew by transformers' AutoTokenizer(...).save_pretrained"
        )
    config = read_json(repository.get("config.json"))
    config = config.get("text_config", {}) | config
    # What generation ends with is said there where the two differ (Llama 3: the end of a turn).
    told = repository.find("generation_config.json")
    ends = (read_json(told) if told else {}).get("eos_token_id", config.get("eos_token_id"))
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return LmTokenizer(storage.read_text(file), config.get("bos_token_id"), ends, str(file))
