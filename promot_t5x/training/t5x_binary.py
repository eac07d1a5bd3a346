"""ProMoT on T5X's own train, eval and infer binaries (gin/t5x/): a model and an optimizer that speak T5X's protocols.

Nothing here subclasses T5X's classes, and T5X, which is not on PyPI, is imported only where its binaries call: gin
files and tests that name this module need none of it. The parameter tree is T5X's, one subtree per layer, plus
`soft_prompt`. T5X holds the whole tree in its train state; what a stage freezes owns no gradient and no optimizer slot.

Source: https://github.com/google-research/t5x, `models.py`, `optimizers.py` and `trainer.py`, for what is called how.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import flax.core
import flax.linen.partitioning
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import seqio
from clu import metrics
from jax.interpreters import pxla
from jax.sharding import AbstractMesh, NamedSharding

from promot_t5x.data import features
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import Batch, EncoderDecoderModel, Params
from promot_t5x.models.losses import LossSums
from promot_t5x.partitioning.optimizer_slots import slot_shardings
from promot_t5x.training import optimizers, prompt_initializers, stages


@dataclasses.dataclass(frozen=True, eq=False)
class StagedOptimizer:
    """An optimizer over the leaves that a stage trains, as T5X's optimizer definition.

    The state is that of `stages.staged_optimizer`, of any optax transform, Adafactor's factored moments included; in a
    checkpoint its leaves lie under `state/param_states` by their path. The learning rate and its schedule belong to the
    transform: T5X's own is not looked at.

    Attributes:
      transform: for example `optimizers.adafactor(...)`, or any optax transformation.
      stage: what it trains, a `stages.Stage` or its name; all else keeps its bits and owns no slots.

    >>> StagedOptimizer(optimizers.adafactor(0.2), "prompt_tuning").staged.trains("encoder/encoder_norm/scale")
    False
    """

    transform: optimizers.Optimizer
    stage: str | stages.Stage

    def __post_init__(self):
        stages.stage(self.stage)  # a misspelt name shows at once

    @property
    def staged(self) -> stages.Stage:
        """The stage itself."""
        return stages.stage(self.stage)

    def create(self, target: Params) -> Any:
        """T5X's Optimizer, which pairs parameters with this definition and its state."""
        from t5x import optimizers as t5x_optimizers  # pyright: ignore[reportMissingImports] - from source, not on PyPI

        return t5x_optimizers.Optimizer(self, self.init_state(target), target)

    def init_state(self, params: Any) -> Any:
        """T5X's OptimizerState before the first step.

        Raises:
          ValueError: nothing would train.
        """
        from t5x import optimizers as t5x_optimizers  # pyright: ignore[reportMissingImports] - from source, not on PyPI

        trainable, _ = stages.partition(flax.core.unfreeze(params), self.staged)
        slots = optimizers.staged_optimizer(self.transform, trainable, self.staged).init(trainable)
        return t5x_optimizers.OptimizerState(step=jnp.zeros((), jnp.int32), param_states=slots)

    def update_hyper_params(self, **overrides: Any) -> None:
        """T5X hands its learning rate of the step on here; ours is in the transform."""

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        """(params, state) after one step; frozen leaves are the same arrays as before."""
        trainable, frozen = stages.partition(flax.core.unfreeze(params), self.staged)
        gradients, _ = stages.partition(flax.core.unfreeze(grads), self.staged)
        with _mesh_in_force():
            optimizer = optimizers.staged_optimizer(self.transform, trainable, self.staged)
            updates, slots = optimizer.update(gradients, state.param_states, trainable)
        updated: Any = optax.apply_updates(trainable, updates)
        new_params = jax.tree.leaves(stages.combine(updated, frozen))
        return jax.tree.unflatten(jax.tree.structure(params), new_params), state.replace(
            step=state.step + 1, param_states=slots
        )

    def state_dict(self, target: Params, state: Any) -> dict[str, Any]:
        """What T5X stores: {"target": parameters, "state": {"step", "param_states"}}, nested dictionaries of leaves.

        A slot's name is its path in optax's state. Parts of that state without leaves have no name: T5X cannot store
        an empty dictionary.
        """
        slots = parameter_names.unflatten(_by_path(state.param_states))
        target_dict = flax.serialization.to_state_dict(target)
        return {"target": target_dict, "state": {"step": state.step, "param_states": slots}}

    def restore_state(self, opt_target: Params, opt_state: Any, state_dict: Mapping[str, Any]) -> tuple[Params, Any]:
        """(target, state) with the leaves of a `state_dict`, which may be arrays, shapes or mesh axes.

        Raises:
          ValueError: the state is another optimizer's or another stage's.
        """
        target = flax.serialization.from_state_dict(opt_target, state_dict["target"])
        stored, wanted = parameter_names.flatten(state_dict["state"]["param_states"]), _by_path(opt_state.param_states)
        if differing := sorted(stored.keys() ^ wanted.keys()):
            raise ValueError(
                f"The checkpoint's optimizer state is not that of stage {self.staged.name}: {len(differing)} "
                f"leaves differ, such as {differing[0]}; use a new MODEL_DIR, or drop the state in ASSIGNMENT_MAP."
            )
        slots = jax.tree.unflatten(jax.tree.structure(opt_state.param_states), [stored[name] for name in wanted])
        return target, opt_state.replace(step=state_dict["state"]["step"], param_states=slots)

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Params) -> Any:
        """The same Optimizer with PartitionSpecs of logical axis names for leaves: slots lie as their parameters.

        Args:
          optimizer: T5X's Optimizer of arrays or shapes.
          param_logical_axes: a PartitionSpec of logical names for each parameter.
        """
        axes = parameter_names.flatten(param_logical_axes)
        names = tuple(sorted({name for spec in axes.values() for name in spec}))
        # The rules of `slot_shardings`, on a mesh whose axes are the logical names.
        mesh = AbstractMesh((1,) * len(names), names)
        trainable = parameter_names.flatten(stages.partition(flax.core.unfreeze(optimizer.target), self.staged)[0])
        owners = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, axes[name]))
            for name, leaf in trainable.items()
        }
        shardings = slot_shardings(optimizer.state.param_states, parameter_names.unflatten(owners))
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
        state = optimizer.state.replace(step=jax.sharding.PartitionSpec(), param_states=specs)
        return optimizer.replace(state=state, target=param_logical_axes)


