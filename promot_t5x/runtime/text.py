"""Text for people: rows as aligned columns, and the nearest name to a misspelt one."""

import difflib
from collections.abc import Collection, Iterable, Sequence


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """One line a row, two spaces between columns, nothing at the ends of lines.

    Args:
      rows: all of one length; the first may be a header.
      numbers: columns whose cells stand at the right.

    >>> print(aligned([("name", "count"), ("a", "1"), ("bcdef", "10")], numbers=[1]))
    name   count
    a          1
    bcdef     10
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width) for column, (cell, width) in cells
        ).rstrip()

    return "\n".join(map(line, rows))


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns a hint at the known name nearest to a misspelt one, to append to an error's sentence.

    Args:
      name: as written.
      known: the names it may have meant.
      cutoff: how alike two names must be, from 0 (not at all) to 1 (the same), as in `difflib.get_close_matches`.

    Returns:
      The hint, or the empty string where nothing is near.

    >>> did_you_mean("TRAIN_STEP", ["TRAIN_STEPS", "MODEL_DIR"])
    " (did you mean 'TRAIN_STEPS'?)"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""
