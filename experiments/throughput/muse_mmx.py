"""The mmx side: the trainer's own update on the Muse model, and the family's own sampler.

Only the data and the tokenizer are left out: both sides are handed codes and text vectors.
"""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from shape import MUSE
from trainer import Trainer

from mmx.core import rng as rngs
from mmx.core.flops import matmul_flops
from mmx.models.muse import loss as losses
from mmx.models.muse.model import MuseTransformer
from mmx.models.muse.sample import SampleOptions, sample_codes
from mmx.nn.dtypes import DTYPES
from mmx.train.sharding import jit_sharded, replicated


def make_config() -> ConfigDict:
    """What the trainer reads of a run's config; Muse base's optimiser, with AdamW as the peer."""
    return ConfigDict(
        dict(
            family="muse",
            steps=1000,
            loss=dict(label_smoothing=0.0, weighting="row", text_drop=0.25),
            optim=dict(
                name="adamw",
                lr=1e-4,
                b1=0.9,
                b2=0.99,
                weight_decay=0.0,
                warmup_steps=1,
                clip_norm=1.0,
                ema=0.0,
                accum=1,
            ),
            mesh=dict(slice=1, data=-1, fsdp=1, tensor=1),
        )
    )


class CodesTask:
    """Muse's task, less its tokenizer: batches hold codes and text vectors."""

    batch_coupled = False

    def __init__(self, config, dtype, activation: str):
        s = MUSE
        self.config = config
        self.model = MuseTransformer(
            num_codes=s.vocab,
            grid=s.grid,
            depth=s.depth,
            width=s.width,
            heads=s.heads,
            mlp=4 * s.width,
            activation=activation,
            dtype=dtype,
        )

    def init(self, key):
        text = jnp.zeros((1, MUSE.text, MUSE.width))
        mask = jnp.ones((1, MUSE.text), bool)
        ids = jnp.zeros((1, MUSE.grid**2), jnp.int32)
        return self.model.init(key, ids, text, mask)["params"], {}

    def logits(self, params, ids_BS, text_BTD, mask_BT):
        return self.model.apply({"params": params}, ids_BS, text_BTD, mask_BT)

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        del frozen, step, train
        options, position_B = self.config.loss, batch["position"]
        ids_BS, is_masked_BS = losses.hide(rng, position_B, batch["codes"], MUSE.vocab)
        mask_BT = losses.drop_text(rng, position_B, batch["text_mask"], options.text_drop)
        loss, metrics = losses.masked_loss(
            lambda ids, mask: self.logits(params, ids, batch["text"], mask),
            batch["codes"],
            ids_BS,
            is_masked_BS,
            mask_BT,
            options.label_smoothing,
            options.weighting,
        )
        return loss, (metrics, extra)


class Mmx:
    """The trainer, and one compiled sampler."""

    def __init__(self, args):
        config, s = make_config(), MUSE
        self.task = CodesTask(config, DTYPES[args.dtype], args.activation)
        data = np.random.default_rng(0)
        self.trainer = Trainer(
            self.task,
            {
                "codes": data.integers(0, s.vocab, (s.batch, s.grid**2), np.int32),
                "text": data.normal(size=(s.batch, s.text, s.width)).astype(np.float32),
                "text_mask": np.ones((s.batch, s.text), bool),
                "position": np.arange(s.batch, dtype=np.uint32),
            },
        )
        self.batch, self.train = self.trainer.batch, self.trainer.step
        mesh = self.trainer.mesh
        self.sampler = jit_sharded(self._sample, mesh, out_shardings=replicated(mesh))

    def about(self):
        inputs = (self.batch[name] for name in ("codes", "text", "text_mask"))
        forward = matmul_flops(self.task.logits, self.trainer.state.params, *inputs)
        return self.trainer.about(3e-9 * forward)

    def _sample(self, params, text_BTD, mask_BT, keys_B):
        s = MUSE
        options = SampleOptions(
            steps=s.sample_steps,
            guidance=s.guidance - 1.0,  # ours counts t of (1+t) cond - t uncond
            sampling_temperature=1.0,
            choice_temperature=4.5,
            schedule="cosine",
            selection="confidence",
        )
        return sample_codes(
            lambda ids, text, mask: self.task.logits(params, ids, text, mask),
            text_BTD,
            mask_BT,
            jnp.zeros_like(text_BTD),
            jnp.zeros_like(mask_BT),
            jnp.full((s.batch, s.grid**2), s.vocab, jnp.int32),
            keys_B,
            mask_id=s.vocab,
            options=options,
        )[0]

    def sample(self):
        keys_B = rngs.row_keys(self.trainer.key, "sample", self.batch["position"])
        params = self.trainer.state.params
        codes = self.sampler(params, self.batch["text"], self.batch["text_mask"], keys_B)
        return float(np.asarray(codes).mean())
