"""The report on a text-to-image run, with functions of NumPy in place of a model."""

import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from mmx.core import config as configs
from mmx.core.errors import UserError
from mmx.eval import evaluator, images, metrics, report, text_to_image
from mmx.eval.evaluator import Evaluator

SIZE, GRID, CODES = 64, 4, 16


class Split(Sequence):
    """Pictures made when they are read; counts how many are alive at once."""

    def __init__(self, count: int, seed: int, more=lambda i: {}):
        self.count, self.seed, self.more = count, seed, more
        self.alive, self.most = 0, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        image = np.full((SIZE, SIZE, 3), 255, np.uint8)
        for _ in range(3):
            y, x = rng.integers(8, 40, 2)
            image[y : y + 16, x : x + 16] = rng.integers(0, 256, 3)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self._gone)
        return {"image": image, "text": f"{self.seed} {index}", **self.more(index)}

    def _gone(self):
        self.alive -= 1


def darker(image_u8):
    """What the codec makes of images: 10 levels less, so the PSNR depends on the image."""
    return images.from_uint8(np.maximum(image_u8, 10) - np.uint8(10))


@pytest.fixture
def made(monkeypatch):
    """``made(splits) -> (scores, sections, sizes of what went through the codec)``.

    What is drawn to caption (split, number) is the picture ``instead`` of it; of that the first
    ``broken`` drawings have one pixel of nan, infinity or nothing else.
    """
    monkeypatch.setattr(report, "DRAWN", 12)

    def make(splits, evaluators=(), instead=lambda s, i: (s, i), broken=0):
        sizes = []

        def reconstruct(image_u8):
            sizes.append(len(image_u8))
            codes = image_u8[:, :: SIZE // GRID, :: SIZE // GRID, 0] // 16
            return darker(image_u8), codes.reshape(-1, GRID**2).astype(np.int32)

        def draw(captions, seed):
            place = [instead(*map(int, caption.split())) for caption in captions]
            of = {split.seed: split for split in splits.values()}
            image = np.stack([images.from_uint8(of[s][i]["image"]) for s, i in place])
            image[:broken:3, 0, 0], image[1:broken:3] = np.nan, np.inf
            image[2:broken:3] = np.nan
            codes = np.zeros((len(captions), GRID**2), np.int32)
            return {"image": image, "codes": codes, "trace": np.stack([codes, codes], 1)}

        shade = np.nan if broken else 0
        decode = lambda codes: np.full((len(codes), SIZE, SIZE, 3), shade, np.float32)
        model = text_to_image.Model(draw, reconstruct, 16, decode, CODES, GRID)
        scores, sections, rows = text_to_image.report(model, splits)
        if evaluators:
            scores |= evaluator.run(evaluators, rows())
            alone = text_to_image.measured(model, splits["train"], 0)
            for one, other in zip(rows(), alone, strict=True):  # without a report, the same rows
                assert one.keys() == other.keys() and one["text"] == other["text"]
                for name in ("image", "real", "reference"):
                    np.testing.assert_array_equal(one[name], other[name])
        return scores, sections, sizes

    return make


def test_scores_are_of_the_whole_images(made):
    splits = {"train": Split(40, 0), "test": Split(21, 1), "other": Split(5, 2)}
    scores, sections, sizes = made(splits)
    for name in ("train", "test"):
        image = np.stack([example["image"] for example in splits[name]])
        expected = images.psnr(image, darker(image))
        score = scores[f"tokenizer/psnr_{name}"]
        assert (score.value, score.n) == (pytest.approx(expected.mean()), len(image))
    assert scores["tokenizer/codebook_use"].n == 40
    assert sizes == [16, 16, 8, 16, 5, 12]  # train, test, the captions; "other" needs no codec
    # All that was asked for was drawn: of 40 + 21 + 5 pictures, the right one is nearest.
    assert scores["training_caption_recall/r1"].value == 1
    assert scores["training_caption_recall/r1_chance"] == pytest.approx(1 / 66)
    assert scores["nearest_training_image/rms"].value < 2e-3
    assert len(sections[0].captions) == 12


def test_a_model_that_replays_its_training_images_is_seen(made):
    """Whatever it is asked for: each drawing is some training image, none is its caption's."""
    splits = {"train": Split(20, 0), "test": Split(9, 1)}
    near, apart = (
        f"nearest_training_image/{name}" for name in ("rms", "rms_between_training_images")
    )
    copied, *_ = made(splits, instead=lambda s, i: (s, (i + 1) % 20))
    assert copied["training_caption_recall/r1"].value < 0.2
    assert copied[near].high < 2e-3 < copied[apart].low  # 2e-3: what 8 bits round by
    new, *_ = made(splits, instead=lambda s, i: (1, i % 9))
    assert new[near].low > 10 * copied[near].high


def test_a_model_of_nan_scores_badly_and_does_not_stop(made):
    splits = {"train": Split(30, 0), "test": Split(9, 1)}
    metric = metrics.make(("psnr",))
    whole, *_ = made(splits, metric)
    assert whole["not_finite"].value == 0
    for broken in (5, 12):
        scores, sections, _ = made(splits, metric, broken=broken)
        assert scores["not_finite"].value == broken / 12 and scores["not_finite"].n == 12
        assert scores["psnr"].value < whole["psnr"].value
        assert (
            scores["nearest_training_image/rms"].value > whole["nearest_training_image/rms"].value
        )
        assert all(section.images.dtype == np.uint8 for section in sections)
    assert scores["training_caption_recall/r1"].value < 0.7


def test_the_training_images_are_found_wherever_their_split_stands_and_untoned_ones_only(made):
    untoned = lambda i: {"untoned": i % 3 > 0}
    splits = {"test": Split(9, 1, untoned), "train": Split(30, 0, untoned)}
    scores, sections, _ = made(splits)
    assert scores["training_caption_recall/r1"].value == 1
    assert scores["training_caption_recall/r1_chance"] == pytest.approx(1 / 26)
    assert all(int(caption.split()[1]) % 3 for caption in sections[0].captions)


def test_held_out_tones_go_through_the_codec_at_full_size(made):
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")

    def tone(first):
        return lambda i: {
            "base": f"concept {(first + i) // 5}",
            "concept": f"concept {(first + i) // 5}",
            "skin_tone": tones[(first + i) % 5],
            "untoned": False,
        }

    plain = lambda i: tone(0)(i) if i < 19 else {"untoned": True, "skin_tone": "none"}
    # The last tone of the fourth concept was never trained.
    splits = {"train": Split(40, 0, plain), "heldout_composition": Split(1, 1, tone(19))}
    scores, sections, sizes = made(splits)
    assert scores["held_out/pair_match"].value == 1 and scores["held_out/pair_match"].n == 1
    assert sizes[-1] == 1 and sections[1].captions == ["1 0"]


def test_a_split_is_never_in_memory_as_a_whole(made):
    splits = {"train": Split(400, 0), "test": Split(300, 1)}
    made(splits)
    for split in splits.values():
        assert split.most <= 2 * 16  # one batch, and the one before until it is let go


def test_examples_are_the_first_of_a_large_split_at_one_size(monkeypatch):
    monkeypatch.setattr(report, "MAX_EXAMPLES", 10)
    large, small = report.Examples(Split(30, 0), 32), report.Examples(Split(4, 0), 32)
    assert (len(large), len(small)) == (10, 4)
    assert [e["text"] for e in large] == [f"0 {i}" for i in range(10)]
    assert large[9]["image"].shape == (32, 32, 3)
    with pytest.raises(IndexError):
        large[10]


def test_trained_splits_are_each_named_once():
    assert report.trained_splits("a*4+b[:10%]+a") == ["a", "b[:10%]"]


def test_what_is_drawn_is_compared_with_images_of_other_captions(made):
    seen = []

    def update(state, batch):
        seen.append(batch)
        return state

    spy = Evaluator("spy", ("image", "real"), dict, update, dict, lambda state: {"spy": 1.0})
    splits = {"train": Split(40, 0, lambda i: {"untoned": i % 4 > 0}), "test": Split(5, 1)}
    scores, _, _ = made(splits, [spy, *metrics.make(("psnr",))])
    assert scores["spy"] == 1 and scores["psnr"].n == 12
    all_images = np.stack([example["image"] for example in splits["train"]])
    find = lambda image: int(np.flatnonzero((all_images == image).all((1, 2, 3)))[0])
    drawn, real, reference = (np.concatenate([b[k] for b in seen])
                              for k in ("image", "real", "reference"))  # fmt: skip
    of = {k: [find(image) for image in images] for k, images in
          (("real", real), ("reference", reference))}  # fmt: skip
    np.testing.assert_array_equal(images.to_uint8(drawn), real)  # what was asked for was drawn
    assert [int(t.split()[1]) for b in seen for t in b["text"]] == of["real"]
    assert len(set(of["real"]) | set(of["reference"])) == 24
    assert all(i % 4 for i in of["real"] + of["reference"])  # untoned ones only
    # A set and its reference are of one size: of a small split each is a half.
    seen.clear()
    made({"train": Split(15, 0)}, [spy])
    assert sum(len(b["image"]) for b in seen) == 7
    small = [find(x) for b in seen for k in ("real", "reference") for x in b[k]]
    assert len(set(small)) == 14 and max(small) < 15
    with pytest.raises(UserError, match="the split has 1 image"):
        made({"train": Split(1, 0), "test": Split(2, 1)}, [spy])


def test_the_split_that_is_measured_is_part_of_the_recipe():
    config = configs.load_config("muse/openmoji32")
    there = ["train", "train_toned", "test"]
    assert report.measured_on(config, there) == (
        "drawings to captions of train+train_toned, against other images of it, 32 px"
    )
    config.data.source, config.data.split = "tfds:scenes/32", "train"
    assert report.asked_split(config, there) == "train_toned"
    with pytest.raises(UserError, match="trained on every split"):
        report.asked_split(config, ["train"])
    config = configs.load_config("vqgan/openmoji32")
    assert report.measured_on(config, there) == (
        "one half of test rebuilt, against the other half, 32 px"
    )
    assert report.taught_by(config) == []
    assert report.taught_by(configs.load_config("vqgan/muse256")) == ["lpips_vgg"]
