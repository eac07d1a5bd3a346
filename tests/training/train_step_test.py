"""promot_t5x.training.train_step: one program for all rates and seeds, with the numbers of a program of its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.runtime import between_runs
from promot_t5x.training import optimizers, train_step
from tests.training import tiny

MODEL = EncoderDecoderModel(tiny.ONE_LAYER)


def _three_steps(optimizer, seed=0, num_microbatches=1):
    """(the step, what is left of the trainable leaves and the optimizer's state after three steps)"""
    _, staged, state, frozen = tiny.start(MODEL, "prompt_tuning", optimizer)
    step = train_step.make_step(MODEL, staged, seed, num_microbatches)
    trainable, opt_state = state.trainable, state.opt_state
    for number in range(3):
        trainable, opt_state, _ = step(trainable, opt_state, frozen, tiny.batch(number, rows=4), jnp.int32(number))
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves((trainable, opt_state))]


@pytest.mark.parametrize(
    "make",
    [
        optimizers.adam,
        optimizers.adafactor,
        functools.partial(optimizers.adafactor, multiply_by_parameter_scale=False, weight_decay_rate=1e-5),
    ],
)
def test_rate_and_seed_are_arguments_of_one_program(make):
    """The oracle is the program of optax's transformation with the rate as a constant, which `named` keeps apart."""
    cases = [(1e-3, 0), (0.3, 0), (1e-3, 2**32 - 1)]
    with between_runs.keeping():
        steps, results = zip(*(_three_steps(make(rate), seed) for rate, seed in cases), strict=True)
        own, constant = _three_steps(optimizers.named("constant", make(0.3).build()))
    assert len({id(step.program) for step in steps}) == 1
    assert own.program is not steps[0].program
    assert len(results[1]) == len(constant)
    for leaf, expected in zip(results[1], constant, strict=True):
        assert leaf.tobytes() == expected.tobytes()
    for one, other in ((0, 1), (0, 2)):
        assert any(a.tobytes() != b.tobytes() for a, b in zip(results[one], results[other], strict=True))


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
