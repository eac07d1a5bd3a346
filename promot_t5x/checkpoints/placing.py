"""Leaves in files -> arrays on the mesh: compares them with the wanted ones, then reads them onto their devices.

Every process reads the blocks of its own devices, a few leaves at a time, so that no host ever holds a whole model.
"""

import functools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import Index, Leaves, StoredLeaf
from promot_t5x.models import parameter_names

_READERS = 4  # leaves that are read at the same time

CHECK_GIN = "check the model's gin file"

_LISTED = 20  # most rows of a message


def compare(
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    source: str,
    problem: str = "does not hold this network's parameters",
    advice: str = CHECK_GIN,
) -> None:
    """Checks that two sets of leaves agree in names, shapes and dtypes.

    Args:
      stored: flat names to anything with a shape and a dtype.
      wanted: the same for the expected leaves.
      source: what holds the stored leaves, for the message.
      problem: what a difference means, for the message.
      advice: what to do about it, for the message.

    Raises:
      ValueError: lists the leaves that are missing, unexpected, or of another shape or dtype.
    """
    rows = []
    for name in sorted(set(stored) | set(wanted)):
        here, there = (f"{tuple(x[name].shape)} {x[name].dtype}" if name in x else "-" for x in (stored, wanted))
        if here != there:
            kind = "missing" if here == "-" else "unexpected" if there == "-" else "differs"
            rows.append(f"  {kind:10} {name:60} stored {here:28} wanted {there}")
    if rows:
        more = [f"  ... and {len(rows) - _LISTED} more"] if len(rows) > _LISTED else []
        raise ValueError(
            f"{source} {problem}; {len(rows)} leaves differ, {advice}:\n" + "\n".join(rows[:_LISTED] + more)
        )


def place(leaves: Leaves, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Reads leaves onto their devices.

    Layers that become a stack are read into its blocks. A stack that becomes layers is read once, and the layers are
    views of what was read: reading layer by layer would decode each of its chunks as often as there are layers.

    Args:
      leaves: in either layout.
      wanted: the same names in the network's layout, to anything with shape, dtype and sharding. A leaf stored in
        another floating dtype is converted; one without a sharding becomes a numpy array.

    Raises:
      ValueError: a file is damaged, or holds numbers that are not finite or too large for the wanted dtype.
    """
    takes_apart = parameter_names.is_scanned(leaves) and not parameter_names.is_scanned(wanted)
    if takes_apart:
        stored = list(dict.fromkeys(parameter_names.stack_name(name) for name in wanted))
    else:
        leaves, stored = stored_leaves.as_stored_in(leaves, wanted), list(wanted)
    placed = {}
    with futures.ThreadPoolExecutor(_READERS) as pool:
        for arrays in pool.map(lambda name: _read(name, leaves[name], wanted), stored):
            placed |= arrays
    return {name: placed[name] for name in wanted}


def _read(name: str, leaf: StoredLeaf, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Reads one leaf, or one stack as its layers, onto their devices."""
    if name in wanted:
        return {name: _placed(leaf.read, leaf.source, wanted[name])}
    blocks: dict[Any, np.ndarray] = {}

    def layer(number: int, index: Index) -> np.ndarray:
        ends = tuple((i.start, i.stop) for i in index)
        if ends not in blocks:
            blocks[ends] = leaf.read((slice(0, leaf.shape[0]), *index))
        return blocks[ends][number]

    numbers = parameter_names.unstack_layers({name: leaf}, lambda _, number: number)
    return {
        each: _placed(functools.partial(layer, number), leaf.source, wanted[each]) for each, number in numbers.items()
    }


def _placed(read: Callable[[Index], np.ndarray], source: str, like: Any) -> Any:
    """The array whose blocks `read` returns, in the dtype and sharding of `like`."""

    def block(index: Any) -> np.ndarray:
        slices = (slice(*i.indices(size)[:2]) for i, size in zip(index, like.shape, strict=True))
        return stored_leaves.converted(read(tuple(slices)), like.dtype, source)

    if getattr(like, "sharding", None) is None:
        return block(stored_leaves.everything(like.shape))
    # Waits until the devices have it, so that the host holds the blocks of only _READERS leaves.
    return jax.block_until_ready(jax.make_array_from_callback(like.shape, like.sharding, block))
