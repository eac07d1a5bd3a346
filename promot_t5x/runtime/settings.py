"""Settings as JSON, and the differences between two sets of them, whether gin or Python made the objects.

A dataclass marks the fields that may change when a run is resumed:
`dataclasses.field(default=50, metadata={"may_change": True})`. Fields with the metadata {"recorded": False} are left
out.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import types
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

_LONG = 64  # longer sequences and arrays are recorded by their hash


def describe(value: Any) -> Any:
    """The configuration of an object, as JSON.

    Dataclasses are recorded by class name and fields, functions by name and the values they close over (optax's
    schedules and transformations are such functions), arrays by their contents, any other object by its class alone.

    Args:
      value: any object.

    Returns:
      Nested dictionaries, lists, numbers, strings and None, without memory addresses or other traces of this process.

    >>> describe({"rates": (0.1, 0.2), "order": sorted, "half": functools.partial(pow, 0.5)})
    {'rates': [0.1, 0.2], 'order': 'sorted', 'half': {'function': 'pow', 'arguments': [0.5]}}
    """
    return _describe(value, ())


def _describe(value: Any, holders: tuple[int, ...]) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if id(value) in holders:  # a cycle, such as a function that calls itself
        return type(value).__name__
    inner = functools.partial(_describe, holders=(*holders, id(value)))
    if isinstance(value, type):
        return value.__name__
    if dataclasses.is_dataclass(value):
        recorded = (field.name for field in dataclasses.fields(value) if field.metadata.get("recorded", True))
        return {"type": type(value).__name__, **{name: inner(getattr(value, name)) for name in recorded}}
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)) is not None:
        return {"type": type(value).__name__, **{name: inner(getattr(value, name)) for name in names}}
    if isinstance(value, (list, tuple)):
        return _shortened([inner(item) for item in value])
    if isinstance(value, Set):
        return _shortened(sorted((inner(item) for item in value), key=json.dumps))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.dtype):
        return value.name
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return _describe_array(np.asarray(value))
    return _describe_callable(value, inner) if callable(value) else type(value).__name__


def _shortened(items: list[Any]) -> Any:
    if len(items) <= _LONG:
        return items
    return {"length": len(items), "sha256": hashlib.sha256(json.dumps(items).encode()).hexdigest()}


def _describe_array(array: np.ndarray) -> Any:
    if array.ndim == 0:
        return _describe(array.item(), ())
    if array.size <= _LONG:
        return _describe(array.tolist(), ())
    contents = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"type": "array", "shape": list(array.shape), "dtype": array.dtype.name, "sha256": contents}


def _describe_callable(function: Any, inner: Any) -> Any:
    if isinstance(function, functools.partial):
        arguments = {"arguments": inner(list(function.args))} if function.args else {}
        return {"function": _name(function.func), **arguments, **inner(function.keywords)}
    values: dict[str, Any] = {}
    if isinstance(function, types.MethodType):
        values["self"] = inner(function.__self__)
    plain = inspect.unwrap(function)  # gin and jax.jit wrap
    plain = plain.__func__ if isinstance(plain, types.MethodType) else plain
    if isinstance(plain, types.FunctionType):
        for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
            try:
                values[name] = inner(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
        for parameter in inspect.signature(plain).parameters.values():
            if parameter.default is not inspect.Parameter.empty:
                values[parameter.name] = inner(parameter.default)
    return {"function": _name(plain), **values} if values else _name(plain)


def _name(function: Any) -> str:
    """A function's name without its module, which may be renamed."""
    return getattr(function, "__qualname__", type(function).__name__)


def may_change(value: Any, name: str = "") -> frozenset[str]:
    """The dotted names of all settings marked with the metadata {"may_change": True}.

    Args:
      value: a dataclass, whose fields may be dataclasses; anything else has no such settings.
      name: the prefix of the names.
    """
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return frozenset()
    names: set[str] = set()
    for field in dataclasses.fields(value):
        dotted = f"{name}.{field.name}" if name else field.name
        if field.metadata.get("may_change", False):
            names.add(dotted)
        else:
            names |= may_change(getattr(value, field.name), dotted)
    return frozenset(names)


def differences(before: Any, now: Any, ignored: frozenset[str] = frozenset()) -> list[str]:
    """The differences between two descriptions, one clause per setting, in the order of `now`.

    Args:
      before: what `describe` returned then.
      now: what it returns now.
      ignored: dotted names that may differ, and everything below them.

    >>> differences({"loop": {"seed": 0, "steps": 4}}, {"loop": {"seed": 1, "steps": 4, "parts": 2}})
    ['loop.seed is 1, was 0', 'loop.parts is 2, was not set']
    """
    old, new = _flat(before), _flat(now)
    names = [name for name in (*new, *(name for name in old if name not in new)) if not _below(name, ignored)]
    clauses = []
    for name in names:
        values = [json.dumps(flat[name]) if name in flat else "not set" for flat in (new, old)]
        if (name in old) != (name in new) or old[name] != new[name]:
            clauses.append(f"{name} is {values[0]}, was {values[1]}")
    return clauses


def _below(name: str, parents: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in parents for count in range(1, len(parts) + 1))


def _flat(described: Any, name: str = "") -> dict[str, Any]:
    """Dotted names and their values; a list of plain values counts as one value."""
    if isinstance(described, list) and any(isinstance(item, (dict, list)) for item in described):
        described = dict(enumerate(described))
    if not isinstance(described, dict) or not described:
        return {name: described}
    flat: dict[str, Any] = {}
    for key, item in described.items():
        flat |= _flat(item, f"{name}.{key}" if name else str(key))
    return flat
