"""From gin files and bindings to a parsed configuration, with one clear sentence for every mistake.

A binary calls `start`, then what `configurable` returns, all inside `run_main`. Files and their includes are found by
this module (`resolve`), never by gin's own package reader; `gin_parsing` carries their statements out, `gin_checks`
finds what they lack.

gin keeps one symbol table per file; bindings from flags get a table of their own holding the imports of all files, so
that `--gin.network.T5Config.embed_dim=64` addresses what the files call `network.T5Config`. Where two files give one
name to two modules, the including file's and then the later file's meaning holds.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import inspect
import logging as python_logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gin
from absl import flags as absl_flags
from absl import logging
from gin import config as gin_config
from gin import config_parser

from promot_t5x import distributed, gin_checks, gin_parsing, records
from promot_t5x.flags import ConfigError, Invocation, parse_flags

_PACKAGE = str(Path(__file__).resolve().parent)
_PACKAGED = Path(__file__).resolve().parent / "gin"
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
    near = same_file or difflib.get_close_matches(name.removeprefix(_PACKAGED_PREFIX), sorted(known), n=3)
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
    gin_parsing.clear()
    paths = [find(name) for name in files]
    try:
        found = [statement for path in paths for statement in gin_parsing.parse_file(path, find)]
        with gin_config._parse_scope() as context:
            for statement in _import_order(found):
                context.process_import(statement)
            for binding in bindings:
                gin_parsing.run_statements(binding, None, context, find)
            gin_config._IMPORTS.update(context.imports)
    except BaseException:
        gin_parsing.clear()
        raise


def _import_order(found: Sequence[config_parser.ImportStatement]) -> list[config_parser.ImportStatement]:
    """Drops repeated imports, keeps the last of each, and puts dynamic registration first, where gin demands it."""
    last = list({statement.format(): statement for statement in reversed(found)}.values())[::-1]
    return sorted(last, key=lambda statement: statement.module != _DYNAMIC_REGISTRATION)


def configurable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function or class with the parsed configuration applied to its arguments.

    Args:
      function: as the gin files name it through an import. One of a module run by `python -m` is taken from that
        module's importable twin, the only one that gin files can reach.

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
    name = f"{module.split('.')[-1]}.{function.__name__}"
    if not is_configured(function):
        raise ConfigError(
            f"the gin files never mention {module}.{function.__name__}: give a --gin_file that imports {module} and "
            f"binds a parameter, such as `{name}.{next(iter(inspect.signature(function).parameters), 'x')} = ...`"
        )
    return gin.get_configurable(function)


def is_configured(function: Callable[..., Any]) -> bool:
    """Whether a parsed file or binding mentions a function or class."""
    found = gin_config._inverse_lookup(function)
    return found is not None and found.selector in gin_parsing.MENTIONED.values()


def bound_arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a call of `configurable(function)` would be given, its references called, but not the call.

    Raises:
      ConfigError: no parsed file or binding mentions it.
    """
    configurable(function)
    return gin.get_bindings(function)


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


def start(argv: Sequence[str], parser: argparse.ArgumentParser) -> Invocation:
    """What every binary does first: reads flags and gin files, finds missing macros, prints them for a dry run.

    Args:
      argv: the arguments without the program's name.
      parser: from `flags.flag_parser`, with the binary's own options added.

    Returns:
      The command as parsed.

    Raises:
      ConfigError, FileNotFoundError: a mistake in a flag or gin file, in one sentence.
    """
    invocation = parse_flags(argv, parser)
    configure(invocation)
    return invocation


def configure(invocation: Invocation) -> None:
    """Joins the command's processes and makes gin's configuration its own; the second half of `start`."""
    distributed.start(invocation.processes)
    parse(invocation.gin_files, invocation.gin_bindings, invocation.gin_search_paths)
    gin_checks.check_macros()
    if invocation.dry_run:
        print(resolved_config())
    if invocation.tfds_data_dir:
        import seqio  # heavy, and only this flag needs it here

        seqio.set_tfds_data_dir_override(invocation.tfds_data_dir)


