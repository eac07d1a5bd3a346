"""promot_t5x.checkpoints.stored_leaves: every view against numpy's own reshaping."""

import itertools

import numpy as np
import pytest

from promot_t5x.checkpoints import stored_leaves

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
    with pytest.raises(ValueError, match="an array has a dimension of 6, expected a multiple of 4"):
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
