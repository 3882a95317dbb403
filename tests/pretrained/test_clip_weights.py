"""Published towers: equal to `transformers` and `open_clip`, whose words lie in goldens/pretrained.

`make parity` writes these goldens anew from the libraries and compares them live.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.models.clip.published import load_published
from mmx.pretrained.clip import read_config
from mmx.pretrained.hub import Repository
from mmx.train.sharding import infer_shardings, make_mesh

GOLDENS = Path(__file__).parents[1] / "goldens/pretrained"
NAMES = ("clip_quick_gelu", "clip_gelu", "siglip", "resnet")
TINY = GOLDENS / "clip_quick_gelu"


@functools.cache
def opened(name):
    """(golden, what it holds as ours makes it of images and ids)."""
    model, params, extra = load_published(Repository(GOLDENS / name))

    @jax.jit
    def run(variables, image_u8, text_ids):
        image = image_u8.astype(jnp.float32) / 127.5 - 1.0
        image_emb, text_emb, log_scale, bias = model.apply(variables, image, text_ids)
        logits = jnp.exp(log_scale) * image_emb @ text_emb.T + bias
        tower = model.apply(variables, image, method="features")
        return dict(image_tower=tower, image_emb=image_emb, text_emb=text_emb, logits=logits)

    golden = load_file(GOLDENS / name / "golden.safetensors")
    return golden, functools.partial(run, {"params": params, **extra})


@pytest.mark.parametrize("name", NAMES)
def test_towers_and_logits_equal_the_libraries(name):
    golden, run = opened(name)
    assert golden["logits"].std() > 0.1  # no weights of nothing
    for key, value in run(golden["image_u8"], golden["text_ids"]).items():
        np.testing.assert_allclose(value, golden[key], atol=1e-5, rtol=1e-5, err_msg=key)


def test_each_device_reads_its_part_of_the_same_weights():
    mesh = make_mesh(dict(slice=1, data=2, fsdp=4, tensor=1))
    _, host, _ = load_published(Repository(TINY))
    _, params, _ = load_published(Repository(TINY), lambda boxed: infer_shardings(boxed, mesh))
    kernel = params["text"]["encoder"]["blocks"]["mlp"]["in"]["kernel"]
    assert kernel.sharding.spec[1] == "fsdp" and kernel.addressable_data(0).shape == (2, 4, 40)
    jax.tree.map(np.testing.assert_array_equal, params, host)


def test_what_follows_the_end_of_text_and_what_pads_it_change_nothing():
    """B22 of the spec: the state is read at the end of text, and attention is causal."""
    golden, run = opened("clip_quick_gelu")
    ids, eot = golden["text_ids"].copy(), 98
    embed = lambda ids: np.asarray(run(golden["image_u8"], ids)["text_emb"])
    text_emb, ends = embed(ids), (ids == eot).argmax(1)
    assert (ends < ids.shape[1] - 1).sum() == 3
    at = np.arange(ids.shape[1]) - ends[:, None]
    for filler in (eot, 0, 50):  # padded as transformers does, as OpenAI does, and by other words
        np.testing.assert_array_equal(embed(np.where(at > 0, filler, ids)), text_emb)
    assert np.abs(embed(np.where(at == -1, 61, ids)) - text_emb).max(1).min() > 1e-3


def test_the_rule_of_old_configs_and_of_new_ones():
    """eos_token_id=2 means the row's largest id; any other its own first place. In the golden of
    the second the start of text is the largest id, so the first rule would read the start."""
    new, old = (read_config(Repository(GOLDENS / name)) for name in ("clip_gelu", TINY.name))
    assert (new.eot_id, old.eot_id) == (94, None)
    ids = load_file(GOLDENS / "clip_gelu/golden.safetensors")["text_ids"]
    assert (ids.argmax(1) != (ids == 94).argmax(1)).all()


def test_the_published_configs_are_read_as_they_are(tmp_path):
    """Sizes of OpenAI's B/32 as its config.json tells them, of SigLIP's B/16, which tells none."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "siglip", "text_config": {}, "vision_config": {}}))
    siglip = read_config(Repository(tmp_path))
    tower = dict(width=768, depth=12, heads=12, mlp=3072)
    assert siglip.model == dict(
        features=768,
        activation="gelu",
        eps=1e-6,
        image=dict(kind="vit", pixels="half", patch=16, pool="map", **tower),
        text=dict(pool="last", **tower),
    )
    assert (siglip.vocab_size, siglip.max_len, siglip.image_size) == (32000, 64, 224)
    text = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2)
    image = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, patch_size=14,
                 num_attention_heads=16)  # fmt: skip
    config = dict(model_type="clip", projection_dim=768, text_config=text, vision_config=image)
    file.write_text(json.dumps(config))
    large = read_config(Repository(tmp_path))
    assert large.model["features"] == 768 and large.model["activation"] == "quick_gelu"
    assert large.model["image"] == dict(
        kind="vit", pixels="clip", patch=14, pool="cls", width=1024, depth=24, heads=16, mlp=4096
    )
    assert (large.vocab_size, large.max_len, large.eot_id) == (49408, 77, None)


