"""promot_t5x.planning.hlo_costs.flops: operations of matrix products, against plain loops and XLA's own count."""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.lib import hlo as xla  # nothing public reads HLO text
from jax._src.lib import xla_client

from promot_t5x.planning import hlo, hlo_costs


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
        stated = re.search(rf"(?:^| ){name}=(\S+)", window)
        return stated[1].split("x") if stated else [default] * len(spatial)

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
        *form, products = CONVOLUTIONS[name]
        assert _by_loops(*form) == 2 * products
    else:
        form = OTHERS[name]
    text = _convolution(*form)
    assert hlo_costs.flops(hlo.parse(text)) == _by_loops(*form[:5]) == _by_xla(text)


def test_a_convolution_of_mt5_xxl():
    form = ("size=1x16x2 pad=0_0x15_15x0_0 rhs_reversal=0x1x0", "0b2f1_1o2i0->0b1f2")
    text = _convolution(*form, (4, 612, 2, 256, 1), (16, 64, 2, 256, 1), (4, 612, 16, 64, 1))
    assert hlo_costs.flops(hlo.parse(text)) == 2 * 4 * 612 * 512 * 1024 == _by_xla(text)
