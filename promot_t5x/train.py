"""The train binary: one stage of ProMoT, or a baseline, on one task or mixture.

    python -m promot_t5x.train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin \
        --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=/tmp/stage1 --gin.INITIAL_CHECKPOINT_PATH=/a/checkpoint
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import optax
from clu import metric_writers

from promot_t5x import (
    checkpoints,
    data,
    distributed,
    evaluation,
    examples,
    features,
    flags,
    gin_checks,
    initialize,
    launcher,
    parameter_table,
    run_folder,
    soft_prompt,
    stages,
    trainer,
)
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner


@dataclasses.dataclass(frozen=True)
class Validation:
    """How the best checkpoint is chosen: the first metric of a seqio task on a split that is not the test split.

    Attributes:
      task: a seqio task.
      split: its split.
      config: lengths, batch size, limit.
      prompt_id: the soft prompt attached, in a stage that attaches one.
    """

    task: str
    split: str
    config: evaluation.EvaluationConfig
    prompt_id: int = 0


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
    frozen_weights_dtype: str | None = None,
    export_dir: str | None = None,
    dry_run: bool = False,
) -> run_folder.RunResult | None:
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
      frozen_weights_dtype: what a model that does not train is held in during the run, "bfloat16" for half the memory;
        None keeps T5Config.param_dtype. The prompt, and everything that is stored, keeps its dtype.
      export_dir: where to write the best parameters alone, without optimizer state, to start other runs from.
      dry_run: print the parameters that would train and stop, before anything is read or made.

    Returns:
      The result, None for a dry run.

    Raises:
      ValueError, FileNotFoundError: a configuration that cannot work, said before training starts.
    """
    which = stages.stage(stage)
    model_dir = str(checkpoints.absolute(model_dir))
    stages.held_in({}, frozen_weights_dtype)  # a wrong dtype shows at once
    if dry_run:
        print(parameter_table.parameter_table(_abstract_params(model, which), which, partitioner, model))
        return None
    if (result := run_folder.finished(model_dir)) is not None:
        return result
    params, base = _initial_params(model, which, initial_checkpoint_path, prompt_init, partitioner, loop.seed)
    trainable, frozen = stages.partition(params, which)
    frozen = stages.held_in(frozen, frozen_weights_dtype)
    params = stages.combine(trainable, frozen)
    print(parameter_table.parameter_table(params, which, partitioner, model), flush=True)
    staged = stages.staged_optimizer(optimizer, params, which)
    run_folder.claim(model_dir)
    facts = {"stage": stage, "base": base, "task": dataset.mixture_or_task_name, "seed": loop.seed}
    if which.trains_prompt:
        facts |= _facts_of_prompt(dataset.mixture_or_task_name, prompt_init, initial_checkpoint_path)
    # Closed also after an error, so that the checkpoint being written then is kept.
    with contextlib.closing(checkpoints.RunCheckpoints(model_dir, checkpoint)) as run_checkpoints:
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
                writer=_writer(model_dir),
            )
    return run_folder.finish(model_dir, export_dir)


def _facts_of_prompt(task: str, init: soft_prompt.Initializer | None, path: str | None) -> dict[str, Any]:
    """What a reader of the prompt alone will want to know."""
    vocabulary = features.find(task, "data.DatasetConfig.mixture_or_task_name").output_features["inputs"].vocabulary
    features.open_vocabulary(vocabulary)
    initialisation = path if init is None else soft_prompt.initializer_name(init)
    return {"initialisation": initialisation, "vocabulary": features.vocabulary_hash(vocabulary)}


def _writer(model_dir: str) -> metric_writers.MetricWriter:
    return metric_writers.create_default_writer(model_dir, asynchronous=False, just_logging=not distributed.speaks())


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


def _batches(
    dataset: data.DatasetConfig,
    which: stages.Stage,
    start_batch: int,
    model: EncoderDecoderModel,
    partitioner: Partitioner,
):
    rows = partitioner.rows(dataset.batch_size)
    for batch in data.train_batches(dataset, start_batch=start_batch, rows=rows):
        if not which.attaches_prompt:
            del batch[features.SOFT_PROMPT_IDS]
        features.check_ids(batch, model.config.vocab_size, model.config.num_prompts)
        yield batch


def _evaluator(model, which: stages.Stage, validation: Validation | None, partitioner: Partitioner):
    if validation is not None:  # read, and kept, before training: a misspelt split shows at once
        config = validation.config
        examples.eval_examples(validation.task, config.task_feature_lengths, validation.split, limit=config.limit)

    def evaluate(params):
        if validation is None:
            return None
        attached = validation.prompt_id if which.attaches_prompt else None
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


def main(argv: Sequence[str]) -> None:
    """Runs `train` as the gin files and flags say."""
    parser = flags.flag_parser("python -m promot_t5x.train", "Trains one stage of ProMoT, or a baseline.")
    invocation = launcher.start(argv, parser)
    gin_checks.check_flags()
    launcher.configurable(train)(dry_run=invocation.dry_run)


if __name__ == "__main__":
    from promot_t5x import train as binary

    sys.exit(launcher.run_main(binary.main))
