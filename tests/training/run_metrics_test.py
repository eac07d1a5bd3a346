"""promot_t5x.training.run_metrics: a run's metrics.jsonl, also of a run that is resumed."""

import json

import pytest

from promot_t5x.training import run_metrics


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_for_each_write(tmp_path):
    writer = run_metrics.MetricsFile(tmp_path)
    writer.write_scalars(2, {"train/loss": 1.5, "train/accuracy": float("nan")})
    assert not (tmp_path / "metrics.jsonl").exists()
    writer.flush()
    writer.write_scalars(2, {"validation/score": 3})
    writer.flush()
    expected = [
        {"step": 2, "train/loss": 1.5, "train/accuracy": None},
        {"step": 2, "validation/score": 3.0},
    ]
    assert _lines(tmp_path) == run_metrics.read(tmp_path) == expected


@pytest.mark.parametrize("step,kept", [(0, []), (3, [2]), (4, [2, 4]), (9, [2, 4, 6])])
def test_a_resumed_run_drops_what_came_later(step, kept, tmp_path):
    first = run_metrics.MetricsFile(tmp_path)
    for number in (2, 4, 6):
        first.write_scalars(number, {"train/loss": 0.1 * number})
    first.flush()
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    second = run_metrics.MetricsFile(tmp_path, step)
    second.write_scalars(10, {"train/loss": 0.0})
    second.flush()
    assert [line["step"] for line in _lines(tmp_path)] == [*kept, 10]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1] == before[: len(kept)], "not a digit changes"


@pytest.mark.parametrize("text", ["{", "[1]", '{"loss": 1}'])
def test_a_file_of_something_else(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{text}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is .*, expected a JSON object with a step"):
        run_metrics.MetricsFile(tmp_path, 3)
