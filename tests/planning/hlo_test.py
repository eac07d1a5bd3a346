"""promot_t5x.planning.hlo: texts written by hand and texts that XLA wrote, against XLA's own parser and plain loops."""

import math
import operator
import re
import string

import jax
import jax.numpy as jnp
import pytest
from jax._src.lib import hlo as xla  # nothing public reads HLO text

from promot_t5x.planning import hlo

# The shapes, layouts, memory spaces and comments are those of programs compiled for TPU v4.
TPU_TEXT = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)})->bf16[4,256]{1,0:T(8,128)(2,1)}}

FileNames
1 "/a = b/{c -> d}.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=8 end_line=8 column=11 end_column=36}

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%fused_computation.7 (param_0.1: bf16[4,128], param_1.2: bf16[128,256]) -> bf16[4,256] {
  %param_0.1 = bf16[4,128]{1,0:T(8,128)(2,1)S(3)} parameter(0)
  %param_1.2 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.559 = bf16[4,256]{1,0:T(8,128)(2,1)S(3)} convolution(%param_0.1, %param_1.2), dim_labels=bf_io->bf, metadata={op_name="jit(train_step)/jvp(Transformer.hidden)/dot_general[x={1,0}, y=2]" stack_frame_id=1}
}

%add.clone (x.1: bf16[], y.1: bf16[]) -> bf16[] {
  %x.1 = bf16[] parameter(0)
  %y.1 = bf16[] parameter(1)
  ROOT %add.3 = bf16[] add(%x.1, %y.1)
}

ENTRY %main.77_spmd (param.1: s32[], param.2: bf16[4,128], param.3: bf16[128,256], param.4: u32[], param.5: f32[3], param.6: pred[]) -> bf16[4,256] {
  %param.1 = s32[]{:T(128)} parameter(0), sharding={replicated}
  %param.2 = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(1), sharding={devices=[2,1]<=[2]}
  %param.3 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(2)
  %param.4 = u32[]{:T(128)} parameter(3)
  %param.5 = f32[3]{0:T(128)} parameter(4)
  %param.6 = pred[]{:T(512)} parameter(5)
  %constant.9064..sunk.43 = u32[]{:T(128)} constant(15)
  %constant.12 = f32[3]{0:T(128)} constant({1, 2, 3})
  %tuple.9 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}, bf16[128,256]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}, f32[3]{0:T(128)}, /*index=5*/pred[]{:T(512)}) tuple(%param.1, %param.2, %param.3, %param.4, %param.5, /*index=5*/%param.6)
  %get-tuple-element.3 = bf16[128,256]{1,0:T(8,128)(2,1)} get-tuple-element(%tuple.9), index=2
  %collective-permute-start.1 = (bf16[4,128]{1,0:T(8,128)(2,1)}, bf16[4,128]{1,0:T(8,128)(2,1)S(3)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%param.2), channel_id=7, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = bf16[4,128]{1,0:T(8,128)(2,1)S(3)} collective-permute-done(%collective-permute-start.1)
  %fusion.2299 = bf16[4,256]{1,0:T(8,128)(2,1)S(3)} fusion(%collective-permute-done.1, %get-tuple-element.3), kind=kOutput, calls=%fused_computation.7, backend_config={"flag_configs":[],"window_config":{"kernel_window_bounds":["1","2"]}}
  ROOT %all-reduce.296 = bf16[4,256]{1,0:T(8,128)(2,1)} all-reduce(%fusion.2299), channel_id=24, replica_groups=[1,2]<=[2], use_global_device_ids=true, to_apply=%add.clone, frontend_attributes={from-cross-replica-sharding="true"}
}
"""  # noqa: E501 (as XLA writes it)


def _as_xla_reads(text):
    """{computation: {instruction: (opcode, operands)}} by XLA's own parser."""
    computations = {}
    for computation in xla.hlo_module_from_text(text).computations():
        instructions = computations[computation.name] = {}
        for instruction in computation.instructions():
            words = re.findall(r"[A-Z][a-z0-9]*", str(instruction.opcode).partition(".k")[2])
            opcode = "-".join(words).lower().replace("optimization-barrier", "opt-barrier")  # the text abbreviates it
            instructions[instruction.name] = (opcode, [operand.name for operand in instruction.operands()])
    return computations


