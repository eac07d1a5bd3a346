"""A run's scalars: metrics.jsonl, and the interface of whatever else they are written to.

metrics.jsonl has one JSON object per line, {"step": n, "train/loss": …}; steps do not decrease, and one step may have
several lines. A resumed run continues the file from its checkpoint's step, as if it had never stopped.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from promot_t5x.runtime import files, strict_json

FILE = "metrics.jsonl"


class Writer(Protocol):
    """What receives a run's scalars, such as CLU's metric writers."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Takes the scalars of a step."""

    def flush(self) -> None:
        """Makes durable what was taken so far."""


class MetricsFile:
    """Writes scalars to a run's metrics.jsonl; each flush replaces the file as a whole, also in a bucket.

    Args:
      folder: the run's.
      step: where the run begins or resumes; lines of later steps are dropped.

    Raises:
      ValueError: the file has a line that is not a JSON object with a step.
    """

    def __init__(self, folder: str | os.PathLike[str], step: int = 0):
        self._path = epath.Path(folder) / FILE
        self._lines = [strict_json.dumps(line) for line in read(folder) if line["step"] <= step] if step else []

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds a line; a number that is not finite, which JSON does not have, becomes null."""
        finite = strict_json.finite({name: float(value) for name, value in scalars.items()})
        self._lines.append(strict_json.dumps({"step": int(step), **finite}))

    def flush(self) -> None:
        """Writes the file."""
        files.write_whole(self._path, "".join(f"{line}\n" for line in self._lines).encode())


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Hands the scalars to every writer."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def flush(self) -> None:
        """Flushes every writer."""
        for writer in self._writers:
            writer.flush()


def read(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, empty where there is none.

    Args:
      folder: the run's.

    Raises:
      ValueError: a line is not a JSON object with a step.

    >>> read("no such folder")
    []
    """
    path = epath.Path(folder) / FILE
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            lines.append(strict_json.loads(text))
            int(lines[-1]["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is {text[:60]!r}, expected a JSON object with a step; delete the file."
            ) from error
    return lines
