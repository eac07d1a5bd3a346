"""A traced program and a slice -> memory, operations, traffic, and a lower bound on the time of a step.

Memory, operations and traffic are read from the compiled program. The times are estimates: products at the peak rate,
traffic at the full bandwidth of the links that an axis of the mesh runs over, without any waiting.
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
    """What one program needs and does, per step; bytes and seconds are per device, FLOPs are those of all devices.

    Attributes:
      arguments: bytes of parameters, optimizer state and batch.
      temporaries: bytes in addition to these; None if the program does not fit.
      peak: the peak in bytes that the compiler reports; if the program does not fit, what it would need.
      hbm: memory of a device, in bytes.
      fits: whether the program compiled.
      largest: the largest allocations as the compiler names them, if the program does not fit.
      devices: number of devices that run the program.
      flops_jaxpr: operations that the mathematics requires.
      flops_hlo: operations as compiled; None if the program does not fit.
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
        """The larger of peak and arguments + temporaries, since the compiler's peak can be below the temporaries."""
        return max(self.peak, self.arguments + (self.temporaries or 0))

    @property
    def bound_seconds(self) -> float:
        """The larger of compute_seconds and collective_seconds; no step is faster."""
        return max(self.compute_seconds, self.collective_seconds)

    @property
    def traffic(self) -> float:
        """Bytes that one device receives."""
        return sum(row.bytes for row in self.collectives)

    @property
    def data_axis_reductions(self) -> float:
        """Bytes received in sums over the devices that divide the batch: above all, gradients."""
        reduced = [row for row in self.collectives if row.reduces and {"data", "replica"} & set(row.axes.split("+"))]
        return sum(row.bytes for row in reduced)


def measure(traced: Traced, topology: Topology, unknown_trips: int | None = None) -> Measured:
    """Compiles a program and measures it.

    Args:
      traced: the program, for devices of the topology.
      topology: the slice.
      unknown_trips: iterations of loops that may end early: the length of a decode.
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
    if before_compiling["arguments"] > before_compiling["hbm"]:  # the compiler would spend minutes trying to make room
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
    """The memory that a program would need, and its largest allocations, from the compiler's error message."""
    size = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds", message)
    needed = float(size[1]) * _UNITS[size[2]] if size else 0.0
    blocks = re.split(r"^ *\d+\. Size: ", message, flags=re.MULTILINE)[1:4]
    names = [re.search(r"op_name=\"([^\"]*)\"", block) or re.search(r"Shape: (\S+)", block) for block in blocks]
    largest = (f"{block.split()[0]}  {name[1] if name else '?'}" for block, name in zip(blocks, names, strict=True))
    return int(needed), tuple(largest)


def _bandwidth(axes: str, mesh: Mesh, topology: Topology) -> float:
    """Bytes per second that one device can receive over the links of some mesh axes."""
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
    """Whether the last chip of a dimension is linked to the first: in 3-D, multiples of 4 chips; in 2-D, from 16 on."""
    length = topology.shape[dimension]
    return length % 4 == 0 if len(topology.shape) == 3 else length >= 16
