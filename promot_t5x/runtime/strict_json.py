"""JSON as RFC 8259 has it, read and written, and its checksum: what only Python's own reader takes is refused.

Python reads NaN and Infinity, turns 1e400 into infinity, lets the last of two equal keys win, makes text of "\\ud83d"
that cannot be encoded, and answers deep nesting with a RecursionError. Here each is a ValueError that names its place.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

CHECKSUM = "crc32"
"""The key of an object's checksum."""

_DEEPEST = 100  # levels of nesting; Python's own limit depends on how deep the caller is

_LONGEST_NUMBER = 300  # characters that are certainly no more than a program can hold

_LONG_NUMBER = re.compile(f"[0-9]{{{_LONGEST_NUMBER}}}")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a pair, or an escaped backslash before such text

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?(?:NaN|Infinity)|-?[0-9][0-9.eE+-]*|[][{},:]', re.DOTALL)


def loads(data: str | bytes) -> Any:
    """The value of a JSON document.

    Args:
      data: the document; bytes are UTF-8, with or without a byte order mark.

    Raises:
      ValueError: it is not JSON; the message is a reason with its place, for a sentence that names the file.

    >>> loads('{"input": "Paris", "id": 3}')
    {'input': 'Paris', 'id': 3}
    >>> loads('{"score": NaN}')
    Traceback (most recent call last):
    ValueError: NaN is not a number in JSON, column 11
    """
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before, wrong = error.object[: error.start].decode(), error.object[error.start]
            raise ValueError(f"byte 0x{wrong:02x} is not UTF-8, {_place(before)}") from error
    if _is_plain(data):
        try:
            return _DECODER.decode(data)
        except (RecursionError, ValueError):  # said again below, with its place
            pass
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, {_place(data[: error.pos])}") from error
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        _check(data)
        raise
    _check(data)
    return value


def _is_plain(text: str) -> bool:
    """Whether only what `_DECODER` notices can be wrong with a document, as in most; it is several times faster."""
    if text.count("[") + text.count("{") > _DEEPEST or _SURROGATE.search(text) or lone_surrogate(text):
        return False
    return len(text) < _LONGEST_NUMBER or not _LONG_NUMBER.search(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key occurs twice")
    return members


def _float(token: str) -> float:
    if reason := _no_number(token):
        raise ValueError(reason)
    return float(token)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_float)


def _place(before: str) -> str:
    """The place after some text: its column, and its line if it is not the first."""
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return f"column {column}" if line == 1 else f"line {line} column {column}"


def _check(text: str) -> None:
    """Raises ValueError at the first token that Python reads and JSON does not have."""
    open_keys: list[set[str] | None] = []  # the keys so far of each open object, None for an open list
    is_key = False
    for match in _TOKEN.finditer(text):
        token, reason = match[0], ""
        if token in "{[":
            open_keys.append(set() if token == "{" else None)
            reason = f"more than {_DEEPEST} levels of nesting" if len(open_keys) > _DEEPEST else ""
        elif token in "}]":
            del open_keys[-1:]
        elif token[0] == '"':
            string = json.loads(token) if "\\" in token else token[1:-1]
            reason = lone_surrogate(string)
            keys = open_keys[-1] if is_key and open_keys else None
            if keys is not None:
                reason = reason or (f"the key {_short(token)} occurs twice" if string in keys else "")
                keys.add(string)
        elif token not in ",:":
            reason = _no_number(token)
        if reason:
            raise ValueError(f"{reason}, {_place(text[: match.start()])}")
        is_key = token in "{,"


def lone_surrogate(text: str) -> str:
    """Names the first half of a surrogate pair in a text, which UTF-8 cannot write; empty if there is none.

    >>> lone_surrogate("a" + chr(0xD83D))
    'half of a surrogate pair, U+D83D'
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair, U+{ord(error.object[error.start]):04X}"
    return ""


def _short(token: str) -> str:
    return token if len(token) <= 40 else f"{token[:40]}…"


def _no_number(token: str) -> str:
    """Why a number is none, or none that a program can hold; empty if it is one."""
    if len(token) <= _LONGEST_NUMBER and re.fullmatch("-?[0-9.]+", token):
        return ""
    if token.lstrip("-") in ("NaN", "Infinity"):
        return f"{token} is not a number in JSON"
    try:
        too_large = math.isinf(float(json.loads(token)))
    except (ValueError, OverflowError):  # an integer: of more digits than Python converts, or than a float holds
        too_large = True
    return f"{_short(token)} is too large for a number" if too_large else ""


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """The values of a JSON Lines file; blank lines are skipped.

    Args:
      path: the file, in UTF-8.

    Returns:
      An iterator over (place for messages: "in.jsonl line 3", value).

    Raises:
      ValueError: a line is not UTF-8 or not JSON; the sentence names file, line and column.
    """
    name = os.fspath(path)
    with epath.Path(path).open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            line = line.removesuffix(b"\n")
            if not line.strip():
                continue
            place = f"{name} line {number}"
            try:
                value = loads(line)
            except ValueError as error:
                reason = f"{place} is not valid JSON ({error})"
                raise ValueError(f"{reason}, expected one JSON object: correct it.") from error
            yield place, value


def dumps(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """A value as JSON that every program reads.

    Args:
      value: dictionaries, lists, strings, finite numbers, booleans, None.
      indent: spaces per level; None writes one line.
      default: converts values of other types.

    Raises:
      ValueError: a value has no JSON form; the message is a reason, for a sentence that names the file.

    >>> dumps({"input": "Zürich", "scores": [0.5, 1]})
    '{"input": "Zürich", "scores": [0.5, 1]}'
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=default)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if reason := lone_surrogate(text):
        raise ValueError(reason)
    return text


def finite(value: Any) -> Any:
    """A value with None for every float that JSON does not have.

    >>> finite({"scores": (0.5, float("nan")), "n": 3})
    {'scores': [0.5, None], 'n': 3}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def checksum(value: Any) -> str:
    """The CRC-32 of a value as `loads` returns it; the order of keys does not matter.

    >>> checksum({"a": 1, "b": None}) == checksum({"b": None, "a": 1})
    True
    """
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def sealed(fields: Mapping[str, Any], *, default: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """An object as it is stored, with the checksum of its other fields.

    Args:
      fields: what JSON has, or `default` converts.
      default: see `dumps`.

    >>> sealed({"output": "yes"})
    {'output': 'yes', 'crc32': 'c4bc023f'}
    """
    stored = json.loads(json.dumps(fields, default=default))
    return {**stored, CHECKSUM: checksum(stored)}


def is_sealed(value: Any) -> bool:
    """Whether a value is an object with the checksum of its other fields.

    >>> is_sealed(sealed({"output": "yes"})), is_sealed({**sealed({"output": "yes"}), "output": "no"})
    (True, False)
    """
    if not isinstance(value, dict):
        return False
    return value.get(CHECKSUM) == checksum({key: item for key, item in value.items() if key != CHECKSUM})
