"""Soft prompts as files of their own: read, written in another format, attached to a model.

| format | is |
|---|---|
| soft_prompt | a folder with `soft_prompt.safetensors` and `soft_prompt.json`, as prompt tuning writes it |
| npy | one array [P, D] (or [N, P, D]), as the prompt-tuning code of Lester et al. has them |
| peft | a folder with an adapter of PEFT, one prompt |
"""

import io
import json
from typing import Any

import numpy as np
from etils import epath

from promot_t5x import layout, records, soft_prompt
from promot_t5x.interop import formats, peft, stored

FORMATS = ("soft_prompt", "npy", "peft")


def is_prompt(path: epath.Path) -> bool:
    """Whether a path is a soft prompt in one of these formats; a run of prompt tuning is a checkpoint first."""
    if path.suffix in (".npy", ".safetensors") and path.is_file():
        return True
    return (path / "adapter_config.json").is_file() or (path / "soft_prompt.safetensors").is_file()


def read(path: epath.Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(prompt_NxPxD, what `soft_prompt.json` beside it says, else nothing).

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: it is no soft prompt, or damaged.
    """
    if (path / "adapter_config.json").is_file():
        return peft.read_adapter(path), {}
    description = (path if path.is_dir() else path.parent) / "soft_prompt.json"
    if path.suffix == ".npy" or not description.is_file():
        return soft_prompt.load(path), {}
    try:
        return soft_prompt.load(path), json.loads(description.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{description} is damaged, it is not JSON ({error}); copy it again.") from error


def write(path: epath.Path, to_format: str, prompt_NxPxD: np.ndarray, description: dict[str, Any]) -> None:
    """Writes a prompt.

    Args:
      path: the file for npy, else the folder.
      to_format: one of FORMATS.
      prompt_NxPxD: for PEFT one prompt only.
      description: what `soft_prompt.json` says; PEFT's adapter takes the base model's path from it.

    Raises:
      ValueError: several prompts for PEFT.
    """
    if to_format == "soft_prompt":
        soft_prompt.save(path, prompt_NxPxD, description)
    elif to_format == "npy":
        content = io.BytesIO()
        np.save(content, prompt_NxPxD[0] if len(prompt_NxPxD) == 1 else prompt_NxPxD, allow_pickle=False)
        records.write_whole(path, content.getvalue())
    else:
        if len(prompt_NxPxD) != 1:
            raise ValueError(f"There are {len(prompt_NxPxD)} soft prompts, an adapter of PEFT holds one.")
        base = (description.get("base") or {}).get("path", "")
        peft.write_adapter(path, prompt_NxPxD[0], base)


def attached(source: formats.Source, path: epath.Path, force: bool = False) -> formats.Source:
    """A model with a soft prompt from a file, in place of any that it had.

    Args:
      source: the model.
      path: the prompt.
      force: attach a prompt that was trained on another model, too.

    Raises:
      ValueError: the prompt is of another width, or was trained on a model with another fingerprint.
    """
    prompt_NxPxD, description = read(path)
    prompts, length, embed = prompt_NxPxD.shape
    if embed != source.config.embed_dim:
        raise ValueError(
            f"The soft prompt {path} is {embed} wide, the model in {source.folder} is {source.config.embed_dim} wide; "
            "give a prompt that was trained on this model."
        )
    trained_on = (description.get("base") or {}).get("fingerprint")
    if trained_on and not force and trained_on != (found := formats.fingerprint(source.leaves)):
        raise ValueError(
            f"The soft prompt {path} was trained on a model with fingerprint {trained_on}, the one in {source.folder} "
            f"has {found}; give its own model, or --force."
        )
    leaves = {**source.leaves, layout.PROMPT: stored.from_array(prompt_NxPxD, str(path))}
    return formats.with_leaves(source, leaves)
