"""What the PyTorch sides share: threads, precision, a training step, torchvision."""

import contextlib
import os

# Threads that sleep while the other side is measured.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from torch import library

_KEEP = []


def load_torchvision():
    """torchvision, beside a torch of another build than its own."""
    try:
        import torchvision
    except RuntimeError:
        # A torchvision built for GPUs only needs these two names declared to be imported.
        declared = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(declared)
        import torchvision
    return torchvision


class Side:
    """A peer on its device. It has ``loss()``, and calls :meth:`optimise` with its weights."""

    def __init__(self, args):
        self.device = torch.device("cuda" if args.device == "gpu" else "cpu")
        if args.device == "cpu":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_float32_matmul_precision("high")  # as jax: no effect on a CPU
        torch.manual_seed(0)
        self.bf16 = args.dtype == "bfloat16"

    def optimise(self, weights, betas):
        self.count = sum(weight.numel() for weight in weights)
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=betas, fused=True)

    def about(self):
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {
            "torch": torch.__version__,
            "device": name,
            "threads": torch.get_num_threads(),
            "parameters": self.count,
        }

    def precision(self):
        if self.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def train(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())
