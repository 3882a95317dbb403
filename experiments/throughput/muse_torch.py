"""The peer's side: muse-maskgit-pytorch, eager or compiled, as its own classes run it."""

import types

from shape import MUSE
from torch_parts import Side, load_torchvision, torch


def load_peer():
    """The package, told the width of its text encoder."""
    load_torchvision()
    import muse_maskgit_pytorch
    from muse_maskgit_pytorch import t5

    # The constructor asks a model hub for the text encoder's width: tell it.
    t5.T5_CONFIGS["given"] = {"config": types.SimpleNamespace(d_model=MUSE.width)}
    return muse_maskgit_pytorch


class Peer(Side):
    """MaskGit around MaskGitTransformer, fused AdamW."""

    def __init__(self, args):
        super().__init__(args)
        peer, s = load_peer(), MUSE
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
        self.optimise(weights, betas=(0.9, 0.99))

    def loss(self):
        return self.model(self.ids, text_embeds=self.text)

    def sample(self):
        s = MUSE
        with self.precision():
            ids = self.model.generate(
                texts=["given"] * s.batch, timesteps=s.sample_steps, cond_scale=s.guidance
            )
        return float(ids.float().mean())
