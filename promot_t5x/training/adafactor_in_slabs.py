"""Adafactor's rescaled gradient of a large matrix on one CPU, one slab at a time.

For the gradient G of a matrix, its rows numbered along the shorter axis, and the decay b = 1 - (t + 1)^-decay_rate of
step t, counted from 0 (Shazeer and Stern 2018, algorithm 4 and section 7.2),

    R = b R + (1 - b) mean over columns of (G^2 + 1e-30)        of each row
    C = b C + (1 - b) mean over rows of (G^2 + 1e-30)           of each column
    U = G / sqrt(R C^T / mean(R)),      update = U / max(1, rms(U) / threshold).

R, C and rms(U)^2 are means over the matrix, so they can be added up slab by slab; U itself is elementwise, and XLA
computes it where the parameters are updated. Two passes over G suffice: one for R and C, one for rms(U).

On accelerators XLA reads a gradient once for both factored moments and once more for the size of the update, and writes
no intermediate array. Its CPU compiler writes the squares of the whole matrix and the rescaled matrix: for an embedding
of mT5's vocabulary that is half of a step's memory and a quarter of its time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from promot_t5x.partitioning.partitioner import on_one_cpu

_LARGE = 2**22  # a matrix of at least as many elements is cut

_SLAB = 2**20  # elements of a slab, at most


def scale_by_clipped_factored_rms(
    factored: bool = True, decay_rate: float = 0.8, min_dim_size_to_factor: int = 128, threshold: float = 1.0
) -> optax.GradientTransformation:
    """optax.scale_by_factored_rms followed by optax.clip_by_block_rms; in slabs where that pays.

    Args:
      factored: whether second moments are factored.
      decay_rate: exponent of their decay.
      min_dim_size_to_factor: the size from which on the two largest dimensions are factored.
      threshold: the root mean square that no leaf's update exceeds.

    >>> transform, matrix = scale_by_clipped_factored_rms(), jnp.ones((130, 140))
    >>> updates, state = transform.update(matrix, transform.init(matrix), matrix)
    >>> state.v_row.shape, state.v_col.shape
    ((130,), (140,))
    """
    by_moments = optax.scale_by_factored_rms(factored, decay_rate, min_dim_size_to_factor=min_dim_size_to_factor)
    clip = optax.clip_by_block_rms(threshold)

    def update(updates, state, params=None):
        def of_leaf(gradient, v_row, v_col, v, param):
            slots = optax.FactoredState(state.count, v_row, v_col, v)
            if gradient.ndim == 2 and gradient.size >= _LARGE and v_row.size > 1 and on_one_cpu():
                return _in_slabs(gradient, slots, decay_rate, threshold)
            scaled, slots = by_moments.update(gradient, slots, param)
            return clip.update(scaled, optax.EmptyState())[0], slots

        by_leaf = jax.tree.map(of_leaf, updates, state.v_row, state.v_col, state.v, params)

        def tree_of(pick):
            return jax.tree.map(lambda _, scaled_and_slots: pick(*scaled_and_slots), updates, by_leaf)

        slots = (tree_of(lambda _, slots, name=name: getattr(slots, name)) for name in ("v_row", "v_col", "v"))
        return tree_of(lambda scaled, _: scaled), optax.FactoredState(optax.safe_increment(state.count), *slots)

    return optax.GradientTransformation(by_moments.init, update)


def _in_slabs(gradient: jax.Array, slots: Any, decay_rate: float, threshold: float):
    """The same for one matrix, cut along its longer axis.

    optax calls the moments along the longer axis `v_col`: a slab completes its own part of `v_col` and adds a partial
    sum to every element of `v_row`.
    """
    cut = 0 if gradient.shape[0] > gradient.shape[1] else 1
    length, width = gradient.shape[cut], max(1, _SLAB // gradient.shape[1 - cut])

    def slab(start: Any, size: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(gradient, start, size, cut).astype(jnp.float32)

    def add_squares(start: Any, size: int, sums: Any) -> Any:
        # Invariant over the slabs seen so far: `by_row` is the sum of their squares, and their own parts of `by_column`
        # are final.
        by_row, by_column = sums
        squares = jnp.square(slab(start, size)) + 1e-30
        of_slab = jnp.sum(squares, 1 - cut)
        return by_row + jnp.sum(squares, cut), jax.lax.dynamic_update_slice_in_dim(by_column, of_slab, start, 0)

    zeros = (jnp.zeros(slots.v_row.shape), jnp.zeros(slots.v_col.shape))
    by_row, by_column = _for_slabs(add_squares, length, width, zeros)
    decay = 1.0 - jnp.float32(slots.count + 1) ** -decay_rate
    v_row = decay * slots.v_row + (1.0 - decay) * by_row / length
    v_col = decay * slots.v_col + (1.0 - decay) * by_column / gradient.shape[1 - cut]
    # G * row_factor * column_factor = G / sqrt(v_row v_col / mean(v_row)), the rescaled gradient U.
    row_factor = jnp.expand_dims((v_row / jnp.mean(v_row)) ** -0.5, cut)
    column_factor = jnp.expand_dims(v_col**-0.5, 1 - cut)

    def add_size(start: Any, size: int, total: jax.Array) -> jax.Array:
        columns = jax.lax.dynamic_slice_in_dim(column_factor, start, size, cut)
        return total + jnp.sum(jnp.square(slab(start, size) * row_factor * columns))

    rms = jnp.sqrt(_for_slabs(add_size, length, width, jnp.float32(0.0)) / gradient.size)
    # Elementwise from here on: XLA fuses it into the parameter update and writes no array for it.
    scaled = gradient * row_factor * column_factor / jnp.maximum(1.0, rms / threshold)
    moments = v_row.astype(slots.v_row.dtype), v_col.astype(slots.v_col.dtype)
    return scaled.astype(gradient.dtype), optax.FactoredState(slots.count, *moments, slots.v)


def _for_slabs(body: Callable[[Any, int, Any], Any], length: int, width: int, carry: Any) -> Any:
    """carry = body(start, size, carry) over slabs of `width`, the remainder last."""
    whole = length // width
    carry = jax.lax.fori_loop(0, whole, lambda i, carry: body(i * width, width, carry), carry)
    return body(whole * width, length % width, carry) if length % width else carry
