"""Images by a frozen language model: prompts, tasks, controls, what is drawn."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from word_fakes import (
    LM_V,
    ROWS,
    SIDE,
    SMALL,
    WINDOW,
    WORDS,
    Oracle,
    from_words,
    last_output,
    prompter,
    to_words,
)  # fmt: skip

from mmx.core.errors import UserError
from mmx.core.rng import base_key
from mmx.data.vocabulary import Vocabulary
from mmx.eval.images import psnr
from mmx.models.language_model import FrozenLM, Sampling
from mmx.models.spae.in_context import pictures
from mmx.models.spae.in_context.conditions import TASKS, Picture, nearest_captions
from mmx.models.spae.in_context.drawing import draw
from mmx.models.spae.in_context.noise import make_noise
from mmx.models.spae.in_context.prompts import Pair, Prompter, Request
from mmx.models.spae.in_context.requests import pose
from mmx.models.spae.in_context.segments import (
    Segment,
    Window,
    places,
    segment_plan,
)  # fmt: skip
from mmx.nn.causal_lm import Architecture, CausalLM
from mmx.nn.rope import Rope
from mmx.ops.pyramid import Pyramid
from tests.tokenizer_fakes import byte_level, with_byte_fallback

KEY = base_key(3)
RNG = np.random.default_rng(0)


def some_words(*shape):
    return RNG.integers(0, ROWS, shape).astype(np.int32)


def a_request(supports=3, T=37):
    pairs = [Pair(some_words(T), some_words(T)) for _ in range(supports)]
    return Request(pairs, some_words(T), some_words(T))


# ---------------------------------------------------------------- prompts


def test_a_prompt_by_hand():
    """Ids of pieces and words alone, in order; words of the segment itself only of the examples."""
    ids = lambda words: WORDS.lm_ids(words).tolist()
    pairs = [Pair(some_words(37), some_words(37)), Pair("a", some_words(37))]
    given, words = some_words(37), some_words(37)
    request = Request(pairs, given, words)
    made = prompter().prompt(request, Segment(2, 4, 2), words)
    shown, before, own = [0, 1, 2, 3, 4, 9, 10], [0, 1, 2, 3, 4, 6, 7, 8], [9, 10]
    wanted = [60, 61, 61]
    for pair, ids_given in zip(pairs, (ids(pairs[0].given[shown]), [5, 6])):
        wanted += [2, *ids_given, 1, *ids(pair.wanted_T[before]), 3, *ids(pair.wanted_T[own]), 4]
    assert made == [*wanted, 2, *ids(given[shown]), 1, *ids(words[before]), 3]
    first = prompter().prompt(request._replace(supports=pairs[1:]), Segment(0, 0, 1), words)
    assert first == [60, 61, 2, 5, 6, 3, *ids(pairs[1].wanted_T[:1]), 4, 2, *ids(given[:5]), 3]


@pytest.mark.parametrize("made", [byte_level, with_byte_fallback])
def test_a_prompt_is_the_ids_of_its_text(made):
    """None of its pieces has a beginning of its own, as a tokenizer has it that puts a "▁" before
    each text; the byte-level one never had, and its ids are those of the pieces alone."""
    tokenizer = made()
    dog_a = np.array(tokenizer.inside(" dog a"))
    vocabulary, word = Vocabulary(dog_a, (" dog", " a"), "hash"), np.arange(2)
    of = Prompter(tokenizer, vocabulary, Pyramid((1, 1)), WINDOW)
    request = Request([Pair("a dog", word), Pair(word, word)], word, word)
    pieces = ["Learn from the examples and write the next 1 words.\n"]
    for given in (" a dog", " dog a"):
        pieces += ["###\nInput:", given, "\nSo far:", " dog", "\nOutput:", " a", "\n"]
    pieces += ["###\nInput:", " dog a", "\nSo far:", " dog", "\nOutput:"]
    ids = of.prompt(request, Segment(1, 0, 1), word)
    assert ids == [*tokenizer.start_ids, *tokenizer.encode("".join(pieces))]
    alone = [number for piece in pieces for number in tokenizer.encode(piece)]
    assert (ids == [*tokenizer.start_ids, *alone]) == (made is byte_level)


def test_a_changed_support_changes_its_own_ids_and_none_before():
    request, segment = a_request(), Segment(3, 4, 8)
    make = lambda supports: prompter().prompt(
        request._replace(supports=supports), segment, request.known_T
    )
    query = len(make([])) - 1 - segment.length  # behind start and instruction
    for number, pair in enumerate(request.supports):
        supports = list(request.supports)
        supports[number] = Pair(pair.given, (pair.wanted_T + 1) % ROWS)
        differs = np.flatnonzero(np.array(make(request.supports)) != make(supports))
        begin, end = (len(make(supports[:n])) - query for n in (number, number + 1))
        assert begin < differs[0] and differs[-1] < end
        assert len(differs) == len(places(SMALL, segment, WINDOW)[1]) + segment.length


# ---------------------------------------------------------------- drawing


def run(lm, requests, plan, **more):
    *_, (done, words_BT) = draw(lm, prompter(), requests, plan, KEY, **more)
    assert done == len(plan)
    return words_BT


def picture(caption="red cat"):
    return Picture(caption, RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def posed(name):
    """(a task's episode of three examples, in words too)."""
    pool = [picture(f"blue dog {i}") for i in range(5)]
    episode = TASKS[name].make(picture(), pool, 3, SMALL.shape)
    return episode, pose([episode], SMALL, to_words)[0]


CLEAN = make_noise(KEY, [0.0] * 3, 37, 5, ROWS)


@pytest.mark.parametrize("name", TASKS)
def test_the_truth_has_the_codecs_error_and_its_copy_too(name):
    """An oracle that knows, and where the examples are the query's own picture one that copies."""
    episode, task = posed(name)
    request = task.request(CLEAN, wrong=False)
    plan = segment_plan(SMALL, 6, task.is_asked_T)
    begins = iter(places(SMALL, segment, Window())[2] for segment in plan)
    truth = Oracle(lambda *_: WORDS.lm_ids(task.query.wanted_T[next(begins)]))
    known = np.where(task.is_asked_T, task.query.wanted_T, request.known_T)
    drawn = run(truth, [request], plan)
    np.testing.assert_array_equal(drawn[0], known)
    assert truth.calls == len(plan)
    if task.is_asked_T.all():
        image = episode.query.wanted[None]
        codec = psnr(image, from_words(to_words(image)))
        assert 5 < codec[0] < 50 and psnr(image, from_words(drawn)) == codec
    copied = run(Oracle(last_output), [request], plan)[0]
    own = name in ("rotate", "shift", "deblur", "inpaint", "outpaint")
    assert (copied == known).all() == own
    np.testing.assert_array_equal(
        copied, np.where(task.is_asked_T, task.supports[-1].wanted_T, request.known_T)
    )
    wrong = run(Oracle(last_output), [task.request(CLEAN, wrong=True)], plan)[0]
    assert (wrong != known).any()


def test_a_segment_is_asked_for_with_what_was_written_before():
    """An oracle that counts on from the last word it reads writes an ascending row."""
    plan = segment_plan(SMALL, 6)
    request = a_request()

    def count_on(number, prompt, count):
        query = prompt[len(prompt) - prompt[::-1].index(2) :]
        last = WORDS.rows(query[-2]) if 1 in query else ROWS - 1
        return WORDS.lm_ids((last + 1 + np.arange(count)) % ROWS)

    np.testing.assert_array_equal(run(Oracle(count_on), [request] * 2, plan), [range(37)] * 2)


@functools.cache
def random_lm():
    arch = Architecture(
        vocab_size=LM_V, width=16, depth=1, heads=2, kv_heads=1, head_size=8, mlp=16, context=128,
        eps=1e-5, windows=(0,), ropes=(Rope(),), query_scale=0.5,
    )  # fmt: skip
    shapes = jax.eval_shape(CausalLM(arch).init, KEY, jnp.zeros((1, 1), int))
    rng = np.random.default_rng(1)
    fill = lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32)
    return FrozenLM(arch, jax.tree.map(fill, nn.unbox(shapes)["params"]))


