"""promot_t5x.evaluation.scoring on a task of bytes whose right answers are known."""

import dataclasses
import functools
import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import evaluation_examples
from promot_t5x.evaluation import scoring
from promot_t5x.evaluation.answering import Answer
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.tasks import jsonl, metrics, toy_world

TEXTS = [f"{'ab' * (n % 4 + 1)}{n}" for n in range(10)]
LENGTHS = {"inputs": 12, "targets": 6}
ONE = Partitioner()
CONFIG = T5Config(259, 8, 2, 4, 16, 1, 1, prompt_length=3)


def _hits(targets, predictions):
    hits = sum(a == b for a, b in zip(targets, predictions, strict=True))
    return {"percent": 100.0 * hits / len(targets), "count": len(targets)}


@pytest.fixture(scope="module", autouse=True)
def _tasks():
    rows = {"inputs": TEXTS, "targets": [text[-1].upper() + text[:2] for text in TEXTS]}
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), splits=("test",)
    )
    features = {k: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for k in LENGTHS}
    preprocessors = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    common = {"source": source, "output_features": features, "preprocessors": preprocessors}

    def upper(output, example, is_target):
        assert "inputs_pretokenized" in example
        return output.upper()

    seqio.TaskRegistry.add("evaluation_test", **common, metric_fns=[_hits], postprocess_fn=upper)
    seqio.TaskRegistry.add("evaluation_test_no_metric", **common)
    yield
    for name in ("evaluation_test", "evaluation_test_no_metric"):
        seqio.TaskRegistry.remove(name)


@dataclasses.dataclass(frozen=True)
class _Oracle(EncoderDecoderModel):
    """Answers with the targets, which it has, except for rows whose input has `wrong_length` tokens."""

    config: T5Config = CONFIG
    wrong_length: int = 0

    def predict_batch(self, params, batch, rng):
        del params, rng
        wrong_B = jnp.sum(batch["encoder_input_tokens"] != 0, axis=1) == self.wrong_length
        return jnp.where(wrong_B[:, None], 70, batch["decoder_target_tokens"])


def _evaluate(model, params, batch_size=4, limit=None, prompt_id=None, task="evaluation_test", split="test"):
    config = scoring.EvaluationConfig(LENGTHS, batch_size, limit)
    return scoring.evaluate(model, params, task, split, config, prompt_id=prompt_id, partitioner=ONE)


def test_an_oracle_scores_everything():
    outcome = _evaluate(_Oracle(), {})
    assert (outcome.metric, outcome.value, outcome.metrics) == ("percent", 100.0, {"percent": 100.0, "count": 10.0})
    assert outcome.predictions == [f"{n}AB" for n in range(10)]


def test_wrong_answers_cost_their_share():
    # Inputs of n % 4 == 1 ("abab" + digit + end of sequence) have six tokens: 1, 5, 9.
    outcome = _evaluate(_Oracle(wrong_length=6), {})
    assert outcome.value == 70.0
    examples = evaluation_examples.evaluation_examples("evaluation_test", LENGTHS, "test")
    alone = scoring.example_scores(examples, outcome)
    assert alone == [0.0 if n in (1, 5, 9) else 100.0 for n in range(10)]
    expected = 100 * math.sqrt(0.7 * 0.3 / 9)  # of a share: sqrt(p (1 - p) / (n - 1))
    assert scoring.standard_error(outcome, alone) == pytest.approx(expected)
    assert _evaluate(_Oracle(wrong_length=6), {}, limit=3).metrics["count"] == 3.0


def test_errors():
    with pytest.raises(ValueError, match="evaluation_test_no_metric has no metric"):
        _evaluate(_Oracle(), {}, task="evaluation_test_no_metric")
    with pytest.raises(ValueError, match="'evaluation_tset' is not a registered"):
        _evaluate(_Oracle(), {}, task="evaluation_tset")
    with pytest.raises(ValueError, match="no split 'train'"):
        _evaluate(_Oracle(), {}, split="train")
    small = _Oracle(config=dataclasses.replace(CONFIG, vocab_size=100))
    with pytest.raises(ValueError, match="The inputs have the token 10., but the network's vocabulary has 100"):
        _evaluate(small, {})


