"""Soft prompts as files of their own (`checkpoints.SOFT_PROMPT_FORMATS`): read, written, attached to a model."""

import dataclasses
import io
import json
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import peft, safetensors_file
from promot_t5x.checkpoints.sources import Source
from promot_t5x.models import parameter_names
from promot_t5x.runtime import files

WEIGHTS, DESCRIPTION = (f"{parameter_names.SOFT_PROMPT}.{ending}" for ending in ("safetensors", "json"))


def is_prompt(path: epath.Path) -> bool:
    """Whether a path is a soft prompt in one of these formats; a run of prompt tuning is a checkpoint first."""
    if path.suffix in (".npy", ".safetensors") and path.is_file():
        return True
    return (path / "adapter_config.json").is_file() or (path / WEIGHTS).is_file()


def read(path: epath.Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(prompt_NxPxD, what `soft_prompt.json` next to it says, else nothing).

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: it is no soft prompt, or damaged.
    """
    if (path / "adapter_config.json").is_file():
        return peft.read_adapter(path), {}
    description = (path if path.is_dir() else path.parent) / DESCRIPTION
    if path.suffix == ".npy" or not description.is_file():
        return load(path), {}
    return load(path), _description(description)


def _description(file: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged, it is not JSON ({error}); copy it again.") from error
    base = values.get("base") if isinstance(values, dict) else values
    if base is not None and not (isinstance(values, dict) and isinstance(base, dict)):
        raise ValueError(f"{file} is damaged, it does not describe a soft prompt (base is {base!r}); copy it again.")
    return values


def write(path: epath.Path, to_format: str, prompt_NxPxD: np.ndarray, description: dict[str, Any]) -> None:
    """Writes a prompt.

    Args:
      path: the file for npy, else the folder.
      to_format: one of `checkpoints.SOFT_PROMPT_FORMATS`.
      prompt_NxPxD: for PEFT one prompt only.
      description: what `soft_prompt.json` says; PEFT's adapter takes the base model's path from it.

    Raises:
      ValueError: several prompts for PEFT.
    """
    if to_format == parameter_names.SOFT_PROMPT:
        save(path, prompt_NxPxD, description)
    elif to_format == "npy":
        content = io.BytesIO()
        np.save(content, prompt_NxPxD[0] if len(prompt_NxPxD) == 1 else prompt_NxPxD, allow_pickle=False)
        files.write_whole(path, content.getvalue())
    else:
        if len(prompt_NxPxD) != 1:
            raise ValueError(f"There are {len(prompt_NxPxD)} soft prompts, an adapter of PEFT holds one.")
        base = (description.get("base") or {}).get("path", "")
        peft.write_adapter(path, prompt_NxPxD[0], base)


def attached(source: Source, path: epath.Path, force: bool = False) -> Source:
    """A model with a soft prompt from a file, in place of any that it had.

    Args:
      source: the model.
      path: the prompt.
      force: attach a prompt that was trained on another model, too.

    Raises:
      ValueError: the prompt is of another width, or was trained on a model with another fingerprint.
    """
    prompt_NxPxD, description = read(path)
    check_width(prompt_NxPxD, path, source.config.embed_dim, source.folder)
    trained_on = (description.get("base") or {}).get("fingerprint")
    if trained_on and not force and trained_on != source.fingerprint:
        raise ValueError(
            f"The soft prompt {path} was trained on a model with fingerprint {trained_on}, the one in {source.folder} "
            f"has {source.fingerprint}; give its own model, or --force."
        )
    leaves = {**source.leaves, parameter_names.PROMPT: stored_leaves.from_array(prompt_NxPxD, str(path))}
    return dataclasses.replace(source, leaves=dict(sorted(leaves.items())))


def check_width(prompt_NxPxD: np.ndarray, path: epath.PathLike, embed_dim: int, model_folder: epath.PathLike) -> None:
    """Checks that a soft prompt fits a model.

    Args:
      prompt_NxPxD: the prompts.
      path: where they were read.
      embed_dim: of the model.
      model_folder: where the model was read.

    Raises:
      ValueError: they do not.
    """
    width = prompt_NxPxD.shape[-1]
    if width != embed_dim:
        raise ValueError(
            f"The soft prompt {path} is {width} wide, the model in {model_folder} is {embed_dim} wide; "
            "give a prompt that was trained on this model."
        )


def save(folder: str | epath.Path, prompt_NxPxD: np.ndarray, description: dict[str, Any]) -> None:
    """Writes `soft_prompt.safetensors` and `soft_prompt.json` into a folder, each whole or not at all.

    Args:
      folder: made when it is missing.
      prompt_NxPxD: the prompts.
      description: what a reader needs to use it: base checkpoint path and fingerprint, task, step.
    """
    folder = epath.Path(folder)
    prompts, length, embed = prompt_NxPxD.shape
    tensors = {parameter_names.PROMPT: np.ascontiguousarray(prompt_NxPxD)}
    files.write_whole(folder / WEIGHTS, safetensors.numpy.save(tensors))
    files.write_json(folder / DESCRIPTION, {"prompts": prompts, "length": length, "embed": embed, **description})


def load(path: str | epath.Path) -> np.ndarray:
    """Reads prompt_NxPxD that `save` wrote (file or folder), or a .npy of one prompt [P, D] or several [N, P, D].

    Raises:
      FileNotFoundError: nothing there.
      ValueError: the file is no prompt, or holds numbers that are not finite.
    """
    file = epath.Path(path)
    if file.is_dir():
        file = file / WEIGHTS
    if not file.exists():
        raise FileNotFoundError(f"There is no soft prompt at {file}; expected {WEIGHTS} or a .npy file.")
    files.check_no_pointer(file)
    try:
        if file.suffix == ".npy":
            with file.open("rb") as stream:
                prompt = np.lib.format.read_array(stream, allow_pickle=False)  # np.load would take archives as well
        else:
            # Not safetensors.numpy.load, which knows no bfloat16.
            tensors = dict(safetensors.deserialize(file.read_bytes()))
            stored = tensors.pop(parameter_names.PROMPT)
            if tensors:
                raise ValueError(f"it holds {', '.join(sorted(tensors)[:3])} as well, expected a prompt alone")
            prompt = np.frombuffer(stored["data"], safetensors_file.DTYPES[stored["dtype"]]).reshape(stored["shape"])
    except (KeyError, ValueError, EOFError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} does not hold a soft prompt: {error}.") from error
    if prompt.ndim == 2:
        prompt = prompt[None]
    if prompt.ndim != 3:
        raise ValueError(f"{file} holds an array of shape {prompt.shape}; a prompt is [length, embed] or [N, P, D].")
    if not prompt.size or prompt.dtype not in stored_leaves.DTYPES:
        raise ValueError(
            f"{file} holds {prompt.dtype}{prompt.shape}, expected a prompt of at least one vector in one of "
            f"{', '.join(map(str, stored_leaves.DTYPES))}; save it again."
        )
    return stored_leaves.whole(stored_leaves.entering(stored_leaves.from_array(prompt, str(file))))
