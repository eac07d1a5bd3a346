"""Two evaluations of the same examples -> the paired differences of their scores, task by task.

Examples are matched by prompt and target, never by their position, so the evaluations may come from different commands,
orders and limits.
"""

import collections
import dataclasses
import json
import math
import os
import statistics as means
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from promot_t5x.evaluation import statistics
from promot_t5x.reports import result_files, scores, tables
from promot_t5x.reports.averages import grouped, overall
from promot_t5x.reports.result_files import ANY, NUMBER, TEXT, Table
from promot_t5x.runtime import files, strict_json
from promot_t5x.runtime.text import aligned

_ROW = {
    **{name: TEXT for name in ("run", "task", "role", "metric", "seqio_task", "split", "answers")},
    **{name: NUMBER for name in ("step", "k", "exemplar_seed", "prompt", "value")},
    **{"answering?": TEXT, "notes?": Table(ANY)},
}
_KIND = dataclasses.replace(scores.KIND, contents={**scores.KIND.contents, "rows": [_ROW]})

_TARGET = "target"


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """One evaluation on disk: its folder, and its rows by what they are compared with."""

    folder: epath.Path
    rows: dict[tuple[Any, ...], Mapping[str, Any]]


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> dict[str, Any]:
    """The paired differences of two evaluations, as in paired.json; docs/results.md describes it.

    Args:
      first, second: folders with a `scores.json` of one checkpoint (an EVAL_OUTPUT_DIR, or a run's folder in a
        pipeline), or that file itself. Differences are second minus first.

    Raises:
      FileNotFoundError: there is no such file, or a file of answers is missing.
      ValueError: a file is damaged, has several checkpoints, or the two have no examples in common, or different ones.
    """
    one, other = _open(first), _open(second)
    common = [key for key in one.rows if key in other.rows]
    if not common:
        raise ValueError(
            f"{first} and {second} have no task in common with the same split, exemplars and prompt: the first has "
            f"{_tasks(one.rows)}, the second {_tasks(other.rows)}; evaluate both on the same suite."
        )
    compared = [_compared(one, other, key) for key in common]
    entries = [_entry(members) for members in grouped(compared, ("task", "k", "prompt")).values()]
    for entry, adjusted in zip(entries, statistics.holm([entry["p"] for entry in entries]), strict=True):
        entry["p_holm"] = adjusted
    others = [entry for entry in entries if entry["role"] != _TARGET]
    return {
        "unit": result_files.UNIT,
        "first": os.fspath(first),
        "second": os.fspath(second),
        "entries": entries,
        "means": [_mean(members) for members in grouped(others, ("k", "prompt")).values()],
        "not_compared": [
            f"{_described(row)} (only in {path})"
            for rows, others, path in ((one.rows, other.rows, first), (other.rows, one.rows, second))
            for key, row in rows.items()
            if key not in others
        ],
    }


def _open(path: str | os.PathLike[str]) -> _Evaluation:
    """Reads a scores.json.

    Raises:
      FileNotFoundError, ValueError: see `compare`.
    """
    file = files.absolute(path)
    file = file / "scores.json" if file.is_dir() else file
    rows = result_files.read(file, _KIND)["rows"]
    checkpoints = {(row["run"], row["step"]) for row in rows}
    if len(checkpoints) > 1:
        raise ValueError(
            f"{file} has the scores of {len(checkpoints)} checkpoints, expected one: evaluate each into a folder "
            "of its own (CHECKPOINT_MODE='best')."
        )
    targets = collections.Counter((row["seqio_task"], row["split"]) for row in rows if row["role"] == _TARGET)
    return _Evaluation(file.parent, {_key(row, targets[row["seqio_task"], row["split"]] == 1): row for row in rows})


def _key(row: Mapping[str, Any], is_only_target: bool) -> tuple[Any, ...]:
    """What two rows must share to be compared; a target that is scored once is so with whatever prompt its run has."""
    prompt = _TARGET if is_only_target else scores.prompt_word(row["prompt"])
    return row["task"], row["k"], row["exemplar_seed"], row["split"], prompt


def _described(row: Mapping[str, Any]) -> str:
    return f"{row['seqio_task']}/{row['split']}, prompt {scores.prompt_word(row['prompt'])}"


def _tasks(rows: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> str:
    named = [_described(row) for row in rows.values()]
    return "; ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")


def _compared(one: _Evaluation, other: _Evaluation, key: tuple[Any, ...]) -> dict[str, Any]:
    """One task, one draw of exemplars: the difference, and what it was computed from."""
    row, files_of_answers = one.rows[key], [of.folder / of.rows[key]["answers"] for of in (one, other)]
    _check_alike(row, other.rows[key])
    answers = [_read_answers(file) for file in files_of_answers]
    positions = statistics.matched(*([_identity(answer) for answer in of_one] for of_one in answers))
    _check_matched([str(file) for file in files_of_answers], [len(of_one) for of_one in answers], len(positions[0]))
    first, second = ([of_one[p] for p in chosen] for of_one, chosen in zip(answers, positions, strict=True))
    return {
        **{name: row[name] for name in ("task", "k", "exemplar_seed", "role", "metric")},
        "prompt": key[-1],
        "rows": [len(of_one) for of_one in answers],
        **_scores(first, second, row),
        "chance": _chance(first, second),
    }


