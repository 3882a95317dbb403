"""The same transformer on text and discrete image tokens (Chameleon, arXiv 2405.09818).

An image is the codes of the tokenizer's grid in raster order, between the same markers, each a
token of one vocabulary with the text: next-token prediction all through, causal all through.

Axis letters: n scenes, B rows, L places of a row, S codes of an image, V vocabulary, E codebook, D
width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scenes import Scenes
from tasks import LatentsTask, groups, joined

from mmx.core import rng as rngs
from mmx.models.transfusion import loss as losses
from mmx.models.transfusion.likelihood import token_nll
from mmx.models.transfusion.rows import NO_LABEL
from mmx.nn.cache import empty_cache, run_piece, write
from mmx.nn.decoder import Decoder, Layout
from mmx.nn.linear import Dense, Embed, round_up
from mmx.ops.spans import Bounds, bounds_of
from mmx.ops.token_loss import chunked_cross_entropy

CODES = 1024  # E


class CodesModel(nn.Module):
    """Embeddings and a head for all tokens, and a decoder between.

    A code has a learned vector of its row and one of its column, as the patches of the other arms.

    Attributes:
      vocab_size: of words, markers and codes.
      decoder: as of :class:`mmx.models.transfusion.model.TransfusionModel`.
      width: D.
      grid: of an image.
    """

    vocab_size: int
    decoder: Decoder
    width: int
    grid: int

    def setup(self):
        rows = round_up(self.vocab_size)
        self.tokens = Embed(rows, self.width)
        self.head = Dense(rows, ("embed", "vocab"))
        sides = (2 * self.grid, self.width)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.5), ("position", "embed"))
        self.places = self.param("places", init, sides, jnp.float32)

    def embed(self, tokens_BL: jax.Array, place_BL: jax.Array) -> jax.Array:
        """Ids and the place of each in its image, -1 for what is no code -> [B, L, D]."""
        row_BL, column_BL = jnp.divmod(jnp.maximum(place_BL, 0), self.grid)
        place_BLD = self.places[row_BL] + self.places[self.grid + column_BL]
        return self.tokens(tokens_BL) + jnp.where(place_BL[..., None] >= 0, place_BLD, 0.0)

    def hidden(self, tokens_BL: jax.Array, place_BL: jax.Array, layout: Layout) -> jax.Array:
        """What the head reads, [B, L, D]."""
        return self.decoder(self.embed(tokens_BL, place_BL), layout)

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, vocab_size]."""
        return self.head(hidden_BLD)[..., : self.vocab_size]

    def norm(self, x_BLD: jax.Array) -> jax.Array:
        """The decoder's final norm, for a caller that runs its blocks itself."""
        return self.decoder.norm(x_BLD)

    def whole(self, *inputs):
        """Every part once, for init."""
        return self.logits(self.hidden(*inputs))


