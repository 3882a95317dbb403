"""Every shipped config and its ``:tiny``: text pinned, the paper's numbers, trains.

To write the pinned texts anew: ``python tests/models/test_configs.py``.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import config as configs
from mmx.core import tree
from mmx.train import optim

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "configs"
NAMES = list(configs.list_configs())
SPECS = [f"{name}{arg}" for name in NAMES for arg in ("", ":tiny")]
SPECS += [f"vqgan/muse256:{arg}" for arg in ("fsq", "lfq", "tiny,fsq", "tiny,lfq")]
LATER = "unet,flow,by_modality,clean_copies"  # all that came after the paper
SPECS += [f"transfusion/b16:{arg}" for arg in ("unet", LATER, f"tiny,{LATER}")]
SPECS += [f"transfusion/openmoji32:{arg}" for arg in ("edit", "tiny,edit")]
SPAES = ("rq,mask,linear", "area,zeros")  # what SPAE does not choose; test_spae.py trains them
SPECS += [f"spae/openmoji32:{tiny}{arg}" for arg in SPAES for tiny in ("", "tiny,")]
# muse config -> the tokenizer config it is trained on
CODECS = {
    "muse/openmoji32": "vqgan/openmoji32",
    "muse/openmoji64": "vqgan/openmoji64",
    "muse/base_632m": "vqgan/muse256",
    "muse/base_3b": "vqgan/muse256",
}


def golden(spec: str) -> Path:
    return GOLDENS / (spec.replace("/", "-").replace(":", "-").replace(",", "-") + ".txt")


@pytest.mark.parametrize("spec", SPECS)
def test_resolved_text_is_as_pinned(spec):
    file = golden(spec)
    pinned = file.read_text() if file.is_file() else ""
    assert configs.to_text(configs.load_config(spec)) + "\n" == pinned, (
        f"{spec} resolves to another text than {file}. If that is meant: "
        "`python tests/models/test_configs.py` writes all of them anew; look at the diff."
    )


def test_no_text_is_pinned_of_a_config_that_is_gone():
    assert {golden(spec) for spec in SPECS} == set(GOLDENS.glob("*.txt"))


# Of a paper's sizes; the others are ours.
PAPERS = [name for name in NAMES if not any(x in name for x in ("openmoji", "scenes", "moving"))]
LATENTS = {"transfusion/openmoji32": "vqgan/openmoji32_kl"}
SIZES = ("b16", "l37", "xl76", "b1400", "b7000")  # Transfusion's
LATENTS |= {f"transfusion/{size}": "vqgan/transfusion256_kl" for size in SIZES}
ARXIV = {
    "clip": ("2103.00020", "2303.15343"),
    "muse": ("2301.00704",),
    "spae": ("2306.17842",),
    "transfusion": ("2408.11039",),
    "vqgan": ("2301.00704", "2408.11039"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_is_a_contract(name):
    path, _ = configs.find_config(name)
    lines = path.read_text().splitlines()
    doc = path.read_text().split('"""')[1]
    assert 20 < len(lines[0]) <= 100 and lines[0].endswith(".")
    assert f"mmx train --config {name}" in doc  # the command
    assert "ours" in doc  # where the numbers come from
    if name in PAPERS:
        papers = ARXIV[name.partition("/")[0]]
        assert any(f"arXiv {paper}" in doc for paper in papers) and "Hardware" in doc
    config = configs.load_config(name)
    assert len(configs.flat_items(config)) <= 85
    # `--size` makes squares, where a random crop along the longer side has nothing to choose.
    assert not (config.data.get("crop") == "random" and "--size" in doc.split("Paper")[0])


@pytest.mark.parametrize("name", PAPERS)
def test_every_number_of_a_papers_config_says_where_it_is_from(name):
    path, _ = configs.find_config(name)
    inside = path.read_text().split("c.model = ")[1].split("c.mesh")[0]
    for line in inside.splitlines():
        sets = "=" in line and not line.rstrip().endswith(("(", "{"))
        if sets and "if " not in line.split("=")[0]:
            assert "#" in line, line


