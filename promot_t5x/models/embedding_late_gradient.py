"""The embedding's lookup; on one CPU its gradient takes no memory until it is computed.

The derivative of rows = embedding[tokens] adds each row's cotangent to the row that it came from,

    d loss / d embedding[v] = sum over positions i with tokens[i] = v of d loss / d rows[i],

which JAX writes as a scatter-add into zeros of the embedding's size. XLA's CPU compiler makes these zeros at the start
of the step and holds them until the scatter, through the whole forward and backward pass. It does not hoist them out
of a branch, so here they are made inside one. Other backends, and meshes of several devices, run Flax's own lookup.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from promot_t5x.partitioning.partitioner import on_one_cpu


class Embed(nn.Embed):
    """flax.linen.Embed: rows of the leaf `embedding` [V, D] in the network's dtype.

    >>> module, tokens = Embed(num_embeddings=5, features=2), jnp.array([[3, 0, 3]])
    >>> rows, variables = module.init_with_output(jax.random.key(0), tokens)
    >>> bool((rows == variables["params"]["embedding"][tokens]).all())
    True
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The rows of token ids of any shape."""
        if not on_one_cpu():
            return super().__call__(inputs)
        return _rows(self.embedding.astype(self.dtype), inputs)


@jax.custom_vjp
def _rows(embedding_VxD: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take(embedding_VxD, tokens, axis=0)


def _rows_forward(embedding_VxD: jax.Array, tokens: jax.Array):
    return _rows(embedding_VxD, tokens), (embedding_VxD, tokens)


def _rows_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array):
    embedding_VxD, tokens = residuals
    zeros = functools.partial(jnp.zeros_like, embedding_VxD)
    # The condition must depend on the gradient: XLA would fold a constant one and hoist the zeros again. Where it is
    # false the gradient is 0 and both branches agree (NaN makes it true), so it only decides when the memory is taken.
    return jax.lax.cond(jnp.any(gradient != 0), lambda: zeros().at[tokens].add(gradient), zeros), None


_rows.defvjp(_rows_forward, _rows_backward)
