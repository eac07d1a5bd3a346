"""A plan, as text for the terminal and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.planning.chips import Topology
from promot_t5x.planning.measures import GIB, Measured
from promot_t5x.runtime.text import aligned
from promot_t5x.training.parameter_table import Group

_NO = "-"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The measurements of a plan; `str` makes readable tables of them.

    Attributes:
      topology: the slice.
      partitioner: preset and mesh.
      groups: groups of parameters, by stage.
      stages: one training step per stage.
      evaluation: the programs "scoring" and "decoding"; either may be missing.
      advice: for each program that does not fit, what to try, in order.
      eval_batch_size: what `search.proposed_rows` proposes; None for nothing.
    """

    topology: Topology
    partitioner: Partitioner
    groups: Mapping[str, Sequence[Group]]
    stages: Mapping[str, Measured]
    evaluation: Mapping[str, Measured]
    advice: Mapping[str, Sequence[str]]
    eval_batch_size: int | None = None

    def __str__(self) -> str:
        return text(self)


def text(plan: Plan) -> str:
    """The plan as tables for the terminal."""
    programs = {**plan.stages, **plan.evaluation}
    parts = [f"{plan.topology}, {mesh_name(plan.partitioner)}", _parameters(plan), _memory(programs), _work(programs)]
    parts += [f"Traffic of {name}, received by one device\n{_traffic(m)}" for name, m in programs.items() if m.fits]
    for name, steps in plan.advice.items():
        measured = programs[name]
        short = f"{name} does not fit: {_gib(measured.needed)} GiB needed, {_gib(measured.hbm)} GiB available"
        if measured.needed <= measured.hbm:  # the compiler did not say how much
            short = f"{name} does not fit into {_gib(measured.hbm)} GiB"
        largest = "".join(f"\n  largest: {line}" for line in measured.largest)
        parts.append(short + largest + "".join(f"\n  {i}. {step}" for i, step in enumerate(steps, start=1)))
    if plan.eval_batch_size is not None:
        parts.append(
            f"EVAL_BATCH_SIZE={plan.eval_batch_size} fits: rows of a batch of the longest inputs. Batches of shorter "
            "inputs\nget more rows by themselves."
        )
    parts.append(
        "Memory, FLOPs and bytes are read from the compiled programs. Seconds are estimates: products at the chip's\n"
        "peak rate, traffic at the full bandwidth of its links. No step is faster than the larger of the two."
    )
    return "\n\n".join(parts)


def mesh_name(partitioner: Partitioner) -> str:
    """Such as "preset mixed, mesh data 16 x model 4"; `replica` is left out if there is only one slice."""
    sizes = {axis: size for axis, size in partitioner.mesh().shape.items() if axis != "replica" or size > 1}
    return f"preset {partitioner.preset}, mesh {' x '.join(f'{axis} {size}' for axis, size in sizes.items())}"


def _parameters(plan: Plan) -> str:
    states = list(plan.groups)
    rows = [("parameters", "count", "total GiB", "sharding", *states)]
    by_name: dict[str, dict[str, Group]] = {}
    for state, groups in plan.groups.items():
        for group in groups:
            by_name.setdefault(group.name, {})[state] = group
    for name, by_stage in by_name.items():
        first = next(iter(by_stage.values()))
        held = [f"{by_stage[s].state} {by_stage[s].dtype}" if s in by_stage else _NO for s in states]
        rows.append((name, f"{first.count:,}", f"{first.bytes / GIB:.2f}", first.sharding, *held))
    return aligned(rows, numbers=(1, 2))


def _memory(programs: Mapping[str, Measured]) -> str:
    rows = [("GiB per device", "arguments", "temporaries", "sum", "peak", "HBM", "fits")]
    for name, m in programs.items():
        temporaries, total = (_NO, _NO) if m.temporaries is None else (_gib(m.temporaries), _gib(m.needed))
        peak = _gib(m.peak) if m.peak else _NO
        rows.append((name, _gib(m.arguments), temporaries, total, peak, _gib(m.hbm), "yes" if m.fits else "NO"))
    return aligned(rows, numbers=range(1, 6))


