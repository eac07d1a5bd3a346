"""Parameters in files of any format, read block by block, so that no host ever holds a whole model.

A format's reader lists its leaves under our names (see `models.parameter_names`), one leaf per layer or a stack of
layers, each with a function that reads any block of it. A format's writer takes such leaves, so any format can be
converted to any other. If a format lays out an array in another way, its leaf is a view: `transposed`, `joined`,
`split`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from promot_t5x.models import parameter_names

Index = tuple[slice, ...]

DTYPES = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))

"""The dtypes that weights and soft prompts may be stored in."""

_CHECKED_AT_ONCE = 2**16  # elements, few enough to stay in the processor's cache

BLOCK = 2**24  # elements that are read at once if a leaf is not needed as a whole

_ALIGNMENT = 64  # bytes


class StoredLeaf(NamedTuple):
    """One parameter in a file.

    Attributes:
      shape: the leaf's shape, which may differ from the file's.
      dtype: as stored, including ml_dtypes.bfloat16.
      source: the file and the name inside it, for messages.
      read: takes one slice per dimension, with start and stop and without a step, and returns that block as an array of
        `dtype`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    source: str
    read: Callable[[Index], np.ndarray]


Leaves = Mapping[str, StoredLeaf]

"""Names, such as `encoder/layers_0/mlp/wo/kernel`, to leaves; sorted by name."""


def everything(shape: Sequence[int]) -> Index:
    """The index of a whole array."""
    return tuple(slice(0, size) for size in shape)


def whole(leaf: StoredLeaf) -> np.ndarray:
    """All of a leaf.

    >>> whole(from_array(np.arange(3), "an example")).tolist()
    [0, 1, 2]
    """
    return leaf.read(everything(leaf.shape))


def from_array(array: np.ndarray, source: str) -> StoredLeaf:
    """A leaf that is in memory already."""
    return StoredLeaf(array.shape, array.dtype, source, array.__getitem__)


def entering(leaf: StoredLeaf) -> StoredLeaf:
    """A leaf that every reader of files returns: its dtype is checked, and each block of numbers when it is read.

    Raises:
      ValueError: the dtype is not one of DTYPES; when a block is read: it holds numbers that are not finite.
    """
    if leaf.dtype not in DTYPES:
        raise ValueError(
            f"{leaf.source} is of {leaf.dtype}, expected one of {', '.join(map(str, DTYPES))}: save it in one of these."
        )

    def read(index: Index) -> np.ndarray:
        block = leaf.read(index)
        check_finite(block, leaf.source)
        return block

    return leaf._replace(read=read)


def check_finite(array: np.ndarray, source: epath.PathLike) -> None:
    """Checks that no element of an array is NaN or infinite.

    Args:
      array: of one of DTYPES.
      source: where it was read or is to be written, for the message.

    Raises:
      ValueError: an element is.
    """
    if not is_finite(array):
        raise ValueError(
            f"{source} holds numbers that are not finite (NaN or infinity): its run diverged, or it is damaged; take "
            "an earlier checkpoint or copy it again."
        )


def is_finite(array: np.ndarray) -> bool:
    """Whether no element of an array is NaN or infinite.

    >>> is_finite(np.ones(3, np.float16)), is_finite(np.array([1, np.inf], ml_dtypes.bfloat16))
    (True, False)
    """
    # NaN and infinity have all exponent bits set. Integers are compared, since numpy is slow on bfloat16.
    exponent = np.array([np.inf], array.dtype).view(f"u{array.dtype.itemsize}")[0]
    bits = array.reshape(-1).view(exponent.dtype)
    starts = range(0, bits.size, _CHECKED_AT_ONCE)
    return all((bits[i : i + _CHECKED_AT_ONCE] & exponent).max() < exponent for i in starts)


def converted(array: np.ndarray, dtype: Any, source: epath.PathLike) -> np.ndarray:
    """An array of finite numbers in another floating dtype.

    Args:
      array: the numbers.
      dtype: the dtype that is wanted.
      source: where the array was read, for the message.

    Raises:
      ValueError: a number is too large for the dtype.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if not is_finite(result):
        largest = float(np.abs(array).max())
        raise ValueError(
            f"{source} holds numbers up to {largest:.3g}, which are too large for {np.dtype(dtype)}: save it with "
            "smaller numbers."
        )
    return result


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """numpy.empty, aligned so that JAX's CPU devices can use the array without a copy."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def transposed(leaf: StoredLeaf, axes: Sequence[int]) -> StoredLeaf:
    """numpy.transpose of a leaf.

    >>> transposed(from_array(np.zeros((2, 3)), "an example"), (1, 0)).shape
    (3, 2)
    """

    def read(index: Index) -> np.ndarray:
        original = [slice(None)] * len(axes)
        for position, axis in enumerate(axes):
            original[axis] = index[position]
        return leaf.read(tuple(original)).transpose(axes)

    return leaf._replace(shape=tuple(leaf.shape[axis] for axis in axes), read=read)


