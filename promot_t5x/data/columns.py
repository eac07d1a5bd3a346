"""Examples as columns: thousands of texts and token sequences in a few arrays, instead of one object for each."""

import array
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged(Sequence[np.ndarray]):
    """N sequences of different lengths.

    Attributes:
      flat: all of them, one after the other.
      ends_N: the end of each one in `flat`, int64.

    >>> column = Ragged(np.array([5, 1, 7]), np.array([2, 3]))
    >>> len(column), column[0].tolist(), column[1].tolist()
    (2, [5, 1], [7])
    """

    flat: np.ndarray
    ends_N: np.ndarray

    def __post_init__(self):
        if len(self.flat) != (self.ends_N[-1] if len(self.ends_N) else 0) or np.any(np.diff(self.ends_N) < 0):
            raise ValueError(f"The sequences' ends do not match their {len(self.flat)} items.")

    def __len__(self) -> int:
        return len(self.ends_N)

    def __getitem__(self, number: int) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        return self.flat[self.ends_N[number - 1] if number else 0 : self.ends_N[number]]


class Collected:
    """A `Ragged` in the making.

    Args:
      typecode: the items: "i" for int32, "B" for bytes.

    >>> tokens = Collected("i")
    >>> tokens.add([5, 1])
    >>> tokens.column().flat.dtype
    dtype('int32')
    """

    def __init__(self, typecode: str):
        self._flat, self._ends = array.array(typecode), array.array("q")

    def add(self, items: bytes | Sequence[int]) -> None:
        """Adds a sequence."""
        if isinstance(items, bytes):
            self._flat.frombytes(items)
        else:
            self._flat.extend(items)
        self._ends.append(len(self._flat))

    def __len__(self) -> int:
        return len(self._ends)

    def column(self) -> Ragged:
        """All sequences so far."""
        return Ragged(np.array(self._flat), np.array(self._ends))


@dataclasses.dataclass(frozen=True)
class Columns(Sequence["Row"]):
    """N examples as columns; each has the features and values that seqio returns.

    Attributes:
      tokens: features of token ids, at least one.
      texts: features that are a text, as UTF-8.
      lists: features that are a list of texts: all texts, and the end of each example's list among them.
      numbers: features that are a number, int32.
    """

    tokens: Mapping[str, Ragged]
    texts: Mapping[str, Ragged]
    lists: Mapping[str, tuple[Ragged, np.ndarray]]
    numbers: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.tokens.values())))

    def __iter__(self) -> Iterator["Row"]:
        return (Row(self, number) for number in range(len(self)))

    @overload
    def __getitem__(self, number: int) -> "Row": ...
    @overload
    def __getitem__(self, number: slice) -> Sequence["Row"]: ...
    def __getitem__(self, number: int | slice) -> "Row | Sequence[Row]":
        if isinstance(number, slice):
            return [Row(self, i) for i in range(*number.indices(len(self)))]
        return Row(self, range(len(self))[number])

    def with_numbers(self, names: Iterable[str]) -> "Columns":
        """The examples with only these of `numbers`."""
        return dataclasses.replace(self, numbers={name: self.numbers[name] for name in names})


class Row(Mapping[str, Any]):
    """One example of `Columns`: a feature is made when it is asked for."""

    __slots__ = ("_columns", "_number")

    def __init__(self, columns: Columns, number: int):
        self._columns, self._number = columns, number

    def __getitem__(self, name: str) -> Any:
        columns, number = self._columns, self._number
        if name in columns.tokens:
            return columns.tokens[name][number]
        if name in columns.texts:
            return columns.texts[name][number].tobytes()
        if name in columns.lists:
            texts, ends_N = columns.lists[name]
            items = range(ends_N[number - 1] if number else 0, ends_N[number])
            return np.array([texts[i].tobytes() for i in items], object)
        return columns.numbers[name][number]

    def __iter__(self) -> Iterator[str]:
        columns = self._columns
        return iter((*columns.tokens, *columns.texts, *columns.lists, *columns.numbers))

    def __len__(self) -> int:
        return len(list(iter(self)))