def test_all_that_is_drawn_is_of_the_vocabulary_and_of_its_image_alone():
    """A random language model, to which other ids are as likely; taken up again, and beside other
    images, it draws the same."""
    pyramid = Pyramid((2, 2))
    requests = [a_request(1, 8) for _ in range(8)]
    plan = segment_plan(pyramid, 4)
    args = prompter(pyramid), requests, plan, KEY
    options = dict(sampling=Sampling(temperature=1.0))
    steps = list(draw(random_lm(), *args, **options))
    words_BT = steps[-1][1]
    assert words_BT.min() >= 0 and words_BT.max() < ROWS and len(np.unique(words_BT)) > 25
    assert [done for done, _ in steps] == [1, 2]
    for segment, (_, then) in zip(plan, steps):
        end = pyramid.ends[segment.layer]
        np.testing.assert_array_equal(then[:, :end], words_BT[:, :end])
    *_, (_, again) = draw(random_lm(), *args, words_BT=steps[0][1], done=1, **options)
    np.testing.assert_array_equal(again, words_BT)
    others = [requests[2], *requests[:7]]
    *_, (_, moved) = draw(random_lm(), prompter(pyramid), others, plan, KEY, first_row=2, **options)
    np.testing.assert_array_equal(moved[0], words_BT[2])
    assert (moved[1] != words_BT[0]).any()


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_computed():
    lm = Oracle(last_output)
    plan = segment_plan(SMALL, 16)
    longest = len(prompter().prompt(a_request(), plan[-1], some_words(37))) + 16
    lm.arch = SimpleNamespace(vocab_size=LM_V, context=longest)
    draw(lm, prompter(), [a_request()], plan, KEY)
    lm.arch.context -= 1
    told = rf"layer 4, words 0-15: a prompt of {longest - 16} ids \(3 examples\).* {longest - 1};"
    with pytest.raises(UserError, match=told):
        draw(lm, prompter(), [a_request()], plan, KEY)
    assert lm.calls == 0


