"""Checkpoints of any format as one thing: opened by what they are, written as what is asked for.

| format | is |
|---|---|
| promot | a checkpoint of this package |
| t5x, t5x_legacy | T5X's with a leaf a layer, in Orbax or in msgpack and zarr |
| t5x_scanned, t5x_scanned_legacy | T5X's with stacked layers (`scalable_t5`) |
| huggingface | a folder of transformers, a soft prompt beside it as PEFT's adapter |
"""

import dataclasses
import os
import re
from typing import Any

import numpy as np
from etils import epath

from promot_t5x.checkpoints import arrays, fingerprints, saving, stored_leaves
from promot_t5x.checkpoints.huggingface import peft, weights
from promot_t5x.checkpoints.stored_leaves import Leaves, StoredLeaf
from promot_t5x.checkpoints.t5x import layouts, reader, writer
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config

FORMATS = ("promot", "t5x", "t5x_legacy", "t5x_scanned", "t5x_scanned_legacy", "huggingface")

ADAPTER = "soft_prompt_adapter"

"""The folder of soft prompt number 0 in a `huggingface` folder; others have their number appended."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
      folder: the one that holds the weights.
      format: what it is: "promot", "t5x" or "huggingface".
      leaves: under our names, nothing read yet.
      config: the network's sizes, as far as the checkpoint says; float32, without scanning.
      step: the training step that it names, else 0.
    """

    folder: epath.Path
    format: str
    leaves: dict[str, StoredLeaf]
    config: T5Config
    step: int


def with_leaves(source: Source, leaves: Leaves) -> Source:
    """The same checkpoint with other leaves, and a config that knows its soft prompt."""
    prompts, length = leaves[parameter_names.PROMPT].shape[:2] if parameter_names.PROMPT in leaves else (1, 0)
    config = dataclasses.replace(source.config, num_prompts=prompts, prompt_length=length)
    return dataclasses.replace(source, leaves=dict(sorted(leaves.items())), config=config)


def open_foreign(folder: epath.Path) -> dict[str, StoredLeaf] | None:
    """The leaves of another program's checkpoint; None where there is none.

    Raises:
      FileNotFoundError: a file of it is missing.
      ValueError: it is damaged.
    """
    if reader.is_t5x_checkpoint(folder):
        return reader.read(folder)
    return weights.read(folder) if weights.is_huggingface(folder) else None


def open_source(path: epath.PathLike) -> Source:
    """Opens a checkpoint, whatever it is; a run folder stands for its best checkpoint.

    A checkpoint of a soft prompt alone brings the model that it names.

    Raises:
      FileNotFoundError: nothing is there, or a file is missing.
      ValueError: it is none, or damaged.
    """
    folder = saving.absolute(os.fspath(path))
    if not folder.exists():
        raise FileNotFoundError(f"There is no checkpoint at {path}; check the path.")
    if saving.all_steps(folder):
        folder = saving.checkpoint_folder(folder, saving.best_step(folder))
    if saving.is_checkpoint(folder):
        return _open_ours(folder)
    leaves = open_foreign(folder)
    if leaves is None:
        inside = ", ".join(reader.checkpoints_in(folder)) or "no checkpoint of promot_t5x, T5X or Hugging Face"
        raise ValueError(f"{folder} is no checkpoint, it holds {inside}: give the path of one.")
    if weights.is_huggingface(folder):
        return Source(folder, "huggingface", leaves, T5Config(**weights.read_config(folder)), 0)
    leaves = _sharing_equal_biases(leaves)
    numbered = re.search(r"checkpoint_(\d+)", folder.as_posix())
    return Source(folder, "t5x", leaves, config_of(leaves), int(numbered[1]) if numbered else 0)


def _sharing_equal_biases(leaves: dict[str, StoredLeaf]) -> dict[str, StoredLeaf]:
    """`scalable_t5` has a table of relative positions a layer also where the network shares one; then all are equal."""
    try:
        return layouts.with_relative_bias(leaves, "shared")
    except layouts.DifferentBiasesError:
        return leaves