def _work(programs: Mapping[str, Measured]) -> str:
    heads = ("per step", "FLOPs jaxpr", "FLOPs HLO", "ratio", "weight gradients", "compute s", "traffic s", "bound s")
    rows: list[tuple[str, ...]] = [heads]
    for name, m in programs.items():
        counted = (_NO,) * 2 if m.flops_hlo is None else (f"{m.flops_hlo:.4g}", f"{m.flops_hlo / m.flops_jaxpr:.3f}")
        rows.append((name, f"{m.flops_jaxpr:.4g}", *counted, f"{m.weight_gradient_flops:.4g}", *_seconds(m)))
    return aligned(rows, numbers=range(1, 8))


def _traffic(measured: Measured) -> str:
    rows = [("kind", "mesh axes", "times", "MB")]
    shown = [row for row in measured.collectives if row.bytes >= 1e4]
    rows += [(row.kind, row.axes, f"{row.count:,}", f"{row.bytes / 1e6:,.2f}") for row in shown]
    rows.append(("all", "", "", f"{measured.traffic / 1e6:,.2f}"))
    rows.append(("sums over data", "", "", f"{measured.data_axis_reductions / 1e6:,.2f}"))
    return aligned(rows, numbers=(2, 3))


def comparison(candidates: Sequence[tuple[Partitioner, Measured]]) -> str:
    """The presets and meshes of one program as a table, best first."""
    rows: list[tuple[str, ...]] = [("preset and mesh", "GiB needed", "fits", "compute s", "traffic s", "bound s")]
    for partitioner, m in candidates:
        rows.append((mesh_name(partitioner), _gib(m.needed), "yes" if m.fits else "NO", *_seconds(m)))
    return aligned(rows, numbers=(1, 3, 4, 5))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values; memory in GiB, traffic in bytes."""
    some = next(iter(plan.groups.values()))
    return {
        "topology": plan.topology.name,
        "cloud_name": plan.topology.cloud_name,
        "slices": plan.topology.slices,
        "mesh": _mesh(plan.partitioner),
        "parameters": {
            "count": sum(group.count for group in some),
            "groups": {name: [dataclasses.asdict(g) for g in groups] for name, groups in plan.groups.items()},
        },
        "stages": {name: _measured(m) for name, m in plan.stages.items()},
        "evaluation": {name: _measured(m) for name, m in plan.evaluation.items()},
        "eval_batch_size": plan.eval_batch_size,
    }


def candidate_json(partitioner: Partitioner, measured: Measured) -> dict[str, Any]:
    """One row of a comparison as JSON values."""
    return {"mesh": _mesh(partitioner), **_measured(measured)}


def _mesh(partitioner: Partitioner) -> dict[str, Any]:
    return {"preset": partitioner.preset, **partitioner.mesh().shape}


def _measured(m: Measured) -> dict[str, Any]:
    return {
        "arguments_gib": m.arguments / GIB,
        "temporaries_gib": None if m.temporaries is None else m.temporaries / GIB,
        "peak_gib": m.peak / GIB,
        "hbm_gib": m.hbm / GIB,
        "fits": m.fits,
        "flops_jaxpr": m.flops_jaxpr,
        "flops_hlo": m.flops_hlo,
        "weight_gradient_flops": m.weight_gradient_flops,
        "data_axis_reduction_bytes": m.data_axis_reductions if m.fits else None,
        "traffic_bytes": m.traffic if m.fits else None,
        "ideal_step_seconds": m.compute_seconds if m.fits else None,
        "collective_seconds": m.collective_seconds if m.fits else None,
        "collectives": [dataclasses.asdict(row) for row in m.collectives],
    }


def _seconds(m: Measured) -> list[str]:
    """The seconds of compute and of traffic, and their bound."""
    return [f"{s:.3f}" if m.fits else _NO for s in (m.compute_seconds, m.collective_seconds, m.bound_seconds)]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
