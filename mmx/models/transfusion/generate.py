"""Rows that write text and draw images in turn (arXiv 2408.11039 sec. 3.4).

Each row is in one of three modes. Rows in text mode get one token at a time, all of them together;
when none is left, all rows that asked for an image get theirs in one diffusion loop. Keys and
values of what is finished are kept. The patches in the loop read them and one another, and are not
kept; when the image is done, its clean patches are run once more at time 0, as every image that
lies in a prompt, and kept.

The unconditional model is the image by itself, from its marker on: what training leaves of a
document whose text is dropped.

Axis letters: B rows, L places of a row, T positions of a piece, S patches of an image, M images,
h w latent grid, Z latent channels, V vocabulary, D width.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmx.core.errors import UserError, choose
from mmx.models.transfusion.loss import Process, as_read
from mmx.models.transfusion.model import TransfusionModel
from mmx.models.transfusion.rows import Markers
from mmx.nn.cache import Cache, empty_cache, run_piece, write
from mmx.nn.decoder import Layout
from mmx.ops.diffusion.guidance import guide
from mmx.ops.diffusion.predictions import to_x0
from mmx.ops.diffusion.solvers import GRIDS, SOLVERS, solve
from mmx.ops.spans import Bounds, bounds_of

TEXT, IMAGE, DONE = range(3)
_PLACES = 64  # ours: steps of a cache's size


@dataclass(frozen=True)
class GenerateOptions:
    """How to go on with a row; the defaults of a run are its ``config.sample``.

    Attributes:
      steps: of the diffusion.
      solver: of :data:`mmx.ops.diffusion.solvers.SOLVERS`.
      guidance: w in uncond + w (cond - uncond); 1 runs the conditional model alone.
      grid: of the times, of :data:`mmx.ops.diffusion.solvers.GRIDS`.
      guidance_interval, guidance_rescale: of :func:`mmx.ops.diffusion.guidance.guide`.
      temperature: of the text's logits; 0 takes the most likely token.
      images: the most that a row draws; at 0 it writes text alone.
      text: the most tokens that a row writes between two images.
    """

    steps: int
    solver: str
    guidance: float
    temperature: float
    images: int
    text: int
    grid: str = "trailing"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0

    @classmethod
    def of(cls, config, **changes) -> "GenerateOptions":
        """Of ``config.sample``, with the changes that are not None.

        Raises:
          UserError: a value out of range, named ``config.sample.steps`` or, of a change, ``steps``.
        """
        base = cls(
            **{f.name: config.sample[f.name] for f in fields(cls) if f.name in config.sample}
        )
        base._check("config.sample.")
        options = replace(base, **{k: v for k, v in changes.items() if v is not None})
        options._check("")
        return options

    def _check(self, prefix: str) -> None:
        if self.steps < 1:
            raise UserError(f"{prefix}steps={self.steps}: at least one step is needed")
        for name in ("guidance", "temperature", "images", "text"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"{prefix}{name}={value}: give a finite number of 0 or more")
        choose(f"{prefix}solver", SOLVERS, self.solver)
        choose(f"{prefix}grid", GRIDS, self.grid)
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(
                f"{prefix}guidance_rescale={self.guidance_rescale}: give a share from 0 to 1"
            )
        times = (0, *self.guidance_interval, 1)
        if len(times) != 4 or sorted(times) != list(times):
            raise UserError(
                f"{prefix}guidance_interval={self.guidance_interval}: give two rising times, of 0, "
                "clean, to 1, noise"
            )


class Row(NamedTuple):
    """The state of the rows.

    Attributes:
      cache: of what is finished.
      logits: of the next token, float32 [B, V].
      mode: int32 [B].
      wrote: int32 [B], tokens since the prompt or the last image.
      drew: int32 [B], images so far.
      tokens: int32 [B, L], finished ids, with ``eos`` where patches are.
      image: int32 [B, L], which drawn image a place is a patch of; -1: none.
      x: the drawn latents, float32 [B, M, h, w, Z].
    """

    cache: Cache
    logits: jax.Array
    mode: jax.Array
    wrote: jax.Array
    drew: jax.Array
    tokens: jax.Array
    image: jax.Array
    x: jax.Array


class Generator(NamedTuple):
    """What does not change while rows are written.

    Attributes:
      model: the network; params: its parameters.
      process: of the diffusion.
      markers: ids.
      grid: h = w; S follows with the patch.
      options: how.
    """

    model: TransfusionModel
    params: Any
    process: Process
    markers: Markers
    grid: int
    options: GenerateOptions

    def places(self, prompt: int) -> int:
        """Of a cache that holds a prompt of so many tokens and all that may follow: a multiple of
        64, so that few lengths are compiled."""
        images = self.options.images
        most = prompt + images * (self.patches + 2) + (images + 1) * self.options.text
        return -(-most // _PLACES) * _PLACES

    @property
    def patches(self) -> int:
        """S."""
        return (self.grid // self.model.patches.patch) ** 2

    def apply(self, *args, method: str):
        return self.model.apply({"params": self.params}, *args, method=method)

    def piece(self, x_BTD, start_B, bounds: Bounds, cache: Cache | None, patch_BQ):
        """A piece that begins at ``start_B`` -> (hidden [B, T, D], keys, values)."""
        T = x_BTD.shape[1]
        layout = Layout(start_B[:, None] + jnp.arange(T), bounds, patch_BQ)
        decoder = self.model.decoder
        x_BTD, k, v = run_piece(decoder, self.params["decoder"], x_BTD, layout, cache)
        return self.apply(x_BTD, method="norm"), k, v


def start(
    g: Generator,
    tokens_BL: jax.Array,
    image_BL: jax.Array,
    first_BM: jax.Array,
    x_BMhwZ: jax.Array,
    length_B: jax.Array,
    places: int,
    mode_B: jax.Array,
) -> Row:
    """Read the prompts.

    Args:
      g: the generator.
      tokens_BL, image_BL, first_BM: prompts as `rows.pack` writes them, one document a row from
        place 0 on, without its end.
      x_BMhwZ: the clean latents of their images.
      length_B: of the prompts, at least 1.
      places: of the cache, at least L.
      mode_B: ``TEXT``, or ``IMAGE`` for a row that begins with an image whatever it would write.
    """
    B, L = tokens_BL.shape
    patches_BQD, _ = g.apply(x_BMhwZ, jnp.zeros(first_BM.shape), method="embed_patches")
    at_BQ = (first_BM[..., None] + jnp.arange(g.patches)).reshape(B, -1)
    x_BLD = g.apply(tokens_BL, method="embed_text")
    put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))
    x_BLD = put(x_BLD, at_BQ, patches_BQD)
    document_BL = jnp.where(jnp.arange(L) < length_B[:, None], 0, -1)
    bounds = bounds_of(document_BL, image_BL)
    hidden_BLD, k, v = g.piece(x_BLD, jnp.zeros(B, jnp.int32), bounds, None, at_BQ)
    decoder = g.model.decoder
    cache = empty_cache(decoder, B, places, hidden_BLD.shape[-1] // decoder.heads)
    last_B1D = jnp.take_along_axis(hidden_BLD, length_B[:, None, None] - 1, axis=1)
    most = max(g.options.images, 1)
    pad = ((0, 0), (0, places - L))
    return Row(
        cache=write(cache, k, v, length_B),
        logits=g.apply(last_B1D, method="logits")[:, 0],
        # Where no image may be drawn, one that is asked for never comes.
        mode=jnp.where((mode_B == IMAGE) & (g.options.images == 0), DONE, mode_B),
        wrote=jnp.zeros(B, jnp.int32),
        drew=jnp.zeros(B, jnp.int32),
        tokens=jnp.pad(tokens_BL, pad, constant_values=g.markers.eos),
        image=jnp.full((B, places), -1, jnp.int32),
        x=jnp.zeros((B, most, g.grid, g.grid, x_BMhwZ.shape[-1])),
    )


def write_token(g: Generator, row: Row, keys_B: jax.Array) -> Row:
    """One more token for each row in text mode; it may end the row or ask for an image."""
    options, markers = g.options, g.markers
    places = row.tokens.shape[1]
    ids = jnp.arange(row.logits.shape[-1])
    room = row.cache.length_B + g.patches + 2 <= places
    may_draw_B = (row.drew < options.images) & room
    # A text is full: only the end, or an image where one may come.
    full_B = (row.wrote >= options.text) | (row.cache.length_B >= places)
    allowed = ids < markers.bos
    allowed_BV = allowed & (~full_B[:, None] | (ids == markers.eos))
    allowed_BV |= (ids == markers.boi) & may_draw_B[:, None]
    logits_BV = jnp.where(allowed_BV, row.logits, -jnp.inf)
    token_B = jnp.argmax(logits_BV, axis=-1)
    if options.temperature > 0:
        at = jax.vmap(jax.random.fold_in)(keys_B, row.cache.length_B)
        draw = lambda key, logits: jax.random.categorical(key, logits / options.temperature)
        token_B = jax.vmap(draw)(at, logits_BV)
    token_B = token_B.astype(jnp.int32)
    in_text_B = row.mode == TEXT
    kept_B = in_text_B & (token_B != markers.eos) & (token_B != markers.boi)

    mode_B = jnp.where(token_B == markers.boi, IMAGE, jnp.where(kept_B, TEXT, DONE))
    x_B1D = g.apply(token_B[:, None], method="embed_text")
    one = jnp.zeros((len(token_B), 1), jnp.int32)
    hidden_B1D, k, v = g.piece(
        x_B1D, row.cache.length_B, Bounds(one, one + 1), row.cache, _nowhere(one, g.patches)
    )
    count_B = kept_B.astype(jnp.int32)
    rows = jnp.arange(len(token_B))
    at_B = jnp.where(kept_B, row.cache.length_B, places)
    logits_BV = g.apply(hidden_B1D, method="logits")[:, 0]
    return row._replace(
        cache=write(row.cache, k, v, count_B),
        logits=jnp.where(kept_B[:, None], logits_BV, row.logits),
        mode=jnp.where(in_text_B, mode_B, row.mode),
        wrote=row.wrote + count_B,
        tokens=row.tokens.at[rows, at_B].set(token_B, mode="drop"),
    )


def draw_image(g: Generator, row: Row, keys_B: jax.Array) -> Row:
    """An image for each row in image mode, and then its clean patches into the cache."""
    B, S = len(keys_B), g.patches
    shape = row.x.shape[2:]
    marker_B1D = g.apply(jnp.full((B, 1), g.markers.boi), method="embed_text")
    at_BQ = jnp.broadcast_to(1 + jnp.arange(S), (B, S))

    def block(z_BhwZ, t_B, cache, tail_BTD):
        """Marker, patches and what follows -> (hidden, keys, values, what predict needs)."""
        read = as_read(z_BhwZ[:, None], t_B[:, None], g.process)
        patches_BSD, kept = g.apply(read, t_B[:, None], method="embed_patches")
        x_BTD = jnp.concatenate([marker_B1D, patches_BSD, *tail_BTD], axis=1)
        end_T = jnp.array([1] + [S + 1] * S + [S + 2] * len(tail_BTD))
        end_BT = jnp.broadcast_to(end_T, x_BTD.shape[:2])
        bounds = Bounds(jnp.zeros_like(end_BT), end_BT)
        return *g.piece(x_BTD, row.cache.length_B, bounds, cache, at_BQ), kept

    def predict(z_BhwZ, t, cache):
        t_B = jnp.broadcast_to(t, B)
        hidden_BTD, _, _, kept = block(z_BhwZ, t_B, cache, [])
        out = g.apply(hidden_BTD[:, 1:], kept, (B, 1, *shape), method="predict_patches")[:, 0]
        return to_x0(g.process.prediction, g.process.schedule, z_BhwZ, t_B, out)

    if g.options.guidance == 1.0:
        denoise = lambda z, t: predict(z, t, row.cache)
    else:
        both = lambda z, t: (predict(z, t, row.cache), predict(z, t, None))
        of = g.options
        denoise = guide(both, of.guidance, of.guidance_interval, of.guidance_rescale)
    # What a row draws depends on its own key and on how many it drew before.
    keys_B = jax.vmap(lambda key, n: jax.random.fold_in(key, n))(keys_B, row.drew)
    first_B = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys_B)
    rest_B = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys_B)
    schedule = g.process.schedule
    times_R = GRIDS[g.options.grid](schedule, g.options.steps)
    # As far from 0 as a noised latent is at the first of the times: the latents' deviation is 1.
    spread = jnp.hypot(schedule.alpha(times_R[0]), schedule.sigma(times_R[0]))
    z_BhwZ = spread * jax.vmap(lambda key: jax.random.normal(key, shape))(first_B)
    x_BhwZ = solve(denoise, schedule, g.options.solver, times_R, z_BhwZ, rest_B)

    end_B1D = g.apply(jnp.full((B, 1), g.markers.eoi), method="embed_text")
    hidden_BTD, k, v, _ = block(x_BhwZ, jnp.zeros(B), row.cache, [end_B1D])
    drawn_B = row.mode == IMAGE
    rows, places = jnp.arange(B), row.tokens.shape[1]
    count_B = jnp.where(drawn_B, S + 2, 0)
    at_BT = row.cache.length_B[:, None] + jnp.arange(S + 2)
    at_BT = jnp.where(drawn_B[:, None], at_BT, places)
    ids_T = jnp.array([g.markers.boi] + [g.markers.eos] * S + [g.markers.eoi], jnp.int32)
    logits_BV = g.apply(hidden_BTD[:, -1:], method="logits")[:, 0]
    slot_B = jnp.where(drawn_B, row.drew, row.x.shape[1])
    put = lambda x, new: x.at[rows[:, None], at_BT].set(new, mode="drop")
    return row._replace(
        cache=write(row.cache, k, v, count_B),
        logits=jnp.where(drawn_B[:, None], logits_BV, row.logits),
        mode=jnp.where(drawn_B, TEXT, row.mode),
        wrote=jnp.where(drawn_B, 0, row.wrote),
        drew=row.drew + drawn_B,
        tokens=put(row.tokens, ids_T),
        image=put(row.image, jnp.where(ids_T == g.markers.eos, row.drew[:, None], -1)),
        x=row.x.at[rows, slot_B].set(x_BhwZ, mode="drop"),
    )


def finish(g: Generator, row: Row, keys_B: jax.Array) -> Row:
    """Until every row is done: text for all that write, then images for all that wait.

    Args:
      g: the generator.
      row: of :func:`start`.
      keys_B: one a row; with it and its prompt alone a row is what it is.
    """
    fold = lambda name: jax.vmap(lambda key: jax.random.fold_in(key, name))(keys_B)
    text_B, image_B = fold(0), fold(1)

    def one_round(row):
        row = jax.lax.while_loop(
            lambda row: (row.mode == TEXT).any(), lambda row: write_token(g, row, text_B), row
        )
        if g.options.images == 0:
            return row
        draw = lambda row: draw_image(g, row, image_B)
        return jax.lax.cond((row.mode == IMAGE).any(), draw, lambda row: row, row)

    return jax.lax.while_loop(lambda row: (row.mode != DONE).any(), one_round, row)


def _nowhere(like_BT, patches: int):
    """No patch in a piece of text: places beyond its end."""
    return jnp.full((like_BT.shape[0], patches), like_BT.shape[1], jnp.int32)
