"""From leaves in files to arrays on the mesh: compared with what is wanted, then read to where they belong.

Every process reads the blocks of its own devices, a few leaves at a time, so that no host ever holds a whole model.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import Index, Leaves, StoredLeaf
from promot_t5x.models import parameter_names

_READERS = 4  # leaves that are read at the same time

_AHEAD = 2 * _READERS  # leaves that are read or wait to be looked at

_LISTED = 20  # rows of one message


def compare(
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    source: str,
    problem: str = "does not hold this network's parameters",
    advice: str = "check the model's gin file",
) -> None:
    """Checks that two sets of leaves agree in names, shapes and dtypes.

    Args:
      stored: flat names to anything with a shape and a dtype.
      wanted: the same of what is expected.
      source: what holds the stored ones, for the message.
      problem: what a difference means.
      advice: what to do about it.

    Raises:
      ValueError: lists what is missing, unexpected, misshapen or of another dtype.
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
    """Reads leaves to where they belong.

    Layers that become a stack are read into its blocks. A stack that becomes layers is read once, and they are views
    of what was read: reading layer by layer would decode each of its chunks as often as there are layers.

    Args:
      leaves: in either layout.
      wanted: the same names in the network's layout, to anything with shape, dtype and sharding. A leaf stored in
        another floating dtype is converted; one without a sharding becomes a numpy array.

    Raises:
      ValueError: a file is damaged, or holds numbers that are not finite or that the wanted dtype does not have.
    """
    takes_apart = parameter_names.is_scanned(leaves) and not parameter_names.is_scanned(wanted)
    if takes_apart:
        stored = list(dict.fromkeys(parameter_names.stack_name(name) for name in wanted))
    else:
        leaves, stored = stored_leaves.as_stored_in(leaves, wanted), list(wanted)
    placed = {}
    with futures.ThreadPoolExecutor(_READERS) as pool:
        names, reading = iter(stored), collections.deque()
        while True:
            for name in itertools.islice(names, _AHEAD - len(reading)):
                reading.append((name, pool.submit(_read, name, leaves[name], wanted)))
            if not reading:
                break
            name, future = reading.popleft()
            placed |= future.result()
    return {name: placed[name] for name in wanted}


def _read(name: str, leaf: StoredLeaf, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A leaf, or the layers of a stack, each where it belongs."""
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
    """The array that `read` gives the blocks of, in the dtype and sharding of `like`."""

    def block(index: Any) -> np.ndarray:
        slices = (slice(*i.indices(size)[:2]) for i, size in zip(index, like.shape, strict=True))
        return stored_leaves.converted(read(tuple(slices)), like.dtype, source)

    if getattr(like, "sharding", None) is None:
        return block(stored_leaves.everything(like.shape))
    return jax.make_array_from_callback(like.shape, like.sharding, block)
