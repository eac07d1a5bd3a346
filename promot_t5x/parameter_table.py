"""The table of parameters that every run prints: what trains, what is frozen, how much memory, where it lives."""

import collections
from typing import Any

import numpy as np

from promot_t5x import layout, stages
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner


def parameter_table(params: Any, stage: stages.Stage, partitioner: Partitioner, model: EncoderDecoderModel) -> str:
    """One line a group of leaves: trained or frozen, number of parameters, bytes, dtype, sharding of its largest leaf.

    Args:
      params: arrays or ShapeDtypeStructs.
      stage: says what trains.
      partitioner: says where leaves live.
      model: knows the logical axes.
    """
    specs = layout.flatten(partitioner.specs(model.logical_axes()))
    groups: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for name, leaf in layout.flatten(params).items():
        groups[_group(name)][name] = leaf
    header = ("group", "stage", "parameters", "MiB", "dtype", "sharding")
    rows: list[tuple[str, ...]] = [header]
    totals = {"trained": 0, "frozen": 0}
    for group, leaves in groups.items():
        count = sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
        size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves.values())
        state = "trained" if stage.trains(next(iter(leaves))) else "frozen"
        totals[state] += count
        dtypes = ",".join(sorted({str(leaf.dtype) for leaf in leaves.values()}))
        largest = max(leaves, key=lambda name: int(np.prod(leaves[name].shape)))
        spec = [axis or "-" for axis in specs[largest]]
        rows.append((group, state, f"{count:,}", f"{size / 2**20:,.2f}", dtypes, "x".join(spec)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = f"stage {stage.name}: {totals['trained']:,} parameters train, {totals['frozen']:,} are frozen"
    return "\n".join([*lines, total])


def _group(name: str) -> str:
    return "decoder/logits_dense" if name.startswith("decoder/logits_dense") else name.split("/")[0]
