"""The T5 1.0 / T5 1.1 / mT5 / umT5 encoder-decoder in Flax Linen, with its `soft_prompt` subtree.

The parameter tree has the names and shapes of T5X's public checkpoints (one subtree per layer, attention heads joined)
plus `soft_prompt/embedding` [N, P, D]. With `scan_layers` the layers of a stack are one subtree `layers` with a leading
layer axis; `parameter_names.py` converts between the two.

Dimensions: B batch, T encoder tokens, S encoder positions (prompt + tokens), U decoder tokens, Q decoder positions of
one call, P prompt length, D embed, H heads, K head dim, V vocabulary, N prompts.
"""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from promot_t5x.models import embedding_late_gradient, layers
from promot_t5x.models.architecture import T5Config

Array = jax.Array

PAD_ID = 0

_MASKED = -1e10  # the additive bias of a key that must not be attended, as in T5X

_REMAT_POLICIES = {
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class DecodePosition:
    """Where a cached decoder call is: it reads `length` cached positions and writes the one at `index` (traced)."""

    length: int
    index: Any = 0


def _run_stack(layer_class, config: T5Config, num_layers: int, layer_args: tuple, x, caches, *broadcast):
    """Runs a stack of layers, looped or scanned; returns (x, caches), caches a tuple or stacked on axis 0."""
    if config.remat != "none":
        # Inside a scan XLA cannot undo the rematerialisation, so the barrier that prevents it is not needed there.
        layer_class = nn.remat(layer_class, prevent_cse=not config.scan_layers, policy=_REMAT_POLICIES[config.remat])
    if config.scan_layers:
        scanned = nn.scan(
            layer_class,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=cast(Any, (0, *[nn.broadcast] * len(broadcast))),
            length=num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(config, *layer_args, name="layers")(x, caches, *broadcast)
    new_caches = []
    for i in range(num_layers):
        cache = None if caches is None else caches[i]
        x, new_cache = layer_class(config, *layer_args, name=f"layers_{i}")(x, cache, *broadcast)
        new_caches.append(new_cache)
    return x, tuple(new_caches)


class Encoder(nn.Module):
    """The encoder's stack over embedded inputs."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BxSxD: Array, mask_BxS: Array, deterministic: bool) -> Array:
        """Returns encoded_BxSxD; positions where the mask is False are never attended."""
        c = self.config
        bias = jnp.where(mask_BxS, 0.0, _MASKED).astype(c.dtype)[:, None, None, :]
        if c.relative_bias == "shared":
            positions_S = jnp.arange(x_BxSxD.shape[1])
            bias = bias + layers.RelativeBias(c, bidirectional=True, name="relpos_bias")(positions_S, positions_S)
        x_BxSxD = layers.dropout(c, x_BxSxD, deterministic)
        x_BxSxD, _ = _run_stack(layers.EncoderLayer, c, c.num_encoder_layers, (deterministic,), x_BxSxD, None, bias)
        encoded_BxSxD = layers.layer_norm(c, "encoder_norm")(x_BxSxD)
        # T5X's only mask of its own for every position.
        return nn.Dropout(c.dropout_rate)(encoded_BxSxD, deterministic=deterministic)


class Decoder(nn.Module):
    """The decoder's stack over embedded targets, whole (training) or one token per call (cached decoding)."""

    config: T5Config

    def setup(self):
        if not self.config.logits_via_embedding:
            float32_config = dataclasses.replace(self.config, dtype="float32")
            self.logits_dense = layers.dense(float32_config, self.config.vocab_size, ("embed", "vocab"))

    def logits(self, hidden_BxUxD: Array) -> Array:
        """float32 logits_BxUxV through the model's own output matrix."""
        return self.logits_dense(hidden_BxUxD)

    @nn.compact
    def __call__(self, x_BxQxD, encoded_BxSxD, mask_BxS, deterministic, caches=None, position=None):
        """Returns (hidden_BxQxD, caches or None).

        Args:
          x_BxQxD: embedded decoder inputs; Q is 1 when `position` is given.
          encoded_BxSxD: the encoder's output, or None to take its keys and values from `caches`.
          mask_BxS: encoder positions that may be attended.
          deterministic: no dropout.
          caches: what the previous cached call returned.
          position: a DecodePosition for a cached call.
        """
        c = self.config
        cached_length = None if position is None else position.length
        index = 0 if position is None else position.index
        cross_bias = jnp.where(mask_BxS, 0.0, _MASKED).astype(c.dtype)[:, None, None, :]
        if cached_length is None:
            positions_U = jnp.arange(x_BxQxD.shape[1])
            visible = positions_U[None, :] <= positions_U[:, None]
        else:
            visible = (jnp.arange(cached_length) <= index)[None, :]
        self_bias = jnp.where(visible, 0.0, _MASKED).astype(c.dtype)[None, None]
        if c.relative_bias == "shared":
            self_bias = self_bias + layers.decoder_relative_bias(c, x_BxQxD.shape[1], cached_length, index)
        x_BxQxD = layers.dropout(c, x_BxQxD, deterministic)
        broadcast = (encoded_BxSxD, self_bias, cross_bias, index)
        layer_args = (deterministic, cached_length)
        x_BxQxD, caches = _run_stack(
            layers.DecoderLayer, c, c.num_decoder_layers, layer_args, x_BxQxD, caches, *broadcast
        )
        return layers.dropout(c, layers.layer_norm(c, "decoder_norm")(x_BxQxD), deterministic), caches


class SoftPrompt(nn.Module):
    """The soft prompts, leaf `embedding` [N, P, D]; `training/prompt_initializers.py` has a run's initial values."""

    config: T5Config

    @nn.compact
    def __call__(self, soft_prompt_ids_B: Array) -> Array:
        """Returns prompt_BxPxD; rows of id -1 get any prompt and are masked by the caller."""
        c = self.config
        embedding_NxPxD = self.param(
            "embedding",
            layers.partitioned(nn.initializers.uniform(0.5), ("prompts", "prompt_length", "embed")),
            (c.num_prompts, c.prompt_length, c.embed_dim),
            jnp.dtype(c.param_dtype),
        )
        return jnp.take(cast(Array, embedding_NxPxD), jnp.maximum(soft_prompt_ids_B, 0), axis=0).astype(c.dtype)


def scaled_for_embedding(hidden_BxUxD: Array) -> Array:
    """float32 hidden_BxUxD for an output matrix that is the embedding, whose rows have unit variance per component."""
    return hidden_BxUxD.astype(jnp.float32) / jnp.sqrt(hidden_BxUxD.shape[-1])


class Transformer(nn.Module):
    """The whole encoder-decoder; `encode` attaches the soft prompt, everything after it is the plain (m)T5."""

    config: T5Config

    def setup(self):
        c = self.config
        self.token_embedder = embedding_late_gradient.Embed(
            c.vocab_size,
            c.embed_dim,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=layers.partitioned(nn.initializers.normal(1.0), ("vocab", "embed")),
        )
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        if c.prompt_length:
            self.soft_prompt = SoftPrompt(c)

    def encode(self, tokens_BxT: Array, soft_prompt_ids_B: Array | None = None, *, deterministic: bool = True):
        """Encodes the inputs, with a soft prompt in front of each row that names one.

        Args:
          tokens_BxT: input tokens, 0 is padding.
          soft_prompt_ids_B: the prompt of each row, -1 for none; None builds the program of the plain (m)T5.
          deterministic: no dropout.

        Returns:
          (encoded_BxSxD, mask_BxS), S = P + T with prompts, T without.
        """
        return self._encode(tokens_BxT, self.token_embedder(tokens_BxT), soft_prompt_ids_B, deterministic)

    def _encode(self, tokens_BxT, x_BxSxD, soft_prompt_ids_B, deterministic):
        mask_BxS = tokens_BxT != PAD_ID
        if soft_prompt_ids_B is not None:
            if not self.config.prompt_length:
                raise ValueError(
                    "soft_prompt_ids were given to a network without a soft prompt; set T5Config.prompt_length or take "
                    "soft_prompt_ids out of the batch."
                )
            x_BxSxD = jnp.concatenate([self.soft_prompt(soft_prompt_ids_B), x_BxSxD], axis=1)
            attached_BxP = jnp.broadcast_to(
                (soft_prompt_ids_B >= 0)[:, None], (tokens_BxT.shape[0], self.config.prompt_length)
            )
            mask_BxS = jnp.concatenate([attached_BxP, mask_BxS], axis=1)
        return self.encoder(x_BxSxD, mask_BxS, deterministic), mask_BxS

    def logits(self, hidden_BxUxD: Array) -> Array:
        """float32 logits_BxUxV of the decoder's output."""
        if self.config.logits_via_embedding:
            # In float32 whatever the network computes in, as in T5X: bfloat16 would round the logits themselves.
            embedding_VxD = self.token_embedder.embedding.astype(jnp.float32)
            return scaled_for_embedding(hidden_BxUxD) @ embedding_VxD.T
        return self.decoder.logits(hidden_BxUxD)

    def decode(self, decoder_input_tokens_BxU, encoded_BxSxD, mask_BxS, *, deterministic: bool = True) -> Array:
        """Teacher-forced hidden_BxUxD; later target positions never influence earlier ones."""
        x_BxUxD = self.token_embedder(decoder_input_tokens_BxU)
        return self.decoder(x_BxUxD, encoded_BxSxD, mask_BxS, deterministic)[0]

    def hidden(self, encoder_input_tokens, decoder_input_tokens, soft_prompt_ids=None, *, deterministic=True) -> Array:
        """hidden_BxUxD, which the output matrix turns into logits; see `encode` for the prompt.

        With B = N * C targets there may be N inputs: each is encoded once, for its C targets in a row.
        """
        inputs, length = encoder_input_tokens.shape
        by_input = decoder_input_tokens.reshape(inputs, -1)
        # Looked up in one go, so that the embedding has one gradient and not two of its size to add.
        x = self.token_embedder(jnp.concatenate([encoder_input_tokens, by_input], axis=1))
        encoded, mask = self._encode(encoder_input_tokens, x[:, :length], soft_prompt_ids, deterministic)
        x_BxUxD = x[:, length:].reshape(*decoder_input_tokens.shape, -1)
        return self.decoder(x_BxUxD, encoded, mask, deterministic)[0]

    def start_decoding(self, encoded_BxSxD: Array, mask_BxS: Array, max_length: int):
        """Runs the decoder's start token; returns (logits_BxV, cache) for `continue_decoding`.

        Every leaf of the cache has the batch at axis -4, so that beams can be reordered without knowing the network.
        """
        start_Bx1 = jnp.full((encoded_BxSxD.shape[0], 1), PAD_ID, jnp.int32)
        return self._decode_one(start_Bx1, encoded_BxSxD, mask_BxS, None, DecodePosition(max_length))

    def continue_decoding(self, tokens_B: Array, cache, index, max_length: int):
        """Runs the token emitted at `index` - 1 as decoder input `index`; returns (logits_BxV, cache)."""
        mask_BxS = cache["encoder_mask"][..., 0, 0]
        position = DecodePosition(max_length, index)
        return self._decode_one(tokens_B[:, None], None, mask_BxS, cache["layers"], position)

    def _decode_one(self, tokens_Bx1, encoded_BxSxD, mask_BxS, caches, position: DecodePosition):
        x_Bx1xD = self.token_embedder(tokens_Bx1)
        hidden_Bx1xD, caches = self.decoder(x_Bx1xD, encoded_BxSxD, mask_BxS, True, caches, position)
        return self.logits(hidden_Bx1xD)[:, 0], {"layers": caches, "encoder_mask": mask_BxS[..., None, None]}

    def __call__(self, encoder_input_tokens, decoder_input_tokens, soft_prompt_ids=None, *, deterministic=True):
        """All logits_BxUxV of encoder_input_tokens BxT and decoder_input_tokens BxU; training has no use for them."""
        return self.logits(
            self.hidden(encoder_input_tokens, decoder_input_tokens, soft_prompt_ids, deterministic=deterministic)
        )
