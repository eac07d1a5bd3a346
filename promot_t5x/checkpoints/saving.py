"""The checkpoints of a training run: Orbax folders with everything that a run needs to resume.

A run's folder holds `checkpoint_<step>/{params,opt_state,metadata}`. If the stage trains the model, `params` has the
whole model; a stage that trains only the soft prompt stores only that. `metadata` names the base by path and
fingerprint, and the network (see `networks`). Restoring is strict: names, shapes and dtypes are compared before any
array is read.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from promot_t5x.checkpoints import arrays, digests, placing, stored_leaves
from promot_t5x.checkpoints.metadata import PREFIX, read_metadata, sealed, step_in
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.models import parameter_names
from promot_t5x.runtime import arguments
from promot_t5x.runtime.files import absolute


@arguments.checked
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often a run saves, and which checkpoints it keeps.

    Attributes:
      period: steps between checkpoints; each is evaluated before it is saved. The last step is always saved.
      keep_latest: number of newest checkpoints to keep; the best one is always kept as well.
    """

    period: int = 1000
    keep_latest: int = dataclasses.field(default=1, metadata={"may_change": True})

    def __post_init__(self):
        if self.period < 1 or self.keep_latest < 1:
            raise ValueError(
                f"CheckpointConfig has period={self.period}, keep_latest={self.keep_latest}: expected at least 1 each."
            )


def _best(scores: Mapping[int, float | None]) -> int:
    """The step with the highest score, the earliest if several have it; without scores the newest."""
    return max(scores, key=lambda step: (-math.inf, step) if scores[step] is None else (scores[step], -step))


class _KeepBestAndNewest:
    """Tells Orbax which checkpoints to keep, by the scores in our own metadata, which survive a restart of the run."""

    def __init__(self, scores: dict[int, float | None], keep_latest: int):
        self._scores, self._keep_latest = scores, keep_latest

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        best = [_best({step: self._scores.get(step) for step in steps})] if steps else []
        kept = {*best, *sorted(steps)[-self._keep_latest :]}
        return [step in kept for step in steps]


