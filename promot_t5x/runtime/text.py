"""Text for people: rows as aligned columns, and the nearest names to a misspelt one."""

import difflib
from collections.abc import Collection, Iterable, Sequence

import tabulate


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """One line a row, two spaces between columns, nothing at the ends of lines.

    Args:
      rows: all of one length; the first may be a header.
      numbers: columns whose cells stand at the right.

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


def nearest(name: str, known: Iterable[str], count: int = 5, cutoff: float = 0.4) -> list[str]:
    """The known names most like a misspelt one, the most alike first.

    Args:
      name: as written.
      known: the names it may have meant.
      count: how many to return at most.
      cutoff: how alike two names must be, from 0 (not at all) to 1 (the same), as in `difflib.get_close_matches`.

    >>> nearest("toy_enf", ["toy_wic", "toy_enfr", "rte"], count=2)
    ['toy_enfr', 'toy_wic']
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns a hint at the known name nearest to a misspelt one, to append to an error's sentence.

    Args:
      name: as written.
      known: the names it may have meant.
      cutoff: how alike two names must be; see `nearest`.

    Returns:
      The hint, or the empty string where nothing is near.

    >>> did_you_mean("TRAIN_STEP", ["TRAIN_STEPS", "MODEL_DIR"])
    " (did you mean 'TRAIN_STEPS'?)"
    """
    near = nearest(name, known, 1, cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""