def _check_alike(row: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises ValueError unless two rows have the same metric, tokenizer and way of answering."""
    for what, mine, theirs in (
        ("the metric", row["metric"], other["metric"]),
        ("BLEU's tokenizer", _tokenizer(row), _tokenizer(other)),
        ("answers by", row.get("answering"), other.get("answering")),
    ):
        if mine != theirs:
            raise ValueError(
                f"{_described(row)}: one evaluation has {what} {mine!r}, the other {theirs!r}; expected the same: "
                "evaluate both in the same way."
            )


def _read_answers(file: epath.Path) -> list[dict[str, Any]]:
    """The lines of a file of answers.

    Raises:
      FileNotFoundError, ValueError: it is missing, or a line is not as it was written.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, which holds the answers to compare; make the evaluation again.")
    answers = [answer for _, answer in strict_json.read_lines(file)]
    for number, answer in enumerate(answers, start=1):
        if not strict_json.is_sealed(answer):
            raise ValueError(f"{file} line {number} does not have its checksum; make the evaluation again.")
        if not {"prompt", "target", "prediction", "output"} <= set(answer) or not _is_score(answer.get("score", "")):
            raise ValueError(
                f"{file} line {number} is no scored answer (prompt, target, prediction, output, score); make the "
                "evaluation again."
            )
    return answers


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _identity(answer: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
    """(what makes two answers answers to the same question, the order of several to one question)."""
    return json.dumps([answer["prompt"], answer["target"]]), (answer["score"] or 0.0, answer["output"])


def _check_matched(names: Sequence[str], counts: Sequence[int], common: int) -> None:
    """Raises ValueError unless one evaluation's examples are all among the other's."""
    if not common or common < min(counts):
        raise ValueError(
            f"{names[0]} has {counts[0]} examples and {names[1]} has {counts[1]}, of which {common} have the same "
            "prompt and target; expected the same examples, or a part of them: evaluate both with the same data, "
            "exemplars and lengths."
        )


def _scores(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], row: Mapping[str, Any]
) -> dict[str, Any]:
    """Both scores on the same examples and their difference; None for a metric that single examples do not have."""
    if row["metric"] == "bleu":
        targets, tokenizer = [answer["target"] for answer in first], _tokenizer(row) or "13a"
        texts = [[answer["prediction"] for answer in answers] for answers in (first, second)]
        _check_texts([*targets, *texts[0], *texts[1]], tokenizer, row)
        difference = statistics.paired_bleu(targets, texts[0], texts[1], tokenizer)
        score = statistics.corpus_bleu(targets, texts[0], tokenizer)
        return {"first": score, "second": score + difference.value, "difference": difference}
    values = [[answer["score"] for answer in answers] for answers in (first, second)]
    if any(None in of_one for of_one in values):
        return dict.fromkeys(("first", "second", "difference"))
    means_of = {name: means.fmean(of_one) for name, of_one in zip(("first", "second"), values, strict=True)}
    return {**means_of, "difference": statistics.paired(values[0], values[1])}


def _check_texts(texts: Sequence[Any], tokenizer: str, row: Mapping[str, Any]) -> None:
    """Raises ValueError for what sacrebleu cannot score."""
    import sacrebleu  # slow to import

    if tokenizer not in sacrebleu.BLEU.TOKENIZERS or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{_described(row)}: BLEU is of texts, by a tokenizer of sacrebleu ({tokenizer!r} is given); make the "
            "evaluation again."
        )


def _tokenizer(row: Mapping[str, Any]) -> str:
    """The tokenizer in sacrebleu's signature, `…|tok:intl|…`; empty for other metrics."""
    signature = str((row.get("notes") or {}).get("bleu_signature", ""))
    return dict(part.split(":", 1) for part in signature.split("|") if ":" in part).get("tok", "")


