"""Weights that several runs read from one checkpoint: kept on the host once they were read for the second time.

They are known by the digests in the checkpoint's metadata, those of a foreign format by its files' inodes, sizes and
times, so a checkpoint that was replaced is read. Every process keeps the blocks of its own devices. See
`runtime.between_runs` for when weights are kept, and how many bytes.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from promot_t5x.checkpoints import fingerprints, placing, saving
from promot_t5x.checkpoints.sources import Source
from promot_t5x.checkpoints.stored_leaves import Leaves
from promot_t5x.models import parameter_names
from promot_t5x.runtime import between_runs, processes

_Blocks = dict[tuple[tuple[int, int], ...], np.ndarray]


class _Weights(NamedTuple):
    """A model's weights by name, without adapters, and their fingerprint; no blocks after the first reading."""

    blocks: dict[str, _Blocks]
    fingerprint: str


def read(source: Source, leaves: Leaves, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The parameters of a checkpoint on their devices, and the model's fingerprint.

    Args:
      source: the checkpoint.
      leaves, wanted: as for `placing.place`.

    Raises:
      ValueError: see `placing.place`.
    """
    kept = between_runs.kept("weights")
    key = None if kept is None else _identity(source, wanted)
    before: _Weights | None = kept.get(key) if kept and key else None
    if kept and _everywhere(before is not None and bool(before.blocks)):
        assert before is not None
        params = {name: _placed(of_leaf, wanted[name]) for name, of_leaf in before.blocks.items()}
        adapters = {name: leaf for name, leaf in wanted.items() if name not in params}
        if adapters:
            params |= placing.place({name: leaves[name] for name in adapters}, adapters)
        return {name: params[name] for name in wanted}, before.fingerprint
    params = placing.place(leaves, wanted)
    fingerprint = fingerprints.fingerprint(params)
    if kept and key:
        model = parameter_names.split_adapters(params)[0]
        size = sum(part.data.nbytes for leaf in model.values() for part in leaf.addressable_shards)
        again = before is not None and kept.fits(size)
        blocks = {name: _blocks(leaf) for name, leaf in model.items()} if again else {}
        kept.put(key, _Weights(blocks, fingerprint), size if again else 0)
    return params, fingerprint


def _identity(source: Source, wanted: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What tells the model's weights from all others; None if nothing does, as for foreign formats in a bucket."""
    folder = source.model.folder
    digests = saving.read_metadata(folder).get("digests") if source.model.format == "promot" else None
    if digests is not None:
        contents = hashlib.sha256(json.dumps(digests["params"], sort_keys=True).encode()).hexdigest()
    elif "://" not in str(folder):
        # The kernel sets the time of change, also where a copy restores the time of modification.
        stats = {str(path): path.stat() for path in sorted(pathlib.Path(folder).rglob("*"))}
        contents = tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats.items())
    else:
        return None
    return str(folder), contents, tuple(parameter_names.split_adapters(wanted)[0].items())


def _everywhere(here: bool) -> bool:
    """Whether something holds in all processes."""
    return not processes.summed(np.array([not here], np.int32)).any()


def _blocks(leaf: jax.Array) -> _Blocks:
    # On a CPU this is the device's own memory, which no step may overwrite as long as something else refers to it.
    return {_ends(part.index, leaf.shape): np.asarray(part.data) for part in leaf.addressable_shards}


def _placed(blocks: _Blocks, like: Any) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: blocks[_ends(index, like.shape)])


def _ends(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(i.indices(size)[:2] for i, size in zip(index, shape, strict=True))
