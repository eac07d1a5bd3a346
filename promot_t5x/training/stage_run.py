"""Runs one stage of ProMoT, or a baseline, on one task or mixture; called by `train`.

    python -m promot_t5x.train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin \
        --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=/tmp/stage1 --gin.INITIAL_CHECKPOINT_PATH=/a/checkpoint
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from clu import metric_writers

from promot_t5x.checkpoints import networks, saving
from promot_t5x.data import definitions, features, training_batches, vocabularies
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments, files, processes
from promot_t5x.training import (
    folder_lock,
    initial_parameters,
    optimizers,
    parameter_table,
    prompt_initializers,
    run_folder,
    run_metrics,
    stages,
    trainer,
)
from promot_t5x.training import validation as validations
from promot_t5x.training.validation import Validation

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The settings of a run, as in settings.json; a resumed run must agree in all fields not marked `may_change`.

    All but `tasks` are arguments of `run_stage`; `model_dir` is left out, since a folder may be moved.

    Attributes:
      tasks: descriptions of the seqio tasks named in `dataset` and `validation`.
    """

    stage: stages.Stage
    model: EncoderDecoderModel
    optimizer: optimizers.Optimizer
    dataset: training_batches.DatasetConfig
    tasks: Mapping[str, Any]
    loop: trainer.LoopConfig
    checkpoint: saving.CheckpointConfig
    initial_checkpoint_path: str | Sequence[str] | None
    prompt_init: prompt_initializers.PromptInit | None
    validation: Validation | None
    frozen_weights_dtype: str | None
    export_dir: str | None
    partitioner: Partitioner = dataclasses.field(metadata={"may_change": True})


@arguments.checked
def run_stage(
    model: EncoderDecoderModel,
    stage: str | stages.Stage,
    optimizer: optimizers.Optimizer,
    dataset: training_batches.DatasetConfig,
    loop: trainer.LoopConfig,
    model_dir: Path,
    checkpoint: saving.CheckpointConfig = saving.CheckpointConfig(),
    initial_checkpoint_path: Path | Sequence[Path] | None = None,
    prompt_init: prompt_initializers.PromptInit | None = None,
    validation: Validation | None = None,
    partitioner: Partitioner = Partitioner(),
    frozen_weights_dtype: str | None = None,
    export_dir: Path | None = None,
    resume_from: int | None = None,
    dry_run: bool = False,
    config_gin: Callable[[], str] | None = None,
) -> run_folder.RunResult | None:
    """Trains one stage; resumes an interrupted run, and returns at once if the run is finished.

    Args:
      model: the network and its objective.
      stage: prompt_tuning, model_tuning, fine_tuning, joint_tuning, or your own `stages.Stage`.
      optimizer: updates the leaves that the stage trains: settings such as `optimizers.adafactor(0.2)`, or a bare optax
        transformation, which is recorded by its functions and the values they close over.
      dataset: the training data.
      loop: number of steps, seed, and periods of logs and validations.
      model_dir: the folder for checkpoints, metrics, settings and the soft prompt.
      checkpoint: how often to save.
      initial_checkpoint_path: a checkpoint or run folder of ours, a T5X checkpoint, or a Hugging Face folder; several
        to start from the mean of their weights, None for random weights.
      prompt_init: makes a new soft prompt, settings or a plain function (see `prompt_initializers`); None takes the
        initial checkpoint's, as stage 2 does.
      validation: how the best checkpoint is chosen; None takes the last.
      partitioner: the mesh.
      frozen_weights_dtype: dtype of a model that does not train, during the run, "bfloat16" for half the memory; None
        keeps T5Config.param_dtype. The prompt, and everything that is stored, keeps its dtype.
      export_dir: the folder for the best parameters alone, without optimizer state, to start other runs from.
      resume_from: the step of an older checkpoint to continue from, if the newest one is damaged; the damaged ones are
        renamed to `damaged_checkpoint_<step>`. None continues from the newest.
      dry_run: print the parameters that would train and stop, before anything is read or created.
      config_gin: returns the text of config.gin, for a run that gin configures; called when the run claims its folder.

    Returns:
      The result, None for a dry run.

    Raises:
      ValueError, FileNotFoundError: a configuration that cannot work, reported before training starts, or a folder that
        holds a run with other settings, or that another run is using.
    """
    stage = stages.stage(stage)
    loop.check_eval_period(checkpoint.period)
    model_dir = str(files.absolute(model_dir))
    _check_frozen_dtype(model, stage, frozen_weights_dtype)
    if dry_run:
        print(parameter_table.parameter_table(_abstract_params(model, stage), stage, partitioner, model))
        return None
    starts = _paths(initial_checkpoint_path)
    settings = RunSettings(
        stage=stage,
        model=model,
        optimizer=optimizer,
        dataset=dataset,
        tasks=_tasks(dataset, validation),
        loop=dataclasses.replace(loop, eval_period=loop.eval_period or checkpoint.period),
        checkpoint=checkpoint,
        initial_checkpoint_path=starts[0] if len(starts) == 1 else starts or None,
        prompt_init=prompt_init,
        validation=validation,
        frozen_weights_dtype=frozen_weights_dtype,
        export_dir=None if export_dir is None else os.fspath(export_dir),
        partitioner=partitioner,
    )
    if resume_from is None and (result := run_folder.finished(model_dir, settings)) is not None:
        return result
    validations.check(validation, stage, model, partitioner)
    _check_export(settings.export_dir, model_dir, starts)
    with folder_lock.held(model_dir):
        if resume_from is not None:
            run_folder.set_aside_newer(model_dir, resume_from)
        run_folder.check_metadata(model_dir)
        return _run(settings, starts, model_dir, config_gin)


