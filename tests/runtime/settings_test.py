"""Settings as JSON: what is recorded of an object, and how two records differ."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.runtime import settings


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3
    lines: int = dataclasses.field(default=5, metadata={"may_change": True})
    hidden: Any = dataclasses.field(default=None, metadata={"recorded": False})


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    rates: Mapping[str, float]
    place: Any = dataclasses.field(default=None, metadata={"may_change": True})


def test_dataclasses_are_their_class_and_fields():
    described = settings.describe(Outer(Inner(hidden=object()), {"a": 0.5}, pathlib.Path("x/y")))
    inner = {"type": "Inner", "width": 3, "lines": 5}
    assert described == {"type": "Outer", "inner": inner, "rates": {"a": 0.5}, "place": "x/y"}
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(
    "value,expected",
    [
        (float("inf"), "inf"),
        (np.float32(0.5), 0.5),
        (jnp.int32(3), 3),
        (np.arange(3), [0, 1, 2]),
        (jnp.bfloat16, "bfloat16"),
        (np.dtype("int8"), "int8"),
        ({2, 1}, [1, 2]),
        (object(), "object"),
        (optax.EmptyState(), {"type": "EmptyState"}),
        (optax.ScaleByScheduleState(2), {"type": "ScaleByScheduleState", "count": 2}),
        (functools.partial(max, default=2), {"function": "max", "default": 2}),
    ],
)
def test_what_has_no_json_of_its_own(value, expected):
    assert settings.describe(value) == expected


def test_long_values_are_recorded_by_their_contents():
    ones, others = np.ones(100), np.ones(100)
    others[70] = 2
    for make in (lambda x: x, jnp.asarray, list):
        first, second = settings.describe(make(ones)), settings.describe(make(others))
        assert first != second and first == settings.describe(make(ones.copy())) and len(json.dumps(first)) < 200


def test_functions_are_their_names_and_values():
    def scaled(by, offset=7):
        return lambda x, power=2: by * x**power

    half, double = settings.describe(scaled(0.5)), settings.describe(scaled(2.0))
    assert half["by"] == 0.5 and double["by"] == 2.0 and half["power"] == 2
    assert half["function"].endswith("scaled.<locals>.<lambda>")
    assert settings.describe(jax.jit(scaled))["function"].endswith("scaled")

    def counting(n):
        return 0 if n == 0 else counting(n - 1)

    assert "counting" in json.dumps(settings.describe(counting)), "a function that calls itself ends"


@pytest.mark.parametrize("make", [optax.sgd, optax.adam, optax.adafactor, optax.linear_schedule])
def test_optax_is_distinguished_by_its_numbers(make):
    arguments = (0.5, 3) if make is optax.linear_schedule else ()
    records = [settings.describe(make(rate, *arguments)) for rate in (0.1, 0.1, 0.2)]
    assert records[0] == records[1] != records[2]
    assert "0x" not in json.dumps(records), "no address of this process"


def test_marked_settings_may_change():
    outer = Outer(Inner(), {})
    assert settings.may_change(outer) == {"inner.lines", "place"}
    assert settings.may_change({"a": 1}) == settings.may_change(Outer) == frozenset()
    before, now = settings.describe(outer), settings.describe(Outer(Inner(4, 6), {"a": 1.0}, {"x": 1}))
    assert settings.differences(before, now, settings.may_change(outer)) == [
        "inner.width is 4, was 3",
        "rates.a is 1.0, was not set",
        "rates is not set, was {}",
    ]
    assert settings.differences(now, now) == []


def test_lists_are_compared_as_far_as_they_are_plain():
    assert settings.differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a is [1, 3], was [1, 2]"]
    assert settings.differences({"a": [{"b": 1}, 2]}, {"a": [{"b": 1}, 3]}) == ["a.1 is 3, was 2"]
    assert settings.differences({"a": 1}, {"a": 1.0}) == [], "the same number"
