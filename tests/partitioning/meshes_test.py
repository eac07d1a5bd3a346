"""promot_t5x.partitioning.meshes: the shape of a mesh, which device is where in it, and what cannot be a mesh."""

import itertools
import math
import random

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from promot_t5x.partitioning import meshes
from tests import absent_devices


def _torus(x, y, z, cores, slice_index=0):
    """A slice's devices in an order that has nothing to do with their coordinates."""
    places = itertools.product(range(x), range(y), range(z), range(cores))
    devices = [absent_devices.Tpu(place[:3], place[3], slice_index) for place in places]
    random.Random(0).shuffle(devices)
    return devices


@pytest.mark.parametrize(
    "count,num_partitions,num_slices,expected",
    [
        (1, 1, None, (1, 1, 1)),
        (8, 1, None, (1, 8, 1)),
        (8, 2, None, (1, 4, 2)),
        (8, 8, None, (1, 1, 8)),
        (6, 3, None, (1, 2, 3)),
        (8, 2, 1, (1, 4, 2)),
        (8, 2, 2, (2, 2, 2)),
        (8, 2, 4, (4, 1, 2)),
        (8, 1, 8, (8, 1, 1)),
    ],
)
def test_num_partitions_are_the_model_axis_and_the_rest_of_a_slice_is_data(count, num_partitions, num_slices, expected):
    devices = absent_devices.devices(count)
    mesh = meshes.make_mesh(devices, num_partitions, num_slices=num_slices)
    assert mesh.axis_names == ("replica", "data", "model") and mesh.devices.shape == expected
    assert mesh.axis_types == (AxisType.Auto,) * 3
    # Neighbours on the fast links come one after the other, and the model axis has the most traffic.
    assert tuple(mesh.devices.ravel()) == devices


def test_devices_of_this_machine():
    assert meshes.make_mesh(jax.devices()[:1], 1).devices.ravel().tolist() == jax.devices()[:1]


@pytest.mark.parametrize("num_slices", [None, 3])
def test_a_slice_is_what_its_devices_say(num_slices):
    by_index = {index: absent_devices.devices(4, index) for index in (7, 2, 5)}
    mixed = [device for devices in zip(*by_index.values(), strict=True) for device in devices]
    mesh = meshes.make_mesh(mixed, 2, num_slices=num_slices)
    assert mesh.devices.shape == (3, 2, 2)
    for row, index in zip(mesh.devices, (2, 5, 7), strict=True):
        assert tuple(row.ravel()) == by_index[index]


@pytest.mark.parametrize(
    "torus,submesh",
    [
        ((4, 4, 1, 2), (1, 1, 1, 2)),  # both cores of a chip, TPU v3
        ((4, 4, 1, 2), (2, 2, 1, 2)),
        ((4, 4, 1, 2), (4, 2, 1, 1)),
        ((4, 4, 4, 1), (2, 2, 2, 1)),  # TPU v4 and v5p
        ((4, 4, 4, 1), (1, 2, 4, 1)),
        ((4, 4, 4, 1), (4, 4, 4, 1)),
        ((2, 4, 1, 1), (1, 1, 1, 1)),
        ((8, 4, 1, 1), (2, 4, 1, 1)),  # TPU v5e
    ],
)
@pytest.mark.parametrize("slices", [1, 2])
def test_a_submesh_is_a_block_of_hardware(torus, submesh, slices):
    devices = [device for index in range(slices) for device in _torus(*torus, index)]
    mesh = meshes.make_mesh(devices, math.prod(submesh), submesh)
    assert mesh.devices.shape == (slices, math.prod(torus) // math.prod(submesh), math.prod(submesh))
    assert set(mesh.devices.ravel()) == set(devices)
    for index, row in [(index, row) for index, rows in enumerate(mesh.devices) for row in rows]:
        assert {device.slice_index for device in row} == {index}
        places = np.array([device.place for device in row])
        corner = places.min(axis=0)
        assert not np.any(corner % submesh)
        block = itertools.product(*(range(c, c + size) for c, size in zip(corner, submesh, strict=True)))
        assert [tuple(place) for place in places] == list(block)


def test_data_neighbours_are_adjacent_blocks():
    mesh = meshes.make_mesh(_torus(4, 4, 1, 2), 4, (1, 2, 1, 2))
    corners = [tuple(min(device.coords for device in row)) for row in mesh.devices[0]]
    assert corners == [(x, y, 0) for x in range(4) for y in (0, 2)]


MISTAKES = {
    "partitions": (
        lambda: meshes.make_mesh(absent_devices.devices(12), 5),
        "Partitioner.num_partitions is 5, which does not divide the 12 devices; choose among 1, 2, 3, 4, 6, 12.",
    ),
    "partitions of a slice": (
        lambda: meshes.make_mesh(absent_devices.devices(8), 8, num_slices=2),
        "Partitioner.num_partitions is 8, which does not divide the 4 devices of a slice; choose among 1, 2, 4.",
    ),
    "slices that do not divide": (
        lambda: meshes.make_mesh(absent_devices.devices(8), 1, num_slices=3),
        "Partitioner.num_slices is 3, but there are 8 devices; leave it at None.",
    ),
    "other slices than there are": (
        lambda: meshes.make_mesh(absent_devices.devices(4) + absent_devices.devices(4, 1), 1, num_slices=4),
        "Partitioner.num_slices is 4, but there are 2 slices; leave it at None.",
    ),
    "slices of different sizes": (
        lambda: meshes.make_mesh(absent_devices.devices(4) + absent_devices.devices(2, 1), 2),
        "The slices have 4 and 2 devices, but a mesh needs slices of equal size: choose Partitioner.devices "
        "accordingly.",
    ),
    "no hardware to cut": (
        lambda: meshes.make_mesh(absent_devices.devices(8), 4, (2, 2, 1, 1)),
        "Partitioner.model_parallel_submesh is a block of TPU hardware, but these devices have no coordinates; "
        "give num_partitions instead.",
    ),
    "a block that does not fit": (
        lambda: meshes.make_mesh(_torus(4, 2, 1, 2), 8, (1, 4, 1, 2)),
        "Partitioner.model_parallel_submesh is (1, 4, 1, 2): expected four numbers (x, y, z, cores) that divide the "
        "slice's (4, 2, 1, 2).",
    ),
    "a block of three numbers": (
        lambda: meshes.make_mesh(_torus(4, 2, 1, 1), 4, (2, 2, 1)),
        "Partitioner.model_parallel_submesh is (2, 2, 1): expected four numbers (x, y, z, cores) that divide the "
        "slice's (4, 2, 1, 1).",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake):
    make, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == sentence
