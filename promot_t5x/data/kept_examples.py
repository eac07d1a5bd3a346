"""Examples of few-shot tasks on disk, so that the next evaluation of the same prompts reads no text.

A file holds the columns of one split as the arrays of an `.npz`, and what they were made of: data by their contents,
template, exemplars, vocabulary by its contents, lengths, versions, and our own code. Its name is a hash of that, so
whatever changes makes another file. The files that were not used for longest go once all take more than 2 GiB.
"""

import functools
import hashlib
import inspect
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import seqio
from absl import logging
from etils import epath

from promot_t5x.data import columns, cuts, definitions
from promot_t5x.data.columns import Columns, Ragged
from promot_t5x.runtime import files, settings
from promot_t5x.runtime.versions import versions
from promot_t5x.tasks import exemplars, few_shot, sources, vocabularies, wording

_BYTES = 2 * 2**30

_DECIDE_EXAMPLES = ("python", "seqio", "sentencepiece", "tfds", "promot_t5x")

_CODE = (columns, cuts, exemplars, few_shot, sources, vocabularies, wording, inspect.getmodule(lambda: None))

_MADE_OF = "made_of"


def cache_folder() -> epath.Path:
    """The folder of the examples, in `files.cache_folder()`."""
    return files.cache_folder() / "examples"


def made_of(task: seqio.Task, lengths: Mapping[str, int], split: str, limit: int | None) -> str | None:
    """Everything that determines the examples of a few-shot task, as JSON; None if not all of it is known.

    It is unknown for functions from elsewhere: a source, a column's reader, a vocabulary.

    Args:
      task: a task that `few_shot.prompter` knows.
      lengths, split, limit: see `evaluation_examples`.

    Raises:
      FileNotFoundError, ValueError: the source has no such data.
    """
    vocabulary = task.output_features["inputs"].vocabulary
    by_column = getattr(task.source, "_columns", {})
    readers = [part for column in by_column.values() for part in (column if isinstance(column, tuple) else (column,))]
    parts = [type(task.source), type(vocabulary), *(part for part in readers if not isinstance(part, str))]
    if not all(map(_is_ours, parts)):
        return None
    described = {
        "tasks": definitions.made_of(task.name, "task_name", [split]),
        "readers": by_column,
        "lengths": dict(lengths),
        "split": split,
        "limit": limit,
        "versions": {name: version for name, version in versions().items() if name in _DECIDE_EXAMPLES},
        "code": _code_hash(),
    }
    return json.dumps(settings.describe(described), sort_keys=True)


def _is_ours(part: Any) -> bool:
    """Whether a class or function is from this package or seqio."""
    module = getattr(getattr(part, "func", part), "__module__", None) or ""
    return module.startswith(("promot_t5x.", "seqio."))


@functools.cache
def _code_hash() -> str:
    return hashlib.sha256("".join(inspect.getsource(module) for module in _CODE if module).encode()).hexdigest()


def read(task_name: str, definition: str) -> Columns | None:
    """The examples that were kept; None if there are none or their file is damaged.

    Args:
      task_name: the seqio task.
      definition: what `made_of` returned.
    """
    file = _file(task_name, definition)
    if not file.exists():
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            examples = _columns({name: arrays[name] for name in arrays.files}, definition)
    except FileNotFoundError:  # another process has just made room
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        # numpy takes what is no archive for a pickle, and tells how to load it unsafely.
        reason = "no archive" if "pickle" in str(error) else str(error).split("\n")[0]
        logging.warning("%s is damaged (%s); the examples are read again", file, reason)
        return None
    if "://" not in os.fspath(file):
        try:
            os.utime(file)  # the files that were not used for longest go first
        except OSError:
            pass
    return examples


def write(task_name: str, definition: str, examples: Columns) -> None:
    """Keeps examples, or says in one line why they cannot be kept; several processes may do so at once.

    Args:
      task_name, definition: see `read`.
      examples: without NaN or objects.
    """
    file = _file(task_name, definition)
    arrays = _arrays(examples) | {_MADE_OF: _bytes(definition)}
    size = sum(array.nbytes for array in arrays.values())
    if size > _BYTES:
        return
    try:
        with files.whole_file(file) as stream:
            np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
        _make_room()
    except OSError as error:
        logging.log_first_n(
            logging.WARNING, "examples are not kept in %s (%s) and are read again next time; set PROMOT_CACHE", 1,
            file.parent, error.strerror or error,
        )  # fmt: skip


def _file(task_name: str, definition: str) -> epath.Path:
    return cache_folder() / f"{task_name[:100]}-{hashlib.sha256(definition.encode()).hexdigest()[:32]}.npz"


def _make_room() -> None:
    """Deletes the files that were not used for longest until the rest take at most _BYTES."""
    found = []
    for file in cache_folder().iterdir():
        try:
            stat = file.stat()
        except FileNotFoundError:  # another process has deleted or renamed it
            continue
        found.append((float(stat.mtime), stat.length, file))
    excess = sum(size for _, size, _ in found) - _BYTES
    for _, size, file in sorted(found):
        if excess <= 0:
            return
        file.unlink(missing_ok=True)
        excess -= size


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _arrays(examples: Columns) -> dict[str, np.ndarray]:
    """Columns as the arrays of a file."""
    arrays: dict[str, np.ndarray] = {}
    for kind, ragged in (("tokens", examples.tokens), ("texts", examples.texts)):
        for name, column in ragged.items():
            arrays |= {f"{kind}/{name}/flat": column.flat, f"{kind}/{name}/ends": column.ends_N}
    for name, (texts, ends_N) in examples.lists.items():
        arrays |= {f"lists/{name}/flat": texts.flat, f"lists/{name}/ends": texts.ends_N, f"lists/{name}/lists": ends_N}
    return arrays | {f"numbers/{name}": numbers_N for name, numbers_N in examples.numbers.items()}


def _columns(arrays: Mapping[str, np.ndarray], definition: str) -> Columns:
    """The columns of a file's arrays; raises ValueError or KeyError if they are not those of the definition."""
    if arrays[_MADE_OF].tobytes() != definition.encode():
        raise ValueError("it is of other examples")
    of_kind: dict[str, dict[str, Any]] = {"tokens": {}, "texts": {}, "lists": {}, "numbers": {}}
    for path, array in arrays.items():
        kind, name, part = [*path.split("/"), "", ""][:3]
        if part == "flat":
            column = Ragged(array, arrays[f"{kind}/{name}/ends"])
            of_kind[kind][name] = (column, arrays[f"{kind}/{name}/lists"]) if kind == "lists" else column
        elif kind == "numbers":
            of_kind[kind][name] = array
    return Columns(**of_kind)
