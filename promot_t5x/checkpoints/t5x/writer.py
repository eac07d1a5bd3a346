"""Writes checkpoints that T5X reads, in both formats and both layouts, without T5X.

The parameters are under `target`; of the optimizer's state only the step is written, so T5X starts with fresh slots
(`assignment_map` with `state/param_states` to None).

Source: https://github.com/google-research/t5x, `checkpoints.py`, and the Orbax documentation.
"""

import math

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from flax import serialization

from promot_t5x.checkpoints import arrays, stored_leaves
from promot_t5x.checkpoints.stored_leaves import Leaves, StoredLeaf
from promot_t5x.checkpoints.t5x import layouts, reader
from promot_t5x.models import parameter_names

_CHUNK_BYTES = 2**26  # of an array in the legacy format, at most; T5X's own bound


def as_named(leaves: Leaves, *, scanned: bool, head_dim: int) -> dict[str, StoredLeaf]:
    """Our leaves under T5X's names and in its shapes.

    Args:
      leaves: in either of our layouts.
      scanned: True for the layout of `scalable_t5`, False for that of `t5`.
      head_dim: width of a head, a separate dimension in `scalable_t5`.

    Raises:
      ValueError: `t5` shares one table of relative positions, but those of the layers differ.
    """
    if scanned:
        return layouts.to_scanned(leaves, head_dim)
    return layouts.with_relative_bias(parameter_names.unstack_layers(leaves, stored_leaves.layer), "shared")


def write_legacy(folder: epath.PathLike, named: Leaves, step: int) -> None:
    """Writes one zarr folder per leaf, block by block, and at last the msgpack index, which makes it a checkpoint.

    Args:
      folder: `.../checkpoint_N`, local or gs://; created if missing.
      named: from `as_named`.
      step: the training step that the checkpoint names.
    """
    folder, target = epath.Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, leaf in named.items():
        file = "target." + name.replace("/", ".")
        shape = stored_leaves.block_shape(leaf.shape, _CHUNK_BYTES // leaf.dtype.itemsize)
        metadata = {"shape": list(leaf.shape), "chunks": list(shape), "compressor": {"id": "gzip", "level": 1}}
        spec = {"driver": "zarr", "dtype": leaf.dtype.name, "metadata": metadata}
        store = ts.open({**spec, "kvstore": arrays.kvstore(folder / file)}, create=True, open=False).result()
        for block in stored_leaves.blocks(leaf.shape, math.prod(shape)):
            store[block].write(leaf.read(block)).result()
        target[name] = {**spec, "kvstore": {"driver": "file", "path": file + "/"}}
    optimizer = {"state": {"step": np.int32(step)}, "target": parameter_names.unflatten(target)}
    index = serialization.msgpack_serialize({"version": reader.LEGACY_VERSION, "optimizer": optimizer})
    (folder / reader.LEGACY_FILE).write_bytes(index)


def write_orbax(folder: epath.PathLike, named: Leaves, step: int) -> None:
    """The same in Orbax's format, which takes all leaves at once, so the whole model is in memory.

    Args:
      folder: `.../checkpoint_N`, local or gs://; must not exist.
      named: from `as_named`.
      step: the training step that the checkpoint names.
    """
    target = {name: stored_leaves.whole(leaf) for name, leaf in named.items()}
    state = {"target": parameter_names.unflatten(target), "state": {"step": np.int32(step)}}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(epath.Path(folder), args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)))