def _as_parsed(program):
    return {
        name: {i.name: (i.opcode, list(i.operands)) for i in instructions.values()}
        for name, instructions in program.computations.items()
    }


def test_a_text_of_the_tpu_compiler():
    program = hlo.parse(TPU_TEXT)
    assert _as_parsed(program) == _as_xla_reads(TPU_TEXT)
    assert program.entry == "main.77_spmd" and program.root(program.entry).name == "all-reduce.296"
    main = program.computations["main.77_spmd"]
    assert main["tuple.9"].shapes == (
        ("s32", ()),
        ("bf16", (4, 128)),
        ("bf16", (128, 256)),
        ("u32", ()),
        ("f32", (3,)),
        ("pred", ()),
    )
    assert main["tuple.9"].bytes == 4 + 2 * 4 * 128 + 2 * 128 * 256 + 4 + 4 * 3 + 1
    assert main["param.3"].dimensions == (128, 256) and main["param.1"].dimensions == ()
    assert main["collective-permute-start.1"].bytes == 2 * (2 * 4 * 128) + 2 * 4
    assert main["constant.9064..sunk.43"].arguments == "15"
    assert main["get-tuple-element.3"].attribute("index") == "2"
    assert main["collective-permute-start.1"].attribute("source_target_pairs") == "{{0,1},{1,0}}"
    assert main["all-reduce.296"].attribute("replica_groups") == "[1,2]<=[2]"
    assert main["all-reduce.296"].attribute("channel_id") == "24" and main["all-reduce.296"].attribute("id") is None
    assert main["all-reduce.296"].called() == ["add.clone"]
    assert main["fusion.2299"].called() == ["fused_computation.7"] and main["tuple.9"].called() == []
    assert [i.name for i in program.users("main.77_spmd", "param.2")] == ["tuple.9", "collective-permute-start.1"]
    assert program.callers["fused_computation.7"] == ("main.77_spmd", main["fusion.2299"])
    products = [(where, i.name, times) for where, i, times in program.walk() if i.opcode == "convolution"]
    assert products == [("fused_computation.7", "convolution.559", 1)]


# How often loops run


_LOOP = """\
HloModule loop
$fusions
%body (p: (f32[8,8], s32[], s32[])) -> (f32[8,8], s32[], s32[]) {
  %p = (f32[8,8]{1,0}, s32[], s32[]) parameter(0)
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=0
  %counter = s32[] get-tuple-element(%p), index=1
  %other = s32[] get-tuple-element(%p), index=2
  %step = s32[] constant($step)
$counted
  %dot = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %round = (f32[8,8]{1,0}, s32[], s32[]) tuple(%dot, %next, $other)
}

%condition (q: (f32[8,8], s32[], s32[])) -> pred[] {
  %q = (f32[8,8]{1,0}, s32[], s32[]) parameter(0)
  %counter.1 = s32[] get-tuple-element(%q), index=1
  %limit = s32[] constant($limit)
$compared
}

ENTRY %main (x.1: f32[8,8], n: s32[]) -> f32[8,8] {
  %x.1 = f32[8,8]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %start = s32[] constant($start)
$begun
  %tuple = (f32[8,8]{1,0}, s32[], s32[]) tuple(%x.1, %begun, %n)
  %while = (f32[8,8]{1,0}, s32[], s32[]) while(%tuple), condition=%condition, body=%body$stated
  ROOT %result = f32[8,8]{1,0} get-tuple-element(%while), index=0
}
"""
_PLAIN = {
    "fusions": "",
    "counted": "  %next = s32[] add(%counter, %step)",
    "compared": "  ROOT %goes_on = pred[] compare(%counter.1, %limit), direction=$direction",
    "begun": "  %begun = s32[] copy(%start)",
    "other": "%other",
    "stated": "",
}
_FUSED = """
%fused_compare (PARAMETERS) -> pred[] {
  %c = s32[] parameter(0)
  %l = s32[] LIMIT
  ROOT %compared = pred[] compare(%c, %l), direction=$direction
}

%fused_add (PARAMETERS) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] STEP
  ROOT %added = s32[] add(%b, %a)
}
"""
_FUSED_PAIR = """
%fused_pair (d: s32[], e: s32[]) -> (s32[], s32[]) {
  %d = s32[] parameter(0)
  %e = s32[] parameter(1)
  %one = s32[] constant(1)
  %step.1 = s32[] constant($step)
  %first = s32[] add(%e, %one)
  %second = s32[] add(%d, %step.1)
  ROOT %pair = (s32[], s32[]) tuple(%first, %second)
}
"""


