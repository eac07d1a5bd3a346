"""From a traced program and a slice to numbers: memory, operations, traffic, and the least time that a step can take.

Memory, operations and traffic are read from the compiled program. The times are estimates: peak rates, traffic at the
full bandwidth of the links that an axis of the mesh runs over, nothing overlapping and nothing waiting.
"""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from promot_t5x.planning import flops, hlo, hlo_costs
from promot_t5x.planning.chips import Topology
from promot_t5x.planning.programs import Traced, bytes_per_device

GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one program needs and does; bytes, operations and seconds of one device and one step.

    Attributes:
      arguments: parameters, optimizer state and batch, in bytes.
      temporaries: memory in addition to them; None where the compiler gave up before it knew.
      peak: the compiler's own peak, or what it says it would need where that does not fit.
      hbm: memory of the device.
      fits: whether the program compiled.
      largest: the largest allocations, as the compiler names them, where it does not fit.
      devices: how many run the program.
      flops_jaxpr: operations of all devices, as the mathematics asks.
      flops_hlo: operations of all devices, as compiled; None where it does not fit.
      weight_gradient_flops: the part of flops_jaxpr that computes gradients of weights.
      collectives: traffic by kind and mesh axes.
      compute_seconds: flops_hlo at the peak rate.
      collective_seconds: the traffic at the full bandwidth of its links.
    """

    arguments: int
    temporaries: int | None
    peak: int
    hbm: int
    fits: bool
    largest: tuple[str, ...]
    devices: int
    flops_jaxpr: float
    flops_hlo: float | None = None
    weight_gradient_flops: float = 0.0
    collectives: tuple[hlo_costs.Collective, ...] = ()
    compute_seconds: float = 0.0
    collective_seconds: float = 0.0

    @property
    def needed(self) -> int:
        """The larger of the compiler's peak and arguments + temporaries: the peak can be below the temporaries."""
        return max(self.peak, self.arguments + (self.temporaries or 0))

    @property
    def bound_seconds(self) -> float:
        """No step is faster than the slower of its products and its traffic."""
        return max(self.compute_seconds, self.collective_seconds)

    @property
    def traffic(self) -> float:
        """Bytes received."""
        return sum(row.bytes for row in self.collectives)

    @property
    def data_axis_reductions(self) -> float:
        """Bytes received by sums over the devices that share out the batch: gradients, above all."""
        reduced = [row for row in self.collectives if row.reduces and {"data", "replica"} & set(row.axes.split("+"))]
        return sum(row.bytes for row in reduced)


def measure(traced: Traced, topology: Topology, unknown_trips: int | None = None) -> Measured:
    """Compiles a program and reads it.

    Args:
      traced: the program, for devices of the topology.
      topology: the slice.
      unknown_trips: rounds of loops that may end early: the length of a decode.
    """
    mesh = traced.partitioner.mesh()
    jaxpr = traced.traced.jaxpr.jaxpr
    before_compiling: dict[str, Any] = {
        "arguments": bytes_per_device(traced.arguments),
        "hbm": int(topology.chip.hbm_gib * GIB),
        "devices": mesh.size,
        "flops_jaxpr": flops.total(flops.products(jaxpr, unknown_trips=unknown_trips or 1)),
    }
    if traced.larger is not None:
        before_compiling["weight_gradient_flops"] = flops.weight_gradient_flops(jaxpr, traced.larger)
    if before_compiling["arguments"] > before_compiling["hbm"]:  # the compiler would try for minutes to make room
        return Measured(
            temporaries=None, peak=before_compiling["arguments"], fits=False, largest=(), **before_compiling
        )
    try:
        compiled = traced.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, largest = _needed(str(error))
        return Measured(temporaries=None, peak=needed, fits=False, largest=largest, **before_compiling)
    memory = compiled.memory_analysis()
    program = hlo.parse(compiled.as_text(), unknown_trips)
    per_device = hlo_costs.flops(program)
    rows = hlo_costs.collectives(program, dict(mesh.shape))
    return Measured(
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        fits=True,
        largest=(),
        flops_hlo=per_device * mesh.size,
        collectives=tuple(rows),
        compute_seconds=per_device / topology.chip.flops,
        collective_seconds=sum(row.bytes / _bandwidth(row.axes, mesh, topology) for row in rows),
        **{**before_compiling, "arguments": memory.argument_size_in_bytes},
    )


def _needed(message: str) -> tuple[int, tuple[str, ...]]:
    """What a program would need, and its largest allocations, from the compiler's refusal."""
    size = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds", message)
    needed = float(size[1]) * _UNITS[size[2]] if size else 0.0
    blocks = re.split(r"^ *\d+\. Size: ", message, flags=re.MULTILINE)[1:4]
    names = [re.search(r"op_name=\"([^\"]*)\"", block) or re.search(r"Shape: (\S+)", block) for block in blocks]
    largest = (f"{block.split()[0]}  {name[1] if name else '?'}" for block, name in zip(blocks, names, strict=True))
    return int(needed), tuple(largest)


def _bandwidth(axes: str, mesh: Mesh, topology: Topology) -> float:
    """Bytes per second that one device receives over the links of some mesh axes."""
    chip, names = topology.chip, axes.split("+")
    if "replica" in names:
        return chip.dcn_bandwidth / chip.devices
    links = 0
    for name in names:
        if name not in mesh.shape:
            continue
        line = np.moveaxis(mesh.devices, mesh.axis_names.index(name), 0).reshape(mesh.shape[name], -1)[:, 0]
        for dimension in range(len(topology.shape)):
            if len({device.coords[dimension] for device in line}) > 1:
                links += 2 if _wraps(topology, dimension) else 1
    return max(links, 1) * chip.link_bandwidth / chip.devices


def _wraps(topology: Topology, dimension: int) -> bool:
    """Whether the last chip of a dimension is linked to the first: whole pods of 2-D chips, cubes of 3-D ones."""
    length = topology.shape[dimension]
    return length % 4 == 0 if len(topology.shape) == 3 else length >= 16
