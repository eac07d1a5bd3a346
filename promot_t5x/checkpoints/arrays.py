"""Arrays on disk that tensorstore reads: zarr folders, and those listed in Orbax metadata."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.runtime import files, strict_json
from promot_t5x.runtime.files import absolute

ORBAX_FILE = "_METADATA"


class StoredArray(NamedTuple):
    """An array on disk: its location, and its shape and dtype if the index of the checkpoint states them."""

    location: str
    spec: dict[str, Any]
    shape: tuple[int, ...] | None
    dtype: np.dtype | None


def of_orbax(folder: epath.Path, prefix: tuple[str, ...] = ()) -> dict[str, StoredArray]:
    """The arrays listed in Orbax metadata, by their keys joined with `/`.

    Args:
      folder: contains `_METADATA`.
      prefix: selects the arrays whose keys begin with it; it is removed from their names.

    Raises:
      FileNotFoundError: the metadata or the arrays' store are missing.
      ValueError: the metadata are damaged or a git-lfs pointer.
    """
    index = folder / ORBAX_FILE
    files.check_not_lfs_pointer(index)
    try:
        content = strict_json.loads(index.read_bytes())
        key_paths = [
            tuple(str(part["key"]) for part in entry["key_metadata"]) for entry in content["tree_metadata"].values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(damaged(index, f"it is not complete Orbax metadata ({line(error)})")) from error
    driver = "zarr3" if content.get("use_zarr3") else "zarr"
    ocdbt = (folder / "manifest.ocdbt").exists()
    if not ocdbt and content.get("use_ocdbt"):
        raise FileNotFoundError(f"{folder} has no manifest.ocdbt, which holds its arrays: copy the checkpoint again.")
    listed = {}
    for key_path in key_paths:
        if key_path[: len(prefix)] != prefix:
            continue
        key = ".".join(key_path)
        if ocdbt:
            store: Any = {"driver": "ocdbt", "base": kvstore(folder), "path": key + "/"}
        else:
            store = kvstore(folder / key)
        name = "/".join(key_path[len(prefix) :])
        listed[name] = StoredArray(str(folder / key), {"driver": driver, "kvstore": store}, None, None)
    return listed


def kvstore(folder: epath.Path) -> "str | dict[str, str]":
    """A folder as tensorstore names it."""
    if "://" in str(folder):
        return str(folder) + "/"
    return {"driver": "file", "path": str(absolute(folder)) + "/"}


def opened(arrays: Mapping[str, StoredArray]) -> dict[str, StoredLeaf]:
    """Weights: `unchecked` arrays whose dtype, and numbers when they are read, are checked (`stored_leaves.entering`).

    Raises:
      FileNotFoundError, ValueError: as `unchecked`; or an array is of a dtype that weights do not have.
    """
    return {name: stored_leaves.entering(leaf) for name, leaf in unchecked(arrays).items()}


def unchecked(arrays: Mapping[str, StoredArray]) -> dict[str, StoredLeaf]:
    """Opens arrays concurrently, reading their headers only, and compares them with the index.

    Raises:
      FileNotFoundError: an array is missing.
      ValueError: an array is damaged, or differs from the index.
    """
    context = ts.Context({"file_io_concurrency": {"limit": 64}})
    futures = {}
    for name, array in arrays.items():
        # Without the last option a missing chunk would be read as zeros.
        try:
            spec = ts.Spec({**array.spec, "fill_missing_data_reads": False})
        except ValueError as error:
            raise ValueError(damaged(array.location, f"it cannot be read as an array: {line(error)}")) from error
        futures[name] = ts.open(spec, read=True, open=True, context=context)
    return {name: _leaf(name, arrays[name], future) for name, future in futures.items()}


def _leaf(name: str, array: StoredArray, future: Any) -> StoredLeaf:
    try:
        store = future.result()
    except Exception as error:
        if "NOT_FOUND" in str(error):
            raise FileNotFoundError(
                f"The array {array.location} of the parameter {name} does not exist, though the checkpoint's index "
                "lists it: copy the checkpoint again."
            ) from error
        _check_downloaded(array.location)
        raise ValueError(damaged(array.location, f"the array cannot be opened: {line(error)}")) from error
    shape, dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)
    if array.shape is not None and (shape, dtype) != (array.shape, array.dtype):
        raise ValueError(
            damaged(array.location, f"it is {dtype}{shape} where the index says {array.dtype}{array.shape}")
        )

    def read(index: stored_leaves.Index) -> np.ndarray:
        try:
            block = stored_leaves.empty([i.stop - i.start for i in index], dtype)
            ts.array(block, dtype=store.dtype, copy=False).write(store[index].translate_to[0]).result()
            return block
        except MemoryError:  # the machine is too small; the file is fine
            raise
        except Exception as error:
            _check_downloaded(array.location)
            raise ValueError(damaged(array.location, f"the array cannot be read: {line(error)}")) from error

    return StoredLeaf(shape, dtype, array.location, read)


def integer(array: "StoredArray | np.ndarray") -> int:
    """Reads an array that holds one integer, such as a step.

    Raises:
      ValueError: it cannot be read, or holds anything else.
    """
    if isinstance(array, StoredArray):
        try:
            value = np.asarray(ts.open(ts.Spec(array.spec), read=True, open=True).result().read().result())
        except Exception as error:
            raise ValueError(damaged(array.location, f"the array cannot be read: {line(error)}")) from error
    else:
        value = np.asarray(array)
    if value.size != 1 or not np.issubdtype(value.dtype, np.integer):
        location = array.location if isinstance(array, StoredArray) else "the step"
        raise ValueError(damaged(location, f"it is {value.dtype}{value.shape}, expected one integer"))
    return int(value.reshape(()))


def _check_downloaded(location: str) -> None:
    """Raises ValueError if a file of an array that cannot be read is a git-lfs pointer."""
    folder = pathlib.Path(location)  # local: a bucket has no pointers
    store = folder if folder.is_dir() else folder.parent  # an OCDBT store holds all arrays of its folder
    if "://" not in location:
        for file in sorted(path for path in store.rglob("*") if path.is_file()):
            files.check_not_lfs_pointer(file)


def damaged(location: epath.PathLike, problem: str) -> str:
    """The error message for a damaged file."""
    return f"The checkpoint file {location} is damaged: {problem}; copy the checkpoint again."


def line(error: Exception) -> str:
    """An error's first line, shortened, for use inside a sentence."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0].split(" [")[0][:300].rstrip(".")
