"""The peer's side: transfusion-pytorch, eager or with its transformer compiled."""

from shape import TRANSFUSION
from torch_parts import Side, torch
from transfusion_pytorch import Transfusion


class Peer(Side):
    """Its own loss over rows of text and latents, fused AdamW, without clipping."""

    def __init__(self, args):
        super().__init__(args)
        s = TRANSFUSION
        self.model = Transfusion(
            num_text_tokens=s.vocab,
            dim_latent=s.latent,
            modality_default_shape=(s.grid, s.grid),
            prob_uncond=0.1,
            transformer=dict(
                dim=s.width, depth=s.depth, heads=s.heads, dim_head=s.width // s.heads
            ),
        ).to(self.device)
        if args.side == "compile":
            net = self.model.transformer
            net.forward = torch.compile(net.forward)
        text = lambda *shape: torch.randint(0, s.vocab, shape, device=self.device)
        image = lambda: torch.randn(s.grid, s.grid, s.latent, device=self.device)
        self.rows = [
            [part for length in s.texts for part in (text(length), image())] for _ in range(s.batch)
        ]
        self.prompt = text(s.batch, s.prompt)
        self.train_even = self.train
        self.optimise(list(self.model.parameters()), betas=(0.9, 0.95))

    def loss(self):
        return self.model(self.rows)

    def decode(self):
        """Text with its cache, at its defaults: temperature 1, the unlikely filtered out."""
        s = TRANSFUSION
        with self.precision():
            ids = self.model.generate_text_only(self.prompt, s.prompt + s.new)
        return float(ids.shape[1])

    def sample(self):
        """Images alone by its midpoint rule, two calls a step; it offers no prompt here."""
        s = TRANSFUSION
        with self.precision():
            latents = self.model.generate_modality_only(
                batch_size=s.batch,
                fixed_modality_shape=(s.grid, s.grid),
                modality_steps=s.calls // 2 + 1,
            )
        return float(latents.std())
