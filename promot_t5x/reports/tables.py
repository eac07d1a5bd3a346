"""Results -> the rows and columns of all tables, as Markdown and as text for the terminal."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from promot_t5x.reports import comparison, cut_counts, method_rows, shots
from promot_t5x.runtime.text import aligned

MISSING = "–"

"""Shown for what was not measured or does not apply."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: a method at one learning rate.

    Attributes:
      method: key of the method in the results.
      label: the method's name for readers.
      rate: the model's learning rate for readers, "–" for none.
      values: a score or None per column of `columns`.
      spreads: sample standard deviation over seeds or None, per column.
    """

    method: str
    label: str
    rate: str
    values: tuple[float | None, ...]
    spreads: tuple[float | None, ...]


def in_context_tasks(results: Mapping[str, Any]) -> list[str]:
    """Names of the in-context tasks of all methods, in the order of their first appearance."""
    return list(dict.fromkeys(task for _, _, entry in entries(results) for task in entry["in_context"]))


def columns(results: Mapping[str, Any]) -> list[str]:
    """Headings of the score columns: the target, every in-context task, their mean without and with the prompt."""
    tasks = in_context_tasks(results)
    return ["target", *tasks, "mean", "mean with prompt"] if tasks else ["target"]


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Rows of the tables: methods in the order of the results, learning rates ascending."""
    tasks = in_context_tasks(results)
    means = ("in_context_mean", "in_context_mean_with_prompt") if tasks else ()
    lines = []
    for method, key, entry in entries(results):
        values = [entry["target"], *(entry["in_context"].get(task) for task in tasks), *(entry[mean] for mean in means)]
        of_tasks = entry.get("in_context_std") or {}
        spreads = [entry.get("target_std"), *(of_tasks.get(task) for task in tasks)]
        spreads += [entry.get(f"{mean}_std") for mean in means]
        lines.append(Row(method, label(results, method), rate(key), tuple(values), tuple(spreads)))
    return lines


def entries(results: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(method, learning rate key, scores): methods in the order of the results, learning rates ascending."""
    lines = []
    for method, content in results["methods"].items():
        rates = content["learning_rates"]
        keys = sorted(rates, key=lambda key: -1.0 if key == comparison.NO_RATE else float(key))
        lines += [(method, key, rates[key]) for key in keys]
    return lines


def label(results: Mapping[str, Any], method: str) -> str:
    """A method's name for readers.

    >>> label({"methods": {"a_b": {"label": "A of B"}}}, "a_b"), label({"methods": {}}, "joint_tuning")
    ('A of B', 'joint tuning')
    """
    return method_rows.row(results, method).label


def rate(key: str) -> str:
    """A learning rate for readers.

    >>> rate("0.0003"), rate("0.00015"), rate("0.05"), rate("none")
    ('3e-4', '1.5e-4', '0.05', '–')
    """
    if key == comparison.NO_RATE:
        return MISSING
    if float(key) >= 0.01:
        return f"{float(key):g}"
    mantissa, exponent = f"{float(key):.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def best(lines: Sequence[Row]) -> set[tuple[int, int]]:
    """(row, column) of each column's best scores among the methods that train the model, unless all are equal."""
    cells: set[tuple[int, int]] = set()
    trained = [index for index, row in enumerate(lines) if row.rate != MISSING]
    for column in range(len(lines[0].values) if lines else 0):
        shown = {index: lines[index].values[column] for index in trained}
        scores = {index: round(value, 1) for index, value in shown.items() if value is not None}
        if len(set(scores.values())) > 1:
            cells |= {(index, column) for index, score in scores.items() if score == max(scores.values())}
    return cells


def number(value: float | None, spread: float | None = None) -> str:
    """A percentage with one decimal and its spread.

    >>> number(87.0, 2.1), number(100.0), number(None)
    ('87.0 ± 2.1', '100.0', '–')
    """
    text = MISSING if value is None else f"{value:.1f}"
    return text if spread is None else f"{text} ± {spread:.1f}"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]], numbers: Collection[int]) -> str:
    """A table as Markdown.

    Args:
      heads: the column headings.
      lines: rows, one cell per column.
      numbers: the columns to align right.

    >>> print(markdown(["task", "k"], [["cb", "1"]], numbers=[1]), end="")
    | task | k |
    | --- | ---: |
    | cb | 1 |
    """
    # Not tabulate: it pads every cell, so one longer score would change all lines of a diff, and escapes no bar.
    ruler = ["---:" if column in numbers else "---" for column in range(len(heads))]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (heads, ruler, *lines))
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def markdown_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table; bold: best of the methods that train the model; ±: spread over seeds.

    Results of several numbers of exemplars make one table for each.
    """
    return "\n".join(f"{k}\n\n{_markdown(view)}" if k else _markdown(view) for k, view in shots.views(results))


def _markdown(results: Mapping[str, Any]) -> str:
    lines = rows(results)
    bold = best(lines)
    body = []
    for index, row in enumerate(lines):
        cells = [number(value, spread) for value, spread in zip(row.values, row.spreads, strict=True)]
        marked = [f"**{cell}**" if (index, column) in bold else cell for column, cell in enumerate(cells)]
        body.append([row.label, row.rate, *marked])
    heads = ["method", "learning rate", *columns(results)]
    return markdown(heads, body, numbers=range(1, len(heads)))


def text_table(results: Mapping[str, Any]) -> str:
    """The results as an aligned table for the terminal; to keep it narrow, only target and means show their spread.

    Results of several numbers of exemplars make one table for each. What was cut follows.
    """
    parts = [f"{k}\n{_text(view)}" if k else _text(view) for k, view in shots.views(results)]
    if cuts := cut_counts.lines(results):
        parts.append("\n".join(cuts) + "\n")
    return "\n".join(parts)


def _text(results: Mapping[str, Any]) -> str:
    heads = columns(results)
    tasks = set(range(1, len(heads) - 2))
    body = []
    for row in rows(results):
        pairs = enumerate(zip(row.values, row.spreads, strict=True))
        numbers = [number(value, None if column in tasks else spread) for column, (value, spread) in pairs]
        body.append([row.label, row.rate, *numbers])
    # One word per line, the last words just above the ruler.
    stacked = [re.split(r"[_\s]+", head) for head in ("method", "rate", *heads)]
    height = max(len(words) for words in stacked)
    header = list(zip(*([""] * (height - len(words)) + words for words in stacked), strict=True))
    lines = aligned([*header, *body], numbers=range(1, len(stacked))).split("\n")
    ruler = "-" * max(map(len, lines))
    return "\n".join([*lines[:height], ruler, *lines[height:]]) + "\n"
