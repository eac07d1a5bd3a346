"""The leaves of an optimizer's state: their names, and their shardings, derived from those of the parameters."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.partitioning.partitioner import _shortest


def by_path(state: Any) -> dict[str, Any]:
    """The leaves of an optimizer's state by path, in the tree's order.

    >>> import optax
    >>> list(by_path(optax.sgd(0.1, momentum=0.9).init({"w": 0.0})))
    ['0/trace/w']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def slot_shardings(slots: Any, parameters: Any) -> Any:
    """The sharding of every leaf of an optimizer's state, derived from that of its parameter.

    A slot of its parameter's shape is sharded like the parameter; one that lacks a dimension (a factored second moment)
    is sharded like the remaining dimensions; counters and the like are replicated.

    Args:
      slots: shapes of the state; the path of a parameter's slot ends with the path of the parameter.
      parameters: arrays or ShapeDtypeStructs with a sharding; leaves that are None own no slots.
    """
    owners = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]]
    replicated = owners[0][1].sharding
    if isinstance(replicated, NamedSharding):
        replicated = NamedSharding(replicated.mesh, PartitionSpec())

    def place(path, slot):
        name = jax.tree_util.keystr(path)
        owner = next((leaf for owner_name, leaf in owners if name.endswith(owner_name)), None)
        if owner is None or not isinstance(owner.sharding, NamedSharding):
            return replicated
        if slot.shape == owner.shape:
            return owner.sharding
        axes = [*owner.sharding.spec, *[None] * (owner.ndim - len(owner.sharding.spec))]
        lacking = [i for i in range(owner.ndim) if owner.shape[:i] + owner.shape[i + 1 :] == slot.shape]
        if not lacking:
            return replicated
        # Of two equal dimensions optax's row moment lacks the later one, its column moment the earlier one.
        del axes[lacking[-1] if "v_row" in name else lacking[0]]
        return NamedSharding(owner.sharding.mesh, _shortest(PartitionSpec(*axes)))

    return jax.tree_util.tree_map_with_path(place, slots)
