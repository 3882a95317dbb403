"""The language of scenes: what a scene is made of, its caption, and the caption read back.

Every word has one meaning, in the viewer's frame (the lengths are in `mmx.data.scene_draw`):
  - a kind ("dog", "red heart") is one OpenMoji drawing, always in its own colours;
  - "a", "two", "three" count all objects of a kind; a scene holds one to three objects;
  - "small" is 5/16 of the picture for the longer side of a drawing; without it, 7/16;
  - "A left of B", "A above B": clear of each other on that axis, nearly in line on the other;
  - "A on B": one A stands on one B: it is in front, and its lower edge is inside B's upper part;
  - "on blue", at the end, is the colour of all that is not object;
  - "a sign that says HI" is a white board with the word in capitals, and no other object.
"""

import dataclasses
import itertools
import json
import re

# kind -> (code points of the drawing, plural)
_KINDS = {
    "dog": ("1F436", "dogs"),
    "cat": ("1F431", "cats"),
    "pig": ("1F437", "pigs"),
    "frog": ("1F438", "frogs"),
    "fox": ("1F98A", "foxes"),
    "panda": ("1F43C", "pandas"),
    "bear": ("1F43B", "bears"),
    "chick": ("1F424", "chicks"),
    "turtle": ("1F422", "turtles"),
    "ladybug": ("1F41E", "ladybugs"),
    "butterfly": ("1F98B", "butterflies"),
    "penguin": ("1F427", "penguins"),
    "octopus": ("1F419", "octopuses"),
    "red apple": ("1F34E", "red apples"),
    "green apple": ("1F34F", "green apples"),
    "banana": ("1F34C", "bananas"),
    "lemon": ("1F34B", "lemons"),
    "strawberry": ("1F353", "strawberries"),
    "carrot": ("1F955", "carrots"),
    "donut": ("1F369", "donuts"),
    "mushroom": ("1F344", "mushrooms"),
    "red heart": ("2764", "red hearts"),
    "orange heart": ("1F9E1", "orange hearts"),
    "yellow heart": ("1F49B", "yellow hearts"),
    "green heart": ("1F49A", "green hearts"),
    "blue heart": ("1F499", "blue hearts"),
    "purple heart": ("1F49C", "purple hearts"),
    "blue book": ("1F4D8", "blue books"),
    "green book": ("1F4D7", "green books"),
    "orange book": ("1F4D9", "orange books"),
    "star": ("2B50", "stars"),
    "sun": ("2600", "suns"),
    "tree": ("1F332", "trees"),
    "cactus": ("1F335", "cactuses"),
    "car": ("1F697", "cars"),
    "house": ("1F3E0", "houses"),
    "umbrella": ("2602", "umbrellas"),
    "rocket": ("1F680", "rockets"),
    "bell": ("1F514", "bells"),
    "gift": ("1F381", "gifts"),
    "balloon": ("1F388", "balloons"),
    "ball": ("26BD", "balls"),
    "crown": ("1F451", "crowns"),
    "diamond": ("1F48E", "diamonds"),
    "robot": ("1F916", "robots"),
    "ghost": ("1F47B", "ghosts"),
    "shirt": ("1F455", "shirts"),
    "hat": ("1F3A9", "hats"),
}
_WORDS = """
    HI GO NO UP ON IN IT WE ME MY BY BE DO SO TO AT AN AM AS IS IF OF OR OK OH US HE
    YES CAT DOG SUN CAR BUS BED BOX CUP HAT HOT ICE JAM KEY LEG MAP NET NUT OWL PEN PIG RED RUN
    SEA SKY TEA TEN TOP TOY VAN WEB WET WIN ZOO ARM BAG BAT BEE BIG BOY COW CRY CUT DAD DAY DRY
    EAR EAT EGG END EYE FAN FAR FIX FLY FOG FOX FUN GAS GYM HEN HUG INK JAR JET JOB JOY KID LAB
    LID LIP LOG LOW MAN MIX MOM MUD NEW NOW OAK OIL OLD ONE OUT PAN PAW PET PIE POT RAT ROW SAD
    SIX SIT TAX TIE TIP TWO USE WAX WAY YAK YOU ZIP ZAP
"""
KINDS = tuple(_KINDS)
COUNTS = ("a", "two", "three")
SIZES = ("small", "normal")  # "normal" is not said
RELATIONS = ("left of", "above", "on")
BACKGROUNDS = ("white", "gray", "pink", "orange", "yellow", "green", "blue", "purple")
WORDS = tuple(_WORDS.split())

_OF_WORD = {kind: kind for kind in KINDS} | {plural: kind for kind, (_, plural) in _KINDS.items()}
_NOUN = "|".join(sorted(_OF_WORD, key=len, reverse=True))
_PHRASE = re.compile(rf"\b(an?|two|three) (small )?({_NOUN})\b")
_BACKGROUND = re.compile(rf"\bon ({'|'.join(BACKGROUNDS)})$")
_WORD = re.compile(r"\ba sign that says ([a-z]+)\b")