def test_siglip_2_is_refused_though_it_calls_itself_siglip(tmp_path):
    """Its towers would fit; but ids of its tokenizer mean other words."""
    text = {"vocab_size": 256000}
    config = {"model_type": "siglip", "text_config": text, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"vocab_size=256000 is of SigLIP 2, .* take a SigLIP"):
        load_published(Repository(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(model_type="bert"), "model_type='bert': use one of clip, siglip"),
        (lambda c: c["text_config"].update(hidden_act="relu"), "hidden_act is 'relu' for texts"),
        (lambda c: [c[p].update(hidden_act="mish") for p in ("text_config", "vision_config")],
         "hidden_act='mish': use one of"),
        (lambda c: c["vision_config"].update(num_channels=1), "3 channels"),
        (lambda c: c["vision_config"].update(patch_size=5),
         r"vision_config.patch_size=5 does not divide image_size=16: .* take another"),
        (lambda c: c["text_config"].update(hidden_size=None), "text_config.hidden_size=None: it"),
        (lambda c: c["text_config"].update(num_attention_heads=5),
         r"text.heads=5: does not divide width=16"),
    ],
)  # fmt: skip
def test_configs_that_are_not_ours_to_read(tmp_path, change, words):
    config = json.loads((TINY / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        load_published(Repository(tmp_path))


@pytest.mark.parametrize(
    "field",
    ["embed_dim", "vision_cfg.width", "vision_cfg.image_size", "text_cfg.context_length"],
)
def test_an_open_clip_config_that_lacks_a_size(tmp_path, field):
    config = json.loads((GOLDENS / "resnet/open_clip_config.json").read_text())
    part, _, last = f"model_cfg.{field}".rpartition(".")
    node = functools.reduce(dict.__getitem__, part.split("."), config)
    del node[last]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"model_cfg\.{field}=None: it has to be a whole number"):
        read_config(Repository(tmp_path))


def test_all_tensors_that_do_not_fit_are_listed(tmp_path):
    for file in ("config.json", "preprocessor_config.json"):
        shutil.copy(TINY / file, tmp_path)
    tensors = load_file(TINY / "model.safetensors")
    gone = "vision_model.encoder.layers.1.mlp.fc1.weight"
    del tensors[gone]
    tensors["visual_projection.weight"] = np.zeros((20, 23), np.float16)
    tensors["text_model.embeddings.token_embedding.weight"] = np.zeros((1000, 16), np.float16)
    tensors["classifier.weight"] = np.zeros((2, 2), np.float16)
    tensors["text_model.embeddings.position_ids"] = np.arange(12)[None]  # older files have it
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_published(Repository(tmp_path))
    assert [line.strip().split(" (for")[0] for line in str(caught.value).split("\n")] == [
        f"{tmp_path}: not the weights of this model; 4 of its tensors do not fit:",
        f"missing: {gone}",
        "misshapen: visual_projection.weight (20, 23) makes (23, 20), not (24, 20)",
        "misshapen: text_model.embeddings.token_embedding.weight (1000, 16) makes (1000, 16), "
        "not (128, 16)",
        "extra: classifier.weight (2, 2)",
    ]


def test_a_resnet_of_running_statistics():
    """They are of the file, not of the start, and the tree is whole."""
    _, params, extra = load_published(Repository(GOLDENS / "resnet"))
    tensors = load_file(GOLDENS / "resnet/open_clip_model.safetensors")
    stats = extra["batch_stats"]["image"]["tower"]
    np.testing.assert_array_equal(
        stats["stage_2_block_0"]["shortcut_norm"]["var"],
        tensors["visual.layer2.0.downsample.1.running_var"].astype(np.float32),
    )
    counted = sum(v.size for k, v in tensors.items() if not k.endswith("num_batches_tracked"))
    padding = (128 - 99) * 16
    assert tree.num_params({"p": params, "e": extra}) == counted + padding
