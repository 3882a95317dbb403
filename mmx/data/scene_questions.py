"""Questions on scenes whose answers follow from the factors, a fixed sentence for each.

Each is asked of the scenes that have one answer to it: of one kind of thing, or of two things.
"""

from mmx.core.errors import choose
from mmx.data import scene_grammar as grammar
from mmx.data.scene_grammar import Scene

_NUMBERS = ("one", *grammar.COUNTS[1:])

Asked = tuple[str, str] | None  # question and answer


def _colour(scene: Scene) -> Asked:
    return "What colour is the background?", scene.background


def _kind(scene: Scene) -> Asked:
    if len(scene.groups) != 1:
        return None
    return "What is in the picture?", scene.groups[0].kind


def _count(scene: Scene) -> Asked:
    if len(scene.groups) != 1:
        return None
    group = scene.groups[0]
    return f"How many {grammar.plural(group.kind)} are there?", _NUMBERS[group.count - 1]


def _relation(scene: Scene) -> Asked:
    if [group.count for group in scene.groups] != [1, 1]:
        return None
    first, second = (group.kind for group in scene.groups)
    return f"Is the {first} left of, above or on the {second}?", scene.relation


QUESTIONS = {"colour": _colour, "kind": _kind, "count": _count, "relation": _relation}


def ask(name: str, scene: Scene) -> Asked:
    """(question, answer); None for a scene that has no one answer.

    Args:
      name: of `QUESTIONS`.

    Raises:
      UserError: of no question.
    """
    return choose("--ask", QUESTIONS, name)(scene)