def _score(metric_fns, outputs=("1", "2", "3", "4")):
    """Scores outputs of a task whose targets are 1, 2, 3, 5; with its error and the score of each example."""
    rows = {"inputs": ["a"] * 4, "targets": ["1", "2", "3", "5"]}
    source = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), ["test"])
    features = {k: seqio.Feature(seqio.ByteVocabulary()) for k in LENGTHS}
    preprocessors = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    seqio.TaskRegistry.add("evaluation_score", source, features, preprocessors=preprocessors, metric_fns=metric_fns)
    examples = evaluation_examples.evaluation_examples("evaluation_score", LENGTHS, "test")
    outcome = scoring.score(examples, [Answer(output) for output in outputs])
    alone = scoring.example_scores(examples, outcome)
    seqio.TaskRegistry.remove("evaluation_score")
    return outcome, scoring.standard_error(outcome, alone), alone


def test_a_metric_may_return_its_own_error_and_text():
    def corpus(targets, predictions):
        values = {"corpus": seqio.metrics.Scalar(40.0), "corpus_stderr": 2.5, "signature": seqio.metrics.Text("v1")}
        return values | {"examples": len(targets)}

    outcome, stderr, _ = _score([corpus, lambda targets, predictions: {"other": 1}])
    assert (outcome.metric, outcome.value, stderr) == ("corpus", 40.0, 2.5)
    assert outcome.metrics == {"corpus": 40.0, "examples": 4.0, "other": 1.0} and outcome.notes == {"signature": "v1"}


def test_a_metric_that_is_no_mean_over_examples_has_no_analytic_error():
    def spread(targets, predictions):
        return {"spread": {4: 50.0}[len(targets)]}  # KeyError for a single example

    assert _score([spread])[1:] == (None, [None] * 4)
    assert _score([lambda targets, predictions: {"m": 5.0 if len(targets) > 1 else math.nan}])[1:] == (None, [None] * 4)
    outcome, stderr, alone = _score([lambda targets, predictions: {"largest": 10.0 * max(map(int, predictions))}])
    assert (outcome.value, stderr, alone) == (40.0, None, [10.0, 20.0, 30.0, 40.0])


def _plain_exact_match(targets, predictions):
    """As somebody else's metric, which does not state the examples' values."""
    return {"exact_match": float(metrics.exact_match(targets, predictions)["exact_match"])}


def test_a_mean_over_examples_is_computed_once():
    """The metric that states the examples' values is not called again for each of them, and gives the same numbers."""
    calls = []

    def counted(targets, predictions):
        calls.append(len(targets))
        return metrics.exact_match(targets, predictions)

    stated = _score([counted])
    assert calls == [4]
    plain = _score([_plain_exact_match])
    assert plain[0].of_examples is None and stated[0].of_examples == [100.0, 100.0, 100.0, 0.0]
    assert (stated[0].value, *stated[1:]) == (plain[0].value, *plain[1:])
    part = _score([lambda targets, predictions: metrics.accuracy(targets[1:], predictions[1:])])
    assert part[0].value == pytest.approx(200 / 3) and part[0].of_examples is None, "a mean over others"


def test_an_unknown_way_of_answering():
    with pytest.raises(ValueError, match="answering is 'guess': expected generate or rank"):
        scoring.EvaluationConfig(LENGTHS, answering="guess")


@dataclasses.dataclass(frozen=True)
class _PrefersSmallIds(EncoderDecoderModel):
    """Scores a choice by the ids of its tokens, of which the unknown one, 2, is the smallest word."""

    config: T5Config = CONFIG

    def score_batch(self, params, batch):
        del params
        return -jnp.sum(batch["decoder_target_tokens"], axis=1).astype(jnp.float32)


