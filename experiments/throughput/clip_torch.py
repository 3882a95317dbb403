"""The peers of CLIP: open_clip's model and loss, torchvision's MobileNetV2; eager or compiled."""

from shape import CLIP
from torch_parts import Side, load_torchvision, torch


class Peer(Side):
    """open_clip's CLIP, fused AdamW; no clipping, no guard."""

    def __init__(self, args):
        super().__init__(args)
        torchvision, s = load_torchvision(), CLIP
        import open_clip
        from open_clip.model import CLIP as Model
        from open_clip.model import CLIPTextCfg, CLIPVisionCfg

        vision = CLIPVisionCfg(
            layers=s.image_depth,
            width=s.width,
            head_width=s.width // s.heads,
            patch_size=s.patch,
            image_size=s.image,
        )
        text = CLIPTextCfg(
            context_length=s.text,
            vocab_size=s.vocab,
            width=s.width,
            heads=s.heads,
            layers=s.text_depth,
        )
        model = Model(s.width, vision, text, output_dict=True).to(self.device)
        self.pair_loss = open_clip.ClipLoss()
        self.images = torch.randn(s.batch, 3, s.image, s.image, device=self.device)
        self.text = torch.randint(1, s.vocab - 1, (s.batch, s.text), device=self.device)
        self.text[:, -1] = s.vocab - 1  # the end of text
        self.optimise(list(model.parameters()), betas=(0.9, 0.98))
        network = torchvision.models.mobilenet_v2(weights=None).to(self.device).eval()
        self.pictures = torch.randint(
            0, 256, (s.features, s.image, s.image, 3), dtype=torch.uint8, device=self.device
        )

        def features(images):
            """As ours: bicubic with antialias to 96 pixels, ImageNet's mean and deviation."""
            x = images.permute(0, 3, 1, 2).float()
            x = torch.nn.functional.interpolate(x, (96, 96), mode="bicubic", antialias=True)
            mean = x.new_tensor([0.485, 0.456, 0.406])[:, None, None]
            std = x.new_tensor([0.229, 0.224, 0.225])[:, None, None]
            x = (x.round().clip(0, 255) / 255 - mean) / std
            return network.features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))

        def embed(images):
            x = images.permute(0, 3, 1, 2).float() / 255
            return model.encode_image((x - 0.45) / 0.27, normalize=True)

        network = network.to(memory_format=torch.channels_last)
        together = torch.compile if args.side == "compile" else lambda function: function
        self.model, self._features, self._embed = map(together, (model, features, embed))

    def loss(self):
        out = self.model(self.images, self.text)
        return self.pair_loss(out["image_features"], out["text_features"], out["logit_scale"])

    def embed(self):
        with torch.no_grad(), self.precision():
            return float(self._embed(self.pictures).mean())

    def features(self):
        with torch.no_grad():  # float32 on both sides, as a score's features are
            return float(self._features(self.pictures).mean())
