"""The study: of each task, what the language model is asked, what it writes, how good that is."""

import dataclasses
import hashlib
import json
import re
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
from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.eval.images import to_uint8
from mmx.models.spae.in_context.conditions import TASKS, Picture
from mmx.models.spae.in_context.drawing import draw
from mmx.models.spae.in_context.noise import Noise, make_noise
from mmx.models.spae.in_context.prompts import Prompter, Request
from mmx.models.spae.in_context.requests import pose
from mmx.models.spae.in_context.segments import Segment, segment_plan
from mmx.ops.pyramid import Pyramid


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
        folder = workdir / re.sub(r"[^\w-]+", "_", of["lm"])  # a name, a path or a hub id
        make = TASKS[name].make
        episodes = [make(p, self.pool, of["supports"], self.pyramid.grid) for p in self.pictures]
        posed = pose(episodes, self.pyramid, self.to_words)
        key = rngs.stream(rngs.base_key(of["seed"]), name)
        plan = segment_plan(self.pyramid, of["block"], posed[0].is_asked_T)
        found, rows, total = [], [], 0.0
        for i, (task, episode) in enumerate(zip(posed, episodes, strict=True)):
            true_T, noise = task.query.wanted_T, self._noise(key, i)
            requests = [task.request(noise, wrong) for wrong in (False, True)]
            words_BT, seconds = self._drawn(folder / f"{name}-{i}.json", requests, plan, key, i)
            total += seconds
            answers = dict(
                drawn=words_BT[0],
                wrong=words_BT[1],
                copied=task.copied(),
                voted=task.voted(requests[0]),
                codec=true_T,
            )
            scores = scoring.score(
                answers,
                true_T,
                task.is_asked_T,
                self.pyramid.ends,
                episode.query.wanted,
                self.from_words,
            )
            found.append({"caption": self.pictures[i].caption, "scores": scores})
            rows.append((episode, requests[0], answers, scores))
        part = {
            "title": TASKS[name].title,
            "cpu_seconds": round(total, 1),
            "pictures": found,
            "mean": scoring.pooled(found),
        }
        return part, self._row(TASKS[name].title, *rows[0])

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

    def _drawn(self, file: Path, requests, plan, key, number) -> tuple[np.ndarray, float]:
        """(int32 [B, T], CPU-seconds) of a picture's requests; the file has them after every
        segment.

        Raises:
          UserError: it has words of other settings.
        """
        of = self.settings | {"prompts": self._digest(requests, plan)}
        done, words_BT, seconds = 0, None, 0.0
        if file.is_file():
            kept = json.loads(file.read_text())
            if kept["settings"] != of:
                raise UserError(
                    f"{file}: words of other settings or another run; give another --workdir"
                )
            done, words_BT = kept["done"], np.array(kept["words"], np.int32)
            seconds = kept["cpu_seconds"]
        file.parent.mkdir(parents=True, exist_ok=True)
        progress = Progress(len(plan), file.stem, start=done, every=1)
        began = time.process_time() - seconds
        left = draw(
            self.lm,
            self.prompter,
            requests,
            plan,
            key,
            first_row=number * len(requests),
            words_BT=words_BT,
            done=done,
        )
        for done, words_BT in left:
            seconds = time.process_time() - began
            kept = dict(settings=of, done=done, words=words_BT.tolist())
            storage.write(storage.path(file), json.dumps(kept | {"cpu_seconds": seconds}) + "\n")
            progress.update(done)
        progress.close()
        return words_BT, seconds

    def _digest(self, requests: list[Request], plan: list[Segment]) -> str:
        """Of all that prompts show but what is written: of run, data, noise and template."""
        ids = [self.prompter.prompt(r, segment, r.known_T) for segment in plan for r in requests]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]

    def _row(self, title: str, episode, request, answers: dict, scores: dict) -> Row:
        """The noisiest and the least noisy example, what is given, the answers, the truth."""
        told = lambda given: f": {given}" if isinstance(given, str) else ""
        shown = [request.supports[0].wanted_T, request.supports[-1].wanted_T]
        # What is copied is what is given, through the codec.
        names = [name for name in answers if name != "copied"]
        drawn = to_uint8(self.from_words(np.stack([*shown, *(answers[name] for name in names)])))
        given, wanted = episode.query.given, episode.query.wanted
        images = [*drawn[:2], text_tile(len(wanted)) if isinstance(given, str) else given]
        captions = [
            f"first example{told(episode.supports[0].given)}",
            f"last example{told(episode.supports[-1].given)}",
            f"given{told(given)}",
            *(f"{scoring.ANSWERS[name]}: {scores[name]['psnr']:.1f} dB" for name in names),
            "true picture",
        ]
        return title, [*images, *drawn[2:], wanted], captions
