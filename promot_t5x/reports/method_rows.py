"""What a report needs to know about a method: its name, look and description. Callers pass these rows in."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

OTHER_COLOUR, OTHER_MARKER = "#8a6d00", "X"

"""Colour and marker of a method that has none of its own."""

_MARKERS = tuple(".,ov^<>12348spP*hH+xXDd|_")  # matplotlib's that are one character


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """A method as readers see it.

    Attributes:
      label: its name in tables and plots.
      colour: "#rrggbb".
      marker: one of matplotlib's.
      description: one or two sentences for the page.

    Raises:
      ValueError: a label of several lines, or no such colour or marker.
    """

    label: str
    colour: str = OTHER_COLOUR
    marker: str = OTHER_MARKER
    description: str = "A method of this run."

    def __post_init__(self):
        if not self.label.isprintable() or not self.label.strip():
            raise ValueError(f"A method has the label {self.label!r}; expected one line of text.")
        if not re.fullmatch("#[0-9a-fA-F]{6}", self.colour):
            raise ValueError(f"The method {self.label!r} has the colour {self.colour!r}; expected '#rrggbb'.")
        if self.marker not in _MARKERS:
            raise ValueError(
                f"The method {self.label!r} has the marker {self.marker!r}; expected one of matplotlib's, "
                f"{' '.join(_MARKERS)}."
            )


@dataclasses.dataclass(frozen=True)
class Compared:
    """The three methods of the headline.

    Attributes:
      method: the method that is judged.
      baseline: the method that it is compared with, at the same learning rate.
      reference: the model before any training.
    """

    method: str
    baseline: str
    reference: str


def row(results: Mapping[str, Any], method: str) -> MethodRow:
    """A method's row in results; made from its name if the results do not describe it.

    >>> row({"methods": {}}, "joint_tuning").label
    'joint tuning'
    """
    content = results["methods"].get(method, {})
    labels = (results.get("compared") or {}).get("labels") or {}  # for methods that were not measured
    of_fields = {field.name: content.get(field.name) for field in dataclasses.fields(MethodRow)}
    described = {name: text for name, text in of_fields.items() if text is not None}
    return MethodRow(**{"label": labels.get(method, method.replace("_", " ")), **described})


def compared(results: Mapping[str, Any]) -> Compared:
    """Which methods the headline of results compares; empty names if the results do not say."""
    names = results.get("compared") or {}
    return Compared(*(names.get(field.name) or "" for field in dataclasses.fields(Compared)))
