"""Devices as a mesh (replica, data, model).

The `replica` axis runs over slices, which the data-center network connects; `data` and `model` are axes within a slice,
on its fast links.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("replica", "data", "model")


def make_mesh(
    devices: Sequence[Any], num_partitions: int, submesh: Sequence[int] | None = None, num_slices: int | None = None
) -> Mesh:
    """A mesh of the given devices.

    Args:
      devices: the devices of all slices and processes.
      num_partitions: size of the `model` axis; the other devices of a slice form the `data` axis.
      submesh: the block of hardware (x, y, z, cores) that one `model` axis fills; None lets JAX choose.
      num_slices: None asks the devices; 1 treats them as one slice regardless; a larger number splits devices without
        a slice index into that many slices.

    Raises:
      ValueError: the devices do not divide evenly; the sentence says which sizes would work.

    >>> import jax
    >>> dict(make_mesh(jax.devices()[:1], 1).shape)
    {'replica': 1, 'data': 1, 'model': 1}
    """
    slices = _slices(devices, num_slices)
    size = len(slices[0])
    if sizes := [len(others) for others in slices if len(others) != size]:
        raise ValueError(
            f"The slices have {size} and {sizes[0]} devices, but a mesh needs slices of equal size: choose "
            "Partitioner.devices accordingly."
        )
    if size % num_partitions:
        raise ValueError(
            f"Partitioner.num_partitions is {num_partitions}, which does not divide the {size} devices"
            f"{' of a slice' if len(slices) > 1 else ''}; choose among {', '.join(map(str, divisors(size)))}."
        )
    shape = (size // num_partitions, num_partitions)
    arrays = [_slice_mesh(devices, shape, submesh) for devices in slices]
    return Mesh(np.stack(arrays), AXES, axis_types=(AxisType.Auto,) * 3)


def divisors(number: int) -> list[int]:
    """All divisors of a number, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [n for n in range(1, number + 1) if number % n == 0]


def _slices(devices: Sequence[Any], num_slices: int | None) -> list[list[Any]]:
    by_index: dict[int, list[Any]] = {}
    for device in devices:
        by_index.setdefault(getattr(device, "slice_index", 0), []).append(device)
    slices = [by_index[index] for index in sorted(by_index)]
    if num_slices is None or num_slices == len(slices):
        return slices
    if num_slices == 1:
        return [list(devices)]
    if len(slices) > 1 or len(devices) % num_slices:
        available = f"{len(slices)} slices" if len(slices) > 1 else f"{len(devices)} devices"
        raise ValueError(f"Partitioner.num_slices is {num_slices}, but there are {available}; leave it at None.")
    return np.array(devices, object).reshape(num_slices, -1).tolist()


def _slice_mesh(devices: list[Any], shape: tuple[int, int], submesh: Sequence[int] | None) -> np.ndarray:
    if len(devices) == 1:  # create_device_mesh expects a torus
        return np.array(devices, object).reshape(1, 1)
    if submesh is None:
        # A mesh axis may take part of a torus dimension where whole dimensions do not fit (8 x 8 on 4x4x4).
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    cores = max(getattr(device, "core_on_chip", 0) for device in devices) + 1
    try:
        coordinates = [(*device.coords, device.core_on_chip) for device in devices]
    except AttributeError as error:
        raise ValueError(
            "Partitioner.model_parallel_submesh is a block of TPU hardware, but these devices have no coordinates; "
            "give num_partitions instead."
        ) from error
    bounds = [max(xyz_core[i] for xyz_core in coordinates) + 1 for i in range(3)] + [cores]
    if len(submesh) != 4 or any(bound % size for bound, size in zip(bounds, submesh, strict=True)):
        raise ValueError(
            f"Partitioner.model_parallel_submesh is {tuple(submesh)}: expected four numbers (x, y, z, cores) that "
            f"divide the slice's {tuple(bounds)}."
        )

    def block_and_position(device: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        xyz_core = (*device.coords, device.core_on_chip)
        pairs = [divmod(p, size) for p, size in zip(xyz_core, submesh, strict=True)]
        return tuple(block for block, _ in pairs), tuple(position for _, position in pairs)

    return np.array(sorted(devices, key=block_and_position), object).reshape(shape)
