"""Losses against closed forms, numpy written out with one-hot targets, finite differences, and T5X's own numbers."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.models import chunked_logits, losses
from promot_t5x.models.chunked_logits import token_statistics


def _batch(seed=0, shape=(3, 5, 11)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape).astype(np.float32) * 3
    targets = rng.integers(0, shape[-1], size=shape[:-1])
    weights = (rng.random(shape[:-1]) < 0.7).astype(np.float32)
    return logits, targets, weights


def _statistics(logits, targets):
    """Of given logits, which an identity matrix leaves as they are."""
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    return token_statistics(logits, jnp.eye(logits.shape[-1], dtype=logits.dtype), targets)


def _cross_entropy(logits, targets, weights, **terms):
    vocab_size = logits.shape[-1]
    return losses.cross_entropy(_statistics(logits, targets), jnp.asarray(weights), vocab_size=vocab_size, **terms)


def _sequence_scores(logits, targets, weights):
    return losses.sequence_scores(_statistics(logits, targets), jnp.asarray(weights))


def _numpy_sums(logits, targets, weights, smoothing, z_loss):
    """The definition in float64, with explicit target distributions."""
    logits, weights = logits.astype(np.float64), weights.astype(np.float64)
    vocab_size = logits.shape[-1]
    log_z = np.log(np.exp(logits).sum(-1))
    one_hot = np.eye(vocab_size)[targets]
    q = np.where(one_hot == 1, 1 - smoothing, smoothing / (vocab_size - 1))
    cross = -(q * (logits - log_z[..., None])).sum(-1)
    entropy = -(q * np.log(np.where(q > 0, q, 1))).sum(-1)
    z = z_loss * log_z**2
    hits = logits.argmax(-1) == targets
    return ((cross - entropy + z) * weights).sum(), (z * weights).sum(), weights.sum(), (hits * weights).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
def test_cross_entropy_matches_numpy(smoothing, z_loss):
    batch = _batch()
    sums = _cross_entropy(*batch, label_smoothing=smoothing, z_loss=z_loss)
    np.testing.assert_allclose(np.array(sums), _numpy_sums(*batch, smoothing, z_loss), rtol=1e-5)


def test_uniform_logits_cost_log_vocabulary():
    sums = _cross_entropy(jnp.zeros((2, 3, 7)), jnp.ones((2, 3), int), jnp.ones((2, 3)), z_loss=0.5)
    np.testing.assert_allclose(sums.loss, 6 * (np.log(7) + 0.5 * np.log(7) ** 2), rtol=1e-6)
    np.testing.assert_allclose(sums.z_loss, 6 * 0.5 * np.log(7) ** 2, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_perfect_prediction_costs_nothing(smoothing):
    targets = jnp.array([[2, 0, 4]])
    q = jnp.where(jax.nn.one_hot(targets, 6) == 1, 1 - smoothing, max(smoothing / 5, 1e-30))
    sums = _cross_entropy(jnp.log(q), targets, jnp.ones((1, 3)), label_smoothing=smoothing)
    np.testing.assert_allclose(sums.loss, 0.0, atol=1e-6)
    assert sums.correct == 3


def test_weights_scale_tokens_and_padding_is_ignored():
    logits, targets, _ = _batch(1)
    weights = np.zeros(targets.shape, np.float32)
    weights[1, 2], weights[2, 0] = 2.0, 0.5
    changed = logits.copy()
    changed[weights == 0] += 5.0
    for smoothing in (0.0, 0.1):
        sums = _cross_entropy(changed, targets, weights, label_smoothing=smoothing, z_loss=0.1)
        np.testing.assert_allclose(np.array(sums), _numpy_sums(logits, targets, weights, smoothing, 0.1), rtol=1e-5)


def test_gradient_is_softmax_minus_smoothed_targets_scaled_by_the_z_loss():
    logits, targets, weights = _batch(2)
    smoothing, z_loss = 0.1, 0.05
    gradient = jax.grad(lambda x: _cross_entropy(x, targets, weights, label_smoothing=smoothing, z_loss=z_loss).loss)(
        jnp.asarray(logits)
    )
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    p = np.exp(logits - log_z)
    q = np.where(np.eye(logits.shape[-1])[targets] == 1, 1 - smoothing, smoothing / (logits.shape[-1] - 1))
    expected = ((1 + 2 * z_loss * log_z) * p - q) * weights[..., None]
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_z_loss_gradient_matches_finite_differences():
    logits, targets, weights = _batch(3, (1, 2, 4))
    weights[:] = 1.0
    gradient = jax.grad(lambda x: _cross_entropy(x, targets, weights, z_loss=0.3).z_loss)(jnp.asarray(logits))
    eps = 1e-6
    for index in np.ndindex(logits.shape):
        up, down = logits.astype(np.float64), logits.astype(np.float64)
        up[index] += eps
        down[index] -= eps
        difference = _numpy_sums(up, targets, weights, 0.0, 0.3)[1] - _numpy_sums(down, targets, weights, 0.0, 0.3)[1]
        np.testing.assert_allclose(gradient[index], difference / (2 * eps), rtol=1e-4, atol=1e-6)


def test_arithmetic_is_float32_for_bfloat16_logits():
    logits, targets, weights = _batch(4, (2, 4, 300))
    rounded = jnp.asarray(logits, jnp.bfloat16)
    sums = _cross_entropy(rounded, targets, weights, label_smoothing=0.1, z_loss=1e-2)
    expected = _numpy_sums(np.asarray(rounded, np.float32), targets, weights, 0.1, 1e-2)
    assert all(x.dtype == jnp.float32 for x in sums)
    np.testing.assert_allclose(np.array(sums), expected, rtol=1e-5)
    assert _sequence_scores(rounded, targets, weights).dtype == jnp.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_neither_logits_nor_one_hot_rows_of_the_whole_vocabulary(smoothing, monkeypatch):
    """No array of the program has as many elements as the logits, which one-hot targets would have too."""
    monkeypatch.setattr(chunked_logits, "chunk_width", lambda words: 20)
    rng = np.random.default_rng(5)
    hidden, matrix = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(4, 110)).astype(np.float32)
    targets, weights = rng.integers(0, 110, (3, 5)), np.ones((3, 5), np.float32)

    def loss(hidden, matrix):
        statistics = token_statistics(hidden, matrix, targets)
        terms = dict(vocab_size=110, label_smoothing=smoothing, z_loss=1e-4)
        return losses.cross_entropy(statistics, weights, **terms).loss, losses.sequence_scores(statistics, weights)

    program = str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, matrix))
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"[a-z]\d*\[([\d,]+)\]", program)]
    assert 3 * 5 * 20 <= max(sizes) < 3 * 5 * 110


def test_a_hit_is_a_target_that_no_logit_exceeds():
    logits = jnp.array([[[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [3.0, 3.0, 2.0], [0.0, 0.0, 0.0]]])
    targets, weights = jnp.array([[1, 2, 1, 0]]), jnp.array([[1.0, 10.0, 100.0, 0.0]])
    assert _cross_entropy(logits, targets, weights).correct == 101


def test_sequence_scores_are_sums_of_log_likelihoods():
    logits, targets, weights = _batch(6)
    scores = _sequence_scores(logits, targets, weights)
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    token_log_probs = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores, (token_log_probs * weights).sum(-1), rtol=1e-5)


def test_bad_label_smoothing_is_named():
    with pytest.raises(ValueError, match="label_smoothing is 1.5"):
        _cross_entropy(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int), jnp.ones((1, 1)), label_smoothing=1.5)


@pytest.mark.parametrize("kind", ["t5", "scalable_t5"])
def test_t5x_own_loss_and_scores(testdata, kind):
    arrays = np.load(testdata / "t5x_tiny" / f"{kind}_batch_logits_loss.npz")
    info = json.loads((testdata / "t5x_tiny" / f"{kind}_info.json").read_text())
    batch = arrays["logits"], arrays["decoder_target_tokens"], arrays["decoder_loss_weights"]
    sums = _cross_entropy(*batch, z_loss=1e-4)
    np.testing.assert_allclose(sums.loss, arrays["loss"], rtol=1e-6)
    np.testing.assert_allclose(sums.z_loss, info["loss_metrics"]["z_loss"], rtol=1e-5)
    np.testing.assert_allclose(_sequence_scores(*batch), arrays["scores"], rtol=1e-5)
