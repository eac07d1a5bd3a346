"""Writes checkpoints in any of `checkpoints.FORMATS`, from leaves of any other."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from promot_t5x.checkpoints import FORMATS, networks, saving, sources, stored_leaves
from promot_t5x.checkpoints.huggingface import peft, weights
from promot_t5x.checkpoints.sources import Source
from promot_t5x.checkpoints.stored_leaves import Leaves, StoredLeaf
from promot_t5x.checkpoints.t5x import layouts, writer
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.runtime.files import absolute
from promot_t5x.runtime.text import did_you_mean

ADAPTER = f"{parameter_names.SOFT_PROMPT}_adapter"

"""The subfolder for soft prompt 0 in a `huggingface` folder; further prompts have their number appended."""


def as_named(leaves: Leaves, config: T5Config, to_format: str) -> dict[str, StoredLeaf]:
    """Leaves under the names and in the shapes of a format.

    Raises:
      ValueError: the format cannot hold them.
    """
    if to_format == "huggingface":
        return weights.as_named(leaves, config)
    if to_format == "promot":
        return parameter_names.unstack_layers(leaves, stored_leaves.layer)
    return writer.as_named(leaves, scanned="scanned" in to_format, head_dim=config.head_dim)


def check_format(to_format: str, expected: Sequence[str] = FORMATS) -> None:
    """Raises ValueError where a format is none of those expected."""
    if to_format not in expected:
        raise ValueError(
            f"The format to write is {to_format!r}{did_you_mean(str(to_format), expected)}; expected one of "
            f"{', '.join(expected)}."
        )


def target_folder(to_path: epath.PathLike, to_format: str, step: int) -> epath.Path:
    """The folder to write a checkpoint to: for T5X, a folder of another name gets a subfolder `checkpoint_N`.

    Raises:
      FileExistsError: the folder exists and is not empty.
    """
    folder = absolute(to_path)
    if to_format.startswith("t5x") and not re.fullmatch(r"checkpoint_\d+", folder.name):
        folder = folder / f"checkpoint_{step}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; give another path, or delete it.")
    return folder


def write(folder: epath.Path, source: Source, to_format: str) -> None:
    """Writes a checkpoint to the folder from `target_folder`, including its network if the format can state it.

    Raises:
      ValueError: the format cannot hold the leaves, or a file of the source is damaged.
    """
    leaves, config, step = source.leaves, source.config, source.step
    if to_format == "promot":
        named: dict[str, Any] = as_named(leaves, config, to_format)
        arrays_by_name = {name: stored_leaves.whole(leaf) for name, leaf in named.items()}
        metadata = {"step": step, "base": None, **networks.described(config), **source.vocabulary}
        saving.export(folder, arrays_by_name, metadata)
    elif to_format == "huggingface":
        network = {name: leaf for name, leaf in leaves.items() if name != parameter_names.PROMPT}
        weights.write(folder, network, dataclasses.replace(config, prompt_length=0))
        if parameter_names.PROMPT in leaves:
            for number, prompt_PxD in enumerate(stored_leaves.whole(leaves[parameter_names.PROMPT])):
                peft.write_adapter(_adapter(folder, number), prompt_PxD, str(folder))
    else:
        numbered = re.fullmatch(r"checkpoint_(\d+)", folder.name)
        write_t5x = writer.write_legacy if to_format.endswith("legacy") else writer.write_orbax
        write_t5x(folder, as_named(leaves, config, to_format), int(numbered[1]) if numbered else step)


def _adapter(folder: epath.Path, number: int) -> epath.Path:
    return folder / (ADAPTER + (f"_{number}" if number else ""))


def written_leaves(folder: epath.Path, like: Leaves) -> dict[str, StoredLeaf]:
    """The leaves of a written checkpoint, opened again, in the layout and with the relative positions of `like`."""
    leaves = sources.open_source(folder).leaves
    if parameter_names.PROMPT in like and parameter_names.PROMPT not in leaves:
        prompts = [
            peft.read_adapter(_adapter(folder, number)) for number in range(like[parameter_names.PROMPT].shape[0])
        ]
        leaves[parameter_names.PROMPT] = stored_leaves.from_array(np.concatenate(prompts), f"{folder}/{ADAPTER}")
    leaves = layouts.with_relative_bias(leaves, layouts.relative_bias_of(like))
    return stored_leaves.as_stored_in(dict(sorted(leaves.items())), like)
