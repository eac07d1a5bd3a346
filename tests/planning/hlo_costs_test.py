"""promot_t5x.planning.hlo_costs: operations against counts by plain loops, traffic against what was asked of a mesh."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src.lib import hlo as xla  # nothing public reads HLO text
from jax._src.lib import xla_client

from promot_t5x.planning import hlo, hlo_costs
from promot_t5x.planning.hlo_costs import Collective

ROOT = Path(__file__).resolve().parents[2]


def _by_xla(text):
    """XLA's own count of a program without loops."""
    module = xla.hlo_module_from_text(text)
    return xla_client._xla.hlo_module_cost_analysis(jax.devices()[0].client, module)["flops"]


# Products as the CPU's compiler writes them

B, Q, S, H, K = 2, 3, 5, 7, 11


def _attention(q, k):
    return jnp.einsum("bqhk,bshk->bhqs", q, k)


def _scanned(x, w):
    def layer(x, weight):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ weight), x), None

    return jax.lax.scan(layer, x, w)[0]


DOTS = {
    "a product": (lambda a, b: a @ b, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
    "batched": (_attention, [(B, Q, H, K), (B, S, H, K)], 2 * B * Q * S * H * K),
    "two contracted": (lambda a, b: jnp.einsum("bud,budv->v", a, b), [(2, 3, 5), (2, 3, 5, 7)], 2 * 2 * 3 * 5 * 7),
    "scanned": (_scanned, [(8, 16), (5, 16, 16)], 5 * 3 * 2 * 8 * 16 * 16),
    "two": (lambda a, b: jnp.tanh(a @ b) @ b.T, [(3, 5), (5, 7)], 2 * 2 * 3 * 5 * 7),
    "none": (lambda a, b: a + b, [(3, 5), (3, 5)], 0),
}


@pytest.mark.parametrize("name", DOTS)
def test_products_of_compiled_programs(name):
    function, shapes, expected = DOTS[name]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert hlo_costs.flops(hlo.parse(text)) == expected


# Products as the TPU's compiler writes them: convolutions whose windows meet one element of a batch each


def _by_loops(window, labels, left, right, out):
    """Multiplications that meet an element of the input, twice: each is followed by an addition."""
    left_labels, right_labels, out_labels = re.split("_|->", labels)
    spatial = sorted(label for label in out_labels if label.isdigit())

    def numbers(name, default):
        found = re.search(rf"(?:^| ){name}=(\S+)", window)
        return found[1].split("x") if found else [default] * len(spatial)

    sizes, strides = ([int(n) for n in numbers(name, "1")] for name in ("size", "stride"))
    low = [int(pad.split("_")[0]) for pad in numbers("pad", "0_0")]
    left_dilation, right_dilation = ([int(n) for n in numbers(name, "1")] for name in ("lhs_dilate", "rhs_dilate"))
    reversed_ = [n == "1" for n in numbers("rhs_reversal", "0")]
    count = 0
    for place in itertools.product(*(range(out[out_labels.index(label)]) for label in spatial)):
        for tap in itertools.product(*map(range, sizes)):
            met = True
            for i, label in enumerate(spatial):
                assert sizes[i] == right[right_labels.index(label)]
                at = sizes[i] - 1 - tap[i] if reversed_[i] else tap[i]
                position = place[i] * strides[i] + at * right_dilation[i] - low[i]
                element, between = divmod(position, left_dilation[i])
                met &= between == 0 and 0 <= element < left[left_labels.index(label)]
            for _ in range(right[right_labels.index("i")] if met else 0):
                count += 1
    return 2 * count * out[out_labels.index("b")] * out[out_labels.index("f")]


# (window, labels, left, right, result, products that the mathematics asks for), in the forms of mT5's training step.
CONVOLUTIONS = {
    "pieces gathered by a ring": (
        "size=1x5x2 pad=0_0x4_4x0_0 rhs_reversal=0x1x0",
        "0b2f1_1o2i0->0b1f2",
        (3, 7, 2, 4, 1),
        (5, 6, 2, 4, 1),
        (3, 7, 5, 6, 1),
        3 * 7 * (2 * 4) * (5 * 6),
    ),
    "queries and keys": (
        "size=3x4 stride=2x3 lhs_dilate=3x4",
        "0b1f_0o1i->01bf",
        (3, 5, 4, 7),
        (3, 6, 4, 7),
        (3, 4, 5, 6),
        3 * 4 * 5 * 6 * 7,
    ),
    "weights and values": (
        "size=3x4 stride=2x3 lhs_dilate=3x4",
        "0f1b_01oi->01bf",
        (3, 6, 4, 7),
        (3, 4, 5, 6),
        (3, 4, 7, 5),
        3 * 4 * 5 * 6 * 7,
    ),
    "a weight with a dimension of one": ("size=1", "0bf_io0->0bf", (3, 5, 7), (7, 6, 1), (3, 5, 6), 3 * 5 * 7 * 6),
    "the same, transposed": ("size=1", "0bf_oi0->0bf", (3, 5, 7), (6, 7, 1), (3, 5, 6), 3 * 5 * 7 * 6),
    "a product over two dimensions": (
        "size=2x1",
        "1b0f_0io1->1bf0",
        (3, 5, 2, 7),
        (2, 7, 6, 1),
        (3, 5, 6, 1),
        3 * 5 * 2 * 7 * 6,
    ),
    "a weight's gradient, a sum over rows and positions": (
        "size=3",
        "0fb_0io->bf0",
        (3, 5, 7),
        (3, 5, 6),
        (7, 6, 1),
        3 * 5 * 7 * 6,
    ),
    "its pieces for a ring": (
        "size=2x3 pad=1_1x0_0 rhs_reversal=1x0",
        "1fb0_1i0o->b0f1",
        (3, 5, 7, 1),
        (3, 5, 2, 4),
        (7, 2, 4, 1),
        3 * 5 * 7 * 2 * 4,
    ),
}
OTHERS = {
    "padding on both sides": ("size=3x3 pad=1_1x1_1", "b01f_01io->b01f", (2, 4, 5, 3), (3, 3, 3, 6), (2, 4, 5, 6)),
    "a stride": ("size=3x2 stride=2x3", "bf01_oi01->bf01", (2, 3, 7, 8), (4, 3, 3, 2), (2, 4, 3, 3)),
    "negative padding": ("size=2 pad=-1_-1", "b0f_0io->b0f", (2, 7, 3), (2, 3, 4), (2, 4, 4)),
    "both dilated": ("size=2 lhs_dilate=3 rhs_dilate=2", "b0f_0io->b0f", (2, 3, 3), (2, 3, 4), (2, 5, 4)),
    "features in groups": ("size=2", "b0f_0io->b0f", (2, 4, 6), (2, 2, 9), (2, 3, 9), ", feature_group_count=3"),
    "rows in groups": ("size=2", "b0f_0io->b0f", (6, 4, 3), (2, 3, 9), (2, 3, 9), ", batch_group_count=3"),
}


def _convolution(window, labels, left, right, out, more=""):
    left_shape, right_shape, out_shape = (f"bf16[{','.join(map(str, shape))}]" for shape in (left, right, out))
    return f"""\
HloModule convolution

ENTRY %main (a: {left_shape}, b: {right_shape}) -> {out_shape} {{
  %a = {left_shape} parameter(0)
  %b = {right_shape} parameter(1)
  ROOT %convolution.1 = {out_shape} convolution(%a, %b), window={{{window}}}, dim_labels={labels}{more}
}}
"""


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *OTHERS])
def test_convolutions(name):
    if name in CONVOLUTIONS:
        *form, asked = CONVOLUTIONS[name]
        assert _by_loops(*form) == 2 * asked
    else:
        form = OTHERS[name]
    text = _convolution(*form)
    assert hlo_costs.flops(hlo.parse(text)) == _by_loops(*form[:5]) == _by_xla(text)


