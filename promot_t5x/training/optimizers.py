"""Optimizers over the leaves that a stage trains.

An optimizer is a frozen dataclass of its settings with a method `build`, which returns the optax transformation. Its
name is in lower case, as optax names transformations and gin files write them.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from promot_t5x.models import parameter_names
from promot_t5x.runtime import arguments
from promot_t5x.training import adafactor_in_slabs, stages


@runtime_checkable
class OptimizerSettings(Protocol):
    """Settings that an optax transformation is built from."""

    def build(self) -> optax.GradientTransformation:
        """The transformation."""
        ...


Optimizer = OptimizerSettings | optax.GradientTransformation


def built(optimizer: Optimizer) -> optax.GradientTransformation:
    """The transformation of an optimizer's settings; a bare optax transformation is returned as it is.

    >>> built(adam(0.1)).init({"w": jnp.zeros(2)})[0].mu
    {'w': Array([0., 0.], dtype=float32)}
    """
    return optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer.build()


@dataclasses.dataclass(frozen=True)
class named:
    """Any optax transformation under a name of your own, which a run records in place of the functions it is made of.

    Attributes:
      name: what is recorded, and compared when the run is resumed: put the settings that matter into it.
      transformation: the transformation.

    >>> named("sgd, rate 0.1", optax.sgd(0.1)).name
    'sgd, rate 0.1'
    """

    name: str
    transformation: optax.GradientTransformation = dataclasses.field(repr=False, metadata={"recorded": False})

    def build(self) -> optax.GradientTransformation:
        """The transformation."""
        return self.transformation


def labels(params: stages.Params, stage: stages.Stage) -> stages.Params:
    """A label for every leaf: None when frozen, else the transform that updates it.

    Layers stacked for scanning get one label per side, so that Adafactor clips and scales each layer on its own, as it
    would with one leaf per layer.
    """

    def label(name: str, leaf: Any) -> str | None:
        if leaf is None or not stage.trains(name):
            return None
        for side in ("encoder", "decoder"):
            if name.startswith(f"{side}/layers/"):
                return f"{side}_layers"
        return "single"

    return parameter_names.map_with_names(label, params)


def _per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`transform` applied to each layer of stacked leaves [L, …] on its own."""
    transform = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, **of_all_leaves):
        return jax.vmap(functools.partial(transform.update, **of_all_leaves))(updates, state, params)

    return optax.GradientTransformationExtraArgs(jax.vmap(transform.init), update)


@dataclasses.dataclass(frozen=True)
class Staged:
    """optax.multi_transform of an optimizer over a stage's trainable leaves; it is used as an optax transformation.

    A transform sees the leaves of one label only, and stacked layers one layer at a time. The norm over all trainable
    leaves, sqrt(sum of g^2), is passed to it as the extra argument `gradient_norm`, which `adam` clips by.

    Attributes:
      optimizer: what updates one group of leaves: its settings, or a bare optax transformation.
      stage: the stage.

    >>> Staged(adam(0.1), stages.stage("fine_tuning")).learning_rate
    0.1
    """

    optimizer: Optimizer
    stage: stages.Stage

    @property
    def learning_rate(self) -> float | None:
        """The constant learning rate, None for a schedule or an optimizer of your own."""
        optimizer = _built_with_any_rate(self.optimizer)
        rate = optimizer.learning_rate if optimizer else None
        return float(rate) if isinstance(rate, int | float) else None

    @property
    def with_any_rate(self) -> "Staged":
        """The same for optimizers that differ in nothing but their constant learning rate."""
        optimizer = _built_with_any_rate(self.optimizer)
        if self.learning_rate is None or optimizer is None:
            return self
        return dataclasses.replace(self, optimizer=dataclasses.replace(optimizer, learning_rate=1.0))

    def init(self, trainable: stages.Params) -> Any:
        """The state before the first step for `stages.partition(params, stage)[0]`."""
        return self._by_label(trainable, None).init(trainable)

    def update(self, updates: Any, state: Any, params: Any = None, *, learning_rate: Any = None) -> tuple[Any, Any]:
        """The updates of the parameters from their gradients, and the next state.

        Args:
          updates, state, params: as optax has them.
          learning_rate: takes the place of the constant one, such as an argument of a compiled step.
        """
        by_label = self._by_label(updates, learning_rate)
        return by_label.update(updates, state, params, gradient_norm=optax.tree.norm(updates))

    def _by_label(self, trainable: stages.Params, learning_rate: Any) -> optax.GradientTransformationExtraArgs:
        optimizer = _built_with_any_rate(self.optimizer)
        if learning_rate is not None and optimizer:
            transform = optimizer.build(learning_rate)
        else:
            transform = built(self.optimizer)
        by_leaf = labels(trainable, self.stage)
        present = sorted(set(jax.tree.leaves(by_leaf)))
        return optax.multi_transform(
            {label: transform if label == "single" else _per_layer(transform) for label in present}, by_leaf
        )


