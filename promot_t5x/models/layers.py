"""The layers of (m)T5 as Flax modules: relative bias, attention, MLP, one encoder layer, one decoder layer.

Leaf names and shapes are those of T5X's public checkpoints, attention heads joined. Every parameter carries logical
axis names (`partitioning/partitioner.py` maps them to the mesh). Dimensions: B batch, S encoder positions (prompt +
tokens), Q query positions, D embed, H heads, K head dim, F mlp, R relative position buckets.
"""

import functools
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from promot_t5x.models.architecture import T5Config

Array = jax.Array

_ACTIVATIONS = {
    "gelu": nn.gelu,  # the tanh approximation, T5 1.1's and mT5's
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
}


def partitioned(init, axes: tuple[str, ...]):
    """The initialiser `init` whose parameter carries the logical axis names `axes`."""
    return nn.with_logical_partitioning(init, axes)


def dense(config: T5Config, features: int, axes: tuple[str, str], name: str | None = None, scale: float = 1.0):
    """A matrix product without bias; `scale` is that of the fan-in variance scaling initialiser."""
    init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=partitioned(init, axes),
        name=name,
    )


def layer_norm(config: T5Config, name: str):
    """T5's layer norm: root mean square, a scale, no bias, statistics in float32."""
    return nn.RMSNorm(
        epsilon=1e-6,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        scale_init=partitioned(nn.initializers.ones_init(), ("embed",)),
        name=name,
    )


def dropout(config: T5Config, x: Array, deterministic: bool) -> Array:
    """Dropout with one mask for all positions of a sequence: T5X broadcasts it over the length."""
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(x, deterministic=deterministic)


