"""Reads the parameters of checkpoints written by T5X, in both of its formats, without T5X.

Legacy: a folder with a msgpack file `checkpoint` = {version: 3, optimizer: {state, target}}, in which a large leaf is a
tensorstore spec naming a zarr folder beside the file and a small leaf is stored inline. Orbax: a folder (or its
subfolder `state`) with `_METADATA` and one array per leaf, usually inside an OCDBT key-value store. Only the parameters
(`target`) are read, never the optimizer's state. Nothing is unpickled.

Source: https://github.com/google-research/t5x, `checkpoints.py`, and the Orbax documentation.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

_LEGACY_VERSION = 3
_LEGACY_FILE = "checkpoint"
_ORBAX_FILE = "_METADATA"
_PARAMETERS = "target"


class _StoredArray(NamedTuple):
    """An array on disk: where it is, and what the checkpoint's index says it is (None: the index does not say)."""

    location: str
    spec: dict[str, Any]
    shape: tuple[int, ...] | None
    dtype: np.dtype | None


_Leaves = dict[str, "_StoredArray | np.ndarray"]


def is_t5x_checkpoint(path: epath.PathLike) -> bool:
    """Whether a folder is one T5X checkpoint, of either format; False also when there is nothing there.

    Only the opening of the folder's index is looked at: a damaged T5X checkpoint is still one.

    Args:
        path: folder `.../checkpoint_N`, or `.../checkpoint_N/state` of an Orbax one; a local path or gs://.
    """
    folder = _as_folder(path)
    return folder.is_dir() and (_is_legacy(folder) or _orbax_folder(folder) is not None)