def test_the_papers_numbers():
    """arXiv 2301.00704 tables 4 and 5."""
    c = configs.load_config("muse/base_3b")
    assert (c.model.depth, c.model.width, c.model.mlp) == (48, 2048, 8192)
    for name in ("muse/base_3b", "muse/base_632m"):
        c = configs.load_config(name)
        o = c.optim
        assert (o.name, o.lr, o.b1, o.b2, o.weight_decay) == ("adafactor", 1e-4, 0.9, 0.96, 0.045)
        assert (o.warmup_steps, c.batch_size, c.steps, o.ema) == (5000, 512, 1_500_000, 0.0)
        assert (c.offline_ema, c.save_every, c.sample.steps) == (0.7, 5000, 24)
        assert 0.7**c.keep < 1e-3  # what retention drops weighs nothing
        assert c.loss.text_drop == 0.1
    for name, size, f in (("vqgan/muse256", 256, 16), ("vqgan/muse512", 512, 8)):
        c = configs.load_config(name)
        assert c.data.image_size == size and 2 ** (len(c.model.multipliers) - 1) == f
        assert (c.model.channels, c.model.encoder_blocks, c.model.decoder_blocks) == (128, 2, 2)
        assert (c.quantizer.num_codes, c.batch_size, c.steps) == (8192, 256, 1_000_000)
        assert (c.loss.perceptual, c.loss.adversarial) == (0.05, 0.1)
        for o in (c.optim, c.optim_disc):
            assert (o.lr, o.b2, o.weight_decay, o.warmup_steps) == (1e-4, 0.99, 1e-4, 10_000)
        assert c.optim.b1 == 0.9
    for arg in ("fsq", "lfq"):
        q = configs.load_config(f"vqgan/muse256:{arg}").quantizer
        assert (np.prod(q.levels) if arg == "fsq" else 2**q.bits) == 8192


def test_the_papers_numbers_of_transfusions_autoencoder():
    """arXiv 2408.11039 sec. 3.1, app. A; a term of its loss (ID, of MoCo features) is not here."""
    from mmx.models.registry import make_codec, make_task

    c = configs.load_config("vqgan/transfusion256_kl")
    assert (c.quantizer.latent_dim, c.quantizer.kl, c.steps) == (8, 1e-6, 1_000_000)
    loss = c.loss
    assert (loss.l1, loss.perceptual, loss.adversarial, loss.gan_start) == (1, 1, 0.5, 50_000)
    assert make_codec(c, "latents").grid(c.data.image_size) == 32
    params, _ = jax.eval_shape(make_task(c, None, abstract=True).init, jax.random.key(0))
    del params["discriminator"]
    assert tree.num_params(params) == pytest.approx(86e6, rel=0.03)


def test_the_papers_numbers_of_spae():
    """arXiv 2306.17842, as remembered. With rows of 1,536 numbers, which the embeddings of its
    GPT variant have, the autoencoder has the paper's 59M parameters."""
    from mmx.models.registry import make_task

    c = configs.load_config("spae/imagenet128")
    of, loss = c.guidance, c.loss
    assert (c.data.image_size, c.batch_size, c.steps, c.optim.lr) == (128, 256, 450_000, 1e-4)
    assert (loss.adversarial, loss.perceptual, loss.lecam) == (0.1, 0.1, 1e-4)
    assert c.pyramid.commitment == 0.33 and of.weight == of.temperature == 1
    assert tuple(of.thresholds) == (0.98, 0.95, 0.9, 0.85, 0.8)
    task = make_task(c, None, abstract=True)
    assert task.pyramid.ends == (1, 5, 21, 85, 341, 597)
    assert task.abstract_frozen()["table"].value.shape == (65_536, 4096)
    with c.unlocked():
        c.words.width = c.words.code_dim = 1536
    params, _ = jax.eval_shape(make_task(c, None, abstract=True).init, jax.random.key(0))
    del params["discriminator"]
    assert tree.num_params(params) == pytest.approx(59e6, rel=0.01)


