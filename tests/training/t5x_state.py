"""Checkpoints with an optimizer's state in T5X's formats, for tests."""

import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from promot_t5x.models import parameter_names


def write(folder, params, slots, step, orbax=False):
    """Writes `folder`, a checkpoint_N, in Orbax's format or in the legacy one, with every array inline.

    Args:
      folder: new.
      params: flat.
      slots: flat, `<parameter>/<slot>`; momentum, which is unused, is added.
      step: the number of updates.
      orbax: which format.
    """
    unused = {f"{name}/m": np.zeros(1, np.float32) for name in {name.rsplit("/", 1)[0] for name in slots}}
    state = {"step": np.int32(step), "param_states": parameter_names.unflatten({**unused, **slots})}
    tree = {"state": state, "target": parameter_names.unflatten(params)}
    if orbax:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
        return folder
    tree = {"version": 3, "optimizer": tree}
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    return folder


def moments(gradients):
    """T5X's slots after one update from zero, flat: the squares' means over the longer and the shorter dimension."""
    slots = {}
    for name, gradient in gradients.items():
        squares, unused = np.square(np.asarray(gradient, np.float32)) + 1e-30, np.zeros(1, np.float32)
        if squares.ndim == 2 and min(squares.shape) >= 128:
            shorter, longer = np.argsort(squares.shape)
            parts = {"v_row": squares.mean(longer), "v_col": squares.mean(shorter), "v": unused}
        else:
            parts = {"v_row": unused, "v_col": unused, "v": squares}
        slots |= {f"{name}/{slot}": array for slot, array in parts.items()}
    return slots
