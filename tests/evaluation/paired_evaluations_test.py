"""Two evaluations on disk are compared example by example, whatever their order; numbers by hand."""

import json

import pytest
import sacrebleu

from promot_t5x import cli
from promot_t5x.evaluation import paired_evaluations
from promot_t5x.runtime import strict_json


def answer(i, is_right, key="k", **fields):
    said = "yes" if is_right else "no"
    row = {"prompt": f"question {i}? answer:", "prediction": said, "target": "yes", "score": 100.0 * is_right}
    return {**row, "output": said, "key": f"{key}{i}", **fields}


BASE = [answer(i, i % 4 != 0) for i in range(40)]  # 30 of 40 are right


def row(name="cb", **fields):
    return {
        "run": "run",
        "step": 7,
        "task": name,
        "role": "other",
        "k": 1,
        "exemplar_seed": 0,
        "prompt": None,
        "metric": "accuracy",
        "value": 75.0,
        "seqio_task": f"{name}_1shot_seed0",
        "split": "test",
        "answers": f"{name}.jsonl",
        "notes": {},
        **fields,
    }


@pytest.fixture
def evaluation(tmp_path):
    def write(folder, answers=BASE, rows=None):
        rows = [row()] if rows is None else rows
        (tmp_path / folder).mkdir()
        for of_row in rows:
            lines = [json.dumps(strict_json.sealed(line)) for line in answers]
            (tmp_path / folder / of_row["answers"]).write_text("\n".join(lines) + "\n")
        contents = {"unit": "percent", "results": {}, "mean": {}, "rows": rows}
        (tmp_path / folder / "scores.json").write_text(json.dumps(contents))
        return tmp_path / folder

    return write


def compared(first, second):
    (entry,) = paired_evaluations.compare(first, second)["entries"]
    return entry


@pytest.mark.parametrize("other", [BASE, BASE[::-1], [{**line, "key": "x"} for line in BASE]])
def test_equal_evaluations_differ_by_exactly_zero(evaluation, other):
    entry = compared(evaluation("a"), evaluation("b", other))
    assert (entry["difference"], entry["interval"], entry["p"]) == (0.0, [0.0, 0.0], 1.0)
    assert (entry["n"], entry["lost"], entry["gained"]) == (40, 0, 0)


@pytest.mark.parametrize(
    "changed, lost, gained, difference, stderr, p",
    [((1, 2, 3, 5, 6, 7), 6, 0, -15.0, 5.718, 0.03125), (range(8), 6, 2, -10.0, 6.980, 0.28906)],
)
def test_lost_and_gained(evaluation, changed, lost, gained, difference, stderr, p):
    other = [answer(i, (i % 4 != 0) != (i in changed), key="other") for i in range(40)]
    entry = compared(evaluation("a"), evaluation("b", other[::-1]))
    assert (entry["lost"], entry["gained"]) == (lost, gained)
    assert [entry[name] for name in ("difference", "stderr", "p")] == pytest.approx([difference, stderr, p], abs=5e-4)


def test_the_same_prompt_twice_is_two_examples(evaluation):
    twice = [{**answer(i, i % 2), "prompt": "twice?" if i < 2 else f"{i}?"} for i in range(40)]
    entry = compared(evaluation("a", twice), evaluation("b", [twice[1], twice[0], *twice[2:]]))
    assert (entry["n"], entry["difference"], entry["lost"]) == (40, 0.0, 0)


def test_a_part_of_the_examples_is_compared_and_named(evaluation):
    results = paired_evaluations.compare(evaluation("a"), evaluation("b", BASE[:25]))
    assert results["entries"][0]["n"] == 25
    assert "cb: the 25 examples that both have, of 40 and 25." in paired_evaluations.text_table(results)


def test_other_questions_are_refused(evaluation):
    other = [{**answer(i, True), "prompt": f"another question {i}?"} for i in range(40)]
    with pytest.raises(ValueError, match="of which 0 have the same prompt"):
        compared(evaluation("a"), evaluation("b", other))
    with pytest.raises(ValueError, match="of which 30 have the same prompt"):
        compared(evaluation("c", BASE[:35]), evaluation("d", BASE[5:]))