def _fused(parameters, limit, step):
    return _FUSED.replace("PARAMETERS", parameters).replace("LIMIT", limit).replace("STEP", step)


# How the compiler happens to put the same loop.
WRITTEN = {
    "plainly": {},
    "the other way round": {
        "counted": "  %next = s32[] add(%step, %counter)",
        "compared": "  ROOT %goes_on = pred[] compare(%limit, %counter.1), direction=$mirrored",
    },
    "as a subtraction": {"counted": "  %less = s32[] constant($less)\n  %next = s32[] subtract(%counter, %less)"},
    "after copies": {
        "counted": """\
  %copy.1 = s32[]{:T(128)} copy(%counter)
  %barrier = s32[] opt-barrier(%copy.1)
  %sum = s32[] add(%barrier, %step)
  %next = s32[] copy(%sum)""",
        "compared": """\
  %copy.2 = s32[]{:T(128)} copy(%counter.1)
  ROOT %goes_on = pred[] compare(%copy.2, %limit), direction=$direction""",
        "begun": """\
  %copy-start.3 = (s32[]{:T(128)S(6)}, s32[], u32[]{:S(2)}) copy-start(%start)
  %copy-done.3 = s32[]{:T(128)S(6)} copy-done(%copy-start.3)
  %begun = s32[] bitcast(%copy-done.3)""",
    },
    "in fusions": {
        "fusions": _fused("c: s32[], l: s32[]", "parameter(1)", "parameter(1)"),
        "counted": "  %next = s32[] fusion(%counter, %step), kind=kLoop, calls=%fused_add",
        "compared": "  ROOT %goes_on = pred[] fusion(%counter.1, %limit), kind=kLoop, calls=%fused_compare",
    },
    "in fusions with their numbers": {
        "fusions": _fused("c: s32[]", "constant($limit)", "constant($step)"),
        "counted": "  %next = s32[] fusion(%counter), kind=kLoop, calls=%fused_add",
        "compared": "  ROOT %goes_on = pred[] fusion(%counter.1), kind=kLoop, calls=%fused_compare",
    },
    "next to another counter": {
        "fusions": _FUSED_PAIR,
        "counted": """\
  %both = (s32[], s32[]) fusion(%counter, %other), kind=kLoop, calls=%fused_pair
  %other.1 = s32[] get-tuple-element(%both), index=0
  %next = s32[] get-tuple-element(%both), index=1""",
        "other": "%other.1",
    },
}
_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}


def _loop(start, direction, limit, step, written="plainly", **parts):
    """A counter from `start`, one product each round."""
    numbers = {"start": start, "direction": direction, "mirrored": _MIRRORED[direction], "limit": limit}
    numbers |= {"step": step, "less": -step}
    text = string.Template(_LOOP).substitute({**_PLAIN, **WRITTEN[written], **parts} | numbers)
    return string.Template(text).substitute(numbers)  # the parts have numbers of their own


COUNTERS = (
    (0, "LT", 10, 1),
    (0, "LE", 10, 1),
    (3, "LT", 24, 4),
    (3, "LE", 23, 4),
    (1, "NE", 9, 2),
    (9, "GE", 0, -2),
    (7, "GT", 0, -1),
    (0, "LT", 0, 1),
    (5, "LT", 2, 1),
    (2, "LE", 2, 3),
)


