"""Rows of text as aligned columns for the terminal."""

from collections.abc import Collection, Sequence


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