def _chance(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of choices, if both evaluations ranked the same number of them for every example."""
    counts = {len(answer.get("choice_scores") or ()) for answers in (first, second) for answer in answers}
    (count,) = counts if len(counts) == 1 else (0,)
    return count if count > 1 else None


def _entry(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One task with one number of exemplars; the mean over the draws of exemplars.

    The draws share their questions, so the standard error of the mean is taken to be the mean of theirs, as if they
    told the same; `seed_std` is how far they differ.
    """
    first = members[0]
    entry = {name: first[name] for name in ("task", "k", "prompt", "role", "metric")}
    entry |= {"n": min(first["rows"]), "rows": first["rows"], "draws": len(members)}
    entry |= {name: _mean_or_none([member[name] for member in members]) for name in ("first", "second")}
    differences = [member["difference"] for member in members]
    if None in differences:
        return {**entry, **dict.fromkeys(("difference", "stderr", "interval", "seed_std", "lost", "gained", "p"))}
    of_draws = overall({"value": d.value} for d in differences)
    value, seed_std = of_draws["value"], of_draws["std"]
    stderr = _mean_or_none([d.stderr for d in differences])
    lost, gained = (sum(getattr(d, name) for d in differences) for name in ("lost", "gained"))
    p = differences[0].p if len(differences) == 1 else _normal_p(value, stderr)
    entry |= {
        "difference": value,
        "stderr": stderr,
        "interval": _interval(value, stderr),
        "seed_std": seed_std,
    }
    return {**entry, "lost": lost, "gained": gained, "p": p, **_adjusted(members, lost, gained)}


def _adjusted(members: Sequence[Mapping[str, Any]], lost: int, gained: int) -> dict[str, float]:
    """`lost` and `gained` without guesses, for a task that was ranked among the same number of choices throughout."""
    if len({member["chance"] for member in members}) > 1 or (choices := members[0]["chance"]) is None:
        return {}
    n = sum(min(member["rows"]) for member in members)
    accuracies = tuple(means.fmean(member[name] for member in members) / 100 for name in ("first", "second"))
    lost_adjusted, gained_adjusted = statistics.chance_adjusted(lost, gained, n, accuracies, choices)
    return {"lost_adjusted": lost_adjusted, "gained_adjusted": gained_adjusted}


def _mean(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over tasks, which are independent: stderr = sqrt(sum of their stderr^2) / number of tasks."""
    value = _mean_or_none([entry["difference"] for entry in entries])
    errors = [entry["stderr"] for entry in entries]
    stderr = None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(errors)
    return {
        **{name: entries[0][name] for name in ("k", "prompt")},
        "tasks": [entry["task"] for entry in entries],
        **{name: _mean_or_none([entry[name] for entry in entries]) for name in ("first", "second")},
        "difference": value,
        "stderr": stderr,
        "interval": _interval(value, stderr),
        "p": _normal_p(value, stderr),
    }


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    return overall({"value": value} for value in values)["value"]


def _interval(value: float | None, stderr: float | None) -> list[float] | None:
    low_high = statistics.interval(value, stderr)
    return None if low_high is None else list(low_high)


def _normal_p(value: float | None, stderr: float | None) -> float | None:
    if value is None or stderr is None:
        return None
    return math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr else float(value == 0)


_HEADS = ("task", "k", "prompt", "n", "first", "second", "difference", "95 %", "lost", "gained", "p (Holm)")


def text_table(compared: Mapping[str, Any]) -> str:
    """The entries and means of `compare` as aligned text, with lines on what a reader has to know."""
    table = aligned([_HEADS, *_lines(compared)], numbers=range(3, len(_HEADS)))
    return "\n".join([f"first: {compared['first']}", f"second: {compared['second']}", table, *_notes(compared)])


def write(compared: Mapping[str, Any], out_dir: str | os.PathLike[str]) -> epath.Path:
    """Writes paired.json and paired.md into a folder, and returns the path of the latter."""
    folder = files.absolute(out_dir)
    files.write_json(folder / "paired.json", compared)
    table = tables.markdown(_HEADS, _lines(compared), numbers=range(3, len(_HEADS)))
    page = [f"{compared['second']} minus {compared['first']}, in percent.", "", table, "", *_notes(compared)]
    files.write_whole(folder / "paired.md", "\n".join(page).encode())
    return folder / "paired.md"


def _lines(compared: Mapping[str, Any]) -> list[tuple[str, ...]]:
    def line(row: Mapping[str, Any], name: str, n: Any, p: float | None) -> tuple[str, ...]:
        k, low_high = "–" if row["k"] is None else str(row["k"]), row["interval"]
        interval = "–" if low_high is None else f"{low_high[0]:+.1f} to {low_high[1]:+.1f}"
        counts = [_shown(row.get(count), "d") for count in ("lost", "gained")]
        numbers = [_shown(row["first"]), _shown(row["second"]), _shown(row["difference"], "+.1f"), interval]
        shown_p = "<0.001" if p is not None and p < 0.001 else _shown(p, ".3f")
        return name, k, row["prompt"], n, *numbers, *counts, shown_p

    entries = [line(row, row["task"], str(row["n"]), row["p_holm"]) for row in compared["entries"]]
    return entries + [line(row, f"mean of {len(row['tasks'])}", "", row["p"]) for row in compared["means"]]


def _shown(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)


def _notes(compared: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know."""
    parts = [row for row in compared["entries"] if len(set(row["rows"])) > 1]
    notes = [
        f"{row['task']}: the {row['n']} examples that both have, of {row['rows'][0]} and {row['rows'][1]}."
        for row in parts
    ]
    if any(row["draws"] > 1 for row in compared["entries"]):
        notes.append("lost and gained count the answers with all draws of exemplars.")
    if compared["means"]:
        notes.append("The p of a mean is that of a normal test, not adjusted.")
    return notes + [f"Not compared: {row}." for row in compared["not_compared"]]