class RunCheckpoints:
    """The checkpoints in one run's folder, saved in the background; the newest and the best are kept.

    Args:
      folder: the run's MODEL_DIR.
      config: how many to keep.
    """

    def __init__(self, folder: str | epath.Path, config: CheckpointConfig):
        self.folder = absolute(folder)
        self._scores = scores(self.folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("params", "opt_state", "metadata"),
            options=ocp.CheckpointManagerOptions(
                step_prefix=PREFIX,
                preservation_policy=_KeepBestAndNewest(self._scores, config.keep_latest),
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, params: Mapping, opt_state: Any, metadata: dict[str, Any], score: float | None) -> None:
        """Starts saving in the background, after the previous save has finished.

        Args:
          step: number of steps done.
          params: the parameters to store; leaves that are None are left out.
          opt_state: the optimizer's state, any tree of arrays.
          metadata: JSON values, see `read_metadata`.
          score: the validation score at this step, None without one.
        """
        leaves, names = _numbered(opt_state)
        flat = parameter_names.flatten(params)
        digests_of = {"params": digests.of_arrays(flat), "opt_state": digests.of_arrays(leaves)}
        described = {"step": step, "score": score, "opt_state": names, "digests": digests_of, **metadata}
        items = {
            "params": ocp.args.StandardSave(parameter_names.unflatten(flat)),
            "metadata": ocp.args.JsonSave(sealed(described)),
        }
        if leaves:  # plain gradient descent has none, and Orbax refuses to save an empty tree
            items["opt_state"] = ocp.args.StandardSave(leaves)
        self._scores[step] = score
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore_opt_state(self, step: int, opt_state_like: Any) -> Any:
        """The optimizer's state of a checkpoint, in the structure and sharding of `opt_state_like`.

        Raises:
          ValueError: it belongs to another optimizer or other parameters, or is damaged.
        """
        folder = checkpoint_folder(self.folder, step)
        leaves, names = _numbered(opt_state_like)
        stored = read_metadata(folder)["opt_state"]
        if stored != names:
            only_stored, only_wanted = sorted(set(stored) - set(names)), sorted(set(names) - set(stored))
            raise ValueError(
                f"The optimizer state in {folder} is another optimizer's: it has {only_stored[:3]} where this run has "
                f"{only_wanted[:3]}; use the run's own configuration or a new MODEL_DIR."
            )
        read = _opened(folder, "opt_state") if leaves else {}
        placing.compare(read, leaves, f"{folder}", "has another optimizer state than its metadata say", "copy it again")
        restored = placing.place(read, leaves)
        return jax.tree.unflatten(jax.tree.structure(opt_state_like), [restored[key] for key in leaves])

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _numbered(tree: Any) -> tuple[dict[str, Any], list[str]]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {f"{i:05d}": leaf for i, (_, leaf) in enumerate(paths)}
    return leaves, [f"{jax.tree_util.keystr(path)} {tuple(np.shape(leaf))} {leaf.dtype}" for path, leaf in paths]


def checkpoint_folder(run_folder: str | epath.Path, step: int) -> epath.Path:
    """The folder of a run's checkpoint at a step."""
    return epath.Path(run_folder) / f"{PREFIX}_{step}"


def is_checkpoint(folder: str | epath.Path) -> bool:
    """Whether a folder is one complete checkpoint written by this module (not a run's folder with several)."""
    folder = epath.Path(folder)
    return (folder / "metadata" / "metadata").exists() and ocp.path.step.is_path_finalized(folder)


def all_steps(run_folder: str | epath.Path) -> list[int]:
    """The steps of the complete checkpoints in a run's folder, ascending."""
    return [step for step in listed_steps(run_folder) if is_checkpoint(checkpoint_folder(run_folder, step))]


def listed_steps(run_folder: str | epath.Path) -> list[int]:
    """The steps of all checkpoints in a run's folder that were completed, even if files are missing now; ascending."""
    folder = epath.Path(run_folder)
    if not folder.is_dir():
        return []
    # A checkpoint that is still being written has a longer name. In a bucket, where Orbax does not rename, it lacks the
    # commit file that is_path_finalized looks for.
    steps = {path.name: step_in(path.name) for path in folder.iterdir()}
    return sorted(
        step for name, step in steps.items() if step is not None and ocp.path.step.is_path_finalized(folder / name)
    )


def described_steps(run_folder: str | epath.Path) -> str:
    """The complete checkpoints in a run's folder, for a sentence: "the checkpoints of steps 2, 4"."""
    steps = all_steps(run_folder)
    return f"the checkpoints of steps {', '.join(map(str, steps))}" if steps else "no checkpoints"


def best_step(run_folder: str | epath.Path) -> int:
    """The step with the highest score, the earliest if several have it; without scores the newest.

    Raises:
      FileNotFoundError: the folder holds no checkpoint.
      ValueError: a checkpoint's metadata are missing or damaged.
    """
    of_steps = scores(run_folder)
    if not of_steps:
        raise FileNotFoundError(f"There is no checkpoint in {run_folder}; expected folders {PREFIX}_<step>.")
    return _best(of_steps)


def scores(run_folder: str | epath.Path) -> dict[int, float | None]:
    """The scores of all checkpoints in a run's folder by their steps, ascending.

    Raises:
      ValueError: a checkpoint's metadata are missing or damaged.
    """
    return {step: read_metadata(checkpoint_folder(run_folder, step))["score"] for step in listed_steps(run_folder)}


def stored_params(folder: str | epath.Path) -> dict[str, StoredLeaf]:
    """The parameters of a checkpoint by their flat names; reads only their headers.

    Raises:
      ValueError: they cannot be read.
    """
    leaves = _opened(epath.Path(folder), "params")
    return {name: stored_leaves.entering(leaf) for name, leaf in leaves.items()}


def _opened(folder: epath.Path, item: str) -> dict[str, StoredLeaf]:
    """The leaves of a checkpoint's parameters or optimizer state, which are compared with their digests when read."""
    what = {"params": "parameters", "opt_state": "arrays of the optimizer state"}[item]
    described = read_metadata(folder).get("digests")
    try:
        leaves = arrays.unchecked(arrays.of_orbax(absolute(folder) / item))
    except (OSError, ValueError) as error:
        raise ValueError(f"The {what} in {folder} cannot be read: {arrays.line(error)}.") from error
    if described is not None:  # older checkpoints have none
        of_item = described.get(item, {})
        if lost := sorted(set(of_item) - set(leaves)):
            raise ValueError(f"The {what} in {folder} are damaged: they lack {lost[0]}; copy the checkpoint again.")
        leaves = {name: digests.checked(name, leaf, of_item.get(name)) for name, leaf in leaves.items()}
    return dict(sorted(leaves.items()))


def damage(folder: str | epath.Path) -> str | None:
    """What is wrong with a checkpoint, as a sentence, after reading all of it; None if it is whole."""
    try:
        items = ["params", *(["opt_state"] if read_metadata(folder).get("opt_state") else [])]
        for item in items:
            for leaf in _opened(epath.Path(folder), item).values():
                for index in stored_leaves.blocks(leaf.shape, stored_leaves.BLOCK):
                    leaf.read(index)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def shapes(folder: str | epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Names, shapes and dtypes of a checkpoint's parameters; reads no array.

    Raises:
      ValueError: they cannot be read.
    """
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored_params(folder).items()}


def read_params(folder: str | epath.Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Flat parameters of a checkpoint.

    Args:
      folder: one checkpoint.
      like: flat names to arrays or ShapeDtypeStructs, exactly those in the checkpoint. A leaf is read onto the devices
        of its sharding, one without a sharding into a numpy array.

    Raises:
      ValueError: names, shapes or dtypes differ (all are listed side by side), or the checkpoint is damaged.
    """
    leaves = stored_params(folder)
    placing.compare(leaves, like, str(folder))
    return placing.place(leaves, like)


def check_replaceable(folder: str | epath.Path) -> None:
    """Raises ValueError where an export would delete something that is no checkpoint of its own."""
    folder = absolute(folder)
    if folder.exists() and not (is_checkpoint(folder) or folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"{folder} holds something else than one checkpoint, which an export would delete; give a new folder."
        )


def export(folder: str | epath.Path, params: Mapping[str, Any], metadata: dict[str, Any]) -> None:
    """Writes parameters alone, without optimizer state, as one checkpoint that any run can start from.

    Args:
      folder: an existing export is replaced.
      params: nested or flat.
      metadata: step, base, and what `networks.described` returns.

    Raises:
      ValueError: the folder holds anything other than an export.
    """
    check_replaceable(folder)
    flat = parameter_names.flatten(params)
    stored = sealed({"score": None, "digests": {"params": digests.of_arrays(flat)}, **metadata})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            absolute(folder),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(parameter_names.unflatten(flat)),
                metadata=ocp.args.JsonSave(stored),
            ),
            force=True,  # replaces what an interrupted run has written
        )
