"""Metrics on the scale 0 to 100: accuracy, macro F1, exact match, BLEU, ROUGE; each from the library of its field.

A metric is what seqio wants: a function (targets, predictions) -> {name: value}. The first name is the headline. Where
a metric knows its own standard error, the value stands beside it as `<name>_stderr`; notes are seqio.metrics.Text.
"""

import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sacrebleu
import seqio
from rouge_score import rouge_scorer

Metric = Callable[..., Mapping[str, Any]]

BLEU_TOKENIZER = "intl"
"""T5's choice for its sacrebleu metric; sacrebleu's own default is 13a."""

_BOOTSTRAP_SAMPLES = 1000
_NORMAL_97_5 = 1.959964  # half the width of a 95 % interval in standard errors


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The percentage of predictions that equal their target, spaces around the text aside.

    >>> accuracy(["True", "False"], [" True", "Neither"])
    {'accuracy': 50.0}
    """
    pairs = list(zip(targets, predictions, strict=True))
    return {"accuracy": 100 * sum(t.strip() == p.strip() for t, p in pairs) / max(len(pairs), 1)}


def macro_f1(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """The plain mean over classes of F1 = 2 hits / (targets + predictions of the class), in percent.

    A class that is neither asked for nor predicted has an F1 of 0, as in scikit-learn.

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


def exact_match(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """The percentage of predictions that equal one of their accepted answers in SQuAD's normal form.

    Args:
      targets: for each example its answer, or all its aliases.
      predictions: one text each.

    >>> exact_match([["The Beatles", "Beatles"], ["Paris"]], ["beatles.", "Rome"])
    {'exact_match': 50.0}
    """
    hits = 0
    for accepted, prediction in zip(targets, predictions, strict=True):
        aliases = [accepted] if isinstance(accepted, str) else accepted
        hits += normalized_answer(prediction) in {normalized_answer(alias) for alias in aliases}
    return {"exact_match": 100 * hits / max(len(predictions), 1)}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
    """Corpus BLEU by sacrebleu, its bootstrapped standard error and its signature; of one text its sentence BLEU.

    >>> found = bleu(["Hello, big world out there."], ["Hello, big world out there."])
    >>> round(found["bleu"], 6), found["bleu_signature"].textdata.split("|")[3]
    (100.0, 'tok:intl')
    """
    if not targets:
        return {"bleu": 0.0}
    one = len(targets) == 1  # then every sample is the same, and a short text has no 4-grams to be counted
    scorer = sacrebleu.BLEU(tokenize=BLEU_TOKENIZER, effective_order=one)
    samples = 1 if one else _BOOTSTRAP_SAMPLES
    score = scorer.corpus_score(list(predictions), [list(targets)], n_bootstrap=samples)
    found: dict[str, Any] = {"bleu": min(score.score, 100.0)}  # 100.00000000000004 for equal texts
    if not one:
        found["bleu_stderr"] = float(score._ci) / _NORMAL_97_5
    return {**found, "bleu_signature": seqio.metrics.Text(str(scorer.get_signature()))}


@functools.cache
def _rouge() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(["rouge2", "rougeL"])


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F measure of ROUGE-2 and ROUGE-L by rouge-score, without stemming, in percent.

    A reference of one word has no bigram, and so a ROUGE-2 of 0 whatever is predicted.

    >>> rouge(["the cat sat down"], ["the cat sat up"])
    {'rouge2': 66.66666666666666, 'rougeL': 75.0}
    """
    scores = [_rouge().score(t, p) for t, p in zip(targets, predictions, strict=True)]
    return {k: 100 * sum(score[k].fmeasure for score in scores) / max(len(scores), 1) for k in ("rouge2", "rougeL")}


BY_NAME: dict[str, Metric] = {"accuracy": accuracy, "exact_match": exact_match, "bleu": bleu, "rouge": rouge}
