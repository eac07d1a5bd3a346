"""The train binary: one stage of ProMoT, or a baseline, on one task or mixture.

    python -m promot_t5x.train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin \
        --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=/tmp/stage1 --gin.INITIAL_CHECKPOINT_PATH=/a/checkpoint
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from clu import metric_writers

from promot_t5x.checkpoints import loading, networks, saving
from promot_t5x.data import evaluation_examples, features, training_batches, vocabularies
from promot_t5x.evaluation import scoring
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import files, processes
from promot_t5x.training import (
    initial_parameters,
    optimizers,
    parameter_table,
    prompt_initializers,
    run_folder,
    run_metrics,
    stages,
    trainer,
    validation_loss,
)


@dataclasses.dataclass(frozen=True)
class Validation:
    """How the best checkpoint is chosen: the first metric of a seqio task on a split that is not the test split.

    Attributes:
      task: a seqio task.
      split: its split.
      config: lengths, batch size, limit.
      prompt_id: the soft prompt attached, in a stage that attaches one.
      eval_steps: batches of the split whose teacher-forced loss is written too; 0 for none.
    """

    task: str
    split: str
    config: scoring.EvaluationConfig
    prompt_id: int = 0
    eval_steps: int = 0

    def __post_init__(self):
        if self.eval_steps < 0:
            raise ValueError(
                f"Validation.eval_steps is {self.eval_steps}, expected a number of batches, or 0 for none."
            )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What `run_stage` is given, as settings.json records it; on resumption all but the marked fields must be the same.

    Attributes:
      tasks: what the seqio tasks named in `dataset` and `validation` are made of.
    The others are arguments of `run_stage`; `model_dir` is not among them: a folder may be moved.
    """

    stage: stages.Stage
    model: EncoderDecoderModel
    optimizer: optimizers.Optimizer
    dataset: training_batches.DatasetConfig
    tasks: Mapping[str, Any]
    loop: trainer.LoopConfig
    checkpoint: saving.CheckpointConfig
    initial_checkpoint_path: str | None
    prompt_init: prompt_initializers.PromptInit | None
    validation: Validation | None
    frozen_weights_dtype: str | None
    export_dir: str | None
    partitioner: Partitioner = dataclasses.field(metadata={"may_change": True})


