"""promot_t5x.evaluation on a task of bytes whose right answers are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x import evaluation, examples
from promot_t5x.architecture import T5Config
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner

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
class _Oracle:
    """Answers with the targets, which it is given, but for rows whose input has `wrong_length` tokens."""

    wrong_length: int = 0
    config: T5Config = CONFIG

    def predict_batch(self, params, batch, rng):
        del params, rng
        wrong_B = jnp.sum(batch["encoder_input_tokens"] != 0, axis=1) == self.wrong_length
        return jnp.where(wrong_B[:, None], 70, batch["decoder_target_tokens"])


def _evaluate(model, params, batch_size=4, limit=None, prompt_id=None, task="evaluation_test", split="test"):
    config = evaluation.EvaluationConfig(LENGTHS, batch_size, limit)
    return evaluation.evaluate(model, params, task, split, config, prompt_id=prompt_id, partitioner=ONE)


def test_an_oracle_scores_everything():
    outcome = _evaluate(_Oracle(), {})
    assert (outcome.metric, outcome.value, outcome.metrics) == ("percent", 100.0, {"percent": 100.0, "count": 10.0})
    assert outcome.predictions == outcome.targets == [f"{n}AB" for n in range(10)]
    assert outcome.inputs == TEXTS and outcome.truncated == 0
    assert (outcome.task_name, outcome.split) == ("evaluation_test", "test")


def test_wrong_answers_cost_their_share():
    # Inputs of n % 4 == 1 ("abab" + digit + end of sequence) have six tokens: 1, 5, 9.
    outcome = _evaluate(_Oracle(wrong_length=6), {})
    assert outcome.value == 70.0
    assert [i for i, (a, b) in enumerate(zip(outcome.targets, outcome.predictions, strict=True)) if a != b] == [1, 5, 9]
    assert _evaluate(_Oracle(wrong_length=6), {}, limit=3).metrics["count"] == 3.0


@pytest.fixture(scope="module")
def network():
    model = EncoderDecoderModel(CONFIG)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), model.abstract_params())


def test_predictions_do_not_depend_on_the_batch_size(network):
    model, params = network
    rows = examples.eval_examples("evaluation_test", LENGTHS, "test")

    def predict(batch_size):
        return evaluation.predict_tokens(model, params, rows, prompt_id=0, batch_size=batch_size, partitioner=ONE)

    expected = predict(1)
    assert expected.shape == (10, 6) and len({row.tobytes() for row in expected}) > 1
    for batch_size in (7, 16):
        np.testing.assert_array_equal(predict(batch_size), expected)


def test_the_prompt_is_attached_or_removed(network):
    model, params = network
    rows = examples.eval_examples("evaluation_test", LENGTHS, "test")

    def predict(params, prompt_id):
        return evaluation.predict_tokens(model, params, rows, prompt_id=prompt_id, batch_size=4, partitioner=ONE)

    other = {**params, "soft_prompt": {"embedding": -3.0 * params["soft_prompt"]["embedding"]}}
    plain = {k: v for k, v in params.items() if k != "soft_prompt"}
    assert np.any(predict(params, 0) != predict(other, 0))
    np.testing.assert_array_equal(predict(params, None), predict(other, None))
    np.testing.assert_array_equal(predict(params, None), predict(plain, None))
    with pytest.raises(ValueError, match="the checkpoint has none"):
        predict(plain, 0)
    for prompt_id in (1, -1):
        with pytest.raises(ValueError, match=f"prompt {prompt_id} was to be attached, but the checkpoint has 1"):
            predict(params, prompt_id)


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
    rows = examples.eval_examples("evaluation_test", LENGTHS, "test")
    wrong = {**rows.features, "decoder_target_tokens": rows.features["decoder_target_tokens"] + 300}
    with pytest.raises(ValueError, match="The targets have the token .*, but the network's vocabulary has 259"):
        evaluation.predict_tokens(
            _Oracle(), {}, dataclasses.replace(rows, features=wrong), prompt_id=None, batch_size=4, partitioner=ONE
        )
