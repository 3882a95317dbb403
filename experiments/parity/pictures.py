"""What transformers' image processors (the Pillow ones) make of pictures of awkward sizes."""

import numpy as np

SIZE = 16
SIZES = ((37, 53), (64, 31), (16, 16), (9, 20), (50, 17), (16, 23), (200, 33))


def pictures_golden() -> dict[str, np.ndarray]:
    """``image_I`` uint8, and ``clip_I``, ``siglip_I`` float32 [SIZE, SIZE, 3], normalised."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    square = {"height": SIZE, "width": SIZE}
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=square)
    siglip = SiglipImageProcessorPil(size=square)
    golden = {}
    for i, (height, width) in enumerate(SIZES):
        image = _picture(height, width, np.random.default_rng(i))
        golden[f"image_{i}"] = image
        for name, processor in (("clip", clip), ("siglip", siglip)):
            pixels = processor(image, return_tensors="np")["pixel_values"][0]
            golden[f"{name}_{i}"] = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return golden


def _picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Waves, edges and noise: nothing that a wrong filter or a shift by a pixel would leave."""
    y, x = np.mgrid[:height, :width]
    wave = 128 + 90 * np.sin(x / 3.1 + rng.random() * 6) * np.cos(y / 4.3)
    edge = 200.0 * ((x // 7 + y // 5) % 2)
    noise = rng.uniform(0, 255, (height, width))
    return np.stack([wave, edge, noise], -1).clip(0, 255).astype(np.uint8)
