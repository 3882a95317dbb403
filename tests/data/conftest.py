"""Data sets that the tests of this folder share, each built once."""

import pytest

from mmx.data import openmoji


@pytest.fixture(scope="session")
def openmoji_root(tmp_path_factory):
    """A data directory with the real ``openmoji/32`` in it."""
    root = tmp_path_factory.mktemp("tfds")
    directory, built = openmoji.prepare("32", root)
    assert built and directory == root / "openmoji" / "32" / "1.0.0"
    return root