def test_a_convolution_of_mt5_xxl():
    form = ("size=1x16x2 pad=0_0x15_15x0_0 rhs_reversal=0x1x0", "0b2f1_1o2i0->0b1f2")
    text = _convolution(*form, (4, 612, 2, 256, 1), (16, 64, 2, 256, 1), (4, 612, 16, 64, 1))
    assert hlo_costs.flops(hlo.parse(text)) == 2 * 4 * 612 * 512 * 1024 == _by_xla(text)


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
found = {
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

# A product whose matrix lies in pieces along four devices, and one whose sum does: rings, as the TPU's compiler makes.
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
    found[name] = jax.jit(mapped).lower(*shapes).compile().as_text()

# The same from shardings alone: the rows of a batch along data, the product's sum along model.
def place(*spec):
    return jax.sharding.NamedSharding(mesh, P(*spec))

@partial(jax.jit, in_shardings=(place("data", "model"), place("model", None)), out_shardings=place("data", None))
def product(x, w):
    return x @ w
found["a sharded product"] = product.lower(*[jax.ShapeDtypeStruct((16, 16), jnp.float32)] * 2).compile().as_text()
print(json.dumps(found))
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


# Rings in the form of the TPU's windowed products: two rounds at once, in both directions, with masks and copies

_RIGHT = "source_target_pairs={{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}}"
_LEFT = "source_target_pairs={{0,6},{2,0},{4,2},{6,4},{1,7},{3,1},{5,3},{7,5}}"
_STARTED = "(bf16[64,32]{1,0:T(8,128)(2,1)}, bf16[64,32]{1,0:T(8,128)(2,1)S(3)}, u32[]{:S(2)}, u32[]{:S(2)})"
_P = "bf16[64,32]{1,0:T(8,128)(2,1)S(3)}"  # a piece

_ADDING = f"""\
HloModule adding, entry_computation_layout={{(bf16[128,64]{{1,0}}, bf16[128,32]{{1,0}})->bf16[64,32]{{1,0}}}}

%fused_select (param_0: bf16[64,32], param_1: pred[]) -> bf16[64,32] {{
  %param_0 = {_P} parameter(0)
  %param_1 = pred[] parameter(1)
  %zero = bf16[] constant(0)
  %zeros = {_P} broadcast(%zero), dimensions={{}}
  ROOT %select.1 = {_P} select(%param_1, %zeros, %param_0)
}}

%fused_product (param_0.1: bf16[128,64], param_1.1: bf16[128,32]) -> bf16[64,32] {{
  %param_0.1 = bf16[128,64]{{1,0:T(8,128)(2,1)}} parameter(0)
  %param_1.1 = bf16[128,32]{{1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %convolution.1 = {_P} convolution(%param_0.1, %param_1.1), dim_labels=fb_io->bf
}}

%fused_sums (param_0.2: bf16[64,32], param_1.2: bf16[64,32], param_2.2: bf16[64,32]) -> (bf16[64,32], bf16[64,32]) {{
  %param_0.2 = {_P} parameter(0)
  %convert.0 = f32[64,32]{{1,0:T(8,128)}} convert(%param_0.2)
  %param_1.2 = {_P} parameter(1)
  %convert.1 = f32[64,32]{{1,0:T(8,128)}} convert(%param_1.2)
  %param_2.2 = {_P} parameter(2)
  %convert.2 = f32[64,32]{{1,0:T(8,128)}} convert(%param_2.2)
  %add.0 = f32[64,32]{{1,0:T(8,128)}} add(%convert.0, %convert.1)
  %add.1 = f32[64,32]{{1,0:T(8,128)}} add(%convert.2, %convert.1)
  %sum.0 = {_P} convert(%add.0)
  %sum.1 = {_P} convert(%add.1)
  ROOT %tuple.0 = ({_P}, {_P}) tuple(%sum.0, %sum.1)
}}

%fused_last (param_0.3: bf16[64,32], param_1.3: bf16[64,32]) -> bf16[64,32] {{
  %param_0.3 = {_P} parameter(0)
  %param_1.3 = {_P} parameter(1)
  ROOT %add.2 = {_P} add(%param_0.3, %param_1.3)
}}

%body_rs (param.1: (bf16[128,64], bf16[128,32], bf16[64,32], bf16[64,32], u32[])) -> (bf16[128,64], bf16[128,32], bf16[64,32], bf16[64,32], u32[]) {{
  %param.1 = (bf16[128,64], bf16[128,32], {_P}, {_P}, u32[]{{:T(128)}}) parameter(0)
  %two = u32[]{{:T(128)}} constant(2)
  %none = u32[]{{:T(128)}} constant(0)
  %x = bf16[128,64] get-tuple-element(%param.1), index=0
  %y = bf16[128,32] get-tuple-element(%param.1), index=1
  %right = {_P} get-tuple-element(%param.1), index=2
  %left = {_P} get-tuple-element(%param.1), index=3
  %i = u32[]{{:T(128)}} get-tuple-element(%param.1), index=4
  %first = pred[]{{:T(512)S(6)}} compare(%i, %none), direction=EQ
  %select_fusion.1 = {_P} fusion(%right, %first), kind=kLoop, calls=%fused_select
  %permute-start.1 = {_STARTED} collective-permute-start(%select_fusion.1), channel_id=1, {_RIGHT}
  %permute-start.2 = {_STARTED} collective-permute-start(%left), channel_id=2, {_LEFT}
  %product = {_P} fusion(%x, %y), kind=kOutput, calls=%fused_product
  %permute-done.1 = {_P} collective-permute-done(%permute-start.1)
  %permute-done.2 = {_P} collective-permute-done(%permute-start.2)
  %sums.1 = ({_P}, {_P}) fusion(%permute-done.1, %product, %permute-done.2), kind=kLoop, calls=%fused_sums
  %right.1 = {_P} get-tuple-element(%sums.1), index=0
  %permute-start.3 = {_STARTED} collective-permute-start(%right.1), channel_id=3, {_RIGHT}
  %left.1 = {_P} get-tuple-element(%sums.1), index=1
  %permute-start.4 = {_STARTED} collective-permute-start(%left.1), channel_id=4, {_LEFT}
  %permute-done.3 = {_P} collective-permute-done(%permute-start.3)
  %permute-done.4 = {_P} collective-permute-done(%permute-start.4)
  %sums.2 = ({_P}, {_P}) fusion(%permute-done.3, %product, %permute-done.4), kind=kLoop, calls=%fused_sums.clone
  %right.2 = {_P} get-tuple-element(%sums.2), index=0
  %left.2 = {_P} get-tuple-element(%sums.2), index=1
  %next = u32[]{{:T(128)}} add(%i, %two)
  ROOT %tuple.1 = (bf16[128,64], bf16[128,32], {_P}, {_P}, u32[]{{:T(128)}}) tuple(%x, %y, %right.2, %left.2, %next)
}}

%condition_rs (param.2: (bf16[128,64], bf16[128,32], bf16[64,32], bf16[64,32], u32[])) -> pred[] {{
  %param.2 = (bf16[128,64], bf16[128,32], {_P}, {_P}, u32[]{{:T(128)}}) parameter(0)
  %i.1 = u32[]{{:T(128)}} get-tuple-element(%param.2), index=4
  %rounds = u32[]{{:T(128)}} constant(6)
  ROOT %compare.1 = pred[] compare(%i.1, %rounds), direction=LT
}}

ENTRY %main (x.1: bf16[128,64], y.1: bf16[128,32]) -> bf16[64,32] {{
  %x.1 = bf16[128,64] parameter(0)
  %y.1 = bf16[128,32] parameter(1)
  %start = u32[]{{:T(128)}} constant(0)
  %empty = {_P} custom-call(), custom_call_target="AllocateBuffer"
  %tuple.2 = (bf16[128,64], bf16[128,32], {_P}, {_P}, u32[]{{:T(128)}}) tuple(%x.1, %y.1, %empty, %empty, %start)
  %while.1 = (bf16[128,64], bf16[128,32], {_P}, {_P}, u32[]{{:T(128)}}) while(%tuple.2), condition=%condition_rs, body=%body_rs
  %right.3 = {_P} get-tuple-element(%while.1), index=2
  %left.3 = {_P} get-tuple-element(%while.1), index=3
  %permute-start.5 = {_STARTED} collective-permute-start(%left.3), channel_id=5, {_RIGHT}
  %permute-done.5 = {_P} collective-permute-done(%permute-start.5)
  ROOT %sum.2 = {_P} fusion(%right.3, %permute-done.5), kind=kLoop, calls=%fused_last
}}
"""  # noqa: E501 (as XLA writes it)


def _with_clone(text, name):
    """XLA gives every fusion a computation of its own."""
    found = re.search(rf"^%{name} .*?^}}\n", text, re.MULTILINE | re.DOTALL)
    assert found
    clone = re.sub(r"%([\w.]+)", r"%\1.clone", found[0])
    clone = re.sub(r"(\(|, )(\w+(?:\.\d+)?): ", r"\1\2.clone: ", clone)
    return text.replace(found[0], f"{found[0]}\n{clone}")


def test_a_ring_that_adds_up_in_the_tpus_form():
    text = _with_clone(_ADDING, "fused_sums")
    xla.hlo_module_from_text(text)
    program = hlo.parse(text)
    # Four permutations in each of three rounds, and one behind the loop.
    piece, mesh = 2 * 64 * 32, {"replica": 1, "data": 4, "model": 2}
    assert hlo_costs.collectives(program, mesh) == [Collective("ring reduce-scatter", "data", 13, 13 * piece)]
    assert hlo_costs.flops(program) == 3 * 2 * 128 * 64 * 32


_GATHERING = f"""\
HloModule gathering

%fused_norm (param_0: bf16[64,32]) -> bf16[64,32] {{
  %param_0 = {_P} parameter(0)
  %epsilon = bf16[] constant(1e-06)
  %epsilons = {_P} broadcast(%epsilon), dimensions={{}}
  %squares = {_P} multiply(%param_0, %param_0)
  %add.1 = {_P} add(%squares, %epsilons)
  %roots = {_P} rsqrt(%add.1)
  ROOT %multiply.1 = {_P} multiply(%param_0, %roots)
}}

%fused_products (param_0.1: bf16[8,64], param_1.1: bf16[64,32], param_2.1: bf16[64,32], param_3.1: bf16[8,32]) -> bf16[8,32] {{
  %param_0.1 = bf16[8,64] parameter(0)
  %param_1.1 = {_P} parameter(1)
  %param_2.1 = {_P} parameter(2)
  %param_3.1 = bf16[8,32] parameter(3)
  %pieces = bf16[128,32] concatenate(%param_1.1, %param_2.1), dimensions={{0}}
  %twice = bf16[8,128] concatenate(%param_0.1, %param_0.1), dimensions={{1}}
  %convolution.1 = bf16[8,32] convolution(%twice, %pieces), dim_labels=bf_io->bf
  ROOT %add.2 = bf16[8,32] add(%param_3.1, %convolution.1)
}}

%body_ag (param.1: (bf16[8,64], bf16[64,32], bf16[8,32], bf16[64,32], u32[])) -> (bf16[8,64], bf16[64,32], bf16[8,32], bf16[64,32], u32[]) {{
  %param.1 = (bf16[8,64], {_P}, bf16[8,32], {_P}, u32[]{{:T(128)}}) parameter(0)
  %two = u32[]{{:T(128)}} constant(2)
  %x = bf16[8,64] get-tuple-element(%param.1), index=0
  %right = {_P} get-tuple-element(%param.1), index=1
  %total = bf16[8,32] get-tuple-element(%param.1), index=2
  %left = {_P} get-tuple-element(%param.1), index=3
  %i = u32[]{{:T(128)}} get-tuple-element(%param.1), index=4
  %permute-start.1 = {_STARTED} collective-permute-start(%right), channel_id=1, {_RIGHT}
  %permute-start.2 = {_STARTED} collective-permute-start(%left), channel_id=2, {_LEFT}
  %total.1 = bf16[8,32] fusion(%x, %right, %left, %total), kind=kOutput, calls=%fused_products
  %permute-done.1 = {_P} collective-permute-done(%permute-start.1)
  %permute-done.2 = {_P} collective-permute-done(%permute-start.2)
  %permute-start.3 = {_STARTED} collective-permute-start(%permute-done.1), channel_id=3, {_RIGHT}
  %permute-start.4 = {_STARTED} collective-permute-start(%permute-done.2), channel_id=4, {_LEFT}
  %total.2 = bf16[8,32] fusion(%x, %permute-done.1, %permute-done.2, %total.1), kind=kOutput, calls=%fused_products.clone
  %permute-done.3 = {_P} collective-permute-done(%permute-start.3)
  %permute-done.4 = {_P} collective-permute-done(%permute-start.4)
  %next = u32[]{{:T(128)}} add(%i, %two)
  ROOT %tuple.1 = (bf16[8,64], {_P}, bf16[8,32], {_P}, u32[]{{:T(128)}}) tuple(%x, %permute-done.3, %total.2, %permute-done.4, %next)
}}

%condition_ag (param.2: (bf16[8,64], bf16[64,32], bf16[8,32], bf16[64,32], u32[])) -> pred[] {{
  %param.2 = (bf16[8,64], {_P}, bf16[8,32], {_P}, u32[]{{:T(128)}}) parameter(0)
  %i.1 = u32[]{{:T(128)}} get-tuple-element(%param.2), index=4
  %rounds = u32[]{{:T(128)}} constant(6)
  ROOT %compare.1 = pred[] compare(%i.1, %rounds), direction=LT
}}

ENTRY %main (x.1: bf16[8,64], y.1: bf16[64,32]) -> bf16[8,32] {{
  %x.1 = bf16[8,64] parameter(0)
  %y.1 = {_P} parameter(1)
  %start = u32[]{{:T(128)}} constant(0)
  %zero = bf16[] constant(0)
  %zeros = bf16[8,32] broadcast(%zero), dimensions={{}}
  %norm = {_P} fusion(%y.1), kind=kLoop, calls=%fused_norm
  %permute-start.5 = {_STARTED} collective-permute-start(%norm), channel_id=5, {_LEFT}
  %permute-done.5 = {_P} collective-permute-done(%permute-start.5)
  %tuple.2 = (bf16[8,64], {_P}, bf16[8,32], {_P}, u32[]{{:T(128)}}) tuple(%x.1, %norm, %zeros, %permute-done.5, %start)
  %while.1 = (bf16[8,64], {_P}, bf16[8,32], {_P}, u32[]{{:T(128)}}) while(%tuple.2), condition=%condition_ag, body=%body_ag
  ROOT %result = bf16[8,32] get-tuple-element(%while.1), index=2
}}
"""  # noqa: E501 (as XLA writes it)


def test_a_ring_that_gathers_in_the_tpus_form():
    """What goes round was itself computed with sums; it is the sums behind the permutations that count."""
    text = _with_clone(_GATHERING, "fused_products")
    xla.hlo_module_from_text(text)
    program = hlo.parse(text)
    piece, mesh = 2 * 64 * 32, {"replica": 1, "data": 4, "model": 2}
    assert hlo_costs.collectives(program, mesh) == [Collective("ring all-gather", "data", 13, 13 * piece)]
    assert hlo_costs.flops(program) == 3 * 2 * (2 * 8 * 128 * 32)


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
    found = hlo_costs.collectives(hlo.parse(text), {"replica": 3, "data": 2, "model": 2})
    assert sorted(found, key=lambda row: (row.axes, row.kind)) == [
        Collective("all-reduce", "data", 1, 2 * (4 * 48) / 2),
        Collective("all-gather", "replica", 1, 2 * (2 * 32)),
        Collective("all-reduce", "replica", 1, pytest.approx(2 * (4 * 48) * 2 / 3)),
        Collective("collective-permute", "replica", 1, 2 * 32),
        Collective("reduce-scatter", "replica", 1, pytest.approx(4 * 48 * 2 / 3)),
    ]


def test_bytes_of_every_dtype():
    """A dtype that is not known would count nothing."""
    for dtype in ("pred", "s8", "u8", "s16", "u16", "f16", "bf16", "s32", "u32", "f32", "s64", "u64", "f64"):
        array = f"{dtype}[3,5]"
        text = f"HloModule m\n\nENTRY %main (x: {array}) -> {array} {{\n  ROOT %x = {array} parameter(0)\n}}\n"
        size = 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8
        assert hlo.parse(text).root("main").bytes == math.prod((3, 5)) * size, dtype
