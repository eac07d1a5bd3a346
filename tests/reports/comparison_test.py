"""Summaries against hand-computed numbers; files against truncation, full disks and foreign content."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from promot_t5x.recipes import methods
from promot_t5x.reports import comparison
from promot_t5x.reports.method_rows import Compared, MethodRow
from promot_t5x.runtime import files
from promot_t5x.runtime.versions import versions
from tests.reports.runs import run

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = Compared(*methods.HEADLINE)


def _score(method, target, mean, rate=1e-3, seed=0):
    """A run whose two in-context tasks have the given mean."""
    return run(method, rate, seed, target, {"a": mean - 1, "b": mean + 1})


def _two_seeds():
    return [
        run("pretrained", None, 0, 10.0, {"qa": 90.0, "wic": 70.0}),
        run("promot", 3e-4, 0, 100.0, {"qa": 80.0, "wic": 60.0}, {"qa": 20.0, "wic": 0.0}, {"step": 250}),
        run("promot", 3e-4, 1, 90.0, {"qa": 60.0, "wic": 50.0}, {"qa": 40.0, "wic": 10.0}),
    ]


def test_summary_means_and_sample_spread():
    results = comparison.compare(_two_seeds(), {"python": "3"}, {"recipe": "demo"})
    entry = results["methods"]["promot"]["learning_rates"]["0.0003"]
    assert entry["target"] == pytest.approx(95)
    assert entry["target_std"] == pytest.approx(10 / math.sqrt(2))
    assert entry["in_context"] == pytest.approx({"qa": 70, "wic": 55})
    assert entry["in_context_std"]["qa"] == pytest.approx(np.std([80, 60], ddof=1))
    assert entry["in_context_mean"] == pytest.approx(62.5)
    assert entry["in_context_mean_std"] == pytest.approx(np.std([70, 55], ddof=1))
    assert entry["in_context_with_prompt"] == pytest.approx({"qa": 30, "wic": 5})
    assert entry["in_context_mean_with_prompt"] == pytest.approx(17.5)
    assert entry["seeds"] == results["seeds"] == [0, 1]
    assert results["versions"] == {"python": "3"} and results["config"] == {"recipe": "demo"}
    assert [one["seed"] for one in results["runs"]] == [0, 0, 1] and results["runs"][1]["details"] == {"step": 250}


def test_what_does_not_apply_is_null():
    results = comparison.compare([run("pretrained", None, 0, None, {})], {}, {})
    entry = results["methods"]["pretrained"]["learning_rates"]["none"]
    for name in ("target", "target_std", "in_context_mean", "in_context_with_prompt", "in_context_mean_with_prompt"):
        assert entry[name] is None


def test_one_seed_has_no_spread():
    entry = comparison.compare([_score("promot", 100.0, 50.0)], {}, {})["methods"]["promot"]["learning_rates"]["0.001"]
    assert entry["target_std"] is None and set(entry["in_context_std"].values()) == {None}


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ([], "expected at least one run, got none"),
        ([_score("promot", 100.0, 50.0)] * 2, "promot, learning rate 0.001, seed 0 was given twice"),
        ([run("promot", 1e-3, 0, 197.0, {})], r"target is 197.0, expected a percentage in \[0, 100\]"),
        ([run("promot", 1e-3, 0, 90.0, {"qa": math.nan})], 'in_context "qa" is nan'),
        ([run("promot", -1.0, 0, 90.0, {})], "neither a positive number"),
        (
            [_score("promot", 100.0, 50.0), run("promot", 1e-3, 1, 100.0, {"a": 50.0})],
            "was not scored on the same tasks as seed 0",
        ),
    ],
)
def test_wrong_runs_are_refused(runs, sentence):
    with pytest.raises(ValueError, match=sentence):
        comparison.compare(runs, {}, {})


def test_round_trip_keeps_everything_and_equal_results_give_equal_bytes(tmp_path):
    results = comparison.compare(_two_seeds(), versions(), {"name": "Größe"})
    files.write_json(tmp_path / "new" / "a.json", results)
    files.write_json(tmp_path / "b.json", results)
    assert comparison.read(tmp_path / "new" / "a.json") == results
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "new" / "a.json").read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give the comparison.json"):
        comparison.read(tmp_path / "comparison.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"methods": {', "is not JSON"),
        ("[]", 'holds a list, expected a table "methods"'),
        ('{"results": {}, "mean": 1}', r"holds the keys \['mean', 'results'\]"),
        ('{"methods": {}, "versions": {}}', 'expected a list "seeds"'),
        ('{"methods": {}, "seeds": [], "versions": {}}', 'has the unit None, expected "percent"'),
        (
            '{"unit": "percent", "methods": {"promot": {}}, "seeds": [], "versions": {}}',
            'method "promot" has no "learning_rates"',
        ),
    ],
)
def test_foreign_files_are_refused_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "comparison.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        comparison.read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["target", "in_context", "in_context_mean", "in_context_mean_with_prompt"])
def test_a_missing_key_is_named(tmp_path, name):
    results = comparison.compare(_two_seeds(), {}, {})
    del results["methods"]["promot"]["learning_rates"]["0.0003"][name]
    files.write_json(tmp_path / "r.json", results)
    with pytest.raises(ValueError, match=re.escape(f'"{name}"')):
        comparison.read(tmp_path / "r.json")


def test_handed_rows_are_kept_and_give_the_order():
    rows = {name: MethodRow(name.upper(), "#123456", "*", f"About {name}.") for name in ("first", "absent", "second")}
    runs = [_score(name, 100.0, 50.0) for name in ("own", "second", "first")]
    results = comparison.compare(runs, {}, {}, rows, HEADLINE)
    assert list(results["methods"]) == ["first", "second", "own"]
    described = {name: results["methods"]["first"][name] for name in ("label", "colour", "marker", "description")}
    assert described == {"label": "FIRST", "colour": "#123456", "marker": "*", "description": "About first."}
    assert list(results["methods"]["own"]) == ["learning_rates"]
    assert results["rows"] == [row for one in runs for row in one.rows] and results["unit"] == "percent"
    compared = {"method": "promot", "baseline": "fine_tuning", "reference": "pretrained", "labels": {}}
    assert results["compared"] == compared
