"""Checks of a parsed gin configuration before anything runs: macros, required values, types, unused flags."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

from gin import config as gin_config

from promot_t5x.configuration import gin_statements
from promot_t5x.configuration.flags import ConfigError
from promot_t5x.configuration.renamed import new_macro
from promot_t5x.runtime import arguments
from promot_t5x.runtime.text import did_you_mean


def check_macros() -> None:
    """Refuses what would fail later: undefined or circular macros, missing values, values of the wrong type.

    Raises:
      ConfigError: one sentence with every problem and the flags that solve it.
    """
    _check_renamed()
    problems: list[str] = []
    macros = _macros()
    for (_, selector, parameter), origin, value in _bound():
        resolved = with_macros_resolved(value, (origin.written,) if selector == "gin.macro" else ())
        for reference in gin_config.iterate_references({"": value}):
            name = "/".join(reference.scopes)
            if reference.selector == "gin.constant" and name == "gin.REQUIRED":
                problems.append(
                    f"{origin.where}: {origin.written} is required and has no value: pass --gin.{origin.written}=VALUE"
                )
            elif reference.selector == "gin.macro" and name not in macros:
                problems.append(
                    f"{origin.where}: {origin.written} uses %{name}, which is defined nowhere"
                    f"{new_macro(name, macros) or did_you_mean(name, macros, cutoff=0.7)}: pass --gin.{name}=VALUE"
                )
        if selector != "gin.macro":
            hint = _type_hint(selector, parameter)
            if not arguments.fits(resolved, hint, undecided=(gin_config.ConfigurableReference,)):
                expected = arguments.hint_name(hint)
                source = f" (from {_written(value)})" if _written(value) else ""
                problems.append(f"{origin.where}: {origin.written} is {resolved!r}{source}, expected {expected}")
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))


def flags_by_use(*called: str) -> tuple[set[str], dict[str, str]]:
    """What flags set: macros, and parameters of configurables.

    Args:
      called: the configurables that the command calls, as gin files spell them.

    Returns:
      (the names of those that something uses; the sentence about each of the others, to which no binding refers).
    """
    macros, configurables = _used_macros(), _used_configurables()
    configurables |= {gin_statements.MENTIONED[name] for name in called if name in gin_statements.MENTIONED}
    used, unused = set(), {}
    for (scope, selector, _), origin, _ in _bound():
        if not origin.from_flag:
            continue
        if selector == "gin.macro" and scope not in macros:
            unused[scope] = f"{origin.where}: nothing uses {scope}{new_macro(scope) or did_you_mean(scope, macros)}"
        elif selector != "gin.macro" and selector not in configurables:
            name = origin.written.rpartition(".")[0]
            unused[origin.written] = f"{origin.where}: nothing uses {name}: bind it somewhere, as @{name}()"
        else:
            used.add(origin.written)
    return used, unused


def check_flags(*called: str) -> None:
    """Refuses flags that change nothing, most of which are misspelt.

    Args:
      called: see `flags_by_use`.

    Raises:
      ConfigError: one sentence with every such flag and the most similar name.
    """
    refuse(flags_by_use(*called)[1])


def refuse(unused: Mapping[str, str]) -> None:
    """Raises ConfigError with the sentences of `flags_by_use`, if there are any."""
    if unused:
        raise ConfigError("; ".join(sentence for _, sentence in sorted(unused.items())))


def with_macros_resolved(value: Any, seen: tuple[str, ...] = ()) -> Any:
    """Replaces the defined macros in a bound value by their values.

    Args:
      value: a value of gin's configuration: numbers, text, references, containers of these.
      seen: the macros being resolved.

    Raises:
      ConfigError: a macro is defined by itself.
    """
    if isinstance(value, gin_config.ConfigurableReference) and value.selector == "gin.macro":
        name = "/".join(value.scopes)
        if name in seen:
            raise ConfigError(f"macro {name} is defined by itself: {' -> '.join((*seen, name))}")
        bound = gin_config._CONFIG.get((name, "gin.macro"))
        return with_macros_resolved(bound["value"], (*seen, name)) if bound else value
    if isinstance(value, dict):
        return {key: with_macros_resolved(item, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(with_macros_resolved(item, seen) for item in value)
    return value


def _bound() -> Iterator[tuple[tuple[str, str, str], gin_statements.Origin, Any]]:
    """Every binding: (scope, selector, parameter), its origin, and its value."""
    for (scope, selector, parameter), origin in gin_statements.ORIGINS.items():
        yield (scope, selector, parameter), origin, gin_config._CONFIG.get((scope, selector), {}).get(parameter)


def _check_renamed() -> None:
    """Refuses a macro under its old name: the binding would have no effect, and in a file nobody would notice."""
    used = _used_macros()
    renamed = [
        f"{origin.where}: nothing uses {macro}{new}"
        for (macro, selector, _), origin, _ in _bound()
        if selector == "gin.macro" and macro not in used and (new := new_macro(macro, used))
    ]
    if renamed:
        raise ConfigError("; ".join(renamed))


def _used_macros() -> set[str]:
    return {
        "/".join(reference.scopes)
        for _, _, value in _bound()
        for reference in gin_config.iterate_references({"": value})
        if reference.selector == "gin.macro"
    }


def _used_configurables() -> set[str]:
    return {
        reference.configurable.selector
        for _, _, value in _bound()
        for reference in gin_config.iterate_references({"": value})
        if reference.configurable is not None
    }


def _macros() -> set[str]:
    return {scope for scope, selector in gin_config._CONFIG if selector == "gin.macro"}


def _written(value: Any) -> str:
    return "%" + "/".join(value.scopes) if isinstance(value, gin_config.ConfigurableReference) else ""


def _type_hint(selector: str, parameter: str) -> Any:
    """The annotation of a configurable's parameter; Any if it has none or it cannot be read."""
    wrapped = gin_config._REGISTRY[selector].wrapped
    try:
        return typing.get_type_hints(wrapped.__init__ if isinstance(wrapped, type) else wrapped).get(parameter, Any)
    except (NameError, TypeError):  # an annotation that only a type checker can read
        return Any
