"""Few-shot episodes: which images a reader is shown with their answers, and which it is asked.

The protocol of Frozen (arXiv 2106.13884 sec. 4.1.2), as SPAE's tables have it (arXiv 2306.17842):
an episode has `ways` classes, of each `shots` different images to show ("inner shots") and one to
ask about. What is shown may be shown again (`repeats`), and the answers may be listed before
("task induction"). Those are columns of one episode: all see the same images, few shots the first
of many.

An episode is a pure function of (seed, its number). Nothing here knows what an image is: images
are numbers in a data set.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils.epath import Path

from mmx.core import storage
from mmx.core.errors import UserError


class Item(NamedTuple):
    """An image with its answer.

    Attributes:
      image: its number in the data set that it is of.
      answer: what is right.
      question: "" where all are asked the same.
    """

    image: int
    answer: str
    question: str = ""


class Episode(NamedTuple):
    """What is shown and what is asked.

    Attributes:
      number: of the episode.
      candidates: the answers to choose from.
      rounds: for each inner shot one item of each class, in an order of its own.
      queries: one item of each class.
    """

    number: int
    candidates: tuple[str, ...]
    rounds: tuple[tuple[Item, ...], ...]
    queries: tuple[Item, ...]


class Column(NamedTuple):
    """One way to show an episode.

    Attributes:
      induction: whether the candidates are listed before.
      shots: images of each class.
      repeats: how often all of them are shown again.
    """

    induction: bool
    shots: int
    repeats: int

    def __str__(self) -> str:
        shown = f"{self.shots} shot" + "s" * (self.shots > 1)
        shown += f", {self.repeats} repeat" + "s" * (self.repeats > 1) if self.repeats else ""
        return shown if self.induction else f"no induction, {shown}"


# The seven of Frozen's tables, whose mean is the eighth.
COLUMNS = (
    Column(False, 1, 0),
    Column(True, 1, 0),
    Column(True, 3, 0),
    Column(True, 5, 0),
    Column(True, 1, 1),
    Column(True, 1, 3),
    Column(True, 1, 5),
)
SHOTS = max(column.shots for column in COLUMNS)


def supports(episode: Episode, column: Column) -> list[Item]:
    """What is shown, in order: round after round, and all of it again for each repeat."""
    shown = [item for round_ in episode.rounds[: column.shots] for item in round_]
    return shown * (1 + column.repeats)


class Pool(NamedTuple):
    """The images that episodes draw from.

    Attributes:
      answers: of each image, None for one that is not to be drawn.
      questions: of each image, or None where all are asked the same.
    """

    answers: Sequence[str | None]
    questions: Sequence[str] | None = None

    def item(self, image: int) -> Item:
        question = "" if self.questions is None else self.questions[image]
        return Item(int(image), self.answers[image], question)

    def by_answer(self) -> dict[str, np.ndarray]:
        """Answer -> its images, answers in order of the alphabet."""
        images: dict[str, list[int]] = {}
        for image, answer in enumerate(self.answers):
            if answer is not None:
                images.setdefault(answer, []).append(image)
        return {answer: np.array(images[answer]) for answer in sorted(images)}


def draw_classes(
    shown: Pool, asked: Pool | None, seed: int, count: int, ways: int, shots: int = SHOTS
) -> list[Episode]:
    """Episodes whose classes are the answers.

    Args:
      shown, asked: where the shown images come from and those asked about; None: the same pool,
        and no image is both in an episode.
      seed: of all draws.
      count: episodes 0..count-1.
      ways: classes an episode.
      shots: rounds an episode.

    Raises:
      UserError: fewer classes than ``ways`` have enough images.
    """
    of_shown = shown.by_answer()
    of_asked = of_shown if asked is None else asked.by_answer()
    needed = shots + (asked is None)
    classes = [c for c in of_shown if len(of_shown[c]) >= needed and c in of_asked]
    if not 2 <= ways <= len(classes):
        raise UserError(
            f"--ways={ways}: {len(classes)} classes have {needed} images to show and one to ask "
            f"about; give a number from 2 to {len(classes)}"
        )
    return [_draw(shown, asked, of_shown, of_asked, classes, seed, n, ways, shots)
            for n in range(count)]  # fmt: skip


def _draw(shown, asked, of_shown, of_asked, classes, seed, number, ways, shots) -> Episode:
    rng = np.random.default_rng([seed, number])
    chosen = [classes[i] for i in rng.choice(len(classes), ways, replace=False)]
    some = [rng.choice(of_shown[c], shots + (asked is None), replace=False) for c in chosen]
    rounds = tuple(
        tuple(shown.item(some[way][shot]) for way in rng.permutation(ways)) for shot in range(shots)
    )
    if asked is None:
        queries = [shown.item(images[-1]) for images in some]
    else:
        queries = [asked.item(rng.choice(of_asked[c])) for c in chosen]
    return Episode(number, tuple(chosen), rounds, tuple(queries))


def draw_texts(
    shown: Pool, asked: Pool | None, seed: int, count: int, ways: int, shots: int = SHOTS
) -> list[Episode]:
    """Episodes whose answers are texts of their own: each image's caption, chosen among those of
    the others that are asked about, none of which is shown.

    Args and raises as :func:`draw_classes`.
    """
    of_shown = shown.by_answer()
    of_asked = of_shown if asked is None else asked.by_answer()
    texts = [*of_asked]
    if not 2 <= ways <= len(texts) or len(of_shown) < ways * (shots + 1):
        raise UserError(
            f"--ways={ways}: it takes {ways * (shots + 1)} different captions to show and {ways} "
            f"to ask about, but there are {len(of_shown)} and {len(texts)}"
        )
    episodes = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        chosen = [texts[i] for i in rng.choice(len(texts), ways, replace=False)]
        others = [text for text in of_shown if text not in chosen]
        told = [others[i] for i in rng.choice(len(others), ways * shots, replace=False)]
        items = [shown.item(rng.choice(of_shown[text])) for text in told]
        rounds = tuple(tuple(items[at : at + ways]) for at in range(0, len(items), ways))
        asked_about = shown if asked is None else asked
        queries = tuple(asked_about.item(rng.choice(of_asked[text])) for text in chosen)
        episodes.append(Episode(number, tuple(chosen), rounds, queries))
    return episodes


# ---------------------------------------------------------------- on the disk


def keep(file: Path, recipe: Mapping[str, Any], episodes: Sequence[Episode]) -> list[Episode]:
    """Write episodes, or read those that are there.

    Args:
      file: JSON; where it is there already, its episodes are the ones that count.
      recipe: what they were drawn by.

    Raises:
      UserError: the file is of another recipe (names what differs), or none of ours.
    """
    recipe = json.loads(json.dumps(recipe))
    if not file.is_file():
        lines = ",\n".join(json.dumps(episode) for episode in episodes)
        storage.write(
            file, f'{{"recipe": {json.dumps(recipe, indent=1)},\n"episodes": [\n{lines}\n]}}\n'
        )
        return list(episodes)
    try:
        held = json.loads(storage.read_text(file))
        there, found = held["recipe"], [_episode(*fields) for fields in held["episodes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a file of episodes; delete it or name another --out") from (
            error
        )
    check_recipe(file, there, recipe)
    return found


def check_recipe(
    file: Path, there: Mapping[str, Any], recipe: Mapping[str, Any], flag: str = "--out"
) -> None:
    """Raises UserError: what a file was made by is not what is wanted; names what differs.

    Args:
      flag: that says where the file lies.
    """
    for field in {**there, **recipe}:
        if there.get(field) != recipe.get(field):
            raise UserError(
                f"{file}: made with {field}={there.get(field)}, not {recipe.get(field)}; name "
                f"another {flag}"
            )


def _episode(number, candidates, rounds, queries) -> Episode:
    items = lambda given: tuple(Item(*fields) for fields in given)
    return Episode(number, tuple(candidates), tuple(map(items, rounds)), items(queries))