@dataclasses.dataclass(frozen=True)
class Group:
    """Some objects of one kind: a kind of `KINDS`, a count of 1..3, a size of `SIZES`."""

    kind: str
    count: int
    size: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """All factors of a scene.

    Attributes:
      groups: one or two, of different kinds, at most three objects in all; none where there is a
        word.
      relation: of `RELATIONS`, of the first group to the second; None unless there are two.
      background: of `BACKGROUNDS`.
      word: on the sign, capitals; None where there is no sign.
    """

    groups: tuple[Group, ...]
    relation: str | None
    background: str
    word: str | None

    def to_json(self) -> str:
        """The factors as one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """Inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**fields | {"groups": tuple(Group(**group) for group in fields["groups"])})


def codepoints(kind: str) -> str:
    """The name of a kind's drawing in OpenMoji, without ".svg"."""
    return _KINDS[kind][0]


def plural(kind: str) -> str:
    return _KINDS[kind][1]


def caption(scene: Scene) -> str:
    """The one caption of a scene: ``"a small dog left of two red hearts on blue"``."""
    if scene.word is not None:
        said = f"a sign that says {scene.word}"
    else:
        said = f" {scene.relation} ".join(_phrase(group) for group in scene.groups)
    return f"{said} on {scene.background}"


def _phrase(group: Group) -> str:
    noun = group.kind if group.count == 1 else plural(group.kind)
    words = f"small {noun}" if group.size == "small" else noun
    count = COUNTS[group.count - 1]
    return f"{'an' if count == 'a' and words[0] in 'aeiou' else count} {words}"


@dataclasses.dataclass(frozen=True)
class Found:
    """What a picture or a text shows, whether or not that is a scene.

    Attributes:
      groups: kind -> (count, sizes of its objects).
      relations: the (kind, relation, kind) that hold.
      background, word: as in Scene; None where there is none.
    """

    groups: dict[str, tuple[int, frozenset[str]]]
    relations: frozenset[tuple[str, str, str]]
    background: str | None
    word: str | None


def found(scene: Scene) -> Found:
    """What a true picture of the scene shows."""
    kinds = [group.kind for group in scene.groups]
    relations = {(kinds[0], scene.relation, kinds[1])} if scene.relation else ()
    return Found(
        {group.kind: (group.count, frozenset((group.size,))) for group in scene.groups},
        frozenset(relations),
        scene.background,
        scene.word,
    )


def read(text: str) -> Found:
    """What a text says, be it a caption or not: the phrases in it that are of this language.

    Letter case and repeated spaces do not matter. Of two phrases of one kind the counts add up.
    """
    text = " ".join(text.lower().split())
    groups: dict[str, tuple[int, frozenset[str]]] = {}
    phrases = list(_PHRASE.finditer(text))
    for match in phrases:
        count, sizes = groups.get(kind := _OF_WORD[match[3]], (0, frozenset()))
        more = COUNTS.index("a" if match[1] == "an" else match[1]) + 1
        groups[kind] = count + more, sizes | {"small" if match[2] else "normal"}
    relations = set()
    for first, second in itertools.pairwise(phrases):
        between = text[first.end() : second.start()].strip()
        if between in RELATIONS:
            relations.add((_OF_WORD[first[3]], between, _OF_WORD[second[3]]))
    background, word = _BACKGROUND.search(text), _WORD.search(text)
    return Found(
        groups,
        frozenset(relations),
        background and background[1],
        word and word[1].upper(),
    )


def parse(text: str) -> Scene | None:
    """The scene that has this caption, letter case aside; None if no scene has.

    A word may be any of 2 or 3 capitals, whether in `WORDS` or not.
    """
    seen = read(text)
    if seen.background is None or any(len(sizes) > 1 for _, sizes in seen.groups.values()):
        return None
    order = [_OF_WORD[match[3]] for match in _PHRASE.finditer(text.lower())]
    groups = tuple(
        Group(kind, seen.groups[kind][0], *seen.groups[kind][1]) for kind in dict.fromkeys(order)
    )
    relation = next(iter(seen.relations))[1] if len(seen.relations) == 1 else None
    scene = Scene(groups, relation, seen.background, seen.word)
    if not is_scene(scene) or caption(scene).lower() != text.lower():
        return None
    return scene


def is_scene(scene: Scene) -> bool:
    """Whether the factors can go together: see `Scene`, and for "on" one object on one other."""
    counts = [group.count for group in scene.groups]
    kinds = {group.kind for group in scene.groups}
    if scene.word is not None:
        shape = not scene.groups and re.fullmatch("[A-Z]{2,3}", scene.word) is not None
    else:
        shape = len(counts) in (1, 2) and 1 <= sum(counts) <= len(COUNTS) and min(counts) > 0
    return (
        shape
        and len(kinds) == len(counts)
        and (scene.relation in RELATIONS if len(counts) == 2 else scene.relation is None)
        and (scene.relation != "on" or counts == [1, 1])
    )
