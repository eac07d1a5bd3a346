"""Reads the parameters of checkpoints written by T5X, in both formats and both layouts, without T5X.

Legacy: a folder with a msgpack file `checkpoint` = {version: 3, optimizer: {state, target}}, in which a large leaf is a
tensorstore spec that names a zarr folder next to the file, and a small leaf is stored inline. Orbax: a folder (or its
subfolder `state`) with `_METADATA` and one array per leaf, usually inside an OCDBT key-value store. Only the parameters
(`target`) are read here, the optimizer's state in `optimizer_state`. Nothing is unpickled.

Source: https://github.com/google-research/t5x, `checkpoints.py`, and the Orbax documentation.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import serialization, traverse_util

from promot_t5x.checkpoints import arrays, stored_leaves
from promot_t5x.checkpoints.arrays import StoredArray
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.checkpoints.t5x import layouts
from promot_t5x.runtime import files

LEGACY_VERSION = 3

LEGACY_FILE = "checkpoint"

PARAMETERS = ("target",)

Listed = dict[str, "StoredArray | np.ndarray"]


def is_t5x_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder is one T5X checkpoint, of either format; False if it does not exist.

    Only the beginning of the index is examined, so a damaged T5X checkpoint still counts as one.

    Args:
      folder: `.../checkpoint_N`, or `.../checkpoint_N/state` of an Orbax one; an absolute path or gs://.

    Raises:
      ValueError: the index is a git-lfs pointer.
    """
    return folder.is_dir() and (_is_legacy(folder) or _orbax_folder(folder) is not None)


def checkpoints_in(folder: epath.Path) -> list[str]:
    """The names of the folders `checkpoint_N` in a folder, sorted by number."""
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    matches = filter(None, (re.fullmatch(r"checkpoint_(\d+)", name) for name in names))
    return [match[0] for match in sorted(matches, key=lambda match: int(match[1]))]


def read(folder: epath.Path) -> dict[str, StoredLeaf]:
    """The parameters of a checkpoint under our names; arrays are opened concurrently, reading their headers only.

    Args:
      folder: `.../checkpoint_N`, or `.../checkpoint_N/state` of an Orbax one; an absolute path or gs://.

    Returns:
      Leaves sorted by name, such as `encoder/layers_0/attention/query/kernel`; stacks of layers (`encoder/layers/...`)
      if the checkpoint has the `scalable_t5` layout.

    Raises:
      FileNotFoundError: the folder, or an array that its index lists, does not exist.
      ValueError: it is not a T5X checkpoint, has another version, or is damaged; a damaged chunk is noticed when it is
        read.
    """
    by_name = opened(folder, listed(folder))
    return layouts.from_scanned(by_name) if layouts.is_scanned(by_name) else by_name


def opened(folder: epath.Path, leaves: Listed) -> dict[str, StoredLeaf]:
    """Opens the arrays that `listed` returned, concurrently, reading their headers only.

    Raises:
      FileNotFoundError: an array does not exist.
      ValueError: an array is damaged, or has another dtype than floating point.
    """
    in_files = arrays.opened({name: leaf for name, leaf in leaves.items() if isinstance(leaf, StoredArray)})
    inline = f"{folder / LEGACY_FILE}: "
    return {
        name: stored_leaves.entering(stored_leaves.from_array(leaf, inline + name))
        if isinstance(leaf, np.ndarray)
        else in_files[name]
        for name, leaf in leaves.items()
    }


def _is_legacy(folder: epath.Path) -> bool:
    """Whether a folder has a file `checkpoint` that begins like T5X's (TensorFlow has a text file of that name)."""
    index = folder / LEGACY_FILE
    if not index.is_file():
        return False
    files.check_not_lfs_pointer(index)
    with index.open("rb") as file:
        start = file.read(16)
    # A msgpack map of up to 15 entries (0x80 + n) whose first key is a short string (0xa0 + length).
    return start[:1] in (b"\x81", b"\x82", b"\x83") and start[1:].startswith((b"\xa7version", b"\xa9optimizer"))


