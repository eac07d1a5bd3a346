"""promot_t5x.evaluation.results: means, errors and spreads by hand, and keys that stay the same."""

import math
import statistics

import pytest
import seqio
import tensorflow as tf

from promot_t5x.data.evaluation_examples import EvaluationExamples
from promot_t5x.evaluation import results
from promot_t5x.evaluation.scoring import Evaluation
from promot_t5x.reports import scores
from promot_t5x.tasks import catalog


@pytest.fixture(autouse=True)
def _tasks():
    def add(name, identity=None):
        source = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.range(3), splits=("test",))
        if identity:
            source.identity = lambda split: identity
        seqio.TaskRegistry.add(name, source, {"targets": seqio.Feature(seqio.ByteVocabulary())}, preprocessors=[])

    add("qa", {"tfds": "web_questions:1.0.0", "split": "test", "folder": "/data"})
    add("cb", {"jsonl": "test.jsonl", "content": "0123456789abcdef00"})
    add("own")


LENGTHS = {"inputs": 8, "targets": 4}


def _row(
    task,
    value,
    k=1,
    seed=0,
    prompt=None,
    stderr=1.0,
    truncated=2,
    metric="accuracy",
    prompts=("p", "q"),
    role="other",
    step=7,
):
    rows = tuple({"inputs_pretokenized": prompt.encode()} for prompt in prompts)
    examples = EvaluationExamples(
        task, "test", rows, ["t"] * len(rows), {}, truncated, {"input_cut": truncated}, LENGTHS
    )
    outcome = Evaluation(metric, value, None, {metric: value, "f1": value / 2, "length": math.nan}, {"note": "n"}, [])
    entry, checkpoint = catalog.Entry(task, k, seed, task), {"run": "seed0/mine", "step": step}
    return results.row(checkpoint, entry, role, prompt, "generate", examples, outcome, stderr, f"{task}.jsonl")


def _summary(*rows):
    return results.contents(rows, config={"limit": 3}, checkpoints=[{"path": "c"}], versions={"python": "3"})


def test_rows_that_differ_in_their_seed_make_one_entry():
    values = [(0, 10.0, 1.0), (1, 30.0, 2.0), (2, 20.0, 6.0)]
    summary = _summary(*(_row("qa", value, seed=seed, stderr=stderr) for seed, value, stderr in values))
    assert set(summary) == {"unit", "results", "mean", "rows", "config", "checkpoints", "versions"}
    (entry,) = summary["results"].values()
    assert list(summary["results"]) == ["qa_1shot_removed"]
    expected = {"task": "qa", "k": 1, "prompt": None, "metric": "accuracy", "value": 20.0}
    expected |= {"stderr": 3.0, "seed_std": 10.0, "n": 2, "role": "other", "truncated": 6, "answering": "generate"}
    assert {name: entry[name] for name in expected} == expected
    assert entry["metrics"] == {"accuracy": 20.0, "f1": 10.0, "length": None} and entry["notes"] == {"note": "n"}
    assert [(row["exemplar_seed"], row["value"], row["stderr"], row["truncated"]) for row in summary["rows"]] == [
        (seed, value, stderr, 2) for seed, value, stderr in values
    ]
    row = summary["rows"][0]
    expected = {
        "run": "seed0/mine",
        "step": 7,
        "task": "qa",
        "role": "other",
        "k": 1,
        "exemplar_seed": 0,
        "prompt": None,
    }
    expected |= {
        "n": 2,
        "lengths": LENGTHS,
        "cuts": {"input_cut": 2},
        "answers": "qa.jsonl",
        "metric": "accuracy",
        "split": "test",
    }
    assert {name: row[name] for name in expected} == expected and summary["unit"] == "percent"


