"""The training loss and the score of sequences: cross-entropy with label smoothing and z-loss.

Both start from `chunked_logits.TokenStatistics`, a few float32 numbers per token, so that neither needs the logits of
the whole vocabulary at once.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from promot_t5x.models.chunked_logits import TokenStatistics


class LossSums(NamedTuple):
    """Sums over the target tokens of a batch; dividing is left to the caller, so that parts and steps can be added up.

    Attributes:
      loss: weighted sum of the loss in nats, z-loss included.
      z_loss: weighted sum of the z-loss alone.
      weight_sum: sum of the weights.
      correct: weighted number of tokens whose target has the largest logit.
    """

    loss: jax.Array
    z_loss: jax.Array
    weight_sum: jax.Array
    correct: jax.Array


def cross_entropy(
    statistics: TokenStatistics,
    weights_BxU: jax.Array,
    *,
    vocab_size: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> LossSums:
    """Weighted sums of cross-entropy, z-loss and hits over a batch.

    With smoothing s the target distribution q is 1 - s on the target and s / (V - 1) on every other token, and one
    token's loss is

        -sum_v q_v log p_v  -  H(q)  +  z_loss * (log Z)^2,      Z = sum_v exp(logits_v),

    where the entropy H(q) is subtracted so that predicting q itself costs nothing.

    Args:
      statistics: of the logits at each token.
      weights_BxU: weight of each token, 0 for padding.
      vocab_size: V.
      label_smoothing: s, the probability given to all tokens but the target together; 0 <= s < 1.
      z_loss: factor of (log Z)^2, which keeps the logits from drifting (T5X trains T5 with 1e-4).

    Returns:
      The four sums, float32 scalars.

    Raises:
      ValueError: if label_smoothing is outside [0, 1).

    Source: label smoothing, Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7; z-loss as in the
    Mesh TensorFlow and T5X code bases.

    >>> from promot_t5x.models.chunked_logits import token_statistics
    >>> uniform = token_statistics(jnp.zeros((1, 2, 3)), jnp.ones((3, 4)), jnp.array([[0, 3]]))
    >>> sums = cross_entropy(uniform, jnp.array([[1.0, 0.0]]), vocab_size=4)
    >>> print(f"{sums.loss:.4f} {sums.weight_sum:.0f} {sums.correct:.0f}")
    1.3863 1 1
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a number of at least 0 and below 1.")
    weights_BxU = weights_BxU.astype(jnp.float32)
    loss_BxU = statistics.log_z - statistics.target
    if label_smoothing:
        confidence, low = 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)
        # -sum_v log p_v over the whole vocabulary, so that no smoothed [B, U, V] targets are needed.
        uniform_loss_BxU = vocab_size * statistics.log_z - statistics.total
        entropy = -(confidence * math.log(confidence) + (vocab_size - 1) * low * math.log(low))
        loss_BxU = (confidence - low) * loss_BxU + low * uniform_loss_BxU - entropy
    z_loss_BxU = z_loss * jnp.square(statistics.log_z) if z_loss else jnp.zeros_like(loss_BxU)
    hits_BxU = (statistics.target >= statistics.largest).astype(jnp.float32)
    return LossSums(
        loss=jnp.sum((loss_BxU + z_loss_BxU) * weights_BxU),
        z_loss=jnp.sum(z_loss_BxU * weights_BxU),
        weight_sum=jnp.sum(weights_BxU),
        correct=jnp.sum(hits_BxU * weights_BxU),
    )


def sequence_scores(statistics: TokenStatistics, weights_BxU: jax.Array) -> jax.Array:
    """Log-likelihood of each target sequence: sum_u weights_u log p(target_u), without smoothing or z-loss.

    Args:
      statistics: of the logits at each token.
      weights_BxU: weight of each token, 0 for padding.

    Returns:
      scores_B, float32, in nats; at most 0 for weights of 0 and 1.

    >>> from promot_t5x.models.chunked_logits import token_statistics
    >>> uniform = token_statistics(jnp.zeros((1, 2, 3)), jnp.ones((3, 4)), jnp.array([[0, 3]]))
    >>> print(sequence_scores(uniform, jnp.array([[1.0, 1.0]])))
    [-2.7725887]
    """
    return jnp.sum((statistics.target - statistics.log_z) * weights_BxU.astype(jnp.float32), axis=-1)
