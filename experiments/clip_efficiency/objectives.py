"""The three objectives as tasks of mmx's loop: one image tower, data, optimiser and schedule.

Axis letters: B batch, H W pixels, T text tokens.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from predictors import Bag, Captioner, bag_log_prob, bag_of, counted

from mmx.core import rng as rngs
from mmx.core.flops import matmul_flops
from mmx.models.clip.task import ClipTask
from mmx.models.rows import to_float
from mmx.nn.vit import VisionTransformer
from mmx.ops.token_loss import chunked_cross_entropy


class Contrastive(ClipTask):
    """CLIP as it is, without what the loop would score and draw besides."""

    def evaluators(self, mesh) -> list:
        """None: the finished run is scored."""
        del mesh
        return []

    def preview(self, *unused) -> dict:
        """Nothing."""
        return {}

    def step_flops(self) -> float:
        """Of the matrix products of one step's forward and backward pass, counted in its jaxpr."""
        params, extra = nn.unbox(jax.eval_shape(self.init, rngs.base_key(0)))
        loss = lambda params, batch: self.loss(params, extra, {}, batch, None, 0)[0]
        return matmul_flops(jax.value_and_grad(loss), params, self.batch_spec())

    def use_flops(self) -> dict[str, float]:
        """Of answering a question: once an image, once a text, once a pair of both."""
        apply = lambda method: (
            lambda params, x: self.model.apply({"params": params}, x, method=method)
        )
        params, image, ids = self._one()
        return {
            "image": matmul_flops(apply("embed_image"), params, image),
            "text": matmul_flops(apply("embed_text"), params, ids),
            "pair": 2.0 * self.config.model.features,
        }

    def _one(self):
        """Shapes: (params, an image [1, H, W, 3], a text [1, T])."""
        size, T = self.config.data.image_size, self.config.text.max_len
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        params, _ = nn.unbox(jax.eval_shape(self.init, rngs.base_key(0)))
        return params, image, jax.ShapeDtypeStruct((1, T), jnp.int32)

    def _tower(self, pool: str) -> VisionTransformer:
        """CLIP's, without its projection."""
        m = self.config.model
        sizes = {name: m.image[name] for name in ("patch", "width", "depth", "heads", "mlp")}
        return VisionTransformer(**sizes, pool=pool, activation=m.activation)


class Captioning(Contrastive):
    """The caption, token by token."""

    batch_coupled = False

    def __init__(self, config, run, abstract: bool = False):
        super().__init__(config, run, abstract)
        text = {k: config.model.text[k] for k in ("width", "depth", "heads", "mlp")}
        self.model = Captioner(
            self._tower("none"),
            config.text.vocab_size,
            config.text.max_len,
            **text,
            activation=config.model.activation,
        )

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(nats a token, (metrics, extra))."""
        del frozen, rng, step, train
        ids_BT = batch["text_ids"]
        hidden_BTD, head_DV = self.model.apply({"params": params}, to_float(batch["image"]), ids_BT)
        weights_BT = counted(ids_BT).astype(jnp.float32)
        T, vocab = ids_BT.shape[1], self.config.text.vocab_size
        total = chunked_cross_entropy(hidden_BTD, head_DV, ids_BT, weights_BT, vocab, chunk=T)
        return total / weights_BT.sum(), ({"nats_a_caption": total / len(ids_BT)}, extra)

    def use_flops(self) -> dict[str, float]:
        """As in :class:`Contrastive`: the decoder runs once a pair."""
        params, image, ids = self._one()
        look = lambda params, x: self.model.apply({"params": params}, x, method="look")

        def read(params, seen, ids):
            hidden_BTD, head_DV = self.model.apply({"params": params}, seen, ids, method="decode")
            return hidden_BTD @ head_DV

        seen = jax.eval_shape(look, params, image)
        pair = matmul_flops(read, params, seen, ids)
        return {"image": matmul_flops(look, params, image), "text": 0.0, "pair": pair}


class Words(Contrastive):
    """The bag of the caption's words."""

    batch_coupled = False

    def __init__(self, config, run, abstract: bool = False):
        super().__init__(config, run, abstract)
        self.model = Bag(self._tower("cls"), config.text.vocab_size)

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(nats a caption, (metrics, extra))."""
        del frozen, rng, step, train
        ids_BT = batch["text_ids"]
        odds_BV = self.model.apply({"params": params}, to_float(batch["image"]), ids_BT)
        return -bag_log_prob(odds_BV, bag_of(ids_BT, odds_BV.shape[-1])).mean(), ({}, extra)

    def use_flops(self) -> dict[str, float]:
        """As in :class:`Contrastive`: a pair is sums alone."""
        params, image, ids = self._one()
        fn = lambda params, *args: self.model.apply({"params": params}, *args)
        return {"image": matmul_flops(fn, params, image, ids), "text": 0.0, "pair": 0.0}


TASKS = {"contrastive": Contrastive, "captioning": Captioning, "words": Words}


def make_config(arm: str, lr: float, seed: int, steps: int, data_dir: str, tiny: bool = False):
    """The config of a run: all that is no argument is shared by the arms.

    ``tiny`` is for tests: a model that learns nothing.
    """
    width, depth = (32, 1) if tiny else (96, 3)
    blocks = dict(width=width, heads=width // 32, mlp=4 * width)
    limit = dict(logit_scale=4.605170185988092)  # CLIP's bound: a scale of 100
    return ConfigDict(
        dict(
            family="clip",
            seed=seed,
            steps=steps,
            batch_size=8 if tiny else 64,
            dtype="float32",
            data=dict(source="tfds:scenes/32", data_dir=data_dir, split="train[:48000]",
                      image_size=32, crop="stretch", shift=0, flip=False, threads=1),
            text=dict(tokenizer="own", vocab_size=640, max_len=14),
            model=dict(
                features=width,
                activation="quick_gelu",
                eps=1e-5,
                remat="none",
                scale_start=1 / 0.07,
                image=dict(kind="vit", pixels="half", patch=8, pool="cls", depth=depth, **blocks),
                text=dict(pool="eot", depth=min(depth, 2), **blocks),
            ),
            loss=dict(kind="softmax", form="gather", cached=1),
            optim=dict(name="adamw", lr=lr, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2,
                       warmup_steps=steps // 10, clip_norm=1.0, ema=0.0, accum=1,
                       upper=limit if arm == "contrastive" else {}),
            mesh=dict(slice=1, data=-1, fsdp=1, tensor=1),
            log_every=100, eval_every=10**9, preview_every=10**9, save_every=10**9, keep=1,
        )
    )  # fmt: skip
