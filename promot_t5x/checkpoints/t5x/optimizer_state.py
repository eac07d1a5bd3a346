"""Reads the state of T5X's Adafactor from its checkpoints, in both formats and both layouts.

T5X stores four slots per parameter: second moments, either factored (`v_row`, `v_col`) or not (`v`), and a momentum
`m`; unused ones have the shape [1]. For a matrix, `v_row` is the mean over the longer dimension, as in optax. A stack
of `scalable_t5` is factored by the names of its dimensions instead, whatever its size: `v_row` is the mean over heads
and their width, or over the MLP, `v_col` the mean over the embedding.

Source: https://github.com/google-research/t5x, `adafactor.py`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from etils import epath

from promot_t5x.checkpoints import arrays, stored_leaves
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.checkpoints.t5x import layouts, reader

SLOTS = ("v_row", "v_col", "v")

_STATE = ("state",)

_SLOTS_OF_T5X = {*SLOTS, "m"}

_UNUSED = (1,)

_ADVICE = ": set RESTORE_OPTIMIZER to False for a fresh optimizer, or give a checkpoint of T5X's own training"


@dataclasses.dataclass(frozen=True)
class AdafactorState:
    """The state of T5X's Adafactor.

    Attributes:
      step: the number of updates so far.
      slots: `<parameter>/<slot>` under our names, in the parameters' layout; a stack has those of its layers, stacked.
    """

    step: int
    slots: dict[str, StoredLeaf]


def read(folder: epath.Path) -> AdafactorState:
    """The optimizer's state of a checkpoint; slots are opened, but not read yet.

    Args:
      folder: as for `reader.read`.

    Raises:
      FileNotFoundError: the folder, or an array that its index lists, does not exist.
      ValueError: it is not a T5X checkpoint, is damaged, or holds no state of Adafactor without momentum.
    """
    listed = reader.listed(folder, _STATE)
    prefix = "param_states/"
    slots = {name.removeprefix(prefix): leaf for name, leaf in listed.items() if name.startswith(prefix)}
    if not slots or "step" not in listed:
        raise ValueError(f"{folder} holds no optimizer state{_ADVICE}.")
    if others := sorted({name.rsplit("/", 1)[-1] for name in slots} - _SLOTS_OF_T5X):
        raise ValueError(
            f"{folder} holds the state of another optimizer than T5X's Adafactor, with slots named "
            f"{', '.join(others[:3])}{_ADVICE}."
        )
    opened = reader.opened(folder, slots)
    for name, leaf in opened.items():
        if name.endswith("/m") and leaf.shape != _UNUSED:
            raise ValueError(f"{folder} holds the state of Adafactor with momentum, such as {name}{_ADVICE}.")
    without_momentum = {name: leaf for name, leaf in opened.items() if not name.endswith("/m")}
    return AdafactorState(arrays.integer(listed["step"]), _in_our_layout(without_momentum))


def _in_our_layout(slots: Mapping[str, StoredLeaf]) -> dict[str, StoredLeaf]:
    """Slots of `scalable_t5` as those of our stacks; slots of `t5` pass through.

    Raises:
      ValueError: a slot lacks a dimension or its counterpart.
    """
    by_parameter: dict[str, dict[str, StoredLeaf]] = {}
    for name, leaf in slots.items():
        parameter, slot = name.rsplit("/", 1)
        by_parameter.setdefault(parameter, {})[slot] = leaf
    result = {}
    for parameter, its_slots in by_parameter.items():
        if lacking := [slot for slot in SLOTS if slot not in its_slots]:
            source = next(iter(its_slots.values())).source
            raise ValueError(f"{source}: {parameter} has no slot {lacking[0]}; copy the checkpoint again.")
        if layouts.is_scanned([parameter]):
            parameter, its_slots = _of_stack(parameter, its_slots)
        result |= {f"{parameter}/{slot}": leaf for slot, leaf in its_slots.items()}
    return dict(sorted(result.items()))


def _of_stack(parameter: str, slots: Mapping[str, StoredLeaf]) -> tuple[str, dict[str, StoredLeaf]]:
    """(our name, the slots of our stack) of a stacked parameter of `scalable_t5`."""
    v_row, v_col, v = (slots[slot] for slot in SLOTS)
    if v_row.shape == _UNUSED:
        [(name, moments)] = layouts.from_scanned({parameter: v}).items()
        unused = stored_leaves.stack([v_row] * moments.shape[0])
        return name, {"v_row": unused, "v_col": unused, "v": moments}
    name = layouts.our_stack(parameter)
    by_head = name.endswith((*layouts.PROJECTIONS, layouts.OUT))
    if (len(v_row.shape), len(v_col.shape)) != (2, 3 if by_head else 2):
        raise ValueError(f"{v_row.source} has the shape {v_row.shape}, with a v_col {v_col.shape}; copy it again.")
    embed_is_first = not name.endswith((layouts.OUT, "wo/kernel"))
    if embed_is_first:  # v_row [D, L], v_col [L, F] or [L, H, K]
        over_embed = stored_leaves.transposed(v_row, (1, 0))
        over_others = v_col
    else:  # v_row [L, D], v_col [F, L] or [H, L, K]
        over_embed = v_row
        over_others = stored_leaves.transposed(v_col, (1, 0, *range(2, len(v_col.shape))))
    if by_head:
        over_others = stored_leaves.joined(over_others, 1)
    moments = (over_embed, over_others) if embed_is_first else (over_others, over_embed)
    shorter, longer = np.argsort([moment.shape[1] for moment in moments])  # as optax decides which is v_row
    unused = stored_leaves.stack([v] * over_embed.shape[0])
    return name, {"v_row": moments[shorter], "v_col": moments[longer], "v": unused}
