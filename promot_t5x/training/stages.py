"""Stages of ProMoT: which leaves train, and the optimizer over exactly these (ProMoT, section 4).

`partition` splits a parameter tree into a trainable and a frozen tree of the same structure, the other's leaves None;
`combine` joins them. Frozen leaves own no gradient and no optimizer state.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from promot_t5x.models import parameter_names
from promot_t5x.runtime.text import did_you_mean

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
        raise ValueError(
            f"The stage {name!r} does not exist{did_you_mean(name, STAGES)}; the stages are {', '.join(STAGES)}."
        )
    return STAGES[name]


def partition(params: Params, stage: Stage) -> tuple[Params, Params]:
    """(trainable, frozen), trees of the structure of `params` whose leaves are None where the other has them.

    Raises:
      ValueError: nothing would train.
    """
    trainable = parameter_names.map_with_names(lambda name, leaf: leaf if stage.trains(name) else None, params)
    frozen = parameter_names.map_with_names(lambda name, leaf: None if stage.trains(name) else leaf, params)
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
        if leaf is None or name == parameter_names.PROMPT:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding)
        return leaf.astype(dtype)

    return parameter_names.map_with_names(held, frozen)
