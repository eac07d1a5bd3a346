"""The eval binary: what it writes, with the prompt removed and attached, and its mistakes."""

import json

import jax
import numpy as np
import pytest

from promot_t5x import eval as binary
from promot_t5x import initialize, launcher

LENGTHS = "{'inputs': 28, 'targets': 6}"


def _run(
    tiny_model, out, checkpoint="with", prompts="('removed', 'attached')", tasks="('toy_wic', 'toy_enfr')", extra=()
):
    values = dict(
        CHECKPOINT_PATH=tiny_model.folder / checkpoint, OUTPUT_DIR=out, PROMPTS=prompts, TASKS=tasks, EVAL_BATCH_SIZE=7
    )
    flags = ["--gin_file=models/toy.gin", "--gin_file=suites/eval.gin", f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}"]
    flags += ["--gin.evaluation.EvaluationConfig.limit=12", *[f"--gin.{name}={v}" for name, v in values.items()]]
    return launcher.run_main(binary.main, [*flags, *tiny_model.flags, *extra])


def _rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_scores_and_predictions(tiny_model, tmp_path, capsys):
    assert _run(tiny_model, tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (
        found["checkpoint"]["path"] == str(tiny_model.folder / "with") and found["versions"]["jax"] == jax.__version__
    )
    asked = [(score["task"], score["split"], score["prompt"]) for score in found["scores"]]
    assert asked == [(task, "test", prompt) for task in ("toy_wic", "toy_enfr") for prompt in ("removed", "attached")]
    answers = {}
    for score in found["scores"]:
        rows = _rows(tmp_path / "out" / f"{score['task']}.test.{score['prompt']}.jsonl")
        assert len(rows) == score["examples"] == 12
        assert all(set(row) == {"input", "prediction", "target"} for row in rows)
        if score["task"] == "toy_wic":  # accuracy, by hand
            expected = np.mean([row["prediction"].strip() == row["target"].strip() for row in rows])
            assert score["metrics"]["accuracy"] == pytest.approx(expected)
        answers[score["task"], score["prompt"]] = [row["prediction"] for row in rows]
    assert rows[0]["input"].startswith("translate: ")
    assert answers["toy_enfr", "removed"] != answers["toy_enfr", "attached"], "the prompt was attached"
    shown = capsys.readouterr().out
    assert "toy_wic test, prompt removed: accuracy" in shown and "(12 examples)" in shown

    # With the prompt removed the answers are those of the model that never had one.
    assert _run(tiny_model, tmp_path / "plain", "without", "('removed',)") == 0
    for task in ("toy_wic", "toy_enfr"):
        name = f"{task}.test.removed.jsonl"
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    "changes,expected",
    [
        (dict(checkpoint="without", prompts="('attached',)"), "the checkpoint has none; evaluate with the prompt"),
        (
            dict(prompts="('atached',)"),
            "eval.evaluate.prompts is ('atached',): expected 'removed', 'attached' or both.",
        ),
        (dict(tasks="('toy_wicc',)"), "toy_wic"),
        (dict(checkpoint="nowhere"), "There is no checkpoint at "),
        (dict(extra=["--gin.SPLIT=tset"]), "'tset'"),
        (dict(extra=["--gin.architecture.T5Config.mlp_dim=48"]), "does not hold this network's parameters"),
        (dict(extra=["--gin.eval.evaluate.prompt_id=1"], prompts="('attached',)"), "the checkpoint has 1, from 0 on"),
    ],
)
def test_a_mistake_is_one_sentence(changes, expected, tiny_model, tmp_path, capsys):
    assert _run(tiny_model, tmp_path / "out", **changes) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    (sentence,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert expected in sentence
    assert not (tmp_path / "out" / "scores.json").exists()


def test_dry_run_reads_nothing(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(initialize, "load", lambda *_: pytest.fail("a dry run reads the checkpoint"))
    assert _run(tiny_model, tmp_path / "out", checkpoint="nowhere", extra=["--dry_run"]) == 0
    assert "eval.evaluate.split = 'test'" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
