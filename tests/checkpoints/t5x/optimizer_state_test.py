"""Slots of T5X's stacked layout against optax, which factors one layer's matrix at a time, and what is refused."""

import numpy as np
import optax
import pytest

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.t5x import optimizer_state
from tests.training import t5x_state

L, D, H, K, F = 2, 130, 5, 28, 129  # D < H K, F < D: each side of a matrix is the longer one once

# T5X's dimensions of a stack, and its gradient as one matrix per layer.
STACKS = {
    "encoder/encoder/attention/query/kernel": ((D, L, H, K), lambda g: g.transpose(1, 0, 2, 3).reshape(L, D, H * K)),
    "decoder/decoder/self_attention/out/kernel": ((H, L, K, D), lambda g: g.transpose(1, 0, 2, 3).reshape(L, H * K, D)),
    "decoder/decoder/mlp/wi_0/kernel": ((D, L, F), lambda g: g.transpose(1, 0, 2)),
    "encoder/encoder/mlp/wo/kernel": ((F, L, D), lambda g: g.transpose(1, 0, 2)),
    "encoder/encoder/pre_mlp_layer_norm/scale": ((D, L), lambda g: g.T),
    "encoder/encoder/relpos_bias/rel_embedding": ((H, L, 32), lambda g: g.transpose(1, 0, 2)),
}


def slots_of_t5x(name, gradient):
    """T5X's rules: `embed` is ROW; heads, their width and mlp are COLUMN; layers are not averaged."""
    squares, unused = np.square(gradient) + 1e-30, np.zeros(1, np.float32)
    if not name.endswith("/kernel"):
        return {"v_row": unused, "v_col": unused, "v": squares}
    rows = [axis for axis, size in enumerate(squares.shape) if size == D]
    columns = [axis for axis, size in enumerate(squares.shape) if size in (H, K, F)]
    return {"v_row": squares.mean(tuple(columns)), "v_col": squares.mean(tuple(rows)), "v": unused}


@pytest.mark.parametrize("name", STACKS)
def test_stacked_slots_become_those_of_each_layer(tmp_path, name):
    shape, as_layers = STACKS[name]
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    slots = {f"{name}/{slot}": array for slot, array in slots_of_t5x(name, gradient).items()}
    folder = t5x_state.write(tmp_path / "checkpoint_7", {name: gradient}, slots, step=7)
    state = optimizer_state.read(folder)
    assert state.step == 7
    ours = {n.rsplit("/", 1)[1]: stored_leaves.whole(leaf) for n, leaf in state.slots.items()}
    assert all(n.split("/")[1] == "layers" for n in state.slots)
    transform = optax.scale_by_factored_rms()
    for number, matrix in enumerate(as_layers(gradient)):
        _, expected = transform.update(matrix, transform.init(matrix), matrix)  # the first decay is 0
        for slot, array in ours.items():
            np.testing.assert_allclose(array[number], getattr(expected, slot), rtol=1e-5, err_msg=slot)


def test_both_formats_are_read(tmp_path):
    gradients = {
        "encoder/layers_0/mlp/wo/kernel": np.random.default_rng(0).normal(size=(140, 130)),
        "scale": np.ones(3),
    }
    slots, params = t5x_state.moments(gradients), {name: np.float32(x) for name, x in gradients.items()}
    for orbax in (False, True):
        state = optimizer_state.read(t5x_state.write(tmp_path / f"checkpoint_{orbax:d}", params, slots, 7, orbax))
        assert state.step == 7
        assert {n: stored_leaves.whole(leaf).tobytes() for n, leaf in state.slots.items()} == {
            n: array.tobytes() for n, array in slots.items()
        }


def test_t5xs_own_checkpoints_hold_the_same_state_in_both_formats(testdata):
    for kind in ("t5", "scalable_t5"):
        folders = (testdata / "t5x_tiny" / f"{kind}_{written}" / "checkpoint_0" for written in ("legacy", "orbax"))
        legacy, orbax = map(optimizer_state.read, folders)
        assert legacy.step == orbax.step == 0
        assert {n: (x.shape, x.dtype) for n, x in legacy.slots.items()} == {
            n: (x.shape, x.dtype) for n, x in orbax.slots.items()
        }


@pytest.mark.parametrize(
    "slots,message",
    [
        ({"m": np.zeros(3, np.float32)}, "holds the state of Adafactor with momentum, such as scale/m"),
        ({"grad_sq_ema": np.zeros(3, np.float32)}, "another optimizer than T5X's Adafactor, with slots named grad_sq"),
        ({"v_row": np.zeros(3, np.int32)}, "is of int32, expected one of"),
    ],
)
def test_states_that_cannot_be_read(tmp_path, slots, message):
    unused = {f"scale/{slot}": np.zeros(1, np.float32) for slot in ("v_row", "v_col", "v")}
    given = {f"scale/{slot}": array for slot, array in slots.items()}
    folder = t5x_state.write(tmp_path / "checkpoint_1", {"scale": np.zeros(3, np.float32)}, {**unused, **given}, 1)
    with pytest.raises(ValueError, match=message):
        optimizer_state.read(folder)


def test_stacked_slots_of_other_dimensions(tmp_path):
    name = "encoder/encoder/mlp/wo/kernel"
    slots = {f"{name}/{slot}": np.zeros((2, 3, 4), np.float32) for slot in ("v_row", "v_col", "v")}
    folder = t5x_state.write(tmp_path / "checkpoint_1", {name: np.zeros((2, 3, 4), np.float32)}, slots, 1)
    with pytest.raises(ValueError, match=r"has the shape \(2, 3, 4\), with a v_col \(2, 3, 4\); copy it again"):
        optimizer_state.read(folder)
