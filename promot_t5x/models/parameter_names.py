"""Names of parameters: flat paths, adapters, and the exact conversion between per-layer and scanned stacks.

Canonical is T5X's public layout, `encoder/layers_0/mlp/wo/kernel` [F, D]. With `scan_layers` the same weights are
`encoder/layers/mlp/wo/kernel` [L, F, D]. Both hold the same bits.

An adapter is a subtree that T5X does not know: it can be split off, attached to a model and stored alone.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

PROMPT = "soft_prompt/embedding"
"""The only leaf that T5X does not know: soft prompts [N, P, D]."""

SOFT_PROMPT = "soft_prompt"
"""The subtree of that leaf."""

ADAPTERS = (SOFT_PROMPT,)
"""Subtrees of adapters."""

_LAYER = re.compile(r"^(encoder|decoder)/layers_(\d+)/(.+)$")

_STACK = re.compile(r"^(encoder|decoder)/layers/(.+)$")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} as {"a/b": x}, sorted by name; leaves that are None are left out.

    >>> flatten({"b": 1, "a": {"c": 2, "d": None}})
    {'a/c': 2, 'b': 1}
    """
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    return {name: flat[name] for name in sorted(flat) if flat[name] is not None}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`.

    >>> unflatten({"a/c": 2, "b": 1})
    {'a': {'c': 2}, 'b': 1}
    """
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def map_with_names(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Applies function(name, leaf) to every leaf of a nested dictionary, None leaves included."""
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    return unflatten({name: function(name, leaf) for name, leaf in flat.items()})


def split_adapters(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model, adapters) of a parameter tree, nested or flat.

    >>> split_adapters({"encoder": {"scale": 1}, "soft_prompt": {"embedding": 2}})
    ({'encoder': {'scale': 1}}, {'soft_prompt': {'embedding': 2}})
    >>> split_adapters({"encoder/scale": 1})
    ({'encoder/scale': 1}, {})
    """
    model = {name: part for name, part in params.items() if name.split("/")[0] not in ADAPTERS}
    return model, {name: part for name, part in params.items() if name not in model}


def attach_adapters(model: Mapping[str, Any], adapters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameter tree of a model with adapters, which replace those of the same name that it had.

    Raises:
      ValueError: what is to be attached is not an adapter.

    >>> attach_adapters({"encoder": {"scale": 1}}, {"soft_prompt": {"embedding": 2}})
    {'encoder': {'scale': 1}, 'soft_prompt': {'embedding': 2}}
    """
    if others := split_adapters(adapters)[0]:
        raise ValueError(f"Cannot attach {', '.join(others)}: expected subtrees among {', '.join(ADAPTERS)}.")
    return {**model, **adapters}


def is_scanned(names: Iterable[str]) -> bool:
    """Whether any of the flat names belongs to a scanned stack."""
    return any(_STACK.match(name) for name in names)


def stack_name(name: str) -> str:
    """The scanned stack that a layer's leaf belongs to; any other name is its own.

    >>> stack_name("encoder/layers_3/mlp/wo/kernel"), stack_name("token_embedder/embedding")
    ('encoder/layers/mlp/wo/kernel', 'token_embedder/embedding')
    """
    return _LAYER.sub(r"\1/layers/\3", name)


def _stack_arrays(leaves: list[Any]) -> Any:
    """Layers that are numpy arrays become a numpy array, without a detour over a device."""
    return (np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp).stack(leaves)


def unstack_layers(flat: Mapping[str, Any], layer: Callable[[Any, int], Any] = operator.getitem) -> dict[str, Any]:
    """Flat parameters with every scanned stack cut into its layers (canonical names); others pass through.

    Args:
      flat: leaves with a shape, from which `layer` can take one layer.
      layer: (stack, number) -> the layer.
    """
    result = {}
    for name, leaf in flat.items():
        if match := _STACK.match(name):
            side, rest = match.groups()
            result |= {f"{side}/layers_{i}/{rest}": layer(leaf, i) for i in range(leaf.shape[0])}
        else:
            result[name] = leaf
    return dict(sorted(result.items()))


def stack_layers(flat: Mapping[str, Any], stack: Callable[[list[Any]], Any] = _stack_arrays) -> dict[str, Any]:
    """Flat parameters with the layers of each side stacked on a new leading axis; others pass through.

    Args:
      flat: leaves that `stack` can stack.
      stack: the layers of one leaf in order -> their stack.

    Raises:
      ValueError: a layer lacks a parameter that others have.
    """
    result, stacks, depths = {}, {}, {}
    for name, leaf in flat.items():
        if match := _LAYER.match(name):
            side, index, _ = match.groups()
            stacks.setdefault(stack_name(name), {})[int(index)] = leaf
            depths[side] = max(depths.get(side, 0), int(index) + 1)
        else:
            result[name] = leaf
    for name, by_index in stacks.items():
        depth = depths[name.split("/")[0]]
        if sorted(by_index) != list(range(depth)):
            raise ValueError(f"Cannot stack {name}: found layers {sorted(by_index)}, expected 0..{depth - 1}.")
        result[name] = stack([by_index[i] for i in range(depth)])
    return dict(sorted(result.items()))


def as_stored_in(
    flat: Mapping[str, Any],
    names: Iterable[str],
    layer: Callable[[Any, int], Any] = operator.getitem,
    stack: Callable[[list[Any]], Any] = _stack_arrays,
) -> dict[str, Any]:
    """Converts flat parameters to the layout (scanned or per layer) that `names` are written in.

    Args:
      flat: leaves that `layer` and `stack` take.
      names: flat names in the wanted layout.
      layer: as for `unstack_layers`.
      stack: as for `stack_layers`.
    """
    wanted_scanned, scanned = is_scanned(names), is_scanned(flat)
    if wanted_scanned == scanned:
        return dict(flat)
    return stack_layers(flat, stack) if wanted_scanned else unstack_layers(flat, layer)
