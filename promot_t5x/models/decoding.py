"""Autoregressive decoding: greedy, sampling with temperature, top-k and top-p, and beam search.

Everything works on an abstract step, so it knows nothing of the network. The network has already run position 0 (whose
input is the padding id 0) and hands over the logits of the first token and its cache; the step is called for positions
1, 2, ... with the token emitted just before. N is the number of sequences the step sees at once: the batch B, or B * K
in beam search, where the K beams of a batch row are neighbours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Cache = Any

"""A pytree of arrays of layout [..., N, U, H, K]: the batch axis of every leaf is its fourth from the end."""

TokensToLogits = Callable[[jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]

"""The step: (tokens_N, cache, position) -> (logits_NxV of the token at `position`, the updated cache)."""

# In place of log 0 in beam search: finite, so that sums and quotients of it stay comparable. T5X's value.
_NEG_INF = -1.0e7

_BATCH_AXIS = -4


def greedy(
    first_logits_BxV: jax.Array, cache: Cache, tokens_to_logits: TokensToLogits, *, max_length: int, eos_id: int = 1
) -> jax.Array:
    """Decodes the most probable token at every position; `sample` at temperature 0.

    Args:
      first_logits_BxV: logits of the first token.
      cache: the decoder's state after position 0.
      tokens_to_logits: the step.
      max_length: U, the greatest number of tokens, the end token included.
      eos_id: id that ends a sequence.

    Returns:
      tokens_BxU, int32: each sequence with its end token, 0 after it.

    >>> def step(tokens_N, cache, position):  # the next token is the last one minus 1
    ...     return jax.nn.one_hot(tokens_N - 1, 5), cache
    >>> print(greedy(jax.nn.one_hot(jnp.array([4, 2]), 5), {}, step, max_length=5))
    [[4 3 2 1 0]
     [2 1 0 0 0]]
    """
    return sample(
        first_logits_BxV, cache, tokens_to_logits, None, max_length=max_length, temperature=0.0, eos_id=eos_id
    )


def sample(
    first_logits_BxV: jax.Array,
    cache: Cache,
    tokens_to_logits: TokensToLogits,
    key: jax.Array | None,
    *,
    max_length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int = 1,
) -> jax.Array:
    """Draws each token from softmax(logits / temperature), cut to its top-k, then to its top-p tokens.

    Args:
      first_logits_BxV: logits of the first token.
      cache: the decoder's state after position 0.
      tokens_to_logits: the step.
      key: random key; position u draws with fold_in(key, u). None if temperature is 0.
      max_length: U, the greatest number of tokens, the end token included.
      temperature: divides the logits; 0 takes the most probable token instead of drawing.
      top_k: how many of the most probable tokens may be drawn; 0 for all.
      top_p: only the smallest set of most probable tokens whose probabilities, renormalised after top-k, reach this
        sum may be drawn; 1 for all (nucleus sampling, Holtzman et al. 2020, section 3.1).
      eos_id: id that ends a sequence.

    Returns:
      tokens_BxU, int32: each sequence with its end token, 0 after it.

    Raises:
      ValueError: for an argument outside its range, or a missing key.
    """
    _check_max_length(max_length)
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: expected temperature >= 0, top_k >= 0 and "
            "0 < top_p <= 1."
        )
    if temperature > 0 and key is None:
        raise ValueError(f"temperature={temperature} draws tokens but key is None: give a key, or temperature=0.")

    def choose(logits_BxV: jax.Array, position: jax.Array | int) -> jax.Array:
        if temperature == 0:
            return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
        assert key is not None
        scaled_BxV = logits_BxV.astype(jnp.float32) / temperature
        return _draw(jax.random.fold_in(key, position), scaled_BxV, top_k, top_p)

    def running(state: tuple) -> jax.Array:
        position, _, _, ended_B, _ = state
        return (position < max_length) & ~jnp.all(ended_B)

    def advance(state: tuple) -> tuple:
        position, tokens_BxU, last_B, ended_B, cache = state
        logits_BxV, cache = tokens_to_logits(last_B, cache, position)
        last_B = jnp.where(ended_B, 0, choose(logits_BxV, position))
        return position + 1, tokens_BxU.at[:, position].set(last_B), last_B, ended_B | (last_B == eos_id), cache

    first_B = choose(first_logits_BxV, 0)
    tokens_BxU = jnp.zeros((first_B.shape[0], max_length), jnp.int32).at[:, 0].set(first_B)
    state = (jnp.int32(1), tokens_BxU, first_B, first_B == eos_id, cache)
    return lax.while_loop(running, advance, state)[1]


def _draw(key: jax.Array, logits_BxV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Draws token ids among the top-k and top-p of each row."""
    vocab_size = logits_BxV.shape[-1]
    if top_k == 0 and top_p == 1:
        return jax.random.categorical(key, logits_BxV).astype(jnp.int32)
    # Sorted, most probable first, so that ties cannot enlarge either set.
    sorted_BxC, ids_BxC = lax.top_k(logits_BxV, min(top_k or vocab_size, vocab_size))
    if top_p < 1:
        cumulative_BxC = jnp.cumsum(jax.nn.softmax(sorted_BxC), axis=-1)
        before_BxC = jnp.pad(cumulative_BxC[:, :-1], ((0, 0), (1, 0)))
        sorted_BxC = jnp.where(before_BxC < top_p, sorted_BxC, -jnp.inf)
    drawn_B = jax.random.categorical(key, sorted_BxC)
    return jnp.take_along_axis(ids_BxC, drawn_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


class _Beams(NamedTuple):
    """State of the search; both sets are kept worst first, as in T5X, so that ties are broken as there."""

    length: jax.Array  # tokens emitted so far
    alive_BxKxU: jax.Array
    alive_log_probs_BxK: jax.Array
    finished_BxKxU: jax.Array
    finished_scores_BxK: jax.Array  # log-probability over length penalty
    is_finished_BxK: jax.Array  # False for a slot that nothing has filled
    cache: Cache


def beam_search(
    first_logits_BxV: jax.Array,
    cache: Cache,
    tokens_to_logits: TokensToLogits,
    *,
    max_length: int,
    num_beams: int = 4,
    alpha: float = 0.6,
    eos_id: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Beam search with a length penalty; its results are those of T5X's.

    A sequence of n tokens, its end token included, scores log p / ((5 + n) / 6)^alpha. Each step extends the K alive
    beams to their 2K best continuations (at most K of which end); the ended ones compete for the K finished places, the
    best K of the others stay alive. The search ends at `max_length`, or when in every row K sequences are finished and
    no alive one can overtake them.

    Args:
      first_logits_BxV: logits of the first token.
      cache: the decoder's state after position 0, of batch B; the step is called with batch B * K.
      tokens_to_logits: the step.
      max_length: U, the greatest number of tokens, the end token included.
      num_beams: K.
      alpha: exponent of the length penalty; 0 for none.
      eos_id: id that ends a sequence.

    Returns:
      tokens_BxKxU, int32, best first: each sequence with its end token, 0 after it; and scores_BxK, float32. A row
      with no finished sequence returns its alive ones, scored by their log-probability without penalty; in a row with
      fewer than K finished ones the last places are zeros, scored -1e7.

    Raises:
      ValueError: for an argument outside its range.

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", section 7, equation 14; T5X `decoding.py`.

    >>> def step(tokens_N, cache, position):  # token 1, the end, follows with probability 0.8
    ...     return jnp.log(jnp.tile(jnp.array([0.1, 0.8, 0.1]), (tokens_N.shape[0], 1))), cache
    >>> first = jnp.log(jnp.array([[0.1, 0.3, 0.6]]))
    >>> tokens, scores = beam_search(first, {}, step, max_length=3, num_beams=2, alpha=0.0)
    >>> print(tokens[0], jnp.exp(scores[0]))
    [[2 1 0]
     [1 0 0]] [0.48 0.3 ]
    """
    _check_max_length(max_length)
    if num_beams < 1 or alpha < 0:
        raise ValueError(f"num_beams={num_beams}, alpha={alpha}: expected num_beams >= 1 and alpha >= 0.")
    batch_size = first_logits_BxV.shape[0]

    def running(beams: _Beams) -> jax.Array:
        return (beams.length < max_length) & ~_decided(beams, max_length, alpha)

    def advance(beams: _Beams) -> _Beams:
        last_BxK = lax.dynamic_index_in_dim(beams.alive_BxKxU, beams.length - 1, axis=2, keepdims=False)
        logits_NxV, cache = tokens_to_logits(last_BxK.reshape(-1), beams.cache, beams.length)
        logits_BxKxV = logits_NxV.reshape(batch_size, num_beams, -1)
        return _extend(beams._replace(cache=cache), logits_BxKxV, alpha, eos_id)

    first_BxKxV = jnp.repeat(first_logits_BxV[:, None, :], num_beams, axis=1)
    beams = _extend(_no_tokens(batch_size, num_beams, max_length, cache), first_BxKxV, alpha, eos_id)
    beams = lax.while_loop(running, advance, beams)

    any_finished_Bx1 = jnp.any(beams.is_finished_BxK, axis=1, keepdims=True)
    tokens_BxKxU = jnp.where(any_finished_Bx1[:, :, None], beams.finished_BxKxU, beams.alive_BxKxU)
    scores_BxK = jnp.where(any_finished_Bx1, beams.finished_scores_BxK, beams.alive_log_probs_BxK)
    return tokens_BxKxU[:, ::-1], scores_BxK[:, ::-1]


def _no_tokens(batch_size: int, num_beams: int, max_length: int, cache: Cache) -> _Beams:
    """Before the first token all beams are the same empty sequence, so all but one start as impossible."""
    log_probs_K = jnp.where(jnp.arange(num_beams) == 0, 0.0, _NEG_INF)
    empty_BxKxU = jnp.zeros((batch_size, num_beams, max_length), jnp.int32)
    return _Beams(
        length=jnp.int32(0),
        alive_BxKxU=empty_BxKxU,
        alive_log_probs_BxK=jnp.tile(log_probs_K, (batch_size, 1)),
        finished_BxKxU=empty_BxKxU,
        finished_scores_BxK=jnp.full((batch_size, num_beams), _NEG_INF),
        is_finished_BxK=jnp.zeros((batch_size, num_beams), bool),
        cache=jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=_BATCH_AXIS), cache),
    )


def _extend(beams: _Beams, logits_BxKxV: jax.Array, alpha: float, eos_id: int) -> _Beams:
    """Appends one token: the 2K best continuations are divided among the alive and the finished."""
    batch_size, num_beams, vocab_size = logits_BxKxV.shape
    log_probs_BxKxV = jax.nn.log_softmax(logits_BxKxV.astype(jnp.float32)) + beams.alive_log_probs_BxK[:, :, None]
    # C = 2K candidates: even if all K beams can end now, K others are left to go on with.
    log_probs_BxC, flat_BxC = lax.top_k(log_probs_BxKxV.reshape(batch_size, -1), 2 * num_beams)
    beam_BxC, token_BxC = flat_BxC // vocab_size, (flat_BxC % vocab_size).astype(jnp.int32)
    candidates_BxCxU = _take(beams.alive_BxKxU, beam_BxC).at[:, :, beams.length].set(token_BxC)
    ended_BxC = token_BxC == eos_id
    length = beams.length + 1

    alive_log_probs_BxC = log_probs_BxC + ended_BxC * _NEG_INF
    alive_BxK = _worst_first_top_k(alive_log_probs_BxC, num_beams)

    scores_BxC = log_probs_BxC / _length_penalty(length, alpha) + ~ended_BxC * _NEG_INF
    all_scores = jnp.concatenate([beams.finished_scores_BxK, scores_BxC], axis=1)
    finished_BxK = _worst_first_top_k(all_scores, num_beams)
    return _Beams(
        length=length,
        alive_BxKxU=_take(candidates_BxCxU, alive_BxK),
        alive_log_probs_BxK=_take(alive_log_probs_BxC, alive_BxK),
        finished_BxKxU=_take(jnp.concatenate([beams.finished_BxKxU, candidates_BxCxU], axis=1), finished_BxK),
        finished_scores_BxK=_take(all_scores, finished_BxK),
        is_finished_BxK=_take(jnp.concatenate([beams.is_finished_BxK, ended_BxC], axis=1), finished_BxK),
        cache=_gather_cache(beams.cache, _take(beam_BxC, alive_BxK)),
    )


def _decided(beams: _Beams, max_length: int, alpha: float) -> jax.Array:
    """Whether in every row all K places are finished and score higher than any alive beam still can."""
    # log p only falls as a beam grows, and its divisor is largest at the end, so no alive beam can come to score more.
    # The divisor is of one token more than can be emitted, as in T5X: the search may end later, with the same result.
    attainable_B = beams.alive_log_probs_BxK[:, -1] / _length_penalty(max_length + 1, alpha)
    worst_Bx1 = jnp.min(beams.finished_scores_BxK, axis=1, keepdims=True)
    worst_BxK = jnp.where(beams.is_finished_BxK, worst_Bx1, _NEG_INF)
    return jnp.all(worst_BxK > attainable_B[:, None])


def _length_penalty(length: jax.Array | int, alpha: float) -> jax.Array:
    return jnp.power((5.0 + length) / 6.0, alpha)


def _worst_first_top_k(values_BxC: jax.Array, k: int) -> jax.Array:
    """Indices of the k greatest values of each row, ascending by value."""
    return lax.top_k(values_BxC, k)[1][:, ::-1]


def _take(array_BxC: jax.Array, indices_BxK: jax.Array) -> jax.Array:
    """Picks along the second axis of [B, C, ...], each batch row by its own indices."""
    return jax.vmap(lambda row, indices: row[indices])(array_BxC, indices_BxK)


def _gather_cache(cache: Cache, beam_BxK: jax.Array) -> Cache:
    """Reorders the cache's beams, each batch row by its own indices."""
    batch_size, num_beams = beam_BxK.shape

    def gather(array: jax.Array) -> jax.Array:
        axis = array.ndim + _BATCH_AXIS
        shape = array.shape
        split = array.reshape(*shape[:axis], batch_size, num_beams, *shape[axis + 1 :])
        # Mapped over the batch, so that a batch sharded over devices needs no communication here.
        pick = jax.vmap(lambda row, beams: jnp.take(row, beams, axis=axis), in_axes=(axis, 0), out_axes=axis)
        return pick(split, beam_BxK).reshape(shape)

    return jax.tree.map(gather, cache)


def _check_max_length(max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}, expected at least 1 token.")
