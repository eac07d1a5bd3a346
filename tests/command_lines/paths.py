"""Every argument that is a path, times everything that can be wrong with a path."""

from collections.abc import Iterator

from tests.command_lines.cases import (
    CONVERT,
    CONVERT_DEMO,
    EVAL,
    EVAL_DEMO,
    INFER,
    INFER_DEMO,
    PIPELINE,
    PIPELINE_DEMO,
    PLAN,
    TRAIN_DATA,
    TRAIN_DEMO,
    Case,
)

TOO_LONG = "x" * 300

# (name, kind, command line)
ARGUMENTS = (
    ("a gin file", "gin", "train --gin_file={}"),
    ("a vocabulary", "file", f"{INFER_DEMO} --gin_file=models/trial.gin --gin.VOCABULARY_FILE={{}}"),
    ("infer's inputs", "file", f"{INFER_DEMO} --gin.INPUTS={{}}"),
    ("report's results", "file", "report --out=report --results={}"),
    ("report's scores", "file", "report --out=report --scores={}"),
    ("a folder of data", "data", f"{TRAIN_DATA} --gin.DATA_DIR={{}}"),
    ("train's checkpoint", "checkpoint", f"{TRAIN_DATA} --data_dir=data --gin.INITIAL_CHECKPOINT_PATH={{}}"),
    ("eval's checkpoint", "checkpoint", f"{EVAL} --gin.TASKS=\"('toy_wic',)\" --gin.CHECKPOINT_PATH={{}}"),
    ("infer's checkpoint", "checkpoint", f"{INFER} --gin.CHECKPOINT_PATH={{}}"),
    ("the pipeline's checkpoint", "checkpoint", f"{PIPELINE} --gin.DEMO_CHECKPOINT={{}}"),
    ("convert's source", "checkpoint", f"{CONVERT} --from={{}}"),
    ("a soft prompt", "checkpoint", f"{CONVERT_DEMO} --soft_prompt={{}}"),
    ("a run's folder", "output", f"{TRAIN_DEMO} --gin.MODEL_DIR={{}}"),
    ("an export", "output", f"{TRAIN_DEMO} --gin.train.train.export_dir={{}}"),
    ("the folder of scores", "output", f"{EVAL_DEMO} --gin.EVAL_OUTPUT_DIR={{}}"),
    ("the folder of answers", "output", f"{INFER_DEMO} --gin.INFER_OUTPUT_DIR={{}}"),
    ("the pipeline's folder", "output", f"{PIPELINE_DEMO} --gin.WORK_DIR={{}}"),
    ("the demo's folder", "output", "demo --out={}"),
    ("a converted checkpoint", "output", f"{CONVERT_DEMO} --to={{}}"),
    ("a report", "output", "report --results=other.json --out={}"),
    ("a plan's file", "output file", f"{PLAN} --json={{}}"),
    ("a converted prompt", "output file", "convert --from=prompt.npy --to_format=npy --to={}"),
)

# (what is wrong, path, {kind: part of the sentence}); a kind that is not named has no such mistake.
MISTAKES = (
    ("missing", "absent", {"file": "absent", "gin": "absent", "data": "absent", "checkpoint": "absent"}),
    (
        "a folder",
        "a_folder",
        {"file": "a_folder", "gin": "a_folder", "checkpoint": "a_folder", "output file": "a_folder"},
    ),
    ("a file", "a_file", {"data": "a_file", "checkpoint": "a_file", "output": "a_file"}),
    (
        "unreadable",
        "unreadable",
        {"gin": "unreadable cannot be used: permission denied", "file": "unreadable cannot be used: permission denied"},
    ),
    ("unreadable", "unreadable_folder", {"data": "unreadable_folder", "checkpoint": "unreadable_folder"}),
    ("read-only", "read_only/new", {"output": "permission denied", "output file": "permission denied"}),
    ("too long", TOO_LONG, dict.fromkeys(("gin", "file", "data", "checkpoint"), TOO_LONG)),
    ("too long", TOO_LONG, dict.fromkeys(("output", "output file"), "too long for the file system")),
    (
        "under a file",
        "a_file/x",
        dict.fromkeys(("gin", "file", "data", "checkpoint", "output", "output file"), "a_file"),
    ),
    ("not UTF-8", "latin1", {"gin": "latin1 is not a gin file", "file": "latin1"}),
    ("a name that is not UTF-8", "\udcff", {"file": "udcff", "checkpoint": "udcff"}),
    ("empty", "empty", {"file": "empty"}),
    ("no path", "", dict.fromkeys(("gin", "file", "data", "checkpoint", "output", "output file"), "")),
    ("a bucket", "gs://bucket/x", dict.fromkeys(("gin", "file", "data", "checkpoint", "output"), "gs://bucket/x")),
    (
        "an address",
        "http://host/x",
        dict.fromkeys(("gin", "file", "data", "checkpoint", "output", "output file"), "http"),
    ),
)


def cases() -> Iterator[Case]:
    """One case for each argument and mistake of its kind."""
    for argument, kind, command in ARGUMENTS:
        for mistake, path, sentences in MISTAKES:
            if kind in sentences:
                yield Case(f"{argument}: {mistake}", command.format(path), sentences[kind])
