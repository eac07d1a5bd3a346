"""Costs of a compiled program, from its HLO: operations of matrix products, bytes exchanged between devices.

Bytes that one device receives when N devices of a group exchange an array of n bytes per device:

    all-gather          (N - 1) n            it receives the others' parts
    reduce-scatter      (N - 1) / N * n      it receives the others' addends for its part
    all-reduce          2 (N - 1) / N * n    a reduce-scatter, then an all-gather of the sums
    all-to-all          (N - 1) / N * n      it keeps 1 / N of its array
    collective-permute  n
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from promot_t5x.planning.hlo import Instruction, Program

_FLOATS = ("f32", "bf16", "f16")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of traffic of a program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute"; or "ring all-gather" and
        "ring reduce-scatter", which XLA has split into permutations that run in parallel with the products.
      axes: names of the mesh axes that it crosses, joined by +.
      count: how often it happens per step.
      bytes: what one device receives per step.
    """

    kind: str
    axes: str
    count: int
    bytes: float

    @property
    def reduces(self) -> bool:
        """Whether it sums values of several devices."""
        return self.kind in ("all-reduce", "reduce-scatter", "ring reduce-scatter")


def flops(program: Program) -> float:
    """Multiplications and additions of all matrix products that one device computes, over all iterations of loops."""
    return sum(
        times * _product_flops(program, computation, instruction)
        for computation, instruction, times in program.walk()
        if instruction.opcode in ("convolution", "dot")
    )


def _product_flops(program: Program, computation: str, product: Instruction) -> float:
    """2 * (elements of the result) * (elements summed over); `_taps` counts the pairs within windows."""
    left, right = (program.computations[computation][name].dimensions for name in product.operands[:2])
    if product.opcode == "dot":
        contracted = [int(n) for n in re.findall(r"\d+", product.attribute("lhs_contracting_dims") or "")]
        return 2.0 * math.prod(product.dimensions) * math.prod(left[i] for i in contracted)
    left_labels, right_labels, out_labels = re.split(r"_|->", product.attribute("dim_labels") or "")
    window = product.attribute("window") or ""
    total = 2.0 * product.dimensions[out_labels.index("b")] * product.dimensions[out_labels.index("f")]
    total *= right[right_labels.index("i")]
    for position, label in enumerate(sorted(label for label in out_labels if label.isdigit())):
        sizes = (left[left_labels.index(label)], product.dimensions[out_labels.index(label)])
        total *= _taps(window, position, *sizes)
    return total


@functools.cache
def _taps(window: str, position: int, input_size: int, output_size: int) -> int:
    """Counts the pairs (output position, window position) in one window dimension that hit an element of the input.

    XLA writes a batched product as a convolution whose window hits only one element, so padding must not be counted.
    Tap t of output position p hits p * stride + t * right_dilation - low; the input's elements are at the multiples of
    left_dilation, and there are only zeros between them.
    """

    def field(name: str, default: str) -> str:
        match = re.search(rf"\b{name}=([0-9x_\-]+)", window)
        return match[1].split("x")[position] if match else default

    size, stride = int(field("size", "1")), int(field("stride", "1"))
    low = int(re.match(r"-?\d+", field("pad", "0_0"))[0])  # pyright: ignore[reportOptionalSubscript]
    left_dilation, right_dilation = int(field("lhs_dilate", "1")), int(field("rhs_dilate", "1"))
    out, tap = np.arange(output_size)[:, None], np.arange(size)[None, :]
    place = out * stride + tap * right_dilation - low
    inside = (place >= 0) & (place <= (input_size - 1) * left_dilation) & (place % left_dilation == 0)
    return int(inside.sum())


