"""promot_t5x.planning.hlo_costs.collectives: permutations that make a ring, in the form of the TPU's compiler."""

import re

from jax._src.lib import hlo as xla  # nothing public reads HLO text

from promot_t5x.planning import hlo, hlo_costs
from promot_t5x.planning.hlo_costs import Collective

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
  %barrier = {_P} opt-barrier(%permute-done.5)
  ROOT %sum.2 = {_P} fusion(%right.3, %barrier), kind=kLoop, calls=%fused_last
}}
"""  # noqa: E501 (as XLA writes it)


def _with_clone(text, name):
    """XLA gives every fusion a computation of its own."""
    computation = re.search(rf"^%{name} .*?^}}\n", text, re.MULTILINE | re.DOTALL)
    assert computation
    clone = re.sub(r"%([\w.]+)", r"%\1.clone", computation[0])
    clone = re.sub(r"(\(|, )(\w+(?:\.\d+)?): ", r"\1\2.clone: ", clone)
    return text.replace(computation[0], f"{computation[0]}\n{clone}")


def test_a_ring_that_adds_up_in_the_tpus_form():
    text = _with_clone(_ADDING, "fused_sums")
    xla.hlo_module_from_text(text)
    program = hlo.parse(text)
    # Four permutations in each of three rounds, and one after the loop.
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
    """What is passed on was itself computed with sums; only the sums after the permutations count."""
    text = _with_clone(_GATHERING, "fused_products")
    xla.hlo_module_from_text(text)
    program = hlo.parse(text)
    piece, mesh = 2 * 64 * 32, {"replica": 1, "data": 4, "model": 2}
    assert hlo_costs.collectives(program, mesh) == [Collective("ring all-gather", "data", 13, 13 * piece)]
    assert hlo_costs.flops(program) == 3 * 2 * (2 * 8 * 128 * 32)
