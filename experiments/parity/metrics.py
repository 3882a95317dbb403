"""Metrics and their networks beside published implementations, which wrote their goldens.

    make parity                                      # in an environment of its own
    python experiments/parity/metrics.py             # the libraries now, beside the goldens
    python experiments/parity/metrics.py --write     # the goldens of tests/ anew

torch-fidelity, clean-fid, prdc, scikit-image, pycocoevalcap and lpips. None of them needs
torchvision for what is asked here; where it is missing, empty modules stand in for it. Then
MobileNetV2's true weights, from their package, name what scikit-image's pictures show.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import tempfile
import types
from pathlib import Path

import metric_inputs as inputs
import numpy as np

from mmx.pretrained import inception, mobilenet, networks

GOLDEN = Path(__file__).resolve().parents[2] / "tests/goldens/metrics.json"
# Class of ImageNet that each picture of scikit-image shows: Egyptian cat, espresso.
SHOWN = {"chelsea": 285, "coffee": 967}
SIZES = (299, 17)  # what pictures of 40 x 56 are resized to: larger, and smaller


def metrics_golden() -> dict:
    """Name -> number or list of numbers."""
    _stand_in_for_torchvision()
    golden: dict = {}
    for part in (_sets, _ssim, _captions, _resizers, _mobilenet, _inception, _lpips):
        golden |= part()
    return golden


def _sets() -> dict:
    import torch
    from prdc import compute_prdc
    from torch_fidelity import metric_fid, metric_kid, metric_prc
    from torch_fidelity.defaults import DEFAULTS

    a, b = inputs.features()
    of = lambda x: metric_fid.fid_features_to_statistics(torch.tensor(x, dtype=torch.float64))
    fid = metric_fid.fid_statistics_to_metric(of(a), of(b), verbose=False)
    kid = metric_kid.kernel_mmd(*(x.astype(np.float64) for x in (a, b)), **DEFAULTS)
    a64, b64 = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
    precision, recall = metric_prc.calculate_precision_recall_full(a64, b64, neighborhood=3)
    with contextlib.redirect_stdout(io.StringIO()):
        prdc = compute_prdc(real_features=b, fake_features=a, nearest_k=5)
    return {
        "fid": fid[metric_fid.KEY_METRIC_FID],
        "kid": float(kid),
        "precision": precision,
        "recall": recall,
        "density": float(prdc["density"]),
        "coverage": float(prdc["coverage"]),
    }


def _ssim() -> dict:
    from skimage.metrics import structural_similarity

    image = inputs.images()
    settings = dict(channel_axis=2, data_range=255, gaussian_weights=True,
                    use_sample_covariance=False)  # fmt: skip
    pairs = zip(image, inputs.noisy(image))
    return {"ssim": [float(structural_similarity(x, y, **settings)) for x, y in pairs]}


def _captions() -> dict:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    said = {i: [text] for i, text in enumerate(inputs.CAPTIONS)}
    references = dict(enumerate(inputs.REFERENCES))
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(references, said, verbose=0)
        cider, each = Cider().compute_score(references, said)
    return {"bleu": [float(x) for x in bleu], "cider": float(cider),
            "cider_each": [float(x) for x in each]}  # fmt: skip


def _resizers() -> dict:
    """Of each, a few rows of one channel."""
    import torch
    from cleanfid.resize import make_resizer
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    image = inputs.images(1)
    x = torch.tensor(image.transpose(0, 3, 1, 2)).double()
    out = {}
    for size in SIZES:
        made = {
            "legacy_tensorflow": interpolate_bilinear_2d_like_tensorflow1x(
                x, size=(size, size), align_corners=False
            )[0].numpy().transpose(1, 2, 0),
            "legacy_pytorch": make_resizer("PyTorch", False, "bilinear", (size, size))(image[0]),
            "clean": make_resizer("PIL", False, "bicubic", (size, size))(image[0]),
        }  # fmt: skip
        for name, y in made.items():
            out[f"resize/{name}/{size}"] = [[float(v) for v in y[i, ::size // 8, 1]]
                                            for i in (0, size // 2, size - 1)]  # fmt: skip
    return out


def _mobilenet() -> dict:
    """Torchvision's network, written out: convolution, batch norm, relu6.

    In float64: in float32 its own rounding is 8e-6 of the largest feature.
    """
    import torch
    import torch.nn.functional as F
    from PIL import Image

    double = lambda v: torch.tensor(v, dtype=torch.float64)
    tensors = {k: double(v) for k, v in inputs.network(mobilenet.plan(), 21).items()}

    def layer(x, conv, norm, stride=1, active=True):
        weight = tensors[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(tensors[f"{norm}.{n}"] for n in names), eps=1e-5)
        return F.relu6(x) if active else x

    def resized(image):
        to = (mobilenet.SIZE, mobilenet.SIZE)
        channels = (Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
        return np.stack([np.asarray(c.resize(to, Image.Resampling.BICUBIC)) for c in channels])

    x = double(np.stack([resized(image) for image in inputs.images()]).clip(0, 255)) / 255
    mean, std = (double(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = layer((x - mean) / std, "features.0.0", "features.0.1", stride=2)
    number = 0
    for expansion, channels, count, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(count):
            number += 1
            at, stride, k = f"features.{number}.conv", 1 if i else first_stride, 0
            y = x
            if expansion > 1:
                y, k = layer(y, f"{at}.0.0", f"{at}.0.1"), 1
            y = layer(y, f"{at}.{k}.0", f"{at}.{k}.1", stride)
            y = layer(y, f"{at}.{k + 1}", f"{at}.{k + 2}", active=False)
            x = x + y if stride == 1 and x.shape[1] == channels else y
    features = layer(x, "features.18.0", "features.18.1").mean((2, 3))
    logits = F.linear(features, tensors["classifier.1.weight"], tensors["classifier.1.bias"])
    return {"mobilenet/features": _some(features), "mobilenet/logits": _some(logits)}


def _inception() -> dict:
    """torch-fidelity's network on pictures that its own resizing leaves as they are."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors = inputs.network(inception.plan(), 22)
    state = {k: torch.tensor(v) for k, v in tensors.items()}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    made = FeatureExtractorInceptionV3(
        "golden", ["2048", "logits_unbiased"], feature_extractor_weights_path=file
    )
    image = torch.tensor(inputs.images().transpose(0, 3, 1, 2))
    features, logits = made(image)
    return {"inception/features": _some(features), "inception/logits": _some(logits)}


