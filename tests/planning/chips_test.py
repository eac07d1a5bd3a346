"""promot_t5x.planning.chips: names of slices as Google Cloud sells them, and what the TPU's compiler knows of them."""

import importlib.util
import itertools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from promot_t5x.planning import chips

# name: (chips, name in Google Cloud, devices), from the tables of accelerator types in Google Cloud's documentation.
SOLD = {
    "v3:2x2": (4, "v3-8", 8),
    "v3:4x4": (16, "v3-32", 32),
    "v3:8x8": (64, "v3-128", 128),
    "v4:2x2x1": (4, "v4-8", 4),
    "v4:2x2x2": (8, "v4-16", 8),
    "v4:4x4x4": (64, "v4-128", 64),
    "v4:4x4x8": (128, "v4-256", 128),
    "v5e:2x2": (4, "v5litepod-4", 4),
    "v5e:4x8": (32, "v5litepod-32", 32),
    "v5e:16x16": (256, "v5litepod-256", 256),
    "v5p:2x2x1": (4, "v5p-8", 4),
    "v5p:4x4x4": (64, "v5p-128", 64),
    "v6e:4x4": (16, "v6e-16", 16),
    "v6e:8x8": (64, "v6e-64", 64),
}


@pytest.mark.parametrize("name", SOLD)
def test_names(name):
    count, cloud_name, _ = SOLD[name]
    once = chips.topology(name)
    assert (once.chips, once.cloud_name, once.name) == (count, cloud_name, name)
    assert str(once) == f"{name} ({cloud_name} in Google Cloud, {count} chips)"
    twice = chips.topology(name, 2)
    assert (twice.chips, twice.cloud_name, twice.slices) == (count, cloud_name, 2)
    assert str(twice) == f"2 x {name} ({cloud_name} in Google Cloud, {count} chips)"


@pytest.mark.parametrize("name", ["", "v4", "v4-128", "v2:2x2", "V4:4x4x4", "v4:4", "v4:4x4x4x4", "v5e:4x", "v5e:ax2"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError) as error:
        chips.topology(name)
    assert str(error.value) == (
        f"--topology is {name!r}: expected a generation among v3, v4, v5e, v5p, v6e and its chips along each "
        "dimension, such as v4:4x4x4 or v5e:4x8."
    )


def test_a_slice_of_the_wrong_dimensions():
    with pytest.raises(ValueError, match=r"^--topology is 'v4:8x8': a slice of v4 has 3 dimensions.$"):
        chips.topology("v4:8x8")
    with pytest.raises(ValueError, match=r"^--topology is 'v5e:2x2x2': a slice of v5e has 2 dimensions.$"):
        chips.topology("v5e:2x2x2")
    with pytest.raises(ValueError, match=r"^--slices is 0: expected at least 1.$"):
        chips.topology("v5e:2x2", 0)


def test_generations():
    for name, chip in chips.CHIPS.items():
        assert chip.name == name and chip.links in (4, 6)
        # bfloat16 rates of whole chips, by Google Cloud's documentation.
        whole = {"v3": 123e12, "v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}[name]
        assert chip.flops * chip.devices == whole
        sold_gib = {"v3": 32, "v4": 32, "v5e": 16, "v5p": 95.74, "v6e": 32}[name]
        assert 0.95 * sold_gib < chip.hbm_gib * chip.devices <= sold_gib


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ValueError) as error:
        chips.topology("v5e:2x2").devices()
    assert str(error.value) == (
        "A plan needs the TPU compiler (but no TPU), which is not installed: pip install libtpu, on Linux, or "
        "pip install -e '.[tpu]' in a clone of promot_t5x."
    )


# What the compiler says


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name", [name for name, (count, _, _) in SOLD.items() if count <= 64])
def test_devices(name):
    before = dict(os.environ)
    devices = chips.topology(name).devices()
    assert dict(os.environ) == before, "the compiler's environment is not the program's"
    assert len(devices) == SOLD[name][2]
    shape = [int(n) for n in re.findall(r"\d+", name.partition(":")[2])]
    places = [(*place, *[0] * (3 - len(shape))) for place in itertools.product(*map(range, shape))]
    cores = len(devices) // len(places)
    assert {(*device.coords, device.core_on_chip) for device in devices} == {
        (*place, core) for place in places for core in range(cores)
    }
    assert {device.platform for device in devices} == {"tpu"}
    assert chips.topology(name).devices() == devices


@pytest.mark.tpu_compiler
def test_devices_of_several_slices():
    devices = chips.topology("v5e:2x2", 3).devices()
    assert [sum(device.slice_index == i for device in devices) for i in range(3)] == [4, 4, 4]


@pytest.mark.tpu_compiler
def test_a_slice_that_cannot_be():
    with pytest.raises(ValueError, match=r"^The TPU compiler does not know the slice v5e:3x5: .*not divisible"):
        chips.topology("v5e:3x5").devices()


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name", ["v3:2x2", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_memory_is_what_the_compiler_accepts(name):
    topology = chips.topology(name)
    mesh = Mesh(np.array(topology.devices()), ("devices",))
    rows = int(2 * topology.chip.hbm_gib * 2**20) // 4
    x = jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(jnp.negative).trace(x).lower().compile()
    limit = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(error.value))
    assert limit and float(limit[1]) == topology.chip.hbm_gib