@arguments.checked
@dataclasses.dataclass(frozen=True)
class adafactor:
    """T5X's Adafactor: factored second moments from 128 x 128 on, no momentum, updates clipped at 1.

    The second moment of a soft prompt is never factored, however long the prompt, as in the prompt-tuning code: its
    rows are separate vectors, not a matrix. Everything else is the same for prompt and model, in `joint_tuning` too.

    Attributes:
      learning_rate: a constant or an optax schedule.
      multiply_by_parameter_scale: T5X's default for model weights; off for prompts (Lester et al., section 3.2).
      weight_decay_rate: 1e-5 for prompts.
      decay_rate: exponent of the second moment's decay.

    >>> adafactor(0.2, multiply_by_parameter_scale=False)
    adafactor(learning_rate=0.2, multiply_by_parameter_scale=False, weight_decay_rate=None, decay_rate=0.8)
    """

    learning_rate: float | optax.Schedule
    multiply_by_parameter_scale: bool = True
    weight_decay_rate: float | None = None
    decay_rate: float = 0.8

    def __post_init__(self):
        _check_rate("adafactor", self.learning_rate)
        decay, weight_decay = self.decay_rate, self.weight_decay_rate or 0.0
        if not (0 <= decay < math.inf and 0 <= weight_decay < math.inf):
            raise ValueError(
                f"adafactor has decay_rate={decay}, weight_decay_rate={self.weight_decay_rate}: expected numbers of at "
                "least 0."
            )

    def build(self, learning_rate: Any = None) -> optax.GradientTransformation:
        """The optax transformation; its learning rate may be given as a traced number."""
        by_label: dict[Hashable, optax.GradientTransformation]
        by_label = {
            "prompt": self._with_moments(False, learning_rate),
            "model": self._with_moments(True, learning_rate),
        }
        return optax.multi_transform(by_label, _prompt_or_model)

    def _with_moments(self, factored: bool, learning_rate: Any) -> optax.GradientTransformation:
        rate, of_size = self.learning_rate if learning_rate is None else learning_rate, None
        if self.multiply_by_parameter_scale and learning_rate is not None:
            # XLA multiplies a constant rate with the size of a parameter, as both are scalars. One that is an argument
            # is multiplied with it here, so that the updates have the same bits.
            rate, of_size = 1.0, learning_rate
        links = [
            adafactor_in_slabs.scale_by_clipped_factored_rms(factored, self.decay_rate),
            optax.scale_by_learning_rate(rate, flip_sign=False),
        ]
        if self.multiply_by_parameter_scale:
            links.append(optax.stateless_with_tree_map(functools.partial(_scale_by_parameter_rms, rate=of_size)))
        if self.weight_decay_rate is not None:
            links.append(optax.add_decayed_weights(self.weight_decay_rate))
        return optax.chain(*links, optax.scale(-1.0))


def _scale_by_parameter_rms(update: Any, param: Any, rate: Any) -> jax.Array:
    """optax.scale_by_param_block_rms without its guard for gradients through it, which costs a copy of the matrix."""
    scale = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(param))), 1e-3)
    return update * (scale if rate is None else scale * rate)


def _prompt_or_model(params: stages.Params) -> stages.Params:
    def label(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return "prompt" if name.startswith(f"{parameter_names.SOFT_PROMPT}/") else "model"

    return jax.tree_util.tree_map_with_path(label, params)


@arguments.checked
@dataclasses.dataclass(frozen=True)
class adam:
    """Adam, optionally after clipping the gradient by its norm over all trainable leaves.

    Attributes:
      learning_rate: a constant or an optax schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      clip_norm: gradients g become g * min(1, clip_norm / |g|); None leaves them as they are.

    >>> adam(1e-3, clip_norm=1.0)
    adam(learning_rate=0.001, b1=0.9, b2=0.999, clip_norm=1.0)
    """

    learning_rate: float | optax.Schedule
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float | None = None

    def __post_init__(self):
        _check_rate("adam", self.learning_rate)

    def build(self, learning_rate: Any = None) -> optax.GradientTransformation:
        """The optax transformation; its learning rate may be given as a traced number."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        transform = optax.adam(rate, b1=self.b1, b2=self.b2)
        return transform if self.clip_norm is None else optax.chain(_clip(self.clip_norm), transform)


def _built_with_any_rate(optimizer: Optimizer) -> adafactor | adam | None:
    """An optimizer whose `build` takes a learning rate, else None; a subclass may build in a way of its own."""
    return optimizer if type(optimizer) is adafactor or type(optimizer) is adam else None


def _check_rate(optimizer: str, learning_rate: Any) -> None:
    """Raises ValueError for a constant learning rate with which nothing is learnt."""
    if isinstance(learning_rate, int | float) and not 0 < learning_rate < math.inf:
        raise ValueError(f"{optimizer}.learning_rate is {learning_rate!r}: expected a positive number.")


def _clip(clip_norm: float) -> optax.GradientTransformationExtraArgs:
    """optax.clip_by_global_norm; under `Staged` the norm is that over the leaves of all labels."""

    def update(updates, state, params=None, *, gradient_norm=None, **_):
        norm = optax.tree.norm(updates) if gradient_norm is None else gradient_norm
        scale = jnp.minimum(1.0, clip_norm / norm)
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
