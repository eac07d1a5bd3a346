"""Compiled programs kept on disk, so that the next process need not compile them again.

JAX writes and reads them, under a hash of the program, the devices and the compiler. Here are their folder, the limit
of its size, and what happens when it is damaged or full.
"""

import contextlib
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from absl import logging
from etils import epath

from promot_t5x.runtime import files

_BYTES = 4 * 2**30  # the programs that were not used for longest go first

_FOLDER = "JAX_COMPILATION_CACHE_DIR"


def keep() -> None:
    """Keeps what is compiled from now on in $PROMOT_CACHE/compiled; call it before anything is compiled.

    JAX's own variables are left as they are: JAX_COMPILATION_CACHE_DIR names another folder, such as one in a bucket
    that all hosts of a pod share, and JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. A folder that cannot be written
    costs one line and nothing else.
    """
    own = _FOLDER not in os.environ
    if own:
        folder = files.cache_folder() / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logging.warning("compiled programs are not kept: %s cannot be made (%s); set PROMOT_CACHE", folder, error)
            return
        os.environ[_FOLDER] = os.fspath(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_BYTES))
        # A stage has hundreds of small programs before its step; together they take as long to compile.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        if jax := sys.modules.get("jax"):  # it has read its variables already
            jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
            jax.config.update("jax_compilation_cache_max_size", int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]))
            seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    warnings.showwarning = functools.partial(_show, following=warnings.showwarning, own=own, told=set())


def _show(message: Any, *args: Any, following: Callable[..., None], own: bool, told: set[str], **kwargs: Any) -> None:
    """Shows a warning; of JAX's about the folder only the first of a kind, as one line. Empties our own if damaged."""
    trouble = re.match(r"Error (reading|writing) persistent compilation cache entry for '.*?': (.*)", str(message))
    if trouble is None:
        following(message, *args, **kwargs)
        return
    doing, reason = trouble.groups()
    if doing == "reading" and own and not re.match(r"(\w*Error: )?\[Errno", reason):
        _clear()  # damaged; what the file system refuses would be refused again, and others may read it
    if doing in told:
        return
    told.add(doing)
    consequence = "these programs are compiled again" if doing == "reading" else "the next start compiles again"
    logging.warning("%s a compiled program in %s failed (%s); %s", doing, os.environ[_FOLDER], reason, consequence)


def _clear() -> None:
    """Deletes all programs: JAX replaces none that exists, so a damaged one would fail at every start."""
    for file in epath.Path(os.environ[_FOLDER]).glob("*-cache"):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