def reported_learning_rate(learning_rate: float | optax.Schedule) -> Callable[[jax.Array], jax.Array]:
    """T5X's `learning_rate_fn`, for its log alone: give it what the transform has.

    >>> float(reported_learning_rate(0.25)(jnp.int32(7)))
    0.25
    """
    return lambda step: jnp.asarray(learning_rate(step) if callable(learning_rate) else learning_rate, jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class T5XModel:
    """An EncoderDecoderModel as the model of T5X's binaries.

    Attributes:
      model: the network and its objective. It is given T5X's layout, and no soft prompt where none is attached.
      attach_prompt: whether the soft prompt stands in front of every row, in training and in evaluation.
      optimizer_def: what trains; None for evaluation and inference.
      prompt_id: which of `T5Config.num_prompts` is attached.
      prompt_init: makes a soft prompt that no checkpoint brings. T5X makes all new parameters before it reads a
        checkpoint, so it must do without the model's embedding: `prompt_initializers.random_uniform` or `from_file`.
      scan_layers: stack the layers (a leading layer axis, see `layout.py`); no public checkpoint has that layout.

    Raises:
      ValueError: arguments that contradict each other.
    """

    FEATURE_CONVERTER_CLS: ClassVar = seqio.EncDecFeatureConverter

    model: EncoderDecoderModel
    attach_prompt: bool
    optimizer_def: StagedOptimizer | None = None
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
        if self.optimizer_def is not None and self.optimizer_def.staged.attaches_prompt != self.attach_prompt:
            raise ValueError(
                f"t5x_binary.T5XModel.attach_prompt is {self.attach_prompt}, but stage "
                f"{self.optimizer_def.staged.name} "
                f"trains {'without' if self.attach_prompt else 'with'} a soft prompt."
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
          input_shapes, input_types: of a batch; T5X gives them, the network's parameters do not depend on them.

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
        c, init = self.model.config, prompt_initializers.built(prompt_init)
        embedding: Any = jax.ShapeDtypeStruct((c.vocab_size, c.embed_dim), jnp.float32)  # no values, see prompt_init
        try:
            prompt_NxPxD = init(jax.random.fold_in(rng, 1), c.num_prompts, c.prompt_length, embedding)
        except TypeError as error:
            raise ValueError(
                "t5x_binary.T5XModel.prompt_init starts from the model's embedding, which T5X reads only afterwards; "
                "give it prompt_initializers.random_uniform, or prompt_initializers.from_file with a prompt made "
                "beforehand."
            ) from error
        return prompt_NxPxD.astype(c.param_dtype)

    def loss_fn(self, params: Any, batch: Batch, dropout_rng: jax.Array | None) -> tuple[jax.Array, dict[str, Any]]:
        """(loss, metrics) of a batch in training; its gradient is zero for what the stage freezes, at no cost.

        Args:
          params: the whole tree.
          batch: encoder_input_tokens BxT, decoder_input_tokens, decoder_target_tokens and decoder_loss_weights BxU.
          dropout_rng: key of the dropout masks, None for none.

        Raises:
          ValueError: the batch is packed.
        """
        batch = self._prompted(batch)
        if self.optimizer_def is None:
            with _mesh_in_force():
                loss, sums = self.model.loss_fn(params, batch, dropout_rng)
        else:
            trainable, frozen = stages.partition(flax.core.unfreeze(params), self.optimizer_def.staged)
            loss, sums = _loss_of_trainable(self.model, trainable, frozen, batch, dropout_rng)
        return loss, _metrics(loss, sums, batch)

    def eval_fn(self, params: Params, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """(loss, metrics) of a batch without dropout."""
        return self.loss_fn(params, batch, None)

    def predict_batch(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """Decoded tokens_BxU, 0 after the end, as `EncoderDecoderModel.decoding` says."""
        with _mesh_in_force():
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
        with _mesh_in_force():
            return self.model.score_batch(params, self._prompted(batch))

    def _prompted(self, batch: Batch) -> dict[str, jax.Array]:
        if packed := [name for name in batch if name.endswith("segment_ids")]:
            raise ValueError(f"The batch is packed (it has {packed[0]}); set utils.DatasetConfig.pack = False.")
        rows = batch["encoder_input_tokens"].shape[0]
        ids_B = {features.SOFT_PROMPT_IDS: jnp.full((rows,), self.prompt_id, jnp.int32)} if self.attach_prompt else {}
        return {**batch, **ids_B}


def _loss_of_trainable(
    model: EncoderDecoderModel, trainable: Params, frozen: Params, batch: Batch, dropout_rng: jax.Array | None
) -> tuple[jax.Array, LossSums]:
    """`model.loss_fn` of the combined tree, to be differentiated with respect to the trainable leaves alone.

    T5X differentiates outside of this module, where its mesh is not in force and all leaves are asked for: so the
    gradient is taken here, together with the loss.
    """

    def loss_of(trainable, frozen, batch, dropout_rng):
        with _mesh_in_force():
            return model.loss_fn(stages.combine(trainable, frozen), batch, dropout_rng)

    def forward(*args):
        with _mesh_in_force():
            return jax.value_and_grad(loss_of, has_aux=True)(*args)

    def backward(gradients, cotangents):
        return jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), gradients), None, None, None

    differentiable = jax.custom_vjp(loss_of)
    differentiable.defvjp(forward, backward)
    return differentiable(trainable, frozen, dict(batch), dropout_rng)


@contextlib.contextmanager
def _mesh_in_force():
    """Lets `partitioning` and Flax' logical constraints see T5X's mesh, which it enters in JAX's older way."""
    with warnings.catch_warnings():
        # JAX gives up this way of reading a mesh together with the way T5X enters it.
        warnings.simplefilter("ignore", DeprecationWarning)
        mesh = pxla.thread_resources.env.physical_mesh
    with contextlib.nullcontext() if mesh.empty else jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by their path, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _metrics(loss: jax.Array, sums: LossSums, batch: Batch) -> dict[str, Any]:
    """T5X's metrics by T5X's names, as far as they do not need the logits of the whole vocabulary."""
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
