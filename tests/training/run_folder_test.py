"""promot_t5x.training.run_folder: a run resumes with what it was trained from, and leaves its best checkpoint."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.checkpoints import saving
from promot_t5x.runtime import settings
from promot_t5x.training import optimizers, run_folder, stages, trainer

BASE = {"path": "somewhere", "fingerprint": "0123"}


@dataclasses.dataclass(frozen=True)
class BestOf:
    """Settings of a run."""

    steps: int


def _start(prompt):
    """(optimizer, fresh state, frozen) of a stage that trains everything but the prompt."""
    params = {"encoder": {"scale": jnp.ones(3)}, "soft_prompt": {"embedding": jnp.full((1, 2, 3), prompt)}}
    stage = stages.stage("model_tuning")
    trainable, frozen = stages.partition(params, stage)
    optimizer = optimizers.staged_optimizer(optax.sgd(0.1, momentum=0.9), params, stage)
    return trainer.init_state(optimizer, trainable), frozen


@pytest.fixture
def run(tmp_path):
    """The checkpoints of a run that has made two steps."""
    fresh, frozen = _start(prompt=1.0)
    checkpoints = saving.RunCheckpoints(tmp_path, saving.CheckpointConfig(period=1, keep_latest=2))
    save = trainer.saver(checkpoints, frozen, {"base": BASE, "stage": "model_tuning"})
    for step, score in ((1, 0.5), (2, 0.25)):
        trained = {"encoder": {"scale": jnp.full(3, float(step))}, "soft_prompt": {"embedding": None}}
        save(trainer.TrainState(step, trained, fresh.opt_state), score)
    yield checkpoints
    checkpoints.close()


def test_a_run_continues_at_the_newest_checkpoint(run):
    run._manager.wait_until_finished()
    fresh, frozen = _start(prompt=1.0)
    # The path may differ: the model may have moved.
    state = run_folder.restored(run, fresh, frozen, {**BASE, "path": "elsewhere"})
    assert state.step == 2
    np.testing.assert_array_equal(state.trainable["encoder"]["scale"], np.full(3, 2.0))


def test_another_prompt_or_model_is_refused(run):
    run._manager.wait_until_finished()
    fresh, frozen = _start(prompt=1.5)
    with pytest.raises(ValueError, match="checkpoint_2 was trained with another soft prompt than the initial"):
        run_folder.restored(run, fresh, frozen, BASE)
    fresh, frozen = _start(prompt=1.0)
    with pytest.raises(ValueError, match="was trained from .*0123.*, this run starts from .*4567"):
        run_folder.restored(run, fresh, frozen, {**BASE, "fingerprint": "4567"})
    with pytest.raises(ValueError, match="was trained from .*0123.*, this run starts from None"):
        run_folder.restored(run, fresh, frozen, None)


def test_an_empty_folder_gives_the_fresh_state(tmp_path):
    fresh, frozen = _start(prompt=1.0)
    checkpoints = saving.RunCheckpoints(tmp_path, saving.CheckpointConfig())
    assert run_folder.restored(checkpoints, fresh, frozen, BASE) is fresh
    checkpoints.close()


def test_a_finished_run_exports_its_best_checkpoint_without_a_base(run, tmp_path):
    run._manager.wait_until_finished()
    result = run_folder.finish(str(tmp_path), str(tmp_path / "export"))
    assert (result.best_step, result.best_score) == (1, 0.5)
    assert json.loads((tmp_path / "finished.json").read_text()) == {"best_step": 1, "best_score": 0.5}
    assert saving.read_metadata(tmp_path / "export")["base"] is None, "the export holds whole parameters"
    exported = saving.read_params(tmp_path / "export", saving.shapes(tmp_path / "export"))
    np.testing.assert_array_equal(exported["encoder/scale"], np.ones(3))
    assert not (tmp_path / "soft_prompt.safetensors").exists()


def test_a_finished_run_repeats_its_best_step_and_score(run, tmp_path, caplog):
    run._manager.wait_until_finished()
    (tmp_path / "settings.json").write_text(json.dumps(settings.describe(BestOf(1))))
    result = run_folder.finish(str(tmp_path), None)
    with caplog.at_level("INFO"):
        assert run_folder.finished(str(tmp_path), BestOf(1)) == result
    said = f"{tmp_path} is finished; its best checkpoint is that of step 1 with validation score 0.5000"
    assert said in caplog.messages
