"""The sentence for an error that its reader can correct: a wrong value, a path that cannot be used, absent hardware."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from pathlib import Path

from promot_t5x.configuration import gin_files
from promot_t5x.runtime import arguments

_PACKAGE = str(Path(__file__).parents[1])  # as tracebacks name it, so not resolved

_MISTAKES = (ValueError, FloatingPointError, OSError, arguments.WrongTypeError)

_UNUSABLE = {
    errno.ENOENT: "does not exist; check the path",
    errno.EEXIST: "exists and is not a folder; give another path",
    errno.ENOTDIR: "cannot be used, as a part of this path is a file, not a folder; give another path",
    errno.EISDIR: "is a folder, expected a file; give another path",
    errno.EACCES: "cannot be used: permission denied; change its permissions or its folder's, or give another path",
    errno.EPERM: "cannot be used: the operation is not permitted; give another path",
    errno.EROFS: "cannot be written: its file system is read-only; give another path",
    errno.ENAMETOOLONG: "cannot be used, as one of its names is too long for the file system; give a shorter path",
}


def sentence(error: BaseException) -> str | None:
    """What to tell the person who typed a command, without gin's additions; None for an error of the program itself.

    >>> sentence(ValueError("BATCH_SIZE is 0, expected a positive number."))
    'BATCH_SIZE is 0, expected a positive number.'
    >>> sentence(NotADirectoryError(20, "Not a directory", "a.txt/run"))
    'a.txt/run cannot be used, as a part of this path is a file, not a folder; give another path'
    """
    message = re.split(r"\n  (?:In call to configurable|No values supplied by Gin)", str(error))[0]
    if unset := _without_value(error, message):
        return unset
    if bucket := _of_bucket(error, message):
        return bucket
    if hardware := _of_hardware(error, message):
        return hardware
    if unusable := _of_path(error):
        return unusable
    if isinstance(error, _MISTAKES):
        return re.sub(r"^\[Errno \d+\] ", "", message) or type(error).__name__
    return None


def is_from_library(error: BaseException) -> bool:
    """Whether the message is a library's, which may not say enough."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    is_reported = isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is not None)
    return is_reported and not raised_in.startswith(_PACKAGE) and not _of_path(error)


def _of_path(error: BaseException) -> str | None:
    """The sentence about a path that the operating system refuses."""
    while type(error).__base__ is type(error.__context__):  # gin's copy, which has a message but no attributes
        error = error.__context__  # pyright: ignore[reportAssignmentType]
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{path} {_UNUSABLE.get(error.errno, f'cannot be used: {error.strerror}; give another path')}"


def _without_value(error: BaseException, message: str) -> str | None:
    """The sentence about an argument or macro that no gin file or flag gives a value."""
    unset = re.match(
        r"(?:.*\.)?(?!__init__|__new__)(\w+?)(?:\.__init__|\.__new__)?\(\) missing \d+ required .*?: (.*)", message
    )
    inside = re.search(
        r"In call to configurable '(.*?)' \(<(?:function|class) '?([\w.]+).*?\)(?: in scope '(.*)')?", str(error)
    )
    if isinstance(error, TypeError) and unset and inside and unset[1] == inside[2].split(".")[-1]:
        if inside[1] == "macro":
            return f"macro {inside[3]} is used but defined nowhere: pass --gin.{inside[3]}=VALUE"
        return gin_files.value_needed(inside[1], re.findall(r"'(\w+)'", unset[2]))
    required = re.match(r"Required bindings for `(.*)` not provided in config: (.*)", message)
    if isinstance(error, RuntimeError) and required:
        return gin_files.value_needed(required[1], re.findall(r"'(\w+)'", required[2]))
    return None


def _of_bucket(error: BaseException, message: str) -> str | None:
    """The sentence about a path in a bucket that TensorFlow's file systems cannot reach."""
    path = re.search(r"\w+://[^\s')]*", message)
    if not type(error).__module__.startswith("tensorflow.") or path is None:
        return None
    if "not implemented" in message:
        return f"{path[0]} is in a file system that this program cannot read; expected a local path or gs://…"
    reason = re.split(r"error details: |\n", message)
    return (
        f"{path[0]} could not be reached ({reason[min(1, len(reason) - 1)].strip()}); check the network, the bucket's "
        "name and your rights (gcloud auth application-default login)"
    )


def _of_hardware(error: BaseException, message: str) -> str | None:
    """The sentence about devices that JAX does not find."""
    if not isinstance(error, RuntimeError | AssertionError) or "jax" not in sys.modules:
        return None
    if not message.startswith("Unable to initialize backend") and not (
        isinstance(error, AssertionError) and _finds_no_devices()
    ):
        return None
    jax = sys.modules["jax"]
    platforms = jax.config.jax_platforms
    reason = re.sub(r" \(set JAX_PLATFORMS=.*", "", message).replace("\n", " ")
    return (
        f"JAX finds no devices with JAX_PLATFORMS={platforms or ''}{f' ({reason})' if reason else ''}; set it to cpu, "
        "gpu or tpu, whichever this machine has, or unset it"
    )


def _finds_no_devices() -> bool:
    try:
        sys.modules["jax"].devices()
    except (RuntimeError, AssertionError):
        return True
    return False
