"""Small TFDS data sets by import (``import tiny_tfds``), as `tfds build` would leave them."""

import numpy as np
import tensorflow_datasets as tfds

from mmx.data.image import encode_png

IMAGE = tfds.features.Image(shape=(None, None, 3))
TEXT = tfds.features.Text()


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Any features, any examples: what somebody else's builder may have written."""

    url_infos = {}  # noqa: RUF012

    def __init__(self, name, features, examples, version="1.0.0", config=None, license=None,
                 splits=("train",), **kw):  # fmt: skip
        self.name, self.VERSION = name, tfds.core.Version(version)
        self._features, self._examples, self._license = features, examples, license
        self._splits = splits
        config = config and tfds.core.BuilderConfig(name=config, version=version)
        super().__init__(file_format="array_record", config=config, **kw)

    def _info(self):
        features = tfds.features.FeaturesDict(self._features)
        return tfds.core.DatasetInfo(builder=self, features=features, license=self._license)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in self._splits}

    def _generate_examples(self):
        yield from enumerate(self._examples)


def png(value, shape=(6, 8, 3)):
    """One grey, as a file."""
    return encode_png(np.full(shape, value, np.uint8))


def build(root, name, features, examples, **options):
    """Prepare ``NAME`` in ``root``, each split with all examples."""
    builder = Tiny(name, features, examples, data_dir=str(root), **options)
    builder.download_and_prepare()
    return root
