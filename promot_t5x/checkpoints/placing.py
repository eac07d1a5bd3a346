"""From leaves in files to arrays on the mesh: compared with what is wanted, then read to where they belong.

Every process reads the blocks of its own devices, a few leaves at a time, so that no host ever holds a whole model.
"""

import collections
import itertools
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import Leaves, StoredLeaf
from promot_t5x.models import parameter_names

_READERS = 4  # leaves that are read at the same time

_AHEAD = 2 * _READERS  # leaves that are read or wait to be looked at; of stacks to be taken apart, no more are held

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

    Layers that become a stack are read into its blocks. A stack that becomes layers is read once, cut over the mesh as
    its layers are, and taken apart on the devices: reading layer by layer would decode each of its chunks as often as
    there are layers.

    Args:
      leaves: in either layout.
      wanted: the same names in the network's layout, to anything with shape, dtype and sharding. A leaf stored in
        another floating dtype is converted; one without a sharding becomes a numpy array.

    Raises:
      ValueError: a file is damaged, or holds numbers that are not finite.
    """
    takes_apart = parameter_names.is_scanned(leaves) and not parameter_names.is_scanned(wanted)
    like = _stacks_of(wanted) if takes_apart else wanted
    leaves = stored_leaves.as_stored_in(leaves, like)
    placed = {}
    with futures.ThreadPoolExecutor(_READERS) as pool:
        names, reading = iter(like), collections.deque()
        while True:  # in the same order on every process, as computations on several must be
            for name in itertools.islice(names, _AHEAD - len(reading)):
                reading.append((name, pool.submit(_read, leaves[name], like[name])))
            if not reading:
                break
            name, future = reading.popleft()
            array = future.result()
            if not bool(_is_finite(array)):
                raise ValueError(
                    f"{leaves[name].source} holds numbers that are not finite (NaN or infinity): its run had failed, "
                    "or it is damaged; take an earlier checkpoint or copy it again."
                )
            placed |= {name: array} if name in wanted else _taken_apart(name, array, wanted)
            del array, future  # a stack that was taken apart is not held any longer
    return {name: placed[name] for name in wanted}


def _read(leaf: StoredLeaf, like: Any) -> Any:
    if getattr(like, "sharding", None) is None:
        return stored_leaves.whole(leaf).astype(like.dtype, copy=False)

    def block(index: Any) -> np.ndarray:
        slices = (slice(*i.indices(size)[:2]) for i, size in zip(index, leaf.shape, strict=True))
        return leaf.read(tuple(slices)).astype(like.dtype, copy=False)

    return jax.make_array_from_callback(like.shape, like.sharding, block)


def _stacks_of(wanted: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The stacks of the wanted layers, cut over the mesh as these are and never along the layers."""
    shapes = jax.eval_shape(
        parameter_names.stack_layers, {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in wanted.items()}
    )
    one_layer = {parameter_names.stack_name(name): leaf for name, leaf in wanted.items()}

    def with_sharding(name: str, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = getattr(one_layer[name], "sharding", None)
        if name not in wanted and isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return {name: with_sharding(name, shape) for name, shape in shapes.items()}


def _taken_apart(name: str, stack: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The layers of a stack, each where it belongs."""
    if isinstance(stack, np.ndarray):
        return parameter_names.unstack_layers({name: stack})
    layers = parameter_names.unstack_layers({name: stack}, lambda _, number: number)
    shardings = {layer: wanted[layer].sharding for layer in layers}
    return jax.jit(parameter_names.unstack_layers, out_shardings=shardings)({name: stack})


def _is_finite(array: Any) -> Any:
    # The largest size is NaN when any number is; a comparison of each would write an array.
    if isinstance(array, np.ndarray):
        return np.isfinite(np.max(np.abs(array), initial=0))
    return _is_finite_on_devices(array)


@jax.jit
def _is_finite_on_devices(array: jax.Array) -> jax.Array:
    return jnp.isfinite(jnp.max(jnp.abs(array), initial=0))
