"""The checkpoints that an evaluation scores: one, or all that a run has kept."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from promot_t5x.checkpoints import fingerprints, finished_run, loading, saving, soft_prompts
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import files


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with its parameters, and what identifies them.

    Attributes:
      model: the network and how it decodes.
      params: its parameters.
      origin: run, step, path, base, base_fingerprint and prompt_fingerprint.
      partitioner: the mesh.
    """

    model: EncoderDecoderModel
    params: Mapping[str, Any]
    origin: Mapping[str, Any]
    partitioner: Partitioner


def kept(path: str) -> list[str]:
    """The checkpoints in a run's folder, in the order of their steps.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: it is not a run's folder, holds no checkpoint or a damaged one, or lacks its best.
    """
    folder = files.absolute(path)
    if finished_run.chosen_step(folder) is not None:
        return [str(saving.checkpoint_folder(folder, step)) for step in saving.scores(folder)]
    if not folder.exists():
        raise FileNotFoundError(f"There is no run's folder at {path}; check CHECKPOINT_PATH.")
    if saving.is_checkpoint(folder):
        content = "is a single checkpoint"
    elif soft_prompts.is_prompt(folder):
        content = "is a soft prompt alone"
    else:
        content = "holds no checkpoint of promot_t5x"
    raise ValueError(
        f"CHECKPOINT_MODE='all' scores the checkpoints in a run's folder, but {path} {content}; give a run's "
        "MODEL_DIR, or CHECKPOINT_MODE='best'."
    )


def load(path: str, model: EncoderDecoderModel, partitioner: Partitioner, run: str) -> Checkpoint:
    """Loads a checkpoint for scoring.

    Args:
      path, model, partitioner: see `loading.load`.
      run: the name of its run in the results.
    """
    loaded = loading.load(path, model, partitioner)
    prompt = loaded.params.get(parameter_names.SOFT_PROMPT)
    origin = {
        "run": run,
        "step": step(files.absolute(path)),
        "path": path,
        "base": loaded.base_path,
        "base_fingerprint": loaded.base_fingerprint,
        "prompt_fingerprint": None if prompt is None else fingerprints.of_prompt(prompt["embedding"]),
    }
    return Checkpoint(model, loaded.params, origin, partitioner)


def step(folder: epath.Path) -> int | None:
    """The training step of a checkpoint of ours, or of a run's best one; None for other formats."""
    if saving.is_checkpoint(folder):
        return saving.read_metadata(folder)["step"]
    return finished_run.chosen_step(folder)
