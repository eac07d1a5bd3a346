"""Metrics from 0 to 100: accuracy, macro F1, exact match, BLEU, ROUGE; BLEU and ROUGE from their usual libraries.

A metric is a function (targets, predictions) -> {name: value}, as seqio expects. The first name is the headline. A
metric that knows its standard error also returns it, as `<name>_stderr`; notes are seqio.metrics.Text.
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
    """The percentage of predictions that equal their target, ignoring surrounding white space.

    >>> accuracy(["True", "False"], [" True", "Neither"])
    {'accuracy': 50.0}
    """
    pairs = list(zip(targets, predictions, strict=True))
    return {"accuracy": 100 * sum(t.strip() == p.strip() for t, p in pairs) / max(len(pairs), 1)}


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


def exact_match(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """The percentage of predictions that equal one of their accepted answers in SQuAD's normal form.

    Args:
      targets: the answer of each example, or all its aliases.
      predictions: one text per example.

    >>> exact_match([["The Beatles", "Beatles"], ["Paris"]], ["beatles.", "Rome"])
    {'exact_match': 50.0}
    """
    hits = 0
    for accepted, prediction in zip(targets, predictions, strict=True):
        aliases = [accepted] if isinstance(accepted, str) else accepted
        hits += normalized_answer(prediction) in {normalized_answer(alias) for alias in aliases}
    return {"exact_match": 100 * hits / max(len(predictions), 1)}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
    """Corpus BLEU by sacrebleu, with its bootstrapped standard error and signature; sentence BLEU for a single text.

    >>> values = bleu(["Hello, big world out there."], ["Hello, big world out there."])
    >>> round(values["bleu"], 6), values["bleu_signature"].textdata.split("|")[3]
    (100.0, 'tok:intl')
    """
    if not targets:
        return {"bleu": 0.0}
    is_single = len(targets) == 1  # every bootstrap sample is then the same, and a short text may have no 4-grams
    scorer = sacrebleu.BLEU(tokenize=BLEU_TOKENIZER, effective_order=is_single)
    samples = 1 if is_single else _BOOTSTRAP_SAMPLES
    score = scorer.corpus_score(list(predictions), [list(targets)], n_bootstrap=samples)
    values: dict[str, Any] = {"bleu": min(score.score, 100.0)}  # 100.00000000000004 for equal texts
    if not is_single:
        values["bleu_stderr"] = float(score._ci) / _NORMAL_97_5
    return {**values, "bleu_signature": seqio.metrics.Text(str(scorer.get_signature()))}


@functools.cache
def _rouge() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(["rouge2", "rougeL"])


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F-measure of ROUGE-2 and ROUGE-L by rouge-score, without stemming, in percent.

    A reference of one word has no bigram, so its ROUGE-2 is always 0.

    >>> rouge(["the cat sat down"], ["the cat sat up"])
    {'rouge2': 66.66666666666666, 'rougeL': 75.0}
    """
    scores = [_rouge().score(t, p) for t, p in zip(targets, predictions, strict=True)]
    return {k: 100 * sum(score[k].fmeasure for score in scores) / max(len(scores), 1) for k in ("rouge2", "rougeL")}


BY_NAME: dict[str, Metric] = {"accuracy": accuracy, "exact_match": exact_match, "bleu": bleu, "rouge": rouge}
