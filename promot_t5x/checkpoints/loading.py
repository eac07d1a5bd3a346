"""Where a model's parameters come from: a checkpoint of ours, of T5X or of Hugging Face, or a random key.

`load` tries, in this order: one of our checkpoints; a run folder (its best checkpoint); a T5X checkpoint; a folder of
Hugging Face. A prompt-tuning checkpoint stores the prompt only; the rest comes from the base it names, whose
fingerprint must agree.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.checkpoints import fingerprints, formats, saving, stored_leaves
from promot_t5x.checkpoints.stored_leaves import Leaves
from promot_t5x.checkpoints.t5x import layouts, reader
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

_PROMPT_LENGTH = "architecture.T5Config.prompt_length"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters and where they came from.

    Attributes:
      params: nested, in the network's layout, placed; with `soft_prompt` if the checkpoint had one.
      base_path: the checkpoint that holds the model's weights.
      base_fingerprint: of these weights, see `checkpoints.fingerprint`.
    """

    params: dict[str, Any]
    base_path: str
    base_fingerprint: str


def load(path: str | epath.Path, model: EncoderDecoderModel, partitioner: Partitioner) -> Loaded:
    """Reads all parameters of a checkpoint, strictly: nothing is left to chance, cast or initialised.

    Args:
      path: a checkpoint folder, a run folder, a T5X checkpoint, or a Hugging Face folder.
      model: what the checkpoint must fit.
      partitioner: where the arrays go.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: it is no checkpoint, is damaged, holds another network, or names a base that has changed.
    """
    folder = saving.absolute(path)  # a later run may start in another folder
    if not folder.exists():
        raise FileNotFoundError(f"There is no checkpoint at {path}; check INITIAL_CHECKPOINT_PATH.")
    flat, base_path = _read_flat(folder, wanted_params(model, partitioner))
    params = parameter_names.unflatten(flat)
    loaded = Loaded(params, base_path, fingerprints.fingerprint(params))
    logging.info("read %s, base %s, fingerprint %s", folder, base_path, loaded.base_fingerprint)
    return loaded


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


def _read_flat(
    folder: epath.Path, wanted: Mapping[str, Any], drop_prompt: bool = False
) -> tuple[dict[str, jax.Array], str]:
    if steps := saving.all_steps(folder):
        best = saving.best_step(folder)
        logging.info("%s holds checkpoints %s; taking the best, %d", folder, steps, best)
        folder = saving.checkpoint_folder(folder, best)
    if saving.is_checkpoint(folder):
        return _read_ours(folder, wanted, drop_prompt)
    if (leaves := formats.open_foreign(folder)) is not None:
        return _read_foreign(folder, leaves, wanted, drop_prompt)
    if inside := reader.checkpoints_in(folder):
        raise ValueError(f"{folder} holds {len(inside)} T5X checkpoints, {', '.join(inside)}: give the path of one.")
    raise ValueError(
        f"{folder} is neither a checkpoint nor a run folder of promot_t5x, nor one of T5X or Hugging Face; "
        "check INITIAL_CHECKPOINT_PATH."
    )


def _read_ours(folder: epath.Path, wanted: Mapping[str, Any], drop_prompt: bool) -> tuple[dict[str, jax.Array], str]:
    held, metadata = saving.shapes(folder), saving.read_metadata(folder)
    without_prompt = {name: leaf for name, leaf in wanted.items() if name != parameter_names.PROMPT}
    if set(held) == {parameter_names.PROMPT}:
        if parameter_names.PROMPT not in wanted:
            raise ValueError(f"{folder} holds a soft prompt, the network has none; set {_PROMPT_LENGTH}.")
        base = metadata.get("base")
        if base is None:
            raise ValueError(
                f"{folder} holds a soft prompt alone and names no model that it belongs to; give a checkpoint that "
                "holds the model's weights or names them, such as the run folder that trained the prompt."
            )
        base_folder = epath.Path(base["path"])
        if not base_folder.exists():
            raise FileNotFoundError(f"{folder} holds a soft prompt for the model in {base_folder}, which is not there.")
        flat, base_path = _read_flat(base_folder, without_prompt, drop_prompt=True)
        found = fingerprints.fingerprint(parameter_names.unflatten(flat))
        if found != base["fingerprint"]:
            raise ValueError(
                f"{folder} holds a soft prompt for the model in {base_folder} with fingerprint {base['fingerprint']}, "
                f"but the model there now has {found}; put the original model back."
            )
        prompt_wanted = {name: leaf for name, leaf in wanted.items() if name == parameter_names.PROMPT}
        return {**flat, **saving.read_params(folder, prompt_wanted)}, base_path
    like = _without_unstored_prompt(folder, held, wanted, drop_prompt)
    dropped = {name: leaf for name, leaf in held.items() if name == parameter_names.PROMPT and name not in like}
    same_layout = parameter_names.is_scanned(held) == parameter_names.is_scanned(like)
    as_stored = {**(like if same_layout else _other_layout(like)), **dropped}
    return _placed(_by_stack(saving.read_params(folder, as_stored)), like), str(folder)


