"""The judgement of a comparison: whether the headline's method keeps more in context at an equal target score."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from promot_t5x.reports import comparison
from promot_t5x.reports.method_rows import compared

TARGET_MARGIN = 2.0

"""A method counts as trained as well as the baseline if its target score is at most this far below."""

IN_CONTEXT_MARGIN = 5.0

"""A method counts as better in context if its mean is at least this far above the baseline's."""

_ROUNDING = 1e-9  # 98.4 - 100.4 is a little more than -2 in binary


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method compared with the baseline at one model learning rate; None where a score is missing.

    Attributes:
      learning_rate: key of the learning rate in the results.
      target_difference: the method's target score minus the baseline's.
      in_context_difference: the method's in-context mean minus the baseline's, prompt removed.
      target_kept: whether the method's target is at most the margin below the baseline's.
      in_context_gained: whether the method's in-context mean is at least the margin above the baseline's.
      nearer_to_pretrained: whether the method's in-context mean is nearer to the untouched model's than to the
        baseline's.
    """

    learning_rate: str
    target_difference: float | None
    in_context_difference: float | None
    target_kept: bool | None
    in_context_gained: bool | None
    nearer_to_pretrained: bool | None

    @property
    def holds(self) -> bool:
        """Whether all three conditions were measured and hold."""
        return bool(self.target_kept and self.in_context_gained and self.nearer_to_pretrained)


def verdict(
    results: Mapping[str, Any], target_margin: float = TARGET_MARGIN, in_context_margin: float = IN_CONTEXT_MARGIN
) -> list[Comparison]:
    """Compares the headline's method with its baseline at every model learning rate that both have, in ascending order.

    Args:
      results: what `compare` or `read` returned.
      target_margin: see TARGET_MARGIN.
      in_context_margin: see IN_CONTEXT_MARGIN.

    Returns:
      One comparison per shared learning rate; empty if one of the two methods is missing.
    """
    names = compared(results)
    judged, tuned = (comparison.rates(results, name) for name in (names.method, names.baseline))
    before = next((entry["in_context_mean"] for entry in comparison.rates(results, names.reference).values()), None)
    comparisons = []
    for key in sorted((key for key in judged if key in tuned and key != comparison.NO_RATE), key=float):
        kept, baseline = judged[key]["in_context_mean"], tuned[key]["in_context_mean"]
        on_target = _difference(judged[key]["target"], tuned[key]["target"])
        in_context = _difference(kept, baseline)
        nearer = None if None in (before, kept, baseline) else abs(kept - before) < abs(kept - baseline)
        comparisons.append(
            Comparison(
                learning_rate=key,
                target_difference=on_target,
                in_context_difference=in_context,
                target_kept=None if on_target is None else on_target >= -target_margin - _ROUNDING,
                in_context_gained=None if in_context is None else in_context >= in_context_margin - _ROUNDING,
                nearer_to_pretrained=nearer,
            )
        )
    return comparisons


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
