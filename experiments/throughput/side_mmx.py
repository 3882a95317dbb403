"""The mmx side: the trainer's own update on the Muse model, and the family's own sampler.

Only the data and the tokenizer are left out: both sides are handed codes and text vectors.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from shape import SHAPE

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.flops import matmul_flops
from mmx.models.muse import loss as losses
from mmx.models.muse.model import MuseTransformer
from mmx.models.muse.sample import SampleOptions, sample_codes
from mmx.train.optim import make_optimizer
from mmx.train.sharding import batch_sharding, jit_sharded, make_mesh, replicated
from mmx.train.state import make_init, make_update, state_shardings

DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}


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
        s = SHAPE
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
        text = jnp.zeros((1, SHAPE.text, SHAPE.width))
        mask = jnp.ones((1, SHAPE.text), bool)
        ids = jnp.zeros((1, SHAPE.grid**2), jnp.int32)
        return self.model.init(key, ids, text, mask)["params"], {}

    def logits(self, params, ids_BS, text_BTD, mask_BT):
        return self.model.apply({"params": params}, ids_BS, text_BTD, mask_BT)

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        del frozen, step, train
        options, position_B = self.config.loss, batch["position"]
        ids_BS, is_masked_BS = losses.hide(rng, position_B, batch["codes"], SHAPE.vocab)
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
    """State on the device, one compiled update, one compiled sampler."""

    def __init__(self, args):
        config = make_config()
        self.task = CodesTask(config, DTYPES[args.dtype], args.activation)
        self.mesh = make_mesh(config.mesh)
        shape = jax.eval_shape(self.task.init, jax.random.key(0))[0]
        labels = jax.tree.map(lambda _: "main", nn.unbox(shape))
        tx, schedules = make_optimizer(config, labels)
        abstract, shardings, _ = state_shardings(self.task, tx, self.mesh, averages=False)
        init = make_init(self.task, tx, False)
        self.key = jax.device_put(rngs.base_key(0), replicated(self.mesh))
        self.state = jit_sharded(init, self.mesh, out_shardings=shardings)(self.key)
        self.update = jit_sharded(
            make_update(self.task, tx, config, labels, schedules),
            self.mesh,
            out_shardings=(shardings, replicated(self.mesh)),
            donate=(0,),
        )
        data = np.random.default_rng(0)
        s = SHAPE
        self.batch = jax.device_put(
            {
                "codes": data.integers(0, s.vocab, (s.batch, s.grid**2), np.int32),
                "text": data.normal(size=(s.batch, s.text, s.width)).astype(np.float32),
                "text_mask": np.ones((s.batch, s.text), bool),
                "position": np.arange(s.batch, dtype=np.uint32),
            },
            batch_sharding(self.mesh),
        )
        self.sampler = jit_sharded(self._sample, self.mesh, out_shardings=replicated(self.mesh))
        self.params = tree.num_params(tree.flatten(abstract.params))
        inputs = (self.batch[name] for name in ("codes", "text", "text_mask"))
        forward = matmul_flops(self.task.logits, self.state.params, *inputs)
        self.gflop = 3e-9 * forward

    def about(self):
        return {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "parameters": self.params,
            "gflop": round(self.gflop, 1),
        }

    def train(self):
        self.state, metrics = self.update(self.state, {}, self.batch, self.key)
        return float(metrics["loss/total"])

    def _sample(self, params, text_BTD, mask_BT, keys_B):
        s = SHAPE
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
        keys_B = rngs.row_keys(self.key, "sample", self.batch["position"])
        codes = self.sampler(self.state.params, self.batch["text"], self.batch["text_mask"], keys_B)
        return float(np.asarray(codes).mean())