def test_one_example_has_no_error_bar(evaluation):
    entry = compared(evaluation("a", BASE[:1]), evaluation("b", [answer(0, True)]))
    assert (entry["difference"], entry["interval"], entry["p_holm"]) == (100.0, None, None)


def test_draws_of_exemplars_are_averaged(evaluation):
    rows = [row(exemplar_seed=seed, answers=f"{seed}.jsonl") for seed in range(2)]
    first, second = evaluation("a", rows=rows), evaluation("b", rows=rows)
    lines = [strict_json.sealed(answer(i, i % 4 != 0 and i > 8)) for i in range(40)]  # six are lost with seed 1
    (second / "1.jsonl").write_text("\n".join(map(json.dumps, lines)))
    entry = compared(first, second)
    assert (entry["draws"], entry["difference"], entry["lost"]) == (2, -7.5, 6)
    assert entry["seed_std"] == pytest.approx(15 / 2**0.5)
    assert entry["stderr"] == pytest.approx(5.718 / 2, abs=1e-3)


def test_the_mean_of_tasks_leaves_the_target_out(evaluation):
    rows = [row("cb"), row("wic"), row("rte", role="target", prompt=0)]
    first, second = evaluation("a", rows=rows), evaluation("b", rows=[*rows[:2], {**rows[2], "prompt": None}])
    lines = [strict_json.sealed(answer(i, i % 4 != 0 and i > 8)) for i in range(40)]
    (second / "wic.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results = paired_evaluations.compare(first, second)
    (mean,) = results["means"]
    assert (mean["tasks"], mean["difference"]) == (["cb", "wic"], -7.5)
    assert mean["stderr"] == pytest.approx(5.718 / 2, abs=1e-3)
    assert [entry["p_holm"] for entry in results["entries"]] == pytest.approx([1.0, 3 * 0.03125, 1.0])


def test_guesses_among_choices_are_taken_off(evaluation):
    ranked = {"choice_scores": [-1.0, -2.0]}
    first = [answer(i, i % 4 != 0, **ranked) for i in range(40)]
    second = [answer(i, i % 4 != 0 and i > 8, **ranked) for i in range(40)]  # 75 % and 60 %
    entry = compared(evaluation("a", first), evaluation("b", second))
    assert (entry["lost_adjusted"], entry["gained_adjusted"]) == pytest.approx((6 - 40 * 0.25 * 0.4, 0))


def test_bleu_is_compared_as_a_corpus(evaluation):
    texts = ["the cat sat on the mat", "a dog ran over the hill", "it rains again today here"]
    lines = [{**answer(i, True), "prediction": text, "target": text} for i, text in enumerate(texts)]
    bleu = [row(metric="bleu", notes={"bleu_signature": "nrefs:1|case:mixed|tok:intl|version:2"})]
    entry = compared(evaluation("a", lines, bleu), evaluation("b", lines[::-1], bleu))
    assert (entry["difference"], entry["stderr"]) == (0.0, 0.0)


def test_both_bleus_are_of_the_corpus(evaluation):
    targets = ["the cat sat on the mat", "a dog ran over the hill", "it rains again today here"]
    bleu = [row(metric="bleu", notes={"bleu_signature": "nrefs:1|case:mixed|tok:intl|version:2"})]
    first = [{**answer(i, True), "prediction": text, "target": text} for i, text in enumerate(targets)]
    second = [{**line, "prediction": line["target"].replace("the", "a")} for line in first]
    entry = compared(evaluation("a", first, bleu), evaluation("b", second, bleu))
    expected = sacrebleu.corpus_bleu([line["prediction"] for line in second], [targets], tokenize="intl").score
    assert (entry["first"], entry["second"]) == pytest.approx((100.0, expected))
    assert entry["difference"] == pytest.approx(expected - 100.0)
    for wrong, given in (("tok:nope", second), ("tok:intl", [{**line, "prediction": None} for line in second])):
        odd = [row(metric="bleu", notes={"bleu_signature": wrong})]
        with pytest.raises(ValueError, match="BLEU is of texts, by a tokenizer of sacrebleu"):
            compared(evaluation(f"c{wrong[4:]}", first, odd), evaluation(f"d{wrong[4:]}", given, odd))


@pytest.mark.parametrize(
    "other", [{"metric": "rouge2"}, {"answering": "rank"}, {"notes": {"bleu_signature": "nrefs:1|tok:intl"}}]
)
def test_different_ways_of_scoring_are_refused(evaluation, other):
    with pytest.raises(ValueError, match="cb_1shot_seed0/test, prompt removed: one evaluation has .* the other"):
        compared(evaluation("a"), evaluation("b", rows=[row(**other)]))


def test_a_target_scored_with_both_prompts_is_compared_by_prompt(evaluation):
    rows = [row("rte", role="target", prompt=prompt, answers=f"{prompt}.jsonl") for prompt in (None, 0)]
    first, second = evaluation("a", rows=rows), evaluation("b", rows=rows[::-1])
    for folder in (first, second):
        lines = [json.dumps(strict_json.sealed(answer(i, False))) for i in range(40)]
        (folder / "None.jsonl").write_text("\n".join(lines))
    results = paired_evaluations.compare(first, second)
    assert [(entry["prompt"], entry["difference"]) for entry in results["entries"]] == [
        ("removed", 0.0),
        ("attached", 0.0),
    ]
    alone = evaluation("c", rows=rows[:1])
    with pytest.raises(ValueError, match="no task in common"):
        paired_evaluations.compare(first, alone)


def test_rows_of_one_evaluation_alone_are_named(evaluation):
    first, second = evaluation("a"), evaluation("b", rows=[row(), row(prompt=0, answers="attached.jsonl")])
    results = paired_evaluations.compare(first, second)
    assert results["not_compared"] == [f"cb_1shot_seed0/test, prompt attached (only in {second})"]
    assert "Not compared: cb_1shot_seed0/test, prompt attached" in paired_evaluations.text_table(results)


@pytest.mark.parametrize("odd", [{"prompt": "?"}, {**BASE[0], "score": "1"}, {**BASE[0], "score": True}])
def test_a_line_that_is_no_scored_answer(evaluation, odd):
    with pytest.raises(ValueError, match="cb.jsonl line 1 is no scored answer"):
        compared(evaluation("a"), evaluation("b", [odd]))


def test_what_cannot_be_compared_is_one_sentence(evaluation, tmp_path):
    first = evaluation("a")
    with pytest.raises(ValueError, match="no task in common .* cb_1shot_seed0/test, prompt removed"):
        compared(first, evaluation("b", rows=[row("wic")]))
    with pytest.raises(ValueError, match="scores of 2 checkpoints, expected one"):
        compared(first, evaluation("c", rows=[row(), row(step=8)]))
    damaged = evaluation("d")
    (damaged / "cb.jsonl").write_text(json.dumps({**strict_json.sealed(BASE[0]), "score": 1.0}))
    with pytest.raises(ValueError, match=r"cb.jsonl line 1 does not have its checksum"):
        compared(first, damaged)
    (damaged / "cb.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="cb.jsonl is missing"):
        compared(first, damaged)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        compared(first, tmp_path / "absent")


def test_the_command_prints_and_writes_the_table(evaluation, tmp_path, capsys):
    second = evaluation("b", [answer(i, i % 4 != 0 and i > 8) for i in range(40)])
    assert cli.main(["compare", str(evaluation("a")), str(second), f"--out={tmp_path / 'out'}"]) == 0
    first, other, _, line, *notes = capsys.readouterr().out.splitlines()
    assert first.endswith("/a") and other == f"second: {second}" and "not adjusted" in notes[1]
    assert line.split() == "cb 1 removed 40 75.0 60.0 -15.0 -26.2 to -3.8 6 0 0.031".split()
    assert json.loads((tmp_path / "out" / "paired.json").read_text())["entries"][0]["difference"] == -15.0
    assert "| cb | 1 | removed |" in (tmp_path / "out" / "paired.md").read_text()
