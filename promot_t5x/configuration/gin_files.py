"""From gin files and bindings to a parsed configuration, with one clear sentence for every mistake.

A binary calls `start`, then what `configurable` returns, all inside `run_main`. Files and their includes are found by
this module (`resolve`), never by gin's own package reader; `gin_parsing` carries their statements out, `gin_checks`
finds what they lack.

gin keeps one symbol table per file; bindings from flags get a table of their own holding the imports of all files, so
that `--gin.network.T5Config.embed_dim=64` addresses what the files call `network.T5Config`. Where two files give one
name to two modules, the including file's and then the later file's meaning holds.
"""

from __future__ import annotations

import functools
import importlib
import inspect
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
from promot_t5x.configuration.flags import ConfigError
from promot_t5x.runtime.text import nearest

_PACKAGED = Path(__file__).resolve().parents[1] / "gin"

_PACKAGED_PREFIX = "promot_t5x/gin/"

_DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"


def gin_files_packaged() -> list[Path]:
    """Returns the gin files that come with the package, sorted."""
    return sorted(_PACKAGED.rglob("*.gin"))


def resolve(name: str, search_paths: Sequence[str] = ()) -> Path:
    """Finds a gin file: as given, then in each search path, then in the packaged folder.

    A name that begins with `promot_t5x/gin/` means the packaged folder first, whatever the current folder holds.

    Args:
      name: a path, or a short name such as `models/mt5_small.gin`.
      search_paths: folders, in order.

    Returns:
      The absolute path.

    Raises:
      FileNotFoundError: nothing by that name; the sentence names the folders tried and the nearest names.
    """
    folders = [Path.cwd(), *(Path(path).expanduser().absolute() for path in search_paths), _PACKAGED]
    candidates = [folder / Path(name).expanduser() for folder in folders]
    if name.startswith(_PACKAGED_PREFIX):
        candidates.insert(0, _PACKAGED / name.removeprefix(_PACKAGED_PREFIX))
    for candidate in candidates:
        if candidate.is_file():
            return Path(os.path.abspath(candidate))
    known = {str(path.relative_to(folder)) for folder in folders[1:] for path in folder.rglob("*.gin")}
    same_file = [short for short in sorted(known) if Path(short).name == Path(name).name]
    near = same_file or nearest(name.removeprefix(_PACKAGED_PREFIX), sorted(known), 3, cutoff=0.6)
    hint = f"; the nearest names are {', '.join(near)}" if near else ""
    tried = ", ".join(str(folder) for folder in ([] if Path(name).is_absolute() else folders))
    raise FileNotFoundError(f"gin file {name!r} was not found{f' in {tried}' if tried else ''}{hint}")


def parse(files: Iterable[str], bindings: Iterable[str] = (), search_paths: Sequence[str] = ()) -> None:
    """Replaces gin's configuration by that of some files, overridden by bindings.

    Args:
      files: gin files, found as `resolve` finds them; later files override earlier ones.
      bindings: gin statements; they override the files and may name whatever the files import, as the files name it,
        or by the end of a name that the files use (`T5Config.embed_dim` for `network.T5Config.embed_dim`).
      search_paths: folders for `resolve`, for the files and for their includes.

    Raises:
      FileNotFoundError: a file that does not exist.
      ConfigError: anything wrong inside a file or a binding; gin's configuration is then empty.
    """
    find = functools.partial(resolve, search_paths=search_paths)
    gin_statements.clear()
    paths = [find(name) for name in files]
    try:
        found = [statement for path in paths for statement in gin_statements.parse_file(path, find)]
        with gin_config._parse_scope() as context:
            for statement in _import_order(found):
                context.process_import(statement)
            for binding in bindings:
                gin_statements.run_statements(binding, None, context, find)
            gin_config._IMPORTS.update(context.imports)
    except BaseException:
        gin_statements.clear()
        raise


def _import_order(found: Sequence[config_parser.ImportStatement]) -> list[config_parser.ImportStatement]:
    """Drops repeated imports, keeps the last of each, and puts dynamic registration first, where gin demands it."""
    last = list({statement.format(): statement for statement in reversed(found)}.values())[::-1]
    return sorted(last, key=lambda statement: statement.module != _DYNAMIC_REGISTRATION)


def configurable(function: Callable[..., Any], spelling: str = "") -> Callable[..., Any]:
    """Returns a function or class with the parsed configuration applied to its arguments.

    Args:
      function: as the gin files name it through an import. One of a module run by `python -m` is taken from that
        module's importable twin, the only one that gin files can reach.
      spelling: how gin files name it, where that is not its module and name.

    Returns:
      The function whose bound arguments need not be given.

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
    found = gin_config._inverse_lookup(function)
    return found is not None and found.selector in gin_statements.MENTIONED.values()


def bound_arguments(function: Callable[..., Any], spelling: str = "", given: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments that a call of `configurable(function)` would be given, its references called, but not the call.

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
        name = spelling or function.__name__
        flags = " ".join(f"--gin.{name}.{argument}=VALUE" for argument in missing)
        raise ConfigError(f"{name} needs {', '.join(missing)} and nothing gives a value: pass {flags}")
    return bound


def statements(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Macros or parameters and their values as gin statements.

    >>> statements({"TRAIN_STEPS": 10, "MODEL_DIR": "/tmp/run"})
    ('TRAIN_STEPS = 10', "MODEL_DIR = '/tmp/run'")
    """
    return tuple(f"{name} = {value!r}" for name, value in values.items())


def resolved_config() -> str:
    """Returns every binding as parsed, with macros replaced by their values, sorted; the text is itself valid gin."""
    return gin_config._config_str(gin_checks.with_macros_resolved(gin_config._CONFIG))


def operative_config() -> str:
    """Returns the bindings and defaults that calls have used so far, as gin text."""
    return gin.operative_config_str()


def bindings(config: str) -> list[str]:
    r"""The bindings of a configuration's text, one `name = value` each, however they were broken into lines.

    >>> bindings("# a comment\nimport x\nA = \\\n    {'b': 1,\n     'c': 2}\n")
    ["A = {'b': 1, 'c': 2}"]
    """
    joined = re.sub(r"( \\)?\n +", " ", config)
    return [line for line in joined.splitlines() if " = " in line and line[0] != "#"]
