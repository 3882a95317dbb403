"""Published language models: equal to `transformers`, whose logits lie in goldens/pretrained.

`make parity` writes these goldens anew from the library; weights are of a rule that both share.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from experiments.parity.lm_weights import weights
from mmx.core.errors import UserError
from mmx.nn.cache import write
from mmx.nn.causal_lm import CausalLM, empty_cache
from mmx.pretrained.causal_lm import load_causal_lm, read_architecture
from mmx.pretrained.hub import Repository
from mmx.train.sharding import infer_shardings, make_mesh

FOLDER = Path(__file__).parents[1] / "goldens/pretrained/language_models"
MODELS = json.loads((FOLDER / "configs.json").read_text())
LOGITS = load_file(FOLDER / "logits.safetensors")


def published(folder, name, config=None, tensors=None, files=1):
    """The model as a repository, its tensors in one file or several."""
    model = MODELS[name]
    (folder / "config.json").write_text(json.dumps(config or model["config"]))
    tensors = tensors or weights(model["tensors"])
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return Repository(folder)
    index = {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = dict(sorted(tensors.items())[number::files])
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return Repository(folder)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_library_with_and_without_a_cache(name, tmp_path):
    """The first positions are read without a cache, the rest behind them with one."""
    arch, params = load_causal_lm(published(tmp_path, name))
    ids, wanted, first = LOGITS[f"{name}/ids"], LOGITS[f"{name}/logits"], 7
    net = CausalLM(arch)

    @jax.jit
    def run(params, ids):
        apply = functools.partial(net.apply, {"params": params}, method="hidden")
        before, k, v = apply(ids[:, :first])
        cache = write(empty_cache(arch, 2, 15), k, v, jnp.full(2, first))
        after, _, _ = apply(ids[:, first:], cache=cache)
        x = jnp.concatenate([before, after], axis=1)
        return net.apply({"params": params}, x, method="logits")

    np.testing.assert_allclose(run(params, ids), wanted, atol=1e-4, rtol=0)


def test_a_switch_the_other_way_gives_other_logits(tmp_path):
    """What the goldens would not tell apart they would not test."""
    arch, params = load_causal_lm(published(tmp_path, "gemma2"))
    other = dict(embed_scale=1.0, norm_offset=0.0, attention_cap=0.0, windows=(0, 0, 0))
    flipped = [dataclasses.replace(arch, **{name: value}) for name, value in other.items()]
    run = lambda params, ids: [CausalLM(a).apply({"params": params}, ids) for a in flipped]
    for name, logits in zip(other, jax.jit(run)(params, LOGITS["gemma2/ids"])):
        assert np.abs(logits - LOGITS["gemma2/logits"]).max() > 0.01, name


def test_parts_of_a_file_give_the_same_weights_and_each_device_reads_its_own(tmp_path):
    mesh = make_mesh(dict(slice=1, data=1, fsdp=2, tensor=4))
    repository = published(tmp_path, "gpt2", files=3)
    arch, params = load_causal_lm(repository, lambda boxed: infer_shardings(boxed, mesh))
    whole = tmp_path / "whole"
    whole.mkdir()
    _, host = load_causal_lm(published(whole, "gpt2"))
    jax.tree.map(np.testing.assert_array_equal, params, host)
    kernel = params["blocks"]["attention"]["k"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_data(0).shape == (3, 8, 4)
    with jax.set_mesh(mesh):
        logits = jax.jit(CausalLM(arch).apply)({"params": params}, LOGITS["gpt2/ids"])
    np.testing.assert_allclose(logits, LOGITS["gpt2/logits"], atol=1e-4, rtol=0)


def test_half_precision_is_kept_as_it_is(tmp_path):
    tensors = {k: v.astype(jnp.bfloat16) for k, v in weights(MODELS["llama2"]["tensors"]).items()}
    repository = published(tmp_path, "llama2", tensors=tensors)
    arch, params = load_causal_lm(repository, param_dtype=jnp.bfloat16)
    head = params["head"]["embedding"]
    assert head.dtype == jnp.bfloat16 and head.shape == (128, 16)  # the vocabulary is padded
    np.testing.assert_array_equal(head[:61], tensors["lm_head.weight"])
    assert not head[61:].any()
    run = jax.jit(CausalLM(arch, jnp.bfloat16).apply)
    logits = run({"params": params}, LOGITS["llama2/ids"])
    error = np.asarray(logits) - LOGITS["llama2/logits"]
    assert logits.dtype == jnp.float32 and 1e-3 < error.std() < 0.05


def renamed(name, change):
    return {change(k): v for k, v in weights(MODELS[name]["tensors"]).items()}


@pytest.mark.parametrize(
    ("name", "change", "more"),
    [
        # As older files have it: no prefix, masks as buffers, a copy of the embeddings as head.
        ("gpt2", lambda k: k.removeprefix("transformer."),
         ("h.0.attn.bias", "h.1.attn.masked_bias", "lm_head.weight")),
        ("llama2", lambda k: k, ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
        # A Gemma with a tower for images, in the spelling of transformers 4 and of 5.
        ("gemma3", lambda k: f"language_model.{k}",
         ("vision_tower.a.weight", "multi_modal_projector.b", "language_model.lm_head.weight")),
        ("gemma3", lambda k: k.replace("model.", "model.language_model."),
         ("model.vision_tower.a.weight", "lm_head.weight")),
    ],
)  # fmt: skip
def test_other_spellings_of_the_same_tensors(name, change, more, tmp_path):
    folders = [tmp_path / "new", tmp_path / "old"]
    [folder.mkdir() for folder in folders]
    _, params = load_causal_lm(published(folders[0], name))
    tensors = renamed(name, change) | {k: np.zeros((2, 2), np.float32) for k in more}
    _, again = load_causal_lm(published(folders[1], name, tensors=tensors))
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_all_tensors_that_do_not_fit_are_listed(tmp_path):
    tensors = weights(MODELS["qwen3"]["tensors"])
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((24, 15), np.float32)
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
    with pytest.raises(UserError) as caught:
        load_causal_lm(published(tmp_path, "qwen3", tensors=tensors))
    assert [line.strip().split(" (for")[0] for line in str(caught.value).split("\n")] == [
        f"{tmp_path}: not the weights of this model; 3 of its tensors do not fit:",
        "missing: model.layers.1.self_attn.q_norm.weight",
        "misshapen: model.layers.0.mlp.up_proj.weight (24, 15) makes (15, 24), not (16, 24)",
        "extra: model.layers.3.mlp.up_proj.weight (24, 16)",
    ]


def architecture(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return read_architecture(Repository(folder))


def test_configs_in_the_spelling_of_transformers_4(tmp_path):
    """The fields of meta-llama/Llama-3.2-1B and google/gemma-3-4b-it as the hub has them."""
    llama = architecture(tmp_path, dict(
        model_type="llama", vocab_size=128256, hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        hidden_act="silu", max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0,
        rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
            original_max_position_embeddings=8192, rope_type="llama3"),
        attention_bias=False, mlp_bias=False, pretraining_tp=1, tie_word_embeddings=True,
    ))  # fmt: skip
    assert (llama.kv_heads, llama.tied, llama.query_scale) == (8, True, 0.125)
    assert set(llama.ropes) == {(500000.0, 32.0, 1.0, 4.0, 8192)}
    gemma = architecture(tmp_path, dict(model_type="gemma3", text_config=dict(
        model_type="gemma3_text", hidden_size=2560, intermediate_size=10240, num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024,
    )))  # fmt: skip
    assert (gemma.heads, gemma.kv_heads, gemma.head_size, gemma.vocab_size) == (8, 4, 256, 262208)
    assert gemma.windows[:7] == (1024,) * 5 + (0, 1024) and len(gemma.windows) == 34
    assert gemma.ropes[0][:2] == (1e4, 1.0) and gemma.ropes[5][:2] == (1e6, 8.0)
    assert gemma.attention_cap == gemma.logit_cap == 0.0
    tiny = MODELS["gemma2"]["config"]
    older = {k: v for k, v in tiny.items() if k not in ("layer_types", "rope_parameters")}
    assert architecture(tmp_path, older) == architecture(tmp_path, tiny)


def test_the_released_gpt2_needs_few_words(tmp_path):
    small = architecture(tmp_path, dict(model_type="gpt2", n_embd=768, n_layer=12, n_head=12))
    assert (small.vocab_size, small.mlp, small.context, small.eps) == (50257, 3072, 1024, 1e-5)


def test_null_is_none_and_no_default(tmp_path):
    gemma = MODELS["gemma2"]["config"]
    of = lambda name, **change: architecture(tmp_path, MODELS[name]["config"] | change)
    bare = of("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert bare.attention_cap == bare.logit_cap == 0.0
    absent = {k: v for k, v in gemma.items() if not k.endswith("softcapping")}
    absent = architecture(tmp_path, absent)
    assert (absent.attention_cap, absent.logit_cap) == (50.0, 30.0)
    windows = dict(use_sliding_window=True, layer_types=None, max_window_layers=1)
    assert of("qwen3", **windows, sliding_window=9).windows == (0, 9, 9)
    assert of("qwen3", **windows, sliding_window=None).windows == (0, 0, 0)
    assert of("llama2", num_key_value_heads=None, head_dim=None).head_size == 4


def test_fields_of_another_kind_are_not_read_as_the_library_reads_none(tmp_path):
    more = dict(
        attn_logit_softcapping=5.0, query_pre_attn_scalar=9, sliding_window=2,
        layer_types=["sliding_attention"] * 3,
    )  # fmt: skip
    plain = MODELS["llama2"]["config"]
    assert architecture(tmp_path, plain | more) == architecture(tmp_path, plain)


def test_what_a_kind_has_for_itself(tmp_path):
    """Qwen 3's head size that does not depend on the width; the "gelu" of Gemma 1's files, which
    was the tanh form; the head of a Gemma 3 with a tower, of which the whole says if it is tied."""
    qwen = {k: v for k, v in MODELS["qwen3"]["config"].items() if k != "head_dim"}
    qwen |= dict(hidden_size=18, num_attention_heads=4, num_key_value_heads=2)
    assert architecture(tmp_path, qwen).head_size == 128
    gemma = architecture(tmp_path, MODELS["gemma"]["config"] | dict(hidden_act="gelu"))
    assert gemma.activation == "gelu"
    whole = dict(model_type="gemma3", text_config=MODELS["gemma3"]["config"])
    assert architecture(tmp_path, whole).tied
    assert not architecture(tmp_path, whole | dict(tie_word_embeddings=False)).tied


def test_a_table_of_positions_is_not_read_beyond_its_end(tmp_path):
    arch = architecture(tmp_path, MODELS["gpt2"]["config"])
    long = jax.ShapeDtypeStruct((1, arch.context + 1), jnp.int32)
    with pytest.raises(ValueError, match="33 positions: the table of this model has 32"):
        jax.eval_shape(CausalLM(arch).init, jax.random.key(0), long)


def rope(**change):
    return dict(rope_parameters=dict(rope_theta=1e4, rope_type="default") | change)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("llama2", dict(model_type="mamba"), "model_type='mamba': use one of gpt2, llama, qwen2"),
        ("llama2", dict(hidden_act="relu"), "hidden_act='relu': use one of silu"),
        ("llama2", dict(num_key_value_heads=3), "num_key_value_heads=3 does not divide 4"),
        ("llama2", dict(intermediate_size="24"), "intermediate_size='24': it has to be a whole"),
        ("llama3", dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4)),
         "rope_type='yarn': use one of default, linear, llama3"),
        ("llama3", dict(rope_parameters=dict(rope_type="llama3", rope_theta=1e4)),
         "rope_parameters: factor=None: it has to be a number above 0"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "models of scale_attn_by_inverse"),
        ("gemma3", dict(layer_types=["full_attention"]), "sliding_attention or full_attention for"),
        ("gemma2", dict(sliding_window=0), "sliding_window=0: it has to be"),
        # Nulls that are no "none" to the library either.
        ("gemma2", dict(sliding_window=None), "sliding_window=None: it has to be a whole"),
        ("gemma2", dict(num_key_value_heads=None), "num_key_value_heads=None: it has to be"),
        ("gemma2", dict(hidden_activation=None), "hidden_activation=None: use one of"),
        ("qwen3", dict(rms_norm_eps=None), "rms_norm_eps=None: it has to be a number above 0"),
        ("qwen3", dict(head_dim=None), "head_dim=None: it has to be a whole"),
        ("llama2", dict(tie_word_embeddings=None), "tie_word_embeddings=None: it has to be"),
        # What would change the result.
        ("llama2", dict(quantization_config=dict(bits=4)), "models of quantization_config=None"),
        ("llama2", dict(partial_rotary_factor=0.5), "models of partial_rotary_factor=1 alone"),
        ("llama2", rope(partial_rotary_factor=0.5), "rope_parameters: partial_rotary_factor=0.5"),
        ("llama2", rope(rope_type="linear", factor=0), "rope_parameters: factor=0: it has to be a"),
        ("gemma2", dict(hidden_activation="gelu"), "hidden_activation='gelu': use one of silu"),
        ("gemma3", dict(hidden_activation="gelu"), "hidden_activation='gelu': use one of silu"),
        ("qwen3", dict(layer_types=["sliding_attention"] * 3, sliding_window=4),
         "use_sliding_window=False: its layer_types have sliding_attention"),
        # Of the wrong type.
        ("gemma2", dict(query_pre_attn_scalar=0), "query_pre_attn_scalar=0: it has to be a number"),
        ("gemma2", dict(attn_logit_softcapping="x"), "attn_logit_softcapping='x': it has to be a"),
        ("gemma2", dict(layer_types=5), "layer_types=5: sliding_attention or"),
        ("llama2", dict(rope_parameters=[1]), r"rope_parameters=\[1\]: it has to be an object"),
        ("llama2", dict(rope_parameters=None, rope_scaling="linear"), "rope_scaling='linear': it"),
        ("gemma3", dict(rope_parameters=dict(sliding_attention=1)), "rs.sliding_attention=1: it"),
        ("llama2", rope(rope_theta="1e4"), "rope_parameters: rope_theta='1e4': it has to be a"),
        ("llama2", rope(rope_type=[1]), r"rope_type=\[1\]: use one of default"),
        ("qwen3", dict(use_sliding_window=True, layer_types=None, max_window_layers="a"),
         "max_window_layers='a': it has to be a whole number"),
        ("llama2", dict(rms_norm_eps="1e-5"), "rms_norm_eps='1e-5': it has to be a number above 0"),
        ("llama2", dict(mlp_bias="no"), "mlp_bias='no': it has to be true or false"),
        ("gemma3", dict(model_type="gemma3", text_config=5), "text_config=5: it has to be an"),
    ],
)  # fmt: skip
def test_configs_that_are_not_ours_to_read(name, change, words, tmp_path):
    with pytest.raises(UserError, match=words):
        architecture(tmp_path, MODELS[name]["config"] | change)