def _open_ours(folder: epath.Path) -> Source:
    facts = saving.read_metadata(folder)
    leaves = arrays.opened(arrays.of_orbax(folder / "params"))
    if set(leaves) == {parameter_names.PROMPT}:
        if facts.get("base") is None:
            raise ValueError(f"{folder} holds a soft prompt alone and names no model; convert the run that trained it.")
        base = open_source(facts["base"]["path"]).leaves
        if (found := fingerprint(base)) != facts["base"]["fingerprint"]:
            raise ValueError(
                f"{folder} holds a soft prompt for the model in {facts['base']['path']} with fingerprint "
                f"{facts['base']['fingerprint']}, but the model there now has {found}; put the original model back."
            )
        leaves = {**base, **leaves}  # the base may have a prompt of its own
    leaves = dict(sorted(leaves.items()))
    return Source(folder, "promot", leaves, config_of(leaves), facts["step"])


def fingerprint(leaves: Leaves) -> str:
    """checkpoints.fingerprint of leaves in files, read block by block."""
    flat = parameter_names.unstack_layers(leaves, stored_leaves.layer)
    network = {name: leaf for name, leaf in flat.items() if name != parameter_names.PROMPT}
    return fingerprints.digest({name: (x.shape, x.dtype, stored_leaves.bit_sum(x)) for name, x in network.items()})


def config_of(leaves: Leaves) -> T5Config:
    """The sizes that the shapes of a network's leaves tell.

    What they do not tell is as in all public checkpoints: GELU where the MLP is gated, else ReLU.

    Raises:
      ValueError: leaves that every (m)T5 has are missing.
    """
    try:
        flat = parameter_names.unstack_layers(leaves, stored_leaves.layer)
        layers = {
            side: len({n.split("/")[1] for n in flat if n.startswith(f"{side}/layers_")})
            for side in ("encoder", "decoder")
        }
        biases = {name: leaf for name, leaf in flat.items() if name.endswith("relpos_bias/rel_embedding")}
        heads, buckets = next(iter(biases.values())).shape
        first = "encoder/layers_0"
        gated = f"{first}/mlp/wi_0/kernel" in flat
        vocab_size, embed_dim = flat["token_embedder/embedding"].shape
        prompts = flat[parameter_names.PROMPT].shape if parameter_names.PROMPT in flat else (1, 0)
        return T5Config(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            num_heads=heads,
            head_dim=flat[f"{first}/attention/query/kernel"].shape[1] // heads,
            mlp_dim=flat[f"{first}/mlp/wo/kernel"].shape[0],
            num_encoder_layers=layers["encoder"],
            num_decoder_layers=layers["decoder"],
            mlp_activations=("gelu", "linear") if gated else ("relu",),
            logits_via_embedding="decoder/logits_dense/kernel" not in flat,
            relative_bias="per_layer" if any("/layers_" in name for name in biases) else "shared",
            relative_bias_buckets=buckets,
            num_prompts=prompts[0],
            prompt_length=prompts[1],
        )
    except (KeyError, StopIteration) as error:
        raise ValueError(f"The checkpoint lacks a leaf that every (m)T5 has: {error}.") from error


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


def target_folder(to_path: epath.PathLike, to_format: str, step: int) -> epath.Path:
    """Where a checkpoint is written: T5X wants `checkpoint_N`, which is made inside of a folder of another name.

    Raises:
      FileExistsError: something is there.
    """
    folder = saving.absolute(os.fspath(to_path))
    if to_format.startswith("t5x") and not re.fullmatch(r"checkpoint_\d+", folder.name):
        folder = folder / f"checkpoint_{step}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; give another path, or delete it.")
    return folder


def write(folder: epath.Path, source: Source, to_format: str) -> None:
    """Writes a checkpoint where `target_folder` says.

    Raises:
      ValueError: the format cannot hold the leaves, or one of the files that are read is damaged.
    """
    leaves, config, step = source.leaves, source.config, source.step
    if to_format == "promot":
        named: dict[str, Any] = as_named(leaves, config, to_format)
        arrays_by_name = {name: stored_leaves.whole(leaf) for name, leaf in named.items()}
        saving.export(folder, parameter_names.unflatten(arrays_by_name), {"step": step, "base": None})
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
    """What was written, opened again, in the layout and with the relative positions of `like`."""
    leaves = open_source(folder).leaves
    if parameter_names.PROMPT in like and parameter_names.PROMPT not in leaves:
        prompts = [
            peft.read_adapter(_adapter(folder, number)) for number in range(like[parameter_names.PROMPT].shape[0])
        ]
        leaves[parameter_names.PROMPT] = stored_leaves.from_array(np.concatenate(prompts), f"{folder}/{ADAPTER}")
    leaves = layouts.with_relative_bias(leaves, layouts.relative_bias_of(like))
    return stored_leaves.as_stored_in(dict(sorted(leaves.items())), like)
