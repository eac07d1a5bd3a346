"""Fingerprints: hashes of the exact bits of models, the same in every layout and format, and of soft prompts."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.models import parameter_names


def fingerprint(params: Mapping[str, Any]) -> str:
    """A hash of the exact bits of a model, without the soft prompt.

    It covers, for each leaf of the per-layer layout, the name, shape, dtype, and the sum of the elements' bits as
    unsigned integers modulo 2**32. Integer sums do not depend on order, so the result is the same for any sharding,
    for scanned and separate layers, and for every file format.

    Args:
      params: a nested or flat tree of arrays, which are summed on their devices, or of leaves in files, which are read
        block by block.
    """
    flat = {
        name: leaf
        for name, leaf in parameter_names.flatten(params).items()
        if not name.startswith(f"{parameter_names.SOFT_PROMPT}/")
    }
    if all(isinstance(leaf, StoredLeaf) for leaf in flat.values()):
        flat = parameter_names.unstack_layers(flat, stored_leaves.layer)
        return _digest({name: (x.shape, x.dtype, stored_leaves.bit_sum(x)) for name, x in flat.items()})
    sums = jax.device_get(_bit_sums(flat))
    shapes = jax.eval_shape(parameter_names.unstack_layers, flat)
    return _digest({name: (leaf.shape, leaf.dtype, int(sums[name])) for name, leaf in shapes.items()})


def of_prompt(prompt_NxPxD: jax.Array | np.ndarray) -> str:
    """A hash of the exact bits of soft prompts, including their order, which a sum would ignore.

    >>> of_prompt(jnp.zeros((1, 2, 3))) == of_prompt(jnp.zeros((1, 3, 2)))
    False
    """
    array = np.asarray(multihost_utils.process_allgather(prompt_NxPxD, tiled=True))
    return hashlib.sha256(f"{array.shape} {array.dtype}\n".encode() + array.tobytes()).hexdigest()[:16]


def _digest(leaves: Mapping[str, tuple[tuple[int, ...], Any, int]]) -> str:
    """The fingerprint of leaves, given as (shape, dtype, sum of bits) by sorted name."""
    digest = hashlib.sha256()
    for name, (shape, dtype, bit_sum) in leaves.items():
        digest.update(f"{name} {tuple(shape)} {dtype} {bit_sum}\n".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _bit_sums(flat: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    def bit_sum(x):
        unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32), dtype=jnp.uint32)

    return {name: bit_sum(leaf) for name, leaf in parameter_names.unstack_layers(flat).items()}
