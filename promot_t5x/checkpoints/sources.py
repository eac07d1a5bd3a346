"""Opens a checkpoint of any format; its leaves are read when they are needed.

Our checkpoints, T5X's four forms and Hugging Face folders all become a `Source`: leaves under our names, and what the
checkpoint states about itself. Everything that reads a checkpoint uses `open_source`.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging
from etils import epath

from promot_t5x.checkpoints import fingerprints, finished_run, networks, saving
from promot_t5x.checkpoints.huggingface import weights
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.checkpoints.t5x import layouts, reader
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import TOKEN_IDS, T5Config, function_fields
from promot_t5x.runtime.files import absolute
from promot_t5x.runtime.text import did_you_mean

_WHERE = "INITIAL_CHECKPOINT_PATH, CHECKPOINT_PATH or --from"


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
      folder: the checkpoint's folder.
      format: "promot", "t5x" or "huggingface".
      leaves: under our names, in the layout they are stored in; nothing is read yet. The checkpoint of a soft prompt
        alone includes the leaves of the model that it names.
      stated: the fields of T5Config that the format states; values that follow from shapes take precedence.
      given: fields of T5Config that the user gave.
      step: the training step that it names, else 0.
      base: for a soft prompt alone, the model that it belongs to.
      base_fingerprint: the fingerprint that this model must have; see `check_base`.
      description: the metadata about its network, see `networks.described`; empty for foreign formats.
    """

    folder: epath.Path
    format: str
    leaves: dict[str, StoredLeaf]
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    base: "Source | None" = None
    base_fingerprint: str | None = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> "Source":
        """The checkpoint that holds the model's weights: this one, or the base of a soft prompt."""
        return self.base or self

    @property
    def layout(self) -> str:
        """ "stacked" if the layers of a side are stacked into one leaf, else "per_layer"."""
        return "stacked" if parameter_names.is_scanned(self.leaves) else "per_layer"

    @property
    def vocabulary(self) -> dict[str, Any]:
        """The metadata about token ids and vocabulary, which a conversion copies."""
        return {name: value for name, value in self.description.items() if name != "network"}

    @property
    def adapters(self) -> tuple[str, ...]:
        """Its subtrees that are not part of the (m)T5 itself."""
        return (parameter_names.SOFT_PROMPT,) if parameter_names.PROMPT in self.leaves else ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """The model's fingerprint, read block by block; see `fingerprints.fingerprint`."""
        return fingerprints.fingerprint(self.leaves)

    @property
    def assumed(self) -> dict[str, Any]:
        """The public models' values for the fields of T5Config that nobody stated."""
        public = networks.of_public_models(self.leaves)
        return {name: value for name, value in public.items() if name not in self.stated and name not in self.given}

    @property
    def config(self) -> T5Config:
        """The network, from the shapes, from what the format states or the user gave, and from what is assumed.

        Raises:
          ValueError: it is not an (m)T5.
        """
        shaped = networks.from_shapes(self.leaves, self.folder)
        return T5Config(**{**self.assumed, **self.stated, **self.given, **shaped})


def open_source(path: epath.PathLike, given: Mapping[str, Any] | None = None) -> Source:
    """Opens a checkpoint of any format; for a run's folder, the best one.

    Args:
      path: a checkpoint or run folder of ours, a T5X checkpoint, a Hugging Face folder; local, or in a bucket.
      given: fields of T5Config that the checkpoint does not state.

    Raises:
      FileNotFoundError: the path does not exist, or a file is missing.
      ValueError: it is not a checkpoint, is damaged, or states other values than those given.
    """
    source = _opened(path, ())
    return _with_given(source, given) if given else source


def existing(path: epath.PathLike) -> epath.Path:
    """The absolute path of a checkpoint, which is recorded as a base: a later run may have another working folder.

    Raises:
      FileNotFoundError: the path does not exist.
    """
    folder = absolute(path)
    if not folder.exists():
        raise FileNotFoundError(f"There is no checkpoint at {path}; check {_WHERE}.")
    return folder


def _opened(path: epath.PathLike, prompts: tuple[epath.Path, ...]) -> Source:
    """A checkpoint with what it states itself.

    Args:
      path: as for `open_source`.
      prompts: the checkpoints of soft prompts alone that led here; each names the next one as its model.
    """
    folder = existing(path)
    if (best := finished_run.chosen_step(folder)) is not None:
        logging.info("%s holds %s; taking the best, %d", folder, saving.described_steps(folder), best)
        folder = saving.checkpoint_folder(folder, best)
    if saving.is_checkpoint(folder):
        source = _ours(folder, prompts)
    elif reader.is_t5x_checkpoint(folder):
        numbered = re.search(r"checkpoint_(\d+)", folder.as_posix())
        leaves = _sharing_equal_biases(reader.read(folder))
        source = Source(folder, "t5x", leaves, step=int(numbered[1]) if numbered else 0)
    elif weights.is_huggingface(folder):
        stated, leaves = weights.opened(folder)
        source = Source(folder, "huggingface", leaves, stated)
    elif inside := reader.checkpoints_in(folder):
        raise ValueError(f"{folder} is not a checkpoint, it holds {', '.join(inside)}: give the path of one.")
    else:
        raise ValueError(
            f"{folder} is neither a checkpoint nor a run folder of promot_t5x, nor one of T5X or Hugging Face; check "
            f"{_WHERE}."
        )
    return source


