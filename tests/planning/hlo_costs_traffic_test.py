"""promot_t5x.planning.hlo_costs.collectives: traffic, against what a program asks of its mesh."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jax._src.lib import hlo as xla  # nothing public reads HLO text

from promot_t5x.planning import hlo, hlo_costs
from promot_t5x.planning.hlo_costs import Collective

ROOT = Path(__file__).resolve().parents[2]


# Who exchanges with whom


def _groups_along(sizes, axes):
    """Devices, numbered in row-major order, that differ along `axes` alone; as a set of sets."""
    names, groups = list(sizes), {}
    for device, place in enumerate(itertools.product(*map(range, sizes.values()))):
        rest = tuple(n for name, n in zip(names, place, strict=True) if name not in axes)
        groups.setdefault(rest, set()).add(device)
    return set(map(frozenset, groups.values()))


MESH = {"replica": 2, "data": 4, "model": 2}
SPELLINGS = {
    "{{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}, use_global_device_ids=true, to_apply=%add": ("data",),
    "{{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}": ("model",),
    "[8,2]<=[16], use_global_device_ids=true": ("model",),
    "[2,8]<=[16]": ("data", "model"),
    "[8,2]<=[2,8]T(1,0)": ("replica",),
    "[4,4]<=[2,4,2]T(0,2,1), channel_id=1": ("data",),
    "[1,16]<=[16]": ("replica", "data", "model"),
    "{}, to_apply=%add": ("replica", "data", "model"),
    "mesh['replica'=2,'data'=4,'model'=2] {'data'}, use_global_device_ids=true": ("data",),
    "mesh['replica'=2,'data'=4,'model'=2] {'replica','model'}": ("replica", "model"),
    "mesh['axis_0'=2,'axis_1'=1,'axis_2'=4,'axis_3'=2] {'axis_0','axis_2'}": ("replica", "data"),
    "mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)4}": ("data",),
    "mesh['axis_0'=8,'axis_1'=2] {'axis_0':(1)2,'axis_1'}": ("replica", "model"),
    "mesh['axis_0'=16] {'axis_0':(1)2,'axis_0':(8)2}": ("replica", "model"),
    "mesh['a'=2,'b'=4,'c'=2], device_ids=([2,4,2]T(2,1,0)) {'a'}": ("model",),
    "mesh['a'=4,'b'=4], device_ids=([2,4,2]T(1,0,2)) {'b'}": ("replica", "model"),
    "mesh['a'=2,'b'=8], device_ids=([16]) {'b'}": ("data", "model"),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_groups_in_every_spelling(text):
    groups = hlo_costs.replica_groups(text, 16)
    assert {frozenset(group) for group in groups} == _groups_along(MESH, SPELLINGS[text])
    assert sorted(device for group in groups for device in group) == list(range(16))


def test_groups_in_another_spelling():
    """They must not pass for one group of all devices."""
    with pytest.raises(
        ValueError, match=r"has replica_groups=ring\[4\], which cannot be parsed: install the versions of jax"
    ):
        hlo_costs.replica_groups("ring[4], to_apply=%add", 16)


# Traffic of programs that XLA compiled for eight devices

_PROGRAM = """
import json
import jax, jax.numpy as jnp
from functools import partial
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((2, 2, 2), ("replica", "data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
every = P(("replica", "data", "model"))

def on_each(function, dtype=jnp.float32):
    "What XLA makes of a function of the 3 x 8 numbers of each device."
    mapped = jax.shard_map(function, mesh=mesh, in_specs=every, out_specs=every, check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((24, 8), dtype)).compile().as_text()

def in_a_loop(function):
    return lambda x: jax.lax.scan(lambda x, _: (jnp.tanh(function(x)), None), x, length=5)[0]

ones = jnp.ones((8, 8))
around = [(i, (i + 1) % 2) for i in range(2)]
around_4 = [(i, (i + 1) % 4) for i in range(4)]
compiled = {
    "sum over data": on_each(lambda x: jax.lax.psum(x, "data")),
    "sum over replica and model": on_each(lambda x: jax.lax.psum(x, ("replica", "model"))),
    "sum over all": on_each(lambda x: jax.lax.psum(x, ("replica", "data", "model"))),
    "five sums over model": on_each(in_a_loop(lambda x: jax.lax.psum(x, "model"))),
    "gather over model": on_each(lambda x: jax.lax.all_gather(x, "model", tiled=True)),
    "gather over data and model": on_each(lambda x: jax.lax.all_gather(x, ("data", "model"), axis=1, tiled=True)),
    "sum and scatter over data": on_each(lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True)),
    "exchange over replica": on_each(lambda x: jax.lax.all_to_all(x, "replica", 1, 0, tiled=True)),
    "indices passed over model": on_each(lambda x: jax.lax.ppermute(x, "model", around), jnp.int32),
    "passed over data": on_each(lambda x: jax.lax.ppermute(x, "data", around)),
    "passed over data and used": on_each(lambda x: jax.lax.ppermute(jnp.tanh(x) + 1, "data", around) @ ones),
    "passed over data and added": on_each(lambda x: x + jax.lax.ppermute(jnp.tanh(x), "data", around)),
    "passed over replica and data": on_each(lambda x: jax.lax.ppermute(x, ("replica", "data"), around_4)),
    "none": on_each(lambda x: 2 * x),
}

# A product whose matrix is in pieces along four devices, and one whose sum is: rings, as the TPU's compiler makes.
def gathering(x, piece):
    def add(carry, _):
        total, piece = carry
        return (total + x @ piece, jax.lax.ppermute(piece, ("replica", "data"), around_4)), None
    return jax.lax.scan(add, (jnp.zeros((3, 8)), piece), length=4)[0][0]

def scattering(x, y):
    def add(total, i):
        # The sum goes round, and each device adds its share.
        return jax.lax.ppermute(total, ("replica", "data"), around_4) + (x * i) @ y, None
    return jax.lax.scan(add, jnp.zeros((3, 8)), jnp.arange(1.0, 5.0))[0]

for name, function in (("a ring that gathers", gathering), ("a ring that adds up", scattering)):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=(every, every), out_specs=every, check_vma=False)
    shapes = [jax.ShapeDtypeStruct((24, 8), jnp.float32), jax.ShapeDtypeStruct((64, 8), jnp.float32)]
    compiled[name] = jax.jit(mapped).lower(*shapes).compile().as_text()

