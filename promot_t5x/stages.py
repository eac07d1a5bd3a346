"""Stages of ProMoT: which leaves train, and the optimizer over exactly these (ProMoT, section 4).

`partition` splits a parameter tree into a trainable and a frozen tree of the same structure, the other's leaves None;
`combine` joins them. Frozen leaves own no gradient and no optimizer state.
"""

import dataclasses
import difflib
from typing import Any

import jax
import optax

from promot_t5x import layout

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one training run does to the two parts of the parameter tree.

    Attributes:
      name: one of the keys of STAGES.
      trains_prompt: `soft_prompt` receives updates.
      trains_model: everything but `soft_prompt` receives updates.
      attaches_prompt: the soft prompt stands in front of the training inputs.
    """

    name: str
    trains_prompt: bool
    trains_model: bool
    attaches_prompt: bool

    def trains(self, name: str) -> bool:
        """Whether the leaf of this flat name trains."""
        return self.trains_prompt if name.startswith("soft_prompt/") else self.trains_model


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prompt_tuning", trains_prompt=True, trains_model=False, attaches_prompt=True),
        Stage("model_tuning", trains_prompt=False, trains_model=True, attaches_prompt=True),
        Stage("fine_tuning", trains_prompt=False, trains_model=True, attaches_prompt=False),
        Stage("joint_tuning", trains_prompt=True, trains_model=True, attaches_prompt=True),
    )
}


def stage(name: str) -> Stage:
    """The stage of that name.

    Raises:
      ValueError: no such stage; names the nearest.

    >>> stage("prompt_tuning").trains("encoder/encoder_norm/scale")
    False
    """
    if name not in STAGES:
        nearest = difflib.get_close_matches(name, STAGES, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ValueError(f"The stage {name!r} does not exist{hint}; the stages are {', '.join(STAGES)}.")
    return STAGES[name]


def labels(params: Params, stage: Stage) -> Params:
    """A label for every leaf: None when frozen, else the transform that updates it.

    Layers that are stacked for scanning get a label for each side, so that Adafactor clips and scales each layer on
    its own, as it would with one leaf a layer.
    """

    def label(name: str, leaf: Any) -> str | None:
        if leaf is None or not stage.trains(name):
            return None
        for side in ("encoder", "decoder"):
            if name.startswith(f"{side}/layers/"):
                return f"{side}_layers"
        return "single"

    return layout.map_with_names(label, params)


def partition(params: Params, stage: Stage) -> tuple[Params, Params]:
    """(trainable, frozen), trees of the structure of `params` whose leaves are None where the other has them.

    Raises:
      ValueError: nothing would train.
    """
    trainable = layout.map_with_names(lambda name, leaf: leaf if stage.trains(name) else None, params)
    frozen = layout.map_with_names(lambda name, leaf: None if stage.trains(name) else leaf, params)
    if not jax.tree.leaves(trainable):
        raise ValueError(
            f"Stage {stage.name} trains 0 parameters: the network has no "
            f"{'soft_prompt subtree; set architecture.T5Config.prompt_length' if stage.trains_prompt else 'weights'}."
        )
    return trainable, frozen


def combine(trainable: Params, frozen: Params) -> Params:
    """The whole tree again; each leaf comes from the tree where it is not None."""
    return jax.tree.map(lambda t, f: f if t is None else t, trainable, frozen, is_leaf=lambda x: x is None)


def _per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` applied to each layer of stacked leaves [L, …] on its own."""
    return optax.GradientTransformation(jax.vmap(transform.init), jax.vmap(transform.update))


def staged_optimizer(
    transform: optax.GradientTransformation, params: Params, stage: Stage
) -> optax.GradientTransformation:
    """optax.multi_transform of `transform` over the stage's trainable leaves.

    Args:
      transform: what updates one group of leaves.
      params: the whole tree, arrays or shapes; the result works on `partition(params, stage)[0]`.
      stage: the stage.
    """
    by_leaf = labels(params, stage)
    present = sorted(set(jax.tree.leaves(by_leaf)))
    return optax.multi_transform(
        {label: transform if label == "single" else _per_layer(transform) for label in present}, by_leaf
    )


def adafactor(
    learning_rate: float | optax.Schedule,
    multiply_by_parameter_scale: bool = True,
    weight_decay_rate: float | None = None,
    decay_rate: float = 0.8,
) -> optax.GradientTransformation:
    """T5X's Adafactor: factored second moments from 128 x 128 on, no momentum, updates clipped at 1.

    Args:
      learning_rate: a constant or an optax schedule.
      multiply_by_parameter_scale: T5X's default for model weights; off for prompts (Lester et al., section 3.2).
      weight_decay_rate: 1e-5 for prompts.
      decay_rate: exponent of the second moment's decay.
    """
    return optax.adafactor(
        learning_rate,
        min_dim_size_to_factor=128,
        decay_rate=decay_rate,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        clipping_threshold=1.0,
        momentum=None,
        weight_decay_rate=weight_decay_rate,
    )


def adam(
    learning_rate: float | optax.Schedule, b1: float = 0.9, b2: float = 0.999, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam behind an optional clip of the gradient's norm (over one label's leaves)."""
    transform = optax.adam(learning_rate, b1=b1, b2=b2)
    return transform if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), transform)
