"""The report on a Transfusion run: what it draws, what it writes, and how likely it finds texts.

Axis letters: Q images, G captions, T tokens of a caption, n texts.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np

from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.data.mixture import entries, open_mixture
from mmx.data.source import is_view, open_source
from mmx.data.text import EOS_ID
from mmx.eval import edits, scenes, text_to_image, writing
from mmx.eval.evaluator import Batch
from mmx.eval.grid import Section
from mmx.eval.ngram import NGram
from mmx.eval.report import DRAWN, Report, are_scenes, asked_split, open_splits
from mmx.models.protocols import OpenRun
from mmx.models.rows import fill_rows
from mmx.models.transfusion.likelihood import text_nll
from mmx.models.transfusion.validation import Rated, Rater, held_out_texts
from mmx.train.sharding import jit_sharded, replicated

_AT_ONCE = 64  # ours: rows that are drawn or written together
_TEXTS = 2000  # ours: held-out texts that are rated


def report(task, run: OpenRun, seed: int) -> Report:
    """Both directions, and texts: scores with intervals, with the run's own options.

    Drawings: :mod:`mmx.eval.text_to_image`, of scenes :mod:`mmx.eval.scenes`. What greedy decoding
    writes of images, seen and held out: :mod:`mmx.eval.writing`, of scenes the factors that it
    names. The place of the true caption of held-out images among others by likelihood. Of texts
    that were mixed in, the perplexity of those held out.

    Of a run on edits or series: :mod:`mmx.eval.edits` on each split of them, and then all that is
    above of the pairs that were mixed in, which tells what it forgot.

    Args:
      task: a TransfusionTask.
      run: its run, whose weights are scored.
      seed: of the choice of captions and images, and of the drawing.

    Raises:
      UserError: a run on texts alone.
    """
    data = task.config.data
    pairs = _pairs(data)
    if pairs is None and not is_view(data.source):
        raise _no_pairs(data)
    model, writer = _model(task, run), _Writer(task, run)
    scores, sections, told, attribution, rows = {}, [], [], "", None
    if is_view(data.source):
        scores, sections, subtitle, attribution = _edits(writer, model, seed)
        told.append(subtitle)
    if pairs is not None:
        more, shown, subtitle, attribution, rows = _both_ways(writer, model, pairs, seed)
        scores |= more
        sections += shown
        told.append(subtitle)
    for name, split, examples in held_out_texts(data):
        of = _perplexity(writer, name, examples)
        scores |= {f"text/{name}/{split}/{score}": value for score, value in of.items()}
    return Report(
        scores,
        sections,
        subtitle="; ".join(told),
        credit=f"Drawn and written by a model trained on {attribution}." if attribution else "",
        info={
            "settings": asdict(task.options()),
            "prompts": [caption for section in sections for caption in section.captions],
            "attribution": attribution,
        },
        # Of a run on pairs: `measured` refuses another one.
        measured=None if is_view(data.source) else lambda: writer.with_texts(rows()),
    )


def _both_ways(writer: "_Writer", model: text_to_image.Model, data, seed: int):
    """(scores, sections, subtitle, attribution, rows of the metrics) of pairs."""
    splits, attribution = open_splits(data)
    unseen = next(split for split in splits if split not in ("train", text_to_image.HELD_OUT))
    if are_scenes(data.source):
        scores, sections, rows = scenes.report(model, splits, seed)
        more, shown = _scene_captions(writer, splits, seed)
        subtitle = f"{unseen} captions with all factors right {scores[f'{unseen}/all']}"
    else:
        scores, sections, rows = text_to_image.report(model, splits, seed)
        more, shown = _captions(writer, splits, unseen, seed)
        subtitle = (
            f"training caption recall R@1 {scores['training_caption_recall/r1']}, training images "
            f"captioned exactly {more['captions_train/exact']}"
        )
    scores |= more | _likelihood(writer, splits[unseen], unseen, seed)
    return scores, sections + shown, subtitle, attribution, rows


def _edits(writer: "_Writer", model: text_to_image.Model, seed: int):
    """(scores, sections, subtitle, attribution) of the documents of each split of a view."""
    data = writer.task.config.data
    info, kind = open_mixture(data).parts[0].info, data.source.partition(":")[0]
    scores, sections = {}, []
    rebuild = lambda image_u8: model.reconstruct(image_u8)[0]
    for split in info.splits:
        view = open_source(data.source, split, data.data_dir, needs_image=False)
        more, shown = edits.report(writer.drawings, rebuild, view, data.image_size, seed)
        scores |= {f"{kind}_{split}/{name}": score for name, score in more.items()}
        sections += shown
    right, chance = (scores[f"{kind}_test/right_variant{end}"] for end in ("", "_chance"))
    subtitle = f"{kind} of unseen concepts: the right variant {right}, chance {chance:.2f}"
    return scores, sections, subtitle, info.attribution


def measured(task, run: OpenRun, seed: int) -> Iterator[Batch]:
    """The rows that the metrics of ``config.eval.metrics`` are of, those of :func:`report`: also
    what is written of the true images, and how likely the captions are by themselves."""
    if "image" not in open_mixture(task.config.data).parts[0].outline(0):
        raise _no_pairs(task.config.data)
    splits, _ = open_splits(task.config.data)
    asked = splits[asked_split(task.config, list(splits))]
    of = scenes if are_scenes(task.config.data.source) else text_to_image
    return _Writer(task, run).with_texts(of.measured(_model(task, run), asked, seed))


def _pairs(data) -> SimpleNamespace | None:
    """The first of ``config.data`` that is images with a text each, as `open_splits` takes it."""
    for source, split in entries(data):
        of = dict(source=source, split=split, data_dir=data.data_dir, mix=())
        if "image" in open_mixture(SimpleNamespace(**of)).parts[0].outline(0):
            return SimpleNamespace(**of, image_size=data.image_size)
    return None


def _no_pairs(data) -> UserError:
    return UserError(
        f"config.data.source={data.source!r}: a report is of images with a text each, or of edits "
        "and series, and its documents are others; the losses on config.eval.splits are in the "
        "run's TensorBoard"
    )


def _model(task, run: OpenRun) -> text_to_image.Model:
    """What draws, as functions of arrays on the host."""
    options = task.options(images=1, text=0)  # nothing after the image
    size = min(task.config.batch_size, _AT_ONCE)
    codec, frozen = task.codec, run.frozen
    through = lambda w, x: codec.decode(w["codec"], task.latents(w, x))
    rebuild = jit_sharded(through, run.mesh, out_shardings=replicated(run.mesh))

    def reconstruct(image_u8):
        parts = []
        for start in range(0, len(image_u8), size):
            part = image_u8[start : start + size]
            full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(np.asarray(rebuild(frozen, fill_rows(full, run.mesh)[0]))[: len(part)])
        return np.concatenate(parts), None

    def draw(captions, seed):
        progress = Progress(len(captions), "draw")
        images = []
        for part in run.draw_batches(captions, "", options, seed, batch_size=_AT_ONCE):
            images += list(part["image"])
            progress.update(len(images))
        progress.close()
        return {"image": np.stack(images)}

    return text_to_image.Model(draw, reconstruct, size)


class _Writer:
    """A run that goes on with documents and rates texts, as functions of the host."""

    def __init__(self, task, run: OpenRun):
        self.task, self.run, self.rater = task, run, Rater(task, run.mesh)

        def fn(params, frozen, prompts, tokens_GT, length_G):
            g, row = task.read(params, frozen, prompts, task.options(images=0, text=0))
            # A caption ends where the document does, or its image begins.
            ends = task.markers.eos, task.markers.boi
            return text_nll(g, row, tokens_GT, length_G, ends)

        self._after = jit_sharded(fn, run.mesh, out_shardings=replicated(run.mesh))

    def captions(self, image_u8: Sequence[np.ndarray]) -> list[str]:
        """What greedy decoding writes of images."""
        options = self.task.options(images=0, temperature=0.0)
        progress, said = Progress(len(image_u8), "caption"), []
        documents = [[image] for image in image_u8]
        for part in self.run.generate_batches(documents, False, options, 0, batch_size=_AT_ONCE):
            said += ["".join(parts) for parts in part]
            progress.update(len(said))
        progress.close()
        return said

    def drawings(self, documents: list[list], seed: int) -> np.ndarray:
        """The picture that each document goes on with, float32 [n, H, W, 3]."""
        options = self.task.options(images=1, text=0)
        progress, drawn = Progress(len(documents), "draw"), []
        for part in self.run.generate_batches(documents, True, options, seed, batch_size=_AT_ONCE):
            drawn += [parts[0] for parts in part]
            progress.update(len(drawn))
        progress.close()
        return np.stack(drawn)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, without its end; long ones are cut as in training."""
        return [self.task.rules.encode(text) for text in texts]

    def rate(self, texts: Sequence[str]) -> Rated:
        """Texts by themselves."""
        examples = [{"text": text} for text in texts]
        return self.rater.rate(self.run.params, self.run.frozen, examples)

    def after(self, documents: list[list], texts: Sequence[str]) -> np.ndarray:
        """-ln p of each text, to its end, as what follows each document, [Q, G]."""
        ids = self.ids(texts)
        length_G = np.array([len(text) for text in ids])
        tokens_GT = np.zeros((len(ids), length_G.max()), np.int32)
        for row, text in zip(tokens_GT, ids):
            row[: len(text)] = text
        prompts = self.task.prompt_rows(documents, draw=False)
        prompts, count = fill_rows(prompts, self.run.mesh)
        params, frozen = self.run.params, self.run.frozen
        return np.asarray(self._after(params, frozen, prompts, tokens_GT, length_G))[:count]

    def with_texts(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Rows with what is written of their true images, and with the nats of their texts."""
        for batch in batches:
            rated = self.rate(batch["text"])
            yield {
                **batch,
                "caption": self.captions(batch["real"]),
                "references": [[text] for text in batch["text"]],
                "nll": rated.nll,
                "tokens": rated.tokens,
            }


def _captions(writer: _Writer, splits, unseen: str, seed: int) -> tuple[dict, list[Section]]:
    """What is written of images that were seen, those that were drawn, and of held-out ones."""
    scores, sections = {}, []
    for split in ("train", unseen):
        untoned = text_to_image.untoned(splits[split])
        true = [splits[split][int(i)] for i in text_to_image.ask(untoned, seed).true]
        said = writer.captions([example["image"] for example in true])
        own = writing.caption_scores(said, [example["text"] for example in true], seed)
        scores |= {f"captions_{split}/{name}": score for name, score in own.items()}
        sections.append(_shown(true, said, split))
    return scores, sections


def _scene_captions(writer: _Writer, splits, seed: int) -> tuple[dict, list[Section]]:
    """What is written of the scenes of each split that was not trained on, by factors."""
    scores, sections = {}, []
    for split in [name for name in splits if name != "train"]:
        true = _some(splits[split], DRAWN, seed)
        said = writer.captions([example["image"] for example in true])
        own = scenes.caption_scores(said, true, seed)
        scores |= {f"{split}/caption_{name}": score for name, score in own.items()}
        sections.append(_shown(true, said, split))
    return scores, sections


def _shown(true: list[dict], said: list[str], split: str) -> Section:
    count = 2 * text_to_image.COLUMNS
    images = np.stack([example["image"] for example in true[:count]])
    return Section(images, [text or "-" for text in said[:count]], f"Written of images of {split}")


def _likelihood(writer: _Writer, examples, split: str, seed: int) -> dict:
    """The place of the true caption of held-out images among those of all, by likelihood."""
    true = _some(examples, writing.RANKED, seed)
    captions = [example["text"] for example in true]
    nll_QG = writer.after([[example["image"]] for example in true], captions)
    (prior_G,) = writer.after([[]], captions)
    scores = writing.rank_scores(nll_QG, prior_G, captions)
    parts = {id(part): part for part in open_mixture(writer.task.config.data).parts}.values()
    learned = itertools.chain.from_iterable(part.outlines() for part in parts)
    known = [example["text"] for example in learned if "image" in example]
    held_out = [examples[i]["text"] for i in range(len(examples))]
    scores |= writing.new_words(held_out, known)
    return {f"captions_{split}/{name}": score for name, score in scores.items()}


def _some(examples: Sequence[dict], count: int, seed: int) -> list[dict]:
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[int(i)] for i in order[:count]]


def _perplexity(writer: _Writer, name: str, examples) -> dict:
    """Of held-out texts, beside an n-gram model of the texts that the run has learned."""
    texts = [examples[i]["text"] for i in range(min(len(examples), _TEXTS))]
    parts = {id(p): p for p in open_mixture(writer.task.config.data).parts if p.info.name == name}
    learned = [example["text"] for part in parts.values() for example in part.outlines()]
    ended = lambda texts: [[*ids, EOS_ID] for ids in writer.ids(texts)]
    held_out = ended(texts)
    ngram_n = NGram(ended(learned), writer.task.tokenizer.vocab_size).nats(held_out)
    # Bytes of what the ids say: the tail of a long text is read by neither.
    read = [writer.task.tokenizer.decode(ids) for ids in held_out]
    bytes_n = np.array([len(text.encode()) for text in read])
    rated = writer.rate(texts)
    return writing.perplexity_scores(rated.nll, ngram_n, rated.tokens, bytes_n)
