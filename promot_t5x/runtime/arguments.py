"""Arguments of public functions, compared with their annotations when they are called: a wrong type is one sentence."""

import functools
import inspect
import re
import reprlib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Checked = TypeVar("_Checked", bound=Callable[..., Any])


SEEDS = range(2**32)

"""The seeds that JAX distinguishes; of a larger number, it takes the last 32 bits."""


class WrongTypeError(TypeError):
    """An argument of another type than its annotation says, as one sentence."""


def checked(function: _Checked) -> _Checked:
    """A function or dataclass whose arguments are compared with their annotations before it runs.

    Raises:
      WrongTypeError: (when called) names the argument, the value and the annotation.

    >>> checked(lambda: None)() is None
    True
    """
    if isinstance(function, type):
        function.__init__ = _checked(function.__init__, function.__name__)
        return typing.cast(_Checked, function)
    return typing.cast(_Checked, _checked(function, function.__name__))


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.cache  # annotations may name what is defined further down in the module
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python's own sentence names the argument that is missing or too many
            return function(*args, **kwargs)
        for parameter, value in given.items():
            if not fits(value, hint := hints().get(parameter, Any)):
                raise WrongTypeError(
                    f"{name}.{parameter} is {reprlib.repr(value)}, expected {hint_name(hint)}{_advice(value, hint)}."
                )
        return function(*args, **kwargs)

    return call


def _advice(value: Any, hint: Any) -> str:
    if isinstance(value, str) and "Sequence" in str(hint):
        return "; write [text] for a single one"
    if isinstance(value, type):
        return f"; call it, as in {value.__name__}(...)"
    return ""


def check_seed(seed: Any, name: str) -> None:
    """Raises ValueError for a seed outside `SEEDS`.

    >>> check_seed(2**32, "LoopConfig.seed")
    Traceback (most recent call last):
    ValueError: LoopConfig.seed is 4294967296, expected a whole number from 0 to 4294967295.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed not in SEEDS:
        raise ValueError(f"{name} is {seed!r}, expected a whole number from 0 to {SEEDS[-1]}.")


def hint_name(hint: Any) -> str:
    """An annotation as people write it.

    >>> hint_name(Sequence[int] | None)
    'Sequence[int] | None'
    """
    return hint.__name__ if isinstance(hint, type) else re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(hint))


def fits(value: Any, hint: Any, undecided: tuple[type, ...] = ()) -> bool:
    """Whether a value fits an annotation; True where this cannot be decided.

    A sequence is a list or tuple, never text, and so is a tuple of any length, as gin and JSON have lists; True and
    False are no numbers.

    Args:
      value: anything.
      hint: the annotation.
      undecided: classes of what stands for a value that is not known yet.

    >>> fits((1, 2), Sequence[int]), fits([1], tuple[int, ...]), fits("12", Sequence[str])
    (True, True, False)
    """
    if hint is Any or isinstance(value, undecided):
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument, undecided) for argument in arguments)
    if origin is Callable:
        return callable(value)
    if origin is Sequence or (origin is tuple and arguments[1:] == (...,)):
        return isinstance(value, (list, tuple)) and all(fits(item, arguments[0], undecided) for item in value)
    if origin is not None or not isinstance(hint, type):
        return not isinstance(origin, type) or isinstance(value, origin)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if getattr(hint, "_is_runtime_protocol", False):
        return isinstance(value, hint) and not isinstance(value, type)  # a class has the methods before it is called
    if getattr(hint, "_is_protocol", False):
        return callable(value)
    return isinstance(value, hint)
