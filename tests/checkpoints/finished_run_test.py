"""promot_t5x.checkpoints.finished_run: a run's folder gives its best checkpoint, or none."""

import contextlib
import shutil

import numpy as np
import pytest

from promot_t5x.checkpoints import conversion, finished_run, saving, sources
from promot_t5x.evaluation import scored_checkpoint

PROMPT = {"soft_prompt/embedding": np.ones((1, 2, 3), np.float32)}


@pytest.fixture
def run(tmp_path):
    """A run's folder with the checkpoints of steps 1 and 2; the second is the best."""
    folder = tmp_path / "run"
    with contextlib.closing(saving.RunCheckpoints(folder, saving.CheckpointConfig(keep_latest=2))) as checkpoints:
        for step, score in ((1, 10.0), (2, 30.0)):
            checkpoints.save(step, PROMPT, {}, {"base": None}, score)
    return folder


READERS = [
    sources.open_source,
    lambda run: conversion.convert_checkpoint(str(run), str(run.parent / "out"), "t5x"),
    lambda run: scored_checkpoint.step(run),
    lambda run: scored_checkpoint.kept(str(run)),
]


def _delete_metadata(checkpoint):
    (checkpoint / "metadata" / "metadata").unlink()


def _assert_all_raise(run, sentence):
    for reader in READERS:
        with pytest.raises(ValueError, match=sentence):
            reader(run)


@pytest.mark.parametrize("delete", [shutil.rmtree, _delete_metadata])
def test_nobody_takes_another_checkpoint_if_a_finished_runs_best_is_gone(run, delete):
    finished_run.write(run, finished_run.Best(2, 30.0))
    gone = "is finished, but its best checkpoint, that of step 2, is gone .the folder holds"
    delete(run / "checkpoint_2")
    _assert_all_raise(run, f"{gone} the checkpoints of steps 1.: put it back")
    shutil.rmtree(run / "checkpoint_1")
    _assert_all_raise(run, f"{gone} no checkpoints.: put it back")


def test_a_run_that_trains_is_not_read_without_all_scores(run):
    _delete_metadata(run / "checkpoint_2")
    _assert_all_raise(run, "checkpoint_2 is not a readable checkpoint: FileNotFoundError")


def test_nobody_reads_a_runs_checkpoint_under_the_name_of_another_step(run):
    """Neither swapped names nor a copy; an export may have any name, and so may a checkpoint that was set aside."""
    (run / "checkpoint_2").rename(run / "damaged_checkpoint_2")
    shutil.copytree(run / "checkpoint_1", run / "checkpoint_7")
    sentence = "checkpoint_7 holds the checkpoint of step 1, expected that of step 7; rename it to checkpoint_1, or"
    _assert_all_raise(run, sentence)
    with pytest.raises(ValueError, match=sentence):
        sources.open_source(run / "checkpoint_7")
    saving.export(run / "checkpoint_7", PROMPT, {"step": 1, "base": None})
    assert saving.read_metadata(run / "checkpoint_7")["step"] == 1
    assert saving.read_metadata(run / "damaged_checkpoint_2")["step"] == 2


def test_what_a_finished_run_names_is_taken(run):
    finished_run.write(run, finished_run.Best(1, 10.0))
    assert finished_run.chosen_step(run) == scored_checkpoint.step(run) == 1
    (run / finished_run.FILE).unlink()
    assert finished_run.chosen_step(run) == scored_checkpoint.step(run) == 2
    assert finished_run.chosen_step(run / "checkpoint_1") is None
