"""The eval binary: what it writes, prints and keeps, with the prompt removed and attached, and its mistakes."""

import functools
import gc
import json
import weakref

import jax
import numpy as np
import pytest
import seqio

from promot_t5x import eval
from promot_t5x.checkpoints import loading, saving, soft_prompts
from promot_t5x.configuration import program
from promot_t5x.data import evaluation_examples
from promot_t5x.evaluation import answering, scoring
from promot_t5x.runtime import files

LENGTHS = "{'inputs': 28, 'targets': 6}"
OWN = """
from __gin__ import dynamic_registration
import seqio
from promot_t5x.tasks import jsonl

VOCABULARY = @seqio.ByteVocabulary()
TASKS = (@jsonl.jsonl_task(),)
jsonl.jsonl_task.name = 'own'
jsonl.jsonl_task.data_dir = %DATA_DIR
jsonl.jsonl_task.vocabulary = %VOCABULARY
jsonl.jsonl_task.choices_column = 'choices'
TASK_FEATURE_LENGTHS = {'inputs': 40, 'targets': 4}
SHOTS = (0, 2)
SEEDS = (0, 1)
"""


def _run(tiny_model, out, *extra, **changes):
    values = dict(CHECKPOINT_PATH=tiny_model.folder / "with", EVAL_OUTPUT_DIR=out, PROMPTS="('removed', 'attached')")
    values |= dict(TASKS="('toy_wic', 'toy_enfr')", EVAL_BATCH_SIZE=7, TASK_FEATURE_LENGTHS=LENGTHS) | changes
    flags = ["--gin_file=models/toy.gin", "--gin_file=suites/eval.gin", "--limit=12", *tiny_model.flags]
    flags += [f"--gin.{name}={value}" for name, value in values.items() if value is not None]
    return program.run_main(eval.main, [*flags, *extra])


