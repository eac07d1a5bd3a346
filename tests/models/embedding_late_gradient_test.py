"""The embedding's lookup on one CPU against numpy's sums by row, and what it is for: when its gradient takes memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.models.embedding_late_gradient import Embed
from promot_t5x.partitioning.partitioner import Partitioner

V, D = 11, 4
TOKENS = np.array([[3, 0, 3, 10], [7, 3, 0, 1]])


def _one_cpu():
    return Partitioner(devices=(jax.devices()[0],)).context()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_their_gradient(dtype):
    rng = np.random.default_rng(0)
    # Small whole numbers, so that sums are exact in both dtypes.
    embedding_VxD = rng.integers(-8, 9, size=(V, D)).astype(np.float32)
    weights_BxTxD = rng.integers(-4, 5, size=(*TOKENS.shape, D)).astype(np.float32)
    module = Embed(V, D, dtype=jnp.dtype(dtype))

    def loss(embedding_VxD):
        rows = module.apply({"params": {"embedding": embedding_VxD}}, jnp.asarray(TOKENS))
        return jnp.sum(rows.astype(jnp.float32) * weights_BxTxD), rows

    with _one_cpu():
        gradient_VxD, rows = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(embedding_VxD))
    assert rows.dtype == dtype and gradient_VxD.dtype == jnp.float32  # of the leaf, not of the network
    np.testing.assert_array_equal(np.asarray(rows, np.float32), embedding_VxD[TOKENS])
    expected_VxD = np.zeros((V, D), np.float32)
    np.add.at(expected_VxD, TOKENS, weights_BxTxD)
    np.testing.assert_array_equal(gradient_VxD, expected_VxD)


def test_a_gradient_of_zero_is_zero():
    module, params = Embed(V, D), {"embedding": jnp.ones((V, D))}
    with _one_cpu():
        gradient = jax.jit(jax.grad(lambda p: 0.0 * jnp.sum(module.apply({"params": p}, jnp.asarray(TOKENS)))))(params)
    np.testing.assert_array_equal(gradient["embedding"], np.zeros((V, D)))


def _jaxpr(module) -> str:
    def loss(params):
        return jnp.sum(module.apply({"params": params}, jnp.asarray(TOKENS)))

    return str(jax.make_jaxpr(jax.grad(loss))({"embedding": jnp.ones((V, D))}))


def test_anywhere_but_on_one_cpu_it_is_flax_itself():
    assert "cond" not in _jaxpr(Embed(V, D)) and _jaxpr(Embed(V, D)) == _jaxpr(nn.Embed(V, D))
    with _one_cpu():
        assert "cond" in _jaxpr(Embed(V, D))


def test_the_gradient_takes_no_memory_before_the_backward_pass_comes_to_it():
    """The logits of the forward pass are as large as the embedding: the two must not be held together."""
    rows, width, vocab_size = 256, 256, 2**14
    matrix = 4 * vocab_size * width
    tokens = jnp.zeros((rows,), jnp.int32)

    def temporaries(module) -> int:
        def loss(params, output_DxV):
            logits_TxV = module.apply({"params": params}, tokens) @ output_DxV
            return jnp.sum(jax.nn.logsumexp(logits_TxV, axis=-1))

        def norm_of_gradient(params, output_DxV):
            return jnp.sum(jnp.square(jax.grad(loss)(params, output_DxV)["embedding"]))

        embedding = {"embedding": jax.ShapeDtypeStruct((vocab_size, width), jnp.float32)}
        output = jax.ShapeDtypeStruct((width, vocab_size), jnp.float32)
        compiled = jax.jit(norm_of_gradient).lower(embedding, output).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    with _one_cpu():
        late, flax = temporaries(Embed(vocab_size, width)), temporaries(nn.Embed(vocab_size, width))
    assert late < 1.1 * matrix  # the logits, then the gradient in their place
    assert flax > 1.9 * matrix  # where this fails, XLA has lost the habit and the workaround can go
