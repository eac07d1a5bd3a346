"""Parses gin files and bindings into a configuration, with one clear sentence for every mistake.

A command calls `program.start`, then what `configurable` returns, both inside `program.run_main`. This module finds
files and their includes (`resolve`), never gin's own package reader; `gin_statements` executes their statements, and
`gin_checks` finds what is missing.

gin keeps one symbol table per file. Bindings from flags get a table of their own with the imports of all files, so that
`--gin.architecture.T5Config.embed_dim=64` means what the files call `architecture.T5Config`. If two files give two
modules the same name, the including file wins over the included one, and the later file over the earlier one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from promot_t5x.configuration import gin_checks, gin_statements
from promot_t5x.configuration.flags import NAME, ConfigError
from promot_t5x.runtime.text import aligned, nearest

_PACKAGED = Path(__file__).resolve().parents[1] / "gin"

_PACKAGED_PREFIX = "promot_t5x/gin/"

_DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"


def gin_files_packaged() -> list[Path]:
    """The gin files that come with the package, sorted."""
    return sorted(_PACKAGED.rglob("*.gin"))


def listing() -> str:
    """The packaged gin files by their short names, with the first sentence of each."""
    rows = []
    for file in gin_files_packaged():
        comment = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
        text = " ".join(line.removeprefix("#").strip() for line in comment)
        rows.append((file.relative_to(_PACKAGED).as_posix(), text.split(" Hardware:")[0].split(". ")[0].rstrip(".")))
    return aligned(rows)


def resolve(name: str, search_paths: Sequence[str] = ()) -> Path:
    """Finds a gin file: as written, then in each search path, then among the packaged files.

    A name that begins with `promot_t5x/gin/` is looked up among the packaged files first.

    Args:
      name: a path, or a short name such as `models/mt5_small.gin`.
      search_paths: folders to search, in order.

    Returns:
      The absolute path.

    Raises:
      FileNotFoundError: there is no such file; the sentence names the folders searched and similar names.
    """
    folders = [Path.cwd(), *(Path(path).expanduser().absolute() for path in search_paths), _PACKAGED]
    candidates = [folder / Path(name).expanduser() for folder in folders]
    if name.startswith(_PACKAGED_PREFIX):
        candidates.insert(0, _PACKAGED / name.removeprefix(_PACKAGED_PREFIX))
    for candidate in candidates:
        if candidate.is_file():
            return Path(os.path.abspath(candidate))
        if candidate.exists() and Path(name).is_absolute():
            raise IsADirectoryError(f"gin file {name!r} is a folder or device, expected a file; give a file's path.")
    short_names = {str(path.relative_to(folder)) for folder in folders[1:] for path in folder.rglob("*.gin")}
    same_file = [short for short in sorted(short_names) if Path(short).name == Path(name).name]
    similar = same_file or nearest(name.removeprefix(_PACKAGED_PREFIX), sorted(short_names), 3, cutoff=0.6)
    hint = f"; the nearest names are {', '.join(similar)}" if similar else ""
    tried = ", ".join(str(folder) for folder in ([] if Path(name).is_absolute() else folders))
    raise FileNotFoundError(f"gin file {name!r} was not found{f' in {tried}' if tried else ''}{hint}")


def parse(
    files: Iterable[str],
    bindings: Iterable[str] = (),
    search_paths: Sequence[str] = (),
    *,
    skip_not_imported: bool = False,
) -> tuple[str, ...]:
    """Replaces gin's configuration by that of the files, overridden by the bindings.

    Args:
      files: names for `resolve`; later files override earlier ones.
      bindings: gin statements, which override the files. They may use all names that the files import, and the ends of
        names that the files use (`T5Config.embed_dim` for `architecture.T5Config.embed_dim`).
      search_paths: folders for `resolve`, for the files and their includes.
      skip_not_imported: skip bindings that name a module which no file imports, as one for another file's run does.

    Returns:
      The bindings that were skipped.

    Raises:
      FileNotFoundError: a file does not exist.
      ConfigError: a file or binding has a mistake; gin's configuration is then empty.
    """
    find = functools.partial(resolve, search_paths=search_paths)
    gin_statements.clear()
    paths, skipped = [find(name) for name in files], []
    try:
        imports = [statement for path in paths for statement in gin_statements.parse_file(path, find)]
        with gin_config._parse_scope() as context:
            for statement in _import_order(imports):
                context.process_import(statement)
            for binding in bindings:
                try:
                    gin_statements.run_statements(binding, None, context, find)
                except gin_statements.NotImportedError:
                    if not skip_not_imported:
                        raise
                    skipped.append(binding)
            gin_config._IMPORTS.update(context.imports)
    except BaseException:
        gin_statements.clear()
        raise
    return tuple(skipped)


def _import_order(imports: Sequence[config_parser.ImportStatement]) -> list[config_parser.ImportStatement]:
    """Keeps one of repeated imports and puts dynamic registration first, as gin requires."""
    distinct = {statement.format(): statement for statement in imports}.values()
    return sorted(distinct, key=lambda statement: statement.module != _DYNAMIC_REGISTRATION)


def configurable(function: Callable[..., Any], spelling: str = "") -> Callable[..., Any]:
    """A function or class with its arguments bound by the parsed configuration.

    Args:
      function: a function or class that the gin files import. If its module runs as `__main__` (`python -m`), the
        importable copy of that module is used, the only one that gin files can reach.
      spelling: its name in gin files, if that is not `module.name`.

    Returns:
      The function, whose bound arguments may be left out.

    Raises:
      ConfigError: no parsed file or binding mentions it.
    """
    module = function.__module__
    main_spec = getattr(sys.modules["__main__"], "__spec__", None)
    if module == "__main__" and main_spec is not None:
        module = main_spec.name
        function = getattr(importlib.import_module(module), function.__name__)
    name = spelling or f"{module.split('.')[-1]}.{function.__name__}"
    module = f"promot_t5x.{name.split('.')[0]}" if spelling else module
    if not is_configured(function):
        raise ConfigError(
            f"the gin files never mention {name}: give a --gin_file that imports {module} and "
            f"binds a parameter, such as `{name}.{next(iter(inspect.signature(function).parameters), 'x')} = ...`"
        )
    return gin.get_configurable(function)


def is_configured(function: Callable[..., Any]) -> bool:
    """Whether a parsed file or binding mentions a function or class."""
    registered = gin_config._inverse_lookup(function)
    return registered is not None and registered.selector in gin_statements.MENTIONED.values()


def bound_arguments(function: Callable[..., Any], spelling: str = "", given: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments that `configurable(function)` would be called with; references are resolved, nothing is called.

    Args:
      function, spelling: see `configurable`.
      given: names of the arguments that the caller gives itself.

    Raises:
      ConfigError: no parsed file or binding mentions it, or an argument without a default is not bound.
    """
    configurable(function, spelling)
    bound = gin.get_bindings(function)
    parameters = inspect.signature(function).parameters.values()
    needed = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    if missing := sorted(needed - {*bound, *given}):
        raise ConfigError(value_needed(spelling or function.__name__, missing))
    return bound


