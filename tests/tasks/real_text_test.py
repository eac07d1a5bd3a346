"""The paper's tasks on real text: the prompts they make of it, and what an oracle and a constant answer score.

What is expected is computed from the files alone, with the templates, labels and normal forms written out here. T5's
vocabulary does not know every letter: such letters are listed with each task, and rows without them come back unharmed.
"""

import dataclasses
import json
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import sacrebleu
import seqio
from rouge_score import rouge_scorer

from promot_t5x.tasks import paper, vocabularies

END, UNKNOWN, SENTINEL = 1, 2, 32099
ARTICLE_TOKENS, TARGET_TOKENS = 1024, 256

SAID = {"entailment": "True", "not_entailment": "False", "contradiction": "False", "neutral": "Neither"}
RTE = "{premise} question: {hypothesis} Is it true or false? answer:"
NLI = "{premise} question: {hypothesis} Is it true or false or neither? answer:"
SAME = "question: The word {word} is used in the same way in the two sentences. Is it true or False? answer:"
CHOICES = "A) {choices[text][0]} B) {choices[text][1]} C) {choices[text][2]} D) {choices[text][3]}"
OPENBOOKQA, QUESTION, WIC = f"Q: {{question_stem}} {CHOICES} A:", "Q: {question} A:", "{sentence1} {sentence2} " + SAME
SUMMARY, TRANSLATE = "Article: {document} One sentence summary:", "Translate English to %s: {translation[en]}"


@dataclasses.dataclass(frozen=True)
class Case:
    """A task on files, one after another: rows before `cut` are exemplars, those from `cut` to `stop` questions.

    `answers` are a row's accepted answers, the one to learn first; `unknown` are letters that the vocabulary loses.
    """

    task: str
    files: str
    cut: int
    template: str
    answers: Callable[[Mapping[str, Any]], list[str]] = lambda row: [SAID[row["label"]]]
    metric: str = "accuracy"
    unknown: str = ""
    stop: int | None = None

    def whole(self, row: Mapping[str, Any]) -> str:
        return self.template.format(**row)

    def questions(self, row: Mapping[str, Any], fits: Callable[[str], bool]) -> list[str]:
        """The whole question; of an article that does not fit as many words as do."""
        if self.metric != "rouge" or fits(self.whole(row)):
            return [self.whole(row)]
        ends = [match.end() for match in re.finditer(r"\S+", row["document"])]
        parts = (self.whole({"document": row["document"][:end]}) for end in reversed(ends))
        return [next(part for part in parts if fits(part))]


def _foreign(row: Mapping[str, Any]) -> list[str]:
    return [text for language, text in row["translation"].items() if language != "en"]


CASES = [
    Case("rte", "super_glue/RTE/train.jsonl", 2240, RTE, stop=2340),  # row 2241 asks what row 459 asks
    Case("cb", "super_glue/CB/train.jsonl", 150, NLI, metric="macro_f1"),
    Case("wic", "super_glue/WiC/train.jsonl super_glue/WiC/dev32.jsonl", 32, WIC, lambda row: [str(row["label"])]),
    Case("web_questions", "web_questions/train.jsonl", 3678, QUESTION, lambda row: row["answers"], "exact_match", "ë"),
    Case("wmt16_ende", "ntrex128/en-de.jsonl", 850, TRANSLATE % "German", _foreign, "bleu", "Ä‚", 970),
    Case("wmt16_enro", "ntrex128/en-ro.jsonl", 850, TRANSLATE % "Romanian", _foreign, "bleu", "ĂȘȚ", 950),
    Case("snli", "snli/validation.jsonl", 1902, NLI),
    Case("openbookqa", "openbookqa/train.jsonl", 1900, OPENBOOKQA, lambda row: [row["answerKey"]]),
    Case("xnli_en", "xnli/en.dev.jsonl", 900, NLI),
    Case("xnli_sw", "xnli/sw.dev.jsonl", 900, NLI),
    # row 7 is the one that is longer than an article may be
    Case("wiki_lingua_en", "wiki_lingua/en.jsonl", 9, SUMMARY, lambda row: [row["summary"]], "rouge"),
]
RUNS = [pytest.param((case, shots), id=f"{case.task}-{shots}") for case in CASES for shots in (1, 4)]


@dataclasses.dataclass(frozen=True)
class Built:
    """A case's task and, for each length of the inputs, its examples; `train` and `test` are rows of the files."""

    case: Case
    shots: int
    task: seqio.Task
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    examples: dict[int | None, list[dict[str, Any]]]


def _present(shared_dir, name):
    file = shared_dir / "data" / name
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return file


