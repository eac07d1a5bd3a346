"""The infer binary: answers to a JSONL file, and its mistakes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x import infer
from promot_t5x.checkpoints import loading, saving
from promot_t5x.configuration import program
from promot_t5x.data import evaluation_examples
from promot_t5x.evaluation import answering, generation, inference
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import strict_json
from promot_t5x.training import initial_parameters

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"id": 1, "input": "red cat"}, {"input": "un\u2028chat"}, {"input": "ä" * 40, "target": "x"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Inputs, and a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("infer")
    (folder / "in.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS))
    (folder / "bytes.gin").write_text(
        "from __gin__ import dynamic_registration\nimport seqio\nVOCABULARY = @seqio.ByteVocabulary()\n"
    )
    return folder


def _flags(tiny_model, folder, out, extra=(), **changes):
    values = dict(
        CHECKPOINT_PATH=tiny_model.folder / "with", INPUTS=folder / "in.jsonl", INFER_OUTPUT_DIR=out, EVAL_BATCH_SIZE=2
    )
    values |= {"TASK_FEATURE_LENGTHS": "{'inputs': 16, 'targets': 6}", **changes}
    flags = ["--gin_file=models/toy.gin", "--gin_file=suites/infer.gin", f"--gin_file={folder / 'bytes.gin'}"]
    flags += tiny_model.flags
    return [*flags, *[f"--gin.{name}={value}" for name, value in values.items()], *extra]


def _run(*args, **kwargs):
    return program.run_main(infer.main, _flags(*args, **kwargs))


def _rows(file):
    return [json.loads(line) for line in (file / "predictions.jsonl").read_text().strip().split("\n")]


def test_answers_with_and_without_the_prompt(tiny_model, folder, tmp_path, capsys):
    for name, changes in (("removed", {}), ("attached", {"PROMPT_ID": 0}), ("first", {"EVAL_BATCH_SIZE": 1})):
        assert _run(tiny_model, folder, tmp_path / name, **changes) == 0
    rows_by_run = {name: _rows(tmp_path / name) for name in ("removed", "attached", "first")}
    for rows in rows_by_run.values():
        assert [{k: v for k, v in row.items() if k != "prediction"} for row in rows] == ROWS
    assert rows_by_run["first"] == rows_by_run["removed"], "the answers do not depend on the batch size"
    assert rows_by_run["attached"] != rows_by_run["removed"]
    assert (
        f"3 predictions in {tmp_path / 'attached' / 'predictions.jsonl'}; inputs cut to 16 tokens: 1\n"
        in capsys.readouterr().out
    )
    assert _run(tiny_model, folder, tmp_path / "limited", ["--gin.scoring.EvaluationConfig.limit=1"]) == 0
    assert capsys.readouterr().out.endswith(f"1 predictions in {tmp_path / 'limited' / 'predictions.jsonl'}\n"), (
        "no input was cut"
    )
    assert _rows(tmp_path / "limited") == rows_by_run["removed"][:1]


def test_inputs_become_the_tokens_that_seqio_makes():
    """Three, four and five bytes and the end of the sequence, in four tokens."""
    texts, lengths = ["abc", "abcd", "abcde"], {"inputs": 4, "targets": 2}
    rows = {"inputs": texts, "targets": texts}
    vocabulary = seqio.ByteVocabulary()
    seqio.TaskRegistry.add(
        "infer_tokens",
        seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), ["test"]),
        {k: seqio.Feature(vocabulary) for k in lengths},
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
    )
    expected = evaluation_examples.evaluation_examples("infer_tokens", lengths, "test")
    arrays, truncated = generation.encoder_features(texts, vocabulary, lengths["inputs"], lengths["targets"])
    tokens_NxT = arrays["encoder_input_tokens"]
    np.testing.assert_array_equal(tokens_NxT, expected.features["encoder_input_tokens"])
    assert tokens_NxT[:, -1].tolist() == [1, 1, 1] and truncated == 2


@pytest.mark.parametrize(
    "text,expected",
    [
        ('{"input": "a"}\n{"inputs": "b"}\n', "line 2 is not a JSON object with a text `input`"),
        ('{"input": "a"}\n\nnonsense\n', "line 3 is not valid JSON (Expecting value, column 1), expected one JSON"),
        ('{"input": "a", "n": NaN}\n', "line 1 is not valid JSON (NaN is not a number in JSON, column 21)"),
        ('{"input": "a"}\n{"input": "b", "n": 1e400}\n', "line 2 is not valid JSON (1e400 is too large for a number, "),
        ('{"input": "a", "input": "b"}\n', 'line 1 is not valid JSON (the key "input" occurs twice, column 16)'),
        ('{"input": "a", "x": "\\ud83d"}\n', "line 1 is not valid JSON (half of a surrogate pair, U+D83D, column 21)"),
        ('{"input": "\\udc00"}\n', "line 1 is not valid JSON (half of a surrogate pair, U+DC00, column 11)"),
        ('{"input": "a", "deep": ' + "[" * 5000, "line 1 is not valid JSON (more than 100 levels of nesting, column "),
        ('{"input": "a"}\n{"input": "b", "prediction": "c"}', "line 2 has a column `prediction`, which is to hold"),
        ('["input"]\n', "line 1 is not a JSON object"),
        ('{"input": 3}\n', "line 1 is not a JSON object with a text `input`"),
        ("", "is empty; expected one JSON object"),
        (None, "There is no file "),
    ],
)
def test_mistakes_in_the_inputs(text, expected, tiny_model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the checkpoint is read first"))
    if text is not None:
        (tmp_path / "in.jsonl").write_text(text)
    assert _run(tiny_model, folder, tmp_path / "out", INPUTS=tmp_path / "in.jsonl") == 1
    stderr = capsys.readouterr().err
    (sentence,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert expected in sentence and str(tmp_path / "in.jsonl") in sentence and "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["predictions.jsonl", "answers.jsonl", "answers.others.jsonl"])
def test_inputs_that_the_output_would_replace(name, tiny_model, folder, tmp_path, capsys):
    (tmp_path / name).write_text('{"input": "a"}\n')
    assert _run(tiny_model, folder, tmp_path, INPUTS=tmp_path / name) == 1
    assert f"error: INPUTS is {tmp_path / name}, which the output would replace; give" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["predictions.jsonl", "answers.jsonl", "answers.others.jsonl", "answers.unfinished"])
def test_outputs_that_cannot_be_written_are_named_before_the_checkpoint_is_read(
    name, tiny_model, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the checkpoint is read first"))
    if name == "answers.unfinished":
        (tmp_path / name).write_text("mine")
    else:
        (tmp_path / name).mkdir()
    assert _run(tiny_model, folder, tmp_path) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "INFER_OUTPUT_DIR is to" in sentence and str(tmp_path / name) in sentence


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COLUMNS = st.dictionaries(TEXT, TEXT | st.floats(allow_nan=False, allow_infinity=False) | st.none())
ROW = st.fixed_dictionaries({"input": TEXT, "columns": COLUMNS})


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(ROW, min_size=1, max_size=6))
def test_any_text_is_answered_in_a_file_of_json(tiny_model, folder, tmp_path_factory, rows):
    place = tmp_path_factory.mktemp("any")
    (place / "in.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), newline="\n")
    assert _run(tiny_model, folder, place / "out", INPUTS=place / "in.jsonl") == 0
    read = [row for _, row in strict_json.read_lines(place / "out" / "predictions.jsonl")]
    assert [{name: row[name] for name in ("input", "columns")} for row in read] == rows
    assert all(isinstance(row["prediction"], str) and len(row) == 3 for row in read)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary() | st.text('{}[]":,\\ud8NaN1e+9 \ninputpredo').map(str.encode))
def test_any_input_file_is_rows_or_one_sentence(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("any") / "in.jsonl"
    file.write_bytes(data)
    try:
        rows = inference.read_inputs(str(file))
    except ValueError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error) and str(error).encode()
    else:
        assert all(isinstance(row["input"], str) and "prediction" not in row for row in rows)


_KILLED = """
import os, signal, sys
from promot_t5x import infer
from promot_t5x.configuration import program
from promot_t5x.evaluation import answer_store, answering