def _rounds(start, direction, limit, step):
    goes_on = getattr(operator, direction.lower())
    rounds = 0
    while goes_on(start, limit):
        start, rounds = start + step, rounds + 1
    return rounds


def _times(program):
    """How often each product runs."""
    return [times for _, i, times in program.walk() if i.opcode in ("dot", "convolution")]


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("counter", COUNTERS, ids=str)
def test_rounds_of_a_loop(counter, written):
    text = _loop(*counter, written)
    program = hlo.parse(text)
    assert _as_parsed(program) == _as_xla_reads(text), "XLA would not read such a text"
    assert _times(program) == [_rounds(*counter)]


def test_the_compilers_own_count_comes_first():
    stated = ', backend_config={"known_trip_count":{"n":"6"},"known_init_step":{"init":"0","step":"1"}}'
    assert _times(hlo.parse(_loop(0, "LT", 10, 1, stated=stated))) == [6]


UNKNOWN = {
    "a limit that is an argument": ("%limit = s32[] constant(10)", "%limit = s32[] get-tuple-element(%q), index=2"),
    "a start that is an argument": ("copy(%start)", "copy(%n)"),
    "a step that is an argument": ("add(%counter, %step)", "add(%counter, %other)"),
    "another operation": ("add(%counter, %step)", "multiply(%counter, %step)"),
    "away from the limit": ("%step = s32[] constant(1)", "%step = s32[] constant(-1)"),
    "on the spot": ("%step = s32[] constant(1)", "%step = s32[] constant(0)"),
    "another element's successor": (
        "tuple(%dot, %next, %other)",
        "tuple(%dot, %crossed, %other)",
        "  %next = ",
        "  %crossed = s32[] add(%other, %step)\n  %next = ",
    ),
    "no comparison": ("compare(%counter.1, %limit), direction=LT", "constant(true)"),
    "a comparison without a counter": ("compare(%counter.1, %limit)", "compare(%limit, %limit)"),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_rounds_that_cannot_be_read_off(why):
    text = _loop(0, "LT", 10, 1)
    for old, new in zip(UNKNOWN[why][::2], UNKNOWN[why][1::2], strict=True):
        assert text.count(old) == 1
        text = text.replace(old, new)
    xla.hlo_module_from_text(text)
    with pytest.raises(ValueError, match="^The number of iterations of the loop while in main cannot be determined.$"):
        _times(hlo.parse(text))
    assert _times(hlo.parse(text, unknown_trips=7)) == [7]


def test_a_loop_that_starts_where_another_ended():
    second = (
        "%again = (f32[8,8]{1,0}, s32[], s32[]) while(%while), condition=%condition, body=%body\n"
        "  ROOT %result = f32[8,8]{1,0} get-tuple-element(%again)"
    )
    text = _loop(0, "LT", 10, 1).replace("ROOT %result = f32[8,8]{1,0} get-tuple-element(%while)", second)
    xla.hlo_module_from_text(text)
    with pytest.raises(ValueError, match="the loop again in main"):
        _times(hlo.parse(text))
    assert _times(hlo.parse(text, unknown_trips=3)) == [10, 3]


# What else runs


@pytest.mark.parametrize(
    "condition,branches",
    [("s32[]", "branch_computations={%yes, %no}"), ("pred[]", "true_computation=%yes, false_computation=%no")],
)
def test_branches_run_at_most_once_each(condition, branches):
    text = f"""\
HloModule branches

%yes (y: f32[8,8]) -> f32[8,8] {{
  %y = f32[8,8] parameter(0)
  ROOT %dot.1 = f32[8,8] dot(%y, %y), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%no (z: f32[8,8]) -> f32[8,8] {{
  ROOT %z = f32[8,8] parameter(0)
}}

ENTRY %main (c: {condition}, x: f32[8,8]) -> f32[8,8] {{
  %c = {condition} parameter(0)
  %x = f32[8,8] parameter(1)
  ROOT %result = f32[8,8] conditional(%c, %x, %x), {branches}
}}
"""
    program = hlo.parse(text)
    assert _as_parsed(program) == _as_xla_reads(text)
    assert _times(program) == [1]
    assert program.computations["main"]["result"].called() == ["yes", "no"]


def test_what_runs_asynchronously_is_counted_once():
    text = """\
HloModule asynchronous

%called (y: f32[8,8]) -> f32[8,8] {
  %y = f32[8,8] parameter(0)
  ROOT %dot.1 = f32[8,8] dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%wrapped (z: f32[8,8]) -> f32[8,8] {
  %z = f32[8,8] parameter(0)
  ROOT %call.1 = f32[8,8] call(%z), to_apply=%called
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8] parameter(0)
  %start = ((f32[8,8]), f32[8,8], s32[]) async-start(%x), calls=%wrapped
  %update = ((f32[8,8]), f32[8,8], s32[]) async-update(%start)
  ROOT %done = f32[8,8] async-done(%update)
}
"""
    xla.hlo_module_from_text(text)
    program = hlo.parse(text)
    assert _times(program) == [1]
    assert program.computations["main"]["start"].bytes == 2 * 4 * 64 + 4


# What XLA wrote for the CPU


def _nested(x, weights):
    def layer(x, weight):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ weight), x), None

    return jax.lax.scan(layer, x, weights)[0]


