"""Text for people: aligned tables, and suggestions for misspelt names."""

import difflib
import io
from collections.abc import Collection, Iterable, Sequence
from typing import TextIO

import tabulate


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """A table as text: one line per row, two spaces between columns, no trailing spaces.

    Args:
      rows: rows of equal length; the first may be a header.
      numbers: indices of right-aligned columns.

    Raises:
      ValueError: rows of different lengths.

    >>> print(aligned([("name", "count"), ("a", "1"), ("bcdef", "10")], numbers=[1]))
    name   count
    a          1
    bcdef     10
    """
    if len(lengths := {len(row) for row in rows}) > 1:
        raise ValueError(f"The rows of a table have {sorted(lengths)} cells, expected one length.")
    alignment = ["right" if column in numbers else "left" for column in range(len(rows[0]))]
    return tabulate.tabulate(
        rows, tablefmt="plain", colalign=alignment, disable_numparse=True, preserve_whitespace=True
    )


class Lines(io.TextIOBase):
    """Writes each update of a progress bar as a line of its own, for a log, which has no cursor to return.

    >>> import sys
    >>> lines = Lines(sys.stdout)
    >>> for update in ("\\r1/2", "", "\\r2/2  ", "\\n"):
    ...     _ = lines.write(update)
    1/2
    2/2
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes one update; an empty one is left out."""
        if update := text.strip():
            self._stream.write(f"{update}\n")
            self._stream.flush()
        return len(text)


def nearest(name: str, names: Iterable[str], count: int = 5, cutoff: float = 0.4) -> list[str]:
    """The names most similar to a misspelt one, best match first.

    Args:
      name: the name as written.
      names: the names that exist.
      count: the most names to return.
      cutoff: the similarity required, from 0 (none) to 1 (equal), as in `difflib.get_close_matches`.

    >>> nearest("toy_enf", ["toy_wic", "toy_enfr", "rte"], count=2)
    ['toy_enfr', 'toy_wic']
    """
    return difflib.get_close_matches(name, list(names), n=count, cutoff=cutoff)


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint to append to an error: the name most similar to a misspelt one.

    Args:
      name: the name as written.
      names: the names that exist.
      cutoff: the similarity required, see `nearest`.

    Returns:
      The hint, or the empty string if no name is similar.

    >>> did_you_mean("TRAIN_STEP", ["TRAIN_STEPS", "MODEL_DIR"])
    " (did you mean 'TRAIN_STEPS'?)"
    """
    similar = nearest(name, names, 1, cutoff)
    return f" (did you mean {similar[0]!r}?)" if similar else ""