def relative_position_bucket(
    distance: Array, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> Array:
    """Bucket of a relative position, key minus query (T5, section 2.1): exact when near, logarithmic when far.

    >>> relative_position_bucket(jnp.array([0, -1, -9, -500]), bidirectional=False).tolist()
    [0, 1, 9, 31]
    """
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0).astype(jnp.int32) * num_buckets
        distance = jnp.abs(distance)
    else:
        offset = jnp.zeros_like(distance)
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    far = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(max_distance / exact) * (num_buckets - exact)
    far = jnp.minimum(exact + far.astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """Learned bias of attention logits by relative position; leaf `rel_embedding` [H, buckets]."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions_Q: Array, key_positions_S: Array) -> Array:
        """Returns bias_1xHxQxS for the given positions."""
        c = self.config
        table_HxR = self.param(
            "rel_embedding",
            partitioned(nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), ("heads", "relpos_buckets")),
            (c.num_heads, c.relative_bias_buckets),
            jnp.dtype(c.param_dtype),
        )
        bucket_QxS = relative_position_bucket(
            key_positions_S[None, :] - query_positions_Q[:, None],
            bidirectional=self.bidirectional,
            num_buckets=c.relative_bias_buckets,
            max_distance=c.relative_bias_max_distance,
        )
        return jnp.take(cast(Array, table_HxR), bucket_QxS, axis=1)[None].astype(c.dtype)


class Attention(nn.Module):
    """Multi-head attention without logit scaling: T5 folds 1/sqrt(K) into the query's initialiser."""

    config: T5Config
    deterministic: bool

    def setup(self):
        c = self.config
        joined = c.num_heads * c.head_dim
        self.query = dense(c, joined, ("embed", "joined_kv"), scale=1.0 / c.head_dim)
        self.key = dense(c, joined, ("embed", "joined_kv"))
        self.value = dense(c, joined, ("embed", "joined_kv"))
        self.out = dense(c, c.embed_dim, ("joined_kv", "embed"))
        self.weight_dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def _split_heads(self, x: Array) -> Array:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        return with_logical_constraint(x, ("batch", "length", "heads", "kv"))

    def keys_values(self, memory_BxSxD: Array) -> tuple[Array, Array]:
        """Projects what is attended to: (key_BxSxHxK, value_BxSxHxK)."""
        return self._split_heads(self.key(memory_BxSxD)), self._split_heads(self.value(memory_BxSxD))

    def __call__(self, x_BxQxD: Array, key_BxSxHxK: Array, value_BxSxHxK: Array, bias: Array) -> Array:
        """Attends; `bias` is added to the logits and broadcasts to BxHxQxS. Softmax in float32."""
        query_BxQxHxK = self._split_heads(self.query(x_BxQxD))
        logits_BxHxQxS = jnp.einsum("bqhk,bshk->bhqs", query_BxQxHxK, key_BxSxHxK) + bias
        weights_BxHxQxS = nn.softmax(logits_BxHxQxS.astype(jnp.float32)).astype(self.config.dtype)
        weights_BxHxQxS = self.weight_dropout(weights_BxHxQxS, deterministic=self.deterministic)
        mixed_BxQxHxK = jnp.einsum("bhqs,bshk->bqhk", weights_BxHxQxS, value_BxSxHxK)
        return self.out(mixed_BxQxHxK.reshape(*mixed_BxQxHxK.shape[:2], -1))


class Mlp(nn.Module):
    """The feed-forward block, gated when it has two activations (`wi_0`, `wi_1`), plain with one (`wi`)."""

    config: T5Config
    deterministic: bool

    @nn.compact
    def __call__(self, x_BxQxD: Array) -> Array:
        """Returns an array of x's shape."""
        c = self.config
        names = ["wi"] if len(c.mlp_activations) == 1 else [f"wi_{i}" for i in range(len(c.mlp_activations))]
        hidden_BxQxF = functools.reduce(
            jnp.multiply,
            [
                _ACTIVATIONS[activation](dense(c, c.mlp_dim, ("embed", "mlp"), name)(x_BxQxD))
                for name, activation in zip(names, c.mlp_activations, strict=True)
            ],
        )
        hidden_BxQxF = dropout(c, hidden_BxQxF, self.deterministic)
        hidden_BxQxF = with_logical_constraint(hidden_BxQxF, ("batch", "length", "mlp"))
        return dense(c, c.embed_dim, ("mlp", "embed"), "wo")(hidden_BxQxF)


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each pre-normed with a residual."""

    config: T5Config
    deterministic: bool

    @nn.compact
    def __call__(self, x_BxSxD: Array, cache: None, bias: Array):
        """Returns (x_BxSxD, None): an encoder layer has nothing to cache."""
        c = self.config
        x_BxSxD = with_logical_constraint(x_BxSxD, ("batch", "length", "embed_activation"))
        if c.relative_bias == "per_layer":
            positions_S = jnp.arange(x_BxSxD.shape[1])
            bias = bias + RelativeBias(c, bidirectional=True, name="relpos_bias")(positions_S, positions_S)
        y = layer_norm(c, "pre_attention_layer_norm")(x_BxSxD)
        attention = Attention(c, self.deterministic, name="attention")
        x_BxSxD = x_BxSxD + dropout(c, attention(y, *attention.keys_values(y), bias), self.deterministic)
        y = layer_norm(c, "pre_mlp_layer_norm")(x_BxSxD)
        return x_BxSxD + dropout(c, Mlp(c, self.deterministic, name="mlp")(y), self.deterministic), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, and MLP, each pre-normed with a residual."""

    config: T5Config
    deterministic: bool
    # Not None: each call has one token, and the cache has the keys and values of this many positions.
    cached_length: int | None = None

    @nn.compact
    def __call__(self, x_BxQxD: Array, cache, encoded_BxSxD, self_bias, cross_bias, index):
        """Returns (x_BxQxD, new cache or None); `encoded_BxSxD` None reads the encoder's side from the cache.

        With B = N * C targets the encoder's side may have N inputs, each of which C targets in a row attend to.
        """
        c = self.config
        x_BxQxD = with_logical_constraint(x_BxQxD, ("batch", "length", "embed_activation"))
        if c.relative_bias == "per_layer":
            self_bias = self_bias + decoder_relative_bias(c, x_BxQxD.shape[1], self.cached_length, index)
        y = layer_norm(c, "pre_self_attention_layer_norm")(x_BxQxD)
        attention = Attention(c, self.deterministic, name="self_attention")
        keys, values = attention.keys_values(y)
        if self.cached_length is not None:
            keys = self._updated(cache, "self_key", keys, index)
            values = self._updated(cache, "self_value", values, index)
        x_BxQxD = x_BxQxD + dropout(c, attention(y, keys, values, self_bias), self.deterministic)

        y = layer_norm(c, "pre_cross_attention_layer_norm")(x_BxQxD)
        cross = Attention(c, self.deterministic, name="encoder_decoder_attention")
        if encoded_BxSxD is None:
            cross_keys, cross_values = cache["cross_key"], cache["cross_value"]
        else:
            cross_keys, cross_values = cross.keys_values(encoded_BxSxD)
        # Attention to the encoder does not depend on positions: the targets of one input are read as one long target.
        by_input = y.reshape(cross_keys.shape[0], -1, y.shape[-1])
        attended = cross(by_input, cross_keys, cross_values, cross_bias).reshape(y.shape)
        x_BxQxD = x_BxQxD + dropout(c, attended, self.deterministic)

        y = layer_norm(c, "pre_mlp_layer_norm")(x_BxQxD)
        x_BxQxD = x_BxQxD + dropout(c, Mlp(c, self.deterministic, name="mlp")(y), self.deterministic)
        if self.cached_length is None:
            return x_BxQxD, None
        return x_BxQxD, {
            "self_key": keys,
            "self_value": values,
            "cross_key": cross_keys,
            "cross_value": cross_values,
        }

    def _updated(self, cache, name: str, new_Bx1xHxK: Array, index) -> Array:
        if cache is None:
            batch, _, heads, head_dim = new_Bx1xHxK.shape
            old = jnp.zeros((batch, self.cached_length, heads, head_dim), new_Bx1xHxK.dtype)
        else:
            old = cache[name]
        return jax.lax.dynamic_update_slice_in_dim(old, new_Bx1xHxK, index, axis=1)


def decoder_relative_bias(config: T5Config, length: int, cached_length: int | None, index) -> Array:
    """The decoder's causal RelativeBias over a whole target, or for the one token at `index` of a cached decode."""
    if cached_length is None:
        queries = keys = jnp.arange(length)
    else:
        queries, keys = jnp.asarray(index)[None], jnp.arange(cached_length)
    return RelativeBias(config, bidirectional=False, name="relpos_bias")(queries, keys)
