"""Loads a checkpoint's parameters onto the mesh, and the model that they belong to: ours, T5X's or Hugging Face's.

A prompt-tuning checkpoint stores the prompt only; all other parameters come from the base that it names, whose
fingerprint must match.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from promot_t5x.checkpoints import kept_weights, networks, placing, sources
from promot_t5x.checkpoints.sources import Source
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.checkpoints.t5x import layouts
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments, processes

_PROMPT_LENGTH = "architecture.T5Config.prompt_length"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters and where they came from.

    Attributes:
      params: nested, in the network's layout, placed on the mesh; with `soft_prompt` if the checkpoint has one.
      base_path: the checkpoint that holds the model's weights.
      base_fingerprint: their fingerprint, see `fingerprints.fingerprint`.
      model: the given model, or the model of the checkpoint's own network.
      vocabulary: name and hash of the vocabulary, if the checkpoint states it.
    """

    params: dict[str, Any]
    base_path: str
    base_fingerprint: str
    model: EncoderDecoderModel
    vocabulary: Mapping[str, Any] | None = None


@arguments.checked
def load(
    path: str | os.PathLike[str], model: EncoderDecoderModel | None = None, partitioner: Partitioner = Partitioner()
) -> Loaded:
    """Reads all parameters of a checkpoint strictly: names and shapes must match, and nothing is filled in.

    The dtypes of our own checkpoints must match as well; weights from T5X and Hugging Face, also those that were
    converted to our format in their own dtype, are converted between floating dtypes.

    Args:
      path: a checkpoint folder, a run folder, a T5X checkpoint, or a Hugging Face folder.
      model: the model that the checkpoint must fit. None builds it from the network in the checkpoint; what a foreign
        format does not state is taken from the public models, and printed.
      partitioner: the mesh for the arrays.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: it is not a checkpoint, is damaged, holds another network, or names a base that has changed; or no
        model is given and the checkpoint is from before checkpoints carried their network.
    """
    source = sources.open_source(path)
    if model is None:
        model = EncoderDecoderModel(sources.complete_config(source))
        if (line := sources.assumptions(source)) and processes.speaks():
            print(line)
    else:
        sources.check_agreement(source, model.config)
    leaves, like = _fitting(source, wanted_params(model, partitioner))
    flat, fingerprint = kept_weights.read(source, leaves, like)
    sources.check_base(source, fingerprint)
    logging.info("read %s, base %s, fingerprint %s", source.folder, source.model.folder, fingerprint)
    vocabulary = source.description.get("vocabulary") or source.model.description.get("vocabulary")
    return Loaded(parameter_names.unflatten(flat), str(source.model.folder), fingerprint, model, vocabulary)


def wanted_params(model: EncoderDecoderModel, partitioner: Partitioner) -> dict[str, jax.ShapeDtypeStruct]:
    """The flat parameters that a model needs: shapes, dtypes and shardings, no arrays.

    Raises:
      ValueError: a leaf does not divide over the mesh.
    """
    shapes = model.abstract_params()
    shardings = parameter_names.flatten(partitioner.shardings(model.logical_axes(), shapes))
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
        for name, leaf in parameter_names.flatten(shapes).items()
    }


def _fitting(source: Source, wanted: Mapping[str, Any]) -> tuple[dict[str, StoredLeaf], dict[str, Any]]:
    """(a checkpoint's leaves, the arrays they become), after comparing them.

    Leaves of T5X and Hugging Face may have another floating dtype, and so may those of ours that were converted from
    weights in a dtype in which networks do not train.

    Raises:
      ValueError: the network has no soft prompt for the checkpoint's, or other parameters.
    """
    prompt = source.leaves.get(parameter_names.PROMPT)
    if prompt is not None and parameter_names.PROMPT not in wanted:
        raise ValueError(
            f"{source.folder} holds a soft prompt {prompt.shape}, the network has none; set {_PROMPT_LENGTH}."
        )
    like = {name: leaf for name, leaf in wanted.items() if name != parameter_names.PROMPT or prompt is not None}
    leaves = source.leaves
    if source.model.format != "promot":
        leaves = layouts.with_relative_bias(leaves, layouts.relative_bias_of(like))
    in_stored_layout = _in_layout_of(leaves, like)

    def as_converted(name: str, leaf: StoredLeaf) -> StoredLeaf:
        holder = source if name == parameter_names.PROMPT else source.model
        was_foreign = holder.format != "promot" or str(leaf.dtype) != holder.stated.get("param_dtype", str(leaf.dtype))
        convertible = was_foreign and name in in_stored_layout
        return leaf._replace(dtype=in_stored_layout[name].dtype) if convertible else leaf

    placing.compare(
        {name: as_converted(name, leaf) for name, leaf in leaves.items()},
        in_stored_layout,
        str(source.folder),
        advice=networks.vocab_size_advice(leaves, in_stored_layout) or placing.CHECK_GIN,
    )
    return leaves, like


def _in_layout_of(leaves: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of `like` in the layout that `leaves` are stored in."""
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in like.items()}
    return jax.eval_shape(lambda flat: parameter_names.as_stored_in(flat, leaves), shapes)