def collectives(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """The traffic of one device per step, by kind and mesh axes, most bytes first.

    Args:
      program: compiled for the devices of the mesh, in their order.
      mesh: axis names and sizes, in order; `replica` is the number of slices.
    """
    totals: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for computation, instruction, times in program.walk():
        kind = _between_slices(instruction) or instruction.opcode.removesuffix("-start")
        if kind not in _COLLECTIVES:
            continue
        axes, group = (
            ("replica", mesh["replica"]) if instruction.opcode == "send" else _axes_and_group(instruction, mesh)
        )
        received = _received(program, computation, instruction, kind, group)
        if kind == "collective-permute" and instruction.opcode != "send":
            kind = _ring_kind(program, computation, instruction)
        entry = totals[kind, axes]
        entry[0] += times
        entry[1] += times * received
    rows = [Collective(kind, axes, int(count), size) for (kind, axes), (count, size) in totals.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def _between_slices(instruction: Instruction) -> str | None:
    """The kind of collective between slices that an instruction starts; None for other instructions.

    A program is compiled for one slice: exchanges with other slices are transfers to the host, whose runtime does them.
    """
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if instruction.opcode != "send" or transfer is None:
        return None
    kind = transfer[1].lower().replace("_", "-")
    return kind if kind in _COLLECTIVES else "collective-permute"


def _received(program: Program, computation: str, instruction: Instruction, kind: str, group: int) -> float:
    """Bytes that one device receives if the work is divided evenly, as in a ring."""
    operands = [program.computations[computation][name].bytes for name in instruction.operands]
    own, others = sum(operands), (group - 1) / group
    if kind == "collective-permute":
        return own
    if kind == "all-gather":
        return own * (group - 1)
    return own * others * (2 if kind == "all-reduce" else 1)


def _axes_and_group(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[str, int]:
    """The mesh axes along which the devices of a group differ, and the size of a group."""
    if pairs := instruction.attribute("source_target_pairs"):
        numbers = [int(n) for n in re.findall(r"\d+", pairs)]
        groups = [group for group in zip(numbers[::2], numbers[1::2], strict=True)]
    else:
        written = instruction.attributes.partition("replica_groups=")[2]
        groups = replica_groups(written, math.prod(mesh.values()))
    crossed = set()
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), tuple(mesh.values())))
        crossed |= {axis for axis, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1}
    return "+".join(axis for axis in mesh if axis in crossed) or "none", len(groups[0])


def replica_groups(text: str, devices: int) -> Sequence[Sequence[int]]:
    """The groups of devices that exchange data, in any of XLA's notations.

    Args:
      text: the text after `replica_groups=`; more may follow.
      devices: number of devices; they form one group if none is written.

    Raises:
      ValueError: an unknown notation.

    >>> replica_groups("{{0,1},{2,3}}, to_apply=%add", 4), replica_groups("[2,2]<=[2,2]T(1,0)", 4)
    ([[0, 1], [2, 3]], [[0, 2], [1, 3]])
    >>> replica_groups("mesh['a'=2,'b'=2] {'b'}", 4)
    [[0, 1], [2, 3]]
    >>> replica_groups("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", 4)
    [[0, 2], [1, 3]]
    """
    if named := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((\[.*?\)|\[.*?\])\))? \{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = _iota(named[2]) if named[2] else np.arange(math.prod(sizes.values()))
        return _mesh_groups(sizes, re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[3]), ids)
    if iota := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(iota[2]).reshape([int(n) for n in iota[1].split(",")]).tolist()
    if listed := re.match(r"\{(\{[\d,]+\},?)+\}", text):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[0])]
    if not text or text.startswith("{}"):
        return [list(range(devices))]
    raise ValueError(
        f"The compiled program has replica_groups={text.split(', ')[0]}, which cannot be parsed: install the versions "
        "of jax and libtpu that constraints.txt names."
    )


def _iota(text: str) -> np.ndarray:
    """ "[16,4]T(1,0)": the numbers 0, 1, 2, … in this shape, transposed and flattened."""
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(numbers := [int(n) for n in re.findall(r"\d+", shape)])).reshape(numbers)
    return (ids.transpose([int(n) for n in re.findall(r"\d+", order)]) if order else ids).reshape(-1)


