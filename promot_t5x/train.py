"""The train binary: one stage of ProMoT, or a baseline, on one task or mixture.

    python -m promot_t5x.train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin \
        --gin_file=stages/prompt_tuning.gin \
        --gin.MODEL_DIR="'/tmp/stage1'" --gin.INITIAL_CHECKPOINT_PATH="'/path/to/checkpoint'"
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import optax
from absl import logging
from clu import metric_writers
from etils import epath

from promot_t5x import (
    checkpoints,
    data,
    evaluation,
    examples,
    features,
    flags,
    initialize,
    launcher,
    layout,
    results,
    soft_prompt,
    stages,
    tables,
    trainer,
)
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner

_CONFIG_FILE, _FINISHED_FILE = "config.gin", "finished.json"


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


@dataclasses.dataclass(frozen=True)
class Validation:
    """How the best checkpoint is chosen: the first metric of a seqio task on a split that is not the test split.

    Attributes:
      task: a seqio task.
      split: its split.
      config: lengths, batch size, limit.
    """

    task: str
    split: str
    config: evaluation.EvaluationConfig


def train(
    model: EncoderDecoderModel,
    stage: str,
    optimizer: optax.GradientTransformation,
    dataset: data.DatasetConfig,
    loop: trainer.LoopConfig,
    model_dir: str,
    checkpoint: checkpoints.CheckpointConfig = checkpoints.CheckpointConfig(),
    initial_checkpoint_path: str | None = None,
    prompt_init: soft_prompt.Initializer | None = None,
    validation: Validation | None = None,
    partitioner: Partitioner = Partitioner(),
    export_dir: str | None = None,
    dry_run: bool = False,
) -> RunResult | None:
    """Trains one stage; resumes a run that was stopped, returns at once from one that is finished.

    Args:
      model: the network and its objective.
      stage: prompt_tuning, model_tuning, fine_tuning or joint_tuning.
      optimizer: what updates the leaves that the stage trains.
      dataset: what it trains on.
      loop: its length and rhythm.
      model_dir: where checkpoints, metrics, the configuration and the soft prompt go.
      checkpoint: how often to save.
      initial_checkpoint_path: a checkpoint or run folder of ours or of T5X; None starts from random weights.
      prompt_init: makes a new soft prompt; None takes the initial checkpoint's, as stage 2 does.
      validation: what chooses the best checkpoint; None keeps the last.
      partitioner: the mesh.
      export_dir: where to write the best parameters alone, without optimizer state, to start other runs from.
      dry_run: print the parameters that would train and stop, before anything is read or made.

    Returns:
      The result, None for a dry run.

    Raises:
      ValueError, FileNotFoundError: a configuration that cannot work, said before training starts.
    """
    which = stages.stage(stage)
    if dry_run:
        print(tables.parameter_table(_abstract_params(model, which), which, partitioner, model))
        return None
    folder = epath.Path(model_dir)
    if (folder / _FINISHED_FILE).exists():
        _check_same_config(folder)
        logging.info("%s is finished", folder)
        return RunResult(str(folder), **json.loads((folder / _FINISHED_FILE).read_text()))

    params, base = _initial_params(model, which, initial_checkpoint_path, prompt_init, partitioner, loop.seed)
    trainable, frozen = stages.partition(params, which)
    if jax.process_index() == 0:
        print(tables.parameter_table(params, which, partitioner, model), flush=True)
    staged = stages.staged_optimizer(optimizer, params, which)
    _write_config(folder)
    run_checkpoints = checkpoints.RunCheckpoints(folder, checkpoint)
    metadata = {"stage": stage, "base": base, "task": dataset.mixture_or_task_name, "seed": loop.seed}
    with contextlib.closing(run_checkpoints):  # a run that ends by an error keeps the checkpoint it was writing
        state = _restored(run_checkpoints, trainer.init_state(staged, trainable), base)
        if state.step < loop.total_steps:
            trainer.train(
                model,
                staged,
                state,
                frozen,
                _batches(dataset, which, state.step),
                loop,
                partitioner=partitioner,
                save_period=checkpoint.period,
                evaluate=_evaluator(model, which, validation, dataset.soft_prompt_id, partitioner),
                save=trainer.saver(run_checkpoints, frozen, metadata),
                writer=metric_writers.create_default_writer(
                    str(folder), asynchronous=False, just_logging=not _speaks()
                ),
            )
    if export_dir is not None:  # before the run counts as finished: a finished one is not looked at again
        step = checkpoints.best_step(folder)
        best = checkpoints.checkpoint_folder(folder, step)
        like = checkpoints.shapes(best)
        checkpoints.export(export_dir, checkpoints.read_params(best, like), {"step": step, "base": None})
    return _finish(folder, which, base)


def _speaks() -> bool:
    return jax.process_index() == 0


def _abstract_params(model: EncoderDecoderModel, which: stages.Stage) -> dict[str, Any]:
    params = model.abstract_params()
    return params if which.attaches_prompt else {k: v for k, v in params.items() if k != "soft_prompt"}


def _initial_params(model, which: stages.Stage, path: str | None, prompt_init, partitioner, seed: int):
    """The whole tree this stage works on, and the base that a later reader finds the model's weights in."""
    if path is None:
        if not which.trains_model:
            raise ValueError("Prompt tuning needs a pretrained model: set INITIAL_CHECKPOINT_PATH.")
        params, base = initialize.random_params(model, partitioner, seed), None
    else:
        loaded = initialize.load(path, model, partitioner)
        params, base = loaded.params, {"path": loaded.base_path, "fingerprint": loaded.base_fingerprint}
    if not which.attaches_prompt:
        return {k: v for k, v in params.items() if k != "soft_prompt"}, base
    if prompt_init is not None:
        return initialize.with_new_prompt(params, prompt_init, model, partitioner, seed), base
    if "soft_prompt" not in params:
        raise ValueError(
            f"Stage {which.name} takes its soft prompt from INITIAL_CHECKPOINT_PATH, but {path} has none; give the "
            "prompt-tuning run's folder, or set train.train.prompt_init."
        )
    return params, base