def _build(case, shots, train, test, lengths, folder, shared_dir, vocabulary) -> Built:
    content = "".join(_present(shared_dir, name).read_text(encoding="utf-8") for name in case.files.split())
    file = folder / paper.TASKS[case.task].folder / "all.jsonl"
    file.parent.mkdir()
    file.write_text(content, encoding="utf-8")
    rows = [json.loads(line) for line in content.split("\n") if line]
    splits = {"train": f"all.jsonl[{train[0]}:{train[1]}]", "test": f"all.jsonl[{test[0]}:{test[1] or ''}]"}
    name = paper.task(case.task, vocabulary, data_dir=str(folder), splits=splits, shots=shots, sentinels=True)
    try:
        task, examples = seqio.TaskRegistry.get(name), {}
        for length in lengths:
            sizes = length and {"inputs": length, "targets": TARGET_TOKENS}
            examples[length] = list(task.get_dataset(sizes, split="test", shuffle=False).as_numpy_iterator())
    finally:
        seqio.TaskRegistry.remove(name)
    return Built(case, shots, task, rows[slice(*train)], rows[slice(*test)], examples)


@pytest.fixture(scope="module")
def vocabulary(shared_dir) -> seqio.Vocabulary:
    return vocabularies.sentencepiece(str(_present(shared_dir, "spm/t5_cc_all_32000.model")), extra_ids=100)


@pytest.fixture(scope="module", params=RUNS)
def built(request, tmp_path_factory, shared_dir, vocabulary) -> Built:
    case, shots = request.param
    lengths = (None, 512, 1024) if case.metric == "rouge" else (None, 512)
    folder = tmp_path_factory.mktemp("data")
    return _build(case, shots, (0, case.cut), (case.cut, case.stop), lengths, folder, shared_dir, vocabulary)


def _fits(vocabulary: seqio.Vocabulary, most: int, end: str = "") -> Callable[[str], bool]:
    return lambda text: len(vocabulary.encode(text + end)) <= most


def _check_free_prompts(built, vocabulary) -> list[tuple[list[str], str]]:
    """Checks that prompts of any length are `shots` training rows and the row's question; returns these parts."""
    case, fits, parts, shots = built.case, _fits(vocabulary, ARTICLE_TOKENS), [], {}
    for row in built.train:
        shots |= {f"{question} {case.answers(row)[0]} ": case.whole(row) for question in case.questions(row, fits)}
    for row, example in zip(built.test, built.examples[None], strict=True):
        rest, drawn = example["inputs_pretokenized"].decode().removesuffix(" <extra_id_0>"), []
        (question,) = [question for question in case.questions(row, fits) if rest.endswith(question)]
        rest = rest.removesuffix(question)
        while rest:
            (shot,) = [shot for shot in shots if rest.startswith(shot)]
            drawn, rest = [*drawn, shot], rest[len(shot) :]
        assert len(drawn) == len(set(drawn)) == built.shots and case.whole(row) not in [shots[shot] for shot in drawn]
        assert example["exemplars_dropped"] == example["input_cut"] == 0
        assert example["article_cut"] == (not fits(case.whole(row)))
        parts.append((drawn, question))
    return parts


def test_prompts_and_targets(built, vocabulary):
    parts = _check_free_prompts(built, vocabulary)
    for length in set(built.examples) - {None}:
        fits, fits_marked = _fits(vocabulary, length - 1), _fits(vocabulary, length - 1, " <extra_id_0>")
        for row, example, (drawn, question) in zip(built.test, built.examples[length], parts, strict=True):
            # As many exemplars from the right as fit, then the question alone, then a part of it.
            candidates = ["".join([*drawn[i:], question, " <extra_id_0>"]) for i in range(built.shots + 1)]
            dropped = next((i for i, text in enumerate(candidates) if fits(text)), None)
            cut = built.case.questions(row, fits_marked)
            text = example["inputs_pretokenized"].decode()
            assert text in ([f"{part} <extra_id_0>" for part in cut] if dropped is None else [candidates[dropped]])
            assert example["exemplars_dropped"] == (built.shots if dropped is None else dropped)
            assert example["input_cut"] == (dropped is None)
            # Nothing is lost on the way to tokens.
            assert example["inputs"].tolist() == [*vocabulary.encode(text), END] and len(example["inputs"]) <= length
            assert example["inputs"][-2] == SENTINEL
            accepted = built.case.answers(row)
            assert example["targets_pretokenized"].decode() == f"<extra_id_0> {accepted[0]}"
            assert example["targets"].tolist() == [*vocabulary.encode(f"<extra_id_0> {accepted[0]}"), END]
            assert json.loads(example["answers"]) == accepted


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_no_question_is_its_own_exemplar(case, tmp_path, shared_dir, vocabulary):
    """Exemplars come from the same twelve rows as the questions, so few that most would be drawn for themselves."""
    rows = (case.cut - 6, case.cut + 6)
    built = _build(case, 4, rows, rows, (None,), tmp_path, shared_dir, vocabulary)
    assert len({shot for shots, _ in _check_free_prompts(built, vocabulary) for shot in shots}) > 6