answer_store._SECONDS_PER_PART = 0
original = answering.predict_tokens

def predict_tokens(*args, **kwargs):
    for number, batch in enumerate(original(*args, **kwargs)):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

answering.predict_tokens = predict_tokens
program.run_main(infer.main, sys.argv[1:])
"""


def test_a_killed_command_resumes(tiny_model, folder, tmp_path, monkeypatch, capsys):
    assert _run(tiny_model, folder, tmp_path / "whole") == 0
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _KILLED, *_flags(tiny_model, folder, tmp_path / "out")]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["answers.unfinished"]

    asked, original = [], answering.predict_tokens

    def predict_tokens(*args, rows, **kwargs):
        asked.append(rows)
        return original(*args, rows=rows, **kwargs)

    monkeypatch.setattr(answering, "predict_tokens", predict_tokens)
    assert _run(tiny_model, folder, tmp_path / "out") == 0
    assert asked == [[0]], "two of three, the longest, were answered before"
    assert _rows(tmp_path / "out") == _rows(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers.jsonl", "predictions.jsonl"]
    changed = {"CHECKPOINT_PATH": tiny_model.folder / "without", "PROMPT_ID": None}
    for changes, expected in (({}, []), (changed, []), ({"PROMPT_ID": 0}, [0, 1, 2])):  # "without" has the same model
        asked.clear()
        assert _run(tiny_model, folder, tmp_path / "out", **changes) == 0
        assert asked == [expected]


def test_a_missing_prompt(tiny_model, folder, tmp_path, capsys):
    assert _run(tiny_model, folder, tmp_path / "out", PROMPT_ID=1) == 1
    assert (
        "error: Soft prompt 1 should be attached, but the checkpoint has 1, numbered from 0" in capsys.readouterr().err
    )


@pytest.mark.parametrize("vocab_size", [64, 1024])
def test_a_vocabulary_of_another_network(vocab_size, tiny_model, folder, tmp_path, capsys):
    """Embedding rows that do not exist would be read as others, silently; the wrong rows are no better."""
    (tmp_path / "in.jsonl").write_text('{"input": "zebra"}\n')
    params = initial_parameters.random_parameters(
        EncoderDecoderModel(T5Config(**{**tiny_model.sizes, "vocab_size": vocab_size})), Partitioner(), 0
    )
    saving.export(tmp_path / "small", params, {"step": 0, "base": None})
    extra, changes = [f"--gin.architecture.T5Config.vocab_size={vocab_size}"], {"CHECKPOINT_PATH": tmp_path / "small"}
    assert _run(tiny_model, folder, tmp_path / "out", extra, INPUTS=tmp_path / "in.jsonl", **changes) == 1
    expected = f"The vocabulary ByteVocabulary (259 pieces) does not match the network, which has {vocab_size} "
    assert expected in capsys.readouterr().err


def _sentencepiece(tmp_path, file):
    (tmp_path / "file.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom promot_t5x.tasks import vocabularies\n"
        f"VOCABULARY = @vocabularies.sentencepiece()\nvocabularies.sentencepiece.file = '{file}'\n"
    )
    return tmp_path / "file.gin"


def test_a_missing_vocabulary_is_said_before_the_checkpoint_is_read(tiny_model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the checkpoint is read first"))
    file = tmp_path / "absent.model"
    assert _run(tiny_model, folder, tmp_path / "out", [f"--gin_file={_sentencepiece(tmp_path, file)}"]) == 1
    stderr = capsys.readouterr().err
    assert f"error: There is no vocabulary file {file}; set VOCABULARY_FILE to" in stderr and "Traceback" not in stderr


def test_dry_run_reads_nothing(tiny_model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("a dry run reads the checkpoint"))
    absent = tmp_path / "nowhere"
    extra = ["--dry_run", f"--gin_file={_sentencepiece(tmp_path, absent)}"]
    assert _run(tiny_model, folder, tmp_path / "out", extra, INPUTS=absent) == 0
    assert "infer.infer.inputs" in capsys.readouterr().out