def _run(
    settings: RunSettings, starts: Sequence[str], model_dir: str, config_gin: Callable[[], str] | None
) -> run_folder.RunResult:
    """Trains or resumes a run whose settings were checked and whose folder is held."""
    stage, model, partitioner = settings.stage, settings.model, settings.partitioner
    params, base = initial_parameters.starting_parameters(
        model, stage, starts, settings.prompt_init, partitioner, settings.loop.seed
    )
    trainable, frozen = stages.partition(params, stage)
    frozen = stages.held_in(frozen, settings.frozen_weights_dtype)
    params = stages.combine(trainable, frozen)
    print(parameter_table.parameter_table(params, stage, partitioner, model), flush=True)
    staged = optimizers.staged_optimizer(settings.optimizer, params, stage)
    run_folder.claim(model_dir, settings, config_gin and config_gin())
    # Closed also after an error, so that the checkpoint being written then is kept.
    with contextlib.closing(saving.RunCheckpoints(model_dir, settings.checkpoint)) as run_checkpoints:
        state = run_folder.restored(run_checkpoints, trainer.init_state(staged, trainable), frozen, base)
        save = trainer.saver(run_checkpoints, frozen, _description(settings, base))
        if state.step < settings.loop.total_steps:
            logging.info("%s", _plan(settings, state.step))
            _train(settings, staged, state, frozen, save, model_dir)
    return run_folder.finish(model_dir, settings.export_dir)


def _plan(settings: RunSettings, step: int) -> str:
    """What will be trained, on what, for how long, and at what rate, as one line."""
    dataset, rate = settings.dataset, getattr(settings.optimizer, "learning_rate", None)
    return (
        f"training {settings.stage.name} on {dataset.mixture_or_task_name}/{dataset.split}, steps {step + 1} to "
        f"{settings.loop.total_steps} of {dataset.batch_size} examples, learning rate "
        f"{f'{rate:g}' if isinstance(rate, int | float) else 'as the optimizer schedules it'}"
    )


def _train(settings: RunSettings, staged, state: trainer.TrainState, frozen, save, model_dir: str) -> None:
    """Runs the training loop with this run's batches, validation and writers."""
    stage, model, partitioner, validation = settings.stage, settings.model, settings.partitioner, settings.validation
    trainer.train(
        model,
        staged,
        state,
        frozen,
        _batches(settings.dataset, stage, state.step, model, partitioner),
        settings.loop,
        partitioner=partitioner,
        batch_size=settings.dataset.batch_size,
        save_period=settings.checkpoint.period,
        evaluate=validations.evaluator(validation, stage, model, partitioner),
        save=save,
        writer=_writer(model_dir, state.step),
        validation_loss=validations.loss(validation, stage, model, partitioner),
        profile_dir=model_dir,
    )


