"""Images as numbers: 8-bit conversion, PSNR, use of a codebook, spread of continuous latents.

B batch, H W pixels, C channels, E codebook entries, S tokens of an image, Z latent width.
"""

import numpy as np

from mmx.eval import stats

MAX_PSNR = 100.0  # ours: what equal images count as, so that a mean stays finite


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Image in [-1, 1] -> uint8 0..255: clipped, then floor(127.5 x + 128), halves rounded up.

    The inverse of `from_uint8` for all 256 levels. Raises ValueError on a value that is not finite:
    what a cast makes of it depends on the machine.
    """
    image = np.asarray(image, np.float32)
    if not np.isfinite(image).all():
        raise ValueError(f"{(~np.isfinite(image)).sum()} values of the image are not finite")
    return np.floor(np.clip(image, -1, 1) * 127.5 + 128).clip(0, 255).astype(np.uint8)


def from_uint8(image_u8: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 in [-1, 1]: x / 127.5 - 1."""
    image_u8 = np.asarray(image_u8)
    if image_u8.dtype != np.uint8:
        raise ValueError(f"expected uint8, got {image_u8.dtype}")
    image = image_u8.astype(np.float32)  # never float64: that would be eight times the image
    image *= 2
    image -= 255
    image /= 255  # whole numbers so far: rounded once, here
    return image


def as_float(images: np.ndarray) -> np.ndarray:
    """uint8 images, or float ones in [-1, 1] (clipped there), as float32 in [-1, 1]."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return from_uint8(images)
    return np.clip(np.asarray(images, np.float32), -1, 1)


def as_uint8(images: np.ndarray) -> np.ndarray:
    """uint8 images as they are, float ones in [-1, 1] through `to_uint8`."""
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else to_uint8(images)


def finite(image: np.ndarray) -> np.ndarray:
    """An image in [-1, 1] of a model that may be broken: grey for nan, the ends for infinities."""
    return np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=-1.0)


def psnr(images_BHWC: np.ndarray, recon_BHWC: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, [B]: 10 log10(4 / mse), peak 2.

    Works in float64: give a batch at a time. A mean over images is a mean of these, not the PSNR of
    the mean error.

    Both [B, H, W, C], uint8 or float in [-1, 1]; values beyond are clipped, as a viewer would, but
    not rounded to 8 bits. At most `MAX_PSNR`; nan where an image is not finite.
    """
    images, recon = np.asarray(images_BHWC), np.asarray(recon_BHWC)
    if images.shape != recon.shape or images.ndim != 4:
        raise ValueError(f"psnr needs two batches [B, H, W, C], got {images.shape}, {recon.shape}")
    error = as_float(images).astype(np.float64) - as_float(recon)
    mse_B = (error**2).mean((1, 2, 3))
    return 10 * np.log10(4 / np.maximum(mse_B, 4 * 10 ** (-MAX_PSNR / 10)))


def perplexity(counts_E: np.ndarray) -> float:
    """exp of the entropy (nats) of the codes' frequencies, in [1, E]."""
    counts_E = np.asarray(counts_E, np.float64)
    if counts_E.ndim != 1 or counts_E.min(initial=0) < 0 or not counts_E.sum() > 0:
        raise ValueError("perplexity needs counts [E] >= 0 that are not all 0")
    p_E = counts_E[counts_E > 0] / counts_E.sum()
    return float(np.exp(-(p_E * np.log(p_E)).sum()))


