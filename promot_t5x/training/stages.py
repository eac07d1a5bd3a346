"""Stages of ProMoT: which leaves train (ProMoT, section 4), by patterns over the names of leaves.

`partition` splits a parameter tree into a trainable and a frozen tree of the same structure, the other's leaves None;
`combine` joins them. Frozen leaves own no gradient and no optimizer state.
"""

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from promot_t5x.models import parameter_names
from promot_t5x.runtime.text import did_you_mean, nearest

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one training run does to each leaf of the parameter tree.

    A pattern is the name of a subtree, or a regular expression for one or for leaves. It has to match a whole name:
    "decoder" and r"decoder/layers_[67]" match the leaves below these subtrees, r".*/scale" matches the scales of all
    norms. With `T5Config.scan_layers` the layers of a side are one subtree, `decoder/layers`.

    Attributes:
      name: what the run's table, log and metadata call it.
      trainable: patterns of the leaves that receive updates.
      frozen: patterns of the leaves among these that do not.
      attaches_prompt: the soft prompt is in front of the training inputs; one that is not attached never trains.

    Raises:
      ValueError: no pattern, or one that is not a regular expression.

    >>> upper = Stage("upper_layers", trainable=["decoder"], frozen=[r"decoder/layers_[0-5]"])
    >>> upper.trains("decoder/layers_6/mlp/wo/kernel"), upper.trains("decoder/layers_5/mlp/wo/kernel")
    (True, False)
    """

    name: str
    trainable: str | Sequence[str]
    frozen: str | Sequence[str] = ()
    attaches_prompt: bool = True

    def __post_init__(self):
        for field in ("trainable", "frozen"):
            patterns = getattr(self, field)
            patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
            object.__setattr__(self, field, patterns)
            for pattern in patterns:
                _check_regex(pattern, f"stages.Stage.{field} of the stage {self.name}")
        if not self.trainable:
            raise ValueError(
                f"stages.Stage.trainable of the stage {self.name} is empty: expected at least one pattern, such as "
                "('decoder',)."
            )

    def trains(self, name: str) -> bool:
        """Whether the leaf of this flat name trains."""
        if name.startswith(f"{parameter_names.SOFT_PROMPT}/") and not self.attaches_prompt:
            return False
        trainable = any(_matches(pattern, name) for pattern in self.trainable)
        return trainable and not any(_matches(pattern, name) for pattern in self.frozen)

    def trains_any(self, params: Params) -> bool:
        """Whether any leaf of a tree trains."""
        return any(self.trains(name) for name in parameter_names.flatten(params))


def _check_regex(pattern: Any, owner: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{owner} has {pattern!r}, which is not a regular expression ({error}): expected the name of a subtree or "
            "a regular expression for names such as decoder/layers_0/mlp/wo/kernel."
        ) from error


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a leaf's whole name or that of a subtree it is in."""
    return re.fullmatch(rf"(?:{pattern})(?:/.*)?", name) is not None


_ALL = ".*"

STAGES = {
    stage.name: stage
    for stage in (
        Stage("prompt_tuning", trainable=(parameter_names.SOFT_PROMPT,)),
        Stage("model_tuning", trainable=(_ALL,), frozen=parameter_names.ADAPTERS),
        Stage("fine_tuning", trainable=(_ALL,), frozen=parameter_names.ADAPTERS, attaches_prompt=False),
        Stage("joint_tuning", trainable=(_ALL,)),
    )
}


def stage(name: str | Stage) -> Stage:
    """The stage of that name; a Stage is returned as it is.

    Raises:
      ValueError: no such stage; names the nearest.

    >>> stage("prompt_tuning").trains("encoder/encoder_norm/scale")
    False
    """
    if isinstance(name, Stage):
        return name
    if name not in STAGES:
        raise ValueError(
            f"The stage {name!r} does not exist{did_you_mean(name, STAGES)}; the stages are {', '.join(STAGES)}."
        )
    return STAGES[name]


