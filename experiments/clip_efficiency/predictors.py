"""The two models that predict text from an image: a caption word by word, or a bag of its words.

Both have the image tower of the contrastive one (`mmx.models.clip.model`). What they give is the
log probability of a text, by which candidates are compared.
Axis letters: B batch, H W pixels, L image tokens, T text tokens, D width, V vocabulary (padded).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.data.text import EOS_ID, PAD_ID
from mmx.nn.decoder import Kernel
from mmx.nn.encoder import Mlp, MultiHeadAttention
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import LayerNorm
from mmx.nn.remat import scan_layers
from mmx.nn.vit import VisionTransformer

EPS = 1e-5
RARE = -4.0  # ours: the log odds of any word at the start; most words are in few captions


class CaptionBlock(nn.Module):
    """Causal self-attention, attention to the image and MLP, each pre-normed and residual."""

    heads: int
    mlp: int
    activation: str
    out_std: float

    @nn.compact
    def __call__(self, x_BTD, image_BLD):
        """Shaped for ``nn.scan``: returns (x, None)."""
        norm = lambda name: LayerNorm(eps=EPS, use_bias=True, name=name)
        attention = lambda name, causal: MultiHeadAttention(
            self.heads, causal=causal, out_std=self.out_std, name=name
        )
        x_BTD += attention("self_attention", True)(norm("self_norm")(x_BTD))
        x_BTD += attention("image_attention", False)(norm("image_norm")(x_BTD), image_BLD)
        mlp = Mlp(self.mlp, self.activation, out_std=self.out_std, name="mlp")
        return x_BTD + mlp(norm("mlp_norm")(x_BTD)), None


class Captioner(nn.Module):
    """p(caption | image): a causal transformer that attends to the image's tokens in each block.

    The form of VirTex (arXiv 2006.06666), which CLIP's caption baseline follows (arXiv 2103.00020
    sec. 2.3), with one direction of reading.

    Attributes:
      tower: image -> [B, L, D].
      vocab_size: ids lie in [0, vocab_size).
      max_len: T.
      width, depth, heads, mlp, activation: of the blocks.
    """

    tower: VisionTransformer
    vocab_size: int
    max_len: int
    width: int
    depth: int
    heads: int
    mlp: int
    activation: str

    def setup(self):
        rows = round_up(self.vocab_size)
        self.tokens = Embed(rows, self.width, std=0.02)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.01), ("position", "embed"))
        self.positions = self.param("positions", init, (self.max_len, self.width), jnp.float32)
        # CLIP's code: what a branch adds shrinks with the number of branches.
        out_std = self.width**-0.5 * (3 * self.depth) ** -0.5
        self.blocks = scan_layers(CaptionBlock, self.depth, "none")(
            self.heads, self.mlp, self.activation, out_std
        )
        self.final_norm = LayerNorm(eps=EPS, use_bias=True)
        init = nn.initializers.normal(self.width**-0.5)
        self.head = Kernel(("embed", "vocab"), init)

    def __call__(self, image_BHWC: jax.Array, text_ids_BT: jax.Array):
        """float32 [B, H, W, 3] in [-1, 1] and ids -> as :meth:`decode`."""
        return self.decode(self.look(image_BHWC), text_ids_BT)

    def look(self, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> [B, L, D]."""
        return self.tower(image_BHWC)

    def decode(self, image_BLD: jax.Array, text_ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What :func:`mmx.ops.token_loss.chunked_cross_entropy` takes.

        Args:
          image_BLD: of :meth:`look`.
          text_ids_BT: int [B, T], end of text and padding after it.

        Returns:
          (hidden states [B, T, D], state t of the tokens before t; kernel of the head [D, V]).
        """
        # Padding comes after all that counts, so that its id is free to stand for the start.
        before_BT = jnp.pad(text_ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
        x_BTD, _ = self.blocks(self.tokens(before_BT) + self.positions, image_BLD)
        return self.final_norm(x_BTD), self.head(self.width, round_up(self.vocab_size))


def token_log_probs(hidden_BTD, head_DV, text_ids_BT, vocab_size: int) -> jax.Array:
    """log p of each token after those before it and the image, float32 [B, T]."""
    logits_BTV = (hidden_BTD @ head_DV)[..., :vocab_size]
    logs_BTV = jax.nn.log_softmax(logits_BTV)
    return jnp.take_along_axis(logs_BTV, text_ids_BT[..., None], axis=-1)[..., 0]


def counted(text_ids_BT: jax.Array) -> jax.Array:
    """True on a text and its end, bool [B, T]; no text holds the id of padding."""
    return text_ids_BT != PAD_ID


class Bag(nn.Module):
    """Whether each word of the vocabulary is in the caption, all independent given the image.

    CLIP's second baseline (arXiv 2103.00020 fig. 2). The paper it names (Joulin et al., arXiv
    1511.02251) spreads one softmax over the words; here each word has a probability of its own,
    so that candidates of different length are compared by what they leave out, too.

    Attributes:
      tower: image -> [B, D].
      vocab_size: V here, unpadded.
    """

    tower: VisionTransformer
    vocab_size: int

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, text_ids_BT: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> the log odds of each word, [B, V]."""
        del text_ids_BT
        odds_BV = Dense(round_up(self.vocab_size), ("embed", "vocab"), True, name="head")(
            self.tower(image_BHWC)
        )
        return RARE + odds_BV[:, : self.vocab_size]


def bag_of(text_ids_BT: jax.Array, vocab_size: int) -> jax.Array:
    """Which ids are in a text, bool [B, V]; padding and the end are no words."""
    there_BV = (text_ids_BT[:, :, None] == jnp.arange(vocab_size)).any(1)
    return there_BV & ~jnp.isin(jnp.arange(vocab_size), jnp.array([PAD_ID, EOS_ID]))


def bag_log_prob(odds_BV: jax.Array, bag_BV: jax.Array) -> jax.Array:
    """log p of a bag, [B]: of all its words being there and of all others not."""
    words_V = ~jnp.isin(jnp.arange(odds_BV.shape[-1]), jnp.array([PAD_ID, EOS_ID]))
    return (jax.nn.log_sigmoid(jnp.where(bag_BV, odds_BV, -odds_BV)) * words_V).sum(-1)
