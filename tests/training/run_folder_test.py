"""promot_t5x.training.run_folder: a run resumes with what it was trained from, and leaves its best checkpoint."""

import contextlib
import dataclasses
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.checkpoints import saving
from promot_t5x.runtime import settings
from promot_t5x.training import optimizers, run_folder, stages, train_step, trainer

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
    optimizer = optimizers.Staged(optax.sgd(0.1, momentum=0.9), stage)
    return train_step.init_state(optimizer, trainable), frozen


@pytest.fixture
def run(tmp_path):
    """The checkpoints of a run that has made two steps."""
    fresh, frozen = _start(prompt=1.0)
    checkpoints = saving.RunCheckpoints(tmp_path, saving.CheckpointConfig(period=1, keep_latest=2))
    save = trainer.saver(checkpoints, frozen, {"base": BASE, "stage": "model_tuning"})
    for step, score in ((1, 0.5), (2, 0.25)):
        trained = {"encoder": {"scale": jnp.full(3, float(step))}, "soft_prompt": {"embedding": None}}
        save(train_step.TrainState(step, trained, fresh.opt_state), score)
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


# --- damage ---


def _flip(folder):
    """Flips a bit in every file of arrays of a checkpoint's parameters."""
    for file in folder.glob("params/**/d/*"):
        content = bytearray(file.read_bytes())
        for place in range(0, len(content), 8):
            content[place] ^= 1
        file.write_bytes(content)


def _restored(folder, prompt=1.0):
    fresh, frozen = _start(prompt)
    with contextlib.closing(saving.RunCheckpoints(folder, saving.CheckpointConfig(keep_latest=2))) as checkpoints:
        return run_folder.restored(checkpoints, fresh, frozen, BASE)


@pytest.fixture
def stopped(run, tmp_path):
    """The folder of that run after it was stopped."""
    run.close()
    (tmp_path / "settings.json").write_text(json.dumps(settings.describe(BestOf(1))))
    return tmp_path


def test_a_damaged_newest_checkpoint_names_the_one_that_is_whole(stopped):
    _flip(stopped / "checkpoint_2")
    with pytest.raises(ValueError, match="the one of step 1 is whole, and --gin.train.train.resume_from=1 continues"):
        _restored(stopped)
    _flip(stopped / "checkpoint_1")
    with pytest.raises(ValueError, match="checkpoint_2.* no other checkpoint of this run is whole, so use a new MODEL"):
        _restored(stopped)


def test_resume_from_sets_the_damaged_checkpoint_aside(stopped):
    _flip(stopped / "checkpoint_2")
    damaged = {f.relative_to(stopped / "checkpoint_2"): f.read_bytes() for f in (stopped / "checkpoint_2").rglob("d/*")}
    (stopped / "finished.json").write_text("{}")
    run_folder.set_aside_newer(str(stopped), 1, BestOf(1))
    assert _restored(stopped).step == 1
    aside = stopped / "damaged_checkpoint_2"
    assert {file: (aside / file).read_bytes() for file in damaged} == damaged
    assert not (stopped / "finished.json").exists() and (stopped / "damaged_finished.json").exists()
    run_folder.set_aside_newer(str(stopped), 1, BestOf(1))  # the same command once more
    assert _restored(stopped).step == 1


def test_resume_from_renames_nothing_of_a_run_with_other_settings(stopped):
    _flip(stopped / "checkpoint_2")
    (stopped / "finished.json").write_text("{}")
    before = sorted(stopped.iterdir())
    with pytest.raises(ValueError, match="holds a run with other settings: steps is 3, was 1; use a new MODEL_DIR"):
        run_folder.set_aside_newer(str(stopped), 1, BestOf(3))
    assert sorted(stopped.iterdir()) == before


def test_a_run_whose_best_checkpoint_is_damaged_finishes_with_the_best_of_the_others(stopped):
    _flip(stopped / "checkpoint_1")
    advice = "rename (checkpoint_1) to (damaged_checkpoint_1), and the same command continues with the best of the oth"
    with pytest.raises(ValueError, match=f"the one of step 2 is whole: {advice}") as caught:
        run_folder.finish(str(stopped), str(stopped / "export"))
    before, after = re.search(advice, str(caught.value)).groups()
    (stopped / before).rename(stopped / after)
    assert _restored(stopped).step == 2
    assert run_folder.finish(str(stopped), str(stopped / "export")).best_step == 2