def _rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def own(tmp_path):
    """A user's own task with choices, as flags."""
    for split, count in (("train", 6), ("test", 5)):
        rows = [{"input": f"{split[:2]} {i}?", "target": "yn"[i % 2], "choices": ["y", "n"]} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.gin").write_text(OWN)
    nothing = dict(TASKS=None, TASK_FEATURE_LENGTHS=None)
    return [f"--gin_file={tmp_path / 'own.gin'}", f"--data_dir={tmp_path}"], nothing


def test_results_and_predictions(tiny_model, tmp_path, capsys):
    assert _run(tiny_model, tmp_path / "out") == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["checkpoints"][0]["path"] == str(tiny_model.folder / "with") and scores["unit"] == "percent"
    assert scores["versions"]["jax"] == jax.__version__ and scores["config"]["limit"] == 12
    assert scores["config"]["decoding"]["method"] == "greedy"
    assert scores["config"]["model"]["config"]["embed_dim"] == tiny_model.sizes["embed_dim"]
    assert scores["config"]["suite"]["entries"][0] == {
        **{"type": "Entry", "task": "toy_wic", "k": None, "seed": None, "name": "toy_wic"}
    }
    assert list(scores["config"]["tasks"]) == ["toy_wic", "toy_enfr"]
    assert list(scores["results"]) == [f"{t}_{p}" for t in ("toy_wic", "toy_enfr") for p in ("removed", "attached")]
    answers = {}
    for key, entry in scores["results"].items():
        (score,) = [row for row in scores["rows"] if (row["task"], row["prompt"]) == (entry["task"], entry["prompt"])]
        assert score["answers"] == f"{entry['task']}.test.{'removed' if score['prompt'] is None else 'attached'}.jsonl"
        assert (score["role"], score["step"], score["n"]) == ("other", 0, 12) and score["value"] == entry["value"]
        rows = _rows(tmp_path / "out" / score["answers"])
        assert len(rows) == entry["n"] == 12 and entry["k"] is None
        assert all(set(row) == {"prompt", "prediction", "target", "score", "output", "key", "crc32"} for row in rows)
        assert entry["value"] == pytest.approx(np.mean([row["score"] for row in rows]))
        if entry["task"] == "toy_wic":  # accuracy, by hand
            expected = 100 * np.mean([row["prediction"].strip() == row["target"].strip() for row in rows])
            assert entry["metrics"]["accuracy"] == pytest.approx(expected)
        answers[key] = [row["prediction"] for row in rows]
    assert rows[0]["prompt"].startswith("translate: ")
    assert answers["toy_enfr_removed"] != answers["toy_enfr_attached"], "the prompt was attached"
    mean = np.mean([scores["results"][f"{task}_removed"]["value"] for task in ("toy_wic", "toy_enfr")])
    assert scores["mean"]["removed"]["value"] == pytest.approx(mean)
    captured = capsys.readouterr()
    assert "toy_wic" in captured.out and "mean of 2" in captured.out and f"Results: {tmp_path / 'out'}" in captured.out
    assert "1/4 toy_wic, prompt removed" in captured.err and "12/12 [" in captured.err and "examples/s" in captured.err

    # With the prompt removed the answers are those of the model that never had one.
    changes = dict(CHECKPOINT_PATH=tiny_model.folder / "without", PROMPTS="('removed',)")
    assert _run(tiny_model, tmp_path / "plain", **changes) == 0
    for task in ("toy_wic", "toy_enfr"):
        name = f"{task}.test.removed.jsonl"
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_two_equal_runs_write_the_same_bytes(tiny_model, own, tmp_path):
    extra, changes = own
    for name in ("a", "b"):
        assert _run(tiny_model, tmp_path / name, *extra, **changes) == 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert len(files) == 7 and {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()} == files


def test_exemplars_seeds_and_choices(tiny_model, own, tmp_path):
    extra, changes = own
    assert _run(tiny_model, tmp_path / "out", *extra, ANSWERING="rank", **changes) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    keys = [f"own_{k}shot_{prompt}" for k in (0, 2) for prompt in ("removed", "attached")]
    assert list(scores["results"]) == keys and list(scores["mean"]) == [key.removeprefix("own_") for key in keys]
    entry = scores["results"]["own_2shot_removed"]
    assert (entry["k"], entry["answering"], entry["n"]) == (2, "rank", 5)
    draws = [row for row in scores["rows"] if (row["k"], row["prompt"]) == (2, None)]
    assert [row["exemplar_seed"] for row in draws] == [0, 1] and entry["seed_std"] is not None
    assert draws[0]["prompts_sha256"] != draws[1]["prompts_sha256"], "other exemplars"
    assert draws[0]["cuts"]["exemplars_dropped"] == 0
    assert scores["rows"][0]["exemplar_seed"] is None and scores["rows"][0]["k"] == 0
    for row in _rows(tmp_path / "out" / "own_2shot_seed1.test.attached.jsonl"):
        assert row["prediction"] == "yn"[int(np.argmax(row["choice_scores"]))] and row["prompt"].count("?") == 3


def test_show_prints_prompts_before_any_model_is_loaded(tiny_model, own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the checkpoint is read"))
    extra, changes = own
    assert _run(tiny_model, None, *extra, "--show=2", CHECKPOINT_PATH=None, **changes) == 0
    stdout = capsys.readouterr().out
    assert "=== own, test: 2 prompts\n--- 1 (6 tokens)\nte 0?\n--> y\n    of y, n\n--- 2 (6 tokens)\nte 1?" in stdout
    assert stdout.count("=== own") == 3 and stdout.count("--> ") == 6


def test_list_needs_no_gin_file(capsys):
    assert program.run_main(eval.main, ["--list"]) == 0
    stdout = capsys.readouterr().out
    for words in (
        "5,428       -           638",
        "in_context (8 tasks): cb, wic",
        "super_glue/cb:1.0.2 (validation)",
        "toy_nli3",
        "28,614",
    ):
        assert words in stdout


class _Stop(Exception):
    """An evaluation is killed."""


def _stop_after(monkeypatch, count):
    """Kills the evaluation once `count` examples are answered; returns their numbers, later ones included."""
    run, answered, stops = answering._Runner.__call__, [], [count]

    def stopping(*args):
        for numbers, answers in run(*args):
            answered.extend(numbers)
            yield numbers, answers
            if len(answered) in stops:
                stops.clear()
                raise _Stop

    monkeypatch.setattr(answering._Runner, "__call__", stopping)
    return answered


def test_an_interrupted_evaluation_continues_where_it_stopped(tiny_model, tmp_path, monkeypatch, capsys):
    assert _run(tiny_model, tmp_path / "whole") == 0
    answered = _stop_after(monkeypatch, 19)  # the first batch of the second run
    with pytest.raises(_Stop):
        _run(tiny_model, tmp_path / "out")
    assert not (tmp_path / "out" / "scores.json").exists()
    capsys.readouterr()
    assert _run(tiny_model, tmp_path / "out") == 0
    assert len(answered) == 4 * 12, "each example was answered once"
    assert "2/4 toy_wic, prompt attached:  58%" in capsys.readouterr().err, "the bar begins at what is finished"
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == files
    answered.clear()
    assert _run(tiny_model, tmp_path / "out") == 0 and not answered, "nothing is left to do"
    assert (
        _run(tiny_model, tmp_path / "out", CHECKPOINT_PATH=tiny_model.folder / "without", PROMPTS="('removed',)") == 0
    )
    assert not answered, "the same weights"
    assert (
        _run(
            tiny_model,
            tmp_path / "out",
            "--gin.encoder_decoder.EncoderDecoderModel.decoding=@encoder_decoder.DecodingConfig()",
            "--gin.encoder_decoder.DecodingConfig.method=beam",
        )
        == 0
    )
    assert len(answered) == 4 * 12, "decoded otherwise"


def test_a_damaged_predictions_file_is_made_again(tiny_model, tmp_path, caplog):
    assert _run(tiny_model, tmp_path / "out") == 0
    whole = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    file = tmp_path / "out" / "toy_enfr.test.removed.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    assert _run(tiny_model, tmp_path / "out") == 0
    assert f"{file} is damaged; 1 of its 12 answers are made again if needed" in caplog.text
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == whole


def test_a_full_disk_leaves_the_old_results(tiny_model, tmp_path, monkeypatch, capsys):
    assert _run(tiny_model, tmp_path / "out") == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert _run(tiny_model, tmp_path / "out", MIXTURE_OR_TASK_SPLIT="validation") == 1
    assert "could not be written (No space left on device); make room" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    "changes,expected",
    [
        (dict(CHECKPOINT_PATH="without", PROMPTS="('attached',)"), "the checkpoint has none; evaluate with the prompt"),
        (dict(PROMPTS="('atached',)"), "eval.Suite.prompts is ('atached',): expected 'removed', 'attached' or both."),
        (dict(CHECKPOINT_PATH="without"), "--gin.PROMPTS=\"('removed',)\" in eval"),
        (dict(TASKS="('toy_wicc',)"), "'toy_wicc' is no task, suite or mixture; the nearest names are toy_wic"),
        (dict(TASKS="('in_contxt',)"), "the nearest names are in_context"),
        (dict(TASKS="('cb',)"), "Task 'cb' has no vocabulary: set catalog.entries.vocabulary"),
        (dict(CHECKPOINT_PATH="nowhere"), "There is no checkpoint at "),
        (dict(MIXTURE_OR_TASK_SPLIT="tset"), "'tset'"),
        ({"architecture.T5Config.mlp_dim": 48}, "does not hold this network's parameters"),
        (
            {"architecture.T5Config.vocab_size": 2048},
            "WordVocabulary (288 pieces) does not match the network, which has 2048",
        ),
        ({"eval.Suite.prompt_id": 1, "PROMPTS": "('attached',)"}, "the checkpoint has 1, numbered from 0"),
        ({"scoring.EvaluationConfig.answering": "guess"}, "expected generate or rank"),
        (dict(SHOTS="(-1,)"), "no negative number of exemplars"),
    ],
)
def test_a_mistake_is_one_sentence(changes, expected, tiny_model, tmp_path, capsys):
    if "CHECKPOINT_PATH" in changes:
        changes = {**changes, "CHECKPOINT_PATH": tiny_model.folder / changes["CHECKPOINT_PATH"]}
    assert _run(tiny_model, tmp_path / "out", **changes) == 1
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    (sentence,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert expected in sentence
    assert not (tmp_path / "out" / "scores.json").exists()


@pytest.mark.parametrize("flags", [[], ["--dry_run", "--data"]])
def test_outputs_that_cannot_be_written_are_named_before_the_checkpoint_is_read(
    flags, tiny_model, tmp_path, monkeypatch, capsys
):
    """A dry run that opens data said that all was opened."""
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the checkpoint is read first"))
    (tmp_path / "a_file").write_text("mine")
    (tmp_path / "out" / "toy_enfr.test.attached.others.jsonl").mkdir(parents=True)
    for out, expected in (("a_file", "a_file is a file, expected a folder"), ("out", "jsonl, which is a folder")):
        assert _run(tiny_model, tmp_path / out, *flags) == 1
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "EVAL_OUTPUT_DIR is" in sentence and expected in sentence


def test_a_pipelines_results_are_not_overwritten(tiny_model, tmp_path):
    files.write_json(tmp_path / "comparison.json", {"methods": {}, "seeds": []})
    before = (tmp_path / "comparison.json").read_bytes()
    assert _run(tiny_model, tmp_path, "--gin.eval.Suite.role='target'", TASKS="('toy_wic',)") == 0
    assert (tmp_path / "comparison.json").read_bytes() == before
    assert {row["role"] for row in json.loads((tmp_path / "scores.json").read_text())["rows"]} == {"target"}


def test_a_prompt_named_twice_is_scored_once(tiny_model, tmp_path):
    assert _run(tiny_model, tmp_path / "out", PROMPTS="('removed', 'removed')", TASKS="('toy_wic',)") == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    (entry,) = scores["results"].values()
    assert len(scores["rows"]) == 1 and entry["seed_std"] is None


def test_a_limited_evaluation_loses_no_answer(tiny_model, tmp_path, monkeypatch):
    assert _run(tiny_model, tmp_path / "out") == 0
    whole = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def refuse(self, function, arrays, batch_size, rows):
        assert not rows, "an answer is made again"
        return iter(())

    monkeypatch.setattr(answering._Runner, "__call__", refuse)
    assert _run(tiny_model, tmp_path / "out", "--limit=2") == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["results"]["toy_wic_removed"]["n"] == 2
    assert _run(tiny_model, tmp_path / "out") == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if "others" not in file.name} == whole


def test_sampling_is_the_same_after_an_interruption(tiny_model, tmp_path):
    sampling = ["--gin.encoder_decoder.EncoderDecoderModel.decoding=@encoder_decoder.DecodingConfig()"]
    sampling += ["--gin.encoder_decoder.DecodingConfig.method=sample"]
    assert _run(tiny_model, tmp_path / "whole", *sampling) == 0
    assert _run(tiny_model, tmp_path / "out", *sampling, "--limit=3") == 0
    assert _run(tiny_model, tmp_path / "out", *sampling) == 0
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_show_of_nothing(capsys):
    assert program.run_main(eval.main, ["--show=0"]) == 1
    assert "error: --show=0 shows nothing: give a number from 1 on" in capsys.readouterr().err


def test_more_exemplars_than_training_rows(tiny_model, own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the checkpoint is read first"))
    extra, changes = own
    assert _run(tiny_model, tmp_path / "out", *extra, SHOTS="(6,)", **changes) == 1
    assert "has 6 exemplars per prompt, but they are drawn from 6 training questions" in capsys.readouterr().err


def test_an_empty_split(tiny_model, own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the checkpoint is read first"))
    (tmp_path / "test.jsonl").write_text("\n")
    extra, changes = own
    assert _run(tiny_model, tmp_path / "out", *extra, **changes) == 1
    assert (
        f"error: File {tmp_path / 'test.jsonl'} is empty, expected one JSON object per line" in capsys.readouterr().err
    )


def test_dry_run_reads_nothing(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("a dry run reads the checkpoint"))
    assert _run(tiny_model, tmp_path / "out", "--dry_run", CHECKPOINT_PATH="nowhere") == 0
    assert "eval.Suite.split = 'test'" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


STEPS = (2, 4, 10)


@pytest.fixture(scope="module")
def run_folder(tiny_model, tmp_path_factory):
    """A run's folder that keeps three checkpoints of different weights; the second is the best."""
    folder = tmp_path_factory.mktemp("run") / "out"
    like = saving.shapes(tiny_model.folder / "with")
    checkpoints = saving.RunCheckpoints(folder, saving.CheckpointConfig(keep_latest=3))
    for step, score in zip(STEPS, (10.0, 30.0, 20.0), strict=True):
        rng = np.random.default_rng(step)
        params = {name: rng.normal(size=leaf.shape).astype(leaf.dtype) for name, leaf in like.items()}
        params["soft_prompt/embedding"] *= 5
        checkpoints.save(step, params, {}, {"base": None}, score)
    checkpoints.close()
    return folder


def _scores(folder):
    return json.loads((folder / "scores.json").read_text())


def _tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_all_checkpoints_of_a_run_score_what_each_scores_alone(tiny_model, run_folder, tmp_path, capsys):
    assert _run(tiny_model, tmp_path / "all", CHECKPOINT_PATH=run_folder, CHECKPOINT_MODE="all") == 0
    captured, scores = capsys.readouterr(), _scores(tmp_path / "all")
    assert len(scores["rows"]) == 3 * 4 and [row["step"] for row in scores["rows"]] == [2] * 4 + [4] * 4 + [10] * 4
    expected_rows, answers = [], {}
    for checkpoint, step in zip(scores["checkpoints"], STEPS, strict=True):
        name, alone = f"checkpoint_{step}", tmp_path / f"alone_{step}"
        assert _run(tiny_model, alone, CHECKPOINT_PATH=run_folder / name) == 0
        of_step = _scores(alone)
        assert checkpoint == {**of_step["checkpoints"][0], "run": str(run_folder)} and checkpoint["step"] == step
        expected_rows += [
            {**row, "run": str(run_folder), "answers": f"{name}/{row['answers']}"} for row in of_step["rows"]
        ]
        for part in ("results", "mean"):
            assert {key: scores[part][f"{key}_step{step}"] for key in of_step[part]} == of_step[part]
        answers |= {f"{name}/{file.name}": file.read_bytes() for file in alone.iterdir() if file.suffix == ".jsonl"}
    assert scores["rows"] == expected_rows and len(scores["results"]) == 12 and len(scores["mean"]) == 6
    assert {name: text for name, text in _tree(tmp_path / "all").items() if name != "scores.json"} == answers
    assert len({file for name, file in answers.items() if "toy_enfr.test.removed" in name}) == 3, "other weights"
    lines = [line.split() for line in captured.out.splitlines()]
    assert ["step", "task", "k", "prompt"] in [line[:4] for line in lines]
    assert ["10", "toy_wic", "-", "attached", "accuracy"] in [line[:5] for line in lines]
    assert "5/12 checkpoint_4 toy_wic, prompt removed" in captured.err

    # The folder alone is its best checkpoint.
    assert _run(tiny_model, tmp_path / "best", CHECKPOINT_PATH=run_folder) == 0
    assert _scores(tmp_path / "best")["results"] == _scores(tmp_path / "alone_4")["results"]


def test_all_checkpoints_share_one_program_and_one_reading_of_the_data(tiny_model, run_folder, tmp_path, monkeypatch):
    read, live, load = [], [], loading.load
    get_dataset = seqio.FunctionDataSource.get_dataset
    monkeypatch.setattr(
        seqio.FunctionDataSource,
        "get_dataset",
        lambda *args, **options: read.append(1) or get_dataset(*args, **options),
    )
    # What was read is kept by the evaluation itself, however many tasks there are.
    small_cache = functools.lru_cache(maxsize=1)(evaluation_examples._read.__wrapped__)
    monkeypatch.setattr(evaluation_examples, "_read", small_cache)

    def loaded(*args):
        gc.collect()
        assert not any(leaf() for leaf in live), "the parameters of the checkpoint before are still there"
        result = load(*args)
        live.extend(map(weakref.ref, jax.tree.leaves(result.params)))
        return result

    monkeypatch.setattr(loading, "load", loaded)
    counts = {}
    for mode in ("best", "all"):
        read.clear()
        live.clear()
        answering.predict.clear_cache()
        assert _run(tiny_model, tmp_path / mode, CHECKPOINT_PATH=run_folder, CHECKPOINT_MODE=mode) == 0
        counts[mode] = (len(read), answering.predict._cache_size(), len(live))
    number_of_leaves = counts["best"][2]
    assert counts["best"][:2] == counts["all"][:2] and counts["best"][0] and counts["best"][1] == 2, (
        "prompt removed and attached"
    )
    assert counts["all"][2] == 3 * number_of_leaves > 0


def test_an_interrupted_evaluation_of_all_checkpoints_continues(tiny_model, run_folder, tmp_path, monkeypatch):
    changes = dict(CHECKPOINT_PATH=run_folder, CHECKPOINT_MODE="all")
    assert _run(tiny_model, tmp_path / "whole", **changes) == 0
    answered = _stop_after(monkeypatch, 4 * 12 + 12 + 7)  # in the second task of the second checkpoint
    with pytest.raises(_Stop):
        _run(tiny_model, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "scores.json").exists() and not (tmp_path / "out" / "checkpoint_10").exists()
    assert _run(tiny_model, tmp_path / "out", **changes) == 0
    assert len(answered) == 3 * 4 * 12, "each example was answered once"
    assert _tree(tmp_path / "out") == _tree(tmp_path / "whole")


def test_an_error_of_scoring_in_the_background_is_a_sentence(tiny_model, tmp_path, monkeypatch, capsys):
    """The first task is scored while the second one is answered; an error ends the evaluation, and answers are kept."""
    answered = _stop_after(monkeypatch, -1)

    def fails(examples, answers):
        raise ValueError(f"The metric of {examples.task_name} fails.")

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score", fails)
        assert _run(tiny_model, tmp_path / "out", PROMPTS="('removed',)") == 1
    assert "error: The metric of toy_wic fails." in capsys.readouterr().err
    assert _run(tiny_model, tmp_path / "out", PROMPTS="('removed',)") == 0
    assert len(answered) == 2 * 12, "each example was answered once"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("with", "with is a single checkpoint; give a run's MODEL_DIR, or CHECKPOINT_MODE='best'."),
        ("prompt", "prompt is a soft prompt alone; give a run's MODEL_DIR"),
        ("empty", "empty holds no checkpoint of promot_t5x; give a run's MODEL_DIR"),
        ("nowhere", "There is no run's folder at "),
    ],
)
def test_all_checkpoints_of_what_is_no_run(path, expected, tiny_model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    soft_prompts.save(tmp_path / "prompt", np.zeros((1, 4, 16), np.float32), {})
    folder = tiny_model.folder if path == "with" else tmp_path
    assert _run(tiny_model, tmp_path / "out", CHECKPOINT_PATH=folder / path, CHECKPOINT_MODE="all") == 1
    assert expected in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_no_answers_are_written_into_checkpoints(tiny_model, run_folder, capsys):
    assert _run(tiny_model, run_folder, CHECKPOINT_PATH=run_folder, CHECKPOINT_MODE="all") == 1
    assert "the run's own folder, whose checkpoints would get files of answers" in capsys.readouterr().err


def test_an_unknown_checkpoint_mode(tiny_model, tmp_path, capsys):
    assert _run(tiny_model, tmp_path / "out", CHECKPOINT_MODE="latest") == 1
    assert "CHECKPOINT_MODE is 'latest': expected 'best' or 'all'" in capsys.readouterr().err
