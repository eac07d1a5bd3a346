"""Executes the statements of gin files one by one, so that every mistake is reported with its file and line.

The result is gin's global configuration. This module also records where each binding was made (`ORIGINS`) and which
configurables were named (`MENTIONED`). gin's own file reader is never used.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import tokenize
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gin
from gin import config as gin_config
from gin import config_parser

from promot_t5x.configuration.flags import ConfigError
from promot_t5x.configuration.renamed import new_name
from promot_t5x.runtime.text import did_you_mean


class Origin(NamedTuple):
    """Where a binding was made (`file:line` or the flag) and how its name is written there."""

    where: str
    written: str
    from_flag: bool


# gin's configuration is global, and so are these records of it; `clear` empties all three.
ORIGINS: dict[tuple[str, str, str], Origin] = {}  # scope, gin's full selector, parameter -> its last binding

MENTIONED: dict[str, str] = {}  # selector as written in a file or flag -> gin's full selector


_NOT_IMPORTED = re.compile(r"'(.*)' was not provided by an import statement")

_LONG = 200  # characters of a flag that are quoted in an error


def clear() -> None:
    """Empties gin's configuration and the records of it."""
    gin.clear_config()
    ORIGINS.clear()
    MENTIONED.clear()


@contextlib.contextmanager
def separate() -> Iterator[None]:
    """gin's configuration is empty at first and a caller's own again afterwards, with its records and its lock."""
    held: tuple[Any, ...] = (
        *(gin_config._CONFIG, gin_config._SINGLETONS, gin_config._IMPORTS, gin_config._OPERATIVE_CONFIG),
        *(ORIGINS, MENTIONED),
    )
    before = [(container, container.copy()) for container in held]
    was_locked = gin.config_is_locked()
    clear()
    try:
        yield
    finally:
        clear()
        for container, contents in before:
            container.update(contents)
        gin_config._set_config_is_locked(was_locked)


class NotImportedError(ConfigError):
    """A flag names a module that no gin file imports; those of a recipe's runs may import it."""


def parse_file(path: Path, find: Callable[[str], Path], parents: tuple[Path, ...] = ()) -> list[Any]:
    """Executes one file, with its own symbol table.

    Args:
      path: the file.
      find: returns the file that an `include` names, or raises FileNotFoundError.
      parents: the files that include this one, outermost first.

    Returns:
      The import statements of its includes, followed by its own.

    Raises:
      ConfigError: the file is not text, or a statement is wrong; the sentence has the file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin files with a byte order mark
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a gin file: its bytes are not UTF-8 text") from error
    with gin_config._parse_scope() as context:
        included = run_statements(text, path, context, find, (*parents, path))
        gin_config._IMPORTS.update(context.imports)
    return included + context.imports


def run_statements(
    text: str, path: Path | None, context: Any, find: Callable[[str], Path], parents: tuple[Path, ...] = ()
) -> list[Any]:
    """Executes the statements of a file or a flag, in order.

    Args:
      text: the statements.
      path: the file that holds them, or None for a flag, which may also use the ends of names (see `gin_files.parse`).
      context: gin's symbol table, from `gin.config._parse_scope`; imports are added to it.
      find: returns the file that an `include` names, or raises FileNotFoundError.
      parents: the files being parsed, this one last; none of them may be included again.

    Returns:
      The import statements of the included files.

    Raises:
      ConfigError: a statement is wrong; the sentence has its file and line, or the flag.
    """
    included: list[Any] = []

    def where(line: int) -> str:
        return f"{path}:{line}" if path else f"flag {text.strip() if len(text) < _LONG else text[:_LONG] + '…'!r}"

    for statement in _statements(text, where, context):
        place = where(statement.location.line_num)
        if isinstance(statement, config_parser.IncludeStatement):
            try:
                target = find(statement.filename)
            except FileNotFoundError as error:
                raise ConfigError(f"{place}: {error}") from None
            if target in parents:
                raise ConfigError(f"{place}: {statement.filename!r} includes itself: remove one of the includes")
            included += parse_file(target, find, parents)
        elif isinstance(statement, config_parser.ImportStatement):
            _import(statement, place, context)
        elif isinstance(statement, config_parser.BlockDeclaration):
            _look_up(statement.selector, place, context)
        else:
            _bind(statement, place, context, from_flag=path is None)
    return included


def _statements(text: str, where: Callable[[int], str], context: Any) -> Iterator[Any]:
    """Yields a text's gin statements; syntax errors and unknown references become ConfigErrors."""
    try:
        yield from config_parser.ConfigParser(text, gin_config.ParserDelegate())
    except RecursionError as error:
        raise ConfigError(f"{where(1)}: gin syntax error: brackets are nested too deeply") from error
    except SyntaxError as error:
        token = re.search(r"Failed to parse token '(.*)'", error.msg, re.DOTALL)
        message = f"{token[1]!r} is not a gin value (a string needs quotes)" if token else error.msg.rstrip(".")
        line = f" in `{error.text.strip()}`" if error.text and error.text.strip() else ""
        raise ConfigError(f"{where(error.lineno or 1)}: gin syntax error: {message}{line}") from error
    except tokenize.TokenError as error:
        message, (line_number, _) = error.args
        raise ConfigError(f"{where(line_number)}: gin syntax error: {message}: close the bracket or quote") from error
    except (NameError, AttributeError, ValueError) as error:  # a reference (@name) in a value
        line_number = re.search(r"\n  In .*line (\d+)", str(error))
        number = int(line_number[1]) if line_number else 1
        references = re.findall(r"@(?:[\w/]*/)?([\w.]+)", text.split("\n")[number - 1])
        renamed = "".join(dict.fromkeys(map(new_name, references)))
        raise _error_class(error)(f"{where(number)}: {_explain(error, context)}{renamed}") from error