class CodesTask(LatentsTask):
    """Next-token prediction on rows of text and codes.

    The loss is the mean over words plus the mean over codes. A mean over all tokens, as of the
    paper's data, half of whose tokens are text, would count a caption of 6 words 1/40 here.
    """

    gives = "codes"

    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        vocab = self.markers.count + CODES
        self.model = CodesModel(vocab, self.model.decoder, config.model.width, self.grid)
        self._compiled: dict[Any, Any] = {}

    def image_spec(self) -> jax.ShapeDtypeStruct:
        """Of an image."""
        return jax.ShapeDtypeStruct((self.grid, self.grid), jnp.int32)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, {}), every leaf logically named."""
        ids = jnp.zeros((1, 8), jnp.int32)
        args = ids, ids, self.layout(ids, ids - 1, ids[:, :1])
        return self.model.init(rngs.stream(key, "model"), *args, method="whole")["params"], {}

    def layout(self, document_BL, image_BL, first_BM) -> Layout:
        """Of packed rows: no place is a patch."""
        return super().layout(document_BL, jnp.full_like(image_BL, -1), first_BM)

    def tokens(self, batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(ids, places in the image, the next codes or ``NO_LABEL``), int [B, L], of rows."""
        B, L = batch["tokens"].shape
        codes_BS = batch["images"].reshape(B, -1)
        S = codes_BS.shape[1]
        step_BL = jnp.arange(L) - batch["first"][:, :1]
        take = lambda at_BL: jnp.take_along_axis(codes_BS, jnp.clip(at_BL, 0, S - 1), axis=1)
        within = lambda at_BL: (at_BL >= 0) & (at_BL < S)
        ids_BL = jnp.where(within(step_BL), self.markers.count + take(step_BL), batch["tokens"])
        next_BL = self.markers.count + take(step_BL + 1)
        next_BL = jnp.where(within(step_BL + 1), next_BL, NO_LABEL)
        return ids_BL, jnp.where(within(step_BL), step_BL, -1), next_BL

    def hidden(self, params, batch) -> tuple[jax.Array, jax.Array]:
        """(what the head reads [B, L, D], the next codes or ``NO_LABEL`` [B, L]) of rows."""
        ids_BL, place_BL, next_BL = self.tokens(batch)
        layout = self.layout(batch["document"], batch["image"], batch["first"])
        args = ids_BL, place_BL, layout
        return self.model.apply({"params": params}, *args, method="hidden"), next_BL

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(mean of words and markers + mean of codes, in nats, ({}, extra))."""
        del frozen, rng, step, train
        hidden_BLD, next_BL = self.hidden(params, batch)
        weights = [losses.text_weights(labels)[0] for labels in (batch["labels"], next_BL)]
        # No place foretells both.
        labels_BL = jnp.maximum(jnp.maximum(batch["labels"], next_BL), 0)
        kernel, chunk = params["head"]["kernel"], self.config.loss.chunk
        vocab = self.model.vocab_size
        loss = chunked_cross_entropy(hidden_BLD, kernel, labels_BL, sum(weights), vocab, chunk)
        return loss, ({}, extra)

    def rate_rows(self, params, batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(-ln p of the caption, its tokens, mean -ln p of the codes) of each row."""
        hidden_BLD, next_BL = self.hidden(params, batch)
        logits_BLV = self.model.apply({"params": params}, hidden_BLD, method="logits")
        labels_BL = self.caption_labels(batch)
        text_B, image_B = (token_nll(logits_BLV, x).sum(1) for x in (labels_BL, next_BL))
        return text_B, (labels_BL != NO_LABEL).sum(1), image_B / self.patches

    # Sampling

    def draw(self, params, captions, seed: int, guidance: float, top_p: float = 1.0) -> np.ndarray:
        """Codes of captions: int [n, h, w]."""
        parts = []
        for index in groups(len(captions)):
            prompts = [self._prompt(captions[i]) for i in index]
            prompts += [[self.markers.boi]] * len(index)
            keys = rngs.row_keys(rngs.base_key(seed), "sample", np.uint32(index))
            fn = self._jit("draw", self._draw, guidance=guidance, top_p=top_p)
            parts.append(fn(params, *_padded(prompts, self.config.text.max_len + 2), keys))
        return joined(parts, len(captions)).reshape(-1, self.grid, self.grid)

    def describe(self, params, scenes: Scenes) -> list[str]:
        """The likeliest next tokens after each image, one by one: n captions."""
        parts = []
        for index in groups(len(scenes)):
            fn = self._jit("describe", self._describe)
            parts.append(fn(params, *self._image_first(scenes.codes[index])))
        ids = joined(parts, len(scenes))
        return [self.tokenizer.decode(row) for row in ids]

    def _jit(self, name: str, fn, **settings):
        key = name, *sorted(settings.items())
        if key not in self._compiled:
            self._compiled[key] = jax.jit(functools.partial(fn, **settings))
        return self._compiled[key]

    def _prompt(self, caption: str) -> list[int]:
        return [self.markers.bos, *self._encode_prompt(caption), self.markers.boi]

    def _image_first(self, codes_Bhw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = (self.markers.count + codes_Bhw.reshape(len(codes_Bhw), -1)).tolist()
        markers = self.markers
        prompts = [[markers.bos, markers.boi, *row, markers.eoi] for row in ids]
        return _padded(prompts, self.patches + 3)

    def _draw(self, params, ids_RL, length_R, keys_B, guidance: float, top_p: float) -> jax.Array:
        """Rows with a caption, and as many without -> codes [B, S]."""

        def step(state, place):
            cache, logits_RV = state
            with_BE, without_BE = jnp.split(logits_RV[:, self.markers.count :], 2)
            logits_BE = without_BE + guidance * (with_BE - without_BE)
            at_B = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys_B)
            code_B = jax.vmap(jax.random.categorical)(at_B, nucleus(logits_BE, top_p))
            token_R = self.markers.count + jnp.concatenate([code_B, code_B])
            return self._go_on(params, cache, token_R, place), code_B

        state = self._read(params, ids_RL, length_R, self.patches)
        _, codes_SB = jax.lax.scan(step, state, jnp.arange(self.patches))
        return codes_SB.T

    def _describe(self, params, ids_BL, length_B) -> jax.Array:
        """Rows that end with an image -> ids of words."""

        def step(state, _):
            cache, logits_BV = state
            token_B = logits_BV[:, : self.markers.bos].argmax(1)
            return self._go_on(params, cache, token_B, -1), token_B

        words = self.config.text.max_len
        state = self._read(params, ids_BL, length_B, words)
        return jax.lax.scan(step, state, None, length=words)[1].T

    def _read(self, params, ids_BL, length_B, more: int):
        """Prompts -> (cache with room for more, logits of the next token [B, V])."""
        L = ids_BL.shape[1]
        document_BL = jnp.where(jnp.arange(L) < length_B[:, None], 0, -1)
        bounds = bounds_of(document_BL, jnp.full_like(ids_BL, -1))
        is_code_BL = ids_BL >= self.markers.count
        place_BL = jnp.where(is_code_BL, jnp.cumsum(is_code_BL, axis=1) - 1, -1)
        start_B = jnp.zeros_like(length_B)
        hidden_BLD, k, v = self._piece(params, ids_BL, place_BL, start_B, bounds, None)
        decoder = self.model.decoder
        head_size = self.model.width // decoder.heads
        cache = empty_cache(decoder, len(ids_BL), L + more, head_size)
        last_B1D = jnp.take_along_axis(hidden_BLD, length_B[:, None, None] - 1, axis=1)
        return write(cache, k, v, length_B), self._logits(params, last_B1D)

    def _go_on(self, params, cache, token_B, place):
        """One more token in each row -> (cache, logits of the next one)."""
        one_B1 = jnp.ones((len(token_B), 1), jnp.int32)
        args = token_B[:, None], place * one_B1, cache.length_B, Bounds(one_B1 - 1, one_B1), cache
        hidden_B1D, k, v = self._piece(params, *args)
        return write(cache, k, v, one_B1[:, 0]), self._logits(params, hidden_B1D)

    def _piece(self, params, ids_BL, place_BL, start_B, bounds, cache):
        apply = functools.partial(self.model.apply, {"params": params})
        layout = Layout(start_B[:, None] + jnp.arange(ids_BL.shape[1]), bounds)
        x_BLD = apply(ids_BL, place_BL, method="embed")
        x_BLD, k, v = run_piece(self.model.decoder, params["decoder"], x_BLD, layout, cache)
        return apply(x_BLD, method="norm"), k, v

    def _logits(self, params, hidden_B1D):
        return self.model.apply({"params": params}, hidden_B1D, method="logits")[:, 0]


def nucleus(logits_BE: jax.Array, top_p: float) -> jax.Array:
    """The logits of the fewest likeliest codes that hold ``top_p`` together (arXiv 1904.09751
    sec. 3.1), -inf for the others."""
    sorted_BE = -jnp.sort(-logits_BE, axis=1)
    p_BE = jax.nn.softmax(sorted_BE, axis=1)
    before_BE = jnp.cumsum(p_BE, axis=1) - p_BE  # of all that is likelier
    least_B1 = jnp.where(before_BE < top_p, sorted_BE, jnp.inf).min(1, keepdims=True)
    return jnp.where(logits_BE >= least_B1, logits_BE, -jnp.inf)


def _padded(prompts: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [B, L], lengths [B])."""
    ids = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(ids, prompts):
        row[: len(prompt)] = prompt
    return ids, np.array([len(prompt) for prompt in prompts], np.int32)