def run_main(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a binary's main function; a user's mistake is printed as `error: <sentence>` and gives exit code 1.

    Args:
      main: takes the arguments without the program's name, returns an exit code or None for success.
      argv: defaults to the process's arguments.

    Returns:
      The exit code. Errors that are not a user's (and all of them with PROMOT_TRACEBACK=1) keep their traceback.
    """
    _show_progress()
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except Exception as error:
        sentence = _user_error(error)
        if sentence is None:
            raise
        if os.environ.get("PROMOT_TRACEBACK") == "1":
            traceback.print_exc()
        hint = " (PROMOT_TRACEBACK=1 shows where it was raised)" if _in_other_words(error) else ""
        print(f"error: {sentence}{hint}", file=sys.stderr)
        return 1


def _in_other_words(error: Exception) -> bool:
    """Whether a sentence is a library's, which may not say enough."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, ValueError) and not raised_in.startswith(_PACKAGE)


def _show_progress() -> None:
    """Lets this package's own progress lines through, and warnings from anywhere; libraries' notices stay quiet."""
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["promot_t5x"])  # absl logs nothing of its own accord before its flags are parsed
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not handler.filters:
        handler.addFilter(_worth_showing)
    if getattr(sys.unraisablehook, "func", None) is not _skip_closed_loops:
        sys.unraisablehook = functools.partial(_skip_closed_loops, following=sys.unraisablehook)


def _worth_showing(record: python_logging.LogRecord) -> bool:
    # Orbax looks for facts of its own beside every item of a checkpoint and warns that ours has none there.
    harmless = str(record.msg).startswith("Metadata file does not exist")
    return _PACKAGE in record.pathname or (record.levelno >= python_logging.WARNING and not harmless)


def _skip_closed_loops(unraisable: Any, *, following: Callable[[Any], None]) -> None:
    """Drops the traceback of a read that Orbax still had under way when a damaged checkpoint stopped it."""
    if str(unraisable.exc_value) != "Event loop is closed":
        following(unraisable)


_MISTAKES = (
    *(ValueError, FloatingPointError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, records.NoRoomError),
    TimeoutError,
)


def _user_error(error: Exception) -> str | None:
    """Returns the sentence for a user's mistake, without what gin appends to it, or None for any other error."""
    text = str(error)
    message = re.split(r"\n  (?:In call to configurable|No values supplied by Gin)", text)[0]
    unset = re.match(r"(?:.*\.)?(\w+?)(?:\.__init__|\.__new__)?\(\) missing \d+ required .*?: (.*)", message)
    inside = re.search(r"In call to configurable '(.*?)' \(.*?\)(?: in scope '(.*)')?", text)
    if isinstance(error, TypeError) and unset and inside and unset[1] == inside[1]:
        if inside[1] == "macro":
            return f"macro {inside[2]} is used but defined nowhere: pass --gin.{inside[2]}=VALUE"
        return _value_needed(inside[1], re.findall(r"'(\w+)'", unset[2]))
    if isinstance(error, RuntimeError):
        required = re.match(r"Required bindings for `(.*)` not provided in config: (.*)", message)
        return _value_needed(required[1], re.findall(r"'(\w+)'", required[2])) if required else None
    if isinstance(error, _MISTAKES):
        return re.sub(r"^\[Errno \d+\] ", "", message)
    return None


def _value_needed(name: str, parameters: Sequence[str]) -> str:
    written = next((known for known in gin_parsing.MENTIONED if known.split(".")[-1] == name.split(".")[-1]), name)
    flags = " ".join(f"--gin.{written}.{parameter}=VALUE" for parameter in parameters)
    return f"{written} needs {', '.join(parameters)} and nothing gives a value: pass {flags}"