def _restored(run_checkpoints: checkpoints.RunCheckpoints, fresh: trainer.TrainState, base) -> trainer.TrainState:
    step = run_checkpoints.latest_step()
    if step is None:
        return fresh
    folder = checkpoints.checkpoint_folder(run_checkpoints.folder, step)
    stored_base = checkpoints.read_metadata(folder)["base"]
    if stored_base != base:
        raise ValueError(
            f"{folder} was trained from {stored_base}, this run starts from {base}; use the same initial checkpoint "
            "or a new MODEL_DIR."
        )
    wanted = layout.flatten(fresh.trainable)
    # A frozen soft prompt is stored beside the trained leaves; it is read and left to the initial checkpoint's.
    prompt = {n: leaf for n, leaf in checkpoints.shapes(folder).items() if n.startswith("soft_prompt/")}
    like = prompt | wanted
    restored = checkpoints.read_params(folder, like)
    trainable = layout.map_with_names(lambda n, leaf: None if leaf is None else restored[n], fresh.trainable)
    logging.info("resuming %s at step %d", run_checkpoints.folder, step)
    return trainer.TrainState(step, trainable, run_checkpoints.restore_opt_state(step, fresh.opt_state))


def _batches(dataset: data.DatasetConfig, which: stages.Stage, start_batch: int):
    for batch in data.train_batches(
        dataset,
        start_batch=start_batch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ):
        if not which.attaches_prompt:
            del batch[features.SOFT_PROMPT_IDS]
        yield batch


def _evaluator(model, which: stages.Stage, validation: Validation | None, prompt_id: int, partitioner: Partitioner):
    if validation is not None:  # read, and kept, before training: a misspelt split shows at once
        config = validation.config
        examples.eval_examples(validation.task, config.task_feature_lengths, validation.split, limit=config.limit)

    def evaluate(params):
        if validation is None:
            return None
        attached = prompt_id if which.attaches_prompt else None
        return evaluation.evaluate(
            model,
            params,
            validation.task,
            validation.split,
            validation.config,
            prompt_id=attached,
            partitioner=partitioner,
        ).value

    return evaluate


def _write_config(folder: epath.Path) -> None:
    _check_same_config(folder)
    results.write_whole(folder / _CONFIG_FILE, launcher.operative_config().encode())


def _check_same_config(folder: epath.Path) -> None:
    """A folder holds one run: going on with other settings would report numbers that no configuration produces."""
    file = folder / _CONFIG_FILE
    if not file.exists() or not checkpoints.all_steps(folder):  # a mistake that stopped it at once may be mended
        return
    before, now = file.read_text().splitlines(), launcher.operative_config().splitlines()
    changed = [line for line in now if line not in before] + [f"{line} (before)" for line in before if line not in now]
    if changed:
        raise ValueError(
            f"{folder} holds a run with another configuration, for example {'; '.join(changed[:4])}; use a new "
            "MODEL_DIR or delete this one."
        )


def _finish(folder: epath.Path, which: stages.Stage, base: dict[str, str] | None) -> RunResult:
    step = checkpoints.best_step(folder)
    best = checkpoints.checkpoint_folder(folder, step)
    facts = checkpoints.read_metadata(best)
    if which.trains_prompt:
        like = {n: x for n, x in checkpoints.shapes(best).items() if n.startswith("soft_prompt/")}
        if set(like) == set(checkpoints.shapes(best)):
            prompt = checkpoints.read_params(best, like)["soft_prompt/embedding"]
            description = {key: facts[key] for key in ("step", "score", "stage", "task", "base")}
            soft_prompt.save(folder, jax.device_get(prompt), description)
    finished = {"best_step": step, "best_score": facts["score"]}
    results.write(folder / _FINISHED_FILE, finished)
    return RunResult(str(folder), **finished)


def main(argv: Sequence[str]) -> None:
    """Runs `train` as the gin files and flags say."""
    parser = flags.flag_parser("python -m promot_t5x.train", "Trains one stage of ProMoT, or a baseline.")
    invocation = launcher.start(argv, parser)
    launcher.configurable(train)(dry_run=invocation.dry_run)


if __name__ == "__main__":
    from promot_t5x import train as binary

    sys.exit(launcher.run_main(binary.main))