def _ranked(tmp_path, rows, metric="accuracy", length_normalized=False):
    """Outcome, scores of single examples and number of those with equal choices; red and cat are the known words."""
    lines = [{"input": "cat", "target": target, "choices": choices} for target, choices in rows]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    vocabulary = toy_world.WordVocabulary(["red", "cat"])
    task = jsonl.jsonl_task(
        "ties",
        str(tmp_path),
        vocabulary=vocabulary,
        splits={"test": "test.jsonl"},
        choices_column="choices",
        metric=metric,
    )
    config = scoring.EvaluationConfig(LENGTHS, 4, answering="rank", length_normalized=length_normalized)
    outcome = scoring.evaluate(_PrefersSmallIds(), {}, task, "test", config, prompt_id=None, partitioner=ONE)
    examples = evaluation_examples.evaluation_examples(task, LENGTHS, "test")
    return outcome, scoring.example_scores(examples, outcome), examples.cuts["equal_choices"]


@pytest.mark.parametrize("length_normalized", [False, True])
@pytest.mark.parametrize("order", ["{}", "}{"])
def test_choices_that_the_vocabulary_cannot_tell_apart_score_as_if_drawn(tmp_path, order, length_normalized):
    """Taking the first one, `{` scored 100 % or 0 % by the order of the choices."""
    outcome, alone, equal = _ranked(tmp_path, [("{", [*order])] * 3, length_normalized=length_normalized)
    assert (outcome.value, alone, equal) == (50.0, [50.0] * 3, 3)
    assert scoring.standard_error(outcome, alone) == 0.0, "the metric is a mean over examples, and they do not differ"


def test_only_the_best_choices_are_drawn_from(tmp_path):
    rows = [
        ("{", ["red", "{", "cat", "}"]),  # two of four are best, one of them right
        ("cat", ["red", "{", "cat", "}"]),  # two are best, both wrong
        ("red", ["cat", "red"]),
        ("[", ["(", "[", "<"]),
        ("red", ["cat cat", "red", "{ {", "} {"]),  # equal ones that are not the best
    ]
    outcome, alone, equal = _ranked(tmp_path, rows)
    assert alone == pytest.approx([50.0, 0.0, 100.0, 100 / 3, 100.0]) and equal == 4
    assert outcome.value == pytest.approx(sum(alone) / 5, rel=1e-12)
    assert outcome.predictions == ["{", "{", "red", "(", "red"]


def test_ties_of_a_mean_are_expected_without_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring.ties, "drawn", lambda *_: pytest.fail("the metric is computed for every draw"))
    rows = [("{", ["{", "}"]), ("red", ["red", "cat"]), ("(", ["{", "}", "("]), ("cat", ["{", "}", "cat"])]
    outcome, alone, _ = _ranked(tmp_path, rows, metric="exact_match")
    monkeypatch.undo()
    seqio.TaskRegistry.remove("ties")
    plain, plain_alone, _ = _ranked(tmp_path, rows, metric=_plain_exact_match)
    assert outcome.value == pytest.approx(plain.value, rel=1e-12) and alone == pytest.approx(plain_alone, rel=1e-12)


def test_other_metrics_than_means_are_expected_values_too(tmp_path):
    """Against the mean over all ways to break the ties."""
    rows = [("{", ["{", "}"]), ("}", ["{", "}"]), ("red", ["red", "cat"]), ("(", ["{", "}", "("])]
    f1 = functools.partial(metrics.macro_f1, labels=("{", "}", "red", "("))
    outcome, alone, _ = _ranked(tmp_path, rows, metric=f1)
    targets = [target for target, _ in rows]
    ways = itertools.product(["{", "}"], ["{", "}"], ["red"], ["{", "}", "("])
    expected = np.mean([f1(targets, way)["macro_f1"] for way in ways])
    assert outcome.value == pytest.approx(expected, abs=5)
    assert scoring.standard_error(outcome, alone) is None
