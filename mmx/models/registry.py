"""The only place that imports families, by name and only when asked."""

import importlib

from mmx.core.errors import UserError

# family -> (module, task class)
_TASKS = {
    "vqgan": ("mmx.models.vqgan.task", "VqganTask"),
    "muse": ("mmx.models.muse.task", "MuseTask"),
    "clip": ("mmx.models.clip.task", "ClipTask"),
    "transfusion": ("mmx.models.transfusion.task", "TransfusionTask"),
    "spae": ("mmx.models.spae.task", "SpaeTask"),
}
# Families whose tasks are an EmbeddingTask.
_EMBED = ("clip",)
# Families whose tasks are a WritingTask.
_WRITE = ("transfusion",)
# Families whose tasks are a WordsTask.
_WORDS = ("spae",)
# family -> (module, what makes the codec of a config)
_CODECS = {"vqgan": ("mmx.models.vqgan.codec", "make_codec")}
# What a codec gives -> (how a codec of it is known, in words).
_GIVES = {"codes": ("num_codes", "codes"), "latents": ("latent_dim", "continuous latents")}
# What opens the published weights of a family: only that of CLIP so far.
_PUBLISHED = ("mmx.models.clip.published", "PublishedClip")


def _load(table: dict, family: str, what: str):
    if family not in table:
        raise UserError(f"config.family={family!r} is no {what}; known: {', '.join(table)}")
    module, name = table[family]
    return getattr(importlib.import_module(module), name)


def make_task(config, run, abstract: bool = False):
    """The task of a config, in a run directory, or of shapes alone (``abstract``, no run).

    Raises:
      UserError: an unknown family.
    """
    return _load(_TASKS, config.family, "family of models")(config, run, abstract)


def make_codec(config, gives: str = "", field: str = "config.codec"):
    """The codec of an earlier run's config.

    Args:
      config: of that run.
      gives: "codes" or "latents" where the later model can do with nothing else: a
        :class:`mmx.models.protocols.Codec`, or a LatentCodec.
      field: that names the run, for the message.

    Raises:
      UserError: a family that is no codec, or a codec of the other kind.
    """
    codec = _load(_CODECS, config.family, "image codec")(config)
    if gives and not hasattr(codec, _GIVES[gives][0]):
        raise UserError(
            f"{field}: a tokenizer with config.quantizer.kind={config.quantizer.kind!r} does "
            f"not give {_GIVES[gives][1]}, which are needed here; name a run of one that does"
        )
    return codec


def check_family(config) -> None:
    """Before anything is imported: raises UserError for an unknown family."""
    if config.get("family") not in _TASKS:
        raise UserError(f"config.family={config.get('family')!r}: use one of {', '.join(_TASKS)}")


def is_codec(config) -> bool:
    """Is a run with this config an image tokenizer that later models can be trained on?"""
    return config.family in _CODECS


def rebuilds(config) -> bool:
    """Does a run with this config give images back: is its task a RebuildingTask? (One of videos
    is, but what measures it reads images.)"""
    return is_codec(config) or (has_words(config) and not config.data.get("frames", 0))


def check_codec(config, field: str) -> None:
    """Before anything is imported: raises UserError when the run that a field names is no codec."""
    if not is_codec(config):
        raise UserError(
            f"{field}: a run of the family {config.family!r}, which is no image tokenizer; "
            f"name a run of the family {' or '.join(_CODECS)}"
        )


def open_published(source: str):
    """Published weights as the start of a run, see :class:`mmx.models.protocols.PublishedWeights`.

    Args:
      source: a folder, or an id of the Hugging Face hub.

    Raises:
      UserError: neither, or a model of no family here.
    """
    module, name = _PUBLISHED
    return getattr(importlib.import_module(module), name)(source)


def check_embeds(config, what: str) -> None:
    """Before anything is imported: raises UserError when that family's runs embed no texts."""
    if config.family not in _EMBED:
        raise UserError(
            f"{what}: a run of the family {config.family!r}, which does not compare images with "
            f"texts; name a run of the family {' or '.join(_EMBED)}"
        )


def writes(config) -> bool:
    """Do a family's runs read images and write texts?"""
    return config.family in _WRITE


def check_writes(config, what: str) -> None:
    """Before anything is imported: raises UserError when that family's runs read no images."""
    if not writes(config):
        raise UserError(
            f"{what}: a run of the family {config.family!r}, which reads no images of a prompt; "
            f"name a run of the family {' or '.join(_WRITE)}"
        )


def has_words(config) -> bool:
    """Are the codes of a family's runs words of a language model?"""
    return config.family in _WORDS


def check_words(config, what: str) -> None:
    """Before anything is imported: raises UserError when that family's runs know no words."""
    if not has_words(config):
        raise UserError(
            f"{what}: a run of the family {config.family!r}, whose codes are no words; name a run "
            f"of the family {' or '.join(_WORDS)}"
        )


def check_images(config, what: str) -> None:
    """Raises UserError when runs with this config are of videos."""
    if frames := config.data.get("frames", 0):
        raise UserError(
            f"{what}: a run of videos (config.data.frames={frames}); name one of images"
        )