def _import(statement: config_parser.ImportStatement, place: str, context: Any) -> None:
    try:
        context.process_import(statement)
    except ImportError as error:
        raise ConfigError(
            f"{place}: `{statement.format()}` failed: {error} (gin imports modules, not names inside them)"
            f"{new_name(statement.module)}"
        ) from error
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{place}: `{statement.format()}` failed: {' '.join(str(error.args[0]).split())}") from error
    except (Exception, SystemExit) as error:  # the module may be the user's, and raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        raise ConfigError(f"{place}: `{statement.format()}` failed: {reason}") from error


def _look_up(selector: str, place: str, context: Any) -> Any:
    """gin's record of a configurable named in a file or flag; registers it if necessary."""
    try:
        record = context.get_configurable(selector)
    except (NameError, AttributeError, ValueError) as error:
        raise _error_class(error)(f"{place}: {_explain(error, context)}{new_name(selector)}") from error
    if not record:
        raise ConfigError(
            f"{place}: nothing called {selector!r} is known: import its module after "
            "`from __gin__ import dynamic_registration`"
        )
    MENTIONED[selector] = record.selector
    return record


def _bind(statement: config_parser.BindingStatement, place: str, context: Any, *, from_flag: bool) -> None:
    """Executes `NAME = value` (a macro) or `selector.parameter = value`."""
    scope, selector, parameter, value, _ = statement
    for reference in gin_config.iterate_references({"": value}):
        if reference.configurable is not None:
            MENTIONED[reference.selector] = reference.configurable.selector
    if not parameter:
        macro = f"{scope}/{selector}" if scope else selector
        gin.bind_parameter((macro, "gin.macro", "value"), value)
        ORIGINS[macro, "gin.macro", "value"] = Origin(place, macro, from_flag)
        return
    if from_flag and selector not in MENTIONED:
        longer = [written for written in MENTIONED if written.endswith(f".{selector}")]
        selector = longer[0] if len({MENTIONED[written] for written in longer}) == 1 else selector
    record = _look_up(selector, place, context)
    try:
        gin.bind_parameter((scope, selector, parameter), value)
    except ValueError as error:
        if "doesn't have a parameter" not in str(error):
            raise ConfigError(f"{place}: {error}") from error
        names = [name for name in inspect.signature(record.wrapped).parameters if name != "self"]
        raise ConfigError(
            f"{place}: {selector} has no parameter {parameter!r}{did_you_mean(parameter, names)}; "
            f"it has {', '.join(names) or 'none'}"
        ) from error
    written = f"{scope}/{selector}.{parameter}" if scope else f"{selector}.{parameter}"
    ORIGINS[scope, record.selector, parameter] = Origin(place, written, from_flag)


def _error_class(error: Exception) -> type[ConfigError]:
    return NotImportedError if _NOT_IMPORTED.match(str(error)) else ConfigError


def _explain(error: Exception, context: Any) -> str:
    """Says, from gin's message, which name of a selector is unknown and which one is similar."""
    message = str(error).split("\n  In ")[0].rstrip(".")
    imports = {statement.bound_name(): statement for statement in context.imports}
    imports.pop("dynamic_registration", None)
    if unknown := _NOT_IMPORTED.match(message):
        imported = f"imported are {', '.join(sorted(imports))}" if imports else "nothing is imported"
        return f"{unknown[1]!r} is not an imported module{did_you_mean(unknown[1], imports)}; {imported}"
    if unresolved := re.match(r"Couldn't resolve selector ([\w.]+);", message):
        first, *rest = unresolved[1].split(".")
        if first not in imports:  # gin's own names, such as gin.macro
            return message
        statement = imports[first]
        holder: Any = importlib.import_module(statement.module if statement.is_from or statement.alias else first)
        path = first
        for name in rest:
            if not hasattr(holder, name):
                return f"{path} has no attribute {name!r}{did_you_mean(name, dir(holder))}"
            holder, path = getattr(holder, name), f"{path}.{name}"
    return message
