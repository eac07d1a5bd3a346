"""The demo checkpoint is evaluated to the same numbers on 1 and 4 devices and with batches of 1 and 16."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from promot_t5x.tasks import toy_world

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "promot_t5x" / "demo_checkpoint"
LAYOUTS = {"one row on one device": (1, 1), "sixteen on four": (4, 16)}
OWN = """
from __gin__ import dynamic_registration
from promot_t5x.tasks import jsonl

TASKS = ('toy_nli3', 'toy_en_ro', 'toy_key_sentence', @jsonl.jsonl_task())
SHOTS = (0, 2)
SEEDS = (3, 4)
ANSWERING = 'rank'
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 6}
jsonl.jsonl_task.name = 'ranked'
jsonl.jsonl_task.data_dir = %DATA_DIR
jsonl.jsonl_task.vocabulary = %VOCABULARY
jsonl.jsonl_task.choices_column = 'choices'
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The folder that each layout wrote; each ran in a process of its own, with that many (fake) devices."""
    folder = tmp_path_factory.mktemp("in_context")
    for split, part in (("train", slice(0, 30)), ("test", slice(30, 60))):
        labels = [["yes", "no", "maybe"], ["True", "False", "Neither"], ["good", "bad", "unsure"]]
        rows = [
            {"input": question, "target": answer, "choices": next(choices for choices in labels if answer in choices)}
            for question, answer in toy_world.examples("toy_nli3", "validation")[part]
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.gin").write_text(OWN)
    for name, (devices, batch_size) in LAYOUTS.items():
        command = [sys.executable, "-m", "promot_t5x.eval", "--gin_file=models/toy.gin", "--gin_file=suites/eval.gin"]
        command += [f"--gin_file={folder / 'own.gin'}", f"--data_dir={folder}", "--limit=30"]
        command += [f"--gin.CHECKPOINT_PATH={CHECKPOINT}", f"--gin.EVAL_OUTPUT_DIR={folder / name}"]
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(
            [*command, f"--gin.EVAL_BATCH_SIZE={batch_size}"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "examples/s" in done.stderr and "100%" in done.stderr
    return {name: folder / name for name in LAYOUTS}


def _rows(file):
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def test_predictions_are_the_same_in_every_layout(outputs):
    first, other = outputs.values()
    files = sorted(file.name for file in first.glob("*.jsonl"))
    assert len(files) == 6, "three toy tasks, one without exemplars, two draws of two"
    for name in files:
        for row, again in zip(_rows(first / name), _rows(other / name), strict=True):
            del row["crc32"], again["crc32"]
            scores, scores_again = row.pop("choice_scores", []), again.pop("choice_scores", [])
            np.testing.assert_allclose(scores, scores_again, rtol=1e-5, atol=1e-5)
            assert bool(scores) == name.startswith("ranked") and row == again


def test_metrics_are_the_same_in_every_layout(outputs):
    first, other = (json.loads((folder / "scores.json").read_text()) for folder in outputs.values())
    assert (other["results"], other["mean"]) == (first["results"], first["mean"])
    assert first["results"]["toy_nli3_removed"]["value"] > 80, "the checkpoint was trained on this"
    assert first["results"]["ranked_0shot_removed"]["value"] > 80
    assert first["results"]["ranked_2shot_removed"]["answering"] == "rank"
