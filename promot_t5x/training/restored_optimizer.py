"""Starts a run with the optimizer's state of the T5X checkpoint that it starts from: moments and number of updates.

T5X's fine-tuning does so by default: from a model pretrained for 1,000,000 steps, the decay of the second moments,
1 - t^-0.8, starts at 1 - 1.6e-5 instead of 0, and a schedule starts at t = 1,000,000. All counts of the optimizer start
at the checkpoint's step. A soft prompt, which has no slots there, starts with zeros; so it does in T5X.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from promot_t5x.checkpoints import placing, stored_leaves
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.checkpoints.t5x import optimizer_state, reader
from promot_t5x.models import parameter_names
from promot_t5x.partitioning import optimizer_slots
from promot_t5x.training import optimizers, stages

_SLOT = re.compile(rf"/({'|'.join(optimizer_state.SLOTS)})/(.+)$")


@dataclasses.dataclass(frozen=True)
class StoredState:
    """The state of a T5X checkpoint's optimizer, compared with that of a run.

    Attributes:
      step: the number of updates that the counts start from.
      slots: `<parameter>/<slot>` of the leaves that the run trains, in its layout; without the soft prompt.
    """

    step: int
    slots: Mapping[str, StoredLeaf]


def opened(path: str, optimizer: optimizers.Optimizer, params: stages.Params, stage: stages.Stage) -> StoredState:
    """Opens the optimizer's state of a T5X checkpoint and compares it with the run's; nothing is read yet.

    Args:
      path: the checkpoint.
      optimizer: the run's.
      params: the whole tree, arrays or shapes.
      stage: the stage.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: it is no checkpoint of T5X, holds no state or another optimizer's, or the run's optimizer has other
        slots.
    """
    folder = epath.Path(path)
    if folder.exists() and not reader.is_t5x_checkpoint(folder):
        raise ValueError(
            f"RESTORE_OPTIMIZER is True, but INITIAL_CHECKPOINT_PATH is {folder}, no checkpoint of T5X, whose "
            "optimizer state alone can be restored: give one, or set RESTORE_OPTIMIZER to False."
        )
    stored = optimizer_state.read(folder)
    trainable, _ = stages.partition(params, stage)
    fresh = jax.eval_shape(optimizers.Staged(optimizer, stage).init, trainable)
    slots = _slots(optimizer_slots.by_path(fresh))
    wanted = {name: leaf for name, leaf in slots.items() if not name.startswith(f"{parameter_names.PROMPT}/")}
    in_layout = stored_leaves.as_stored_in(stored.slots, wanted) if wanted else {}
    for name, leaf in wanted.items():
        shape = in_layout[name].shape if name in in_layout else None
        if shape != leaf.shape:
            raise ValueError(
                f"The optimizer state in {folder} has {f'no slot {name}' if shape is None else f'{name} {shape}'}, "
                f"expected {leaf.shape}: give the checkpoint of this network, or set RESTORE_OPTIMIZER to False."
            )
    return StoredState(stored.step, {name: in_layout[name] for name in wanted})


def restored(fresh: Any, stored: StoredState) -> Any:
    """A fresh optimizer state with the stored slots and counts, on the devices where `fresh` is.

    Args:
      fresh: the state before the first step, of arrays.
      stored: what `opened` returned for the same optimizer, parameters and stage.

    Raises:
      ValueError: a file is damaged.
    """
    leaves = optimizer_slots.by_path(fresh)
    like = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _slots(leaves).items()
        if name in stored.slots
    }
    placed = placing.place(stored.slots, like)

    def start(path: str, leaf: jax.Array) -> jax.Array:
        if match := _SLOT.search(path):
            return placed.get(f"{match[2]}/{match[1]}", leaf)
        return jax.jit(lambda: jnp.full(leaf.shape, stored.step, leaf.dtype), out_shardings=leaf.sharding)()

    return jax.tree.unflatten(jax.tree.structure(fresh), [start(path, leaf) for path, leaf in leaves.items()])


def _slots(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The slots in an optimizer's state, as `<parameter>/<slot>`.

    Raises:
      ValueError: it has other leaves than slots of Adafactor and counts, or no slots.
    """
    slots = {f"{match[2]}/{match[1]}": leaf for path, leaf in leaves.items() if (match := _SLOT.search(path))}
    others = [path for path in leaves if not _SLOT.search(path) and not path.endswith("/count")]
    if others or not slots:
        held = f"state such as {others[0]}" if others else "no second moments"
        raise ValueError(
            f"RESTORE_OPTIMIZER is True, which restores the state of Adafactor, but OPTIMIZER has {held}: set it to "
            "@optimizers.adafactor(), or RESTORE_OPTIMIZER to False."
        )
    return slots
