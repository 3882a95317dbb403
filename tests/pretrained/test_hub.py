"""Where the files of a published model come from: a folder, the hub's local cache, or nowhere."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from mmx.core.errors import Unavailable, UserError
from mmx.pretrained.hub import Repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache as `huggingface_hub` lays it out, with one repository; no network."""
    root = tmp_path / "hub"
    repository = root / "models--maker--tiny-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_text('{"from": "cache"}')
    (repository / ".no_exist" / COMMIT).mkdir(parents=True)
    (repository / ".no_exist" / COMMIT / "tokenizer.json").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


def test_a_folder_is_read_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    repository = Repository(str(tmp_path))
    assert repository.get("config.json").read_text() == "{}"
    assert repository.find("tokenizer.json") is None
    with pytest.raises(UserError, match=r"no model\.safetensors in it"):
        repository.get("model.safetensors")
    with repository.local("config.json") as file:
        assert file.read_text() == "{}"


def test_an_id_is_read_from_the_local_cache(cache):
    for name in ("maker/tiny-clip", "maker/tiny-clip@main", f"maker/tiny-clip@{COMMIT}"):
        assert Repository(name).get("config.json").read_text() == '{"from": "cache"}'
    assert Repository("maker/tiny-clip").find("tokenizer.json") is None  # known not to be there


def test_what_is_not_cached_says_so_without_a_network(cache):
    with pytest.raises(Unavailable, match=r"maker/tiny-clip: .*model.safetensors is not in the c"):
        Repository("maker/tiny-clip").find("model.safetensors")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(404, UserError, "hub refuses"), (503, Unavailable, "does not answer")],
)
def test_what_the_hub_answers_is_told_in_one_line(cache, monkeypatch, status, kind, words):
    def refuse(**_):
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        raise errors.HfHubHTTPError("no\nsuch thing", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=words) as caught:
        Repository("maker/other").find("config.json")
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_an_id_that_the_hub_does_not_allow(cache):
    with pytest.raises(UserError, match=r"^maker/clip\.git: no such folder, and no id of the hub"):
        Repository("maker/clip.git").find("config.json")


def test_neither_a_folder_nor_an_id(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for source in (
        *(str(tmp_path / "none"), str(file), "clip", "a/b/c", ""),
        *("./nothing", "../nothing", "my--runs/x", "runs/clip.", "runs/.clip"),
    ):
        with pytest.raises(UserError, match="neither a folder of a published model nor an id"):
            Repository(source)
