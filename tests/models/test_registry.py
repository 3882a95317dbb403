"""Families by name, imported only when asked."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from mmx.core.errors import UserError
from mmx.models import registry
from mmx.models.protocols import Task


def test_an_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"config.family='mused' is no family of models; .*muse"):
        registry.make_task(ConfigDict({"family": "mused"}), None)


def test_a_family_that_is_no_codec_is_refused():
    with pytest.raises(UserError, match=r"config.family='muse' is no image codec; known: vqgan"):
        registry.make_codec(ConfigDict({"family": "muse"}))


def test_every_entry_exists(build):
    assert build.vqgan().family == "vqgan"
    assert build.muse().family == "muse"
    assert build.clip().family == "clip"
    assert registry.make_codec(build.changed("vqgan/openmoji32:tiny")).num_codes == 64


def test_every_task_has_what_the_verbs_call(build):
    """A family that lacks one of them fails here, not after hours of training."""
    for task in (build.vqgan(), build.muse(), build.clip(), build.transfusion()):
        assert isinstance(task, Task)
        for name in [n for n in vars(Task) if not n.startswith("_") and callable(vars(Task)[n])]:
            assert getattr(task, name).__doc__, f"{task.family}: {name} has no docstring"
    assert build.muse().options(steps=3).steps == 3
    assert build.transfusion().options(steps=3).steps == 3
    assert all(hasattr(build.transfusion(), name) for name in ("prompts", "prompt_rows", "parts"))
    for task in (build.vqgan(), build.clip()):
        with pytest.raises(UserError, match="cannot sample"):
            task.options()


def test_importing_the_registry_imports_no_family():
    code = (
        "import sys, mmx.models.registry as r;"
        "assert not [m for m in sys.modules if m.startswith('mmx.models.') and m.count('.') > 2];"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
