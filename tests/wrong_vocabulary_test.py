"""Every command that reads data refuses a vocabulary that is not the network's before it reads the checkpoint."""

import json

import pytest

from promot_t5x import eval, infer, pipeline, train
from promot_t5x.configuration import program

# The toy world's vocabulary has 288 pieces.
SIZE = "--gin.architecture.T5Config.vocab_size=1024"
CHECKPOINT = "/no/checkpoint"
COMMANDS = {
    "train": (
        train,
        "INITIAL_CHECKPOINT_PATH",
        "MODEL_DIR",
        ["--gin_file=tasks/toy.gin", "--gin_file=stages/fine_tuning.gin"],
    ),
    "eval": (eval, "CHECKPOINT_PATH", "EVAL_OUTPUT_DIR", ["--gin_file=suites/toy_in_context.gin"]),
    "infer": (infer, "CHECKPOINT_PATH", "INFER_OUTPUT_DIR", ["--gin_file=suites/infer.gin", "--gin.INPUTS=in.jsonl"]),
    "pipeline": (pipeline, "DEMO_CHECKPOINT", "WORK_DIR", ["--gin_file=recipes/demo.gin"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_vocabulary_is_refused_before_the_checkpoint_is_read(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps({"input": "red"}))
    command, checkpoint, folder, files = COMMANDS[name]
    flags = ["--gin_file=models/toy.gin", *files, SIZE, f"--gin.{checkpoint}={CHECKPOINT}", f"--gin.{folder}=out"]
    assert program.run_main(command.main, flags) == 1
    assert (
        "The vocabulary WordVocabulary (288 pieces) does not match the network, which has 1024"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