# The same from shardings alone: the rows of a batch along data, the product's sum along model.
def place(*spec):
    return jax.sharding.NamedSharding(mesh, P(*spec))

@partial(jax.jit, in_shardings=(place("data", "model"), place("model", None)), out_shardings=place("data", None))
def product(x, w):
    return x @ w
compiled["a sharded product"] = product.lower(*[jax.ShapeDtypeStruct((16, 16), jnp.float32)] * 2).compile().as_text()
print(json.dumps(compiled))
"""


@pytest.fixture(scope="module")
def texts():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


LOCAL = 4 * 3 * 8  # bytes that each device holds
TRAFFIC = {
    "sum over data": ("all-reduce", "data", 1, 2 * LOCAL * 1 / 2),
    "sum over replica and model": ("all-reduce", "replica+model", 1, 2 * LOCAL * 3 / 4),
    "sum over all": ("all-reduce", "replica+data+model", 1, 2 * LOCAL * 7 / 8),
    "five sums over model": ("all-reduce", "model", 5, 5 * 2 * LOCAL * 1 / 2),
    "gather over model": ("all-gather", "model", 1, LOCAL),
    "gather over data and model": ("all-gather", "data+model", 1, 3 * LOCAL),
    "sum and scatter over data": ("reduce-scatter", "data", 1, LOCAL / 2),
    "exchange over replica": ("all-to-all", "replica", 1, LOCAL / 2),
    "indices passed over model": ("collective-permute", "model", 1, LOCAL),
    "passed over data": ("ring all-gather", "data", 1, LOCAL),
    "passed over data and used": ("ring all-gather", "data", 1, LOCAL),
    "passed over data and added": ("ring reduce-scatter", "data", 1, LOCAL),
    "passed over replica and data": ("ring all-gather", "replica+data", 1, LOCAL),
    "a ring that gathers": ("ring all-gather", "replica+data", 4, 4 * (4 * 8 * 8)),
    "a ring that adds up": ("ring reduce-scatter", "replica+data", 4, 4 * LOCAL),
    "a sharded product": ("all-reduce", "model", 1, 2 * (4 * 8 * 16) / 2),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic(name, texts):
    mesh = {"replica": 2, "data": 2, "model": 2}
    assert hlo_costs.collectives(hlo.parse(texts[name]), mesh) == [Collective(*TRAFFIC[name])]


def test_no_traffic(texts):
    assert hlo_costs.collectives(hlo.parse(texts["none"]), {"replica": 2, "data": 2, "model": 2}) == []


def test_what_reduces():
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    kinds += ("ring all-gather", "ring reduce-scatter")
    assert [kind for kind in kinds if Collective(kind, "data", 1, 1.0).reduces] == [
        "all-reduce",
        "reduce-scatter",
        "ring reduce-scatter",
    ]


def test_started_collectives_and_several_arrays_at_once():
    text = """\
