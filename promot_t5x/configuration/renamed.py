"""Names that gin files and flags used to have: an error with an old one says the new one."""

_MODULES = {
    "architecture": "models.architecture",
    "checkpoints": "checkpoints.saving",
    "data": "data.training_batches",
    "evaluation": "evaluation.scoring",
    "interop.t5x_binary": "training.t5x_binary",
    "model": "models.encoder_decoder",
    "partitioning": "partitioning.partitioner",
    "soft_prompt": "training.prompt_initializers",
    "trainer": "training.trainer",
}
_NAMES = {
    "checkpoints.CheckpointConfig": "saving.CheckpointConfig",
    "data.DatasetConfig": "training_batches.DatasetConfig",
    "eval.Plan": "eval.Suite",
    "evaluation.EvaluationConfig": "scoring.EvaluationConfig",
    "model.DecodingConfig": "encoder_decoder.DecodingConfig",
    "model.EncoderDecoderModel": "encoder_decoder.EncoderDecoderModel",
    "partitioning.Partitioner": "partitioner.Partitioner",
    "soft_prompt": "prompt_initializers",
    "stages.adafactor": "optimizers.adafactor",
    "stages.adam": "optimizers.adam",
}


def new_name(name: str) -> str:
    """A sentence's end with the present name of a configurable or module, empty where it has no other.

    Args:
      name: as a gin file or flag writes it: a configurable, or the module of an import.

    >>> new_name("evaluation.EvaluationConfig"), new_name("promot_t5x.model"), new_name("trainer.LoopConfig")
    ('; it is called scoring.EvaluationConfig now', '; it is called promot_t5x.models.encoder_decoder now', '')
    """
    module = name.removeprefix("promot_t5x.")
    if module != name:
        new = f"promot_t5x.{_MODULES[module]}" if module in _MODULES else None
    else:
        new = _NAMES.get(name) or next(
            (now + name.removeprefix(old) for old, now in _NAMES.items() if name.startswith(f"{old}.")), None
        )
    return f"; it is called {new} now" if new else ""
