"""Reads and checks the top level of `scores.json` and `comparison.json`."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from promot_t5x.runtime import files, strict_json

UNIT = "percent"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      name: the file's name.
      made_by: the commands that write it, as in "make it again with …".
      contents: the top-level keys of every such file, and their types.
    """

    name: str
    made_by: str
    contents: Mapping[str, type]


def read(path: str | os.PathLike[str], kind: Kind) -> dict[str, Any]:
    """Reads a file of results and checks its top level.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not JSON, not of this kind, or in another unit.
    """
    source, file = os.fspath(path), files.absolute(path)
    if not file.is_file():
        raise FileNotFoundError(f"{source} does not exist; give the {kind.name} that {kind.made_by} wrote.")
    try:
        results = strict_json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}); make it again with {kind.made_by}.") from error
    check(results, kind, source)
    return results


def check(results: Any, kind: Kind, source: str) -> None:
    """Checks the top level of results.

    Args:
      results: the dictionary, or anything else that a file contained.
      kind: the expected kind of file.
      source: where the results come from; error messages begin with it.

    Raises:
      ValueError: a key is missing or has another type, or the unit is another.
    """
    for key, expected in kind.contents.items():
        if not isinstance(results, dict) or not isinstance(results.get(key), expected):
            content = f"the keys {sorted(results)}" if isinstance(results, dict) else f"a {type(results).__name__}"
            raise ValueError(
                f'{source} holds {content}, expected a {"list" if expected is list else "table"} "{key}"; '
                f"give the {kind.name} that {kind.made_by} wrote."
            )
    if results.get("unit") != UNIT:
        raise ValueError(
            f'{source} has the unit {results.get("unit")!r}, expected "{UNIT}"; make it again with {kind.made_by}.'
        )