def value_needed(name: str, parameters: Sequence[str]) -> str:
    """The sentence about parameters of a configurable that have no value, spelt as the gin files spell its name."""
    mentioned = gin_statements.MENTIONED
    written = next((selector for selector in mentioned if selector.split(".")[-1] == name.split(".")[-1]), name)
    flags = " ".join(f"--gin.{written}.{parameter}=VALUE" for parameter in parameters)
    return f"{written} needs {', '.join(parameters)} and nothing gives a value: pass {flags}"


def statements(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Macros or parameters and their values as gin statements.

    Args:
      values: numbers (numpy's as well), text, paths, True, False, None, and lists, tuples and dictionaries of these.

    Raises:
      ConfigError: a name that gin does not have, or a value that it cannot write.

    >>> statements({"TRAIN_STEPS": 10, "MODEL_DIR": Path("/tmp/run")})
    ('TRAIN_STEPS = 10', "MODEL_DIR = '/tmp/run'")
    """
    for name in values:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise ConfigError(f"the binding {name!r} names no macro or parameter: write NAME or module.name.parameter")
    return tuple(f"{name} = {_literal(value, name)!r}" for name, value in values.items())


def _literal(value: Any, name: str) -> Any:
    """A value whose repr is gin syntax."""
    if getattr(value, "ndim", None) == 0:  # one of numpy's numbers
        value = value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return type(value)([_literal(item, name) for item in value])
    if isinstance(value, dict):
        return {_literal(key, name): _literal(item, name) for key, item in value.items()}
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    raise ConfigError(
        f"the binding {name} has the value {value!r}, which gin cannot write: expected finite numbers, text, paths, "
        "True, False, None, or lists, tuples and dictionaries of these"
    )


def resolved_config() -> str:
    """Every binding as parsed, with macros replaced by their values, sorted; the text is valid gin itself."""
    return gin_config._config_str(gin_checks.with_macros_resolved(gin_config._CONFIG))


def operative_config() -> str:
    """The bindings and defaults that calls have used so far, as gin text."""
    return gin.operative_config_str()


def bindings(config: str) -> list[str]:
    r"""The bindings in a configuration's text, one `name = value` each, with broken lines joined.

    >>> bindings("# a comment\nimport x\nA = \\\n    {'b': 1,\n     'c': 2}\n")
    ["A = {'b': 1, 'c': 2}"]
    """
    joined = re.sub(r"( \\)?\n +", " ", config)
    return [line for line in joined.splitlines() if " = " in line and line[0] != "#"]
