"""Two attacks: projected gradient descent, and a word written on the picture.

Axis letters: B images, H W pixels, C classes.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmx.data import scene_draw

_INK = 29  # grey level of the letters, as on the signs of scenes
_STEP = 2.5  # of eps / steps, as arXiv 1706.06083's authors' MNIST and CIFAR attacks have it


def margin(logits_BC: jax.Array, label_B: jax.Array) -> jax.Array:
    """By how much the best wrong class leads the right one, [B]: above 0 the answer is wrong.

    What is raised by the attack, not the cross entropy: with logits of a scale of 100 a softmax is
    1 to the last bit and has no gradient, and a model would look robust for that alone
    (arXiv 1608.04644 sec. IV and its objective f6).
    """
    is_own_BC = jnp.arange(logits_BC.shape[1]) == label_B[:, None]
    own_B = jnp.where(is_own_BC, logits_BC, -jnp.inf).max(1)
    return jnp.where(is_own_BC, -jnp.inf, logits_BC).max(1) - own_B


@partial(jax.jit, static_argnames=("score", "steps"))
def pgd(
    score: Callable,
    weights,
    image_BHWC: jax.Array,
    label_B: jax.Array,
    eps: float,
    start_BHWC: jax.Array,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Projected gradient ascent in the L-inf ball (arXiv 1706.06083 eq. 2.1).

    Args:
      score: (weights, image float32 [B, H, W, 3] in 0..255, label [B]) -> [B], what is raised; of
        each image by itself.
      image_BHWC: float32, 0..255. What is found stays in that range, and is not rounded.
      eps: in grey levels of 255.
      start_BHWC: in -1..1, where in the ball to start: 0 is the image itself.
      steps: of eps * 2.5 / steps each.

    Returns:
      (the image of the highest score on the way, the start and the end among them; that score [B]).
    """
    low, high = jnp.maximum(image_BHWC - eps, 0.0), jnp.minimum(image_BHWC + eps, 255.0)

    def with_score(x):
        values_B, pull = jax.vjp(lambda y: score(weights, y, label_B), x)
        return values_B, pull(jnp.ones_like(values_B))[0]

    def keep(best, x, values_B):
        better_B = values_B > best[1]
        return jnp.where(better_B[:, None, None, None], x, best[0]), jnp.maximum(values_B, best[1])

    def step(carry, _):
        x, best = carry
        values_B, slope = with_score(x)
        best = keep(best, x, values_B)
        return (jnp.clip(x + _STEP * eps / steps * jnp.sign(slope), low, high), best), None

    x = jnp.clip(image_BHWC + eps * start_BHWC, low, high)
    best = x, jnp.full(len(x), -jnp.inf)
    (x, best), _ = jax.lax.scan(step, (x, best), None, length=steps)
    return keep(best, x, score(weights, x, label_B))


def darkness(word: str, pixels: int) -> np.ndarray:
    """A word in the capitals of the scenes' signs, cell beside cell: float [h, w], 1 is ink.

    Args:
      pixels: side of the scene whose sign has letters of that size.
    """
    return np.concatenate([scene_draw.letter(c, pixels) for c in word.upper()], axis=1)


def scrambled(dark_hw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same ink without letters: its squares, a fifth of a letter high, in another order."""
    side = dark_hw.shape[0] // 5
    h, w = (length // side for length in dark_hw.shape)
    blocks = dark_hw.reshape(h, side, w, side).swapaxes(1, 2).reshape(h * w, side, side)
    blocks = blocks[rng.permutation(h * w)]
    return blocks.reshape(h, w, side, side).swapaxes(1, 2).reshape(dark_hw.shape)


def write(image: np.ndarray, dark_hw: np.ndarray) -> np.ndarray:
    """The picture with a white strip near its lower edge, and ink on it.

    Args:
      image: uint8 [H, W, 3].
      dark_hw: of `darkness` or `scrambled`.
    """
    (height, width), (h, w) = image.shape[:2], dark_hw.shape
    y, x = height - h - 2, (width - w) // 2
    image = image.copy()
    image[y - 1 : y + h + 1, x - 1 : x + w + 1] = 255
    paper = np.floor(255 - dark_hw * (255 - _INK) + 0.5).astype(np.uint8)
    image[y : y + h, x : x + w] = paper[..., None]
    return image
