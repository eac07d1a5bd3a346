"""A short name for the exact bits of a model, the same in every layout and format."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from promot_t5x.models import parameter_names


def fingerprint(params: Mapping[str, Any]) -> str:
    """A short name for the exact bits of a model, the soft prompt left out.

    For each leaf of the canonical per-layer layout: its name, shape, dtype, and the sum of its elements' bits as
    unsigned integers modulo 2**32. Integer sums do not depend on order, so the result is the same for any sharding,
    scanned or not, from whatever format the model was read.
    """
    flat = {name: leaf for name, leaf in parameter_names.flatten(params).items() if not name.startswith("soft_prompt/")}
    sums = jax.device_get(jax.jit(_bit_sums)(flat))
    shapes = jax.eval_shape(parameter_names.unstack_layers, flat)
    return digest({name: (leaf.shape, leaf.dtype, int(sums[name])) for name, leaf in shapes.items()})


def digest(leaves: Mapping[str, tuple[tuple[int, ...], Any, int]]) -> str:
    """The fingerprint of leaves, sorted by name, as (shape, dtype, sum of bits) each; see `fingerprint`."""
    found = hashlib.sha256()
    for name, (shape, dtype, bit_sum) in leaves.items():
        found.update(f"{name} {tuple(shape)} {dtype} {bit_sum}\n".encode())
    return found.hexdigest()[:16]


def _bit_sums(flat: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    def bit_sum(x):
        unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32), dtype=jnp.uint32)

    return {name: bit_sum(leaf) for name, leaf in parameter_names.unstack_layers(flat).items()}
