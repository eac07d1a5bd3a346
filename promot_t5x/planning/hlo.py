"""A compiled XLA program, read from its text: computations, instructions, and how often each computation runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_CALLS = re.compile(r"(?:calls|to_apply|called_computations|branch_computations)=\{?([^,}]*(?:, %[^,}]*)*)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      opcode: "fusion", "convolution", "while", …
      shapes: (dtype, dimensions) of the result, one for each array of a tuple.
      operands: names of instructions of the same computation.
      arguments: the text in the parentheses, a constant's value for example.
      attributes: the rest of the line.
      is_root: its value is the computation's.
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
        """Of the (first) array."""
        return self.shapes[0][1]

    @property
    def bytes(self) -> int:
        """Of the result, all arrays of a tuple together."""
        return sum(_BYTES.get(dtype, 0) * math.prod(sizes) for dtype, sizes in self.shapes)

    def attribute(self, name: str) -> str | None:
        """What follows `name=`, up to the next comma outside of brackets."""
        found = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return None if found is None else _until_comma(self.attributes[found.end() :])

    def called(self) -> list[str]:
        """Names of the computations this one runs."""
        return [name for found in _CALLS.findall(self.attributes) for name in re.findall(r"%([^\s,}]+)", found)]


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: its computations by name, each a dictionary of instructions, and the one that is run."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    unknown_trips: int | None = None

    def root(self, computation: str) -> Instruction:
        """The instruction whose value a computation returns."""
        return next(i for i in self.computations[computation].values() if i.is_root)

    def walk(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often it runs) of everything that runs, loops multiplied in.

        Raises:
          ValueError: a loop whose number of rounds cannot be read off, without `unknown_trips`.
        """
        yield from self._walk(self.entry, 1)

    def _walk(self, computation: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                body = _name(instruction.attribute("body"))
                yield from self._walk(body, times * self.trips(computation, instruction))
            elif instruction.opcode in ("fusion", "call", "conditional") or instruction.opcode.startswith("async"):
                if not instruction.opcode.startswith("async-") or instruction.opcode == "async-start":
                    for called in instruction.called():
                        yield from self._walk(called, times)

    @functools.cached_property
    def _trips(self) -> dict[tuple[str, str], int]:
        return {}

    def trips(self, computation: str, loop: Instruction) -> int:
        """How often a while loop runs: its condition compares a counter with a constant."""
        key = (computation, loop.name)
        if key not in self._trips:
            self._trips[key] = self._count_trips(computation, loop)
        return self._trips[key]

    def _count_trips(self, computation: str, loop: Instruction) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition, body = (_name(loop.attribute(name)) for name in ("condition", "body"))
        try:
            comparison, values = self._comparison(condition)
            slot = next(v[1] for v in values if isinstance(v, tuple))
            limit = next(v for v in values if isinstance(v, int))
            start = self._constant(computation, self._tuple_element(computation, loop.operands[0], slot))
            step = self._step(body, slot)
        except (StopIteration, KeyError, TypeError, ValueError) as error:
            if self.unknown_trips is not None:
                return self.unknown_trips
            raise ValueError(f"The rounds of the loop {loop.name} in {computation} cannot be read off.") from error
        rounds = (limit - start) / step
        return max(0, math.floor(rounds) + 1 if comparison in ("LE", "GE") else math.ceil(rounds))

    def _comparison(self, condition: str) -> tuple[str, list[int | tuple[str, int]]]:
        """(direction, operands) of the comparison a condition returns; an operand is a number or ("slot", i)."""
        root = self.root(condition)
        if root.opcode == "fusion":
            inner = self.root(_name(root.attribute("calls")))
            body = self.computations[_name(root.attribute("calls"))]
            outer = [root.operands[int(body[name].arguments)] for name in inner.operands]
            return str(inner.attribute("direction")), [self._value(condition, name) for name in outer]
        return str(root.attribute("direction")), [self._value(condition, name) for name in root.operands]

    def _value(self, computation: str, name: str) -> int | tuple[str, int]:
        found = self._source(computation, name)
        if found.opcode == "get-tuple-element":
            return "slot", int(found.attribute("index") or 0)
        return int(found.arguments)

    def _source(self, computation: str, name: str) -> Instruction:
        """Where a value comes from, through copies."""
        found = self.computations[computation][name]
        while found.opcode in ("copy", "bitcast", "copy-done", "copy-start", "optimization-barrier", "convert"):
            found = self.computations[computation][found.operands[0]]
        return found

    def _tuple_element(self, computation: str, name: str, slot: int) -> str:
        found = self._source(computation, name)
        if found.opcode == "while":  # a loop that starts with what another one ended with: unknown
            raise ValueError(found.name)
        return found.operands[slot]

    def _constant(self, computation: str, name: str) -> int:
        found = self._source(computation, name)
        if found.opcode != "constant":
            raise ValueError(f"{found.name} is no constant")
        return int(found.arguments)

    def _step(self, body: str, slot: int) -> int:
        """What a loop adds to its counter each round."""
        found = self._source(body, self.root(body).operands[slot])
        if found.opcode == "fusion":
            inside = _name(found.attribute("calls"))
            found = self._source(inside, self.root(inside).name)
            body = inside
        if found.opcode != "add":
            raise ValueError(f"{found.name} is no addition")
        sources = [self._source(body, name) for name in found.operands]
        return next(int(s.arguments) for s in sources if s.opcode == "constant")


def parse(text: str, unknown_trips: int | None = None) -> Program:
    """Reads `compiled.as_text()`.

    Args:
      text: HLO.
      unknown_trips: rounds of loops whose number does not stand in the program, such as a decode that may end early.
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


def _name(attribute: str | None) -> str:
    return (attribute or "").strip().lstrip("%")