def test_resume_from_discards_nothing_that_is_whole(stopped):
    with pytest.raises(ValueError, match="checkpoint_2 is whole and newer than train.train.resume_from=1"):
        run_folder.set_aside_newer(str(stopped), 1, BestOf(1))
    with pytest.raises(ValueError, match="train.train.resume_from is 3, but .* holds the checkpoints of steps 1, 2;"):
        run_folder.set_aside_newer(str(stopped), 3, BestOf(1))
    _flip(stopped / "checkpoint_1")
    with pytest.raises(ValueError, match="checkpoint_1.* and train.train.resume_from cannot be 1"):
        run_folder.set_aside_newer(str(stopped), 1, BestOf(1))
    assert saving.all_steps(stopped) == [1, 2]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[" * 10**5, b"[1]", b'{"step": 2}'])
def test_damaged_metadata_of_a_run_name_the_one_that_is_whole(stopped, content):
    for step, advice in (
        (2, "--gin.train.train.resume_from=1 continues"),
        (1, "rename checkpoint_1 to damaged_checkpoint_1, and the same command continues with the best of the others"),
    ):
        file = stopped / f"checkpoint_{step}" / "metadata" / "metadata"
        before = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ValueError, match=f"checkpoint_{step}.* is whole.*{advice}"):
            run_folder.check_metadata(str(stopped))
        file.write_bytes(before)
    run_folder.check_metadata(str(stopped))


def test_swapped_checkpoints_are_named(stopped):
    for before, after in (("1", "x"), ("2", "1"), ("x", "2")):
        (stopped / f"checkpoint_{before}").rename(stopped / f"checkpoint_{after}")
    with pytest.raises(ValueError, match="checkpoint_1 holds the checkpoint of step 2, .* move it away.$"):
        run_folder.check_metadata(str(stopped))


def test_another_prompt_is_not_called_damage(stopped):
    with pytest.raises(ValueError, match="was trained with another soft prompt .* or a new MODEL_DIR.$"):
        _restored(stopped, prompt=1.5)


@pytest.fixture
def finished_run(stopped):
    """That run's folder, finished: its best checkpoint is that of step 1, with the score 0.5."""
    run_folder.finish(str(stopped), None)
    return stopped


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "finished.json is damaged, it is not JSON .*; delete it, and the command that trained this run writes"),
        (b"\0\0\0", "finished.json is damaged, it is not JSON .*; delete it"),
        (b'{"best_step": 1', "finished.json is damaged, it is not JSON .*; delete it"),
        (b"[" * 10**5, "finished.json is damaged, it is not JSON .*more than 100 levels.*; delete it"),
        (b"[1]", "finished.json is damaged, it is not a JSON object; delete it"),
        (b"{}", "finished.json is damaged, it holds {}, expected best_step and best_score; delete it"),
        (b'{"best_step": "1", "best_score": 0.5}', "finished.json is damaged, it holds .*; delete it"),
        (
            b'{"best_step": 1, "best_score": 0.7}',
            "best_score is 0.7 and that of its checkpoint, step 1, is 0.5; del",
        ),
        (b'{"best_step": 9, "best_score": 0.5}', "that of step 9, is gone .*holds the checkpoints of steps 1, 2.: put"),
    ],
)
def test_a_damaged_finished_json_is_named(finished_run, content, sentence):
    (finished_run / "finished.json").write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        run_folder.finished(str(finished_run), BestOf(1))
    assert len(str(caught.value).splitlines()) == 1


def test_a_finished_run_without_its_checkpoints_is_an_error(finished_run):
    for step, left in ((1, "the checkpoints of steps 2"), (2, "no checkpoints")):
        shutil.rmtree(finished_run / f"checkpoint_{step}")
        with pytest.raises(ValueError, match=f"is finished, but its best .* step 1, is gone .the folder holds {left}"):
            run_folder.finished(str(finished_run), BestOf(1))


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"[1]", b"null"])
def test_damaged_settings_are_named(finished_run, content):
    (finished_run / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match="settings.json is not JSON"):
        run_folder.finished(str(finished_run), BestOf(1))
