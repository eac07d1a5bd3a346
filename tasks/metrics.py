"""Metrics from 0 to 100: accuracy, macro F1, exact match, BLEU, ROUGE; BLEU and ROUGE from their usual libraries.

A metric is a function (targets, predictions) -> {name: value}, as seqio expects. The first name is the headline. A
metric that knows its standard error also returns it, as `<name>_stderr`; notes are seqio.metrics.Text. A value that is
the mean of the examples' own values is a `Mean`, so that nothing is computed again for each of them. Metrics are for
English unless `in_language` makes them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epy

from promot_t5x.tasks import languages

with epy.lazy_imports():  # they take seconds to import, and most metrics need none of them
    import sacrebleu
    import seqio
    from rouge_score import rouge_scorer, tokenizers

Metric = Callable[..., Mapping[str, Any]]

BLEU_TOKENIZER = "intl"
"""T5's choice for its sacrebleu metric; sacrebleu's own default is 13a."""

_TRIVIA_QA_PUNCTUATION = frozenset(string.punctuation + "‘’´")

_ROUGE = ["rouge2", "rougeL"]
_BOOTSTRAP_SAMPLES = 1000
NORMAL_97_5 = 1.959964  # half the width of a 95 % interval in standard errors


class Mean(float):
    """A metric's value that is the mean of its values on single examples.

    Attributes:
      of_examples: these values, in order.

    >>> mean = Mean([100.0, 0.0])
    >>> mean, mean.of_examples
    (50.0, [100.0, 0.0])
    """

    of_examples: list[float]

    def __new__(cls, of_examples: Sequence[float]) -> Mean:
        mean = super().__new__(cls, sum(of_examples) / max(len(of_examples), 1))
        mean.of_examples = list(of_examples)
        return mean


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, Mean]:
    """The percentage of predictions that equal their target, ignoring surrounding white space.

    >>> accuracy(["True", "False"], [" True", "Neither"])
    {'accuracy': 50.0}
    """
    pairs = zip(targets, predictions, strict=True)
    return {"accuracy": Mean([100.0 * (target.strip() == prediction.strip()) for target, prediction in pairs])}


def macro_f1(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """The unweighted mean over classes of F1 = 2 hits / (targets + predictions of the class), in percent.

    A class that is neither a target nor predicted has an F1 of 0, as in scikit-learn.

    >>> macro_f1(["a", "a", "b"], ["a", "b", "b"], labels=("a", "b"))
    {'macro_f1': 66.66666666666666}
    """
    total = 0.0
    for label in labels:
        hits = sum(t == p == label for t, p in zip(targets, predictions, strict=True))
        named = sum(t == label for t in targets) + sum(p == label for p in predictions)
        total += 2 * hits / named if named else 0.0
    return {"macro_f1": 100 * total / len(labels)}


def normalized_answer(text: str) -> str:
    """SQuAD's normal form of an answer: lower case, no punctuation, no articles, single spaces.

    >>> normalized_answer("The  Beatles!")
    'beatles'
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def trivia_qa_answer(text: str) -> str:
    """TriviaQA's normal form of an answer: SQuAD's, but punctuation, also `_‘’´`, becomes spaces.

    >>> trivia_qa_answer("The Jack-of-all-trades’")
    'jack of all trades'
    """
    text = "".join(" " if c in _TRIVIA_QA_PUNCTUATION else c for c in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    normal_form: Callable[[str], str] = normalized_answer,
) -> dict[str, Mean]:
    """The percentage of predictions that equal one of their accepted answers in a normal form, by default SQuAD's.

    Args:
      targets: the answer of each example, or all its aliases.
      predictions: one text per example.
      normal_form: maps answers that count as equal to the same text.

    >>> exact_match([["The Beatles", "Beatles"], ["Paris"]], ["beatles.", "Rome"])
    {'exact_match': 50.0}
    """
    scores = []
    for accepted, prediction in zip(targets, predictions, strict=True):
        aliases = [accepted] if isinstance(accepted, str) else accepted
        scores.append(100.0 * (normal_form(prediction) in {normal_form(alias) for alias in aliases}))
    return {"exact_match": Mean(scores)}


