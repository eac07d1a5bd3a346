"""Former names in gin files and flags: an error about an old name states the new one."""

from collections.abc import Container

_MODULES = {
    "promot_t5x.architecture": "promot_t5x.models.architecture",
    "promot_t5x.checkpoints": "promot_t5x.checkpoints.saving",
    "promot_t5x.data": "promot_t5x.data.training_batches",
    "promot_t5x.evaluation": "promot_t5x.evaluation.scoring",
    "promot_t5x.interop.t5x_binary": "promot_t5x.training.t5x_binary",
    "promot_t5x.model": "promot_t5x.models.encoder_decoder",
    "promot_t5x.partitioning": "promot_t5x.partitioning.partitioner",
    "promot_t5x.soft_prompt": "promot_t5x.training.prompt_initializers",
    "promot_t5x.trainer": "promot_t5x.training.trainer",
}
_NAMES = {
    "checkpoints.CheckpointConfig": "saving.CheckpointConfig",
    "data.DatasetConfig": "training_batches.DatasetConfig",
    "eval.Plan": "eval.Suite",
    "evaluation.EvaluationConfig": "scoring.EvaluationConfig",
    "model.DecodingConfig": "encoder_decoder.DecodingConfig",
    "model.EncoderDecoderModel": "encoder_decoder.EncoderDecoderModel",
    "partitioning.Partitioner": "partitioner.Partitioner",
    "soft_prompt.class_labels": "prompt_initializers.class_labels",
    "soft_prompt.from_file": "prompt_initializers.from_file",
    "soft_prompt.random_uniform": "prompt_initializers.random_uniform",
    "soft_prompt.sampled_vocabulary": "prompt_initializers.sampled_vocabulary",
    "soft_prompt.text": "prompt_initializers.text",
    "stages.adafactor": "optimizers.adafactor",
    "stages.adam": "optimizers.adam",
}

_MACROS = {
    "OUTPUT_DIR": "EVAL_OUTPUT_DIR",
    "OUTPUTS": "INFER_OUTPUT_DIR",
    "SEED": "RANDOM_SEED",
    "SPLIT": "MIXTURE_OR_TASK_SPLIT",
}


def new_macro(name: str, macros: Container[str] | None = None) -> str:
    """The end of an error's sentence with the new name of a macro; empty if it was not renamed.

    Args:
      name: the macro as a gin file or flag writes it.
      macros: the macros that exist; a new name that is not among them is not stated. None states it always.

    >>> new_macro("SEED"), new_macro("SEED", {"TRAIN_STEPS"}), new_macro("TRAIN_STEPS")
    ('; it is called RANDOM_SEED now', '', '')
    """
    new = _MACROS.get(name)
    return f"; it is called {new} now" if new and (macros is None or new in macros) else ""


def new_name(name: str) -> str:
    """The end of an error's sentence with the new name of a configurable or module; empty if it was not renamed.

    Args:
      name: a configurable, or the module of an import, as a gin file or flag writes it.

    >>> new_name("evaluation.EvaluationConfig"), new_name("promot_t5x.model"), new_name("trainer.LoopConfig")
    ('; it is called scoring.EvaluationConfig now', '; it is called promot_t5x.models.encoder_decoder now', '')
    """
    new = (
        _MODULES.get(name)
        or _NAMES.get(name)
        or next((now + name.removeprefix(old) for old, now in _NAMES.items() if name.startswith(f"{old}.")), None)
    )
    return f"; it is called {new} now" if new else ""
