"""Where the slots of an optimizer are, from the parameters they belong to."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.partitioning.partitioner import _shortest


def slot_shardings(slots: Any, parameters: Any) -> Any:
    """The sharding of every leaf of an optimizer's state, from that of the parameter it belongs to.

    A slot of its parameter's shape lies as that; one that lacks a dimension (a factored second moment) lies as the
    dimensions that are left; counters and the like are on every device.

    Args:
      slots: the state's shapes; the path of a parameter's slot ends with the parameter's.
      parameters: arrays or ShapeDtypeStructs with a sharding; leaves that are None own no slots.
    """
    owners = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]]
    anywhere = owners[0][1].sharding
    if isinstance(anywhere, NamedSharding):
        anywhere = NamedSharding(anywhere.mesh, PartitionSpec())

    def place(path, slot):
        name = jax.tree_util.keystr(path)
        owner = next((leaf for owner_name, leaf in owners if name.endswith(owner_name)), None)
        if owner is None or not isinstance(owner.sharding, NamedSharding):
            return anywhere
        if slot.shape == owner.shape:
            return owner.sharding
        axes = [*owner.sharding.spec, *[None] * (owner.ndim - len(owner.sharding.spec))]
        lacking = [i for i in range(owner.ndim) if owner.shape[:i] + owner.shape[i + 1 :] == slot.shape]
        if not lacking:
            return anywhere
        # Of two equal dimensions optax's row moment lacks the later one, its column moment the earlier one.
        del axes[lacking[-1] if "v_row" in name else lacking[0]]
        return NamedSharding(owner.sharding.mesh, _shortest(PartitionSpec(*axes)))

    return jax.tree_util.tree_map_with_path(place, slots)
