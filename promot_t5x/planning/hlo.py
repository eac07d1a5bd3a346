"""A compiled XLA program, read from its text: computations, instructions, and how often each computation runs.

A program is a graph of computations that call each other, starting from the entry. An instruction runs as often as its
computation is called, times the iterations of every loop around it, so that

    cost of the program = sum over instructions of (cost of one run) * (product of the iterations of loops around it).

XLA states the iterations of a loop, or they follow from its counter: from `start` by `step`, while counter < limit, it
runs ceil((limit - start) / step) times; with <= it runs floor((limit - start) / step) + 1 times.

Why text and not the serialized HloModuleProto, which TensorFlow's `hlo_pb2` reads: for CPU programs the two agree, but
the schema in TensorFlow 2.21 is older than libtpu 0.0.42 and silently skips the field with the device order of replica
groups along mesh axes (field 3 of MeshProto). Of the 42 such groups in mT5-XXL's model tuning on v4:4x4x4, two have it;
without it, an all-reduce over `model` is taken for one over `data`. In a two-layer network with preset `tensor` on
v4:2x2x4, 49 of 85 have it, and 46 of 106 all-gathers change their axis. Everything else is in the proto and gives the
same numbers. For that XXL program, parsing and counting take 0.7 s of CPU from text (7.9 MB) and 0.5 s from the proto
(7.5 MB); they add 36 and 69 MB to the 700 MB of a process that has loaded TensorFlow.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_CALLED = "calls|to_apply|called_computations|branch_computations|true_computation|false_computation"
_CALLS = re.compile(rf"(?:{_CALLED})=\{{?([^,}}]*(?:, %[^,}}]*)*)")
_SAME_VALUE = ("copy", "bitcast", "copy-done", "copy-start", "opt-barrier", "convert")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      opcode: "fusion", "convolution", "while", …
      shapes: (dtype, dimensions) of the result, one per array of a tuple.
      operands: names of instructions of the same computation.
      arguments: the text in the parentheses, such as a constant's value.
      attributes: the rest of the line.
      is_root: whether its value is the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Dimensions of the result, or of the first array of a tuple."""
        return self.shapes[0][1]

    @property
    def bytes(self) -> int:
        """Size of the result, all arrays of a tuple together."""
        return sum(_BYTES.get(dtype, 0) * math.prod(sizes) for dtype, sizes in self.shapes)

    def attribute(self, name: str) -> str | None:
        """The text after `name=`, up to the next comma outside brackets; None without such an attribute."""
        match = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return None if match is None else _until_comma(self.attributes[match.end() :])

    def computation(self, name: str) -> str:
        """The computation named by an attribute: a loop's "body" or "condition"."""
        return (self.attribute(name) or "").strip().lstrip("%")

    def called(self) -> list[str]:
        """Names of the computations that this instruction runs."""
        return [name for listed in _CALLS.findall(self.attributes) for name in re.findall(r"%([^\s,}]+)", listed)]


