"""A checkpoint's parameters on the mesh, and the model that they belong to: ours, T5X's or Hugging Face's.

A prompt-tuning checkpoint stores the prompt only; the rest comes from the base it names, whose fingerprint must agree.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from promot_t5x.checkpoints import fingerprints, placing, sources
from promot_t5x.checkpoints.sources import Source
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.checkpoints.t5x import layouts
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import processes

_PROMPT_LENGTH = "architecture.T5Config.prompt_length"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters and where they came from.

    Attributes:
      params: nested, in the network's layout, placed; with `soft_prompt` if the checkpoint had one.
      base_path: the checkpoint that holds the model's weights.
      base_fingerprint: of these weights, see `fingerprints.fingerprint`.
      model: what computes with them: the model that was given, or that of the checkpoint's own network.
      vocabulary: name and hash of the vocabulary, where the checkpoint says so.
    """

    params: dict[str, Any]
    base_path: str
    base_fingerprint: str
    model: EncoderDecoderModel
    vocabulary: Mapping[str, Any] | None = None


def load(
    path: str | epath.Path, model: EncoderDecoderModel | None = None, partitioner: Partitioner = Partitioner()
) -> Loaded:
    """Reads all parameters of a checkpoint, strictly: nothing is left to chance, cast or initialised.

    Args:
      path: a checkpoint folder, a run folder, a T5X checkpoint, or a Hugging Face folder.
      model: what the checkpoint must fit. None makes the model of the network that the checkpoint carries; what the
        format of another program does not state is as in the public models, and printed.
      partitioner: where the arrays go.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: it is no checkpoint, is damaged, holds another network, or names a base that has changed; or it was
        written before checkpoints carried their network, and no model is given.
    """
    source = sources.open_source(path)
    if model is None:
        model = EncoderDecoderModel(sources.complete_config(source))
        if (line := sources.assumptions(source)) and processes.speaks():
            print(line)
    else:
        sources.check_agreement(source, model.config)
    leaves, like = _fitting(source, wanted_params(model, partitioner))
    params = parameter_names.unflatten(placing.place(leaves, like))
    fingerprint = fingerprints.fingerprint(params)
    sources.check_base(source, fingerprint)
    logging.info("read %s, base %s, fingerprint %s", source.folder, source.model.folder, fingerprint)
    vocabulary = source.description.get("vocabulary") or source.model.description.get("vocabulary")
    return Loaded(params, str(source.model.folder), fingerprint, model, vocabulary)


def wanted_params(model: EncoderDecoderModel, partitioner: Partitioner) -> dict[str, jax.ShapeDtypeStruct]:
    """Flat parameters as a model needs them: shapes, dtypes and shardings, without any array.

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
    """(a checkpoint's leaves, what they become), compared: only another program's may be of another dtype.

    Raises:
      ValueError: the network has no place for the soft prompt, or other parameters.
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
        # Of ours too, where it was converted out of weights in another dtype than networks here train in.
        is_foreign = holder.format != "promot" or str(leaf.dtype) != holder.stated.get("param_dtype", str(leaf.dtype))
        convertible = is_foreign and name in in_stored_layout
        return leaf._replace(dtype=in_stored_layout[name].dtype) if convertible else leaf

    placing.compare({n: as_converted(n, x) for n, x in leaves.items()}, in_stored_layout, str(source.folder))
    return leaves, like


def _in_layout_of(leaves: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of `like` in the layout that `leaves` are stored in."""
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in like.items()}
    return jax.eval_shape(lambda flat: parameter_names.as_stored_in(flat, leaves), shapes)
