"""TPU generations and slices: a chip's figures, a slice's names, and its devices for compiling without a TPU.

Peak rates and link bandwidths are Google Cloud's published figures (cloud.google.com/tpu/docs, "System architecture"
pages; a link's is the chip's interconnect bandwidth divided by its links, one way). The memory is what the compiler
gives to programs, which is less than the chip has: it reserves a part for itself.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU generation.

    Attributes:
      name: as in topology names, such as "v5e".
      devices: JAX devices per chip; a chip whose cores work as one ("megacore") is one device.
      hbm_gib: memory per device that the compiler gives to programs.
      flops: peak bfloat16 operations per second and device.
      links: links per chip, two for each dimension of the torus.
      link_bandwidth: bytes per second over one link, one way.
      dcn_bandwidth: bytes per second over a chip's share of the data-center network.
      cloud_prefix: the beginning of its slices' names in Google Cloud.
      cloud_counts_cores: whether these names count TensorCores, two per chip, instead of chips.
      config: the compiler's name for the chip's configuration; None for the default.
    """

    name: str
    devices: int
    hbm_gib: float
    flops: float
    links: int
    link_bandwidth: float
    dcn_bandwidth: float
    cloud_prefix: str
    cloud_counts_cores: bool
    config: str | None = None


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v3", 2, 15.48, 61.5e12, 4, 82e9, 3.125e9, "v3", True),
        Chip("v4", 1, 30.75, 275e12, 6, 50e9, 6.25e9, "v4", True, config="megacore"),
        Chip("v5e", 1, 15.75, 197e12, 4, 50e9, 3.125e9, "v5litepod", False),
        Chip("v5p", 1, 95.74, 459e12, 6, 100e9, 6.25e9, "v5p", True, config="megacore"),
        Chip("v6e", 1, 31.25, 918e12, 4, 100e9, 12.5e9, "v6e", False),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several equal ones.

    Attributes:
      chip: its generation.
      shape: chips along each dimension of the torus.
      slices: number of slices, connected by the data-center network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Number of chips in one slice."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """The compiler's name: "v4:4x4x4"."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def cloud_name(self) -> str:
        """Google Cloud's name: "v4-128", which counts cores; "v5litepod-32", which counts chips."""
        return f"{self.chip.cloud_prefix}-{self.chips * (2 if self.chip.cloud_counts_cores else 1)}"

    def __str__(self) -> str:
        times = f"{self.slices} x " if self.slices > 1 else ""
        return f"{times}{self.name} ({self.cloud_name} in Google Cloud, {self.chips} chips)"

    def devices(self) -> tuple[Any, ...]:
        """The devices of all slices, for compiling programs.

        Raises:
          ValueError: no TPU compiler is installed, or it does not know the slice.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError(
                "A plan needs the TPU compiler (but no TPU), which is not installed: pip install libtpu, on Linux, or "
                "pip install -e '.[tpu]' in a clone of promot_t5x."
            )
        arguments: dict[str, Any] = {} if self.chip.config is None else {"chip_config_name": self.chip.config}
        if self.slices > 1:
            arguments["num_slices"] = self.slices
        try:
            with _compiler_alone():
                return tuple(_description(self.name, tuple(arguments.items())).devices)
        except jax.errors.JaxRuntimeError as error:
            what = str(error).splitlines()[0][:200]
            raise ValueError(f"The TPU compiler does not know the slice {self.name}: {what}.") from error


def topology(name: str, slices: int = 1) -> Topology:
    """The slice with a name such as "v4:4x4x4", "v5e:4x8" or "v6e:8x8".

    Raises:
      ValueError: it is not such a name.

    >>> str(topology("v4:4x4x4"))
    'v4:4x4x4 (v4-128 in Google Cloud, 64 chips)'
    """
    match = re.fullmatch(r"(\w+):(\d+x\d+(?:x\d+)?)", name)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f"--topology is {name!r}: expected a generation among {', '.join(CHIPS)} and its chips along each "
            "dimension, such as v4:4x4x4 or v5e:4x8."
        )
    chip, shape = CHIPS[match[1]], tuple(int(n) for n in match[2].split("x"))
    if len(shape) != chip.links // 2:
        raise ValueError(f"--topology is {name!r}: a slice of {chip.name} has {chip.links // 2} dimensions.")
    if slices < 1:
        raise ValueError(f"--slices is {slices}: expected at least 1.")
    return Topology(chip, shape, slices)


@functools.cache
def _description(name: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **dict(arguments))


@contextlib.contextmanager
def _compiler_alone() -> Iterator[None]:
    """Keeps the TPU library from looking for TPUs, and from insisting that only one process may load it."""
    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
