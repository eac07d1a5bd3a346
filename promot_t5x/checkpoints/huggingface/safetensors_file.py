"""Reads and writes the tensors of a safetensors file block by block, so that no whole file is ever in memory.

A file consists of the length of its header (8 bytes, little endian), the header as JSON (for each tensor its dtype,
shape, and where its bytes begin and end), and the bytes. The safetensors library does the reading; it can only write
tensors that are all in memory, so writing is done here.

Source: https://github.com/huggingface/safetensors, the section "Format" of its README.
"""

import json
import os
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.runtime import files, processes

DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_BLOCK_BYTES = 2**28

"""Most bytes of a tensor that are read or written at once."""


def leaves(file: epath.PathLike) -> dict[str, stored_leaves.StoredLeaf]:
    """All tensors of a file by name; reads only the header until a block is needed.

    Args:
      file: a local file.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is in a bucket, is damaged (the header is compared with the file's length), or holds tensors that
        are not floating-point.
    """
    path = epath.Path(file)
    if "://" in os.fspath(path):
        raise ValueError(
            f"{path} is not on a local disk, from which safetensors files must be read: copy its folder there."
        )
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} does not exist: check the path, or copy the missing file.")
    files.check_not_lfs_pointer(path)
    headers = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():
                piece = tensors.get_slice(name)
                headers[name] = (tuple(piece.get_shape()), piece.get_dtype())
    except safetensors.SafetensorError as error:
        raise ValueError(f"The safetensors file {path} is damaged ({error}): copy or save it again.") from error
    if odd := {name: dtype for name, (_, dtype) in headers.items() if dtype not in DTYPES}:
        name, dtype = next(iter(odd.items()))
        raise ValueError(
            f"The tensor {name} in {path} has the type {dtype}, expected one of {', '.join(DTYPES)}: save the model "
            "without quantization."
        )
    return {name: _leaf(path, name, shape, DTYPES[dtype]) for name, (shape, dtype) in headers.items()}


def metadata(content: bytes) -> dict[str, str]:
    """What a file, given as bytes that safetensors has read already, says about itself."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__") or {}


def _leaf(path: epath.Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> stored_leaves.StoredLeaf:
    def read(index: stored_leaves.Index) -> np.ndarray:
        # Opened for each block: an open file would keep all pages read so far in memory.
        with safetensors.safe_open(path, framework="numpy") as tensors:
            return tensors.get_slice(name)[index]

    return stored_leaves.entering(stored_leaves.StoredLeaf(shape, dtype, f"{path}: {name}", read))


def write(file: epath.PathLike, tensors: Mapping[str, stored_leaves.StoredLeaf]) -> None:
    """Writes tensors in the dtype they are stored in, block by block; the file is written atomically.

    Args:
      file: missing folders are created, an existing file is replaced. Only process 0 writes.
      tensors: leaves of any source.

    Raises:
      ValueError: a dtype that such files cannot hold.
      files.NoRoomError: the disk is full.
    """
    for name, leaf in tensors.items():
        if leaf.dtype not in _DTYPE_NAMES:
            raise ValueError(
                f"{leaf.source} is of {leaf.dtype}, which cannot be written to {file} as {name}: expected one of "
                f"{', '.join(map(str, _DTYPE_NAMES))}."
            )
    if not processes.speaks():
        return
    # The widest first, so that each tensor begins at a multiple of its width.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    with files.whole_file(file) as stream:
        stream.write(_header(tensors))
        for leaf in tensors.values():
            for index in stored_leaves.blocks(leaf.shape, _BLOCK_BYTES // leaf.dtype.itemsize):
                stream.write(np.ascontiguousarray(leaf.read(index)).view(np.uint8).data)


def _header(tensors: Mapping[str, stored_leaves.StoredLeaf]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    end = 0
    for name, leaf in tensors.items():
        begin, end = end, end + stored_leaves.num_bytes(leaf)
        header[name] = {
            "dtype": _DTYPE_NAMES[leaf.dtype],
            "shape": list(leaf.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the first tensor begins at a multiple of 8
    return struct.pack("<Q", len(text)) + text
