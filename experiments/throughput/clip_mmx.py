"""The mmx side of CLIP: the family's own task, its embedding of images, and MobileNetV2's features.

Pairs and weights are random: no file is read.
"""

import jax
import numpy as np
from ml_collections import ConfigDict
from shape import CLIP
from trainer import Trainer

from mmx.core.config import load_config
from mmx.models.clip.task import ClipTask
from mmx.pretrained import mobilenet
from mmx.pretrained.convolutions import Conv


def make_config(dtype: str) -> ConfigDict:
    """ViT-B/32's recipe at the benchmark's shape, with open_clip's GELU."""
    s, c = CLIP, load_config("clip/vit_b32")
    c.dtype, c.batch_size, c.data.image_size = dtype, s.batch, s.image
    c.text.update(vocab_size=s.vocab, max_len=s.text)
    tower = dict(width=s.width, heads=s.heads, mlp=4 * s.width)
    c.model.update(features=s.width, activation="gelu_erf", remat="none")
    c.model.image.update(depth=s.image_depth, patch=s.patch, **tower)
    c.model.text.update(depth=s.text_depth, **tower)
    return c


class Mmx:
    """The trainer, and two compiled forward passes."""

    def __init__(self, args):
        s, config = CLIP, make_config(args.dtype)
        self.task = ClipTask(config, None, abstract=True)
        data = np.random.default_rng(0)
        text_BT = data.integers(1, s.vocab - 1, (s.batch, s.text), np.int32)
        text_BT[:, -1] = s.vocab - 1  # the end of text
        self.trainer = Trainer(
            self.task,
            {
                "image": data.integers(0, 256, (s.batch, s.image, s.image, 3), np.uint8),
                "text_ids": text_BT,
                "position": np.arange(s.batch, dtype=np.uint32),
            },
        )
        self.train = self.trainer.step
        self.embedding = self.task.embedder(self.trainer.mesh, "embed_image")
        self.pictures = data.integers(0, 256, (s.features, s.image, s.image, 3), np.uint8)
        self.weights = random_mobilenet(data)
        self.network = jax.jit(lambda weights, images: mobilenet.forward(weights, images)[0])

    def about(self):
        return self.trainer.about(1e-9 * CLIP.batch * self.task.train_flops_per_row())

    def embed(self):
        return float(self.embedding(self.trainer.state.params, {}, self.pictures).mean())

    def features(self):
        return float(self.network(self.weights, self.pictures).mean())


def random_mobilenet(data: np.random.Generator) -> dict:
    """MobileNetV2's tree without its trained values, which cost nothing in time."""
    tensors = {}
    for part in mobilenet.plan().values():
        if isinstance(part, Conv):
            tensors[f"{part.conv}.weight"] = data.normal(0, 0.05, part.shape)
            for name, value in (
                ("weight", 1),
                ("bias", 0),
                ("running_mean", 0),
                ("running_var", 1),
            ):
                tensors[f"{part.norm}.{name}"] = np.full(part.shape[0], value, np.float32)
        else:
            tensors[f"{part.name}.weight"] = data.normal(0, 0.05, part.shape)
            tensors[f"{part.name}.bias"] = np.zeros(part.shape[:1], np.float32)
    return mobilenet.convert(tensors, "random")
