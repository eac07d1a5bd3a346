"""The best checkpoint of a run's folder: the one that `finished.json` names, else the one with the best score so far.

A finished run's best checkpoint may be damaged or deleted later. The others have scores, too, but none of them is the
run's result, so that whoever reads the folder gets an error.
"""

from typing import NamedTuple

from etils import epath

from promot_t5x.checkpoints import saving
from promot_t5x.runtime import files

FILE = "finished.json"

_SCORES = (int, float, type(None))

_AGAIN = "delete it, and the command that trained this run writes it again"


class Best(NamedTuple):
    """The step and the validation score of a finished run's best checkpoint; without scores the last one."""

    step: int
    score: float | None


def write(folder: str | epath.Path, best: Best) -> None:
    """Marks a run as finished."""
    files.write_json(epath.Path(folder) / FILE, {"best_step": best.step, "best_score": best.score})


def read(folder: str | epath.Path) -> Best | None:
    """The best checkpoint of a finished run, None for a folder without `finished.json`.

    Raises:
      ValueError: the checkpoint is gone or has another score, or a file is damaged.
    """
    file = epath.Path(folder) / FILE
    if not file.exists():
        return None
    outcome = files.read_json(file, advice=_AGAIN)
    step, score = outcome.get("best_step"), outcome.get("best_score")
    if set(outcome) != {"best_step", "best_score"} or type(step) is not int or type(score) not in _SCORES:
        raise ValueError(
            f"{file} is damaged, it holds {str(outcome)[:80]}, expected best_step and best_score; {_AGAIN}."
        )
    if step not in saving.all_steps(folder):
        raise ValueError(
            f"{folder} is finished, but its best checkpoint, that of step {step}, is gone (the folder holds "
            f"{saving.described_steps(folder)}): put it back, or use a new MODEL_DIR."
        )
    stored = saving.read_metadata(saving.checkpoint_folder(folder, step))["score"]
    if stored != score:
        raise ValueError(
            f"{file} is damaged, best_score is {score} and that of its checkpoint, step {step}, is {stored}; {_AGAIN}."
        )
    return Best(step, score)


def chosen_step(folder: str | epath.Path) -> int | None:
    """The step of the checkpoint that is read where a run's folder is given, None for any other folder.

    Raises:
      ValueError: a finished run's best checkpoint is gone, or a file is damaged.
    """
    if (best := read(folder)) is not None:
        return best.step
    return saving.best_step(folder) if saving.all_steps(folder) else None