def partition(params: Params, stage: Stage) -> tuple[Params, Params]:
    """(trainable, frozen), trees of the structure of `params` whose leaves are None where the other has them.

    Raises:
      ValueError: nothing would train, or a pattern matches nothing.
    """
    names = parameter_names.flatten(params)
    _check_patterns(names, stage)
    if not stage.trains_any(params):
        raise ValueError(f"Stage {stage.name} trains 0 parameters: {_why_nothing_trains(names, stage)}.")
    trainable = parameter_names.map_with_names(lambda name, leaf: leaf if stage.trains(name) else None, params)
    frozen = parameter_names.map_with_names(lambda name, leaf: None if stage.trains(name) else leaf, params)
    return trainable, frozen


def _check_patterns(names: Collection[str], stage: Stage) -> None:
    """Refuses misspelt patterns, which would freeze what should train or train what should be frozen."""
    for field in ("trainable", "frozen"):
        for pattern in getattr(stage, field):
            if pattern not in parameter_names.ADAPTERS and not any(_matches(pattern, name) for name in names):
                subtrees = dict.fromkeys(name.split("/")[0] for name in names)
                closest = nearest(pattern, names, cutoff=0.0)
                stacked = "layers_" in pattern and any("/layers/" in name for name in names)
                hint = "; set architecture.T5Config.scan_layers = False to name single layers" if stacked else ""
                raise ValueError(
                    f"stages.Stage.{field} of the stage {stage.name} has {pattern!r}, which matches no parameter: "
                    f"expected a subtree, such as {', '.join(subtrees)}, or a regular expression for whole names, such "
                    f"as {closest[0]}{hint}."
                )


def _why_nothing_trains(names: Collection[str], stage: Stage) -> str:
    prompt = parameter_names.SOFT_PROMPT
    if set(stage.trainable) == {prompt} and stage.attaches_prompt and parameter_names.PROMPT not in names:
        return f"the network has no {prompt} subtree; set architecture.T5Config.prompt_length"
    return (
        f"none of its {len(names)} leaves is matched by stages.Stage.trainable {tuple(stage.trainable)} and not by "
        f"stages.Stage.frozen {tuple(stage.frozen)}; change these patterns"
    )


def combine(trainable: Params, frozen: Params) -> Params:
    """The whole tree again; each leaf comes from the tree where it is not None."""
    return jax.tree.map(lambda t, f: f if t is None else t, trainable, frozen, is_leaf=lambda x: x is None)


def stored(trainable: Params, frozen: Params) -> Params:
    """What a run's checkpoints hold: the adapters where only they train, otherwise the whole tree.

    >>> params = parameter_names.unflatten({parameter_names.PROMPT: jnp.ones(2), "norm/scale": jnp.ones(3)})
    >>> print(*stored(*partition(params, stage("prompt_tuning"))))
    soft_prompt
    """
    model, _ = parameter_names.split_adapters(trainable)
    whole = combine(trainable, frozen)
    return whole if jax.tree.leaves(model) else parameter_names.split_adapters(whole)[1]


def held_in(frozen: Params, dtype: str | None) -> Params:
    """The frozen weights (arrays or ShapeDtypeStructs) in another dtype, adapters as they are.

    A network that computes in bfloat16 rounds its weights to it at every use anyway, except in norms and logits.

    Raises:
      ValueError: dtype is neither None, float32 nor bfloat16.

    >>> held_in({"a": jnp.ones(2), "b": None}, "bfloat16")["a"].dtype
    dtype(bfloat16)
    """
    if dtype is None:
        return frozen
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"train.train.frozen_weights_dtype is {dtype!r}: expected None, float32 or bfloat16.")

    def held(name: str, leaf: Any) -> Any:
        if leaf is None or name.split("/")[0] in parameter_names.ADAPTERS:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding)
        return leaf.astype(dtype)

    return parameter_names.map_with_names(held, frozen)
