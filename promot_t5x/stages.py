"""Stages of ProMoT: which leaves train, and the optimizer over exactly these (ProMoT, section 4).

`partition` splits a parameter tree into a trainable and a frozen tree of the same structure, the other's leaves None;
`combine` joins them. Frozen leaves own no gradient and no optimizer state.
"""

import dataclasses
import difflib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from promot_t5x import layout, slabs

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


def held_in(frozen: Params, dtype: str | None) -> Params:
    """The frozen weights (arrays or ShapeDtypeStructs) in another dtype, the soft prompt as it is.

    A network that computes in bfloat16 rounds its weights to it at every use anyway, but for norms and logits.

    Raises:
      ValueError: no dtype of a weight.

    >>> held_in({"a": jnp.ones(2), "b": None}, "bfloat16")["a"].dtype
    dtype(bfloat16)
    """
    if dtype is None:
        return frozen
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"train.train.frozen_weights_dtype is {dtype!r}: expected None, float32 or bfloat16.")

    def held(name: str, leaf: Any) -> Any:
        if leaf is None or name == layout.PROMPT:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding)
        return leaf.astype(dtype)

    return layout.map_with_names(held, frozen)


def _per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`transform` applied to each layer of stacked leaves [L, …] on its own."""
    transform = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, **of_all_leaves):
        return jax.vmap(functools.partial(transform.update, **of_all_leaves))(updates, state, params)

    return optax.GradientTransformationExtraArgs(jax.vmap(transform.init), update)


def staged_optimizer(
    transform: optax.GradientTransformation, params: Params, stage: Stage
) -> optax.GradientTransformation:
    """optax.multi_transform of `transform` over the stage's trainable leaves.

    A transform sees the leaves of one label, and of stacked layers one layer at a time. What it needs to know of all
    trainable leaves it gets as an extra argument: `gradient_norm`, sqrt(sum of g^2), which `adam` clips by.

    Args:
      transform: what updates one group of leaves.
      params: the whole tree, arrays or shapes; the result works on `partition(params, stage)[0]`.
      stage: the stage.
    """
    by_leaf = labels(params, stage)
    present = sorted(set(jax.tree.leaves(by_leaf)))
    by_label = optax.multi_transform(
        {label: transform if label == "single" else _per_layer(transform) for label in present}, by_leaf
    )

    def update(updates, state, params=None):
        return by_label.update(updates, state, params, gradient_norm=optax.tree.norm(updates))

    return optax.GradientTransformation(by_label.init, update)


def adafactor(
    learning_rate: float | optax.Schedule,
    multiply_by_parameter_scale: bool = True,
    weight_decay_rate: float | None = None,
    decay_rate: float = 0.8,
) -> optax.GradientTransformation:
    """T5X's Adafactor: factored second moments from 128 x 128 on, no momentum, updates clipped at 1.

    The second moment of a soft prompt is never factored, however long the prompt, as in the prompt-tuning code: its
    rows are vectors of their own, not a matrix. All else is the same for prompt and model, in `joint_tuning` too.

    Args:
      learning_rate: a constant or an optax schedule.
      multiply_by_parameter_scale: T5X's default for model weights; off for prompts (Lester et al., section 3.2).
      weight_decay_rate: 1e-5 for prompts.
      decay_rate: exponent of the second moment's decay.
    """

    def with_moments(factored: bool) -> optax.GradientTransformation:
        links = [
            slabs.scale_by_clipped_factored_rms(factored, decay_rate),
            optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        ]
        if multiply_by_parameter_scale:
            links.append(optax.stateless_with_tree_map(_scale_by_parameter_rms))
        if weight_decay_rate is not None:
            links.append(optax.add_decayed_weights(weight_decay_rate))
        return optax.chain(*links, optax.scale(-1.0))

    return optax.multi_transform({"prompt": with_moments(False), "model": with_moments(True)}, _prompt_or_model)


def _scale_by_parameter_rms(update: Any, param: Any) -> jax.Array:
    """optax.scale_by_param_block_rms without its guard for gradients through it, which costs a copy of the matrix."""
    return update * jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(param))), 1e-3)


def _prompt_or_model(params: Params) -> Params:
    def label(path, _):
        return "prompt" if "soft_prompt" in jax.tree_util.keystr(path) else "model"

    return jax.tree_util.tree_map_with_path(label, params)


def adam(
    learning_rate: float | optax.Schedule, b1: float = 0.9, b2: float = 0.999, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam behind an optional clip of the gradient's norm, the norm over all leaves that train.

    Args:
      learning_rate: a constant or an optax schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      clip_norm: gradients g become g * min(1, clip_norm / |g|); None leaves them as they are.
    """
    transform = optax.adam(learning_rate, b1=b1, b2=b2)
    return transform if clip_norm is None else optax.chain(_clip(clip_norm), transform)


def _clip(clip_norm: float) -> optax.GradientTransformationExtraArgs:
    """optax.clip_by_global_norm, by the norm that `staged_optimizer` took over all labels, where it drives this."""

    def update(updates, state, params=None, *, gradient_norm=None, **_):
        norm = optax.tree.norm(updates) if gradient_norm is None else gradient_norm
        scale = jnp.minimum(1.0, clip_norm / norm)
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
