"""Optimizers as settings; what they compute is tested with the stages that they train."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.training import optimizers, stages


def test_settings_are_printable_values():
    text = "adafactor(learning_rate=0.2, multiply_by_parameter_scale=True, weight_decay_rate=1e-05, decay_rate=0.8)"
    assert repr(optimizers.adafactor(0.2, weight_decay_rate=1e-5)) == text
    assert optimizers.adam(0.1) == optimizers.adam(0.1, b1=0.9) != optimizers.adam(0.1, b1=0.8)
    assert repr(optimizers.named("plain", optax.sgd(0.1))) == "named(name='plain')"


@pytest.mark.parametrize("wrap", [lambda transform: transform, lambda transform: optimizers.named("sgd", transform)])
def test_a_bare_transformation_is_an_optimizer(wrap):
    transform = optimizers.built(wrap(optax.sgd(0.5)))
    params = {"w": jnp.array([1.0, 2.0])}
    updates, _ = transform.update({"w": jnp.array([4.0, -2.0])}, transform.init(params), params)
    np.testing.assert_array_equal(updates["w"], [-2.0, 1.0])


def test_schedules_are_followed():
    transform = optimizers.adam(optax.piecewise_constant_schedule(0.1, {1: 0.0})).build()
    params = {"w": jnp.zeros(1)}
    state = transform.init(params)
    steps = []
    for _ in range(2):
        updates, state = transform.update({"w": jnp.ones(1)}, state, params)
        steps.append(float(updates["w"][0]))
    np.testing.assert_allclose(steps, [-0.1, 0.0], rtol=1e-5)


def test_a_parameter_of_zeros_moves_as_if_its_scale_were_a_thousandth():
    """T5X's least scale is 1e-3. Adafactor's first update is the gradient's sign."""
    params = {"scale": jnp.zeros(3), "small": jnp.full(3, 2e-3)}
    transform = optimizers.adafactor(0.5).build()
    updates, _ = transform.update(
        {"scale": jnp.array([3.0, -4.0, 5.0]), "small": jnp.ones(3)}, transform.init(params), params
    )
    np.testing.assert_allclose(updates["scale"], [-0.5e-3, 0.5e-3, -0.5e-3], rtol=1e-5)
    np.testing.assert_allclose(updates["small"], [-1e-3] * 3, rtol=1e-5)


@pytest.mark.parametrize("learning_rate", [1e-3, 0.3, 30.0])
def test_weight_decay_is_not_scaled_by_the_learning_rate(learning_rate):
    """Prompts of Lester et al. lose 1e-5 of their value a step at a rate of 0.3, as T5X's Adafactor does it."""
    params = {"prompt": jnp.array([2.0, -4.0])}
    transform = optimizers.adafactor(learning_rate, weight_decay_rate=1e-5).build()
    updates, _ = transform.update({"prompt": jnp.zeros(2)}, transform.init(params), params)
    np.testing.assert_allclose(updates["prompt"], [-2e-5, 4e-5], rtol=1e-6)


@pytest.mark.parametrize("rate", [0, 0.0, -1e-3, float("inf"), float("nan")])
@pytest.mark.parametrize("optimizer", [optimizers.adafactor, optimizers.adam])
def test_a_constant_rate_with_which_nothing_is_learnt(optimizer, rate):
    with pytest.raises(ValueError, match=rf"^{optimizer.__name__}.learning_rate is {rate!r}: expected a positive"):
        optimizer(rate)


@pytest.mark.parametrize("base", [optimizers.adafactor, optimizers.adam])
@pytest.mark.parametrize("takes_a_rate", [False, True])
def test_a_subclass_that_builds_in_its_own_way_keeps_its_rate(base, takes_a_rate):
    """One with `build(self)` raised TypeError; one that read its learning_rate trained with a rate of 1."""

    @dataclasses.dataclass(frozen=True)
    class Own(base):
        def build(self, *learning_rate):
            assert takes_a_rate or not learning_rate, "as `build(self)` would raise"
            return optax.sgd(self.learning_rate)

    staged = optimizers.Staged(Own(0.25), stages.stage("fine_tuning"))
    params = {"encoder": {"w": jnp.ones((2, 2))}}
    assert staged.learning_rate is None and staged.with_any_rate == staged
    for rate in (None, 0.5):
        updates, _ = staged.with_any_rate.update(params, staged.init(params), params, learning_rate=rate)
        np.testing.assert_array_equal(updates["encoder"]["w"], np.full((2, 2), -0.25))