def _orbax_folder(folder: epath.Path) -> epath.Path | None:
    """The folder with the Orbax metadata of a tree that has `target`: this one or its `state`; None for neither."""
    for candidate in (folder, folder / "state"):
        if (candidate / arrays.ORBAX_FILE).is_file():
            files.check_not_lfs_pointer(candidate / arrays.ORBAX_FILE)
            # Searched as bytes, so that a damaged file is still recognised and reported as damaged.
            content = (candidate / arrays.ORBAX_FILE).read_bytes()
            return candidate if f"('{PARAMETERS[0]}',".encode() in content else None
    return None


def listed(folder: epath.Path, part: tuple[str, ...] = PARAMETERS) -> Listed:
    """The leaves in a part of the checkpoint as its index lists them, sorted by name; nothing is opened.

    Args:
      folder: as for `read`.
      part: the path of the part, such as ("state", "param_states"); any but the parameters may be missing.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: it is not a T5X checkpoint, has another version, or its index is damaged.
    """
    if not folder.exists():
        raise FileNotFoundError(f"The T5X checkpoint folder {folder} does not exist: check the path.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a T5X checkpoint folder such as checkpoint_1000000.")
    if _is_legacy(folder):
        leaves = _legacy_leaves(folder, part)
    elif (state := _orbax_folder(folder)) is not None:
        leaves = arrays.of_orbax(state, part)
    else:
        raise ValueError(_not_a_checkpoint(folder))
    return dict(sorted(leaves.items()))


def _not_a_checkpoint(folder: epath.Path) -> str:
    if names := checkpoints_in(folder):
        return f"{folder} is not a checkpoint but holds {len(names)} of them, {', '.join(names)}: give the path of one."
    return (
        f"{folder} is not a T5X checkpoint: expected a msgpack file `{LEGACY_FILE}` of T5X, or an Orbax "
        f"`{arrays.ORBAX_FILE}` (here or in `state`) that lists parameters under `{PARAMETERS[0]}`."
    )


def _legacy_leaves(folder: epath.Path, part: tuple[str, ...]) -> Listed:
    index = folder / LEGACY_FILE
    try:
        content: Any = serialization.msgpack_restore(index.read_bytes())
    except Exception as error:
        raise ValueError(arrays.damaged(index, f"it is not complete msgpack ({arrays.line(error)})")) from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != LEGACY_VERSION:
        raise ValueError(f"{index} has version {version}, expected {LEGACY_VERSION}: save it again with a current T5X.")
    tree = content.get("optimizer")
    for key in part:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or not tree:
        if part != PARAMETERS:
            return {}
        raise ValueError(arrays.damaged(index, f"it has no parameters under optimizer/{PARAMETERS[0]}"))
    flat = traverse_util.flatten_dict(tree, is_leaf=lambda _, node: "driver" in node, sep="/")
    return {name: _legacy_leaf(folder, name, leaf) for name, leaf in flat.items()}


def _legacy_leaf(folder: epath.Path, name: str, leaf: Any) -> "StoredArray | np.ndarray":
    if not isinstance(leaf, Mapping):
        if not isinstance(leaf, np.ndarray | np.generic):
            raise ValueError(
                arrays.damaged(folder / LEGACY_FILE, f"the parameter {name} is a {type(leaf).__name__}, not an array")
            )
        return np.asarray(leaf)
    # T5X wraps the spec of an array that it saved in another dtype than it trained in.
    spec = leaf["base"] if leaf.get("driver") == "cast" else leaf
    try:
        # The writer's store (gfile, gcs) does not matter: every array's folder is directly in the checkpoint folder.
        array_folder = folder / spec["kvstore"]["path"].rstrip("/").rsplit("/", 1)[-1]
        shape = tuple(spec["metadata"]["shape"])
        dtype = np.dtype(spec["metadata"].get("dtype") or spec["dtype"])
        driver = spec["driver"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            arrays.damaged(
                folder / LEGACY_FILE, f"the array spec of {name} cannot be understood ({arrays.line(error)})"
            )
        ) from error
    return StoredArray(str(array_folder), {"driver": driver, "kvstore": arrays.kvstore(array_folder)}, shape, dtype)
