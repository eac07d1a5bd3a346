"""A run's folder (MODEL_DIR): which configuration it belongs to, where it stands, and what is left when it is finished.

config.gin  checkpoint_<step>/  finished.json  soft_prompt.safetensors, .json (when a prompt alone was trained)
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from promot_t5x import checkpoints, distributed, launcher, layout, records, soft_prompt, trainer

_CONFIG_FILE, _FINISHED_FILE = "config.gin", "finished.json"
# A run may go on with other ones of these: where it is, on which mesh, and how often it speaks.
_MAY_CHANGE = (
    "MODEL_DIR =",
    "train.train.model_dir =",
    "EVAL_BATCH_SIZE =",
    "evaluation.EvaluationConfig.batch_size =",
    "partitioning.Partitioner.",
    "PRESET =",
    "NUM_PARTITIONS =",
    "trainer.LoopConfig.log_period =",
    "checkpoints.CheckpointConfig.keep_latest =",
)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, and the checkpoint with the best validation score (the last one without scores)."""

    model_dir: str
    best_step: int
    best_score: float | None

    @property
    def best_checkpoint(self) -> str:
        """The folder of the best checkpoint."""
        return str(checkpoints.checkpoint_folder(self.model_dir, self.best_step))


def finished(folder: str) -> RunResult | None:
    """The result of a finished run, None for one that is not.

    Raises:
      ValueError: it was another configuration's run.
    """
    file = epath.Path(folder) / _FINISHED_FILE
    if not file.exists():
        return None
    _check_same_config(epath.Path(folder))
    logging.info("%s is finished", folder)
    return RunResult(folder, **json.loads(file.read_text()))


def claim(folder: str) -> None:
    """Writes the configuration that is in force into the folder.

    Raises:
      ValueError: the folder has checkpoints of another configuration.
    """
    _check_same_config(epath.Path(folder))
    records.write_whole(epath.Path(folder) / _CONFIG_FILE, launcher.operative_config().encode())


def _check_same_config(folder: epath.Path) -> None:
    """A folder holds one run: going on with other settings would report numbers that no configuration produces."""
    file = folder / _CONFIG_FILE
    if not file.exists() or not checkpoints.all_steps(folder):  # a mistake that stopped it at once may be mended
        return
    before, now = _settings(file.read_text()), _settings(launcher.operative_config())
    changed = [line for line in now if line not in before] + [f"{line} (before)" for line in before if line not in now]
    if changed:
        raise ValueError(
            f"{folder} holds a run with another configuration, for example {'; '.join(changed[:4])}; use a new "
            "MODEL_DIR or delete this one."
        )


def _settings(config: str) -> list[str]:
    """The bindings of a configuration that decide what a run computes."""
    return [line for line in launcher.bindings(config) if not line.startswith(_MAY_CHANGE)]


def restored(
    run_checkpoints: checkpoints.RunCheckpoints, fresh: trainer.TrainState, frozen: Any, base: dict[str, str] | None
) -> trainer.TrainState:
    """The state of the newest checkpoint, or `fresh` where there is none.

    Args:
      run_checkpoints: of the run.
      fresh: the state before the first step; gives structure and placement.
      frozen: the leaves that do not train.
      base: path and fingerprint of the model that the run starts from.

    Raises:
      ValueError: the checkpoint was trained from another model or behind another prompt, or is damaged.
    """
    step = run_checkpoints.latest_step()
    if step is None:
        return fresh
    folder = checkpoints.checkpoint_folder(run_checkpoints.folder, step)
    stored_base = checkpoints.read_metadata(folder)["base"]
    if (stored_base or {}).get("fingerprint") != (base or {}).get("fingerprint"):  # the model may have moved
        raise ValueError(
            f"{folder} was trained from {stored_base}, this run starts from {base}; use the same initial checkpoint "
            "or a new MODEL_DIR."
        )
    # A frozen soft prompt is stored beside the trained leaves.
    frozen_prompt = {n: leaf for n, leaf in layout.flatten(frozen).items() if n == layout.PROMPT}
    read = checkpoints.read_params(folder, layout.flatten(fresh.trainable) | frozen_prompt)
    if frozen_prompt and not jax.jit(jnp.array_equal)(read[layout.PROMPT], frozen_prompt[layout.PROMPT]):
        raise ValueError(
            f"{folder} was trained behind another soft prompt than the initial checkpoint's; use the same initial "
            "checkpoint or a new MODEL_DIR."
        )
    trainable = layout.map_with_names(lambda n, leaf: None if leaf is None else read[n], fresh.trainable)
    logging.info("resuming %s at step %d", run_checkpoints.folder, step)
    return trainer.TrainState(step, trainable, run_checkpoints.restore_opt_state(step, fresh.opt_state))


def finish(folder: str, export_dir: str | None) -> RunResult:
    """Chooses the best checkpoint, writes the prompt file and the export, and marks the run as finished, last.

    Args:
      folder: the run's.
      export_dir: where to write the best parameters alone, None for nowhere.
    """
    distributed.barrier(f"finish {folder}")
    step = checkpoints.best_step(folder)
    best = checkpoints.checkpoint_folder(folder, step)
    facts, stored = checkpoints.read_metadata(best), checkpoints.shapes(best)
    if set(stored) == {layout.PROMPT}:
        prompt = checkpoints.read_params(best, stored)[layout.PROMPT]
        described = ("step", "score", "stage", "task", "base", "initialisation", "vocabulary")
        description = {key: facts.get(key) for key in described}
        soft_prompt.save(folder, jax.device_get(prompt), description)
    if export_dir is not None:
        base = facts["base"] if set(stored) == {layout.PROMPT} else None  # a prompt alone still needs its model
        checkpoints.export(export_dir, checkpoints.read_params(best, stored), {"step": step, "base": base})
    outcome = {"best_step": step, "best_score": facts["score"]}
    records.write(epath.Path(folder) / _FINISHED_FILE, outcome)
    distributed.barrier(f"finished {folder}")
    return RunResult(folder, **outcome)
