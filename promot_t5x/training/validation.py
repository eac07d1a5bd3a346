"""How a run's best checkpoint is chosen: by a score on a validation split, next to its teacher-forced loss."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from promot_t5x.data import evaluation_examples
from promot_t5x.evaluation import scoring
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments
from promot_t5x.training import stages, validation_loss


@arguments.checked
@dataclasses.dataclass(frozen=True)
class Validation:
    """How the best checkpoint is chosen: by the first metric of a seqio task on a split other than the test split.

    Attributes:
      task: a seqio task.
      split: its split.
      config: lengths, batch size, limit.
      prompt_id: the soft prompt to attach, if the stage attaches one.
      eval_steps: number of batches of the split for the teacher-forced loss; 0 for none.
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


def check(
    validation: Validation | None, stage: stages.Stage, model: EncoderDecoderModel, partitioner: Partitioner
) -> None:
    """Checks what would only be noticed at the first validation.

    Raises:
      ValueError: the model has no such prompt, or the devices cannot share a batch evenly.
    """
    if validation is None:
        return
    prompts = model.config.num_prompts
    if stage.attaches_prompt and not 0 <= validation.prompt_id < prompts:
        raise ValueError(
            f"train.Validation.prompt_id is {validation.prompt_id}, expected the number of a soft prompt of the model, "
            f"which has {prompts}, counted from 0."
        )
    partitioner.check_rows(validation.config.batch_size)


def evaluator(
    validation: Validation | None, stage: stages.Stage, model: EncoderDecoderModel, partitioner: Partitioner
) -> Callable[[Mapping[str, Any]], float | None]:
    """Returns the function of the parameters that scores them; the score is None without a validation.

    Raises:
      ValueError: (when called) the score is not finite.
    """
    if validation is None:
        return lambda params: None
    # Read and kept before training, so that a misspelt split is noticed at once.
    config = validation.config
    evaluation_examples.evaluation_examples(
        validation.task, config.task_feature_lengths, validation.split, limit=config.limit
    )

    def evaluate(params: Mapping[str, Any]) -> float:
        outcome = scoring.evaluate(
            model,
            params,
            validation.task,
            validation.split,
            config,
            prompt_id=_attached(validation, stage),
            partitioner=partitioner,
        )
        if not math.isfinite(outcome.value):  # it would choose the checkpoint, and JSON does not have it
            raise ValueError(
                f"The metric {outcome.metric} of task {validation.task} is {outcome.value} on its split "
                f"{validation.split}, expected a finite number; correct it, or set train.train.validation = None."
            )
        return outcome.value

    return evaluate


def loss(
    validation: Validation | None, stage: stages.Stage, model: EncoderDecoderModel, partitioner: Partitioner
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """Returns the function of the parameters that computes `validation_loss`, or nothing if no batches are set."""
    if validation is None or not validation.eval_steps:
        return lambda params: {}
    return validation_loss.validation_loss(
        model,
        validation.task,
        validation.split,
        validation.config.task_feature_lengths,
        batch_size=validation.config.batch_size,
        steps=validation.eval_steps,
        prompt_id=_attached(validation, stage),
        partitioner=partitioner,
    )


def _attached(validation: Validation, stage: stages.Stage) -> int | None:
    return validation.prompt_id if stage.attaches_prompt else None
