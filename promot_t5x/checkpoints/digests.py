"""Digests of the leaves of our own checkpoints: written with each checkpoint, compared whenever a block is read.

A leaf is cut into the shards that it had when it was saved, and these into blocks of at most `_BLOCK` elements, each
with a CRC-32 (see `crc32`). So every process hashes only what it holds, and a reader on another mesh, or of a part of
the leaf, compares every number that it reads. The checkpoint's metadata have

    "digests": {"params": {"encoder/layers_0/mlp/wo/kernel": {"shard": [2816, 1024], "block": [1024, 1024],
                                                              "crc32": "62f8b09c..."}, ...}, "opt_state": {...}}

with eight hexadecimal digits per block, in row-major order.
"""

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import Index, StoredLeaf
from promot_t5x.runtime import processes

_BLOCK = 2**20  # elements

_ROWS, _WORDS = 32, 512  # of 64-bit words that are added up, 128 KiB: they stay in the processor's cache

_DIGITS = 8  # of a CRC-32 in hexadecimal


def of_arrays(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The digests of arrays, as JSON values.

    With several processes, all of them must call this: each hashes its own shards, and all get all digests.

    Args:
      leaves: names to arrays of NumPy or JAX, sharded in any way.

    >>> of_arrays({"count": np.int32(7)})
    {'count': {'shard': [], 'block': [], 'crc32': 'bc93e7a5'}}
    """
    shards = {name: _shard_shape(leaf) for name, leaf in leaves.items()}
    edges = {name: _edges(np.shape(leaf), shards[name]) for name, leaf in leaves.items()}
    sums = [_crc32s(leaf, shards[name], edges[name]) for name, leaf in leaves.items()]
    if not sums:
        return {}
    ends = np.cumsum([len(of_leaf) for of_leaf in sums])
    by_leaf = np.split(processes.summed(np.concatenate(sums)), ends[:-1])
    return {
        name: {
            "shard": list(shards[name]),
            "block": list(stored_leaves.block_shape(shards[name], _BLOCK)),
            "crc32": "".join(f"{crc:0{_DIGITS}x}" for crc in of_leaf.tolist()),
        }
        for name, of_leaf in zip(leaves, by_leaf, strict=True)
    }


def _shard_shape(leaf: Any) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    shape = np.shape(leaf) if sharding is None else sharding.shard_shape(np.shape(leaf))
    return tuple(max(size, 1) for size in shape)  # so that an empty array has no blocks


def _edges(shape: Sequence[int], shard: Sequence[int], block: Sequence[int] | None = None) -> list[list[int]]:
    """Where the blocks of a leaf begin in each dimension, and the end of the last one."""
    steps = stored_leaves.block_shape(shard, _BLOCK) if block is None else block
    return [
        [at for start in range(0, size, part) for at in range(start, min(start + part, size), step)] + [size]
        for size, part, step in zip(shape, shard, steps, strict=True)
    ]


def _crc32s(leaf: Any, shard: Sequence[int], edges: list[list[int]]) -> np.ndarray:
    """The CRC-32 of each block, 0 for those of another process."""
    if hasattr(leaf, "addressable_shards"):
        # Orbax copies the same shards to the host, and JAX keeps the copy for it.
        own = {_corner(part.index): part.data for part in leaf.addressable_shards if part.replica_id == 0}
    else:
        own = {(0,) * np.ndim(leaf): leaf} if processes.speaks() else {}
    crcs = np.zeros(math.prod(len(of_axis) - 1 for of_axis in edges), np.uint32)
    for number, index in enumerate(itertools.product(*map(_slices, edges))):
        corner = tuple(i.start - i.start % part for i, part in zip(index, shard, strict=True))
        if corner in own:
            crcs[number] = crc32(np.asarray(own[corner])[_moved(index, corner)])
    return crcs


def _slices(edges: list[int]) -> list[slice]:
    return list(itertools.starmap(slice, itertools.pairwise(edges)))


def _corner(index: Index) -> tuple[int, ...]:
    return tuple(i.start or 0 for i in index)


def _moved(index: Index, origin: Sequence[int]) -> Index:
    """An index into an array as one into its part that begins at `origin`."""
    return tuple(slice(i.start - at, i.stop - at) for i, at in zip(index, origin, strict=True))


def crc32(block: np.ndarray) -> int:
    """The CRC-32 of the sums of an array's 64-bit words, and of the bytes that are left.

    Summed first, since a CRC of all bytes would take a fifth of the time of reading a checkpoint. Each piece of
    _ROWS x _WORDS words becomes _WORDS sums modulo 2**64, so a changed bit always changes a sum.
    """
    data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
    summed = data.size - data.size % (8 * _ROWS * _WORDS)
    sums = data[:summed].view(np.uint64).reshape(-1, _ROWS, _WORDS).sum(axis=1)
    return zlib.crc32(data[summed:].data, zlib.crc32(sums.data))


def checked(name: str, leaf: StoredLeaf, described: Any) -> StoredLeaf:
    """A leaf whose blocks are compared with their digests when they are read.

    Args:
      name: the leaf's, for messages.
      leaf: any block of it can be read; a few more numbers than asked for are, up to the ends of the digests' blocks.
      described: the leaf's entry in what `of_arrays` returned, from a file.

    Raises:
      ValueError: the entry does not fit the leaf; when a block is read: it differs from what was saved.
    """
    edges, crcs = _parsed(name, leaf, described)
    counts = [len(of_axis) - 1 for of_axis in edges]
    if not crcs:  # an empty array
        return leaf

    def read(index: Index) -> np.ndarray:
        parts = [_touched(of_axis, i) for of_axis, i in zip(edges, index, strict=True)]
        whole = tuple(slice(of_axis[p.start], of_axis[p.stop]) for of_axis, p in zip(edges, parts, strict=True))
        array = leaf.read(whole)
        for numbers in itertools.product(*(range(p.start, p.stop) for p in parts)):
            at = tuple(slice(of_axis[n], of_axis[n + 1]) for of_axis, n in zip(edges, numbers, strict=True))
            number = int(np.ravel_multi_index(numbers, counts)) if counts else 0
            if crc32(array[_moved(at, _corner(whole))]) != crcs[number]:
                raise ValueError(
                    f"{leaf.source} is damaged: the numbers of {name} differ from those that were saved; copy the "
                    "checkpoint again."
                )
        return array[(*_moved(index, _corner(whole)), ...)]  # an array also where there is no dimension

    return leaf._replace(read=read)


def _touched(edges: list[int], index: slice) -> slice:
    """The numbers of the blocks that an index touches, at least one of them."""
    first = int(np.searchsorted(edges, index.start, "right")) - 1
    return slice(first, max(int(np.searchsorted(edges, index.stop, "left")), first + 1))


def _parsed(name: str, leaf: StoredLeaf, described: Any) -> tuple[list[list[int]], list[int]]:
    """(where the blocks begin in each dimension, their CRC-32s)"""
    try:
        edges = _edges(leaf.shape, described["shard"], described["block"])
        text = described["crc32"]
        crcs = [int(text[at : at + _DIGITS], 16) for at in range(0, len(text), _DIGITS)]
        if len(crcs) == math.prod(len(of_axis) - 1 for of_axis in edges):
            return edges, crcs
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        f"The digest of {name} in the checkpoint's metadata does not fit {leaf.source} {leaf.shape}: it is missing or "
        "damaged; copy the checkpoint again."
    )
