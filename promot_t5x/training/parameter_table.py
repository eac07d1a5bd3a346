"""The table of parameters that every run prints: what trains, what is frozen, how much memory, where it lives."""

import dataclasses
import math
from typing import Any

from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime.text import aligned
from promot_t5x.training import stages

LEGEND = "sharding: the mesh axis that divides each dimension, - for none; so -xmodel divides the second of two"

"""What to print below the table."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves of one part of the network.

    Attributes:
      name: the part, "encoder"; "encoder, trained" and "encoder, frozen" where a stage trains some of its leaves.
      state: "trained" or "frozen".
      count: parameters.
      bytes: of all of them; copies on several devices count once.
      dtype: of the leaves, joined by a comma where they differ.
      sharding: mesh axes of the largest leaf's dimensions, "-" for none.
    """

    name: str
    state: str
    count: int
    bytes: int
    dtype: str
    sharding: str


def parameter_groups(params: Any, stage: stages.Stage, partitioner: Partitioner, model: EncoderDecoderModel):
    """The list of groups of a parameter tree.

    Args:
      params: arrays or ShapeDtypeStructs.
      stage: says what trains.
      partitioner: says where leaves live.
      model: knows the logical axes.
    """
    specs = parameter_names.flatten(partitioner.specs(model.logical_axes()))
    leaves: dict[str, dict[str, dict[str, Any]]] = {}
    for name, leaf in parameter_names.flatten(params).items():
        state = "trained" if stage.trains(name) else "frozen"
        leaves.setdefault(_group(name), {}).setdefault(state, {})[name] = leaf

    def group(name: str, state: str, leaves: dict[str, Any]) -> Group:
        sizes = {name: math.prod(leaf.shape) for name, leaf in leaves.items()}
        return Group(
            name,
            state,
            sum(sizes.values()),
            sum(sizes[name] * leaf.dtype.itemsize for name, leaf in leaves.items()),
            ",".join(sorted({str(leaf.dtype) for leaf in leaves.values()})),
            "x".join(map(_axes, specs[max(sizes, key=sizes.__getitem__)])),
        )

    return [
        group(name if len(by_state) == 1 else f"{name}, {state}", state, in_state)
        for name, by_state in leaves.items()
        for state, in_state in by_state.items()
    ]


def parameter_table(params: Any, stage: stages.Stage, partitioner: Partitioner, model: EncoderDecoderModel) -> str:
    """One line per group of leaves; takes what `parameter_groups` takes."""
    groups = parameter_groups(params, stage, partitioner, model)
    rows = [("group", "stage", "parameters", "MiB", "dtype", "sharding")]
    rows += [(g.name, g.state, f"{g.count:,}", f"{g.bytes / 2**20:,.2f}", g.dtype, g.sharding) for g in groups]
    totals = {state: sum(g.count for g in groups if g.state == state) for state in ("trained", "frozen")}
    total = f"stage {stage.name}: {totals['trained']:,} parameters train, {totals['frozen']:,} are frozen"
    return f"{aligned(rows)}\n{total}"


def _axes(axes: Any) -> str:
    return "-" if axes is None else axes if isinstance(axes, str) else "+".join(axes)


def _group(name: str) -> str:
    return "decoder/logits_dense" if name.startswith("decoder/logits_dense") else name.split("/")[0]
