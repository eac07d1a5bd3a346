"""promot_t5x.planning.flops against closed forms: small functions, and the training step of the real network."""

import functools

import jax
import jax.numpy as jnp
import pytest

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.planning import flops, programs
from promot_t5x.training import optimizers


def _total(function, *shapes, unknown_trips=1):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.total(flops.products(jax.make_jaxpr(function)(*arguments).jaxpr, unknown_trips=unknown_trips))


def _scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def _sum_of_scanned(x, weights, remat=False):
    def layer(x, w):
        return jnp.tanh(x @ w) @ w.T, None

    layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable) if remat else layer
    return jnp.sum(jax.lax.scan(layer, x, weights)[0])


@jax.custom_vjp
def _own_gradient(x, w):
    return x @ w


_own_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))

X, W, STACK = (3, 5), (5, 5), (7, 5, 5)
PRODUCT = 2 * 3 * 5 * 5
FUNCTIONS = {
    "a product": (lambda x, w: x @ w, (X, W), PRODUCT),
    "none": (lambda x, w: x + w[0], (X, W), 0),
    "batched": (lambda a, b: jnp.einsum("bqhk,bshk->bhqs", a, b), ((2, 3, 5, 7), (2, 4, 5, 7)), 2 * 2 * 3 * 4 * 5 * 7),
    "two contracted": (lambda a, b: jnp.einsum("bud,budv->v", a, b), ((2, 3, 5), (2, 3, 5, 7)), 2 * 2 * 3 * 5 * 7),
    "inside jit": (lambda x, w: jax.jit(lambda x: x @ w)(x), (X, W), PRODUCT),
    "scanned": (_scanned, (X, STACK), 7 * PRODUCT),
    "scanned twice": (
        lambda x, w: jax.lax.scan(lambda x, _: (_scanned(x, w), None), x, length=2)[0],
        (X, STACK),
        2 * 7 * PRODUCT,
    ),
    "the more expensive branch": (
        lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w),
        (X, W),
        2 * PRODUCT,
    ),
    # The output's gradient is there; each product has one gradient for either factor.
    "a gradient": (jax.grad(lambda x, w: jnp.sum(jnp.tanh(x @ w)), (0, 1)), (X, W), 3 * PRODUCT),
    "a gradient of the input alone": (jax.grad(lambda x, w: jnp.sum(jnp.tanh(x @ w))), (X, W), 2 * PRODUCT),
    "a custom gradient": (jax.grad(lambda x, w: jnp.sum(jnp.tanh(_own_gradient(x, w))), (0, 1)), (X, W), 3 * PRODUCT),
    "a scan's gradient": (jax.grad(_sum_of_scanned, (0, 1)), (X, STACK), 7 * 6 * PRODUCT),
    # The first product of a layer is computed again, the second one's result is not needed for any gradient.
    "a scan's gradient, rematerialised": (
        jax.grad(functools.partial(_sum_of_scanned, remat=True), (0, 1)),
        (X, STACK),
        7 * 7 * PRODUCT,
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_of_a_function(name):
    function, shapes, expected = FUNCTIONS[name]
    assert _total(function, *shapes) == expected


def test_rounds_that_are_not_in_the_program():
    def function(x, w):
        return jax.lax.while_loop(lambda s: (s[1] @ w)[0, 0] > 0, lambda s: (s[0] + 1, _scanned(s[1], w[None])), (0, x))

    assert _total(function, X, W) == 2 * PRODUCT
    assert _total(function, X, W, unknown_trips=10) == 10 * 2 * PRODUCT


def test_operations_times():
    jaxpr = jax.make_jaxpr(_scanned)(jnp.ones(X), jnp.ones(STACK)).jaxpr
    assert list(flops.products(jaxpr, times=4)) == [flops.Product(4 * 7 * PRODUCT, X)]


# Gradients of weights


def _mlp(params, x):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ params["wi"]) @ params["wo"]))


def _gradient_jaxpr(argument, rows, function=_mlp):
    params = {"wi": jnp.ones((5, 7)), "wo": jnp.ones((7, 4))}
    return jax.make_jaxpr(jax.grad(function, argument))(params, jnp.ones((rows, 5))).jaxpr


