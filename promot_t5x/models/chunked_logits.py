"""What a loss needs of each token's logits, computed without ever holding the logits of the whole vocabulary.

For mT5 the logits of one batch are the largest array of a training step by far (64 x 128 tokens x 250,112 words in
float32 are 8.2 GB), and a loss only needs a handful of numbers per token. They are accumulated over chunks of the
vocabulary; the backward pass computes each chunk's logits again, one matrix product more than the plain computation.

Dimensions: B batch, U decoder tokens, D embed, V vocabulary, M pieces that the mesh cuts the vocabulary into, W words
of one piece (V = M * W), C words of one chunk of a piece.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jax.custom_derivatives import SymbolicZero

_CHUNK = 8192  # words of a piece whose logits are held at once, at most


class TokenStatistics(NamedTuple):
    """Per token, float32, of shape BxU.

    Attributes:
      log_z: log sum_v exp(logit_v).
      target: the target's logit.
      total: sum_v logit_v.
      largest: max_v logit_v; carries no gradient.
    """

    log_z: jax.Array
    target: jax.Array
    total: jax.Array
    largest: jax.Array


def chunk_width(words: int, most: int = _CHUNK) -> int:
    """Words of one chunk: as few chunks as `most` allows, or up to twice as many if they then divide the words.

    >>> chunk_width(250112), chunk_width(37), chunk_width(8209)
    (7816, 37, 4105)
    """
    fewest = math.ceil(words / most)
    chunks = next((n for n in range(fewest, 2 * fewest + 1) if words % n == 0), fewest)
    return math.ceil(words / chunks)


def token_statistics(
    hidden_BxUxD: jax.Array, matrix: jax.Array, targets_BxU: jax.Array, *, vocab_axis: int = 1, pieces: int = 1
) -> TokenStatistics:
    """Statistics of the float32 logits `hidden @ matrix`; differentiable with respect to hidden and matrix.

    Args:
      hidden_BxUxD: the decoder's output, any float dtype.
      matrix: DxV (vocab_axis 1), or VxD (vocab_axis 0), such as an embedding that the output shares.
      targets_BxU: token ids in [0, V).
      vocab_axis: where `matrix` has its vocabulary.
      pieces: M, into how many the mesh cuts the vocabulary; every device goes through the chunks of its own piece.

    >>> statistics = token_statistics(jnp.zeros((1, 2, 3)), jnp.ones((3, 5)), jnp.array([[4, 0]]))
    >>> print(f"{statistics.log_z[0, 1]:.4f} {statistics.target[0, 0]:.1f}")
    1.6094 0.0
    """
    vocab_size = matrix.shape[vocab_axis]
    if vocab_size % pieces:
        raise ValueError(f"A vocabulary of {vocab_size} does not divide into {pieces} pieces.")
    chunks = _Chunks(vocab_axis, pieces, vocab_size // pieces, chunk_width(vocab_size // pieces))
    statistics: Any = _statistics(chunks, hidden_BxUxD.astype(jnp.float32), matrix, targets_BxU)
    return TokenStatistics(*statistics[:4])


class _Chunks(NamedTuple):
    """How the vocabulary is traversed: chunk i of every piece at the same time."""

    vocab_axis: int
    pieces: int
    words: int  # W
    width: int  # C

    @property
    def count(self) -> int:
        return math.ceil(self.words / self.width)

    @property
    def word_axis(self) -> int:
        """Where `split` has the words of a piece."""
        return self.vocab_axis + (self.pieces > 1)

    def split(self, matrix: jax.Array) -> jax.Array:
        """DxMxW or MxWxD: pieces stay where they are on the mesh; one piece is the matrix as it is, not a copy."""
        a = self.vocab_axis
        if self.pieces == 1:
            return with_logical_constraint(matrix, ("embed", "vocab") if a else ("vocab", "embed"))
        shape = (*matrix.shape[:a], self.pieces, self.words, *matrix.shape[a + 1 :])
        axes = ("embed", "vocab", None) if a else ("vocab", None, "embed")
        return with_logical_constraint(matrix.reshape(shape), axes)

    def start(self, i: jax.Array) -> jax.Array:
        """The first word of chunk i; the last chunk overlaps the one before where the width does not divide."""
        return jnp.minimum(i * self.width, self.words - self.width)

    def of(self, split: jax.Array, i: jax.Array) -> jax.Array:
        """Chunk i of the matrix, DxMxC in float32, whole along the embed axis."""
        chunk = jax.lax.dynamic_slice_in_dim(split, self.start(i), self.width, axis=self.word_axis)
        if self.pieces == 1:
            chunk = jnp.expand_dims(chunk, self.vocab_axis)
        chunk_DxMxC = chunk if self.vocab_axis else jnp.moveaxis(chunk, -1, 0)
        # First sharded, then whole: this makes XLA gather the chunk. With the second alone it gathers all of `split`.
        chunk_DxMxC = with_logical_constraint(chunk_DxMxC, ("embed", "vocab", None))
        return with_logical_constraint(chunk_DxMxC, (None, "vocab", None)).astype(jnp.float32)

    def with_chunk(self, split: jax.Array, chunk_DxMxC: jax.Array, i: jax.Array) -> jax.Array:
        """`split` with chunk i added in place; the words that an earlier chunk had must be 0 in it."""
        chunk = chunk_DxMxC if self.vocab_axis else jnp.moveaxis(chunk_DxMxC, 0, -1)
        if self.pieces == 1:
            chunk = jnp.squeeze(chunk, self.vocab_axis)
        if self.words % self.width:  # the last chunk overlaps the one before, whose values must stay
            chunk = chunk + jax.lax.dynamic_slice_in_dim(split, self.start(i), self.width, axis=self.word_axis)
        return jax.lax.dynamic_update_slice_in_dim(split, chunk.astype(split.dtype), self.start(i), axis=self.word_axis)

    def ids(self, i: jax.Array) -> jax.Array:
        """Token ids of chunk i, MxC."""
        within_C = self.start(i) + jnp.arange(self.width)
        return jnp.arange(self.pieces)[:, None] * self.words + within_C[None, :]

    def new(self, i: jax.Array) -> jax.Array | None:
        """Mask over C: the words of chunk i that no earlier chunk had; None where all are new."""
        if self.words % self.width == 0:
            return None
        return self.start(i) + jnp.arange(self.width) >= i * self.width


def _logits(hidden_BxUxD: jax.Array, chunk_DxMxC: jax.Array) -> jax.Array:
    logits_BxUxMxC = jnp.einsum("bud,dmc->bumc", hidden_BxUxD, chunk_DxMxC)
    return with_logical_constraint(logits_BxUxMxC, ("batch", "length", "vocab", None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(chunks: _Chunks, hidden_BxUxD: jax.Array, matrix: jax.Array, targets_BxU: jax.Array):
    split = chunks.split(matrix)

    def add(carry, i):
        # Invariant of each piece over the words v seen so far: largest = max l_v, sum = sum exp(l_v - largest),
        # target = l_t if t is among them, else 0, total = sum l_v. A new maximum rescales the sum by exp(old - new).
        largest_BxUxM, sum_BxUxM, target_BxUxM, total_BxUxM = carry
        logits_BxUxMxC = _logits(hidden_BxUxD, chunks.of(split, i))
        hit_BxUxMxC = targets_BxU[..., None, None] == chunks.ids(i)
        counted, new = logits_BxUxMxC, chunks.new(i)
        if new is not None:
            counted = jnp.where(new, logits_BxUxMxC, 0.0)
            logits_BxUxMxC = jnp.where(new, logits_BxUxMxC, -jnp.inf)
        now_largest = jnp.maximum(largest_BxUxM, jnp.max(logits_BxUxMxC, axis=-1))
        exp_sum_BxUxM = jnp.sum(jnp.exp(logits_BxUxMxC - now_largest[..., None]), axis=-1)
        return (
            now_largest,
            sum_BxUxM * jnp.exp(largest_BxUxM - now_largest) + exp_sum_BxUxM,
            target_BxUxM + jnp.sum(jnp.where(hit_BxUxMxC, counted, 0.0), axis=-1),
            total_BxUxM + jnp.sum(counted, axis=-1),
        ), None

    zeros = jnp.zeros((*targets_BxU.shape, chunks.pieces), jnp.float32)
    start = tuple(with_logical_constraint(x, ("batch", "length", "vocab")) for x in (zeros - jnp.inf, *[zeros] * 3))
    (largest, exp_sum, target, total), _ = jax.lax.scan(add, start, jnp.arange(chunks.count))
    largest_BxU = jnp.max(largest, axis=-1)
    exp_sum_BxU = jnp.sum(exp_sum * jnp.exp(largest - largest_BxU[..., None]), axis=-1)
    log_z_BxU = largest_BxU + jnp.log(exp_sum_BxU)
    return log_z_BxU, jnp.sum(target, axis=-1), jnp.sum(total, axis=-1), largest_BxU, exp_sum_BxU


def _forward(chunks: _Chunks, hidden, matrix, targets):
    statistics: Any = _statistics(chunks, hidden.value, matrix.value, targets.value)
    # A frozen matrix gets no gradient, and no product that would compute one.
    matrix_trains = () if matrix.perturbed else None  # a residual must be a pytree: without leaves, it costs nothing
    return statistics, (hidden.value, matrix.value, targets.value, *statistics[3:], matrix_trains)


def _backward(chunks: _Chunks, residuals: Any, cotangents: Any):
    """Gradients with respect to hidden and matrix, chunk by chunk.

    With logits l_v = h . w_v of a token, p_v = exp(l_v) / Z and target t, the three differentiable statistics have

        d log Z / d l_v = p_v        d l_t / d l_v = [v = t]        d (sum_w l_w) / d l_v = 1,

    so cotangents a of log Z, b of the target and c of the sum give

        g_v = a p_v + b [v = t] + c,      dh = sum_v g_v w_v,      dw_v = sum over tokens of g_v h.

    A chunk needs only its own g_v: its logits are computed again, its dw_v are final, and dh is added up over chunks.
    With M = max_v l_v, p_v is exp(l_v - M) / sum_w exp(l_w - M), of which the forward pass kept M and the sum.
    """
    hidden_BxUxD, matrix, targets_BxU, largest_BxU, exp_sum_BxU, matrix_trains = residuals
    by_log_z, by_target, by_total, *_ = (
        jnp.zeros_like(exp_sum_BxU) if isinstance(x, SymbolicZero) else x for x in cotangents
    )
    # a p_v = (a / sum_w exp(l_w - M)) exp(l_v - M). Not exp(l_v - log Z): where logits are large, log Z is rounded.
    by_exp_BxU = by_log_z / exp_sum_BxU
    split = chunks.split(matrix)

    def add(carry, i):
        # Invariant over the words v seen so far: hidden_gradient = sum of g_v w_v; split_gradient has their dw_v, which
        # are final, and zeros elsewhere.
        hidden_gradient_BxUxMxD, split_gradient = carry
        chunk_DxMxC = chunks.of(split, i)
        exp_BxUxMxC = jnp.exp(_logits(hidden_BxUxD, chunk_DxMxC) - largest_BxU[..., None, None])
        hit_BxUxMxC = targets_BxU[..., None, None] == chunks.ids(i)
        gradient_BxUxMxC = (
            by_exp_BxU[..., None, None] * exp_BxUxMxC
            + by_total[..., None, None]
            + jnp.where(hit_BxUxMxC, by_target[..., None, None], 0.0)
        )
        new = chunks.new(i)
        if new is not None:
            gradient_BxUxMxC = jnp.where(new, gradient_BxUxMxC, 0.0)
        hidden_gradient_BxUxMxD += jnp.einsum("bumc,dmc->bumd", gradient_BxUxMxC, chunk_DxMxC)
        if split_gradient is not None:
            chunk_gradient_DxMxC = jnp.einsum("bud,bumc->dmc", hidden_BxUxD, gradient_BxUxMxC)
            split_gradient = chunks.with_chunk(split_gradient, chunk_gradient_DxMxC, i)
        return (hidden_gradient_BxUxMxD, split_gradient), None

    # Each piece adds up its own part, so that devices communicate once and not at every chunk.
    zeros_BxUxMxD = jnp.zeros((*targets_BxU.shape, chunks.pieces, hidden_BxUxD.shape[-1]), jnp.float32)
    zeros_BxUxMxD = with_logical_constraint(zeros_BxUxMxD, ("batch", "length", "vocab", None))
    # Sharded as the matrix is: left to itself, XLA may keep the whole embed axis on every device.
    start = (zeros_BxUxMxD, None if matrix_trains is None else chunks.split(jnp.zeros_like(matrix)))
    (hidden_gradient, split_gradient), _ = jax.lax.scan(add, start, jnp.arange(chunks.count))
    hidden_gradient = jnp.sum(hidden_gradient, axis=2)
    matrix_gradient = None if split_gradient is None else split_gradient.reshape(matrix.shape)
    return hidden_gradient, matrix_gradient, np.zeros(targets_BxU.shape, jax.dtypes.float0)


_statistics.defvjp(_forward, _backward, symbolic_zeros=True)
