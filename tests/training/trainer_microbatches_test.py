"""promot_t5x.training.trainer: a step in microbatches makes the update of the whole batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.models import losses, parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import trainer
from tests.training import tiny
from tests.training.tiny import ONE_LAYER, U

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _uneven_batch(rows=8):
    """Targets of different lengths, weights between 0 and 1, a row without any target and one without a prompt."""
    batch, rng = tiny.batch(rows=rows), np.random.default_rng(1)
    filled = np.arange(U) < rng.integers(1, U + 1, (rows, 1))
    filled[5] = False
    batch["decoder_loss_weights"] = (filled * rng.uniform(0.2, 1, (rows, U))).astype(np.float32)
    batch["soft_prompt_ids"][2] = -1
    batch["encoder_input_tokens"][:, 3:] *= rng.integers(0, 2, (rows, 1), dtype=np.int32)
    return batch


def _one_step(model, optimizer, state, frozen, batch, num_microbatches):
    """(trainable, opt_state, metrics)"""
    step = trainer.make_step(model, optimizer, num_microbatches=num_microbatches)
    return step(state.trainable, state.opt_state, frozen, batch, jnp.int32(0))


@pytest.mark.parametrize("stage", ["prompt_tuning", "model_tuning"])
def test_microbatches_make_the_update_of_the_whole_batch(stage):
    config = dataclasses.replace(ONE_LAYER, dropout_rate=0.0)
    batch = _uneven_batch()
    weights = batch["decoder_loss_weights"]
    tokens = [float(weights[i::4].sum()) for i in range(4)]
    assert len(set(tokens)) == 4 and min(tokens) > 0 and weights.sum(axis=1).min() == 0
    rate, reference = 1e3, None
    cases = [(None, 1), (None, 2), (None, 4), (2.5, 2), ("NUM_REAL_TARGET_TOKENS", 1), ("NUM_REAL_TARGET_TOKENS", 4)]
    for factor, count in cases:
        model = EncoderDecoderModel(config, label_smoothing=0.1, loss_normalizing_factor=factor)
        before, optimizer, state, frozen = tiny.start(model, stage, optax.sgd(rate))
        trainable, _, metrics = _one_step(model, optimizer, state, frozen, batch, count)
        # At this rate the update outweighs the parameters.
        flat = parameter_names.flatten(trainable)
        updates = {name: (parameter_names.flatten(before)[name] - leaf) / rate for name, leaf in flat.items()}
        sums = np.array([metrics["sums"].loss, metrics["sums"].weight_sum, metrics["sums"].correct])
        if reference is None:  # the sum over the whole batch
            reference = updates, float(metrics["gradient_norm"]), sums
        normalizer = {None: 1.0, 2.5: 2.5}.get(factor, weights.sum())
        expected = {name: leaf / normalizer for name, leaf in reference[0].items()}
        whole, leaf = tiny.distance(updates, expected)
        assert whole < 1e-6 and leaf < 5e-6, (factor, count)
        np.testing.assert_allclose(metrics["gradient_norm"], reference[1] / normalizer, rtol=1e-6)
        np.testing.assert_allclose(sums, reference[2], rtol=1e-6)
    assert reference[1] > 0.1


class _Linear:
    """A loss whose gradient is the sum of `factor` over rows, exactly, and whose only randomness is its dropout key."""

    def loss_sum(self, params, batch, rng):
        del rng
        loss = jnp.sum(batch["factor"].astype(params["w"].dtype) * params["w"])
        return loss, losses.LossSums(*[jnp.float32(1)] * 4)

    def loss_normalizer(self, sums):
        return 1.0


def test_bfloat16_gradients_are_added_in_float32():
    """256 + 1 is 256 in bfloat16, and would stay so four times."""
    params = {"w": jnp.zeros(1, jnp.bfloat16)}
    step = trainer.make_step(_Linear(), optax.sgd(1.0), num_microbatches=5)  # pyright: ignore[reportArgumentType]
    batch = {"factor": np.array([256, 1, 1, 1, 1], np.float32)[:, None]}
    trainable, _, metrics = step(params, optax.sgd(1.0).init(params), {"w": None}, batch, jnp.int32(0))
    assert trainable["w"].dtype == jnp.bfloat16 and float(trainable["w"][0]) == -260.0
    assert float(metrics["sums"].weight_sum) == 5 and metrics["sums"].weight_sum.dtype == jnp.float32


@pytest.mark.parametrize("dropout_rate", [0.0, 0.3])
def test_each_microbatch_has_dropout_masks_of_its_own(dropout_rate):
    """Both microbatches have the same rows; the weights of one of them are 0."""
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=dropout_rate))
    _, optimizer, state, frozen = tiny.start(model, "prompt_tuning", optax.sgd(1.0))
    step = trainer.make_step(model, optimizer, num_microbatches=2)
    sums = []
    for counted in (0, 1, 0):
        batch = {name: np.repeat(rows, 2, axis=0) for name, rows in tiny.batch(rows=2).items()}
        batch["decoder_loss_weights"][1 - counted :: 2] = 0.0
        args = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
        metrics = step(*args, frozen, batch, jnp.int32(0))[2]
        sums.append((float(metrics["sums"].loss), float(metrics["gradient_norm"])))
    assert sums[0] == sums[2] and step._cache_size() == 1
    if dropout_rate:
        assert np.all(np.abs(np.divide(sums[0], sums[1]) - 1) > 1e-3)
    else:
        np.testing.assert_allclose(sums[0], sums[1], rtol=1e-6)


def test_microbatches_divide_the_batch():
    model = EncoderDecoderModel(ONE_LAYER)
    _, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
    step = trainer.make_step(model, optimizer, num_microbatches=2)
    sentence = "trainer.LoopConfig.num_microbatches is 2, which does not divide the batch of 3 rows; choose a divisor."
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(step, state.trainable, state.opt_state, frozen, tiny.batch(rows=3), jnp.int32(0))


def test_a_run_in_microbatches_compiles_its_step_once(tmp_path, monkeypatch):
    made, original = [], trainer.make_step
    monkeypatch.setattr(trainer, "make_step", lambda *args: made.append(original(*args)) or made[-1])
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    shardings = Partitioner().shardings(model.logical_axes(), model.abstract_params())
    ends = []
    for count in (1, 4):
        params = jax.device_put(tiny.random_params(model), shardings)
        _, optimizer, state, frozen = tiny.start(model, "prompt_tuning", params=params)
        config, batches = trainer.LoopConfig(3, num_microbatches=count), (tiny.batch(i, rows=4) for i in range(3))
        end = tiny.run(model, optimizer, state, frozen, tmp_path, batches, config=config, batch_size=4)
        ends.append(parameter_names.flatten(end.trainable))
    assert [step._cache_size() for step in made] == [1, 1]
    assert tiny.distance(*ends)[0] < 1e-5
