"""The metadata of our checkpoints: JSON, read strictly, and with a checksum of its own."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from promot_t5x.runtime import files, strict_json

FORMAT = "promot_t5x 1"

PREFIX = "checkpoint"  # of the names of a run's checkpoints

_ORBAX_FILE = "_CHECKPOINT_METADATA"  # of Orbax, which opens it with the run's folder and does not expect damage

_MISSING = object()


class MisnamedError(ValueError):
    """A run's checkpoint has the name of another step."""


def step_in(name: str) -> int | None:
    """The step in the name of a checkpoint's folder, None for another name.

    >>> step_in("checkpoint_20"), step_in("damaged_checkpoint_20")
    (20, None)
    """
    match = re.fullmatch(rf"{PREFIX}_(\d+)", name)
    return int(match[1]) if match else None


def sealed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as they are stored: with their format and checksum.

    >>> sealed({"step": 3, "score": None})
    {'format': 'promot_t5x 1', 'step': 3, 'score': None, 'crc32': 'b5aba018'}
    """
    described = {"format": FORMAT, **metadata}
    return {**described, strict_json.CHECKSUM: _checksum(json.loads(json.dumps(described)))}


def _checksum(metadata: Mapping[str, Any]) -> str:
    """A CRC-32 of everything but the base's path, which may be corrected by hand: the base has a fingerprint."""
    covered = {key: value for key, value in metadata.items() if key != strict_json.CHECKSUM}
    if isinstance(base := covered.get("base"), dict):
        covered["base"] = {key: value for key, value in base.items() if key != "path"}
    return strict_json.checksum(covered)


def read_metadata(folder: epath.PathLike) -> dict[str, Any]:
    """A checkpoint's metadata: format, step, score, stage, base (path and fingerprint), network, batches consumed.

    Raises:
      MisnamedError: it is a run's checkpoint, and the step in the folder's name is another one.
      ValueError: the folder is not a checkpoint of this format, or is damaged.
    """
    file = epath.Path(folder) / "metadata" / "metadata"
    try:
        metadata = strict_json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = type(error).__name__ if isinstance(error, OSError) else f"it is not JSON ({error})"
        raise ValueError(f"{folder} is not a readable checkpoint: {reason} reading {file}.") from error
    stored_format = metadata.get("format") if isinstance(metadata, dict) else None
    if stored_format != FORMAT:
        raise ValueError(f"{folder} has the checkpoint format {stored_format!r}; expected {FORMAT!r}.")
    for key, (fits, expected) in _FIELDS.items():
        if not fits(metadata.get(key, _MISSING)):
            value = repr(metadata[key]) if key in metadata else "missing"
            raise ValueError(f"{file} is damaged: {key} is {value}, expected {expected}; copy the checkpoint again.")
    if metadata.get(strict_json.CHECKSUM, (checksum := _checksum(metadata))) != checksum:
        raise ValueError(f"{file} is damaged: it does not have its checksum; copy the checkpoint again.")
    named, step = step_in(epath.Path(folder).name), metadata["step"]
    if "opt_state" in metadata and named not in (None, step):  # exports have none, and any name
        raise MisnamedError(
            f"{folder} holds the checkpoint of step {step}, expected that of step {named}; rename it to "
            f"{PREFIX}_{step}, or move it away."
        )
    if (orbax_file := epath.Path(folder) / _ORBAX_FILE).exists():
        files.read_json(orbax_file)
    return metadata


def _names(*keys: str) -> Callable[[Any], bool]:
    """A check that a value is null, missing, or an object with a string under each of these keys."""
    return lambda value: (
        value in (None, _MISSING) or isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)
    )


def _is_of_leaves(value: Any) -> bool:
    return value is _MISSING or isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())


# The metadata that are read again: whether a value is valid, and what is expected.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (lambda value: type(value) is int and value >= 0, "a number of steps"),
    "score": (lambda value: value is None or type(value) in (int, float), "a number or null"),
    "base": (_names("path", "fingerprint"), "null or an object with path and fingerprint"),
    "network": (_names("class"), "null or an object with a class"),
    "token_ids": (_names(), "null or an object"),
    "vocabulary": (_names("name", "hash"), "null or an object with name and hash"),
    "opt_state": (lambda value: value is _MISSING or isinstance(value, list), "a list of names"),
    "digests": (_is_of_leaves, "objects of leaves"),
}
