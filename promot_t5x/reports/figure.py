"""Results -> a PNG of two panels: in-context mean over the model learning rate, and against the target score."""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from promot_t5x.reports import comparison, method_rows, shots, tables
from promot_t5x.runtime import files

_GREY = "#5f6368"


@dataclasses.dataclass(frozen=True)
class _Point:
    """Scores of one method at one learning rate (0 for none), with spreads (0 for none)."""

    method: str
    row: method_rows.MethodRow
    key: str
    rate: float
    target: float | None
    target_std: float
    mean: float | None
    mean_std: float


def _points(results: Mapping[str, Any]) -> list[_Point]:
    points = []
    for method, key, entry in tables.entries(results):
        rate = 0.0 if key == comparison.NO_RATE else float(key)
        target_std, mean_std = entry.get("target_std") or 0.0, entry.get("in_context_mean_std") or 0.0
        points.append(
            _Point(
                method,
                method_rows.row(results, method),
                key,
                rate,
                entry["target"],
                target_std,
                entry["in_context_mean"],
                mean_std,
            )
        )
    return points


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Moves label heights until neighbours are at least `gap` apart; each cluster keeps its centre.

    >>> [round(height, 2) for height in apart([0.5, 0.5, 0.9], 0.1)]
    [0.45, 0.55, 0.9]
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    clusters: list[list[int]] = []
    starts: list[float] = []
    for index in order:
        cluster, start = [index], heights[index]
        while clusters and starts[-1] + gap * len(clusters[-1]) > start:
            cluster = clusters.pop() + cluster
            starts.pop()
            start = sum(heights[i] - gap * place for place, i in enumerate(cluster)) / len(cluster)
        clusters.append(cluster)
        starts.append(start)
    moved = [0.0] * len(heights)
    for cluster, start in zip(clusters, starts, strict=True):
        for place, index in enumerate(cluster):
            moved[index] = start + gap * place
    return moved


def _by_method(points: Sequence[_Point]) -> dict[str, list[_Point]]:
    return {name: [p for p in points if p.method == name] for name in dict.fromkeys(p.method for p in points)}


def _draw(
    axes: Axes,
    xs: Sequence[float],
    points: Sequence[_Point],
    x_spread: Sequence[float] | None = None,
    joined: bool = True,
) -> None:
    """One method's points with error bars over seeds."""
    row = points[0].row
    axes.errorbar(
        xs,
        [point.mean or 0.0 for point in points],
        xerr=x_spread,
        yerr=[point.mean_std for point in points],
        color=row.colour,
        marker=row.marker,
        markersize=6,
        linewidth=1.8 if joined else 0,
        elinewidth=1,
        capsize=2.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
    )


def _limits(axes: Axes, points: Sequence[_Point]) -> tuple[float, float]:
    """Sets a panel's height, the same for both: the scores with their spreads, and a margin."""
    means = [(p.mean, p.mean_std) for p in points if p.mean is not None]
    low, high = min(mean - std for mean, std in means), max(mean + std for mean, std in means)
    air = max(0.08 * (high - low), 2.0)
    axes.set_ylim(low - air, high + air)
    return axes.get_ylim()


def _learning_rates(axes: Axes, points: Sequence[_Point], reference: str) -> None:
    """Left panel: in-context mean over the learning rate; the untrained model is a dashed line; names at the right."""
    bottom, top = _limits(axes, points)
    rows: list[method_rows.MethodRow] = []
    heights: list[float] = []
    methods = _by_method(points)
    curves = [method for method in methods if methods[method][-1].rate]
    for method, own in methods.items():
        if method in curves:  # curves are shifted slightly, so that equal scores stay visible
            aside = 1.03 ** (curves.index(method) - (len(curves) - 1) / 2)
            _draw(axes, [point.rate * aside for point in own if point.rate], [point for point in own if point.rate])
        elif method == reference:
            axes.axhline(own[0].mean or 0.0, color=own[0].row.colour, linestyle=(0, (5, 3)), linewidth=1.4, zorder=1)
        else:
            continue  # with its prompt removed it is the reference, whose line it would hide
        rows.append(own[0].row)
        heights.append(own[-1].mean or 0.0)
    for row, height in zip(rows, apart(heights, 0.065 * (top - bottom)), strict=True):
        place = (1.02, (height - bottom) / (top - bottom))
        axes.annotate(_plain(row.label), place, xycoords="axes fraction", va="center", color=row.colour)
    rates = {point.rate: tables.rate(point.key) for point in points if point.rate}
    if rates:
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 1.25, max(rates) * 1.25)
    axes.set_xticks(sorted(rates), [rates[rate] for rate in sorted(rates)])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_xlabel("model learning rate")
    axes.set_ylabel("in-context mean (%), prompt removed")