# ---------------------------------------------------------------- pictures and tasks


def test_pictures_by_hand():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(pictures.rotate(image)[0, :, 0], image[:, 3, 0])
    np.testing.assert_array_equal(pictures.rotate(image)[:, 0, 0], image[0, ::-1, 0])
    np.testing.assert_array_equal(pictures.shift(image, 1)[1:, 1:], image[:3, :3])
    np.testing.assert_array_equal(pictures.shift(image, 1)[0, 1:], image[3, :3])
    point = np.zeros((5, 5, 3), np.uint8)
    point[2, 2] = 90
    blurred = np.zeros((5, 5))
    blurred[1:4, 1:4] = 10
    np.testing.assert_array_equal(pictures.blur(point, 1)[..., 1], blurred)
    np.testing.assert_array_equal(
        pictures.blur(np.full_like(point, 77), 2), np.full_like(point, 77)
    )
    corner = np.zeros((5, 5, 3), np.uint8)
    corner[0, 0] = 90
    assert pictures.blur(corner, 1)[0, 0, 0] == 40  # 4 of 9, as the border goes on
    values = np.array([[[0, 1, 3], [100, 200, 255]]], np.uint8)
    assert pictures.brighten(values, 50).tolist() == [[[0, 1, 2], [50, 100, 128]]]
    assert pictures.brighten(values, 130).tolist() == [[[0, 1, 4], [130, 255, 255]]]
    other = np.array([[[255, 3, 3], [100, 0, 0]]], np.uint8)
    assert pictures.blend(values, other, 25).tolist() == [[[64, 2, 3], [100, 150, 191]]]
    hidden = pictures.hide(image, np.array([[True, False], [False, False]]))
    assert (hidden[:2, :2] == 128).all() and (hidden[2:] == image[2:]).all()
    assert (hidden[:2, 2:] == image[:2, 2:]).all()
    assert pictures.centre((8, 8)).sum() == 16 and pictures.centre((8, 8))[2:6, 2:6].all()
    video = np.arange(4 * 4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 4, 3)
    hidden = pictures.hide(video, pictures.later_half((2, 2, 2)))
    assert (hidden[2:] == 128).all() and (hidden[:2] == video[:2]).all()
    one = np.zeros((2, 2, 2), bool)
    one[1, 0, 1] = True
    grey = pictures.hide(video, one) != video
    assert grey.any() and not grey[:2].any() and not grey[:, 2:].any() and not grey[:, :, :2].any()
    assert pictures.later_half((4, 4)).tolist() == [[False] * 4] * 2 + [[True] * 4] * 2