def test_weight_gradients_of_an_mlp():
    def gradient_flops(argument):
        return flops.weight_gradient_flops(_gradient_jaxpr(argument, 3), _gradient_jaxpr(argument, 6))

    assert gradient_flops(0) == gradient_flops((0, 1)) == 2 * 3 * (5 * 7 + 7 * 4)
    assert gradient_flops(1) == 0


def test_weight_gradients_of_different_programs():
    with pytest.raises(ValueError, match="argument 2 is shorter than argument 1"):
        flops.weight_gradient_flops(_gradient_jaxpr(0, 3), _gradient_jaxpr(1, 6))


# The real network, of sizes that no product confuses

B, T, U, P, D, H, K, F, V = 6, 5, 4, 7, 11, 2, 13, 17, 37
S, LAYERS = P + T, (2, 1)
CONFIG = T5Config(V, D, H, K, F, *LAYERS, prompt_length=P)
PROJECTION = D * H * K  # query, key, value and output alike
MLP = 2 * D * F + F * D


@functools.cache
def _step(stage, num_microbatches=1, **changes):
    model = EncoderDecoderModel(T5Config(**{**vars(CONFIG), **changes}))
    lengths, partitioner = {"inputs": T, "targets": U}, Partitioner(devices=tuple(jax.devices()[:1]))
    training = programs.Training(model, stage, optimizers.adafactor(1e-3), lengths, B, partitioner, num_microbatches)
    traced = programs.training_step(training)
    jaxpr = traced.traced.jaxpr.jaxpr
    return flops.total(flops.products(jaxpr)), flops.weight_gradient_flops(jaxpr, traced.larger)


def _weights(encoder_length, choices=1):
    """Operations of all products of activations with weights but the logits', once through."""
    encoder = LAYERS[0] * encoder_length * (4 * PROJECTION + MLP)
    decoder = LAYERS[1] * (choices * U * (4 * PROJECTION + 2 * PROJECTION + MLP) + encoder_length * 2 * PROJECTION)
    return 2 * B * (encoder + decoder)


def _attention(encoder_length, choices=1):
    """Operations of all products of activations with each other, once through."""
    pairs = LAYERS[0] * encoder_length**2 + LAYERS[1] * choices * (U * U + U * encoder_length)
    return 2 * B * H * K * 2 * pairs


LOGITS = 2 * B * U * D * V
LAST = 2 * B * F * D * (LAYERS[0] * S + LAYERS[1] * U)  # the product that ends a layer


@pytest.mark.parametrize("scan_layers", [False, True], ids=["looped", "scanned"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_weight_gradients_of_the_stages(scan_layers, remat):
    _, prompt_tuning = _step("prompt_tuning", scan_layers=scan_layers, remat=remat)
    assert prompt_tuning == 0
    _, model_tuning = _step("model_tuning", scan_layers=scan_layers, remat=remat)
    assert model_tuning == _weights(S) + LOGITS


def test_weight_gradients_without_a_prompt_in_parts_and_of_both():
    assert _step("fine_tuning", scan_layers=True)[1] == _weights(T) + LOGITS
    assert _step("model_tuning", num_microbatches=3, scan_layers=True)[1] == _weights(S) + LOGITS
    assert _step("prompt_tuning", num_microbatches=3, scan_layers=True)[1] == 0
    assert _step("joint_tuning", scan_layers=True)[1] == _weights(S) + LOGITS


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_of_a_step(remat):
    """Forward, backward for activations, and for weights where these train; the logits' chunks are computed again."""
    again = _weights(S) + _attention(S) - LAST if remat == "full" else 0
    flops_in_all, _ = _step("model_tuning", scan_layers=True, remat=remat)
    assert flops_in_all == 3 * _weights(S) + 3 * _attention(S) + 4 * LOGITS + again
    flops_in_all, _ = _step("prompt_tuning", scan_layers=True, remat=remat)
    assert flops_in_all == 2 * _weights(S) + 3 * _attention(S) + 3 * LOGITS + again


def test_operations_of_scoring_four_choices_for_each_input():
    model, partitioner = EncoderDecoderModel(CONFIG), Partitioner(devices=tuple(jax.devices()[:1]))
    evaluation = programs.Answering(model, {"inputs": T, "targets": U}, B, partitioner)
    jaxpr = programs.scoring(evaluation).traced.jaxpr.jaxpr
    assert flops.total(flops.products(jaxpr)) == _weights(T, 4) + _attention(T, 4) + 4 * LOGITS
