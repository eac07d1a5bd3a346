"""promot_t5x.training.adafactor_in_slabs against optax's two transformations, and what the slabs save: memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import adafactor_in_slabs, optimizers, stages, train_step

LARGE = {
    "slabs that divide": (4096, 1024),
    "a last slab that is smaller": (9001, 500),
    "cut along the other axis": (500, 9001),
    "square": (2100, 2100),
}


def _gradient(shape, seed, dtype=jnp.float32):
    # Rows and columns of very different sizes, as words of a vocabulary have.
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=(shape[0], 1))) * np.exp(rng.normal(size=(1, shape[1])))
    return jnp.asarray(rng.normal(size=shape) * sizes, dtype)


def _two_updates(transform, leaf, scale=1.0):
    """(updates, state) of the second of two updates, jitted on the mesh of one CPU."""
    with Partitioner(devices=(jax.devices()[0],)).context():
        state, update = transform.init(leaf), jax.jit(transform.update)
        _, state = update(scale * _gradient(leaf.shape, 1, leaf.dtype), state, leaf)
        return update(scale * _gradient(leaf.shape, 2, leaf.dtype), state, leaf)


@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("threshold", [1.5, 0.25])
def test_large_matrices_are_updated_as_by_optax(shape, threshold):
    assert shape[0] * shape[1] >= adafactor_in_slabs._LARGE
    leaf = jnp.zeros(shape)
    updates, state = _two_updates(adafactor_in_slabs.scale_by_clipped_factored_rms(threshold=threshold), leaf)
    scaled, expected_state = _two_updates(optax.scale_by_factored_rms(), leaf)
    expected, _ = optax.clip_by_block_rms(threshold).update(scaled, optax.EmptyState())
    assert 0.25 < float(jnp.sqrt(jnp.mean(jnp.square(scaled)))) < 1.5  # one threshold clips, the other does not
    np.testing.assert_allclose(updates, expected, rtol=2e-5, atol=1e-7)
    for name in ("v_row", "v_col", "v", "count"):
        np.testing.assert_allclose(getattr(state, name), getattr(expected_state, name), rtol=2e-5, err_msg=name)


def test_a_large_matrix_in_bfloat16_keeps_its_dtype():
    leaf = jnp.zeros((9001, 500), jnp.bfloat16)
    updates, state = _two_updates(adafactor_in_slabs.scale_by_clipped_factored_rms(), leaf)
    expected, expected_state = _two_updates(
        optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)), leaf
    )
    assert updates.dtype == expected.dtype and state.v_row.dtype == expected_state[0].v_row.dtype
    np.testing.assert_allclose(updates.astype(np.float32), expected.astype(np.float32), rtol=0.05, atol=0.01)


def test_stacked_layers_are_cut_one_by_one():
    transform, leaves = adafactor_in_slabs.scale_by_clipped_factored_rms(), jnp.zeros((2, 9001, 500))
    gradients = jnp.stack([_gradient((9001, 500), 1), 100.0 * _gradient((9001, 500), 2)])
    with Partitioner(devices=(jax.devices()[0],)).context():
        state = jax.vmap(transform.init)(leaves)
        updates, _ = jax.jit(jax.vmap(transform.update))(gradients, state, leaves)
    for layer in range(2):
        alone, _ = optax.scale_by_factored_rms().update(
            gradients[layer], optax.scale_by_factored_rms().init(leaves[layer]), leaves[layer]
        )
        alone, _ = optax.clip_by_block_rms(1.0).update(alone, optax.EmptyState())
        np.testing.assert_allclose(updates[layer], alone, rtol=2e-5, atol=1e-7)


def test_outside_of_one_cpu_it_is_optax_itself():
    transform, leaf = adafactor_in_slabs.scale_by_clipped_factored_rms(), jnp.zeros((9001, 500))
    gradient, state = _gradient(leaf.shape, 1), transform.init(leaf)
    text = str(jax.make_jaxpr(transform.update)(gradient, state, leaf))
    assert "scan" not in text and "while" not in text
    with Partitioner(devices=(jax.devices()[0],)).context():
        text = str(jax.make_jaxpr(transform.update)(gradient, state, leaf))
    assert "scan" in text or "while" in text


def test_a_tree_without_leaves_has_only_its_count():
    transform = adafactor_in_slabs.scale_by_clipped_factored_rms()
    updates, state = transform.update({"a": None}, transform.init({"a": None}), {"a": None})
    assert updates == {"a": None} and state.count == 1


def test_a_step_on_one_cpu_holds_little_more_than_the_gradients():
    config = T5Config(65536, 128, 2, 8, 16, 1, 1)
    model, stage = EncoderDecoderModel(config), stages.stage("fine_tuning")
    params = jax.eval_shape(model.init, jax.random.key(0))
    matrix = 4 * config.vocab_size * config.embed_dim
    trainable, frozen = stages.partition(params, stage)
    optimizer = optimizers.Staged(optimizers.adafactor(1e-3), stage)
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    batch = {**dict.fromkeys(names, tokens), "decoder_loss_weights": jax.ShapeDtypeStruct((2, 4), jnp.float32)}
    with Partitioner(devices=(jax.devices()[0],)).context():
        step = train_step.make_step(model, optimizer)
        compiled = step.lower(trainable, jax.eval_shape(optimizer.init, trainable), frozen, batch, 0).compile()
    # Embedding and output matrix have a gradient each; squares and scaled gradients would be four more.
    assert compiled.memory_analysis().temp_size_in_bytes < 2.6 * matrix