def _mesh_groups(sizes: Mapping[str, int], wanted: Sequence[tuple[str, str, str]], ids: np.ndarray) -> list[list[int]]:
    """Groups along parts of mesh axes; ("a", "2", "4") is the part of size 4 that follows a part of size 2 of "a".

    Each axis is cut into [before a part, part, …, rest], so that ids.reshape(shape) has one dimension per wanted part;
    the devices of a group differ only in these dimensions.
    """
    shape, chosen = [], []
    for name, size in sizes.items():
        parts = sorted((int(before or 1), int(part or size)) for axis, before, part in wanted if axis == name)
        cut = 1
        for before, part in parts:
            chosen.append(len(shape) + 1)
            shape += [before // cut, part]
            cut = before * part
        shape.append(size // cut)
    rest = [i for i in range(len(shape)) if i not in chosen]
    grouped = ids.reshape(shape).transpose([*rest, *chosen])
    return grouped.reshape(-1, math.prod(shape[i] for i in chosen)).tolist()


# Instructions whose result contains values of an operand unchanged.
_HANDS_ON = {"collective-permute", "bitcast", "broadcast", "concatenate", "convert", "copy", "custom-call"}
_HANDS_ON |= {"dynamic-slice", "dynamic-update-slice", "opt-barrier", "pad", "reshape", "reverse", "select"}
_HANDS_ON |= {"slice", "transpose"}


def _ring_kind(program: Program, computation: str, permute: Instruction) -> str:
    """The kind of a permutation: received values are added to (a reduction), used unchanged (a gather), or neither.

    Only floats are gathered or reduced; integers are indices and random bits. Invariant of the search: the places in
    `waiting` hold received values unchanged, so an addition that reads one of them is a reduction.
    """
    if permute.shapes[0][0] not in _FLOATS:
        return "collective-permute"
    # (computation, instruction, element of its tuple or None) of everything that holds received values unchanged.
    waiting: list[tuple[str, str, int | None]] = [(computation, permute.name, None)]
    seen = set(waiting)
    while waiting:
        where, name, element = waiting.pop()
        if program.root(where).name == name and (caller := program.callers.get(where)):
            outside, call = caller
            reached = [(outside, call.name, element)]
            if call.opcode == "while":  # the next iteration
                reached += [(where, parameter.name, element) for parameter in _parameters(program, where, 0)]
        else:
            reached = []
        for user in program.users(where, name):
            if user.opcode == "add" and user.shapes[0][0] in _FLOATS:
                return "ring reduce-scatter"
            reached += _handed_on(program, where, user, name, element)
        new = [place for place in reached if place not in seen]
        seen.update(new)
        waiting += new
    return "ring all-gather"


def _handed_on(
    program: Program, where: str, user: Instruction, name: str, element: int | None
) -> list[tuple[str, str, int | None]]:
    """The places that hold an operand's values unchanged after an instruction has read it."""
    opcode = user.opcode.removesuffix("-start").removesuffix("-done")
    if opcode == "tuple":
        return [(where, user.name, i) for i, operand in enumerate(user.operands) if operand == name]
    if opcode == "get-tuple-element":
        return [(where, user.name, None)] if element in (None, int(user.attribute("index") or 0)) else []
    if opcode == "while":
        body = user.computation("body")
        return [(body, p.name, element) for p in _parameters(program, body, 0)]
    if opcode in ("fusion", "call"):
        numbers = [i for i, operand in enumerate(user.operands) if operand == name]
        inside = user.called()[0]
        return [(inside, p.name, element) for number in numbers for p in _parameters(program, inside, number)]
    return [(where, user.name, element)] if opcode in _HANDS_ON else []


def _parameters(program: Program, computation: str, number: int) -> list[Instruction]:
    instructions = program.computations[computation].values()
    return [i for i in instructions if i.opcode == "parameter" and i.arguments == str(number)]
