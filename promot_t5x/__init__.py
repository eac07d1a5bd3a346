"""ProMoT: two-stage fine-tuning of (m)T5 that keeps its in-context learning (arXiv 2211.00635).

The public Python API; docs/api.md lists it with examples. Names are loaded on first use: importing the package loads
neither jax nor tensorflow.
"""

import importlib
import os
from typing import Any

# TensorFlow only reads data here; hide as many of its start-up notices about GPUs and oneDNN as it allows.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"

# public name -> (module, name in that module)
_API = {
    "CheckpointConfig": ("checkpoints.saving", "CheckpointConfig"),
    "DatasetConfig": ("data.training_batches", "DatasetConfig"),
    "DecodingConfig": ("models.encoder_decoder", "DecodingConfig"),
    "EncoderDecoderModel": ("models.encoder_decoder", "EncoderDecoderModel"),
    "EvaluationConfig": ("evaluation.scoring", "EvaluationConfig"),
    "LoopConfig": ("training.trainer", "LoopConfig"),
    "Partitioner": ("partitioning.partitioner", "Partitioner"),
    "Recipe": ("recipes.recipe", "Recipe"),
    "STAGES": ("training.stages", "STAGES"),
    "Suite": ("evaluation.suite", "Suite"),
    "T5Config": ("models.architecture", "T5Config"),
    "Validation": ("training.validation", "Validation"),
    "adafactor": ("training.optimizers", "adafactor"),
    "adam": ("training.optimizers", "adam"),
    "class_labels": ("training.prompt_initializers", "class_labels"),
    "convert_checkpoint": ("checkpoints.conversion", "convert_checkpoint"),
    "evaluate": ("evaluation.scoring", "evaluate"),
    "evaluate_suite": ("evaluation.suite", "evaluate_suite"),
    "evaluation_examples": ("data.evaluation_examples", "evaluation_examples"),
    "fingerprint": ("checkpoints.fingerprints", "fingerprint"),
    "from_file": ("training.prompt_initializers", "from_file"),
    "from_gin": ("recipes.from_gin", "from_gin"),
    "generate": ("evaluation.generation", "generate"),
    "load": ("checkpoints.loading", "load"),
    "load_soft_prompt": ("checkpoints.soft_prompts", "load"),
    "plan_training": ("planning.search", "plan_training"),
    "random_uniform": ("training.prompt_initializers", "random_uniform"),
    "run_recipe": ("recipes.running", "run_recipe"),
    "runs_from_gin": ("recipes.gin_runs", "runs_from_gin"),
    "run_stage": ("training.stage_run", "run_stage"),
    "sampled_vocabulary": ("training.prompt_initializers", "sampled_vocabulary"),
    "save_soft_prompt": ("checkpoints.soft_prompts", "save"),
    "show_progress": ("configuration.program", "show_progress"),
    "text": ("training.prompt_initializers", "text"),
    "training_batches": ("data.training_batches", "training_batches"),
}

__all__ = [*_API, "tasks"]  # noqa: PLE0604 (names that __getattr__ finds)


def __getattr__(name: str) -> Any:
    if name == "tasks":
        importlib.import_module("promot_t5x.tasks.toy_world")  # registers its tasks
        return importlib.import_module("promot_t5x.tasks")
    if name not in _API:
        raise AttributeError(f"module 'promot_t5x' has no attribute {name!r}")
    module, attribute = _API[name]
    return getattr(importlib.import_module(f"promot_t5x.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
