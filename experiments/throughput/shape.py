"""What both sides build of each subject, and small ones that show in seconds that all runs."""

from types import SimpleNamespace

MUSE = SimpleNamespace(
    depth=8,
    width=512,
    heads=8,
    grid=16,
    vocab=8192,
    text=32,
    batch=4,
    sample_steps=18,
    guidance=3.0,
)
CLIP = SimpleNamespace(
    image_depth=12,
    text_depth=6,
    width=384,  # of both towers and of the joint space
    heads=6,
    image=64,
    patch=16,
    vocab=16384,
    text=32,
    batch=32,
    features=64,  # images a call of MobileNetV2
)
TRANSFUSION = SimpleNamespace(
    depth=8,
    width=512,
    heads=8,
    mlp=1365,  # of the gated MLP on both sides
    even_mlp=5760,  # mmx's, with as many weights as the peer has for the time in every block
    vocab=8192,
    grid=8,  # 64 patches of one latent
    latent=16,
    texts=(60, 56),  # tokens before each of a row's two images
    batch=4,
    prompt=16,
    new=128,
    calls=30,  # of the network a sampled image
)
TINY = {
    "muse": {"depth": 1, "width": 64, "heads": 2, "grid": 8, "vocab": 512, "sample_steps": 3},
    "clip": {"image_depth": 1, "text_depth": 1, "width": 64, "heads": 2, "batch": 8, "features": 2},
    "transfusion": {
        "depth": 2,
        "width": 64,
        "heads": 2,
        "mlp": 170,
        "even_mlp": 340,
        "vocab": 512,
        "new": 4,
        "calls": 4,
    },
}


def shrink(subject: str) -> None:
    """Make a subject small, for this process."""
    of = {"muse": MUSE, "clip": CLIP, "transfusion": TRANSFUSION}
    vars(of[subject]).update(TINY[subject])
