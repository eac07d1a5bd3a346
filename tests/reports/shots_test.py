"""promot_t5x.reports.shots: scores with 1 and 4 exemplars in one comparison are averaged and shown apart."""

import json
import statistics

import pytest

from promot_t5x.recipes import methods, running
from promot_t5x.reports import comparison, figure, page, shots, tables, verdict
from promot_t5x.reports.method_rows import Compared
from tests.reports.runs import damaged, run

SCORES = {  # method -> seed -> (k, task) -> score; the seeds' means with 4 exemplars are in the other order
    "fine_tuning": [{(1, "cb"): 40.0, (1, "wic"): 50.0, (4, "cb"): 71.0, (4, "wic"): 75.0}] * 2,
    "promot": [
        {(1, "cb"): 60.0, (1, "wic"): 62.0, (4, "cb"): 64.0, (4, "wic"): 68.0},
        {(1, "cb"): 50.0, (1, "wic"): 54.0, (4, "cb"): 70.0, (4, "wic"): 74.0},
    ],
}
CUTS = {"exemplars_dropped": 12, "input_cut": 0, "target_unwritable": 1}


def _run(method, seed):
    scores = {f"{task}_{k}shot": score for (k, task), score in SCORES[method][seed].items()}
    with_prompt = {task: score / 2 for task, score in scores.items()} if method == "promot" else None
    plain = run(method, 1e-3, seed, 90.0, scores, with_prompt)
    for row in plain.rows:
        assert isinstance(row, dict)
        row["k"] = None if row["role"] == "target" else int(row["seqio_task"][-5])
        is_cut = row["seqio_task"] == "cb_4shot"
        row |= {"split": "test", "n": 16, "truncated": 7 * is_cut, "cuts": CUTS if is_cut else {"input_cut": 0}}
    return plain


@pytest.fixture(scope="module")
def results():
    runs = [_run(method, seed) for method in SCORES for seed in (0, 1)]
    return comparison.compare(runs, {}, {}, headline=Compared(*methods.HEADLINE))


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    """The page, and comparison.md, of the results as they are read from a file."""
    folder = tmp_path_factory.mktemp("written")
    page.write_all(json.loads(json.dumps(results)), folder)
    return [(folder / name).read_text() for name in ("report.html", "comparison.md")]


def test_there_is_one_mean_per_k_and_none_across(results):
    entry = results["methods"]["promot"]["learning_rates"]["0.001"]
    assert entry["in_context_mean"] is entry["in_context_mean_with_prompt"] is entry["in_context_mean_std"] is None
    expected = {"1shot": (61.0, 52.0), "4shot": (66.0, 72.0)}
    assert list(entry["in_context_means"]) == list(expected)
    for k, means in expected.items():
        of_k = entry["in_context_means"][k]
        assert of_k["in_context_mean"] == statistics.mean(means)
        assert of_k["in_context_mean_std"] == pytest.approx(statistics.stdev(means))
        assert of_k["in_context_mean_with_prompt"] == statistics.mean(means) / 2
    assert results["methods"]["fine_tuning"]["learning_rates"]["0.001"]["in_context_means"]["4shot"] == {
        "in_context_mean": 73.0,
        "in_context_mean_std": 0.0,
        "in_context_mean_with_prompt": None,
        "in_context_mean_with_prompt_std": None,
    }
    assert results["runs"][2]["in_context_means"]["1shot"]["in_context_mean"] == 61.0
    assert results["shots"] == {"1shot": ["cb_1shot", "wic_1shot"], "4shot": ["cb_4shot", "wic_4shot"]}


def test_each_k_is_judged_and_shown_alone(results, written):
    one, four = (view for _, view in shots.views(results))
    assert tables.columns(four) == ["target", "cb_4shot", "wic_4shot", "mean", "mean with prompt"]
    differences = [verdict.verdict(view)[0].in_context_difference for view in (one, four)]
    assert differences == [56.5 - 45.0, 69.0 - 73.0]
    sentence = page.headline(results)
    assert "1shot: At learning rate 1e-3" in sentence and "4shot: At learning rate 1e-3" in sentence
    across = statistics.mean([56.5, 69.0])
    for text in (*written, tables.text_table(results)):
        assert "56.5" in text and "69.0" in text and f"{across:.1f}" not in text
    assert written[0].count("<table class=scores>") == written[0].count("<details>") == 2
    heights = [int.from_bytes(figure.plot_png(shown)[20:24], "big") for shown in (results, one)]
    assert heights == [1520, 760], "two panels for each k"


def test_what_was_cut_is_in_results_and_reports(results, written):
    """With four exemplars, prompts of XSum lost some, and nothing said so."""
    assert results["cuts"] == [{"seqio_task": "cb_4shot", "split": "test", "n": 16, "truncated": 7, "cuts": CUTS}]
    line = (
        "cb_4shot/test, 16 examples: prompts shortened: 7; exemplars dropped: 12; targets that the vocabulary cannot "
        "write: 1"
    )
    for text in (*written, tables.text_table(results)):
        assert line in text


def test_a_finished_run_is_announced_with_a_mean_per_k(capsys):
    running._show(_run("promot", 0))
    assert capsys.readouterr().out == "seed 0 promot at learning rate 0.001: target 90.0, 1shot 61.0, 4shot 66.0\n"


def test_incomplete_results_are_one_sentence_or_shown(results):
    """The means of each k, spreads, cuts and other nested values were looked up without a check."""
    shown = json.loads(json.dumps({**results, "rows": []}))
    refused = 0
    for place, changed in damaged(shown):
        try:
            comparison.validate(changed, "comparison.json")
            tables.text_table(changed), page._page(changed, b"")
        except ValueError as error:
            assert str(error).startswith(("comparison.json", "The method", "A method")) and "\n" not in str(error), (
                place
            )
            refused += 1
    assert refused > 300
    del shown["methods"]["promot"]["learning_rates"]["0.001"]["in_context_means"]
    with pytest.raises(ValueError, match=r'methods.promot.learning_rates.0.001 has no "in_context_means"; make it'):
        comparison.validate(shown, "comparison.json")
