"""Reads `scores.json` and `comparison.json`, and checks that they have the form that reports rely on."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from promot_t5x.runtime import files, strict_json

UNIT = "percent"

ANY, TEXT, NUMBER = (object,), (str,), (int, float, type(None))

"""Forms of single values; a number may be null."""

_EXPECTED = {TEXT: "text", NUMBER: "a number or null", list: "a list", dict: "a table"}


@dataclasses.dataclass(frozen=True)
class Table:
    """The form of an object with any keys.

    Attributes:
      of: the form of each value.
    """

    of: "Form"


Form = tuple[type, ...] | list[Any] | Table | Mapping[str, Any]

"""What a value looks like: ANY, TEXT or NUMBER; a list of one form; a Table; or an object's keys and their forms, where
a key that ends in "?" may be missing or null, and others that are not named are allowed."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      name: the file's name.
      made_by: the commands that write it, as in "make it again with …".
      contents: the form of the whole file.
    """

    name: str
    made_by: str
    contents: Mapping[str, Form]


def read(path: str | os.PathLike[str], kind: Kind) -> dict[str, Any]:
    """Reads a file of results and checks it.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not JSON, not of this kind, incomplete, or in another unit.
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
    """Checks the unit and form of results.

    Args:
      results: the dictionary, or anything else that a file contained.
      kind: the expected kind of file.
      source: where the results come from; error messages begin with it.

    Raises:
      ValueError: something is missing or has another type, or the unit is another.
    """
    for key, form in kind.contents.items():
        expected = list if isinstance(form, list) else dict
        if key.endswith("?"):
            continue
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
    check_form(results, kind.contents, kind, source)


def check_form(results: Any, form: Form, kind: Kind, source: str) -> None:
    """Checks the form of results.

    Args:
      results, kind, source: see `check`.
      form: the expected form.

    Raises:
      ValueError: names the first value that is missing or has another type.
    """
    for misfit in _misfits(results, form, ""):
        raise ValueError(f"{source} is incomplete or damaged: {misfit}; make it again with {kind.made_by}.")


def _misfits(value: Any, form: Form, place: str) -> Iterator[str]:
    """What does not have its form, each with its place."""
    if isinstance(form, tuple):
        if not isinstance(value, form):
            yield f"{place} is {_short(value)}, expected {_EXPECTED[form]}"
        return
    expected: Any = list if isinstance(form, list) else dict
    if not isinstance(value, expected):
        yield f"{place} is {_short(value)}, expected {_EXPECTED[expected]}"
    elif isinstance(form, list):
        for number, item in enumerate(value):
            yield from _misfits(item, form[0], f"{place}[{number}]")
    elif isinstance(form, Table):
        for key, item in value.items():
            yield from _misfits(item, form.of, f"{place}.{key}")
    else:
        for key, of_key in form.items():
            name = key.removesuffix("?")
            if name == key and name not in value:
                yield f'{place} has no "{name}"'
            elif name == key or value.get(name) is not None:
                yield from _misfits(value[name], of_key, f"{place}.{name}".removeprefix("."))


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 40 else f"{text[:40]}…"
