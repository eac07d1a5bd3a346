"""promot_t5x.training.trainer: a run that was stopped or killed resumes as the uninterrupted one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promot_t5x.checkpoints import saving
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.training import run_metrics, stage_run
from tests.training import tiny
from tests.training.tiny import ONE_LAYER

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("quick_compilation")

_KILLED = """
import os, signal, sys
from promot_t5x.training import stage_run
from tests.training import tiny

folder, kill_after = sys.argv[1], int(sys.argv[2])
original = stage_run.training_batches.opened

def killing(*args, **kwargs):
    def batches(start_batch):
        for number, batch in enumerate(opened(start_batch)):
            if number == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    opened = original(*args, **kwargs)
    return batches

stage_run.training_batches.opened = killing
with tiny.registered_task() as name:
    tiny.train(folder, "joint_tuning", name)
"""


@pytest.fixture(scope="module")
def task():
    with tiny.registered_task() as name:
        yield name


class _Stopped(Exception):
    pass


def _recorded_batches(monkeypatch, stop_after=None):
    """Records every batch that a run takes, and ends it when it asks for the one after `stop_after`."""
    taken, original = [], stage_run.training_batches.opened

    def recorded(*args, **kwargs):
        def batches(start_batch):
            for batch in opened(start_batch):
                if len(taken) == stop_after:
                    raise _Stopped
                taken.append({k: v.tobytes() for k, v in batch.items()})
                yield batch

        opened = original(*args, **kwargs)
        return batches

    monkeypatch.setattr(stage_run.training_batches, "opened", recorded)
    return taken


@pytest.mark.parametrize("stage", ["prompt_tuning", "joint_tuning"])
def test_a_resumed_run_is_the_uninterrupted_one(stage, task, tmp_path, monkeypatch):
    initial = str(tmp_path / "base")
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, prompt_length=0))
    saving.export(initial, tiny.random_params(model), {"step": 0, "base": None})
    with monkeypatch.context() as patch:
        whole_order = _recorded_batches(patch)
        tiny.train(tmp_path / "whole", stage, task, initial)
    assert len(whole_order) == 6 and len({batch["encoder_input_tokens"] for batch in whole_order}) == 6

    with monkeypatch.context() as patch:
        first_part = _recorded_batches(patch, stop_after=5)
        with pytest.raises(_Stopped):
            tiny.train(tmp_path / "stopped", stage, task, initial)
    assert saving.all_steps(tmp_path / "stopped") == [4]
    assert [line["step"] for line in run_metrics.read(tmp_path / "stopped")] == [3]
    with (tmp_path / "stopped" / run_metrics.FILE).open("a") as stream:
        stream.write('{"step": 5, "train/loss": 1.0}\n')  # as if written before a checkpoint that never came
    with monkeypatch.context() as patch:
        second_part = _recorded_batches(patch)
        result = tiny.train(tmp_path / "stopped", stage, task, initial)
    assert first_part == whole_order[:5] and second_part == whole_order[4:]
    assert result is not None and result.best_step == 6

    expected = tiny.stored_bytes(tmp_path / "whole" / "checkpoint_6")
    assert tiny.stored_bytes(tmp_path / "stopped" / "checkpoint_6") == expected
    assert len(expected) > 2 and any("opt_state" in name for name in expected)
    metrics = {name: run_metrics.read(tmp_path / name) for name in ("whole", "stopped")}
    assert [line["step"] for line in metrics["stopped"]] == [line["step"] for line in metrics["whole"]] == [3, 6]
    assert metrics["stopped"][0]["train/loss"] == metrics["whole"][0]["train/loss"]
    # A finished run that is called again returns its result and reads no batch.
    with monkeypatch.context() as patch:
        nothing = _recorded_batches(patch, stop_after=0)
        assert tiny.train(tmp_path / "stopped", stage, task, initial) == result
    assert nothing == []


@pytest.mark.slow  # three processes, each with its imports and compilation
def test_a_killed_run_resumes(tmp_path):
    def start(folder, kill_after):
        command = [sys.executable, "-c", _KILLED, str(tmp_path / folder), str(kill_after)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    whole = start("whole", 100)
    assert whole.returncode == 0, whole.stderr[-3000:]
    # Killed right after the second save has begun: whether it is whole by then is a matter of luck.
    assert start("killed", 4).returncode == -signal.SIGKILL
    resumed = start("killed", 100)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert tiny.stored_bytes(tmp_path / "killed" / "checkpoint_6") == tiny.stored_bytes(
        tmp_path / "whole" / "checkpoint_6"
    )
    assert json.loads((tmp_path / "killed" / "finished.json").read_text())["best_step"] == 6