def _description(settings: RunSettings, base: dict[str, str] | None) -> dict[str, Any]:
    """The metadata that all checkpoints of the run share."""
    task = settings.dataset.mixture_or_task_name
    description = {"stage": settings.stage.name, "base": base, "task": task, "seed": settings.loop.seed}
    description |= networks.described(settings.model.config, _vocabulary_description(task))
    if settings.stage.trains(parameter_names.PROMPT):
        init = settings.prompt_init
        description["initialisation"] = (
            settings.initial_checkpoint_path if init is None else prompt_initializers.initializer_name(init)
        )
    return description


def _paths(paths: Path | Sequence[Path] | None) -> tuple[str, ...]:
    """Absolute paths of the checkpoints that a run starts from."""
    several = [paths] if isinstance(paths, str | os.PathLike) else paths or ()
    return tuple(str(files.absolute(path)) for path in several)


def _tasks(dataset: training_batches.DatasetConfig, validation: Validation | None) -> dict[str, Any]:
    """What the tasks are made of; the data of the splits that are read, by their contents."""
    task, parameter = dataset.mixture_or_task_name, "training_batches.DatasetConfig.mixture_or_task_name"
    splits = [dataset.split]
    if validation is None:
        return {task: definitions.made_of(task, parameter, splits)}
    if validation.task == task:
        return {task: definitions.made_of(task, parameter, [*splits, validation.split])}
    validated = definitions.made_of(validation.task, "train.Validation.task", [validation.split])
    return {task: definitions.made_of(task, parameter, splits), validation.task: validated}


def _vocabulary_description(task: str) -> dict[str, Any]:
    """The description of a task's or mixture's vocabulary in checkpoints."""
    vocabulary = (
        features.find(task, "training_batches.DatasetConfig.mixture_or_task_name").output_features["inputs"].vocabulary
    )
    vocabularies.open_vocabulary(vocabulary)
    return vocabularies.description(vocabulary)


def _writer(model_dir: str, step: int) -> run_metrics.Writer:
    """Writes scalars to TensorBoard events and to metrics.jsonl, which continues from `step`."""
    events = metric_writers.create_default_writer(model_dir, asynchronous=False, just_logging=not processes.speaks())
    return run_metrics.Writers((events, run_metrics.MetricsFile(model_dir, step)))


def _abstract_params(model: EncoderDecoderModel, stage: stages.Stage) -> dict[str, Any]:
    params = model.abstract_params()
    return params if stage.attaches_prompt else parameter_names.split_adapters(params)[0]


def _check_frozen_dtype(model: EncoderDecoderModel, stage: stages.Stage, dtype: str | None) -> None:
    """Raises ValueError if the model is to have another dtype although the run's checkpoints store it."""
    stages.held_in({}, dtype)
    params = _abstract_params(model, stage)
    frozen_model, _ = parameter_names.split_adapters(stages.partition(params, stage)[1])
    if dtype is not None and initial_parameters.trains_model(model, stage) and jax.tree.leaves(frozen_model):
        raise ValueError(
            f"train.train.frozen_weights_dtype is {dtype!r}, but the stage {stage.name} trains a part of the model and "
            "stores all of it; set FROZEN_WEIGHTS_DTYPE = None."
        )


def _check_export(export_dir: str | None, model_dir: str, starts: Sequence[str]) -> None:
    """Said before training: an export deletes what it replaces."""
    if export_dir is None:
        return
    saving.check_replaceable(export_dir)
    export = files.absolute(export_dir)
    for name, path in (("MODEL_DIR", model_dir), *(("INITIAL_CHECKPOINT_PATH", start) for start in starts)):
        if export in (files.absolute(path), *files.absolute(path).parents):
            raise ValueError(
                f"EXPORT_DIR is {export}, which an export would delete with {name} {path}; give a new folder."
            )


def _batches(
    dataset: training_batches.DatasetConfig,
    stage: stages.Stage,
    start_batch: int,
    model: EncoderDecoderModel,
    partitioner: Partitioner,
):
    rows = partitioner.rows(dataset.batch_size)
    for batch in training_batches.training_batches(dataset, start_batch=start_batch, rows=rows, with_cuts=True):
        if not stage.attaches_prompt:
            del batch[features.SOFT_PROMPT_IDS]
        features.check_ids(batch, model.config.vocab_size, model.config.num_prompts)
        yield batch