def _with_given(source: Source, given: Mapping[str, Any]) -> Source:
    names = [field.name for field in dataclasses.fields(T5Config)]
    if unknown := [name for name in given if name not in names]:
        raise ValueError(
            f"T5Config has no field {unknown[0]!r}{did_you_mean(str(unknown[0]), names)}; expected some of "
            f"{', '.join(names)}."
        )
    stated = {**source.stated, **networks.from_shapes(source.leaves, source.folder)}
    config = T5Config(**{**networks.of_public_models(source.leaves), **stated, **given})
    networks.check_agreement(stated, config, given, source.folder)
    return dataclasses.replace(source, given=dict(given))


def _sharing_equal_biases(leaves: dict[str, StoredLeaf]) -> dict[str, StoredLeaf]:
    """Leaves with one shared table of relative positions, if all layers' tables are equal.

    `scalable_t5` stores one table per layer even for a network that shares one.
    """
    try:
        return layouts.with_relative_bias(leaves, "shared")
    except layouts.DifferentBiasesError:
        return leaves


def _ours(folder: epath.Path, prompts: tuple[epath.Path, ...]) -> Source:
    metadata, leaves = saving.read_metadata(folder), saving.stored_params(folder)
    source = Source(
        folder,
        "promot",
        leaves,
        stated=networks.stated_fields(metadata, folder),
        step=metadata["step"],
        description=networks.carried(metadata),
    )
    return _with_base(source, metadata.get("base"), prompts) if set(leaves) == {parameter_names.PROMPT} else source


def _with_base(prompt: Source, named: Mapping[str, str] | None, prompts: tuple[epath.Path, ...]) -> Source:
    """A soft prompt alone, together with the model that it names; it replaces the model's own prompt, if any."""
    if named is None:
        raise ValueError(
            f"{prompt.folder} holds a soft prompt alone and does not name its model; give a checkpoint that holds or "
            "names the model's weights, such as the folder of the run that trained the prompt."
        )
    if not epath.Path(named["path"]).exists():
        raise FileNotFoundError(
            f"{prompt.folder} holds a soft prompt for the model in {named['path']}, which does not exist; put it back."
        )
    if prompt.folder in prompts:
        through = "".join(f", through {folder}" for folder in prompts if folder != prompt.folder)
        raise ValueError(
            f"{prompt.folder} holds a soft prompt alone and names itself as its model{through}; copy it again."
        )
    base = _opened(named["path"], (*prompts, prompt.folder))
    return dataclasses.replace(
        prompt,
        leaves=dict(sorted({**base.leaves, **prompt.leaves}.items())),
        stated={**base.stated, **prompt.stated},
        base=base,
        base_fingerprint=named["fingerprint"],
        description={**base.description, **prompt.description},
    )


def check_base(source: Source, fingerprint: str) -> None:
    """Checks for a soft prompt alone that the model is still the one that it was trained on.

    Args:
      source: any checkpoint.
      fingerprint: the fingerprint of the model that was read.

    Raises:
      ValueError: it is another model.
    """
    if source.base is not None and fingerprint != source.base_fingerprint:
        raise ValueError(
            f"{source.folder} holds a soft prompt for the model in {source.base.folder} with fingerprint "
            f"{source.base_fingerprint}, but the model there now has {fingerprint}; put the original model back."
        )


def recorded_weights(path: epath.PathLike) -> str | None:
    """A hash of the digests that a checkpoint of ours records of its weights and prompt, without reading these.

    Args:
      path: as for `open_source`.

    Returns:
      The hash, which includes the fingerprint of a soft prompt's model; None for other formats, and for checkpoints
      from before they had digests.

    Raises:
      FileNotFoundError, ValueError: see `open_source`.
    """
    source = open_source(path)
    of_params = saving.read_metadata(source.folder).get("digests") if source.format == "promot" else None
    if of_params is None:
        return None
    recorded = json.dumps([of_params["params"], source.base_fingerprint], sort_keys=True)
    return hashlib.sha256(recorded.encode()).hexdigest()[:16]


def check_agreement(source: Source, config: T5Config) -> None:
    """Compares a network with what the checkpoint states about its own; shapes are compared leaf by leaf elsewhere.

    Raises:
      ValueError: names the field that differs, and both values.
    """
    names: Iterable[str] = source.stated
    if source.format != "promot":
        names = [name for name in names if name not in networks.FROM_SHAPES]
    networks.check_agreement(source.stated, config, names, source.folder)


def complete_config(source: Source) -> T5Config:
    """The network of a checkpoint that is read without a configuration.

    Raises:
      ValueError: it is one of ours from before checkpoints carried their network, and too few fields are given.
    """
    unknown = [name for name in source.assumed if name in function_fields(T5Config)]
    if source.model.format == "promot" and unknown:
        raise ValueError(
            f"{source.folder} was written before checkpoints carried their network, and its weights do not determine "
            f"{' and '.join(unknown)}; give the network's configuration."
        )
    return source.config


def assumptions(source: Source) -> str:
    """One line about what is taken from the public models; empty if nothing is.

    >>> assumptions(Source(epath.Path("checkpoint_0"), "t5x", {}))[:57]
    "assumed, as in the public models: mlp_activations ('relu'"
    """
    if not source.assumed:
        return ""
    values = {**source.assumed, **({} if source.format == "promot" else {f"{k} id": v for k, v in TOKEN_IDS.items()})}
    return "assumed, as in the public models: " + ", ".join(f"{name} {value}" for name, value in values.items())
