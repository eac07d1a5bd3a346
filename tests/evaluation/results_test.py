"""promot_t5x.evaluation.results: means, errors and spreads by hand, and keys that stay the same."""

import math
import statistics

import pytest
import seqio
import tensorflow as tf

from promot_t5x.data.evaluation_examples import EvaluationExamples
from promot_t5x.evaluation import results
from promot_t5x.evaluation.results import ATTACHED, REMOVED
from promot_t5x.evaluation.scoring import Evaluation
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


def _run(task, value, k=1, seed=0, prompt=REMOVED, stderr=1.0, truncated=2, metric="accuracy", prompts=("p", "q")):
    rows = tuple({"inputs_pretokenized": prompt.encode()} for prompt in prompts)
    asked = EvaluationExamples(task, "test", rows, ["t"] * len(rows), {}, truncated, {"input_cut": truncated})
    outcome = Evaluation(metric, value, None, {metric: value, "f1": value / 2, "length": math.nan}, {"note": "n"}, [])
    return results.run(catalog.Entry(task, k, seed, task), prompt, "generate", asked, outcome, stderr)


def _summary(*runs):
    return results.summarize(runs, config={"limit": 3}, checkpoint={"path": "c"}, versions={"python": "3"})


def test_runs_that_differ_in_their_seed_make_one_entry():
    values = [(0, 10.0, 1.0), (1, 30.0, 2.0), (2, 20.0, 6.0)]
    found = _summary(*(_run("qa", value, seed=seed, stderr=stderr) for seed, value, stderr in values))
    assert set(found) == {"results", "mean", "config", "checkpoint", "versions"}
    (entry,) = found["results"].values()
    assert list(found["results"]) == ["qa_1shot_removed"]
    expected = {"task": "qa", "k": 1, "prompt": "removed", "metric": "accuracy", "unit": "percent", "value": 20.0}
    expected |= {"stderr": 3.0, "seed_std": 10.0, "examples": 2, "truncated": 6, "answering": "generate"}
    assert {name: entry[name] for name in expected} == expected
    assert entry["metrics"] == {"accuracy": 20.0, "f1": 10.0, "length": None} and entry["notes"] == {"note": "n"}
    assert [(run["seed"], run["value"], run["stderr"], run["truncated"]) for run in entry["runs"]] == [
        (seed, value, stderr, 2) for seed, value, stderr in values
    ]
    assert entry["runs"][0]["cuts"] == {"input_cut": 2}


def test_the_mean_is_plain_and_its_spread_is_that_of_the_seeds_means():
    values = {"qa": (10.0, 40.0), "cb": (50.0, 60.0), "own": (0.0, 20.0)}
    runs = [_run(task, value, seed=seed) for task, found in values.items() for seed, value in enumerate(found)]
    more = [_run("qa", 90.0, k=4), _run("qa", 80.0, prompt=ATTACHED), _run("own", 70.0, k=None, seed=None)]
    means = _summary(*runs, *more)["mean"]
    assert {key: mean["value"] for key, mean in means.items()} == {
        "1shot_removed": 30.0,
        "4shot_removed": 90.0,
        "1shot_attached": 80.0,
        "removed": 70.0,
    }
    mean = means["1shot_removed"]
    assert mean["seed_std"] == pytest.approx(statistics.stdev([20.0, 40.0])) and mean["tasks"] == ["qa", "cb", "own"]
    assert (mean["k"], mean["prompt"], mean["unit"]) == (1, "removed", "percent")
    assert means["4shot_removed"]["seed_std"] is None
    other_seeds = _summary(_run("qa", 10.0, seed=0), _run("cb", 20.0, seed=1), _run("cb", 40.0, seed=2))["mean"]
    assert (other_seeds["1shot_removed"]["value"], other_seeds["1shot_removed"]["seed_std"]) == (20.0, None)


def test_what_is_unknown_is_null():
    entry = _summary(_run("qa", 10.0, stderr=None), _run("qa", 20.0, seed=1))["results"]["qa_1shot_removed"]
    assert entry["stderr"] is None, "the error of one of two runs"
    assert _summary(_run("qa", 10.0))["results"]["qa_1shot_removed"]["seed_std"] is None


def test_the_version_of_a_task_is_that_of_its_data():
    found = _summary(_run("qa", 1.0), _run("cb", 1.0), _run("own", 1.0))["results"]
    assert [entry["task_version"] for entry in found.values()] == [
        "tfds web_questions:1.0.0/test",
        "jsonl test.jsonl, sha256 0123456789abcdef",
        "seqio own/test",
    ]


def test_equal_prompts_have_equal_hashes():
    def hashed(**changes):
        return _summary(_run("qa", 1.0, **changes))["results"]["qa_1shot_removed"]["runs"][0]["prompts_sha256"]

    assert hashed() == hashed(seed=5) and len({hashed(), hashed(prompts=("q", "p")), hashed(prompts=("p",))}) == 3


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan])
def test_a_score_that_is_no_percentage_is_refused(value):
    with pytest.raises(ValueError, match="Metric accuracy of task qa is .*, expected 0 to 100"):
        _run("qa", value)


def test_the_table_shows_every_entry_and_mean():
    found = _summary(_run("qa", 12.345), _run("cb", 50.0, stderr=None), _run("own", 70.0, k=None, seed=None))
    lines = results.table(found).splitlines()
    assert lines[0].split() == "task k prompt metric percent stderr seed std examples truncated".split()
    assert lines[1].split() == "qa 1 removed accuracy 12.35 1.00 - 2 2".split()
    assert lines[2].split() == "cb 1 removed accuracy 50.00 - - 2 2".split()
    assert [" ".join(line.split()) for line in lines[4:]] == ["mean of 2 1 removed 31.17", "mean of 1 - removed 70.00"]
