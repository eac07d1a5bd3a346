"""promot_t5x.training.train_step: one program for all rates and seeds, with the numbers of a program of its own."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.runtime import between_runs
from promot_t5x.training import optimizers, stages, train_step
from tests.training import tiny

MODEL = EncoderDecoderModel(tiny.ONE_LAYER)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        optimizers.adam,
        functools.partial(optimizers.adam, clip_norm=1.0),
        optimizers.adafactor,
        functools.partial(optimizers.adafactor, multiply_by_parameter_scale=False, weight_decay_rate=1e-5),
    ],
)
def test_a_rate_as_an_argument_makes_the_bits_of_a_constant(make, stacked):
    """The oracle is the program that has the rate as a constant."""
    name = "layers" if stacked else "layers_0"
    rng = np.random.default_rng(0)
    trees = [
        {side: {name: {"kernel": rng.normal(size=(2, 130, 140)).astype(np.float32)}} for side in ("encoder", "decoder")}
        for _ in range(3)
    ]
    stage, params, gradients = stages.stage("fine_tuning"), trees[0], trees[1:]

    def updated(staged, rate):
        @jax.jit
        def update(params, state, of_step, rate):
            updates, state = staged.update(of_step, state, params, learning_rate=rate)
            return optax.apply_updates(params, updates), state

        moved, state = params, staged.init(params)
        for of_step in gradients:
            moved, state = update(moved, state, of_step, rate)
        return moved, state

    staged = optimizers.Staged(make(0.3), stage)
    constant = updated(staged, None)
    assert staged.learning_rate == 0.3
    staged = optimizers.Staged(make(0.001), stage).with_any_rate
    assert staged == optimizers.Staged(make(0.3), stage).with_any_rate
    argument = updated(staged, 0.3)
    assert jax.tree.structure(argument) == jax.tree.structure(constant)
    for leaf, expected in zip(jax.tree.leaves(argument), jax.tree.leaves(constant), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()


def test_dropout_has_the_key_of_the_seed():
    for seed in (0, 7, 2**31, 2**32 - 1):
        key = jax.jit(jax.random.key)(np.uint32(seed))
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(seed)))


def test_what_differs_in_anything_else_has_a_program_of_its_own():
    schedule = optax.constant_schedule(0.1)

    @dataclasses.dataclass  # without a hash
    class Own:
        rate: float

        def build(self):
            return optax.sgd(self.rate)

    def program(optimizer, stage="model_tuning", **changes):
        _, staged, _, _ = tiny.start(MODEL, stage, optimizer)
        return train_step.make_step(MODEL, staged, **changes).program

    adam = optimizers.adam
    with between_runs.keeping():
        first = program(adam(0.1))
        assert program(adam(0.2), seed=3) is first and program(adam(1)) is first
        others = [program(adam(0.1, clip_norm=1.0)), program(adam(schedule)), program(adam(0.1), "fine_tuning")]
        others += [program(adam(0.1), num_microbatches=2), program(optax.sgd(0.1)), program(Own(0.1))]
        assert first not in others and len(set(map(id, others))) == len(others)
        assert program(adam(schedule)) is others[1]
    assert program(adam(0.1)) is not first
