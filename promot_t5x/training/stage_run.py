"""Runs one stage of ProMoT, or a baseline, on one task or mixture; called by `train`.

    python -m promot_t5x.train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin \
        --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=/tmp/stage1 --gin.INITIAL_CHECKPOINT_PATH=/a/checkpoint
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging
from clu import metric_writers

from promot_t5x.checkpoints import networks, saving, sources
from promot_t5x.data import features, kept_batches, training_batches, vocabularies
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
    restored_optimizer,
    run_folder,
    run_metrics,
    run_settings,
    stages,
    train_step,
    trainer,
)
from promot_t5x.training import validation as validations
from promot_t5x.training.run_settings import Path, RunSettings
from promot_t5x.training.validation import Validation


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
    restore_optimizer: bool = False,
    resume_from: int | None = None,
    dry_run: bool = False,
    dry_run_data: bool = False,
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
      restore_optimizer: start with the optimizer's state of the T5X checkpoint in `initial_checkpoint_path`, see
        `restored_optimizer`; False starts with a fresh one.
      resume_from: the step of an older checkpoint to continue from, if the newest one is damaged; the damaged ones are
        renamed to `damaged_checkpoint_<step>`. None continues from the newest.
      dry_run: print the parameters that would train and stop, before anything is read or created.
      dry_run_data: before a dry run stops, open the vocabularies, the training data and the validation split.
      config_gin: returns the text of config.gin, for a run that gin configures; called when the run claims its folder.

    Returns:
      The result, None for a dry run.

    Raises:
      ValueError, FileNotFoundError: a configuration that cannot work, reported before training starts, or a folder that
        holds a run with other settings, or that another run is using.
    """
    stage = stages.stage(stage)
    loop.check_eval_period(checkpoint.period)
    model_dir = str(files.absolute(model_dir) if dry_run else files.writable_folder(model_dir, "MODEL_DIR"))
    run_settings.check_frozen_dtype(model, stage, frozen_weights_dtype)
    if dry_run:
        _print_parameters(run_settings.abstract_params(model, stage), stage, partitioner, model)
        if not dry_run_data:
            return None
    starts = run_settings.paths(initial_checkpoint_path)
    settings = RunSettings(
        stage=stage,
        model=model,
        optimizer=optimizer,
        dataset=dataset,
        tasks=run_settings.made_of(dataset, validation),
        loop=dataclasses.replace(loop, eval_period=loop.eval_period or checkpoint.period),
        checkpoint=checkpoint,
        initial_checkpoint_path=starts[0] if len(starts) == 1 else starts or None,
        prompt_init=prompt_init,
        validation=validation,
        frozen_weights_dtype=frozen_weights_dtype,
        export_dir=None if export_dir is None else os.fspath(export_dir),
        restore_optimizer=restore_optimizer,
        partitioner=partitioner,
    )
    if dry_run:
        run_settings.check(settings)
        _open_data(settings)
        print(
            f"opened: {', '.join(settings.tasks)}, training split {dataset.split}, and their vocabularies", flush=True
        )
        return None
    if resume_from is None and (result := run_folder.finished(model_dir, settings)) is not None:
        return result
    run_settings.check(settings)
    for path in starts:
        sources.existing(path)
    run_settings.check_export(settings.export_dir, model_dir, starts)
    try:
        with folder_lock.held(model_dir):
            if resume_from is not None:
                run_folder.set_aside_newer(model_dir, resume_from, settings)
            run_folder.check_metadata(model_dir)
            return _run(settings, starts, model_dir, config_gin)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(run_folder.how_to_resume(model_dir))
        raise


def _run(
    settings: RunSettings, starts: Sequence[str], model_dir: str, config_gin: Callable[[], str] | None
) -> run_folder.RunResult:
    """Trains or resumes a run whose settings were checked and whose folder is held."""
    stage, model, partitioner = settings.stage, settings.model, settings.partitioner
    optimizer_state = _stored_optimizer_state(settings, starts)
    batches, evaluate = _open_data(settings)  # before the weights, which take minutes where the model is large
    params, base = initial_parameters.starting_parameters(
        model, stage, starts, settings.prompt_init, partitioner, settings.loop.seed
    )
    trainable, frozen = stages.partition(params, stage)
    frozen = stages.held_in(frozen, settings.frozen_weights_dtype)
    params = stages.combine(trainable, frozen)
    _print_parameters(params, stage, partitioner, model)
    staged = optimizers.Staged(settings.optimizer, stage)
    run_folder.claim(model_dir, settings, config_gin and config_gin())
    # Closed also after an error, so that the checkpoint being written then is kept.
    with contextlib.closing(saving.RunCheckpoints(model_dir, settings.checkpoint)) as run_checkpoints:
        state = run_folder.restored(run_checkpoints, train_step.init_state(staged, trainable), frozen, base)
        if optimizer_state is not None and state.step == 0:
            fresh = state.opt_state
            state = dataclasses.replace(state, opt_state=restored_optimizer.restored(fresh, optimizer_state))
        save = trainer.saver(run_checkpoints, frozen, _description(settings, base))
        if state.step < settings.loop.total_steps:
            logging.info("%s", _plan(settings, state.step))
            _train(settings, staged, state, frozen, save, model_dir, batches(state.step), evaluate)
    return run_folder.finish(model_dir, settings.export_dir)


