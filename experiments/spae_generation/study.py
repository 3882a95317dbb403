"""The study: of each task, what the language model is asked, what it writes, how good that is."""

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scoring
from report import Row, text_tile

from mmx.core import rng as rngs
from mmx.core import storage
from mmx.core.progress import Progress
from mmx.eval.episodes import check_recipe
from mmx.eval.images import to_uint8
from mmx.models.spae.in_context.conditions import Picture, tasks_of
from mmx.models.spae.in_context.drawing import draw
from mmx.models.spae.in_context.noise import Noise, make_noise
from mmx.models.spae.in_context.prompts import Prompter, Request
from mmx.models.spae.in_context.requests import pose
from mmx.models.spae.in_context.segments import Segment, segment_plan
from mmx.models.spae.report import shown
from mmx.ops.pyramid import Pyramid

_TOGETHER = 8  # ours: the most pictures that are written at once


def folder_of(workdir: Path, lm: str) -> Path:
    """Of the words that a language model, told by name, path or hub id, writes."""
    return workdir / lm.strip("/").replace("/", "_")


@dataclasses.dataclass(frozen=True)
class Study:
    """All that is asked of a language model.

    Attributes:
      lm: `FrozenLM`, or what stands for it.
      prompter: of its tokenizer and the run's words.
      to_words, from_words: the codec.
      pictures: those that are asked for.
      pool: others, of which examples are made.
      settings: JSON, what the words hang on.
    """

    lm: Any
    prompter: Prompter
    to_words: Callable[[np.ndarray], np.ndarray]
    from_words: Callable[[np.ndarray], np.ndarray]
    pictures: list[Picture]
    pool: list[Picture]
    settings: dict

    @property
    def pyramid(self) -> Pyramid:
        return self.prompter.pyramid

    def do(self, name: str, workdir: Path) -> tuple[dict, Row]:
        """A task, from where it stopped: (its part of results.json, its row of the figure)."""
        of = self.settings
        folder = folder_of(workdir, of["lm"])
        task_of = tasks_of(self.pyramid)[name]
        make = task_of.make
        episodes = [make(p, self.pool, of["supports"], self.pyramid.shape) for p in self.pictures]
        posed = pose(episodes, self.pyramid, self.to_words)
        key = rngs.stream(rngs.base_key(of["seed"]), name)
        plan = segment_plan(self.pyramid, of["block"], posed[0].is_asked_T)
        noises = [self._noise(key, i) for i in range(len(posed))]
        requests = [
            [task.request(noise, wrong) for wrong in (False, True)]
            for task, noise in zip(posed, noises, strict=True)
        ]
        files = [folder / f"{name}-{i}.json" for i in range(len(posed))]
        drawn, seconds = self._drawn(files, requests, plan, key)
        found, rows = [], []
        for i, (task, episode) in enumerate(zip(posed, episodes, strict=True)):
            answers = dict(
                drawn=drawn[i][0],
                wrong=drawn[i][1],
                copied=task.copied(),
                voted=task.voted(requests[i][0]),
                codec=task.query.wanted_T,
            )
            scores = scoring.score(
                answers,
                task.query.wanted_T,
                task.is_asked_T,
                self.pyramid.ends,
                episode.query.wanted,
                self.from_words,
            )
            found.append({"caption": self.pictures[i].caption, "scores": scores})
            rows.append((episode, requests[i][0], answers, scores))
        part = {
            "title": task_of.title,
            "cpu_seconds": round(seconds, 1),
            "pictures": found,
            "mean": scoring.pooled(found),
        }
        return part, self._row(task_of.title, *rows[0])

    def _noise(self, key: jax.Array, number: int) -> Noise:
        """Of a picture's examples, the control's too."""
        of, vocabulary, ends = self.settings, self.prompter.vocabulary, self.pyramid.ends
        return make_noise(
            jax.random.fold_in(rngs.stream(key, "noise"), number),
            of["ratios"],
            num_words=ends[-1],
            kept=ends[of["kept_layers"] - 1],
            num_rows=len(vocabulary),
            mask_word=int(vocabulary.find([of["mask_word"]])[0]) if of["mask_word"] else None,
        )

    def _drawn(self, files, requests, plan, key) -> tuple[list[np.ndarray], float]:
        """(of each picture int32 [requests, T], CPU-seconds of all). A file a picture has its words
        after every segment; neighbours that are equally far are written together.

        Raises:
          UserError: a file has words of other settings.
        """
        kept = [self._kept(file, some, plan) for file, some in zip(files, requests, strict=True)]
        told = f"{files[0].stem[:-2]}, {len(files)} pictures"
        progress = Progress(len(plan) * len(files), told, every=1)
        numbers = range(len(files))
        for (done, _), some in itertools.groupby(
            numbers, lambda i: (kept[i]["done"], i // _TOGETHER)
        ):
            self._write(files, requests, plan, key, kept, done, [*some], progress)
        progress.close()
        return [np.array(k["words"], np.int32) for k in kept], sum(k["cpu_seconds"] for k in kept)

    def _kept(self, file: Path, requests: list[Request], plan: list[Segment]) -> dict:
        """What a picture's file says, or its state at the start."""
        of = self.settings | {"prompts": self._digest(requests, plan)}
        if not file.is_file():
            words = [request.known_T.tolist() for request in requests]
            return dict(settings=of, done=0, words=words, cpu_seconds=0.0)
        kept = json.loads(file.read_text())
        check_recipe(storage.path(file), kept["settings"], of, "--workdir")
        return kept

    def _write(self, files, requests, plan, key, kept, done, together, progress) -> None:
        """The segments from `done` on of neighbouring pictures, into `kept` and their files."""
        each = len(requests[0])
        began = time.process_time()
        left = draw(
            self.lm,
            self.prompter,
            [request for i in together for request in requests[i]],
            plan,
            key,
            first_row=together[0] * each,
            words_BT=np.array([row for i in together for row in kept[i]["words"]], np.int32),
            done=done,
        )
        for segments, words_BT in left:
            seconds = (time.process_time() - began) / len(together)
            began = time.process_time()
            for n, i in enumerate(together):
                kept[i]["words"] = words_BT[n * each : (n + 1) * each].tolist()
                kept[i]["done"] = segments
                kept[i]["cpu_seconds"] += seconds
                files[i].parent.mkdir(parents=True, exist_ok=True)
                storage.write(storage.path(files[i]), json.dumps(kept[i]) + "\n")
            progress.update(sum(k["done"] for k in kept))

    def _digest(self, requests: list[Request], plan: list[Segment]) -> str:
        """Of all that prompts show but what is written: of run, data, noise and template."""
        ids = [self.prompter.prompt(r, segment, r.known_T) for segment in plan for r in requests]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]

    def _row(self, title: str, episode, request, answers: dict, scores: dict) -> Row:
        """The noisiest and the least noisy example, what is given, the answers, the truth."""
        told = lambda given: f": {given}" if isinstance(given, str) else ""
        examples = [request.supports[0].wanted_T, request.supports[-1].wanted_T]
        # What is copied is what is given, through the codec.
        names = [name for name in answers if name != "copied"]
        drawn = to_uint8(self.from_words(np.stack([*examples, *(answers[name] for name in names)])))
        given, wanted = episode.query.given, episode.query.wanted
        drawn, wanted = (shown(self.pyramid, images) for images in (drawn, wanted))
        blank = text_tile(wanted.shape[:2])
        images = [*drawn[:2], blank if isinstance(given, str) else shown(self.pyramid, given)]
        captions = [
            f"first example{told(episode.supports[0].given)}",
            f"last example{told(episode.supports[-1].given)}",
            f"given{told(given)}",
            *(f"{scoring.ANSWERS[name]}: {scores[name]['psnr']:.1f} dB" for name in names),
            "true picture",
        ]
        return title, [*images, *drawn[2:], wanted], captions