def run_stage(
    model: EncoderDecoderModel,
    stage: str | stages.Stage,
    optimizer: optimizers.Optimizer,
    dataset: training_batches.DatasetConfig,
    loop: trainer.LoopConfig,
    model_dir: str,
    checkpoint: saving.CheckpointConfig = saving.CheckpointConfig(),
    initial_checkpoint_path: str | None = None,
    prompt_init: prompt_initializers.PromptInit | None = None,
    validation: Validation | None = None,
    partitioner: Partitioner = Partitioner(),
    frozen_weights_dtype: str | None = None,
    export_dir: str | None = None,
    dry_run: bool = False,
    config_gin: Callable[[], str] | None = None,
) -> run_folder.RunResult | None:
    """Trains one stage; resumes a run that was stopped, returns at once from one that is finished.

    Args:
      model: the network and its objective.
      stage: prompt_tuning, model_tuning, fine_tuning, joint_tuning, or a `stages.Stage` of your own.
      optimizer: what updates the leaves that the stage trains: settings such as `optimizers.adafactor(0.2)`, or a bare
        optax transformation, which is recorded by its functions and the values they have closed over.
      dataset: what it trains on.
      loop: its length and rhythm.
      model_dir: where checkpoints, metrics, the settings and the soft prompt go.
      checkpoint: how often to save.
      initial_checkpoint_path: a checkpoint or run folder of ours or of T5X; None starts from random weights.
      prompt_init: makes a new soft prompt, settings or a plain function (see `prompt_initializers`); None takes the
        initial checkpoint's, as stage 2 does.
      validation: what chooses the best checkpoint; None keeps the last.
      partitioner: the mesh.
      frozen_weights_dtype: what a model that does not train is held in during the run, "bfloat16" for half the memory;
        None keeps T5Config.param_dtype. The prompt, and everything that is stored, keeps its dtype.
      export_dir: where to write the best parameters alone, without optimizer state, to start other runs from.
      dry_run: print the parameters that would train and stop, before anything is read or made.
      config_gin: gives the text of config.gin, for a run that gin configures; asked when the folder is claimed.

    Returns:
      The result, None for a dry run.

    Raises:
      ValueError, FileNotFoundError: a configuration that cannot work, said before training starts; a folder that holds
        a run with other settings.
    """
    which = stages.stage(stage)
    loop.check_eval_period(checkpoint.period)
    loop = dataclasses.replace(loop, eval_period=loop.eval_period or checkpoint.period)
    model_dir = str(files.absolute(model_dir))
    _check_frozen_dtype(model, which, frozen_weights_dtype)
    if dry_run:
        print(parameter_table.parameter_table(_abstract_params(model, which), which, partitioner, model))
        return None
    settings = RunSettings(
        stage=which,
        model=model,
        optimizer=optimizer,
        dataset=dataset,
        tasks=_tasks(dataset, validation),
        loop=loop,
        checkpoint=checkpoint,
        initial_checkpoint_path=initial_checkpoint_path and str(files.absolute(initial_checkpoint_path)),
        prompt_init=prompt_init,
        validation=validation,
        frozen_weights_dtype=frozen_weights_dtype,
        export_dir=export_dir,
        partitioner=partitioner,
    )
    if (result := run_folder.finished(model_dir, settings)) is not None:
        return result
    params, base = _initial_params(model, which, initial_checkpoint_path, prompt_init, partitioner, loop.seed)
    trainable, frozen = stages.partition(params, which)
    frozen = stages.held_in(frozen, frozen_weights_dtype)
    params = stages.combine(trainable, frozen)
    print(parameter_table.parameter_table(params, which, partitioner, model), flush=True)
    staged = optimizers.staged_optimizer(optimizer, params, which)
    run_folder.claim(model_dir, settings, config_gin and config_gin())
    facts = {"stage": which.name, "base": base, "task": dataset.mixture_or_task_name, "seed": loop.seed}
    facts |= networks.described(model.config, _vocabulary_description(dataset.mixture_or_task_name))
    if which.trains(parameter_names.PROMPT):
        named = initial_checkpoint_path if prompt_init is None else prompt_initializers.initializer_name(prompt_init)
        facts["initialisation"] = named
    # Closed also after an error, so that the checkpoint being written then is kept.
    with contextlib.closing(saving.RunCheckpoints(model_dir, checkpoint)) as run_checkpoints:
        state = run_folder.restored(run_checkpoints, trainer.init_state(staged, trainable), frozen, base)
        if state.step < loop.total_steps:
            trainer.train(
                model,
                staged,
                state,
                frozen,
                _batches(dataset, which, state.step, model, partitioner),
                loop,
                partitioner=partitioner,
                batch_size=dataset.batch_size,
                save_period=checkpoint.period,
                evaluate=_evaluator(model, which, validation, partitioner),
                save=trainer.saver(run_checkpoints, frozen, facts),
                writer=_writer(model_dir, state.step),
                validation_loss=_validation_loss(model, which, validation, partitioner),
                profile_dir=model_dir,
            )
    return run_folder.finish(model_dir, export_dir)


def _tasks(dataset: training_batches.DatasetConfig, validation: Validation | None) -> dict[str, Any]:
    parameters = {dataset.mixture_or_task_name: "training_batches.DatasetConfig.mixture_or_task_name"}
    if validation is not None:
        parameters.setdefault(validation.task, "train.Validation.task")
    return {name: features.made_of(name, parameter) for name, parameter in parameters.items()}


def _vocabulary_description(task: str) -> dict[str, Any]:
    """What checkpoints say about the vocabulary of a task or mixture."""
    vocabulary = (
        features.find(task, "training_batches.DatasetConfig.mixture_or_task_name").output_features["inputs"].vocabulary
    )
    vocabularies.open_vocabulary(vocabulary)
    return vocabularies.description(vocabulary)


