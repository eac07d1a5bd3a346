"""promot_t5x.recipes.run_scores: which questions a run is asked, with which lengths; which scores are reused."""

import json

import pytest
from etils import epath

from promot_t5x.evaluation import scoring
from promot_t5x.recipes import run_scores
from promot_t5x.recipes.recipe import Recipe, planned_runs
from promot_t5x.reports import comparison
from promot_t5x.runtime import strict_json
from tests.reports.runs import damaged

SHORT, LONG = {"inputs": 10, "targets": 256}, {"inputs": 2560, "targets": 128}


@pytest.mark.parametrize("of_target,expected", [(SHORT, SHORT), (None, LONG)])
def test_the_target_keeps_its_own_lengths(of_target, expected):
    """En-Fr was decoded to the 128 tokens of the in-context tasks instead of its 256."""
    recipe = Recipe(("prompt_tuning",), "toy_enfr", ("toy_wic",), (1e-3,), target_lengths=of_target)
    (planned,) = planned_runs(recipe)
    config = scoring.EvaluationConfig(LONG, batch_size=2, limit=3)
    asked = [
        (suite.entries[0].name, prompt, suite.config.task_feature_lengths, suite.config.limit)
        for suite, prompt in run_scores._questions(recipe, planned, config)
    ]
    assert asked == [("toy_enfr", 0, expected, 3), ("toy_wic", None, LONG, 3), ("toy_wic", 0, LONG, 3)]


def test_lengths_that_no_run_can_have_are_refused_before_one_starts():
    with pytest.raises(ValueError, match="Recipe.target_lengths is {'inputs': 0"):
        Recipe(("prompt_tuning",), "toy_enfr", (), (1e-3,), target_lengths={"inputs": 0, "targets": 4})


def _scores():
    """The contents of a scores.json with one row."""
    texts, numbers = ("role", "seqio_task", "split", "answers"), ("step", "k", "prompt", "value", "n", "truncated")
    row = {**dict.fromkeys(texts, "other"), **dict.fromkeys(numbers, 3), "cuts": {"input_cut": 1}}
    whole = {"unit": "percent", "results": {}, "mean": {}, "rows": [row], "details": {}}
    return {**whole, "checkpoints": [{"base_fingerprint": "0"}]}


def test_damaged_scores_are_measured_again_not_compared(tmp_path):
    """A row without a role was a KeyError of the comparison."""
    (planned,) = planned_runs(Recipe(("pretrained",), "toy_enfr", (), (1e-3,)))
    file = epath.Path(tmp_path) / "scores.json"
    kept = []
    for place, changed in [((), _scores()), *damaged(_scores())]:
        file.write_text(json.dumps(strict_json.sealed(changed) if isinstance(changed, dict) else changed))
        if contents := run_scores._kept(file):
            kept.append(place)
            comparison._as_json(run_scores.comparison_run(planned, contents))
    assert () in kept and ("rows", 0, "role", "missing") not in kept and len(kept) < 60


def test_scores_that_were_changed_are_not_reused(tmp_path, caplog):
    file = epath.Path(tmp_path / "scores.json")
    scores = strict_json.sealed(_scores())
    file.write_text(json.dumps(scores))
    assert run_scores._kept(file) == scores
    scores["rows"][0]["value"] = 60.0
    file.write_text(json.dumps(scores))
    assert run_scores._kept(file) == {} and f"{file} does not have its checksum" in caplog.text