def read_metadata(path: epath.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Names, shapes and dtypes of the parameters, without reading the arrays.

    Args:
        path: folder `.../checkpoint_N`, or `.../checkpoint_N/state` of an Orbax one; a local path or gs://.

    Returns:
        Flat names such as `encoder/layers_0/attention/query/kernel`, sorted, with shape and dtype as stored. A
        checkpoint with scanned layers keeps its own names (`encoder/encoder/...`).

    Raises:
        FileNotFoundError: if the folder, or an array that its index lists, does not exist.
        ValueError: if it is not a T5X checkpoint, has another version, or is damaged.
    """
    leaves = _leaves(path)
    unknown = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, _StoredArray) and leaf.shape is None}
    stores = _open(unknown)
    metadata = {}
    for name, leaf in leaves.items():
        if name in stores:
            shape, dtype = tuple(stores[name].shape), np.dtype(stores[name].dtype.numpy_dtype)
        else:
            shape, dtype = leaf.shape, leaf.dtype
        metadata[name] = jax.ShapeDtypeStruct(shape, dtype)
    return metadata


def read_params(path: epath.PathLike) -> dict[str, np.ndarray]:
    """All parameters of a checkpoint, as host arrays in the dtype they are stored in.

    Args:
        path: folder `.../checkpoint_N`, or `.../checkpoint_N/state` of an Orbax one; a local path or gs://.

    Returns:
        Flat names such as `encoder/layers_0/attention/query/kernel`, sorted, with their arrays.

    Raises:
        FileNotFoundError: if the folder, or an array that its index lists, does not exist.
        ValueError: if it is not a T5X checkpoint, has another version, is damaged, or has scanned layers.
    """
    leaves = _leaves(path)
    scanned = [name for name in leaves if name.startswith(("encoder/encoder/", "decoder/decoder/"))]
    if scanned:
        raise ValueError(
            f"The T5X checkpoint {path} has scanned layers ({scanned[0]}, the scalable_t5 layout), which is not read "
            "yet: give one with a parameter per layer (encoder/layers_0/..., the t5 layout)."
        )
    stored = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, _StoredArray)}
    stores = _open(stored)
    reads = {name: store.read() for name, store in stores.items()}
    params = {}
    for name, leaf in leaves.items():
        if not isinstance(leaf, _StoredArray):
            params[name] = leaf
            continue
        try:
            params[name] = np.asarray(reads.pop(name).result())
        except MemoryError:  # the machine is too small, the file is not to blame
            raise
        except Exception as error:
            raise ValueError(_damaged(leaf.location, f"the array cannot be read: {_line(error)}")) from error
    return params


def _as_folder(path: epath.PathLike) -> epath.Path:
    return epath.Path(str(path).rstrip("/") or "/").expanduser()


def _is_legacy(folder: epath.Path) -> bool:
    """A folder with a file `checkpoint` that opens as T5X's map does (TensorFlow has a text file of that name)."""
    index = folder / _LEGACY_FILE
    if not index.is_file():
        return False
    with index.open("rb") as file:
        start = file.read(16)
    # A msgpack map of up to 15 entries (0x80 + n) whose first key is a short string (0xa0 + length).
    return start[:1] in (b"\x81", b"\x82", b"\x83") and start[1:].startswith((b"\xa7version", b"\xa9optimizer"))


def _orbax_folder(folder: epath.Path) -> epath.Path | None:
    """The folder with the Orbax metadata of a tree that holds `target`, if there is one here or in `state`."""
    for candidate in (folder, folder / "state"):
        if (candidate / _ORBAX_FILE).is_file():
            # Looked for as text, so that a damaged file is still recognised and reported as damaged.
            return candidate if f"('{_PARAMETERS}'," in (candidate / _ORBAX_FILE).read_text() else None
    return None


def _leaves(path: epath.PathLike) -> _Leaves:
    """The parameters as listed by the checkpoint's index, sorted by name."""
    folder = _as_folder(path)
    if not folder.exists():
        raise FileNotFoundError(f"The T5X checkpoint folder {folder} does not exist: check the path.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a T5X checkpoint folder such as checkpoint_1000000.")
    if _is_legacy(folder):
        leaves = _legacy_leaves(folder)
    elif (state := _orbax_folder(folder)) is not None:
        leaves = _orbax_leaves(state)
    else:
        raise ValueError(_not_a_checkpoint(folder))
    return dict(sorted(leaves.items()))


def _not_a_checkpoint(folder: epath.Path) -> str:
    steps = [(int(m[1]), m[0]) for child in folder.iterdir() if (m := re.fullmatch(r"checkpoint_(\d+)", child.name))]
    if steps:
        names = ", ".join(name for _, name in sorted(steps))
        return f"{folder} is not a checkpoint but holds {len(steps)} of them ({names}): give the path of one."
    return (
        f"{folder} is not a T5X checkpoint: expected a msgpack file `{_LEGACY_FILE}` of T5X, or an Orbax "
        f"`{_ORBAX_FILE}` (here or in `state`) that lists parameters under `{_PARAMETERS}`."
    )


def _legacy_leaves(folder: epath.Path) -> _Leaves:
    index = folder / _LEGACY_FILE
    try:
        content: Any = serialization.msgpack_restore(index.read_bytes())
    except Exception as error:
        raise ValueError(_damaged(index, f"it is not complete msgpack ({_line(error)})")) from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != _LEGACY_VERSION:
        raise ValueError(
            f"{index} has version {version}, expected {_LEGACY_VERSION}: save it again with a current T5X."
        )
    optimizer = content.get("optimizer")
    target = optimizer.get(_PARAMETERS) if isinstance(optimizer, dict) else None
    if not isinstance(target, dict) or not target:
        raise ValueError(_damaged(index, f"it has no parameters under optimizer/{_PARAMETERS}"))
    flat = traverse_util.flatten_dict(target, is_leaf=lambda _, node: "driver" in node, sep="/")
    return {name: _legacy_leaf(folder, name, leaf) for name, leaf in flat.items()}


def _legacy_leaf(folder: epath.Path, name: str, leaf: Any) -> "_StoredArray | np.ndarray":
    if not isinstance(leaf, Mapping):
        if not isinstance(leaf, np.ndarray | np.generic):
            raise ValueError(
                _damaged(folder / _LEGACY_FILE, f"the parameter {name} is a {type(leaf).__name__}, not an array")
            )
        return np.asarray(leaf)
    # T5X wraps an array that it saved in another dtype than it trained in; the stored one is inside.
    spec = leaf["base"] if leaf.get("driver") == "cast" else leaf
    try:
        # The writer's store (gfile, gcs) does not matter: every array folder lies directly in the checkpoint's.
        array_folder = folder / spec["kvstore"]["path"].rstrip("/").rsplit("/", 1)[-1]
        shape = tuple(spec["metadata"]["shape"])
        dtype = np.dtype(spec["metadata"].get("dtype") or spec["dtype"])
        driver = spec["driver"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            _damaged(folder / _LEGACY_FILE, f"the array spec of {name} cannot be understood ({_line(error)})")
        ) from error
    return _StoredArray(str(array_folder), {"driver": driver, "kvstore": _kvstore(array_folder)}, shape, dtype)


def _orbax_leaves(folder: epath.Path) -> _Leaves:
    index = folder / _ORBAX_FILE
    try:
        content = json.loads(index.read_text())
        key_paths = [
            tuple(str(part["key"]) for part in entry["key_metadata"]) for entry in content["tree_metadata"].values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_damaged(index, f"it is not complete Orbax metadata ({_line(error)})")) from error
    driver = "zarr3" if content.get("use_zarr3") else "zarr"
    ocdbt = (folder / "manifest.ocdbt").exists()
    if not ocdbt and content.get("use_ocdbt"):
        raise FileNotFoundError(f"{folder} has no manifest.ocdbt, which holds its arrays: copy the checkpoint again.")
    leaves: _Leaves = {}
    for key_path in key_paths:
        if key_path[0] != _PARAMETERS:
            continue
        key = ".".join(key_path)
        if ocdbt:
            kvstore: Any = {"driver": "ocdbt", "base": _kvstore(folder), "path": key + "/"}
        else:
            kvstore = _kvstore(folder / key)
        leaves["/".join(key_path[1:])] = _StoredArray(
            str(folder / key), {"driver": driver, "kvstore": kvstore}, None, None
        )
    return leaves


def _kvstore(folder: epath.Path) -> "str | dict[str, str]":
    """tensorstore's way of naming a folder."""
    if "://" in str(folder):
        return str(folder) + "/"
    return {"driver": "file", "path": str(folder.resolve()) + "/"}


def _open(leaves: Mapping[str, "_StoredArray | np.ndarray"]) -> dict[str, ts.TensorStore]:
    """Opens arrays together, which reads their headers only, and compares them with what the index says."""
    context = ts.Context({"file_io_concurrency": {"limit": 64}})
    futures = {}
    for name, leaf in leaves.items():
        assert isinstance(leaf, _StoredArray)
        # Without the last option a lost chunk would be read as zeros.
        spec = {**leaf.spec, "fill_missing_data_reads": False}
        futures[name] = (leaf, ts.open(ts.Spec(spec), read=True, open=True, context=context))
    stores = {}
    for name, (leaf, future) in futures.items():
        try:
            store = future.result()
        except Exception as error:
            if "NOT_FOUND" in str(error):
                raise FileNotFoundError(
                    f"The array {leaf.location} of the parameter {name} does not exist, though the checkpoint's index "
                    "lists it: copy the checkpoint again."
                ) from error
            raise ValueError(_damaged(leaf.location, f"the array cannot be opened: {_line(error)}")) from error
        found = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)
        if leaf.shape is not None and found != (leaf.shape, leaf.dtype):
            raise ValueError(
                _damaged(leaf.location, f"it is {found[1]}{found[0]} where the index says {leaf.dtype}{leaf.shape}")
            )
        stores[name] = store
    return stores


def _damaged(location: epath.PathLike, found: str) -> str:
    return f"The T5X checkpoint file {location} is damaged: {found}; copy the checkpoint again."


def _line(error: Exception) -> str:
    """An error's first line, cut, for use inside a sentence."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0].split(" [")[0][:160].rstrip(".")
