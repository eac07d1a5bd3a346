"""promot_t5x.evaluation.scoring on a task of bytes whose right answers are known."""

import dataclasses
import math

import jax.numpy as jnp
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import evaluation_examples
from promot_t5x.evaluation import scoring
from promot_t5x.evaluation.answering import Answer
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

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


def test_an_unknown_way_of_answering():
    with pytest.raises(ValueError, match="answering is 'guess': expected generate or rank"):
        scoring.EvaluationConfig(LENGTHS, answering="guess")
