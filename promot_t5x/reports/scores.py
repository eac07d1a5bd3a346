"""The `scores.json` of an evaluation as a table, for the terminal and as Markdown; one line per task and checkpoint."""

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from promot_t5x.reports import result_files, tables
from promot_t5x.reports.result_files import NUMBER, TEXT, Table
from promot_t5x.runtime import files
from promot_t5x.runtime.text import aligned

_AVERAGE = {"step?": NUMBER, "k": NUMBER, "prompt": NUMBER, "value": NUMBER}
_ENTRY = {
    **_AVERAGE,
    **{"task": TEXT, "metric": TEXT, "stderr": NUMBER, "seed_std": NUMBER, "n": NUMBER, "truncated": NUMBER},
}

KIND = result_files.Kind(
    "scores.json",
    "`eval` or the pipeline",
    {"results": Table(_ENTRY), "mean": Table({**_AVERAGE, "tasks": [TEXT]}), "rows": [{"step": NUMBER}]},
)

REMOVED, ATTACHED = "removed", "attached"


def prompt_word(prompt: int | None) -> str:
    """The word for a prompt id in tables and file names.

    >>> prompt_word(None), prompt_word(0)
    ('removed', 'attached')
    """
    return REMOVED if prompt is None else ATTACHED


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a `scores.json`.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not such a file.
    """
    return result_files.read(path, KIND)


def text_table(results: Mapping[str, Any]) -> str:
    """The entries and means as aligned text.

    Args:
      results: the contents of `scores.json`.
    """
    return aligned(_lines(results))


def markdown_table(results: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    heads, *lines = _lines(results)
    first_number = heads.index("metric") + 1
    return tables.markdown(heads, lines, numbers=range(first_number, len(heads)))


def write_markdown(results: Mapping[str, Any], out_dir: str | os.PathLike[str]) -> str:
    """Writes `scores.md` into a folder atomically, and returns its path."""
    path = epath.Path(out_dir).expanduser() / "scores.md"
    files.write_whole(path, markdown_table(results).encode())
    return os.fspath(path)


def _lines(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The header, the entries and the means; the step is shown only if there are several."""
    numbers = ("value", "stderr", "seed_std", "n", "truncated")
    lines: list[tuple[str, ...]] = [
        ("step", "task", "k", "prompt", "metric", results["unit"], "stderr", "seed std", "examples", "truncated")
    ]
    for entry in results["results"].values():
        names = (_shown(entry.get("step")), entry["task"], _shown(entry["k"]), prompt_word(entry["prompt"]))
        lines.append((*names, entry["metric"], *(_shown(entry[name]) for name in numbers)))
    for mean in results["mean"].values():
        title = f"mean of {len(mean['tasks'])}"
        names = (_shown(mean.get("step")), title, _shown(mean["k"]), prompt_word(mean["prompt"]))
        lines.append((*names, "", _shown(mean["value"]), "", "", "", ""))
    several = len({row["step"] for row in results["rows"]}) > 1
    return lines if several else [line[1:] for line in lines]


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