def test_the_papers_numbers_of_transfusion():
    """arXiv 2408.11039 sec. 4.1 to 4.3; the hidden widths of the MLPs are Llama's ratio."""
    from mmx.models.registry import make_task

    shapes = {
        "b16": (16, 768, 12, 2048, 0.16),
        "l37": (24, 1024, 16, 2816, 0.37),
        "xl76": (24, 1536, 24, 4096, 0.76),
        "b1400": (24, 2048, 16, 5632, 1.4),
        "b7000": (32, 4096, 32, 11008, 7),
    }
    tiny, counts = set(), {}
    for size, (*shape, billions) in shapes.items():
        c = configs.load_config(f"transfusion/{size}")
        m, o, of = c.model, c.optim, c.loss
        assert [m.depth, m.width, m.heads, m.mlp] == shape and m.patch == 2
        assert c.batch_size * c.data.row_len == 2**21 and c.steps == 250_000
        assert (o.name, o.lr, o.lr_end, o.b1, o.b2) == ("adamw", 3e-4, 1.5e-5, 0.9, 0.95)
        assert (o.weight_decay, o.warmup_steps, o.clip_norm, o.accum) == (0.1, 4000, 1.0, 1)
        assert (of.diffusion, of.image_first, of.noise_limit) == (5, 0.2, 0.5)
        assert sorted(c.diffusion.values()) == ["cosine", "eps", "eps", "uniform"]
        assert (c.sample.steps, c.sample.solver, c.sample.guidance) == (250, "ddpm", 5)
        task = make_task(c, None, abstract=True)
        assert (task.grid, task.codec.latent_dim, task.patches) == (32, 8, 256)
        counts[size] = tree.num_params(jax.eval_shape(task.init, jax.random.key(0))[0])
        assert counts[size] / 1e9 == pytest.approx(billions, rel=0.05)
        text = configs.to_text(configs.load_config(f"transfusion/{size}:tiny"))
        tiny.add(text.replace("data.latents = False\n", ""))  # as where it is absent
    assert len(tiny) == 1  # so one of them is trained below
    assert task.batch_spec()["images"].shape == (512, 12, 32, 32, 8)  # latents, not pixels
    # 6 a weight in a product and token; half of attention; both maps of 12 images' patches.
    L, D, F, images = 4096, 4096, 11008, 12 * 256
    layer = L * (4 * D**2 + 3 * D * F) + L * (L + 1) * D
    maps = images * 2 * 32 * D + 12 * 256 * 32
    assert task.train_flops_per_row() == 6 * (32 * layer + L * D * 32_128 + maps)
    half = task.train_flops_per_row(images=6)  # of those there, not of all places for one
    assert half == 6 * (32 * layer + L * D * 32_128 + maps / 2)
    unet = make_task(configs.load_config("transfusion/b16:unet"), None, abstract=True)
    more = tree.num_params(jax.eval_shape(unet.init, jax.random.key(0))[0]) - counts["b16"]
    assert more == pytest.approx(0.27e9, rel=0.02)


@pytest.mark.parametrize(
    ("name", "paper", "share"), [("base_3b", 3.26e9, 0.01), ("base_632m", 632e6, 0.02)]
)
def test_parameter_counts_are_the_papers(name, paper, share):
    """Of the image model, as in the paper: the text encoder is not counted."""
    from mmx.models.muse.model import MuseTransformer

    c = configs.load_config(f"muse/{name}")
    m, T = c.model, c.text.max_len
    net = MuseTransformer(num_codes=8192, grid=16, **m)
    args = jnp.zeros((1, 256), int), jnp.zeros((1, T, c.text.width)), jnp.ones((1, T), bool)
    params = jax.eval_shape(net.init, jax.random.key(0), *args)
    assert tree.num_params(params) == pytest.approx(paper, rel=share)
    assert m.width % m.heads == 0 and m.mlp == 4 * m.width


