"""Soft prompts in separate files (`checkpoints.SOFT_PROMPT_FORMATS`): reads, writes and attaches them to a model."""

import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from promot_t5x.checkpoints import digests, stored_leaves
from promot_t5x.checkpoints.huggingface import peft, safetensors_file
from promot_t5x.checkpoints.sources import Source
from promot_t5x.models import parameter_names
from promot_t5x.runtime import arguments, files, strict_json

WEIGHTS, DESCRIPTION = (f"{parameter_names.SOFT_PROMPT}.{ending}" for ending in ("safetensors", "json"))


def is_prompt(path: epath.Path) -> bool:
    """Whether a path is a soft prompt in one of these formats, also the folder of a prompt-tuning run."""
    if path.suffix in (".npy", ".safetensors") and path.is_file():
        return True
    return (path / "adapter_config.json").is_file() or (path / WEIGHTS).is_file()


def read(path: epath.Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(prompt_NxPxD, the contents of the `soft_prompt.json` next to it, empty if there is none).

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: it is not a soft prompt, is damaged, or holds numbers that are not finite.
    """
    is_adapter = (path / "adapter_config.json").is_file()
    prompt_NxPxD = peft.read_adapter(path) if is_adapter else load(path)
    description = (path if path.is_dir() else path.parent) / DESCRIPTION
    if is_adapter or path.suffix == ".npy" or not description.is_file():
        return prompt_NxPxD, {}
    return prompt_NxPxD, _description(description)


def _description(file: epath.Path) -> dict[str, Any]:
    values = files.read_json(file)
    base = values.get("base")
    if base is not None and not isinstance(base, dict):
        raise ValueError(f"{file} is damaged, it does not describe a soft prompt (base is {base!r}); copy it again.")
    return values


def check_format(to_format: str, prompt_NxPxD: np.ndarray) -> None:
    """Raises ValueError for several prompts if the format is PEFT's."""
    if to_format == "peft" and len(prompt_NxPxD) != 1:
        raise ValueError(
            f"There are {len(prompt_NxPxD)} soft prompts, but a PEFT adapter holds one; choose another format."
        )


def write(path: epath.Path, to_format: str, prompt_NxPxD: np.ndarray, description: dict[str, Any]) -> None:
    """Writes soft prompts.

    Args:
      path: the file for npy, else the folder.
      to_format: one of `checkpoints.SOFT_PROMPT_FORMATS`.
      prompt_NxPxD: the prompts; a PEFT adapter holds only one.
      description: the contents of `soft_prompt.json`; a PEFT adapter takes the base model's path from it.

    Raises:
      ValueError: see `check_format`.
    """
    check_format(to_format, prompt_NxPxD)
    if to_format == parameter_names.SOFT_PROMPT:
        save(path, prompt_NxPxD, description)
    elif to_format == "npy":
        content = io.BytesIO()
        np.save(content, prompt_NxPxD[0] if len(prompt_NxPxD) == 1 else prompt_NxPxD, allow_pickle=False)
        files.write_whole(path, content.getvalue())
    else:
        base = (description.get("base") or {}).get("path", "")
        peft.write_adapter(path, prompt_NxPxD[0], base)


def attached(source: Source, path: epath.Path, force: bool = False) -> Source:
    """A model with a soft prompt from a file, which replaces the model's own if it has one.

    Args:
      source: the model.
      path: the prompt.
      force: also attach a prompt that was trained on another model.

    Raises:
      ValueError: the prompt is of another width, or was trained on a model with another fingerprint.
    """
    prompt_NxPxD, description = read(path)
    check_width(prompt_NxPxD, path, source.config.embed_dim, source.folder)
    trained_on = (description.get("base") or {}).get("fingerprint")
    if trained_on and not force and trained_on != source.fingerprint:
        raise ValueError(
            f"The soft prompt {path} was trained on a model with fingerprint {trained_on}, the one in {source.folder} "
            f"has {source.fingerprint}; give the prompt's own model, or --force."
        )
    leaves = {**source.leaves, parameter_names.PROMPT: stored_leaves.from_array(prompt_NxPxD, str(path))}
    return dataclasses.replace(source, leaves=dict(sorted(leaves.items())))


def check_width(prompt_NxPxD: np.ndarray, path: epath.PathLike, embed_dim: int, model_folder: epath.PathLike) -> None:
    """Checks that a soft prompt fits a model.

    Args:
      prompt_NxPxD: the prompts.
      path: the prompts' file, for the message.
      embed_dim: the model's width.
      model_folder: the model's folder, for the message.

    Raises:
      ValueError: the widths differ.
    """
    width = prompt_NxPxD.shape[-1]
    if width != embed_dim:
        raise ValueError(
            f"The soft prompt {path} is {width} wide, the model in {model_folder} is {embed_dim} wide; "
            "give a prompt that was trained on this model."
        )


def _checksum(prompt_NxPxD: np.ndarray) -> str:
    return f"{digests.crc32(prompt_NxPxD):08x}"


def _check(prompt_NxPxD: np.ndarray, source: epath.PathLike) -> None:
    """Checks that an array is a soft prompt.

    Args:
      prompt_NxPxD: the array.
      source: where it was read or is to be written.

    Raises:
      ValueError: other dimensions, no vector, another dtype, or numbers that are not finite.
    """
    if prompt_NxPxD.ndim != 3:
        raise ValueError(
            f"{source} holds an array of shape {prompt_NxPxD.shape}; a prompt is [length, embed] or [N, P, D]."
        )
    if not prompt_NxPxD.size or prompt_NxPxD.dtype not in stored_leaves.DTYPES:
        raise ValueError(
            f"{source} holds {prompt_NxPxD.dtype}{prompt_NxPxD.shape}, expected a prompt of at least one vector in one "
            f"of {', '.join(map(str, stored_leaves.DTYPES))}; save it again."
        )
    stored_leaves.check_finite(prompt_NxPxD, source)


@arguments.checked
def save(folder: str | os.PathLike[str], prompt_NxPxD: np.ndarray | jax.Array, description: Mapping[str, Any]) -> None:
    """Writes `soft_prompt.safetensors` and `soft_prompt.json` into a folder, each atomically.

    Args:
      folder: created if missing.
      prompt_NxPxD: the prompts.
      description: what a reader needs to use them: path and fingerprint of the base checkpoint, task, step.

    Raises:
      ValueError: what `load` would refuse, or a description that JSON cannot hold; nothing is written then.
    """
    folder, prompt_NxPxD = files.absolute(folder), np.asarray(prompt_NxPxD)
    _check(prompt_NxPxD, folder / WEIGHTS)
    sizes = dict(zip(("prompts", "length", "embed"), prompt_NxPxD.shape, strict=True))
    files.write_json(folder / DESCRIPTION, {**sizes, **description, **sizes})  # first: it may have no JSON form
    tensors = {parameter_names.PROMPT: np.ascontiguousarray(prompt_NxPxD)}
    checksum = {strict_json.CHECKSUM: _checksum(prompt_NxPxD)}
    files.write_whole(folder / WEIGHTS, safetensors.numpy.save(tensors, metadata=checksum))


@arguments.checked
def load(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads prompt_NxPxD from what `save` wrote (file or folder), or from a .npy of shape [P, D] or [N, P, D].

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file does not hold a prompt, or holds numbers that are not finite.
    """
    file = files.absolute(path)
    if file.is_dir():
        file = file / WEIGHTS
    if not file.exists():
        raise FileNotFoundError(f"There is no soft prompt at {file}; expected {WEIGHTS} or a .npy file.")
    files.check_not_lfs_pointer(file)
    try:
        if file.suffix == ".npy":
            with file.open("rb") as stream:
                prompt = np.lib.format.read_array(stream, allow_pickle=False)  # np.load would also accept archives
        else:
            content = file.read_bytes()
            # Not safetensors.numpy.load, which does not support bfloat16.
            tensors = dict(safetensors.deserialize(content))
            stored = tensors.pop(parameter_names.PROMPT)
            if tensors:
                raise ValueError(f"it also holds {', '.join(sorted(tensors)[:3])}, expected a prompt alone")
            prompt = np.frombuffer(stored["data"], safetensors_file.DTYPES[stored["dtype"]]).reshape(stored["shape"])
            checksum = safetensors_file.metadata(content).get(strict_json.CHECKSUM)
            if checksum not in (None, _checksum(prompt)):  # files of earlier versions have none
                raise ValueError("its numbers differ from those that were saved; copy it again")
    except (KeyError, ValueError, EOFError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} does not hold a soft prompt: {error}.") from error
    if prompt.ndim == 2:
        prompt = prompt[None]
    _check(prompt, file)
    return prompt
