"""The peer's side: muse-maskgit-pytorch, eager or compiled, as its own classes run it."""

import contextlib
import os
import types

# Threads that sleep while the other side is measured.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from shape import SHAPE

_KEEP = []


def load_peer():
    """The package, beside a torch of another build than its torchvision's."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # A torchvision built for GPUs only needs these two names declared to be imported.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)
    import muse_maskgit_pytorch
    from muse_maskgit_pytorch import t5

    # The constructor asks a model hub for the text encoder's width: tell it.
    t5.T5_CONFIGS["given"] = {"config": types.SimpleNamespace(d_model=SHAPE.width)}
    return muse_maskgit_pytorch


class Peer:
    """MaskGit around MaskGitTransformer, fused AdamW."""

    def __init__(self, args):
        peer, s = load_peer(), SHAPE
        self.device = torch.device("cuda" if args.device == "gpu" else "cpu")
        if args.device == "cpu":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_float32_matmul_precision("high")  # as jax: no effect on a CPU
        torch.manual_seed(0)
        net = peer.MaskGitTransformer(
            num_tokens=s.vocab,
            seq_len=s.grid**2,
            dim=s.width,
            depth=s.depth,
            dim_head=s.width // s.heads,
            heads=s.heads,
            ff_mult=4,
            t5_name="given",
            flash=False,  # its flash path cannot run
        )
        vae = peer.VQGanVAE(dim=16, layers=2, codebook_size=s.vocab, use_vgg_and_gan=False)
        self.model = peer.MaskGit(
            vae=vae, transformer=net, image_size=4 * s.grid, cond_drop_prob=0.25
        ).to(self.device)
        text = torch.randn(s.batch, s.text, s.width, device=self.device)
        net.encode_text = lambda texts: text
        self.model.vae.decode_from_ids = lambda ids: ids  # codes, as on our side
        if args.side == "compile":
            # The whole network and its loss, in training and in sampling.
            net.forward = torch.compile(net.forward)
        self.ids = torch.randint(0, s.vocab, (s.batch, s.grid**2), device=self.device)
        self.text = text
        weights = [p for name, p in net.named_parameters() if "self_cond" not in name]  # unused
        self.count = sum(p.numel() for p in weights)
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.99), fused=True)
        self.bf16 = args.dtype == "bf16"

    def about(self):
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {
            "torch": torch.__version__,
            "device": name,
            "threads": torch.get_num_threads(),
            "parameters": self.count,
        }

    def _precision(self):
        if self.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def train(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss = self.model(self.ids, text_embeds=self.text)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def sample(self):
        s = SHAPE
        with self._precision():
            ids = self.model.generate(
                texts=["given"] * s.batch, timesteps=s.sample_steps, cond_scale=s.guidance
            )
        return float(ids.float().mean())