PROGRAMS = {
    "nested scans": (_nested, [15]),
    # Per layer and round: one product forward, and backward one for the input and one for the weight.
    "their gradient": (jax.grad(lambda x, w: _nested_sum(x, w), argnums=(0, 1)), [15, 15, 15]),
    "from 2 to 10": (lambda x, w: jax.lax.fori_loop(2, 10, lambda i, y: jnp.tanh(y @ w[0]) + i, x), [8]),
    "down from 9": (
        lambda x, w: jax.lax.while_loop(lambda s: s[0] >= 0, lambda s: (s[0] - 2, jnp.tanh(s[1] @ w[0])), (9, x))[1],
        [5],
    ),
    "no loop": (lambda x, w: x @ w[0], [1]),
}


def _nested_sum(x, weights):
    def layer(x, weight):
        return jax.lax.scan(lambda y, _: (jnp.tanh(y @ weight), None), x, length=3)[0], None

    return jnp.sum(jax.lax.scan(layer, x, weights)[0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_texts_that_xla_writes(name):
    function, expected = PROGRAMS[name]
    text = jax.jit(function).lower(jnp.ones((8, 16)), jnp.ones((5, 16, 16))).compile().as_text()
    program = hlo.parse(text)
    assert _as_parsed(program) == _as_xla_reads(text)
    assert _times(program) == expected
    # XLA says for each loop of such a program how often it runs; what is read off without that must agree.
    silent = hlo.parse(re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", text))
    assert _times(silent) == expected


def test_a_loop_whose_rounds_xla_does_not_know():
    def function(x, n):
        return jax.lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, jnp.tanh(s[1] @ s[1])), (0, x))[1]

    text = jax.jit(function).lower(jnp.ones((8, 8)), 3).compile().as_text()
    with pytest.raises(
        ValueError, match="^The number of iterations of the loop while.* in main.* cannot be determined.$"
    ):
        _times(hlo.parse(text))
    assert _times(hlo.parse(text, unknown_trips=11)) == [11]


# Sizes


def test_bytes_of_every_dtype():
    """A dtype that is not stated would count nothing."""
    for dtype in ("pred", "s8", "u8", "s16", "u16", "f16", "bf16", "s32", "u32", "f32", "s64", "u64", "f64"):
        array = f"{dtype}[3,5]"
        text = f"HloModule m\n\nENTRY %main (x: {array}) -> {array} {{\n  ROOT %x = {array} parameter(0)\n}}\n"
        size = 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8
        assert hlo.parse(text).root("main").bytes == math.prod((3, 5)) * size, dtype