def _lpips() -> dict:
    import lpips
    import torch

    network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    vgg = inputs.vgg16()
    own = {}
    for name, tensor in network.net.state_dict().items():  # "slice2.5.weight"
        _, number, kind = name.split(".")
        own[name] = torch.tensor(vgg[f"features.{number}.{kind}"]).reshape(tensor.shape)
    network.net.load_state_dict(own)
    heads = {k: torch.tensor(v) for k, v in inputs.lpips_heads().items()}
    network.load_state_dict(heads, strict=False)
    network.eval()
    image = inputs.images()
    scale = lambda x: torch.tensor(x.transpose(0, 3, 1, 2)).float() / 127.5 - 1
    with torch.no_grad():
        distance = network(scale(image), scale(inputs.noisy(image)))
    return {"lpips": [float(x) for x in distance.flatten()]}


def _some(x) -> list[list[float]]:
    """The first eight numbers of each row, and the row's mean."""
    return [[*(float(v) for v in row[:8]), float(row.mean())] for row in x]


def _stand_in_for_torchvision() -> None:
    """Modules of that name for those who import it and use nothing of it here, but vgg16."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    import torch

    def vgg16(**unused):
        layers, before = [], 3
        for channels in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
            if not channels:
                layers.append(torch.nn.MaxPool2d(2))
                continue
            layers += [torch.nn.Conv2d(before, channels, 3, padding=1), torch.nn.ReLU()]
            before = channels
        return types.SimpleNamespace(features=torch.nn.Sequential(*layers))

    for name in ("", ".models", ".datasets", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = types.ModuleType(f"torchvision{name}")
    torchvision = sys.modules["torchvision"]
    torchvision.__version__ = "0.0.0"
    torchvision.models = sys.modules["torchvision.models"]
    torchvision.models.vgg16 = vgg16
    for name in ("CIFAR10", "STL10", "CIFAR100"):
        setattr(sys.modules["torchvision.datasets"], name, object)


def compare_golden() -> None:
    """The committed golden is what the libraries say today."""
    kept, now = json.loads(GOLDEN.read_text()), metrics_golden()
    assert kept.keys() == now.keys()
    for name, value in now.items():
        tolerance = 1e-5 * np.abs(value).max()
        np.testing.assert_allclose(kept[name], value, atol=tolerance, err_msg=name)
    print(f"goldens: {GOLDEN.name} is what the libraries say now, {len(now)} values")


def name_pictures(data_dir: str) -> None:
    """The true weights, read from their package, see what a picture shows."""
    import skimage.data

    networks.prepare("mobilenetv2", data_dir)
    weights = networks.load("mobilenetv2", data_dir)
    for picture, label in SHOWN.items():
        image = getattr(skimage.data, picture)()
        side = min(image.shape[:2])
        top, left = ((n - side) // 2 for n in image.shape[:2])
        logits = np.asarray(
            mobilenet.forward(weights, image[None, top:, left:][:, :side, :side])[1]
        )
        odds = np.exp(logits[0] - logits.max())
        assert logits.argmax() == label, (picture, logits.argmax())
        print(f"{picture}: class {label}, {odds[label] / odds.sum():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="the golden anew")
    if parser.parse_args().write:
        GOLDEN.write_text(json.dumps(metrics_golden(), indent=1) + "\n")
    else:
        compare_golden()
        with tempfile.TemporaryDirectory() as folder:
            name_pictures(folder)