def _writer(model_dir: str, step: int) -> run_metrics.Writer:
    """Writes scalars to TensorBoard's events and to metrics.jsonl, which goes on from `step`."""
    events = metric_writers.create_default_writer(model_dir, asynchronous=False, just_logging=not processes.speaks())
    return run_metrics.Writers((events, run_metrics.MetricsFile(model_dir, step)))


def _validation_loss(model, which: stages.Stage, validation: Validation | None, partitioner: Partitioner):
    if validation is None or not validation.eval_steps:
        return lambda params: {}
    return validation_loss.validation_loss(
        model,
        validation.task,
        validation.split,
        validation.config.task_feature_lengths,
        batch_size=validation.config.batch_size,
        steps=validation.eval_steps,
        prompt_id=validation.prompt_id if which.attaches_prompt else None,
        partitioner=partitioner,
    )


def _abstract_params(model: EncoderDecoderModel, which: stages.Stage) -> dict[str, Any]:
    params = model.abstract_params()
    return params if which.attaches_prompt else parameter_names.split_adapters(params)[0]


def _trains_model(model: EncoderDecoderModel, which: stages.Stage) -> bool:
    return which.trains_any(parameter_names.split_adapters(model.abstract_params())[0])


def _check_frozen_dtype(model: EncoderDecoderModel, which: stages.Stage, dtype: str | None) -> None:
    """Only a model that no checkpoint of the run holds may be held in another dtype."""
    stages.held_in({}, dtype)
    params = _abstract_params(model, which)
    frozen_model, _ = parameter_names.split_adapters(stages.partition(params, which)[1])
    if dtype is not None and _trains_model(model, which) and jax.tree.leaves(frozen_model):
        raise ValueError(
            f"train.train.frozen_weights_dtype is {dtype!r}, but the stage {which.name} trains a part of the model and "
            "stores all of it; set FROZEN_WEIGHTS_DTYPE = None."
        )


def _initial_params(model, which: stages.Stage, path: str | None, prompt_init, partitioner, seed: int):
    """The whole tree this stage works on, and the base that a later reader finds the model's weights in."""
    if path is None:
        if not _trains_model(model, which):
            raise ValueError("Prompt tuning needs a pretrained model: set INITIAL_CHECKPOINT_PATH.")
        params, base = initial_parameters.random_parameters(model, partitioner, seed), None
    else:
        loaded = loading.load(path, model, partitioner)
        params, base = loaded.params, {"path": loaded.base_path, "fingerprint": loaded.base_fingerprint}
    if not which.attaches_prompt:
        return parameter_names.split_adapters(params)[0], base
    if prompt_init is not None:
        return initial_parameters.with_new_prompt(params, prompt_init, model, partitioner, seed), base
    if parameter_names.SOFT_PROMPT not in params:
        raise ValueError(
            f"Stage {which.name} takes its soft prompt from INITIAL_CHECKPOINT_PATH, but {path} has none; give the "
            "prompt-tuning run's folder, or set train.train.prompt_init."
        )
    return params, base


def _batches(
    dataset: training_batches.DatasetConfig,
    which: stages.Stage,
    start_batch: int,
    model: EncoderDecoderModel,
    partitioner: Partitioner,
):
    rows = partitioner.rows(dataset.batch_size)
    for batch in training_batches.training_batches(dataset, start_batch=start_batch, rows=rows):
        if not which.attaches_prompt:
            del batch[features.SOFT_PROMPT_IDS]
        features.check_ids(batch, model.config.vocab_size, model.config.num_prompts)
        yield batch


def _evaluator(model, which: stages.Stage, validation: Validation | None, partitioner: Partitioner):
    if validation is not None:  # read, and kept, before training: a misspelt split shows at once
        config = validation.config
        evaluation_examples.evaluation_examples(
            validation.task, config.task_feature_lengths, validation.split, limit=config.limit
        )

    def evaluate(params):
        if validation is None:
            return None
        attached = validation.prompt_id if which.attaches_prompt else None
        return scoring.evaluate(
            model,
            params,
            validation.task,
            validation.split,
            validation.config,
            prompt_id=attached,
            partitioner=partitioner,
        ).value

    return evaluate
