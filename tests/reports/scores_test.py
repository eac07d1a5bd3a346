"""The table of an evaluation's scores: a line per entry, with the step where there are several."""

import json

import pytest

from promot_t5x.reports import result_files, scores
from tests.reports.runs import damaged


def _entry(task, value, step, **changes):
    entry = {"step": step, "task": task, "k": 1, "prompt": None, "metric": "accuracy", "value": value}
    return {**entry, "stderr": 0.5, "seed_std": None, "n": 200, "truncated": 3, **changes}


def _results(*steps):
    entries = [_entry(task, 10.0 + step, step) for step in steps for task in ("cb", "a|b")]
    mean = {f"{step}": {"step": step, "k": 1, "prompt": 0, "value": 10.0 + step, "tasks": ["a|b"]} for step in steps}
    rows = [{"step": entry["step"]} for entry in entries]
    return {"unit": "percent", "results": dict(enumerate(entries)), "mean": mean, "rows": rows}


def test_one_checkpoint_has_no_column_of_steps():
    assert [line.split() for line in scores.text_table(_results(7)).splitlines()] == [
        "task k prompt metric percent stderr seed std examples truncated".split(),
        "cb 1 removed accuracy 17.00 0.50 - 200 3".split(),
        "a|b 1 removed accuracy 17.00 0.50 - 200 3".split(),
        "mean of 1 1 attached 17.00".split(),
    ]


def test_several_checkpoints_are_distinguished():
    lines = [line.split() for line in scores.text_table(_results(2, 10)).splitlines()]
    assert lines[0][:3] == ["step", "task", "k"]
    assert [line[0] for line in lines[1:]] == ["2", "2", "10", "10", "2", "10"]
    assert [line[5] for line in lines[1:5]] == ["12.00", "12.00", "20.00", "20.00"]


def test_markdown_aligns_numbers_and_escapes(tmp_path):
    path = scores.write_markdown(_results(2, 10), tmp_path / "new")
    assert path == str(tmp_path / "new" / "scores.md")
    head, ruler, *lines = (tmp_path / "new" / "scores.md").read_text().splitlines()
    assert head.startswith("| step | task | k | prompt | metric | percent |")
    assert ruler == "|" + " --- |" * 5 + " ---: |" * 5
    assert lines[1].startswith("| 2 | a\\|b | 1 | removed | accuracy | 12.00 |") and len(lines) == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "is not JSON"),
        ('{"methods": {}, "seeds": []}', 'expected a table "results"; give the scores.json that `eval`'),
        ('{"results": {}, "mean": {}, "rows": []}', 'has the unit None, expected "percent"'),
    ],
)
def test_another_file_is_refused(text, sentence, tmp_path):
    file = tmp_path / "scores.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        scores.read(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_file_is_read_back(tmp_path):
    with pytest.raises(FileNotFoundError, match="scores.json does not exist; give the scores.json"):
        scores.read(tmp_path / "scores.json")
    (tmp_path / "scores.json").write_text(json.dumps(_results(2)))
    assert scores.text_table(scores.read(tmp_path / "scores.json")) == scores.text_table(_results(2))


def test_incomplete_scores_are_one_sentence_or_shown():
    """Entries, means and rows were looked up without a check."""
    results = json.loads(json.dumps(_results(2)))
    refused = 0
    for place, changed in damaged(results):
        try:
            result_files.check(changed, scores.KIND, "scores.json")
            scores.text_table(changed), scores.markdown_table(changed)
        except ValueError as error:
            assert str(error).startswith("scores.json ") and "\n" not in str(error), place
            refused += 1
    assert refused > 100
    with pytest.raises(ValueError, match=r'damaged: results.x has no "k"; make it again with `eval` or the pipeline'):
        result_files.check({**results, "results": {"x": {}}}, scores.KIND, "scores.json")
