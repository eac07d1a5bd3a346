"""Both stages on real text: RTE with the T5 vocabulary from one gin file and two flags, and a user's own JSONL file."""

import json
import math

import numpy as np
import pytest

from promot_t5x import pipeline, train
from promot_t5x.checkpoints import fingerprints, saving
from promot_t5x.configuration import program
from promot_t5x.models import parameter_names
from promot_t5x.training import run_metrics


@pytest.fixture(scope="module")
def vocabulary_file(shared_dir):
    file = shared_dir / "data" / "spm" / "t5_cc_all_32000.model"
    if not file.exists():
        pytest.skip(f"needs the T5 SentencePiece vocabulary {file}")
    return file


@pytest.fixture
def losses(monkeypatch):
    """The mean training loss at every report."""
    written, original = [], run_metrics.MetricsFile.write_scalars

    def write_scalars(self, step, scalars):
        written.extend(scalars[name] for name in scalars if name == "train/loss")
        original(self, step, scalars)

    monkeypatch.setattr(run_metrics.MetricsFile, "write_scalars", write_scalars)
    return written


def _leaves(folder):
    best = folder if saving.is_checkpoint(folder) else folder / f"checkpoint_{saving.best_step(folder)}"
    return saving.read_params(best, saving.shapes(best))


def test_both_stages_on_rte(shared_dir, vocabulary_file, tmp_path, losses, capsys):
    data_dir = shared_dir / "data" / "super_glue"
    if not (data_dir / "RTE" / "train.jsonl").exists():
        pytest.skip(f"needs RTE in {data_dir / 'RTE' / 'train.jsonl'}")
    two_flags = [f"--gin.DATA_DIR={data_dir}", f"--gin.VOCABULARY_FILE={vocabulary_file}"]
    argv = ["--gin_file=recipes/trial_rte.gin", *two_flags, f"--gin.WORK_DIR={tmp_path}"]
    assert program.run_main(pipeline.main, argv) == 0
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert all(loss < 2 * math.log(32128) for loss in losses), "at most about chance"
    stdout = capsys.readouterr().out
    assert "stage prompt_tuning: 1,280 parameters train" in stdout and "1,280 are frozen" in stdout

    base, stage_1 = _leaves(tmp_path / "random_weights"), tmp_path / "seed0" / "prompt_tuning"
    metadata = saving.read_metadata(stage_1 / "checkpoint_10")
    assert metadata["base"]["fingerprint"] == fingerprints.fingerprint(parameter_names.unflatten(base)), (
        "the base is untouched"
    )
    prompt = np.asarray(_leaves(stage_1)["soft_prompt/embedding"])
    assert prompt.shape == (1, 20, 64) and np.all(np.isfinite(prompt))
    # From uniform in [-0.5, 0.5] ten steps of Adafactor at 0.2 lead far out.
    assert np.abs(prompt).max() > 0.6, "the prompt moved"
    assert sum(file.stat().st_size for file in stage_1.rglob("*") if file.is_file()) < 1_000_000
    stage_2 = _leaves(tmp_path / "seed0" / "promot_lr0.001")
    np.testing.assert_array_equal(stage_2["soft_prompt/embedding"], prompt)
    assert all(np.any(stage_2[name] != leaf) for name, leaf in base.items()), "stage 2 moved every other leaf"

    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert list(comparison["methods"]) == ["pretrained", "prompt_tuning", "fine_tuning", "promot"]
    for method in comparison["methods"].values():
        (entry,) = method["learning_rates"].values()
        assert 0 <= entry["target"] <= 100 and entry["in_context"] == {} and entry["in_context_mean"] is None
    assert (tmp_path / "report.html").exists()
    scores = json.loads((tmp_path / "seed0" / "promot_lr0.001" / "scores.json").read_text())
    assert scores["decided_by"]["splits"][0] == "test"


def test_own_jsonl_file(vocabulary_file, tmp_path, losses, capsys):
    rows = [{"input": f"Is {i} even?", "target": "no" if i % 2 else "yes"} for i in range(40)]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--gin_file=models/trial.gin", "--gin_file=tasks/jsonl.gin", "--gin_file=stages/joint_tuning.gin"]
    argv += [f"--gin.DATA_DIR={tmp_path / 'data'}", f"--gin.VOCABULARY_FILE={vocabulary_file}"]
    argv += [f"--gin.MODEL_DIR={tmp_path / 'run'}", "--gin.INITIAL_CHECKPOINT_PATH=None"]
    argv += ["--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 4}", "--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=8"]
    assert program.run_main(train.main, argv) == 0
    assert all(math.isfinite(loss) for loss in losses) and losses
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["best_step"] == 2
    assert "soft_prompt" in capsys.readouterr().out

    (tmp_path / "data" / "train.jsonl").write_text('{"input": "a", "answer": "b"}\n')
    again = [flag for flag in argv if "MODEL_DIR" not in flag]
    assert program.run_main(train.main, [*again, f"--gin.MODEL_DIR={tmp_path / 'other'}"]) == 1
    sentence = f"error: {tmp_path}/data/train.jsonl line 1 has no column 'target', only input, answer"
    assert sentence in capsys.readouterr().err