def joined(leaf: StoredLeaf, axis: int) -> StoredLeaf:
    """A leaf whose dimensions `axis` and `axis` + 1 are merged; whole rows of the second are read.

    >>> joined(from_array(np.zeros((2, 3, 4)), "an example"), 1).shape
    (2, 12)
    """
    inner = leaf.shape[axis + 1]

    def read(index: Index) -> np.ndarray:
        start, stop = index[axis].start, index[axis].stop
        first, last = start // inner, math.ceil(stop / inner)
        block = leaf.read((*index[:axis], slice(first, last), slice(0, inner), *index[axis + 1 :]))
        flat = block.reshape(*block.shape[:axis], -1, *block.shape[axis + 2 :])
        return flat[(slice(None),) * axis + (slice(start - first * inner, stop - first * inner),)]

    size = leaf.shape[axis] * inner
    return leaf._replace(shape=(*leaf.shape[:axis], size, *leaf.shape[axis + 2 :]), read=read)


def split(leaf: StoredLeaf, axis: int, inner: int) -> StoredLeaf:
    """The inverse of `joined`: the dimension becomes two, the second of size `inner`.

    >>> split(from_array(np.zeros((2, 12)), "an example"), 1, 4).shape
    (2, 3, 4)

    Raises:
      ValueError: `inner` does not divide the dimension.
    """
    if leaf.shape[axis] % inner:
        raise ValueError(
            f"{leaf.source} has a dimension of {leaf.shape[axis]}, expected a multiple of {inner}; check the "
            "network's sizes."
        )

    def read(index: Index) -> np.ndarray:
        outer, within = index[axis], index[axis + 1]
        rows = slice(outer.start * inner, outer.stop * inner)
        block = leaf.read((*index[:axis], rows, *index[axis + 2 :]))
        parts = block.reshape(*block.shape[:axis], -1, inner, *block.shape[axis + 1 :])
        return parts[(slice(None),) * (axis + 1) + (within,)]

    return leaf._replace(
        shape=(*leaf.shape[:axis], leaf.shape[axis] // inner, inner, *leaf.shape[axis + 1 :]), read=read
    )


def stack(leaves: Sequence[StoredLeaf]) -> StoredLeaf:
    """Leaves of one shape as one leaf with a new leading axis.

    Raises:
      ValueError: they differ in shape or dtype.
    """
    first = leaves[0]
    for leaf in leaves:
        if (leaf.shape, leaf.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"{leaf.source} is {leaf.dtype}{leaf.shape} where {first.source} is {first.dtype}{first.shape}: the "
                "layers of one stack must be alike."
            )

    def read(index: Index) -> np.ndarray:
        chosen = leaves[index[0]]
        result = empty((len(chosen), *(i.stop - i.start for i in index[1:])), first.dtype)
        for row, leaf in zip(result, chosen, strict=True):
            row[...] = leaf.read(index[1:])
        return result

    return StoredLeaf((len(leaves), *first.shape), first.dtype, first.source, read)


def layer(stacked: StoredLeaf, number: int) -> StoredLeaf:
    """One leaf of a stack."""

    def read(index: Index) -> np.ndarray:
        return stacked.read((slice(number, number + 1), *index))[0]

    return stacked._replace(shape=stacked.shape[1:], read=read)


def as_stored_in(leaves: Leaves, names: Any) -> dict[str, StoredLeaf]:
    """The leaves in the layout of `names`, one per layer or stacked; see `parameter_names`."""
    return parameter_names.as_stored_in(leaves, names, layer, stack)


def blocks(shape: Sequence[int], most: int) -> Iterator[Index]:
    """Indices of blocks of at most `most` elements that make up an array, cut along its leading dimensions.

    >>> [[(i.start, i.stop) for i in index] for index in blocks((3, 4), 8)]
    [[(0, 2), (0, 4)], [(2, 3), (0, 4)]]
    """
    sizes = block_shape(shape, most)
    starts = (range(0, size, step) for size, step in zip(shape, sizes, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(at, min(at + step, size)) for at, step, size in zip(corner, sizes, shape, strict=True))


def block_shape(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """The shape of the largest block that `blocks` yields.

    >>> block_shape((3, 4), 8), block_shape((3, 4), 2), block_shape((3, 4), 100)
    ((2, 4), (1, 2), (3, 4))
    """
    sizes = list(shape)
    for axis, size in enumerate(shape):
        sizes[axis] = max(1, min(size, most // max(1, math.prod(shape[axis + 1 :]))))
    return tuple(sizes)


def num_bytes(leaf: StoredLeaf) -> int:
    """The size of a whole leaf in bytes.

    >>> num_bytes(from_array(np.zeros((2, 3), np.float16), "an example"))
    12
    """
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def equal(one: StoredLeaf, other: StoredLeaf) -> bool:
    """Whether two leaves hold the same bits, compared block by block."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(one.read(index).tobytes() == other.read(index).tobytes() for index in blocks(one.shape, BLOCK))


def bit_sum(leaf: StoredLeaf) -> int:
    """The sum of all elements' bits as unsigned integers, modulo 2**32 (see `fingerprints.fingerprint`)."""
    unsigned = np.dtype(f"u{leaf.dtype.itemsize}")
    parts = (leaf.read(index) for index in blocks(leaf.shape, BLOCK))
    return sum(int(np.sum(np.ascontiguousarray(x).view(unsigned), dtype=np.uint64)) for x in parts) % 2**32
