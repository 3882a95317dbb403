"""MaxText's Llama-2-7B step, compiled for the same slices and measured by the same reader.

    python experiments/scale/side_maxtext.py --topology v5p:4x4x4 --rows 4 --length 4096 \\
        --remat minimal
    python experiments/scale/side_maxtext.py --topology v5e:16x16 --rows 4 --length 2048 \\
        --remat save_qkv_proj

A peer: needs Python 3.12 and ``pip install 'maxtext[tpu]==0.2.5'``, which mmx does not. MaxText
traces its own step on its own mesh; what it would compile is handed to mmx.train.preflight instead.
"""

import json
import math
import os
import sys
from pathlib import Path

import llama

from mmx.train.topology import before_jax, parse_topology

# What its scripts in configs/tpu/<generation>/llama2_7b.sh set, less what libtpu 0.0.52 refuses:
# on a v5p it forbids the async fusion of all-gathers, as wrong results were seen.
FLAGS = {
    "v5p": {
        "xla_tpu_megacore_fusion_allow_ags": "false",
        "xla_enable_async_collective_permute": "true",
        "xla_tpu_enable_ag_backward_pipelining": "true",
        "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
        "xla_tpu_data_parallel_opt_different_sized_ops": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
    },
    "v5e": {
        "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
        "xla_tpu_data_parallel_opt_different_sized_ops": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
        "xla_enable_async_all_gather": "true",
    },
}
_SYSTEM = {"v5p": 2, "v5e": 1}  # MaxText's names count cores


class _Found(Exception):
    """Carries what MaxText lowered out of it."""


def main() -> int:
    args = llama.parse()
    topology = parse_topology(args.topology)
    chips = math.prod(topology.shape)
    before_jax(topology)
    os.environ["DECOUPLE_GCLOUD"] = "TRUE"

    import jax
    import maxtext
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
    from maxtext.trainers.pre_train import train_compile

    from mmx.core.flops import kernel_scope
    from mmx.nn.splash import splash_flops
    from mmx.train import preflight

    config = llama.make_config(args, topology)
    kernel = splash_attention_kernel.SplashAttentionKernel
    called = kernel.__call__

    def scoped(self, q_NLK, *rest, **kwargs):
        heads, length, size = q_NLK.shape
        with kernel_scope(
            splash_flops(args.rows, length, heads, size)
        ):  # its blocks are of 512 too
            return called(self, q_NLK, *rest, **kwargs)

    kernel.__call__ = scoped
    compiled = jax.stages.Lowered.compile

    def found(self, *args, **kwargs):
        raise _Found(self)

    jax.stages.Lowered.compile = found
    argv = [
        "train_compile",
        str(Path(maxtext.__file__).parent / "configs" / "base.yml"),
        "model_name=llama2-7b",
        f"compile_topology={topology.kind}-{chips * _SYSTEM[topology.kind]}",
        "compile_topology_num_slices=1",
        f"per_device_batch_size={args.rows}",
        f"max_target_length={args.length}",
        f"remat_policy={args.remat}",
        "use_iota_embed=true",
        "enable_checkpointing=false",
        "dataset_type=synthetic",
        "run_name=side-by-side",
        "base_output_directory=/nonexistent",
    ]
    try:
        train_compile.main(argv)
    except _Found as carried:
        lowered = carried.args[0]
    jax.stages.Lowered.compile = compiled

    class Call:
        class jitted:
            @staticmethod
            def lower(*_):
                return lowered

    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    report = preflight.compile_report(
        "train step", Call, (), mesh, topology, llama.train_flops(config), FLAGS[topology.kind]
    ).to_json()
    chip = topology.chip
    report["devices"], report["mesh"] = chips, {}
    report["mfu_ceiling"] = report["model_flops"] / (
        chips * chip.peak_flops * report["compute_seconds"]
    )
    print(json.dumps(vars(args) | report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