def _other_layout(like: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves of `like` in the other layout, cut over the mesh as they are there; never along the layers."""
    convert = parameter_names.unstack_layers if parameter_names.is_scanned(like) else parameter_names.stack_layers
    shapes = jax.eval_shape(convert, {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in like.items()})
    in_like = {parameter_names.stack_name(name): leaf for name, leaf in like.items()}

    def with_sharding(name, shape):
        twin = in_like[parameter_names.stack_name(name)]
        added = len(shape.shape) - len(twin.shape)  # 1 for a stack of layers, -1 for one of them, 0 for other leaves
        spec = [None] * added + list(twin.sharding.spec)[max(-added, 0) :]
        sharding = NamedSharding(twin.sharding.mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return {name: with_sharding(name, shape) for name, shape in shapes.items()}


def _without_unstored_prompt(
    folder: epath.Path, held: Mapping[str, Any], wanted: Mapping[str, Any], drop_prompt: bool
) -> dict[str, Any]:
    """What is wanted of a checkpoint with a model's weights: the soft prompt only if it is there, too."""
    if parameter_names.PROMPT in held and parameter_names.PROMPT not in wanted and not drop_prompt:
        raise ValueError(
            f"{folder} holds a soft prompt {held[parameter_names.PROMPT].shape}, "
            f"the network has none; set {_PROMPT_LENGTH}."
        )
    return {name: leaf for name, leaf in wanted.items() if name != parameter_names.PROMPT or name in held}


def _read_foreign(
    folder: epath.Path, leaves: Leaves, wanted: Mapping[str, Any], drop_prompt: bool
) -> tuple[dict[str, jax.Array], str]:
    """Another program's checkpoint: layers stacked or not, relative positions shared or not, in any floating dtype."""
    like = _without_unstored_prompt(folder, leaves, wanted, drop_prompt)
    leaves = layouts.with_relative_bias(leaves, layouts.relative_bias_of(like))
    leaves = stored_leaves.as_stored_in(leaves, like)
    leaves = {name: leaf for name, leaf in leaves.items() if name != parameter_names.PROMPT or name in like}

    def in_wanted_dtype(name: str, leaf: stored_leaves.StoredLeaf) -> stored_leaves.StoredLeaf:
        convertible = name in like and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf._replace(dtype=like[name].dtype) if convertible else leaf

    saving.compare({name: in_wanted_dtype(name, leaf) for name, leaf in leaves.items()}, like, str(folder))
    return stored_leaves.place(leaves, like), str(folder)


def _by_stack(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Flat parameters in groups that are converted and placed together: a stack or its layers, or one other leaf."""
    groups = {}
    for name, leaf in flat.items():
        groups.setdefault(parameter_names.stack_name(name), {})[name] = leaf
    return groups


def _placed(stacks: dict[str, dict[str, Any]], like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Flat parameters in the layout and sharding of `like`, made one group of `stacks` after the other.

    The groups are taken out of `stacks`, which must be their only owner: so no more than one leaf is held twice, and
    none is put whole on one device.
    """
    placed = {}
    for stack, wanted in _by_stack(like).items():
        leaves = stacks.pop(stack)
        shardings = {name: leaf.sharding for name, leaf in wanted.items()}
        if leaves.keys() == wanted.keys():
            placed |= leaves  # read to where they belong
        else:
            convert = jax.jit(
                functools.partial(parameter_names.as_stored_in, names=list(wanted)), out_shardings=shardings
            )
            placed |= convert(leaves)
    return placed
