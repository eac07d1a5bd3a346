"""The settings of a run, and what is checked before anything is read: mistakes that the first step would show."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from promot_t5x.checkpoints import saving
from promot_t5x.data import definitions, features, training_batches, vocabularies
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import files
from promot_t5x.training import initial_parameters, optimizers, prompt_initializers, stages, train_step, trainer
from promot_t5x.training import validation as validations
from promot_t5x.training.validation import Validation

Path = str | os.PathLike[str]

_TASK = "training_batches.DatasetConfig.mixture_or_task_name"


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
    restore_optimizer: bool
    partitioner: Partitioner = dataclasses.field(metadata={"may_change": True})


def paths(paths: Path | Sequence[Path] | None) -> tuple[str, ...]:
    """Absolute paths of the checkpoints that a run starts from."""
    several = [paths] if isinstance(paths, str | os.PathLike) else paths or ()
    return tuple(str(files.absolute(path)) for path in several)


def made_of(dataset: training_batches.DatasetConfig, validation: Validation | None) -> dict[str, Any]:
    """What the run's tasks are made of, and the data of the splits that are read, by their contents."""
    cached = {dataset.mixture_or_task_name: [dataset.split]} if dataset.use_cached else {}
    read = _read(dataset, validation)
    return {
        task: definitions.made_of(task, parameter, splits, cached.get(task, ()))
        for task, (parameter, splits) in read.items()
    }


def data_of(tasks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The data of each task that a run reads, by split; a mixture and the validation may read the same task.

    Args:
      tasks: what `made_of` returned.

    >>> data_of({"mixture": {"a": {"data": {"train": {}}}}, "a": {"a": {"data": {"validation": {}}}}})
    {'a': {'train': {}, 'validation': {}}}
    """
    data: dict[str, dict[str, Any]] = {}
    for parts in tasks.values():
        for name, made in parts.items():
            data[name] = {**data.get(name, {}), **made["data"]}
    return data


def _read(dataset: training_batches.DatasetConfig, validation: Validation | None) -> dict[str, tuple[str, list[str]]]:
    """The tasks that a run reads, each with the gin parameter that names it and the splits, but for cached ones."""
    read = {dataset.mixture_or_task_name: (_TASK, [] if dataset.use_cached else [dataset.split])}
    if validation is not None:
        _, splits = read.setdefault(validation.task, ("train.Validation.task", []))
        splits.append(validation.split)
    return read


def abstract_params(model: EncoderDecoderModel, stage: stages.Stage) -> dict[str, Any]:
    """Shapes and dtypes of the parameters that a stage has, without the soft prompt where it attaches none."""
    params = model.abstract_params()
    return params if stage.attaches_prompt else parameter_names.split_adapters(params)[0]


def check(settings: RunSettings) -> None:
    """Raises ValueError for settings that do not fit together, which would only be noticed in the first step."""
    stage, model, dataset, partitioner = settings.stage, settings.model, settings.dataset, settings.partitioner
    validations.check(settings.validation, stage, model, partitioner)
    train_step.check_microbatches(dataset.batch_size, settings.loop.num_microbatches)
    partitioner.check_rows(dataset.batch_size // settings.loop.num_microbatches)
    initial_parameters.check_starts(model, stage, paths(settings.initial_checkpoint_path))
    for name, (parameter, _) in _read(dataset, settings.validation).items():
        vocabularies.check_task(name, parameter, model.config.vocab_size)
    task = features.find(dataset.mixture_or_task_name, _TASK)
    prompt = dataset.soft_prompt_id
    if stage.attaches_prompt:
        prompt_ids_B = np.array([prompt])
        features.check_ids({features.SOFT_PROMPT_IDS: prompt_ids_B}, model.config.vocab_size, model.config.num_prompts)
    if prompt < 0 and not initial_parameters.trains_model(model, stage):
        if features.SOFT_PROMPT_IDS not in task.output_features:
            raise ValueError(
                f"training_batches.DatasetConfig.soft_prompt_id is {prompt}, so no row has a soft prompt, but "
                f"the stage {stage.name} trains nothing else; set it to the number of a soft prompt, such as 0."
            )


def check_frozen_dtype(model: EncoderDecoderModel, stage: stages.Stage, dtype: str | None) -> None:
    """Raises ValueError if the model is to have another dtype although the run's checkpoints store it."""
    stages.held_in({}, dtype)
    _, frozen = stages.partition(abstract_params(model, stage), stage)
    frozen_model, _ = parameter_names.split_adapters(frozen)
    if dtype is not None and initial_parameters.trains_model(model, stage) and jax.tree.leaves(frozen_model):
        raise ValueError(
            f"train.train.frozen_weights_dtype is {dtype!r}, but the stage {stage.name} trains a part of the model and "
            "stores all of it; set FROZEN_WEIGHTS_DTYPE = None."
        )


def check_export(export_dir: str | None, model_dir: str, starts: Sequence[str]) -> None:
    """Said before training: an export deletes what it replaces."""
    if export_dir is None:
        return
    export = files.writable_folder(export_dir, "EXPORT_DIR")
    saving.check_replaceable(export_dir)
    for name, path in (("MODEL_DIR", model_dir), *(("INITIAL_CHECKPOINT_PATH", start) for start in starts)):
        if export in (files.absolute(path), *files.absolute(path).parents):
            raise ValueError(
                f"EXPORT_DIR is {export}, which an export would delete with {name} {path}; give a new folder."
            )
