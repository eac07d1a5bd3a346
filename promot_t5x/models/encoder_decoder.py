"""EncoderDecoderModel: loss, prediction and scores of a batch; methods are named and called as T5X's are.

A batch with `soft_prompt_ids` runs with the prompt attached to the rows that name one (-1: none); a batch without that
feature runs the program of the plain (m)T5. Params are the plain nested dictionary of the network.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from promot_t5x.models import chunked_logits, decoding, losses
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.network import Transformer, scaled_for_embedding
from promot_t5x.partitioning.partitioner import pieces
from promot_t5x.runtime import arguments

Params = Mapping[str, Any]

Batch = Mapping[str, jax.Array]


@arguments.checked
@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How predictions are made.

    Attributes:
      method: "beam" (the paper's: width 4), "greedy" (argmax) or "sample".
      num_beams: width of the beam.
      alpha: exponent of the length penalty ((5 + length) / 6) ** alpha.
      temperature: of sampling.
      top_k: sample among the k most likely tokens; 0 is all.
      top_p: sample among the fewest tokens whose probabilities add up to this; 1 is all.
      eos_id: the token that ends a sequence; 1 in every T5 vocabulary.
    """

    method: str = "greedy"
    num_beams: int = 4
    alpha: float = 0.6
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos_id: int = 1

    def __post_init__(self):
        if self.method not in ("greedy", "beam", "sample"):
            raise ValueError(f"DecodingConfig.method is {self.method!r}: expected greedy, beam or sample.")
        if min(self.num_beams, self.top_k + 1, self.eos_id) < 1:
            raise ValueError(
                f"DecodingConfig has num_beams={self.num_beams}, top_k={self.top_k}, eos_id={self.eos_id}: expected at "
                "least 1, 0 and 1."
            )
        if not (math.isfinite(self.alpha) and 0 < self.temperature < math.inf and 0 < self.top_p <= 1):
            raise ValueError(
                f"DecodingConfig has alpha={self.alpha}, temperature={self.temperature}, top_p={self.top_p}: expected "
                "a finite number, a positive one, and one above 0 and up to 1."
            )


