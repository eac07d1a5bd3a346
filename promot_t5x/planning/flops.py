"""Floating-point operations of a traced program, from its jaxpr: what the mathematics requires, on all devices.

The product of [.., m, k] and [.., k, n] costs 2 k operations per element of its result: k multiplications and k
additions. Loops multiply the count of their body; a conditional counts its most expensive branch. Only matrix products
are counted, since the share of everything else vanishes as the network grows.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.extend
from jax.extend.core import ClosedJaxpr, Jaxpr


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix product of a program.

    Attributes:
      flops: multiplications and additions, over all times that it runs.
      shape: the shape of its result.
    """

    flops: float
    shape: tuple[int, ...]


def products(jaxpr: Jaxpr, times: int = 1, unknown_trips: int = 1) -> Iterator[Product]:
    """Yields every dot_general of a program, multiplied by the iterations of the loops around it.

    Args:
      jaxpr: the program.
      times: how often the program runs.
      unknown_trips: iterations of while loops, which a jaxpr does not state.

    >>> import jax.numpy as jnp
    >>> traced = jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((2, 3)), jnp.ones((3, 4)))
    >>> [product.flops for product in products(traced.jaxpr)]
    [48.0]
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = (_shape(variable) for variable in (equation.invars[0], equation.outvars[0]))
            yield Product(times * 2.0 * math.prod(out) * math.prod(left[i] for i in contracted), out)
        elif name == "cond":
            branches = [list(products(b.jaxpr, times, unknown_trips)) for b in equation.params["branches"]]
            yield from max(branches, key=total)
        else:
            rounds = equation.params["length"] if name == "scan" else unknown_trips if name == "while" else 1
            for inner in _programs(equation.params):
                yield from products(inner, times * rounds, unknown_trips)


def total(terms: Any) -> float:
    """The operations of several products together."""
    return sum(product.flops for product in terms)


def weight_gradient_flops(jaxpr: Jaxpr, larger: Jaxpr) -> float:
    """Operations of the products that sum over the rows of a batch, which only gradients of weights do.

    Args:
      jaxpr: the program.
      larger: the same program, traced for a larger batch.

    Raises:
      ValueError: the programs have different products.
    """
    pairs = list(zip(products(jaxpr), products(larger), strict=True))
    # A weight's gradient is a sum over rows, dW = sum_b x_b^T dy_b: a larger batch means more work for a result of the
    # same shape. All other products have the batch in their result.
    return sum(a.flops for a, b in pairs if a.shape == b.shape and a.flops != b.flops)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _programs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in jax.tree.leaves(list(params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