def codebook_use(codes: np.ndarray, num_codes: int) -> tuple[stats.Score, stats.Score]:
    """(share of the codebook used at least once, perplexity) over a set of images.

    Args:
      codes: int [B, ...], the codes of B images, each in [0, num_codes).
    Intervals: delete-one-image jackknife, and they speak of sets of B images: a larger set uses
    more codes. Of one image they are all that is possible. Raises ValueError on a code outside the
    codebook.
    """
    codes_BS = np.asarray(codes).reshape(len(codes), -1)
    if codes_BS.min() < 0 or codes_BS.max() >= num_codes:
        raise ValueError(f"codes must be in [0, {num_codes})")
    counts_E = np.bincount(codes_BS.ravel(), minlength=num_codes)
    used = int((counts_E > 0).sum())
    if len(codes_BS) == 1:
        return (
            stats.Score(used / num_codes, 0.0, 1.0, 1),
            stats.Score(perplexity(counts_E), 1.0, float(num_codes), 1),
        )
    use, spread = [], []
    for codes_S in codes_BS:
        ids, times = np.unique(codes_S, return_counts=True)
        use.append((used - int((counts_E[ids] == times).sum())) / num_codes)
        rest_E = counts_E.copy()
        rest_E[ids] -= times
        spread.append(perplexity(rest_E) if rest_E.any() else np.nan)
    return (
        stats.jackknife(used / num_codes, np.array(use), 0.0, 1.0),
        stats.jackknife(perplexity(counts_E), np.array(spread), 1.0, float(num_codes)),
    )


def latent_spread(mean_BZ: np.ndarray, square_BZ: np.ndarray) -> dict[str, stats.Score]:
    """How far latents are from a standard deviation of 1 a channel.

    Args:
      mean_BZ, square_BZ: of each of B images, the mean of its latents and of their squares.

    Returns:
      "latent_std": root of the mean variance of the channels; "latent_std_lowest",
      "latent_std_highest": of the channel that varies least, and of that which does most.
      Intervals: delete-one-image jackknife. Of one image they are all that is possible.
    """

    def std(mean_Z, square_Z):
        return np.sqrt(np.maximum(square_Z - mean_Z**2, 0))

    B = len(mean_BZ)
    means_BZ = np.stack([mean_BZ, square_BZ]).astype(np.float64)
    std_Z = std(*means_BZ.mean(1))
    if B > 1:
        without_BZ = std(*((means_BZ.sum(1, keepdims=True) - means_BZ) / (B - 1)))
    root = lambda std_Z: np.sqrt(np.square(std_Z).mean(-1))
    lowest, highest = std_Z.argmin(), std_Z.argmax()
    parts = {
        "latent_std": root,
        "latent_std_lowest": lambda std_Z: std_Z[..., lowest],
        "latent_std_highest": lambda std_Z: std_Z[..., highest],
    }
    return {
        name: stats.Score(float(of(std_Z)), 0.0, np.inf, 1)
        if B == 1
        else stats.jackknife(float(of(std_Z)), of(without_BZ), 0.0, np.inf)
        for name, of in parts.items()
    }


def ssim(images_BHWC: np.ndarray, recon_BHWC: np.ndarray) -> np.ndarray:
    """Structural similarity of each image, [B], at most 1: 1 for equal images.

    A gaussian window of 11 x 11 pixels, sigma 1.5, constants (0.01, 0.03) of the range; the mean is
    over windows that lie inside the image, then over channels. float64.

    Both [B, H, W, C] with sides of 11 pixels or more, uint8 or float in [-1, 1]; values beyond are
    clipped.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13.
    """
    images, recon = np.asarray(images_BHWC), np.asarray(recon_BHWC)
    if images.shape != recon.shape or images.ndim != 4 or min(images.shape[1:3]) < _WINDOW:
        raise ValueError(
            f"ssim needs two batches [B, H, W, C] of {_WINDOW} pixels or more, got {images.shape}, "
            f"{recon.shape}"
        )
    # From 0 upwards: the term of the means is no function of differences.
    x, y = (as_float(z).astype(np.float64) + 1 for z in (images, recon))
    rows, columns = _windows(images.shape[1]), _windows(images.shape[2])
    mean = lambda z: np.einsum("ah,bhwc,ew->baec", rows, z, columns, optimize=True)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = ((k * 2) ** 2 for k in (0.01, 0.03))  # the range of [-1, 1] is 2
    top, bottom = (2 * mx * my + c1) * (2 * cov + c2), (mx**2 + my**2 + c1) * (vx + vy + c2)
    return (top / bottom).mean((1, 2, 3))


_WINDOW = 11


def _windows(size: int) -> np.ndarray:
    """[size - 10, size]: each row one place of the window along one side."""
    weights = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / 1.5) ** 2)
    out = np.zeros((size - _WINDOW + 1, size))
    for i in range(len(out)):
        out[i, i : i + _WINDOW] = weights / weights.sum()
    return out