def _trade_off(axes: Axes, points: Sequence[_Point], reference: str) -> None:
    """Right panel: in-context mean against target score; up and right is better; every point is named."""
    bottom, top = _limits(axes, points)
    shown = [point for point in points if point.target is not None]
    if not shown:
        return _nothing(axes, "no target score")
    targets = [point.target or 0.0 for point in shown]
    air = max(0.12 * (max(targets) - min(targets)), 2.0)
    axes.set_xlim(min(targets) - 1.5 * air, max(targets) + air)
    for own in _by_method(shown).values():
        _draw(axes, [point.target or 0.0 for point in own], own, [point.target_std for point in own], joined=False)
    trained = [point for point in shown if point.rate]
    heights = apart([point.mean or 0.0 for point in trained], 0.055 * (top - bottom))
    for point, height in zip(trained, heights, strict=True):
        axes.annotate(
            f"{_plain(point.row.label)}  {tables.rate(point.key)}",
            (point.target or 0.0, point.mean or 0.0),
            xytext=(1.04, (height - bottom) / (top - bottom)),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=point.row.colour,
            arrowprops={
                "arrowstyle": "-",
                "color": point.row.colour,
                "linewidth": 0.5,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )
    for point in shown:
        if not point.rate:  # two points of equal height: one name goes above its point, the other below
            offset = (0, 11) if point.method == reference else (0, -11)
            spot = (point.target or 0.0, point.mean or 0.0)
            style = {"fontsize": 8.5, "color": point.row.colour, "ha": "center", "va": "center"}
            axes.annotate(_plain(point.row.label), spot, offset, textcoords="offset points", **style)
    axes.set_xlabel("target score (%)")
    return None


def _nothing(axes: Axes, why: str) -> None:
    axes.set_axis_off()
    axes.annotate(why, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=_GREY)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def plot_png(results: Mapping[str, Any]) -> bytes:
    """The plot's PNG, 1,900 pixels wide; error bars are sample standard deviations over seeds.

    Results of several numbers of exemplars have two panels for each.

    Args:
      results: what `comparison.compare` or `read` returned.

    Returns:
      The file's bytes; equal results give equal bytes.
    """
    views = list(shots.views(results))
    figure = Figure(figsize=(10, 4 * len(views)), dpi=190, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), (k, view) in zip(figure.subplots(len(views), 2, squeeze=False), views, strict=True):
        _panels(left, right, view, f", {k}" if k else "")
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _panels(left: Axes, right: Axes, results: Mapping[str, Any], of_k: str) -> None:
    """Draws both panels; `of_k` ends their titles."""
    points = [point for point in _points(results) if point.mean is not None]
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9aa0a6")
        axes.tick_params(color="#9aa0a6", labelcolor="#3c4043", labelsize=9)
        axes.grid(axis="y", color="#e8eaed", linewidth=0.8)
        axes.set_axisbelow(True)
    if points:
        reference = method_rows.compared(results).reference
        _learning_rates(left, points, reference)
        _trade_off(right, points, reference)
    else:
        _nothing(left, "no in-context scores")
        _nothing(right, "no in-context scores")
    for axes, title in (
        (left, "In-context learning over the learning rate"),
        (right, "Trade-off with the target task"),
    ):
        axes.set_title(title + of_k, loc="left", fontsize=11, fontweight="bold", color="#202124", pad=10)


def plot(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the PNG of `plot_png` atomically."""
    files.write_whole(path, plot_png(results))
