"""promot_t5x.checkpoints.placing: leaves compared with what is wanted, and placed on devices in either layout."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.checkpoints import placing, stored_leaves
from promot_t5x.partitioning.partitioner import Partitioner

ARRAY = np.arange(4 * 6 * 5).reshape(4, 6, 5).astype(np.float32)


def test_long_lists_of_differences_are_cut():
    leaves = {f"layer_{i}": np.zeros(1) for i in range(30)}
    with pytest.raises(ValueError, match="30 leaves differ(.|\n)*and 10 more"):
        placing.compare({}, leaves, "here")


def _wanted(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(Partitioner().mesh(), PartitionSpec()))


def test_placing_stacks_layers_and_converts_the_dtype():
    layers = {
        f"encoder/layers_{i}/mlp/wo/kernel": stored_leaves.from_array(ARRAY[i].astype(ml_dtypes.bfloat16), f"{i}")
        for i in range(4)
    }
    placed = placing.place(layers, {"encoder/layers/mlp/wo/kernel": _wanted((4, 6, 5))})
    np.testing.assert_array_equal(placed["encoder/layers/mlp/wo/kernel"], ARRAY)
    stacked = {"encoder/layers/mlp/wo/kernel": stored_leaves.from_array(ARRAY, "a stack")}
    placed = placing.place(stacked, {name: _wanted((6, 5), jnp.bfloat16) for name in layers})
    for i, name in enumerate(layers):
        assert placed[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(placed[name], ARRAY[i])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error(bad):
    array = ARRAY.copy()
    array[1, 2, 3] = bad
    leaf = stored_leaves.entering(stored_leaves.from_array(array, "weights.bin"))
    with pytest.raises(ValueError, match="weights.bin holds numbers that are not finite"):
        placing.place({"a": leaf}, {"a": _wanted(array.shape)})


def test_a_stack_that_becomes_layers_is_read_once():
    """Each chunk of a file is decoded once, not once per layer."""
    read = []

    def watched(index):
        read.append(index)
        return ARRAY[index]

    stacked = {"encoder/layers/mlp/wo/kernel": stored_leaves.StoredLeaf(ARRAY.shape, ARRAY.dtype, "a stack", watched)}
    names = [f"encoder/layers_{i}/mlp/wo/kernel" for i in range(4)]
    placed = placing.place(stacked, {name: _wanted((6, 5)) for name in names})
    assert read == [(slice(0, 4), slice(0, 6), slice(0, 5))]
    in_memory = placing.place(stacked, {name: np.zeros((6, 5), np.float32) for name in names})
    for i, name in enumerate(names):
        np.testing.assert_array_equal(placed[name], ARRAY[i])
        np.testing.assert_array_equal(in_memory[name], ARRAY[i])
        assert isinstance(in_memory[name], np.ndarray)
