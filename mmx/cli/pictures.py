"""What a run of any family makes pictures of: prompts that it draws, or images that it rebuilds."""

from typing import TYPE_CHECKING

from mmx.models import registry

if TYPE_CHECKING:
    import numpy as np

    from mmx.cli.run import Run

DRAWS, REBUILDS, NONE = "draws from prompts", "rebuilds images", "has scores alone"


def kind(config) -> str:
    """DRAWS, REBUILDS or NONE (videos too: PSNR is among their scores, but a page stands still).

    Raises UserError for an unknown family."""
    registry.check_family(config)
    if "sample" in config:
        return DRAWS
    return REBUILDS if registry.rebuilds(config) else NONE


def rebuilt(opened: "Run", image_u8: "np.ndarray") -> "np.ndarray":
    """uint8 [n, H, W, 3] through an image tokenizer -> uint8 of the same shape."""
    from mmx.eval.images import finite, to_uint8

    return to_uint8(finite(opened.task.rebuild(opened, image_u8)))
