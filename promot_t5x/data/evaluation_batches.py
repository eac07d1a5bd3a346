"""Batches of an evaluation: few shapes serve inputs of all lengths, within the memory of the widest batch.

An input is padded to a width of `WIDTHS`, and batches of short inputs have more rows. Which examples are in which batch
depends only on the lengths of all examples of a task and on the settings, not on which of them are still to be
answered, so that an interrupted evaluation continues with the same batches.

Dimensions: B batch rows, T encoder length, U decoder length, N examples.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Two per octave, from 512 on four; from 256 on multiples of 128, the TPU's lanes.
WIDTHS = (
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    *(width << octave for octave in range(8) for width in range(512, 1024, 128)),
)

# A batch of short inputs has at most so many times the rows of the widest batch: its logits and the decoder's cache
# grow with its rows, however short the inputs are.
_MOST_TIMES_THE_ROWS = 8

# One more program has to spare so many tokens, which a CPU computes while it compiles one (TPUs compute far more, but
# compiled programs are kept on disk), and this part of the whole task.
_PROGRAM_IN_TOKENS = 8192
_PROGRAM_IN_TASKS = 1 / 64

_ATTENTION = 1 / 1024  # the cost of attention for each token and width, in tokens

_MOST_PARTS = 256  # the sorted inputs are divided at up to this many places


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """What a program is compiled for.

    Attributes:
      width: tokens of an input, padding included.
      rows: rows of a batch, padding included.
    """

    width: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """The examples of one batch.

    Attributes:
      numbers: the examples in its first rows; its other rows are padding.
      shape: its shape.
    """

    numbers: tuple[int, ...]
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Room:
    """How large a batch may be: batch_size * (inputs + decoder) tokens.

    Attributes:
      batch_size: rows of a batch of the widest inputs.
      inputs: T, the length to which inputs are cut.
      decoder: the decoder's tokens for one input: U, or C * U in ranking.
      multiple: the rows of every batch are a multiple of it, as batch_size is.

    >>> room = Room(batch_size=32, inputs=512, decoder=64)
    >>> [room.rows(width) for width in (512, 256, 64)]
    [32, 32, 128]
    """

    batch_size: int
    inputs: int
    decoder: int
    multiple: int = 1

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size!r}, expected at least 1.")

    def rows(self, width: int) -> int:
        """Rows of a full batch of a width: batch_size, doubled as often as there is room."""
        times = min((self.inputs + self.decoder) // (width + self.decoder), _MOST_TIMES_THE_ROWS)
        return self.batch_size << (times.bit_length() - 1)

    def cost(self, width: int) -> float:
        """What a row costs, in tokens of the decoder."""
        return width * (1 + width * _ATTENTION) + self.decoder


def lengths(tokens_NxT: np.ndarray) -> np.ndarray:
    """length_N: tokens of each input without the padding at its end, at least 1.

    >>> lengths(np.array([[5, 0, 6, 0], [7, 0, 0, 0], [0, 0, 0, 0]]))
    array([3, 1, 1])
    """
    is_token_NxT = tokens_NxT[:, ::-1] != 0
    return np.where(is_token_NxT.any(axis=1), tokens_NxT.shape[1] - is_token_NxT.argmax(axis=1), 1)


def batches(length_N: Sequence[int] | np.ndarray, room: Room) -> tuple[Batch, ...]:
    """Puts inputs of similar lengths together, the longest first, so that a lack of memory shows at once.

    The sorted inputs are divided at the least cost: that of all rows with their padding, and of the programs.

    Args:
      length_N: tokens of each input, as they are cut.
      room: how large a batch may be.

    >>> [(batch.numbers, batch.shape) for batch in batches([40, 4000, 30, 64], Room(2, inputs=4096, decoder=8))]
    [((1,), Shape(width=4096, rows=1)), ((3, 0, 2), Shape(width=64, rows=4))]
    """
    return _batches(np.asarray(length_N, np.int64).tobytes(), room)


# A task is planned at every validation, and for its answers and its report.
@functools.lru_cache(maxsize=32)
def _batches(length_bytes: bytes, room: Room) -> tuple[Batch, ...]:
    length_N = np.frombuffer(length_bytes, np.int64)
    order = np.argsort(-length_N, kind="stable").tolist()
    widths = np.array([*(width for width in WIDTHS if width < room.inputs), room.inputs])
    width_N = widths[np.searchsorted(widths[:-1], length_N[order])].tolist()
    program = _PROGRAM_IN_TOKENS + _PROGRAM_IN_TASKS * sum(map(room.cost, width_N))

    def cost(begin: int, end: int) -> float:
        full, rows, last = _rows_of_each(width_N[begin], end - begin, room, program)
        programs = (full > 0) + (last > 0)
        return (full * rows + last) * room.cost(width_N[begin]) + programs * program

    step = room.multiple << max(-(-len(order) // (_MOST_PARTS * room.multiple)) - 1, 0).bit_length()
    bounds = [*range(0, len(order), step), len(order)]
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # for the rows before each bound: the cost, where parts begin
    for place, end in enumerate(bounds[1:], start=1):
        divisions = [(best[i][0] + cost(bounds[i], end), [*best[i][1], bounds[i]]) for i in range(place)]
        best.append(min(divisions))
    planned: list[Batch] = []
    for begin, end in itertools.pairwise([*best[-1][1], len(order)]):
        numbers = iter(order[begin:end])
        full, rows_of_full, last = _rows_of_each(width_N[begin], end - begin, room, program)
        for rows in (*itertools.repeat(rows_of_full, full), *([last] if last else [])):
            planned.append(Batch(tuple(itertools.islice(numbers, rows)), Shape(width_N[begin], rows)))
    return tuple(planned)


def _rows_of_each(width: int, count: int, room: Room, program: float) -> tuple[int, int, int]:
    """The batches that hold `count` inputs of one width.

    Returns:
      How many have the rows of a full one, these rows, and the rows of a last one that has fewer (0 without it).
    """
    rows = room.rows(width)
    full, rest = divmod(count, rows)
    if not rest:
        return full, rows, 0
    last = min(room.multiple << (-(-rest // room.multiple) - 1).bit_length(), rows)  # a power of two times `multiple`
    spares_enough = not full or (rows - last) * room.cost(width) > program
    return (full, rows, last) if last < rows and spares_enough else (full + 1, rows, 0)


def gathered(arrays: Mapping[str, np.ndarray], batch: Batch) -> dict[str, np.ndarray]:
    """The features of a batch in its shape; padding is zeros.

    Args:
      arrays: the features of N examples, encoder_input_tokens NxT among them.
      batch: one of those that `batches` returned.

    >>> arrays = {"encoder_input_tokens": np.array([[5, 1, 0], [6, 7, 1]]), "number": np.array([8, 9])}
    >>> gathered(arrays, Batch((0,), Shape(width=2, rows=2)))
    {'encoder_input_tokens': array([[5, 1],
           [0, 0]]), 'number': array([8, 0])}
    """
    numbers, rows = list(batch.numbers), batch.shape.rows

    def gather(name: str, values: np.ndarray) -> np.ndarray:
        if name != "encoder_input_tokens":
            taken, shape = values[numbers], (rows, *values.shape[1:])
        else:
            taken, shape = values[numbers, : batch.shape.width], (rows, batch.shape.width)
        padded = np.zeros(shape, values.dtype)
        padded[tuple(map(slice, taken.shape))] = taken
        return padded

    return {name: gather(name, values) for name, values in arrays.items()}


def report(planned: Sequence[Batch], length_N: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """What results say about some batches: {"shapes": [{"width", "rows", "batches"}, ...], "padding": share of tokens}.

    >>> planned = batches([40, 4000, 30, 64], Room(2, inputs=4096, decoder=8))
    >>> round(report(planned, [40, 4000, 30, 64])["padding"], 2)
    0.05
    """
    shapes = collections.Counter(batch.shape for batch in planned)
    tokens = sum(shape.width * shape.rows * number for shape, number in shapes.items())
    used = sum(int(length_N[number]) for batch in planned for number in batch.numbers)
    return {
        "shapes": [{**dataclasses.asdict(shape), "batches": number} for shape, number in shapes.items()],
        "padding": 1 - used / tokens if tokens else 0.0,
    }