def bleu(targets: Sequence[str], predictions: Sequence[str], tokenizer: str = BLEU_TOKENIZER) -> dict[str, Any]:
    """Corpus BLEU by sacrebleu, with its bootstrapped standard error and signature; sentence BLEU for a single text.

    `tokenizer` is one of sacrebleu's; the signature has its name.

    >>> values = bleu(["Hello, big world out there."], ["Hello, big world out there."])
    >>> round(values["bleu"], 6), values["bleu_signature"].textdata.split("|")[3]
    (100.0, 'tok:intl')
    """
    if not targets:
        return {"bleu": 0.0}
    is_single = len(targets) == 1  # every bootstrap sample is then the same, and a short text may have no 4-grams
    scorer = sacrebleu.BLEU(tokenize=tokenizer, effective_order=is_single)
    samples = 1 if is_single else _BOOTSTRAP_SAMPLES
    score = scorer.corpus_score(list(predictions), [list(targets)], n_bootstrap=samples)
    values: dict[str, Any] = {"bleu": min(score.score, 100.0)}  # 100.00000000000004 for equal texts
    if not is_single:
        values["bleu_stderr"] = float(score._ci) / NORMAL_97_5
    return {**values, "bleu_signature": seqio.metrics.Text(str(scorer.get_signature()))}


@functools.cache
def _english_words() -> tokenizers.Tokenizer:
    return tokenizers.DefaultTokenizer(use_stemmer=False)


@functools.cache
def _rouge(tokenizer: languages.UnicodeWords | tokenizers.Tokenizer) -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(_ROUGE, tokenizer=tokenizer)


def rouge(
    targets: Sequence[str], predictions: Sequence[str], tokenizer: languages.UnicodeWords | None = None
) -> dict[str, Any]:
    """Mean F-measure of ROUGE-2 and ROUGE-L by rouge-score, without stemming, in percent.

    A reference of one word has no bigram, so its ROUGE-2 is always 0. For another tokenizer than rouge-score's own,
    which is that of None, `rouge_signature` names it.

    Raises:
      ValueError: the tokenizer sees no words in a reference that has letters or digits.

    >>> rouge(["the cat sat down"], ["the cat sat up"])
    {'rouge2': 66.66666666666666, 'rougeL': 75.0}
    """
    words = tokenizer or (_english_words() if targets else None)
    for target in targets:
        if any(map(str.isalnum, target)) and not words.tokenize(target):
            raise ValueError(
                f"ROUGE's tokenizer {type(words).__name__} sees no words in the reference {target!r}: name the "
                "task's language, for a task of JSONL files with jsonl_task.language."
            )
    scores = [_rouge(words).score(t, p) for t, p in zip(targets, predictions, strict=True)]
    values: dict[str, Any] = {name: Mean([100 * score[name].fmeasure for score in scores]) for name in _ROUGE}
    if tokenizer is not None:
        signature = f"tok:{type(tokenizer).__name__}|version:{importlib.metadata.version('rouge-score')}"
        values["rouge_signature"] = seqio.metrics.Text(signature)
    return values


BY_NAME: dict[str, Metric] = {"accuracy": accuracy, "exact_match": exact_match, "bleu": bleu, "rouge": rouge}


def in_language(name: str, language: str | None) -> Metric:
    """A metric of `BY_NAME` for texts in a language.

    Args:
      name: the metric.
      language: a code of ISO 639-1, such as "hi"; None for English.

    Raises:
      ValueError: no such language, or its tokenizer is not installed.

    >>> in_language("rouge", "zh")(["我爱猫"], ["我爱狗"])["rouge2"], rouge(["cats"], ["cats"])["rougeL"]
    (50.0, 100.0)
    """
    if language is None or languages.primary(language) == "en":
        return BY_NAME[name]
    changed = {
        "exact_match": lambda: {"normal_form": languages.answer},
        "bleu": lambda: {"tokenizer": languages.bleu_tokenizer(language)},
        "rouge": lambda: {"tokenizer": languages.UnicodeWords()},
    }
    return functools.partial(BY_NAME[name], **changed[name]()) if name in changed else BY_NAME[name]