def test_the_papers_numbers_of_clip():
    """arXiv 2103.00020 tables 18 to 20, sec. 2.5; arXiv 2303.15343 sec. 3.2."""
    for name, lr, b2, eps in (
        ("vit_b32", 5e-4, 0.98, 1e-6),
        ("vit_l14", 4e-4, 0.98, 1e-6),
        ("rn50", 5e-4, 0.999, 1e-8),
    ):
        c = configs.load_config(f"clip/{name}")
        o = c.optim
        assert (o.name, o.lr, o.b1, o.b2, o.eps) == ("adamw", lr, 0.9, b2, eps)
        assert (o.weight_decay, o.warmup_steps) == (0.2, 2000)
        assert c.steps == 32 * 400e6 / 32_768 and c.model.scale_start == 1 / 0.07
        assert np.exp(o.upper.logit_scale) == pytest.approx(100)
        assert (c.text.vocab_size, c.text.max_len, c.loss.kind) == (49_408, 77, "softmax")
    c = configs.load_config("clip/siglip_b16")
    assert (c.model.scale_start, c.model.bias_start, c.loss.kind) == (10, -10, "sigmoid")
    for name in NAMES:
        if name.startswith("clip/") and name in PAPERS:
            assert configs.load_config(name).batch_size == 32_768


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [("vit_b32", 151.28, 14.8), ("vit_l14", 427.62, 175.3), ("rn50", 102.01, 17.5),
     ("siglip_b16", 203.16, 46.4)],
)  # fmt: skip
def test_parameters_and_flops_of_clip_are_the_published(name, millions, gflops):
    """open_clip's profile of both towers' forward pass; RN50 and SigLIP: 18.2 and 46.7 there, with
    what is no matrix product."""
    from mmx.models.registry import make_task

    task = make_task(configs.load_config(f"clip/{name}"), None, abstract=True)
    params, extra = jax.eval_shape(task.init, jax.random.key(0))
    assert tree.num_params(params) / 1e6 == pytest.approx(millions, abs=0.01)
    assert task.train_flops_per_row() / 3e9 == pytest.approx(gflops, rel=0.005)
    assert bool(extra) == (name == "rn50")
    decays = task.config.optim.get("decays", ("kernel",))
    # Decay: of CLIP on "all weights that are not gains or biases" (sec. 2.5), of SigLIP kernels.
    mask = tree.flatten(optim.decay_mask(nn.unbox(params), decays))
    last = lambda decayed: {path.split("/")[-1] for path in mask if mask[path] == decayed}
    if name == "siglip_b16":
        assert last(True) == {"kernel"}
    else:
        assert last(False) == {"scale", "bias", "logit_scale"} and "kernel" in last(True)


# Trained for longer, with what they must learn, in test_vqgan_training.py, test_kl_codec.py and
# cli/test_clip.py.
LONGER = ("vqgan/muse256", "vqgan/muse512", "clip/openmoji64")
LONGER += ("vqgan/openmoji32_kl", "vqgan/transfusion256_kl")
# The same text in their tiny forms as transfusion/b16, which trains here, with all options too.
LONGER += tuple(f"transfusion/{size}" for size in SIZES)


@pytest.mark.parametrize(
    "spec",
    [f"{name}:tiny" for name in NAMES if name not in LONGER]
    + ["transfusion/b16:tiny", f"transfusion/b16:tiny,{LATER}"],
)
def test_the_tiny_form_trains(build, spec):
    name = spec.partition(":")[0]
    codec = (CODECS | LATENTS).get(name)
    kwargs = {"codec": f"{codec}:tiny"} if codec else {}
    task = getattr(build, name.partition("/")[0])(spec, **kwargs)
    state, update = build.trainer(task)
    batch = build.rows(task, task.config.batch_size)
    before = state.params
    for _ in range(2):  # the first step has learning rate 0
        state, metrics = update(state, batch)
    assert all(np.isfinite(v) for v in metrics.values()), metrics
    assert int(state.step) == 2 and int(state.bad_step) == -1
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, state.params)
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_form_is_the_whole_only_smaller(name):
    whole, tiny = (configs.load_config(spec) for spec in (name, f"{name}:tiny"))
    assert set(configs.flat_items(whole)) == set(configs.flat_items(tiny))
    assert tiny.batch_size <= 16 and tiny.steps <= 20
    kinds = ("quantizer.kind", "loss.gan", "discriminator.kind", "optim.name", "model.activation")
    kinds += ("loss.kind", "loss.form", "model.image.kind", "model.image.pool", "model.text.pool")
    for kind in kinds:
        assert configs.flat_items(whole).get(kind) == configs.flat_items(tiny).get(kind)


@pytest.mark.parametrize(("name", "vqgan"), list((CODECS | LATENTS).items()))
def test_whole_configs_fit_together(name, vqgan):
    from mmx.models.registry import make_codec

    m = configs.load_config(name)
    codec = make_codec(configs.load_config(vqgan))
    assert m.codec.config == vqgan
    assert codec.grid(m.data.image_size) % m.model.patch == 0
    assert m.data.image_size == configs.load_config(vqgan).data.image_size


def write_goldens() -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for old in GOLDENS.glob("*.txt"):
        old.unlink()
    for spec in SPECS:
        golden(spec).write_text(configs.to_text(configs.load_config(spec)) + "\n")


if __name__ == "__main__":
    write_goldens()