@dataclasses.dataclass(frozen=True)
class _Scope:
    """A computation and, if a fusion or call runs it, its caller: (the caller's scope, the operands)."""

    computation: str
    caller: "tuple[_Scope, tuple[str, ...]] | None" = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module.

    Attributes:
      computations: instructions by name, by the name of their computation.
      entry: the computation that is run.
      unknown_trips: iterations of loops whose number cannot be determined; None makes such a loop an error.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    unknown_trips: int | None = None

    def root(self, computation: str) -> Instruction:
        """The instruction whose value is a computation's result."""
        return next(i for i in self.computations[computation].values() if i.is_root)

    def users(self, computation: str, name: str) -> list[Instruction]:
        """The instructions that have a given one as an operand."""
        return self._users.get((computation, name), [])

    @functools.cached_property
    def _users(self) -> dict[tuple[str, str], list[Instruction]]:
        users: dict[tuple[str, str], list[Instruction]] = {}
        for computation, instructions in self.computations.items():
            for instruction in instructions.values():
                for name in dict.fromkeys(instruction.operands):
                    users.setdefault((computation, name), []).append(instruction)
        return users

    @functools.cached_property
    def callers(self) -> dict[str, tuple[str, Instruction]]:
        """The (computation, instruction) that runs the computation of a fusion, call or loop body."""
        callers = {}
        for computation, instructions in self.computations.items():
            for instruction in instructions.values():
                if instruction.opcode in ("fusion", "call"):
                    callers |= {name: (computation, instruction) for name in instruction.called()}
                elif instruction.opcode == "while":
                    callers[instruction.computation("body")] = computation, instruction
        return callers

    def walk(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yields (computation, instruction, how often it runs) for everything that runs.

        Raises:
          ValueError: the iterations of a loop cannot be determined, and `unknown_trips` is not given.
        """
        yield from self._walk(self.entry, 1)

    def _walk(self, computation: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                body = instruction.computation("body")
                yield from self._walk(body, times * self.trips(computation, instruction))
            elif instruction.opcode in ("fusion", "call", "conditional") or instruction.opcode.startswith("async"):
                if not instruction.opcode.startswith("async-") or instruction.opcode == "async-start":
                    for called in instruction.called():
                        yield from self._walk(called, times)

    @functools.cached_property
    def _trips(self) -> dict[tuple[str, str], int]:
        return {}

    def trips(self, computation: str, loop: Instruction) -> int:
        """The iterations of a while loop, whose condition compares a counter with a constant."""
        key = (computation, loop.name)
        if key not in self._trips:
            self._trips[key] = self._count_trips(computation, loop)
        return self._trips[key]

    def _count_trips(self, computation: str, loop: Instruction) -> int:
        stated = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if stated:
            return int(stated[1])
        try:
            return self._rounds(_Scope(computation), loop)
        except (LookupError, TypeError, ValueError) as error:
            if self.unknown_trips is not None:
                return self.unknown_trips
            raise ValueError(
                f"The number of iterations of the loop {loop.name} in {computation} cannot be determined."
            ) from error

    def _rounds(self, scope: _Scope, loop: Instruction) -> int:
        condition, body = (_Scope(loop.computation(name)) for name in ("condition", "body"))
        where, comparison = self._source(condition, self.root(condition.computation).name)
        sides = [self._source(where, name) for name in comparison.operands]
        slots = [self._slot(*side) for side in sides]
        counter = 0 if slots[0] is not None else 1
        slot, limit = slots[counter], _constant(sides[1 - counter][1])
        if slot is None:
            raise ValueError(f"{loop.name} compares no counter")
        start = _constant(self._source(*self._element(scope, loop.operands[0], slot))[1])
        step = self._step(body, slot)
        direction = str(comparison.attribute("direction"))
        if counter == 1:  # 10 > i
            direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
        if step == 0 or direction not in (("LT", "LE", "NE") if step > 0 else ("GT", "GE", "NE")):
            raise ValueError(f"{loop.name} does not count towards its limit")
        rounds = (limit - start) / step
        return max(0, math.floor(rounds) + 1 if direction in ("LE", "GE") else math.ceil(rounds))

    def _source(self, scope: _Scope, name: str) -> tuple[_Scope, Instruction]:
        """The instruction that computes a value, traced through copies, tuples, fusions and calls.

        Invariant: each step moves to an instruction with the same value, and the scope holds the calls around it, so
        that a parameter of a fusion leads back to the caller's operand. A parameter of the entry or of a loop ends the
        search.
        """
        instruction = self.computations[scope.computation][name]
        if instruction.opcode in _SAME_VALUE:
            return self._source(scope, instruction.operands[0])
        if instruction.opcode in ("fusion", "call"):
            inside = _Scope(instruction.called()[0], (scope, instruction.operands))
            return self._source(inside, self.root(inside.computation).name)
        if instruction.opcode == "parameter" and scope.caller is not None:
            outside, operands = scope.caller
            return self._source(outside, operands[int(instruction.arguments)])
        if instruction.opcode == "get-tuple-element":
            outside, whole = self._source(scope, instruction.operands[0])
            if whole.opcode == "tuple":
                return self._source(outside, whole.operands[int(instruction.attribute("index") or 0)])
        return scope, instruction

    def _slot(self, scope: _Scope, value: Instruction) -> int | None:
        """The position of a value in its loop's tuple; None if it is not an element of that tuple."""
        if value.opcode != "get-tuple-element" or self._source(scope, value.operands[0])[1].opcode != "parameter":
            return None
        return int(value.attribute("index") or 0)

    def _element(self, scope: _Scope, name: str, slot: int) -> tuple[_Scope, str]:
        """The scope and name of one element of a tuple."""
        where, instruction = self._source(scope, name)
        if instruction.opcode != "tuple":  # for example, a loop that starts with another one's result
            raise ValueError(f"{instruction.name} is not a tuple")
        return where, instruction.operands[slot]

    def _step(self, body: _Scope, slot: int) -> int:
        """What a loop adds to its counter in each iteration."""
        where, instruction = self._source(*self._element(body, self.root(body.computation).name, slot))
        sides = [self._source(where, name) for name in instruction.operands]
        slots = [self._slot(*side) for side in sides]
        if instruction.opcode == "add" and slot in slots:
            return _constant(sides[1 - slots.index(slot)][1])
        if instruction.opcode == "subtract" and slots[0] == slot:
            return -_constant(sides[1][1])
        raise ValueError(f"{instruction.name} does not count")


def _constant(value: Instruction) -> int:
    if value.opcode != "constant":
        raise ValueError(f"{value.name} is not a constant")
    return int(value.arguments)


def parse(text: str, unknown_trips: int | None = None) -> Program:
    """Parses `compiled.as_text()`.

    Args:
      text: HLO.
      unknown_trips: iterations of loops whose number is not in the program, such as a decode that may end early.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line and not line[0].isspace() and line.endswith("{") and "->" in line:
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            current = computations.setdefault(name, {})
            entry = name if line.startswith("ENTRY ") else entry
        elif " = " in line and line[:1].isspace():
            instruction = _instruction(line.strip())
            current[instruction.name] = instruction
    return Program(computations, entry, unknown_trips)


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    shape_end = _closing(right, 0) if right.startswith("(") else right.index(" ") - 1
    shape, rest = right[: shape_end + 1], right[shape_end + 2 :]
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    shapes = tuple((d, tuple(int(n) for n in sizes.split(",") if n)) for d, sizes in _ARRAY.findall(shape))
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=rest[:opening],
        shapes=shapes,
        operands=tuple(re.findall(r"%([^\s,()]+)", arguments)),
        arguments=arguments,
        attributes=rest[closing + 1 :].lstrip(", "),
        is_root=left.startswith("ROOT "),
    )


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] in "({") - (text[index] in ")}")
        if not depth:
            return index
    raise ValueError(f"Unbalanced parentheses in {text[:80]!r}.")


def _until_comma(text: str) -> str:
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if character == "," and not depth:
            return text[:index]
    return text
