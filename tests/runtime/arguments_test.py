"""Arguments of the public functions: a wrong type is one sentence, and what fits goes through unchanged."""

import dataclasses
import inspect
import os
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

import promot_t5x
from promot_t5x.configuration import program
from promot_t5x.runtime import arguments


@arguments.checked
def whole(
    count: int, names: Sequence[str] = (), path: str | os.PathLike[str] | None = None, call: Callable | None = None
):
    """A function."""
    return count, names, path, call


@arguments.checked
@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings."""

    rate: float
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)


def test_what_fits_goes_through():
    assert whole(3, ["a"], path=pathlib.Path("b")) == (3, ["a"], pathlib.Path("b"), None)
    assert Settings(1).rate == 1 and dataclasses.replace(Settings(0.5), rate=2.0) == Settings(2.0)
    assert str(inspect.signature(whole)).startswith("(count: int") and whole.__doc__ == "A function."


@pytest.mark.parametrize(
    "call,expected",
    [
        (lambda: whole("3"), "whole.count is '3', expected int"),
        (lambda: whole(True), "whole.count is True, expected int"),
        (lambda: whole(np.float32(2)), "whole.count is np.float32(2.0), expected int"),
        (lambda: whole(3, "ab"), "whole.names is 'ab', expected Sequence[str]; write [text] for a single one"),
        (lambda: whole(3, [1]), "whole.names is [1], expected Sequence[str]"),
        (lambda: whole(3, path=4), "whole.path is 4, expected str | PathLike[str] | None"),
        (lambda: Settings(rate="0.1"), "Settings.rate is '0.1', expected float"),
        (lambda: Settings(0.1, [1]), "Settings.lengths is [1], expected Mapping[str, int]"),
    ],
)
def test_a_wrong_type_is_one_sentence(call, expected, capsys):
    with pytest.raises(arguments.WrongTypeError) as raised:
        call()
    assert str(raised.value) == f"{expected}."
    assert program.run_main(lambda argv: call(), []) == 1
    assert capsys.readouterr().err == f"error: {expected}.\n"


@typing.runtime_checkable
class Buildable(typing.Protocol):
    def build(self): ...


class Built:
    def build(self): ...


@arguments.checked
def use(settings: Buildable):
    return settings


def test_a_class_that_was_not_called_is_no_object_of_it():
    assert isinstance(use(Built()), Built)
    with pytest.raises(
        arguments.WrongTypeError, match=r"is <class .*Built'>, expected Buildable; call it, as in Built\("
    ):
        use(Built)


def test_what_is_missing_is_said_by_python():
    with pytest.raises(TypeError, match=r"whole\(\) missing 1 required positional argument: 'count'"):
        whole()


@pytest.mark.parametrize(
    "name",
    """run_stage run_recipe generate load load_soft_prompt save_soft_prompt convert_checkpoint evaluate evaluate_suite
    plan_training from_gin runs_from_gin""".split(),
)
def test_the_public_functions_say_what_they_expect(name):
    function = getattr(promot_t5x, name)
    required = [p for p in inspect.signature(function).parameters.values() if p.default is inspect.Parameter.empty]
    with pytest.raises(arguments.WrongTypeError, match=f"[.]{required[0].name} is <object objec"):
        function(**{parameter.name: object() for parameter in required})