HloModule started

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[6], y: f32[10]) -> (f32[24], f32[6], f32[10], f32[6]) {
  %x = f32[6] parameter(0)
  %y = f32[10] parameter(1)
  %gather = (f32[6], f32[24]) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true, channel_id=1
  %gathered = f32[24] all-gather-done(%gather)
  %sums = (f32[6], f32[10]) all-reduce(%x, %y), replica_groups=[4,2]<=[8], to_apply=%add, use_global_device_ids=true, channel_id=2
  %sum.1 = f32[6] get-tuple-element(%sums), index=0
  %sum.2 = f32[10] get-tuple-element(%sums), index=1
  %alone = f32[6] all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add, use_global_device_ids=true, channel_id=3
  ROOT %all = (f32[24], f32[6], f32[10], f32[6]) tuple(%gathered, %sum.1, %sum.2, %alone)
}
"""  # noqa: E501 (as XLA writes it)
    xla.hlo_module_from_text(text)
    assert hlo_costs.collectives(hlo.parse(text), {"replica": 2, "data": 2, "model": 2}) == [
        Collective("all-gather", "data+model", 1, 3 * 4 * 6),
        Collective("all-reduce", "model", 1, 4 * (6 + 10)),
        Collective("all-reduce", "none", 1, 0.0),
    ]


def test_traffic_between_slices():
    """Written as transfers to the host, whose runtime knows the other slices; the groups are those of one slice."""
    host = "is_host_transfer=true"
    handler = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}"'

    def transfer(number, kind, sent, received, operand):
        frontend = f'frontend_attributes={{{handler},_xla_megascale_transfer_type="{kind}"}}'
        sending, receiving = (f"channel_id={2 * number + i}, {host}" for i in range(2))
        return f"""\
  %after-all.{number} = token[] after-all()
  %send.{number} = ({sent}, u32[], token[]) send({operand}, %after-all.{number}), {sending}, {frontend}
  %send-done.{number} = token[] send-done(%send.{number}), {sending}
  %recv.{number} = ({received}, u32[], token[]) recv(%after-all.{number}), {receiving}, {frontend}
  %recv-done.{number} = ({received}, token[]) recv-done(%recv.{number}), {receiving}
"""

    text = f"""\
HloModule slices

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[6,8], y: bf16[4,8]) -> f32[6,8] {{
  %x = f32[6,8] parameter(0)
  %y = bf16[4,8] parameter(1)
  %local = f32[6,8] all-reduce(%x), channel_id=1, replica_groups={{{{0,2}},{{1,3}}}}, to_apply=%add
{transfer(1, "ALL_REDUCE", "f32[6,8]", "f32[6,8]", "%local")}\
{transfer(2, "ALL_GATHER", "bf16[4,8]", "bf16[12,8]", "%y")}\
{transfer(3, "REDUCE_SCATTER", "f32[6,8]", "f32[2,8]", "%x")}\
{transfer(4, "ONE_TO_ONE", "bf16[4,8]", "bf16[4,8]", "%y")}\
  ROOT %result = f32[6,8] get-tuple-element(%recv-done.1), index=0
}}
"""
    xla.hlo_module_from_text(text)
    rows = hlo_costs.collectives(hlo.parse(text), {"replica": 3, "data": 2, "model": 2})
    assert sorted(rows, key=lambda row: (row.axes, row.kind)) == [
        Collective("all-reduce", "data", 1, 2 * (4 * 48) / 2),
        Collective("all-gather", "replica", 1, 2 * (2 * 32)),
        Collective("all-reduce", "replica", 1, pytest.approx(2 * (4 * 48) * 2 / 3)),
        Collective("collective-permute", "replica", 1, 2 * 32),
        Collective("reduce-scatter", "replica", 1, pytest.approx(4 * 48 * 2 / 3)),
    ]
