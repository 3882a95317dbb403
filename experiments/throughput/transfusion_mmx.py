"""The mmx side of Transfusion: the family's own task and generator, latents given.

Text is random ids; the autoencoder is left out on both sides.
"""

import dataclasses
from types import SimpleNamespace

import numpy as np
from ml_collections import ConfigDict
from shape import TRANSFUSION
from trainer import Trainer

from mmx.core import rng as rngs
from mmx.core.config import load_config
from mmx.models.transfusion import rows
from mmx.models.transfusion.generate import IMAGE, TEXT, GenerateOptions, finish, start
from mmx.models.transfusion.model import make_model
from mmx.models.transfusion.task import TransfusionTask
from mmx.train.sharding import jit_sharded, replicated


def make_config(dtype: str, mlp: int) -> ConfigDict:
    """OpenMoji's recipe at the benchmark's shape, with the peer's flow for its diffusion."""
    s, c = TRANSFUSION, load_config("transfusion/openmoji32")
    texts, patches = len(s.texts), s.grid**2
    tokens = sum(s.texts) + texts * (patches + 2) + 2
    c.dtype, c.batch_size = dtype, s.batch
    c.data.row_len = c.loss.chunk = -(-tokens // 64) * 64
    c.data.max_images = texts
    c.text.vocab_size = s.vocab
    c.model.update(depth=s.depth, width=s.width, heads=s.heads, mlp=mlp, patch=1, positions=False)
    c.diffusion.update(prediction="velocity", weighting="velocity", times="uniform", input="z")
    c.loss.noise_limit = 1.0
    return c


class Task(TransfusionTask):
    """The family's, whose autoencoder is but the shape of its latents."""

    def __init__(self, config):
        super().__init__(config, None, abstract=True)
        s = TRANSFUSION
        self.codec = SimpleNamespace(latent_dim=s.latent)
        self.model = make_model(config, self.markers.count, s.grid, s.latent)

    def latents(self, frozen, image):
        return image

    def rows(self, data: np.random.Generator) -> dict[str, np.ndarray]:
        """Each one document: text, image, text, image."""
        s = TRANSFUSION
        encode = lambda text: data.integers(4, s.vocab, int(text)).tolist()
        rules = dataclasses.replace(self.rules, encode=encode, fit=lambda image: image)
        size = self.config.data.image_size
        blank = np.zeros((size, size, 3), np.uint8)
        document = {"parts": [part for text in s.texts for part in (str(text), blank)]}
        made = [rows.pack([document], rules, data) for _ in range(s.batch)]
        batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
        shape = (s.batch, len(s.texts), s.grid, s.grid, s.latent)
        batch["images"] = data.normal(size=shape).astype(np.float32)
        return batch | {"position": np.arange(s.batch, dtype=np.uint32)}


class Mmx:
    """Two trainers, and what writes and draws with the first one's parameters."""

    def __init__(self, args):
        data, s = np.random.default_rng(0), TRANSFUSION
        self.task = Task(make_config(args.dtype, s.mlp))
        self.trainer = Trainer(self.task, self.task.rows(data))
        self.train = self.trainer.step
        self.even_task = Task(make_config(args.dtype, s.even_mlp))
        self.even = Trainer(self.even_task, self.even_task.rows(data))
        self.train_even = self.even.step
        more = dict(solver="euler", guidance=1.0, temperature=1.0)
        writing = GenerateOptions(steps=1, images=0, text=s.new, **more)
        drawing = GenerateOptions(steps=s.calls, images=1, text=0, **more)
        prompt = data.integers(4, s.vocab, (s.batch, s.prompt), np.int32)
        self._decode = self._writer(writing, TEXT, prompt)
        self._sample = self._writer(drawing, IMAGE, prompt[:, :1])

    def about(self):
        gflop = lambda task: 1e-9 * TRANSFUSION.batch * task.train_flops_per_row()
        more = {"parameters_even": self.even.count, "gflop_even": round(gflop(self.even_task), 1)}
        return self.trainer.about(gflop(self.task)) | more

    def decode(self) -> float:
        """How many tokens a row wrote."""
        return float(np.asarray(self._decode().cache.length_B).mean()) - TRANSFUSION.prompt

    def sample(self) -> float:
        """The deviation of the latents."""
        return float(np.asarray(self._sample().x).std())

    def _writer(self, options: GenerateOptions, mode: int, tokens_BL: np.ndarray):
        """A call that goes on with the prompts."""
        s, mesh = TRANSFUSION, self.trainer.mesh
        B, L = tokens_BL.shape
        inputs = (
            tokens_BL,
            np.full((B, L), -1, np.int32),
            np.full((B, 1), L, np.int32),
            np.zeros((B, 1, s.grid, s.grid, s.latent), np.float32),
            np.full(B, L, np.int32),
        )

        def write(params, inputs, key):
            g = self.task.generator(params, options)
            row = start(g, *inputs, g.places(L), np.full(B, mode, np.int32))
            return finish(g, row, rngs.row_keys(key, "sample", np.arange(B, dtype=np.uint32)))

        compiled = jit_sharded(write, mesh, out_shardings=replicated(mesh))
        return lambda: compiled(self.trainer.state.params, inputs, self.trainer.key)
