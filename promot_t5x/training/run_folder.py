"""A run's folder (MODEL_DIR): its settings, the checkpoint it resumes from, and what a finished run leaves.

settings.json  config.gin (from gin)  checkpoint_<step>/  metrics.jsonl  finished.json; of a prompt trained alone
soft_prompt.safetensors and soft_prompt.json; damaged_… what was set aside
"""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from promot_t5x.checkpoints import finished_run, networks, saving, soft_prompts
from promot_t5x.checkpoints.metadata import MisnamedError
from promot_t5x.models import parameter_names
from promot_t5x.runtime import files, processes, settings, strict_json
from promot_t5x.training import stages, train_step

_SETTINGS_FILE, _CONFIG_FILE = "settings.json", "config.gin"

_RESUME_FROM = "train.train.resume_from"

_SHOWN = 8  # settings named in one sentence


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, and the checkpoint with the best validation score (the last one without scores)."""

    model_dir: str
    best_step: int
    best_score: float | None

    @property
    def best_checkpoint(self) -> str:
        """The folder of the best checkpoint."""
        return str(saving.checkpoint_folder(self.model_dir, self.best_step))


def finished(folder: str, run_settings: Any) -> RunResult | None:
    """The result of a finished run, None for one that is not.

    Args:
      folder: the run's.
      run_settings: as for `claim`.

    Raises:
      ValueError: it was a run with other settings, its best checkpoint is gone, or a file is damaged.
    """
    if (best := finished_run.read(folder)) is None:
        return None
    _check_same_settings(epath.Path(folder), run_settings)
    return _said(RunResult(folder, *best))


def _said(result: RunResult) -> RunResult:
    """The result, after a line that says what it is."""
    score = "" if result.best_score is None else f" with validation score {result.best_score:.4f}"
    logging.info("%s is finished; its best checkpoint is that of step %d%s", result.model_dir, result.best_step, score)
    return result


def claim(folder: str, run_settings: Any, config_gin: str | None = None) -> None:
    """Writes the run's settings into its folder.

    Args:
      folder: the run's.
      run_settings: a dataclass with everything the run is configured with; fields that may differ on resumption are
        marked with the metadata {"may_change": True}.
      config_gin: the text of config.gin, None where gin configures nothing.

    Raises:
      ValueError: the folder has checkpoints of a run with other settings.
    """
    _check_same_settings(epath.Path(folder), run_settings)
    files.write_json(epath.Path(folder) / _SETTINGS_FILE, settings.describe(run_settings))
    if config_gin is not None:
        files.write_whole(epath.Path(folder) / _CONFIG_FILE, config_gin.encode())


def _check_same_settings(folder: epath.Path, run_settings: Any) -> None:
    """A folder holds one run: resumed with other settings, it would report numbers that no settings reproduce."""
    if not saving.all_steps(folder):  # a run that failed before its first checkpoint may be corrected
        return
    file = folder / _SETTINGS_FILE
    if not file.exists():
        raise ValueError(
            f"{folder} holds checkpoints but no {_SETTINGS_FILE}, which says how they were trained; use a new "
            "MODEL_DIR or delete this one."
        )
    try:
        before = strict_json.loads(file.read_bytes())
        if not isinstance(before, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise ValueError(
            f"{file} is not JSON ({error}), so this run cannot be compared with it; use a new MODEL_DIR or "
            "delete this one."
        ) from error
    changed = settings.differences(before, settings.describe(run_settings), settings.may_change(run_settings))
    if changed:
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        if any(re.match(r"tasks\..*\.data\.", clause) for clause in changed):
            more += " (what is under data are hashes of the files: put the old files back to resume)"
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed[:_SHOWN])}{more}; use a new MODEL_DIR or "
            "delete this one."
        )


def set_aside_newer(folder: str, step: int, run_settings: Any) -> None:
    """Renames the damaged checkpoints after a step, so that the run continues from it.

    Args:
      folder: the run's.
      step: of a whole checkpoint, `resume_from`.
      run_settings: as for `claim`; compared before anything is renamed.

    Raises:
      ValueError: it was a run with other settings, the checkpoint is missing or damaged, or a newer one is whole.
    """
    _check_same_settings(epath.Path(folder), run_settings)
    run, chosen = epath.Path(folder), saving.checkpoint_folder(folder, step)
    if step not in saving.all_steps(folder):
        holds = saving.described_steps(folder)
        raise ValueError(f"{_RESUME_FROM} is {step}, but {folder} holds {holds}; name one of these.")
    if problem := saving.damage(chosen):
        raise ValueError(f"{problem.rstrip('.')}, and {_RESUME_FROM} cannot be {step}.")
    names = [saving.checkpoint_folder(folder, newer).name for newer in saving.listed_steps(folder) if newer > step]
    for name in names:
        if saving.damage(run / name) is None:
            raise ValueError(
                f"{run / name} is whole and newer than {_RESUME_FROM}={step}: leave that out to continue from the "
                "newest checkpoint, or move the newer ones away."
            )
    processes.barrier(f"set aside {folder}")  # all have read them
    for name in [*names, *([finished_run.FILE] if names and (run / finished_run.FILE).exists() else [])]:
        aside = _aside(run / name)
        logging.warning("%s is set aside as %s", run / name, aside.name)
        if processes.speaks():
            (run / name).rename(aside)
    processes.barrier(f"set aside {folder} done")


def _aside(path: epath.Path) -> epath.Path:
    """The path of a damaged file or folder after it was set aside, with a number if that exists."""
    aside = path.with_name(f"damaged_{path.name}")
    numbered = (path.with_name(f"{aside.name}_{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([aside], numbered) if not p.exists())


@contextlib.contextmanager
def _saying_what_is_whole(folder: str | epath.Path, step: int) -> Iterator[None]:
    """Adds what to do to the error for a damaged checkpoint, that of `step`; changes no other error."""
    try:
        yield
    except MisnamedError:  # its sentence says what to do
        raise
    except ValueError as error:
        damaged = saving.checkpoint_folder(folder, step)
        if saving.damage(damaged) is None:
            raise
        others = (other for other in reversed(saving.all_steps(folder)) if other != step)
        whole = next((s for s in others if saving.damage(saving.checkpoint_folder(folder, s)) is None), None)
        if whole is None:
            advice = "no other checkpoint of this run is whole, so use a new MODEL_DIR"
        elif whole > step:
            advice = (
                f"the one of step {whole} is whole: rename {damaged.name} to {_aside(damaged).name}, and the same "
                "command continues with the best of the others"
            )
        else:
            advice = f"the one of step {whole} is whole, and --gin.{_RESUME_FROM}={whole} continues from it"
        raise ValueError(f"{str(error).rstrip('.')}; {advice}.") from error


def check_metadata(folder: str) -> None:
    """Reads the metadata of all checkpoints in a run's folder.

    Raises:
      ValueError: a file is damaged; the sentence says which older checkpoint is whole.
    """
    for step in saving.listed_steps(folder):
        with _saying_what_is_whole(folder, step):
            saving.read_metadata(saving.checkpoint_folder(folder, step))


def restored(
    run_checkpoints: saving.RunCheckpoints, fresh: train_step.TrainState, frozen: Any, base: dict[str, str] | None
) -> train_step.TrainState:
    """The state of the newest checkpoint, or `fresh` where there is none.

    Args:
      run_checkpoints: of the run.
      fresh: the state before the first step, with the structure and sharding of what is restored.
      frozen: the leaves that do not train.
      base: path and fingerprint of the model that the run starts from.

    Raises:
      ValueError: the checkpoint was trained from another model or with another prompt, or is damaged; then the sentence
        says which older one is whole.
    """
    step = run_checkpoints.latest_step()
    if step is None:
        return fresh
    with _saying_what_is_whole(run_checkpoints.folder, step):
        return _state_of(run_checkpoints, step, fresh, frozen, base)


def _state_of(
    run_checkpoints: saving.RunCheckpoints,
    step: int,
    fresh: train_step.TrainState,
    frozen: Any,
    base: dict[str, str] | None,
) -> train_step.TrainState:
    """The state of one checkpoint; see `restored`."""
    folder = saving.checkpoint_folder(run_checkpoints.folder, step)
    stored_base = saving.read_metadata(folder)["base"]
    if (stored_base or {}).get("fingerprint") != (base or {}).get("fingerprint"):  # the path may differ
        raise ValueError(
            f"{folder} was trained from {stored_base}, this run starts from {base}; use the same initial checkpoint "
            "or a new MODEL_DIR."
        )
    read = saving.read_params(folder, parameter_names.flatten(stages.stored(fresh.trainable, frozen)))
    for name, leaf in parameter_names.flatten(frozen).items():
        if name in read and not jax.jit(jnp.array_equal)(read[name], leaf):
            what = "soft prompt" if name == parameter_names.PROMPT else name
            raise ValueError(
                f"{folder} was trained with another {what} than the initial checkpoint's; use the same initial "
                "checkpoint or a new MODEL_DIR."
            )
    trainable = parameter_names.map_with_names(lambda n, leaf: None if leaf is None else read[n], fresh.trainable)
    logging.info("resuming %s at step %d", run_checkpoints.folder, step)
    return train_step.TrainState(step, trainable, run_checkpoints.restore_opt_state(step, fresh.opt_state))


def how_to_resume(folder: str) -> str:
    """The clause that tells whoever interrupts a run what is kept of it."""
    steps = saving.all_steps(folder)
    if not steps:
        return f"{folder} has no checkpoint yet, so the same command starts again"
    return f"the newest checkpoint is {saving.checkpoint_folder(folder, steps[-1])}; the same command resumes from it"


def finish(folder: str, export_dir: str | None) -> RunResult:
    """Chooses the best checkpoint, writes the prompt file and the export, and marks the run as finished, last.

    Args:
      folder: the run's.
      export_dir: where to write the best parameters alone, None for nowhere.

    Raises:
      ValueError: the best checkpoint is damaged; the sentence says how to finish without it.
    """
    processes.barrier(f"finish {folder}")
    step = saving.best_step(folder)
    with _saying_what_is_whole(folder, step):
        best = _written_of(folder, step, export_dir)
    finished_run.write(folder, best)
    processes.barrier(f"finished {folder}")
    return _said(RunResult(folder, *best))


def _written_of(folder: str, step: int, export_dir: str | None) -> finished_run.Best:
    """Writes the prompt file and the export of a run's best checkpoint, that of `step`; see `finish`."""
    best = saving.checkpoint_folder(folder, step)
    metadata, stored = saving.read_metadata(best), saving.shapes(best)
    prompt_alone = set(stored) == {parameter_names.PROMPT}
    if prompt_alone:
        prompt = saving.read_params(best, stored)[parameter_names.PROMPT]
        described = ("step", "score", "stage", "task", "base", "initialisation", "vocabulary")
        description = {key: metadata.get(key) for key in described}
        soft_prompts.save(folder, jax.device_get(prompt), description)
    if export_dir is not None:
        base = metadata["base"] if prompt_alone else None  # whole parameters need no base
        exported = {"step": step, "base": base, **networks.carried(metadata)}
        saving.export(export_dir, saving.read_params(best, stored), exported)
    return finished_run.Best(step, metadata["score"])
