"""Questions on scenes: what is asked of which, and what is right."""

import pytest

from mmx.core.errors import UserError
from mmx.data.scene_grammar import Group, Scene
from mmx.data.scene_questions import QUESTIONS, ask

DOGS = Scene((Group("dog", 2, "small"),), None, "blue", None)
ONE = Scene((Group("red apple", 1, "normal"),), None, "white", None)
PAIR = Scene((Group("dog", 1, "small"), Group("red heart", 1, "normal")), "left of", "gray", None)
THREE = Scene((Group("dog", 1, "small"), Group("cat", 2, "normal")), "above", "gray", None)
SIGN = Scene((), None, "pink", "HI")


@pytest.mark.parametrize(
    ("name", "scene", "asked"),
    [
        ("colour", DOGS, ("What colour is the background?", "blue")),
        ("colour", SIGN, ("What colour is the background?", "pink")),
        ("kind", DOGS, ("What is in the picture?", "dog")),
        ("kind", PAIR, None),
        ("kind", SIGN, None),
        ("count", DOGS, ("How many dogs are there?", "two")),
        ("count", ONE, ("How many red apples are there?", "one")),
        ("count", THREE, None),
        ("relation", PAIR, ("Is the dog left of, above or on the red heart?", "left of")),
        ("relation", THREE, None),
        ("relation", ONE, None),
    ],
)
def test_what_is_asked(name, scene, asked):
    assert ask(name, scene) == asked


def test_no_such_question():
    assert [*QUESTIONS] == ["colour", "kind", "count", "relation"]
    with pytest.raises(UserError, match="--ask='size': use one of colour, kind, count, relation"):
        ask("size", ONE)
