"""Tables of relative positions that become one are compared as bits."""

import numpy as np
import pytest

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.t5x import layouts


def tables(*arrays):
    return {
        f"encoder/layers_{i}/relpos_bias/rel_embedding": stored_leaves.from_array(array, f"layer {i}")
        for i, array in enumerate(arrays)
    }


@pytest.mark.parametrize("other", [np.full((2, 4), -0.0, np.float32), np.zeros((2, 4), np.float16), np.zeros((2, 3))])
def test_equal_numbers_of_other_bits_are_not_dropped(other):
    zeros = np.zeros((2, 4), np.float32)
    with pytest.raises(layouts.DifferentBiasesError, match="layer 2: the layers of the encoder have different tables"):
        layouts.with_relative_bias(tables(zeros, zeros, other), "shared")
    assert list(layouts.with_relative_bias(tables(zeros, zeros), "shared")) == ["encoder/relpos_bias/rel_embedding"]