@arguments.checked
@dataclasses.dataclass(frozen=True)
class EncoderDecoderModel:
    """An encoder-decoder with its objective and its way of decoding.

    Attributes:
      config: the network's sizes and variants.
      label_smoothing: probability taken from the target and spread over the other tokens (ProMoT: 0.1).
      z_loss: weight of log(Z)^2, which keeps the softmax's normaliser near 1 (T5X: 1e-4).
      loss_normalizing_factor: None sums over the target tokens of the batch, "NUM_REAL_TARGET_TOKENS" takes their
        mean, a number divides the sum (T5X's values).
      decoding: how `predict_batch` decodes.
    """

    config: T5Config
    label_smoothing: float = 0.0
    z_loss: float = 1e-4
    loss_normalizing_factor: float | str | None = None
    decoding: DecodingConfig = DecodingConfig()

    def __post_init__(self):
        if not (0 <= self.label_smoothing < 1 and 0 <= self.z_loss < math.inf):
            raise ValueError(
                f"EncoderDecoderModel has label_smoothing={self.label_smoothing}, z_loss={self.z_loss}: expected a "
                "probability below 1, and a number of at least 0."
            )
        factor = self.loss_normalizing_factor
        if factor not in (None, "NUM_REAL_TARGET_TOKENS") and (isinstance(factor, str) or not factor > 0):
            raise ValueError(
                f"EncoderDecoderModel.loss_normalizing_factor is {factor!r}: expected None, a positive number or "
                "'NUM_REAL_TARGET_TOKENS'."
            )

    @property
    def module(self) -> Transformer:
        """The network as a Flax module."""
        return Transformer(self.config)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Random parameters; the soft prompt, where there is one, by the network's default initialiser."""
        return nn.unbox(self._init_boxed(key))

    def abstract_params(self) -> dict[str, Any]:
        """Shapes and dtypes of the parameters, without making any."""
        return jax.tree.map(lambda leaf: leaf, _described(self)[0])

    def logical_axes(self) -> dict[str, Any]:
        """A PartitionSpec of logical axis names for every parameter."""
        return jax.tree.map(lambda axes: axes, _described(self)[1])

    def _init_boxed(self, key: jax.Array):
        token = jnp.ones((1, 1), jnp.int32)
        prompt_ids = jnp.zeros((1,), jnp.int32) if self.config.prompt_length else None
        return self.module.init(key, token, token, prompt_ids)["params"]

    def logits(self, params: Params, batch: Batch, dropout_rng: jax.Array | None = None) -> jax.Array:
        """All teacher-forced float32 logits_BxUxV, for inspection; dropout is on when a key is given."""
        return self._apply("__call__", params, batch, dropout_rng)

    def token_statistics(
        self, params: Params, batch: Batch, dropout_rng: jax.Array | None = None
    ) -> chunked_logits.TokenStatistics:
        """What the losses need of the logits at each target token, BxU, without the logits of the whole vocabulary."""
        hidden_BxUxD = self._apply("hidden", params, batch, dropout_rng)
        if tied := self.config.logits_via_embedding:
            hidden_BxUxD, matrix = scaled_for_embedding(hidden_BxUxD), params["token_embedder"]["embedding"]
        else:
            matrix = params["decoder"]["logits_dense"]["kernel"]
        return chunked_logits.token_statistics(
            hidden_BxUxD,
            matrix,
            batch["decoder_target_tokens"],
            vocab_axis=0 if tied else 1,
            pieces=pieces("vocab"),
        )

    def _apply(self, method: str, params: Params, batch: Batch, dropout_rng: jax.Array | None) -> jax.Array:
        output = self.module.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch.get("soft_prompt_ids"),
            deterministic=dropout_rng is None,
            rngs={} if dropout_rng is None else {"dropout": dropout_rng},
            method=method,
        )
        return cast(jax.Array, output)

    def loss_fn(self, params: Params, batch: Batch, dropout_rng: jax.Array | None) -> tuple[jax.Array, losses.LossSums]:
        """The training objective of a batch.

        Args:
          params: the network's parameters.
          batch: encoder_input_tokens BxT, decoder_input_tokens, decoder_target_tokens and decoder_loss_weights BxU,
            and soft_prompt_ids B for an attached prompt.
          dropout_rng: key of the dropout masks, None for none.

        Returns:
          (loss, sums): the scalar to minimise, z loss included, and the sums it is made of.
        """
        loss, sums = self.loss_sum(params, batch, dropout_rng)
        return loss / self.loss_normalizer(sums), sums

    def loss_sum(
        self, params: Params, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, losses.LossSums]:
        """The objective before it is normalised, which adds up over the parts of a batch; see `loss_fn`."""
        sums = losses.cross_entropy(
            self.token_statistics(params, batch, dropout_rng),
            batch["decoder_loss_weights"],
            vocab_size=self.config.vocab_size,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        return sums.loss, sums

    def loss_normalizer(self, sums: losses.LossSums) -> jax.Array | float:
        """What the objective of a whole batch divides its sum by."""
        if self.loss_normalizing_factor == "NUM_REAL_TARGET_TOKENS":
            return jnp.maximum(sums.weight_sum, 1.0)  # a batch of padding alone costs 0, not 0 / 0
        return 1.0 if self.loss_normalizing_factor is None else cast(float, self.loss_normalizing_factor)

    def score_batch(self, params: Params, batch: Batch) -> jax.Array:
        """scores_B: the log-likelihood of each target (sum over its tokens).

        A batch may have C targets for each of its inputs (B = N * C rows of the decoder's features, those of an input
        in a row): every input is then encoded once.
        """
        return losses.sequence_scores(self.token_statistics(params, batch), batch["decoder_loss_weights"])

    def predict_batch(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """Decoded tokens_BxU, 0 after the end; U is the width of batch["decoder_input_tokens"].

        Raises:
          ValueError: sampling without a key.
        """
        max_length = batch["decoder_input_tokens"].shape[1]
        module, variables = self.module, {"params": params}
        encoded, mask = module.apply(
            variables, batch["encoder_input_tokens"], batch.get("soft_prompt_ids"), method="encode"
        )
        first_logits, cache = module.apply(variables, encoded, mask, max_length, method="start_decoding")

        def tokens_to_logits(tokens, cache, position):
            return module.apply(variables, tokens, cache, position, max_length, method="continue_decoding")

        c = self.decoding
        if c.method == "beam":
            tokens_BxKxU, _ = decoding.beam_search(
                first_logits,
                cache,
                tokens_to_logits,
                max_length=max_length,
                num_beams=c.num_beams,
                alpha=c.alpha,
                eos_id=c.eos_id,
            )
            return tokens_BxKxU[:, 0]
        if c.method == "greedy":
            return decoding.greedy(first_logits, cache, tokens_to_logits, max_length=max_length, eos_id=c.eos_id)
        if rng is None:
            raise ValueError("DecodingConfig.method is 'sample', which needs a random key: pass rng to predict_batch.")
        return decoding.sample(
            first_logits,
            cache,
            tokens_to_logits,
            rng,
            max_length=max_length,
            temperature=c.temperature,
            top_k=c.top_k,
            top_p=c.top_p,
            eos_id=c.eos_id,
        )


@functools.lru_cache(maxsize=16)
def _described(model: EncoderDecoderModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """(abstract parameters, logical axes): kept, as tracing the initialisers takes longer than most of their users."""
    boxed = jax.eval_shape(model._init_boxed, jax.random.key(0))
    return jax.eval_shape(nn.unbox, boxed), nn.get_partition_spec(boxed)
