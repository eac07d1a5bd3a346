"""`~` is the user's home in every path, also where the shell leaves it as it is (`--out=~/report`)."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import seqio

import promot_t5x
from promot_t5x import cli, eval, infer
from promot_t5x.configuration import program
from promot_t5x.evaluation import inference
from promot_t5x.recipes import from_command
from promot_t5x.runtime import files
from promot_t5x.tasks import jsonl, vocabularies
from promot_t5x.training import folder_lock, prompt_initializers


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home with a folder of data, which is not the working folder."""
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path / "home"
    assert not list((tmp_path / "elsewhere").iterdir()), "a folder called ~"


def test_of_a_task(home):
    (home / "data" / "train.jsonl").write_text('{"input": "a", "target": "b"}\n')
    name = jsonl.jsonl_task("at_home", "~/data", vocabulary=seqio.ByteVocabulary())
    (example,) = seqio.TaskRegistry.get(name).get_dataset(None, split="train", shuffle=False).as_numpy_iterator()
    assert example["inputs_pretokenized"] == b"a"
    assert vocabularies.as_vocabulary("~/spm.model").sentencepiece_model_file == str(home / "spm.model")
    assert vocabularies.sentencepiece("gs://bucket/spm.model").sentencepiece_model_file == "gs://bucket/spm.model"


def test_of_the_inputs_of_infer(home):
    (home / "in.jsonl").write_text('{"input": "a"}\n')
    assert inference.read_inputs("~/in.jsonl") == [{"input": "a"}]
    with pytest.raises(ValueError, match="which the output would replace"):
        inference._check_not_replaced("~/predictions.jsonl", files.absolute("~"))


def test_of_infer_and_eval(home, tiny_model):
    (home / "in.jsonl").write_text('{"input": "a"}\n')
    (home / "with").symlink_to(tiny_model.folder / "with")
    common = ["--gin_file=models/toy.gin", *tiny_model.flags, "--gin.CHECKPOINT_PATH=~/with"]
    common += ["--gin.TASK_FEATURE_LENGTHS={'inputs': 28, 'targets': 4}", "--gin.EVAL_BATCH_SIZE=2"]
    output = ["--gin.INPUTS=~/in.jsonl", "--gin.INFER_OUTPUT_DIR=~/answers"]
    assert program.run_main(infer.main, [*common, "--gin_file=suites/infer.gin", *output]) == 0
    assert (home / "answers" / "predictions.jsonl").exists()
    output = ["--gin.TASKS=('toy_wic',)", "--gin.EVAL_OUTPUT_DIR=~/scores", "--limit=2"]
    assert program.run_main(eval.main, [*common, "--gin_file=suites/eval.gin", *output]) == 0
    assert (home / "scores" / "scores.json").exists()


def test_of_a_run(home):
    with folder_lock.held("~/run"):
        assert (home / "run" / folder_lock.FILE).exists()


def test_of_a_prompt(home):
    prompt_NxPxD = np.ones((1, 2, 3), np.float32)
    np.save(home / "prompt.npy", prompt_NxPxD)
    init = prompt_initializers.from_file("~/prompt.npy").build()
    np.testing.assert_array_equal(init(None, 1, 2, jnp.zeros((5, 3))), prompt_NxPxD)


def test_of_a_report(home):
    files.write_json(home / "scores.json", {"unit": "percent", "results": {}, "mean": {}, "rows": []})
    assert cli.main(["report", "--scores=~/scores.json", "--out=~/report"]) == 0
    assert (home / "report" / "scores.md").exists()


def test_of_the_demo_and_of_tfds(home, monkeypatch):
    seen = []
    monkeypatch.setattr(from_command, "follow", seen.append)
    assert cli.main(["demo", "--out=~/demo", "--tfds_data_dir=~/tfds"]) == 0
    (invocation,) = seen
    assert f"WORK_DIR = {str(home / 'demo')!r}" in invocation.gin_bindings
    monkeypatch.setattr(seqio, "set_tfds_data_dir_override", seen.append)
    program.configure(invocation)
    assert seen[1:] == [os.fspath(home / "tfds")]


def test_of_a_soft_prompt(home):
    promot_t5x.save_soft_prompt("~/prompt", np.ones((1, 2, 3), np.float32), {"task": "rte"})
    assert promot_t5x.load_soft_prompt("~/prompt").shape == (1, 2, 3)
    assert (home / "prompt" / "soft_prompt.json").exists()
