"""promot_t5x.recipes.run_scores: which questions a run is asked, with which lengths; scores that are reused."""

import json

import pytest
from etils import epath

from promot_t5x.evaluation import scoring
from promot_t5x.recipes import run_scores
from promot_t5x.recipes.recipe import Recipe, planned_runs
from promot_t5x.runtime import strict_json

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


def test_scores_that_were_changed_are_not_reused(tmp_path, caplog):
    file = epath.Path(tmp_path / "scores.json")
    scores = strict_json.sealed({"unit": "percent", "results": {}, "mean": {}, "rows": [{"value": 50.0}]})
    file.write_text(json.dumps(scores))
    assert run_scores._kept(file) == scores
    file.write_text(json.dumps({**scores, "rows": [{"value": 60.0}]}))
    assert run_scores._kept(file) == {} and f"{file} does not have its checksum" in caplog.text
