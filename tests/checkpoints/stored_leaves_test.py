"""promot_t5x.checkpoints.stored_leaves: every view against numpy's own reshaping, and placing onto devices."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.partitioning.partitioner import Partitioner

ARRAY = np.arange(4 * 6 * 5).reshape(4, 6, 5).astype(np.float32)
LEAF = stored_leaves.from_array(ARRAY, "an array")
VIEWS = {
    "transposed": (stored_leaves.transposed(LEAF, (2, 0, 1)), ARRAY.transpose(2, 0, 1)),
    "joined": (stored_leaves.joined(LEAF, 1), ARRAY.reshape(4, 30)),
    "joined first": (stored_leaves.joined(LEAF, 0), ARRAY.reshape(24, 5)),
    "split": (stored_leaves.split(LEAF, 1, 2), ARRAY.reshape(4, 3, 2, 5)),
    "split first": (stored_leaves.split(LEAF, 0, 2), ARRAY.reshape(2, 2, 6, 5)),
    "of a view": (
        stored_leaves.joined(stored_leaves.transposed(LEAF, (1, 0, 2)), 1),
        ARRAY.transpose(1, 0, 2).reshape(6, 20),
    ),
    "stack": (stored_leaves.stack([LEAF, LEAF]), np.stack([ARRAY, ARRAY])),
    "layer": (stored_leaves.layer(LEAF, 2), ARRAY[2]),
}


@pytest.mark.parametrize("leaf,expected", VIEWS.values(), ids=VIEWS)
def test_views_read_any_block_as_numpy_does(leaf, expected):
    assert leaf.shape == expected.shape
    np.testing.assert_array_equal(stored_leaves.whole(leaf), expected)
    ranges = [[slice(a, b) for a in range(size) for b in range(a + 1, size + 1)] for size in expected.shape]
    for index in itertools.islice(itertools.product(*ranges), 0, None, 7):
        np.testing.assert_array_equal(leaf.read(index), expected[index], err_msg=str(index))


def test_a_dimension_that_does_not_split_is_named():
    with pytest.raises(ValueError, match="an array has a dimension of 6, which is no multiple of 4"):
        stored_leaves.split(LEAF, 1, 4)


def test_layers_that_differ_are_not_stacked():
    with pytest.raises(ValueError, match="another is float32.* where an array is"):
        stored_leaves.stack([LEAF, stored_leaves.from_array(ARRAY[:3], "another")])


@pytest.mark.parametrize("shape,most", [((7, 5), 10), ((7, 5), 3), ((7, 5), 100), ((9,), 4), ((), 1), ((2, 3, 4), 5)])
def test_blocks_cover_every_element_once(shape, most):
    seen = np.zeros(shape, int)
    for index in stored_leaves.blocks(shape, most):
        assert seen[index].size <= most
        seen[index] += 1
    assert (seen == 1).all()


def _wanted(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(Partitioner().mesh(), PartitionSpec()))


def test_placing_stacks_layers_and_converts_the_dtype():
    layers = {
        f"encoder/layers_{i}/mlp/wo/kernel": stored_leaves.from_array(ARRAY[i].astype(ml_dtypes.bfloat16), f"{i}")
        for i in range(4)
    }
    placed = stored_leaves.place(layers, {"encoder/layers/mlp/wo/kernel": _wanted((4, 6, 5))})
    np.testing.assert_array_equal(placed["encoder/layers/mlp/wo/kernel"], ARRAY)
    stacked = {"encoder/layers/mlp/wo/kernel": stored_leaves.from_array(ARRAY, "a stack")}
    placed = stored_leaves.place(stacked, {name: _wanted((6, 5), jnp.bfloat16) for name in layers})
    for i, name in enumerate(layers):
        assert placed[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(placed[name], ARRAY[i])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error(bad):
    array = ARRAY.copy()
    array[1, 2, 3] = bad
    with pytest.raises(ValueError, match="weights.bin holds numbers that are not finite"):
        stored_leaves.place({"a": stored_leaves.from_array(array, "weights.bin")}, {"a": _wanted(array.shape)})
