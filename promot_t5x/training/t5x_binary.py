"""The network as a model of T5X's own train, eval and infer binaries, which gin/t5x/ configures.

Nothing here subclasses T5X's classes, and T5X, which is not on PyPI, is imported only inside functions that its
binaries call: gin files and tests that name this module do not need it. The parameter tree is T5X's, one subtree per
layer, plus `soft_prompt`. What a stage freezes gets no gradient; its optimizer is in `t5x_optimizer`.

Source: https://github.com/google-research/t5x, `models.py` and `trainer.py`, for what is called how.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import flax.core
import flax.linen.partitioning
import jax
import jax.numpy as jnp
import seqio
from clu import metrics

from promot_t5x.data import features
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import Batch, EncoderDecoderModel, Params
from promot_t5x.models.losses import LossSums
from promot_t5x.training import prompt_initializers, stages, t5x_optimizer


@dataclasses.dataclass(frozen=True, eq=False)
class T5XModel:
    """An EncoderDecoderModel as the model of T5X's binaries.

    Attributes:
      model: the network and its objective; its layout becomes T5X's, and without a prompt attached it has none.
      attach_prompt: whether every row starts with the soft prompt, in training and in evaluation.
      optimizer_def: what trains; None for evaluation and inference.
      prompt_id: which of `T5Config.num_prompts` is attached.
      prompt_init: makes the prompt if the checkpoint has none. T5X initializes every parameter before it reads a
        checkpoint, so the model's embedding is not available: `prompt_initializers.random_uniform` or `from_file`.
      scan_layers: one subtree per stack, with a leading layer axis; no public checkpoint has that layout.

    Raises:
      ValueError: arguments contradict each other.
    """

    FEATURE_CONVERTER_CLS: ClassVar = seqio.EncDecFeatureConverter

    model: EncoderDecoderModel
    attach_prompt: bool
    optimizer_def: t5x_optimizer.StagedOptimizer | None = None
    prompt_id: int = 0
    prompt_init: prompt_initializers.PromptInit | None = None
    scan_layers: bool = False

    def __post_init__(self):
        config = self.model.config
        if self.attach_prompt and not config.prompt_length:
            raise ValueError(
                "t5x_binary.T5XModel.attach_prompt is True, but the network has no soft prompt; set PROMPT_LENGTH."
            )
        if not 0 <= self.prompt_id < config.num_prompts:
            raise ValueError(
                f"t5x_binary.T5XModel.prompt_id is {self.prompt_id}, but the network has {config.num_prompts} soft "
                "prompts, numbered from 0."
            )
        stage = self.optimizer_def.staged if self.optimizer_def is not None else None
        if stage is not None and stage.attaches_prompt != self.attach_prompt:
            raise ValueError(
                f"t5x_binary.T5XModel.attach_prompt is {self.attach_prompt}, but stage {stage.name} trains "
                f"{'without' if self.attach_prompt else 'with'} a soft prompt; leave ATTACH_PROMPT to the stage's file."
            )
        length = config.prompt_length if self.attach_prompt else 0
        config = dataclasses.replace(config, prompt_length=length, scan_layers=self.scan_layers)
        object.__setattr__(self, "model", dataclasses.replace(self.model, config=config))

    @property
    def module(self) -> Any:
        """The network as a Flax module."""
        return self.model.module

    def get_initial_variables(
        self, rng: jax.Array, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Random parameters and the logical names of their axes: {"params", "params_axes"}.

        Args:
          rng: key.
          input_shapes, input_types: of a batch; parameters do not depend on them.

        Raises:
          ValueError: `prompt_init` needs the embedding.
        """
        params = self.model.init(rng)
        if self.attach_prompt and self.prompt_init is not None:
            prompt = parameter_names.unflatten({parameter_names.PROMPT: self._new_prompt(self.prompt_init, rng)})
            params = parameter_names.attach_adapters(params, prompt)
        names = parameter_names.flatten(self.model.logical_axes())
        axes = {f"{name}_axes": flax.linen.partitioning.AxisMetadata(tuple(spec)) for name, spec in names.items()}
        return {"params": params, "params_axes": parameter_names.unflatten(axes)}

    def _new_prompt(self, prompt_init: prompt_initializers.PromptInit, rng: jax.Array) -> jax.Array:
        config, initialize = self.model.config, prompt_initializers.built(prompt_init)
        # Shapes only: the embedding's values are not read yet.
        embedding: Any = jax.ShapeDtypeStruct((config.vocab_size, config.embed_dim), jnp.float32)
        try:
            prompt_NxPxD = initialize(jax.random.fold_in(rng, 1), config.num_prompts, config.prompt_length, embedding)
        except TypeError as error:
            raise ValueError(
                "t5x_binary.T5XModel.prompt_init starts from the model's embedding, which T5X reads only afterwards: "
                "use prompt_initializers.random_uniform, or from_file with a prompt made beforehand."
            ) from error
        return prompt_NxPxD.astype(config.param_dtype)

    def loss_fn(self, params: Any, batch: Batch, dropout_rng: jax.Array | None) -> tuple[jax.Array, dict[str, Any]]:
        """(loss, metrics) of a training batch; the gradient of frozen leaves is zero and costs nothing.

        Args:
          params: the whole tree.
          batch: encoder_input_tokens BxT, decoder_input_tokens, decoder_target_tokens and decoder_loss_weights BxU.
          dropout_rng: key of the dropout masks; None turns dropout off.

        Raises:
          ValueError: the batch is packed.
        """
        batch = self._prompted(batch)
        if self.optimizer_def is None:
            with t5x_optimizer.mesh_in_force():
                loss, sums = self.model.loss_fn(params, batch, dropout_rng)
        else:
            trainable, frozen = stages.partition(flax.core.unfreeze(params), self.optimizer_def.staged)
            loss, sums = _loss_of_trainable(self.model, trainable, frozen, batch, dropout_rng)
        return loss, _metrics(loss, sums, batch)

    def eval_fn(self, params: Params, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """(loss, metrics) of a batch without dropout."""
        return self.loss_fn(params, batch, None)

    def predict_batch(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """Decoded tokens_BxU, 0 after the end, by the method in `EncoderDecoderModel.decoding`."""
        with t5x_optimizer.mesh_in_force():
            return self.model.predict_batch(params, self._prompted(batch), rng)

    def predict_batch_with_aux(
        self, params: Params, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(tokens_BxU, {"scores": B}); a score is the tokens' log-likelihood, without a length penalty."""
        tokens_BxU = self.predict_batch(params, batch, rng)
        decoded = {
            "decoder_input_tokens": jnp.pad(tokens_BxU, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": tokens_BxU,
            "decoder_loss_weights": tokens_BxU != 0,
        }
        return tokens_BxU, {"scores": self.score_batch(params, {**batch, **decoded})}

    def score_batch(self, params: Params, batch: Batch) -> jax.Array:
        """scores_B: the log-likelihood of each row's target."""
        with t5x_optimizer.mesh_in_force():
            return self.model.score_batch(params, self._prompted(batch))

    def _prompted(self, batch: Batch) -> dict[str, jax.Array]:
        """The batch with the id of the prompt for each row, where one is attached."""
        if segments := [name for name in batch if name.endswith("segment_ids")]:
            raise ValueError(f"The batch is packed (it has {segments[0]}); set utils.DatasetConfig.pack = False.")
        if not self.attach_prompt:
            return dict(batch)
        rows = batch["encoder_input_tokens"].shape[0]
        return {**batch, features.SOFT_PROMPT_IDS: jnp.full((rows,), self.prompt_id, jnp.int32)}


def _loss_of_trainable(
    model: EncoderDecoderModel, trainable: Params, frozen: Params, batch: Batch, dropout_rng: jax.Array | None
) -> tuple[jax.Array, LossSums]:
    """`model.loss_fn` of the combined tree, with a gradient for the trainable leaves only.

    T5X differentiates with respect to all leaves, outside of `mesh_in_force`. So the gradient is taken here, together
    with the loss, and T5X's differentiation only scales it: d(c * loss) = c * d(loss).
    """

    def loss_of(trainable, frozen, batch, dropout_rng):
        with t5x_optimizer.mesh_in_force():
            return model.loss_fn(stages.combine(trainable, frozen), batch, dropout_rng)

    def forward(*args):
        with t5x_optimizer.mesh_in_force():
            return jax.value_and_grad(loss_of, has_aux=True)(*args)

    def backward(gradients, cotangents):
        return jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), gradients), None, None, None

    differentiable = jax.custom_vjp(loss_of)
    differentiable.defvjp(forward, backward)
    return differentiable(trainable, frozen, dict(batch), dropout_rng)


def _metrics(loss: jax.Array, sums: LossSums, batch: Batch) -> dict[str, Any]:
    """T5X's metrics under T5X's names, but for those that need the logits of the whole vocabulary."""
    from t5x import metrics as t5x_metrics  # pyright: ignore[reportMissingImports] - from source, not on PyPI

    average, per_step = cast(Any, metrics.Average), t5x_metrics.AveragePerStep
    rows, positions = batch["decoder_target_tokens"].shape
    return {
        "loss": per_step(total=loss),
        "z_loss": per_step(total=sums.z_loss),
        "cross_ent_loss": per_step(total=sums.loss - sums.z_loss),
        "loss_per_nonpadding_target_token": average(total=sums.loss, count=sums.weight_sum),
        "accuracy": average(total=sums.correct, count=sums.weight_sum),
        "non_padding_fraction/loss_weights": average(total=sums.weight_sum, count=jnp.float32(rows * positions)),
        "timing/seconds": t5x_metrics.Time(),
        "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
        "timing/seqs_per_second": t5x_metrics.TimeRate.from_model_output(numerator=jnp.float32(rows)),
        "timing/target_tokens_per_second": t5x_metrics.TimeRate.from_model_output(numerator=sums.weight_sum),
    }