def _stored_optimizer_state(settings: RunSettings, starts: Sequence[str]) -> restored_optimizer.StoredState | None:
    """The optimizer's state to start with, None for a fresh one.

    Raises:
      ValueError: no single T5X checkpoint holds one that fits.
    """
    if not settings.restore_optimizer:
        return None
    if len(starts) != 1:
        start = f"averages {len(starts)} checkpoints" if starts else "is None"
        raise ValueError(
            f"RESTORE_OPTIMIZER is True, but INITIAL_CHECKPOINT_PATH {start}: give one checkpoint of T5X, or set "
            "RESTORE_OPTIMIZER to False."
        )
    params = run_settings.abstract_params(settings.model, settings.stage)
    return restored_optimizer.opened(starts[0], settings.optimizer, params, settings.stage)


def _print_parameters(params: Any, stage: stages.Stage, partitioner: Partitioner, model: EncoderDecoderModel) -> None:
    print(parameter_table.parameter_table(params, stage, partitioner, model))
    print(parameter_table.LEGEND, flush=True)


def _plan(settings: RunSettings, step: int) -> str:
    """What will be trained, on what, for how long, and at what rate, as one line."""
    dataset, rate = settings.dataset, getattr(settings.optimizer, "learning_rate", None)
    return (
        f"training {settings.stage.name} on {dataset.mixture_or_task_name}/{dataset.split}, steps {step + 1} to "
        f"{settings.loop.total_steps}, {dataset.batch_size} examples each, learning rate "
        f"{f'{rate:g}' if isinstance(rate, int | float) else 'as the optimizer schedules it'}"
    )


def _open_data(
    settings: RunSettings,
) -> tuple[Callable[[int], trainer.Batches], Callable[..., float | None]]:
    """(the function from the batches consumed to the next ones, the function that scores parameters)."""
    stage, model, partitioner, dataset = settings.stage, settings.model, settings.partitioner, settings.dataset
    contents = settings.tasks[dataset.mixture_or_task_name]
    opened = kept_batches.opened(dataset, contents, partitioner.rows(dataset.batch_size))
    evaluate = validations.evaluator(settings.validation, stage, model, partitioner)
    return lambda start_batch: _checked(opened(start_batch), stage, model), evaluate


def _train(
    settings: RunSettings,
    staged,
    state: train_step.TrainState,
    frozen,
    save,
    model_dir: str,
    batches,
    evaluate,
) -> None:
    """Runs the training loop with this run's batches, validation and writers."""
    stage, model, partitioner, validation = settings.stage, settings.model, settings.partitioner, settings.validation
    trainer.train(
        model,
        staged,
        state,
        frozen,
        batches,
        settings.loop,
        partitioner=partitioner,
        batch_size=settings.dataset.batch_size,
        save_period=settings.checkpoint.period,
        evaluate=evaluate,
        save=save,
        writer=_writer(model_dir, state.step),
        validation_loss=validations.loss(validation, stage, model, partitioner),
        profile_dir=model_dir,
    )


def _description(settings: RunSettings, base: dict[str, str] | None) -> dict[str, Any]:
    """The metadata that all checkpoints of the run share."""
    task = settings.dataset.mixture_or_task_name
    description = {"stage": settings.stage.name, "base": base, "task": task, "seed": settings.loop.seed}
    description["data"] = run_settings.data_of(settings.tasks)
    description |= networks.described(settings.model.config, _vocabulary_description(task))
    if settings.stage.trains(parameter_names.PROMPT):
        init = settings.prompt_init
        description["initialisation"] = (
            settings.initial_checkpoint_path if init is None else prompt_initializers.initializer_name(init)
        )
    return description


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


def _checked(batches: trainer.Batches, stage: stages.Stage, model: EncoderDecoderModel) -> trainer.Batches:
    """Batches whose ids the network has, without soft prompts for a stage that attaches none."""
    for batch in batches:
        features_of_batch = {
            name: rows for name, rows in batch.items() if stage.attaches_prompt or name != features.SOFT_PROMPT_IDS
        }
        features.check_ids(features_of_batch, model.config.vocab_size, model.config.num_prompts)
        yield features_of_batch