def test_the_mean_is_plain_and_its_spread_is_that_of_the_seeds_means():
    values = {"qa": (10.0, 40.0), "cb": (50.0, 60.0), "own": (0.0, 20.0)}
    rows = [_row(task, value, seed=seed) for task, by_seed in values.items() for seed, value in enumerate(by_seed)]
    more = [_row("qa", 90.0, k=4), _row("qa", 80.0, prompt=0), _row("own", 70.0, k=None, seed=None)]
    means = _summary(*rows, *more)["mean"]
    assert {key: mean["value"] for key, mean in means.items()} == {
        "1shot_removed": 30.0,
        "4shot_removed": 90.0,
        "1shot_attached": 80.0,
        "removed": 70.0,
    }
    mean = means["1shot_removed"]
    assert mean["seed_std"] == pytest.approx(statistics.stdev([20.0, 40.0])) and mean["tasks"] == ["qa", "cb", "own"]
    assert (mean["k"], mean["prompt"], means["1shot_attached"]["prompt"]) == (1, None, 0)
    assert means["4shot_removed"]["seed_std"] is None
    other_seeds = _summary(_row("qa", 10.0, seed=0), _row("cb", 20.0, seed=1), _row("cb", 40.0, seed=2))["mean"]
    assert (other_seeds["1shot_removed"]["value"], other_seeds["1shot_removed"]["seed_std"]) == (20.0, None)


def test_steps_are_not_averaged():
    values = {7: (10.0, 30.0), 9: (50.0, 80.0)}
    rows = [_row("qa", value, seed=seed, step=step) for step, pair in values.items() for seed, value in enumerate(pair)]
    summary = _summary(*rows)
    assert [row["step"] for row in summary["rows"]] == [7, 7, 9, 9]
    for part, keys in (("results", "qa_1shot_removed_step{}"), ("mean", "1shot_removed_step{}")):
        averages = {key: (average["step"], average["value"]) for key, average in summary[part].items()}
        assert averages == {keys.format(7): (7, 20.0), keys.format(9): (9, 65.0)}


def test_what_is_unknown_is_null():
    entry = _summary(_row("qa", 10.0, stderr=None), _row("qa", 20.0, seed=1))["results"]["qa_1shot_removed"]
    assert entry["stderr"] is None, "the error of one of two rows"
    assert _summary(_row("qa", 10.0))["results"]["qa_1shot_removed"]["seed_std"] is None


def test_the_version_of_a_task_is_that_of_its_data():
    entries = _summary(_row("qa", 1.0), _row("cb", 1.0), _row("own", 1.0))["results"]
    assert [entry["task_version"] for entry in entries.values()] == [
        "tfds web_questions:1.0.0/test",
        "jsonl test.jsonl, sha256 0123456789abcdef",
        "seqio own/test",
    ]


def test_equal_prompts_have_equal_hashes():
    def hashed(**changes):
        return _summary(_row("qa", 1.0, **changes))["rows"][0]["prompts_sha256"]

    assert hashed() == hashed(seed=5) and len({hashed(), hashed(prompts=("q", "p")), hashed(prompts=("p",))}) == 3


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan])
def test_a_score_that_is_no_percentage_is_refused(value):
    with pytest.raises(ValueError, match="Metric accuracy of task qa is .*, expected 0 to 100"):
        _row("qa", value)


def test_the_table_shows_every_entry_and_mean():
    summary = _summary(_row("qa", 12.345), _row("cb", 50.0, stderr=None), _row("own", 70.0, k=None, seed=None))
    lines = scores.text_table(summary).splitlines()
    assert lines[0].split() == "task k prompt metric percent stderr seed std examples truncated".split()
    assert lines[1].split() == "qa 1 removed accuracy 12.35 1.00 - 2 2".split()
    assert lines[2].split() == "cb 1 removed accuracy 50.00 - - 2 2".split()
    assert [" ".join(line.split()) for line in lines[4:]] == ["mean of 2 1 removed 31.17", "mean of 1 - removed 70.00"]


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="The role of task qa is 'aim': expected target, sister, other."):
        _row("qa", 1.0, role="aim")
