"""Few-shot episodes: what they hold, that they come again, and what is kept of them."""

import collections

import pytest

from mmx.core.errors import UserError
from mmx.eval import episodes as eps
from mmx.eval.episodes import COLUMNS, Column, Pool

CLASSES = "abcdef"
SHOWN = Pool([CLASSES[i % 6] for i in range(60)])
ASKED = Pool([CLASSES[i % 6] if i % 5 else None for i in range(30)])


def test_an_episode_is_of_its_number_alone():
    many = eps.draw_classes(SHOWN, ASKED, 3, 20, 2)
    assert many[:5] == eps.draw_classes(SHOWN, ASKED, 3, 5, 2)
    assert many != eps.draw_classes(SHOWN, ASKED, 4, 20, 2)
    assert len(set(many)) == 20 and [e.number for e in many] == [*range(20)]


@pytest.mark.parametrize("asked", [ASKED, None])
def test_each_class_is_shown_and_asked_as_often_by_different_images(asked):
    counts = collections.Counter()
    for episode in eps.draw_classes(SHOWN, asked, 0, 200, 3):
        assert len(set(episode.candidates)) == 3 and len(episode.rounds) == 5
        for round_ in episode.rounds:
            assert sorted(item.answer for item in round_) == sorted(episode.candidates)
        assert [item.answer for item in episode.queries] == [*episode.candidates]
        images = [item.image for round_ in episode.rounds for item in round_]
        assert len(set(images)) == 15
        for item in episode.queries:
            assert item.answer == (asked or SHOWN).answers[item.image]
            assert asked or item.image not in images
        counts.update(episode.candidates)
        counts["first"] += episode.rounds[0][0].answer == episode.candidates[0]
    # Six classes, three an episode; a third of the rounds begins with the first. 4 sigma.
    assert all(abs(counts[c] - 100) < 4 * 50**0.5 for c in CLASSES)
    assert abs(counts["first"] - 200 / 3) < 4 * (200 * 2 / 9) ** 0.5


def test_columns_show_the_first_of_the_same_images():
    (episode,) = eps.draw_classes(SHOWN, ASKED, 0, 1, 2)
    assert len(COLUMNS) == len(set(COLUMNS)) == 7
    assert [len(eps.supports(episode, c)) for c in COLUMNS] == [2, 2, 6, 10, 4, 8, 12]
    one = list(episode.rounds[0])
    assert eps.supports(episode, Column(True, 1, 3)) == one * 4
    assert eps.supports(episode, Column(True, 3, 0))[:2] == one
    assert [str(c) for c in COLUMNS[:2]] == ["no induction, 1 shot", "1 shot"]
    assert str(COLUMNS[-1]) == "1 shot, 5 repeats"


def test_captions_to_choose_from_are_never_shown():
    shown = Pool([f"text {i // 2}" for i in range(60)])
    for asked in (None, Pool([f"text {i}" for i in range(40, 10, -1)])):
        for episode in eps.draw_texts(shown, asked, 0, 50, 3):
            told = [item.answer for round_ in episode.rounds for item in round_]
            assert len(set(told)) == 15 and not set(told) & set(episode.candidates)
            assert [item.answer for item in episode.queries] == [*episode.candidates]
            assert all(shown.answers[i.image] == i.answer for r in episode.rounds for i in r)


def test_too_few_of_something():
    with pytest.raises(UserError, match=r"--ways=7: 6 classes have 5 images to show"):
        eps.draw_classes(SHOWN, ASKED, 0, 1, 7)
    with pytest.raises(UserError, match=r"--ways=2: 0 classes have 11 images"):
        eps.draw_classes(SHOWN, None, 0, 1, 2, shots=10)
    with pytest.raises(UserError, match=r"--ways=1: 6 classes"):
        eps.draw_classes(SHOWN, ASKED, 0, 1, 1)
    with pytest.raises(UserError, match=r"--ways=2: it takes 12 different captions .* are 6 and 6"):
        eps.draw_texts(SHOWN, ASKED, 0, 1, 2)


def test_the_file_counts(tmp_path):
    file = eps.Path(tmp_path / "episodes.json")
    recipe = {"seed": 0, "ways": 2, "sources": ("a", "b")}
    drawn = eps.draw_classes(SHOWN, ASKED, 0, 3, 2)
    assert eps.keep(file, recipe, drawn) == drawn
    assert eps.keep(file, recipe, eps.draw_classes(SHOWN, ASKED, 1, 3, 2)) == drawn
    with pytest.raises(UserError, match=r"made with seed=0, not 1; name another --out"):
        eps.keep(file, recipe | {"seed": 1}, drawn)
    file.write_text("{}")
    with pytest.raises(UserError, match="not a file of episodes"):
        eps.keep(file, recipe, drawn)
