"""T5X's two layouts of a network's parameters as views of each other.

`t5` has our names, one parameter per layer, and one table of relative positions per side. `scalable_t5` has stacks with
the layers on the second axis, separate dimensions for heads and their width, and one table per layer. Our scanned
stacks have the layers on the first axis and one dimension for heads and width (`models.parameter_names`).

Source: https://github.com/google-research/t5x, `examples/t5/network.py` and `examples/scalable_t5/network.py`.
"""

import re
from collections.abc import Iterable, Mapping

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import Leaves, StoredLeaf
from promot_t5x.models import parameter_names

_SCANNED = re.compile(r"^(encoder|decoder)/\1/(.+)$")

_OURS = re.compile(r"^(encoder|decoder)/layers/(.+)$")

_BIAS = "relpos_bias/rel_embedding"

PROJECTIONS = ("query/kernel", "key/kernel", "value/kernel")

OUT = "out/kernel"


class DifferentBiasesError(ValueError):
    """Layers that are to share a table of relative positions have different ones."""


def is_scanned(names: Iterable[str]) -> bool:
    """Whether names are those of `scalable_t5`.

    >>> is_scanned({"encoder/encoder/mlp/wo/kernel": 0}), is_scanned({"encoder/layers_0/mlp/wo/kernel": 0})
    (True, False)
    """
    return any(_SCANNED.match(name) for name in names)


def our_stack(name: str) -> str:
    """Our name of a stack of `scalable_t5`.

    >>> our_stack("encoder/encoder/mlp/wo/kernel")
    'encoder/layers/mlp/wo/kernel'
    """
    return _SCANNED.sub(r"\1/layers/\2", name)


def from_scanned(leaves: Leaves) -> dict[str, StoredLeaf]:
    """Leaves of `scalable_t5` as our scanned stacks; others pass through.

    Raises:
      ValueError: a leaf lacks the dimension of the layers or of the heads.
    """

    def convert(name: str, leaf: StoredLeaf) -> tuple[str, StoredLeaf]:
        match = _SCANNED.match(name)
        if not match:
            return name, leaf
        side, rest = match.groups()
        least = 4 if rest.endswith((*PROJECTIONS, OUT)) else 2
        if len(leaf.shape) < least:
            raise ValueError(
                f"{leaf.source} has the shape {leaf.shape}, expected at least {least} dimensions with the layers on "
                "the second: give a checkpoint of scalable_t5."
            )
        ours = stored_leaves.transposed(leaf, (1, 0, *range(2, len(leaf.shape))))
        if rest.endswith(PROJECTIONS):  # LxDxHxK
            ours = stored_leaves.joined(ours, 2)
        elif rest.endswith(OUT):  # LxHxKxD
            ours = stored_leaves.joined(ours, 1)
        return our_stack(name), ours

    return dict(sorted(convert(name, leaf) for name, leaf in leaves.items()))


def to_scanned(leaves: Leaves, head_dim: int) -> dict[str, StoredLeaf]:
    """Our leaves, in either layout, as in `scalable_t5`; relative positions become one table per layer."""

    def convert(name: str, leaf: StoredLeaf) -> tuple[str, StoredLeaf]:
        match = _OURS.match(name)
        if not match:
            return name, leaf
        side, rest = match.groups()
        if rest.endswith(PROJECTIONS):
            leaf = stored_leaves.split(leaf, 2, head_dim)
        elif rest.endswith(OUT):
            leaf = stored_leaves.split(leaf, 1, head_dim)
        return f"{side}/{side}/{rest}", stored_leaves.transposed(leaf, (1, 0, *range(2, len(leaf.shape))))

    stacks = leaves if parameter_names.is_scanned(leaves) else parameter_names.stack_layers(leaves, stored_leaves.stack)
    return dict(sorted(convert(name, leaf) for name, leaf in with_relative_bias(stacks, "per_layer").items()))


def relative_bias_of(names: Mapping) -> str:
    """ "per_layer" if every layer has a table of relative positions, else "shared".

    >>> relative_bias_of({"encoder/relpos_bias/rel_embedding": 0})
    'shared'
    """
    return "per_layer" if any("/layers" in name and name.endswith(_BIAS) for name in names) else "shared"


def with_relative_bias(leaves: Leaves, wanted: str) -> dict[str, StoredLeaf]:
    """The leaves with relative positions as `wanted`: "shared" (one table per side) or "per_layer" (see T5Config).

    Raises:
      DifferentBiasesError: layers that are to share a table have different ones.
    """
    result = dict(leaves)
    for side in ("encoder", "decoder"):
        shared, own, stacked = f"{side}/{_BIAS}", re.compile(rf"{side}/layers_\d+/{_BIAS}"), f"{side}/layers/{_BIAS}"
        layers = [name for name in leaves if own.fullmatch(name)]
        if wanted == "shared" and (layers or stacked in leaves):
            tables = [result.pop(name) for name in layers]
            if stacked in leaves:
                whole = result.pop(stacked)
                tables = [stored_leaves.layer(whole, i) for i in range(whole.shape[0])]
            result[shared] = _one_of(tables, side)
        elif wanted == "per_layer" and shared in leaves:
            table = result.pop(shared)
            if parameter_names.is_scanned(leaves):
                depth = next(leaf.shape[0] for name, leaf in leaves.items() if name.startswith(f"{side}/layers/"))
                result[stacked] = stored_leaves.stack([table] * depth)
            else:
                numbers = {name.split("/")[1] for name in leaves if name.startswith(f"{side}/layers_")}
                result |= {f"{side}/{number}/{_BIAS}": table for number in numbers}
    return dict(sorted(result.items()))


def _one_of(tables: list[StoredLeaf], side: str) -> StoredLeaf:
    """The table that all layers of a side share."""
    for table in tables[1:]:
        if not stored_leaves.equal(table, tables[0]):
            raise DifferentBiasesError(
                f"{table.source}: the layers of the {side} have different tables of relative positions, so they cannot "
                "share one; use a layout with one table per layer (architecture.T5Config.relative_bias = "
                "'per_layer', t5x_scanned)."
            )
    return tables[0]
