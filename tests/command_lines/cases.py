"""The form of a case, the beginnings that many command lines share, and the folder in which all of them run."""

import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

TOY = "--gin_file=models/toy.gin"
TRAIN = f"train {TOY} --gin_file=tasks/toy.gin --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=run"
TRAIN_DEMO = f"{TRAIN} --gin.INITIAL_CHECKPOINT_PATH=promot_t5x/demo_checkpoint"
TRAIN_DATA = (
    f"train {TOY} --gin_file=tasks/jsonl.gin --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=run "
    "--gin.INITIAL_CHECKPOINT_PATH=promot_t5x/demo_checkpoint --gin.training_batches.DatasetConfig.shards=1 "
    "--gin.BATCH_SIZE=1"
)
EVAL = f"eval {TOY} --gin_file=suites/toy_in_context.gin --gin.EVAL_OUTPUT_DIR=scores"
EVAL_DEMO = f"{EVAL} --gin.CHECKPOINT_PATH=promot_t5x/demo_checkpoint"
EVAL_DATA = (
    f"eval {TOY} --gin_file=suites/eval.gin --gin_file=tasks/jsonl.gin --gin.EVAL_OUTPUT_DIR=scores "
    "--gin.CHECKPOINT_PATH=promot_t5x/demo_checkpoint --gin.TASKS='(%MIXTURE_OR_TASK_NAME,)'"
)
INFER = f"infer {TOY} --gin_file=suites/infer.gin --gin.INPUTS=in.jsonl --gin.INFER_OUTPUT_DIR=answers"
INFER_DEMO = f"{INFER} --gin.CHECKPOINT_PATH=promot_t5x/demo_checkpoint"
PIPELINE = "pipeline --gin_file=recipes/demo.gin --gin.WORK_DIR=work"
PIPELINE_DEMO = f"{PIPELINE} --gin.DEMO_CHECKPOINT=promot_t5x/demo_checkpoint"
CONVERT = "convert --to=converted --to_format=huggingface"
CONVERT_DEMO = f"{CONVERT} --from=promot_t5x/demo_checkpoint"
PLAN = "plan --gin_file=recipes/promot_rte.gin --topology=v4:2x2x1"


CLOSED = {"unreadable": 0o000, "unreadable_folder": 0o000, "read_only": 0o555}  # and their permissions


class Case(NamedTuple):
    """A command line, `promot-t5x` left out, and a part of the one sentence that it is answered with; `|` is "or"."""

    name: str
    command: str
    sentence: str
    environment: Mapping[str, str] = {}

    @property
    def argv(self) -> list[str]:
        return shlex.split(self.command)


def make_files(here: pathlib.Path) -> None:
    """The files of the user, none of which a mistake may change."""
    texts = {
        "a_file": "not what is expected\n",
        "a_folder/inside": "",
        "empty": "",
        "unreadable": "hidden\n",
        "in.jsonl": '{"input": "le chat"}\n',
        "with_predictions.jsonl": '{"input": "a", "prediction": "b"}\n',
        "not_text.jsonl": '{"input": 3}\n',
        "deep.jsonl": "[" * 5000 + "\n",
        "nan.jsonl": '{"input": "a", "n": NaN}\n',
        "deep.gin": "A = " + "[" * 5000 + "\n",
        "syntax.gin": "TRAIN_STEPS = = 3\n",
        "missing_include.gin": "include 'absent.gin'\n",
        "deep.json": "[" * 5000,
        "half.json": '{"unit": "percent", ',
        "list.json": "[]",
        "other.json": "{}",
        "hf/config.json": "[" * 5000,
        "hf/model.safetensors": "",
        "hf_half/config.json": '{"model_type": "t5"',
        "hf_half/model.safetensors": "",
        "broken_module.py": "import absent_package\n",
        "wrong_module.py": "1 / 0\n",
        "ending_module.py": "import sys\nsys.exit()\n",
        "ending.gin": "from __gin__ import dynamic_registration\nimport ending_module\n",
        "raising.gin": "from __gin__ import dynamic_registration\nimport wrong_module\n",
        "export/notes.txt": "mine\n",
    }
    row = json.dumps({"input": "le chat", "target": "the cat"}) + "\n"
    for split in ("train", "validation", "test"):
        texts[f"data/{split}.jsonl"] = row
        texts[f"without_target/{split}.jsonl"] = row if split == "train" else '{"input": "le chat"}\n'
        texts[f"without_rows/{split}.jsonl"] = ""
    for name, text in texts.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    (here / "latin1").write_bytes("Zürich\n".encode("latin1"))
    (here / "latin1.gin").write_bytes("A = 'Zürich'\n".encode("latin1"))
    np.save(here / "prompt.npy", np.zeros((4, 16), np.float32))
    np.save(here / "nan.npy", np.full((4, 128), np.nan, np.float32))
    (here / "read_only").mkdir()
    (here / "unreadable_folder").mkdir()
    for name, mode in CLOSED.items():
        (here / name).chmod(mode)