def test_fixed_words_are_known(vocabulary):
    templates = [re.sub(r"\{.*?\}", "a", case.template) for case in CASES]
    for text in (*templates, *SAID.values(), *"ABCD"):
        assert UNKNOWN not in vocabulary.encode(text) and vocabulary.decode(vocabulary.encode(text)) == text


def _scores(built: Built, outputs: Mapping[int, str]) -> dict[str, float]:
    """The task's own metrics of some rows' outputs, as seqio computes them; without standard errors and notes."""
    pairs, scores = [(output, built.examples[512][i]) for i, output in outputs.items()], {}
    targets = [built.task.postprocess_fn("", example=example, is_target=True) for _, example in pairs]
    predictions = [built.task.postprocess_fn(text, example=example, is_target=False) for text, example in pairs]
    for metric in built.task.metric_fns:
        scores |= metric(targets, predictions)
    return {k: v for k, v in scores.items() if isinstance(v, float) and not k.endswith("_stderr")}


def _perfect(case: Case) -> Any:
    names = {"macro_f1": ("accuracy", "macro_f1"), "rouge": ("rouge2", "rougeL")}.get(case.metric, (case.metric,))
    return pytest.approx(dict.fromkeys(names, 100.0), abs=1e-9)


def test_oracle_scores_100(built, vocabulary):
    answers = [built.case.answers(row)[0] for row in built.test]
    assert _scores(built, dict(enumerate(f"<extra_id_0> {a} <extra_id_1>" for a in answers))) == _perfect(built.case)
    # Through tokens too, where these hold all letters.
    outputs = {i: vocabulary.decode(example["targets"].tolist()) for i, example in enumerate(built.examples[512])}
    harmed = {i for i in outputs if UNKNOWN in built.examples[512][i]["targets"]}
    letters = {letter for i in harmed for letter in answers[i]}
    assert {letter for letter in letters if UNKNOWN in vocabulary.encode(letter)} == set(built.case.unknown)
    assert _scores(built, {i: text for i, text in outputs.items() if i not in harmed}) == _perfect(built.case)
    assert not harmed or 98 < _scores(built, outputs)[built.case.metric] < 100


def _squad(text: str) -> list[str]:
    words = "".join(c for c in text.lower() if c not in string.punctuation).split()
    return [word for word in words if word not in ("a", "an", "the")]


def _expected(case: Case, rows: list[dict[str, Any]], constant: str) -> dict[str, float]:
    """What a constant answer scores, from the files' rows."""
    accepted = [case.answers(row) for row in rows]
    first = [answers[0] for answers in accepted]
    if case.metric == "bleu":
        return {"bleu": sacrebleu.corpus_bleu([constant] * len(rows), [first], tokenize="intl").score}
    if case.metric == "rouge":
        scorer = rouge_scorer.RougeScorer(["rouge2", "rougeL"])
        scores = [scorer.score(reference, constant) for reference in first]
        return {name: 100 * sum(s[name].fmeasure for s in scores) / len(rows) for name in ("rouge2", "rougeL")}
    if case.metric == "exact_match":
        hits = sum(any(_squad(alias) == _squad(constant) for alias in answers) for answers in accepted)
        return {"exact_match": 100 * hits / len(rows)}
    share = first.count(constant) / len(rows)
    f1_of_three = {"macro_f1": 100 * 2 * share / (share + 1) / 3} if case.metric == "macro_f1" else {}
    return {"accuracy": 100 * share, **f1_of_three}


def test_constant_answer_scores_its_share(built):
    case, first = built.case, [built.case.answers(row)[0] for row in built.test]
    classes = case.metric in ("accuracy", "macro_f1")
    for constant in (*(sorted(set(first)) if classes else (first[0], f"the {first[0]}!")), "the"):
        outputs = dict.fromkeys(range(len(first)), f"<extra_id_0> {constant} <extra_id_1> and")
        expected = _expected(case, built.test, constant)
        assert _scores(built, outputs) == pytest.approx(expected, abs=1e-9), constant
        assert constant == "the" or all(value > 0 for value in expected.values()), constant
