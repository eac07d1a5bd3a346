"""Devices that this machine lacks, for meshes that no program runs on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device that has no place in a torus."""

    id: int
    slice_index: int = 0
    platform: str = "cpu"
    device_kind: str = "a kind without rules of its own"
    process_index: int = 0


@dataclasses.dataclass(frozen=True)
class Tpu:
    """What a mesh asks of a core of a TPU."""

    coords: tuple[int, int, int]
    core_on_chip: int = 0
    slice_index: int = 0
    platform: str = "tpu"

    @property
    def place(self) -> tuple[int, ...]:
        return *self.coords, self.core_on_chip


def devices(count: int, slice_index: int = 0) -> tuple[Device, ...]:
    """The devices of one slice."""
    return tuple(Device(100 * slice_index + i, slice_index) for i in range(count))