def test_the_nearest_captions_come_last():
    pool = [Picture(c, None) for c in ("blue dog", "red cat", "Red heart on fire", "green heart")]
    near = [p.caption for p in nearest_captions("red heart", pool, 3)]
    assert (
        near == ["red cat", "green heart", "Red heart on fire"][::1] or near[-1] == pool[2].caption
    )
    assert near == ["green heart", "red cat", "Red heart on fire"]


def test_what_the_tasks_show_and_ask():
    own, pool = picture(), [picture(f"dog {i}") for i in range(4)]
    make = lambda name: TASKS[name].make(own, pool, 4, (4, 4))
    for name in TASKS:
        episode = make(name)
        assert len(episode.supports) == len(episode.wrong) == 4
        assert all((w != s.wanted).any() for w, s in zip(episode.wrong, episode.supports))
        if name not in ("brighten", "interpolate"):
            np.testing.assert_array_equal(episode.query.wanted, own.image)
    bright = make("brighten")
    assert [s.given for s in bright.supports] == ["40%", "100%", "55%", "85%"]
    assert bright.query.given == "70%"
    np.testing.assert_array_equal(bright.query.wanted, pictures.brighten(own.image, 70))
    between = make("interpolate")
    assert [s.given[:3] for s in between.supports] == ["100", "0% ", "75%", "25%"]
    assert between.query.given == "50% red cat, 50% dog 0"
    half = pictures.blend(own.image, pool[0].image, 50)
    np.testing.assert_array_equal(between.query.wanted, half)
    np.testing.assert_array_equal(make("rotate").query.given, np.rot90(own.image))
    np.testing.assert_array_equal(make("rotate_others").supports[1].wanted, pool[1].image)
    np.testing.assert_array_equal(make("shift").query.given[8:, 8:], own.image[:8, :8])
    for name, shown in (("inpaint", 12), ("outpaint", 8)):
        episode = make(name)
        same = (episode.query.given == own.image).reshape(4, 4, 4, 4, 3).all((1, 3, 4))
        np.testing.assert_array_equal(same, ~episode.is_asked_hw)
        assert same.sum() == shown
    with pytest.raises(UserError, match="at least 2"):
        TASKS["brighten"].make(own, pool, 1, (4, 4))
    with pytest.raises(UserError, match="there are 4"):
        TASKS["rotate"].make(own, pool, 5, (4, 4))


def test_requests_have_the_noise_on_both_sides_and_their_controls():
    _, task = posed("rotate")
    noise = make_noise(KEY, [0.5, 0.4, 0.3], 37, 5, ROWS)
    right, wrong = (task.request(noise, wrong=wrong) for wrong in (False, True))
    for number, (pair, control) in enumerate(zip(right.supports, wrong.supports)):
        hit = noise.is_hit_NT[number]
        np.testing.assert_array_equal(pair.given[~hit], task.query.given[~hit])
        np.testing.assert_array_equal(pair.wanted_T[~hit], task.query.wanted_T[~hit])
        np.testing.assert_array_equal(pair.given[hit], pair.wanted_T[hit])
        np.testing.assert_array_equal(pair.given, control.given)
        np.testing.assert_array_equal(control.wanted_T[~hit], task.wrong_NT[number][~hit])
    np.testing.assert_array_equal(right.given, task.query.given)  # the query has no noise
    np.testing.assert_array_equal(task.copied(), task.query.given)
    _, text = posed("class")
    assert text.copied() is None and isinstance(text.request(noise, False).supports[0].given, str)


def test_the_vote_takes_the_most_frequent_word_the_latest_of_equals():
    _, task = posed("inpaint")
    known = np.zeros(37, np.int32)
    rows = np.stack([known + 1, known + 2, known + 1, known + 3])
    rows[:, 0] = [1, 2, 3, 4]
    request = Request([Pair(known, row) for row in rows], known, known + 9)
    voted = task.voted(request)
    assert (voted[~task.is_asked_T] == 9).all() and voted[0] == 4
    assert (voted[1:][task.is_asked_T[1:]] == 1).all() and task.is_asked_T[0]
