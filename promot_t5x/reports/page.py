"""Results -> a page that explains them: one HTML file that contains its style and plot, without scripts or links."""

import base64
import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
from etils import epath

from promot_t5x.reports import comparison, cut_counts, figure, method_rows, shots, tables, verdict
from promot_t5x.runtime import files

TITLE = "ProMoT and standard fine-tuning: how much in-context learning is left"

"""Heading of the page of results that have none."""

_READING = (
    "Each method is trained on the <em>target</em> task only. The other columns are <em>in-context</em> tasks: the"
    " input contains worked examples, and no method is trained on these tasks. The difference to the pretrained model’s"
    " score is what training on the target costs. All scores are percentages, measured with the prompt removed, except"
    " the target score of a method that has a prompt, and <em>mean with prompt</em>, which shows the effect of keeping"
    " the prompt attached. A comparison is fair if the target scores are equal: compare two methods at the same"
    " learning rate, and look at the whole curve, since small learning rates cost every method little."
    " <em>Mean</em> is the plain mean of the in-context tasks."
)


def headline(results: Mapping[str, Any]) -> str:
    """One sentence computed from the numbers: the judged method and its baseline at one learning rate.

    It is the middle one of the learning rates that both methods have (the lower of two), not the one that looks best.
    Results of several numbers of exemplars have one sentence for each.
    """
    return _of_each_k(_headline, results)


def _of_each_k(sentence: Callable[[Mapping[str, Any]], str], results: Mapping[str, Any]) -> str:
    """A sentence about the results; for several numbers of exemplars one for each."""
    sentences = [(k, sentence(view)) for k, view in shots.views(results)]
    return " ".join(f"{k}: {text}" if k and text else text for k, text in sentences)


def _headline(results: Mapping[str, Any]) -> str:
    comparisons = verdict.verdict(results)
    if not comparisons:
        return _no_comparison(results)
    middle = comparisons[(len(comparisons) - 1) // 2]
    key, names = middle.learning_rate, method_rows.compared(results)
    judged, tuned = (comparison.rates(results, name)[key] for name in (names.method, names.baseline))
    method, baseline, before = (tables.label(results, n) for n in (names.method, names.baseline, names.reference))
    scores = f"({method} {tables.number(judged['target'])}, {baseline} {tables.number(tuned['target'])})"
    opening = f"At learning rate {tables.rate(key)} {_target_clause(middle, scores)}, "
    gain = middle.in_context_difference
    if gain is None:
        return opening + "there are no in-context scores of both methods to compare."
    reference = next((e["in_context_mean"] for e in comparison.rates(results, names.reference).values()), None)
    kept = tables.number(judged["in_context_mean"])
    kept += "" if reference is None else f" ({before} {tables.number(reference)})"
    scores = f"{kept} in context; {baseline} keeps {tables.number(tuned['in_context_mean'])}"
    noise = (judged.get("in_context_mean_std") or 0.0) + (tuned.get("in_context_mean_std") or 0.0)
    caution = ", a difference within the spread over seeds" if 0 < abs(gain) < noise else ""
    if round(gain, 1) == 0:
        effect = f"{method} makes no difference in context: it keeps "
    elif gain < 0:
        effect = f"{method} keeps less, not more: "
    else:
        effect = f"{method} keeps " if middle.in_context_gained else f"{method} keeps only slightly more: "
    return f"{opening}{effect}{scores}{caution}."


def _no_comparison(results: Mapping[str, Any]) -> str:
    names = method_rows.compared(results)
    wanted = [name for name in (names.method, names.baseline) if name]
    if not wanted:
        return "No comparison: the results do not name a method and a baseline to compare."
    absent = [tables.label(results, name) for name in wanted if name not in results["methods"]]
    both = " and ".join(tables.label(results, name) for name in wanted) + " at one learning rate"
    return f"No comparison: there are no scores for {' and '.join(absent) or both}."


def _target_clause(outcome: verdict.Comparison, scores: str) -> str:
    difference = outcome.target_difference
    if difference is None:
        return "(no target score for both methods)"
    if not outcome.target_kept:
        return f"and a lower target score {scores}, which makes the comparison unequal"
    return f"and {'a higher' if difference > verdict.TARGET_MARGIN else 'the same'} target score {scores}"


def summary(results: Mapping[str, Any]) -> str:
    """Two more sentences: the differences at every learning rate, and at how many of them the claim holds."""
    return _of_each_k(_summary, results)


def _summary(results: Mapping[str, Any]) -> str:
    comparisons = verdict.verdict(results)
    shown = []
    for outcome in comparisons:
        target, in_context = (_signed(d) for d in (outcome.target_difference, outcome.in_context_difference))
        shown.append(f"{in_context} in context and {target} on the target at {tables.rate(outcome.learning_rate)}")
    if not shown or any(outcome.in_context_difference is None for outcome in comparisons):
        return ""
    holding = sum(outcome.holds for outcome in comparisons)
    names = method_rows.compared(results)
    method, baseline = tables.label(results, names.method), tables.label(results, names.baseline)
    return (
        f"{method} minus {baseline}: {'; '.join(shown)}. {method}’s claim (target at most "
        f"{verdict.TARGET_MARGIN:g} lower, in-context mean at least {verdict.IN_CONTEXT_MARGIN:g} higher and "
        f"nearer to the pretrained model’s) holds at {holding} of {len(comparisons)} learning rates."
    )


def _signed(difference: float | None) -> str:
    return tables.MISSING if difference is None else f"{difference:+.1f}".replace("-", "−")


def _heat(value: float | None, reference: float | None) -> str:
    """Cell colour: blue above the pretrained score, orange below, strongest from a difference of 50."""
    if value is None or reference is None or round(value - reference, 1) == 0:
        return ""
    strength = 0.6 * min(1.0, abs(value - reference) / 50) ** 0.7
    tint = "86,180,233" if value > reference else "230,140,30"
    return f' style="background:rgba({tint},{strength:.2f})"'


def _table(results: Mapping[str, Any]) -> str:
    """The score table: cells coloured relative to the pretrained row, the best of the methods that train in bold."""
    lines, heads = tables.rows(results), tables.columns(results)
    bold = tables.best(lines)
    reference = next((row for row in lines if row.method == method_rows.compared(results).reference), None)
    cells = ["<th scope=col>method</th>", "<th scope=col class=n>learning rate</th>"]
    cells += [f"<th scope=col class=n>{_breakable(head)}</th>" for head in heads]
    body = [f"<thead><tr>{''.join(cells)}</tr></thead><tbody>"]
    for index, row in enumerate(lines):
        first = index == 0 or lines[index - 1].method != row.method
        dot = f'<i style="background:{_colour(results, row.method)}"></i>'
        cells = [f"<th scope=row>{dot}{_text(row.label)}</th><td class=n>{_text(row.rate)}</td>"]
        for column, (value, spread) in enumerate(zip(row.values, row.spreads, strict=True)):
            compared = reference.values[column] if reference and column and row is not reference else None
            number = tables.number(value)
            inner = f"<b>{number}</b>" if (index, column) in bold else number
            inner += "" if spread is None else f"<small>± {spread:.1f}</small>"
            edge = " e" if heads[column] in ("target", "mean") and column in (0, len(heads) - 2) else ""
            cells.append(f'<td class="n{edge}"{_heat(value, compared)}>{inner}</td>')
        body.append(f"<tr{' class=first' if first else ''}>{''.join(cells)}</tr>")
    return "<table class=scores>" + "\n".join(body) + "</tbody></table>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _breakable(name: str) -> str:
    """A heading that may be broken after underscores."""
    return _text(name).replace("_", "_<wbr>")


def _colour(results: Mapping[str, Any], method: str) -> str:
    return _text(method_rows.row(results, method).colour)


def _methods(results: Mapping[str, Any]) -> str:
    rows = [method_rows.row(results, method) for method in results["methods"]]
    return "".join(
        f'<dt><i style="background:{_text(row.colour)}"></i>{_text(row.label)}</dt><dd>{_text(row.description)}</dd>'
        for row in rows
    )


def _pairs(entries: Iterable[tuple[str, Any]]) -> str:
    lines = "".join(f"<tr><th scope=row>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in entries)
    return f"<table class=pairs>{lines}</table>"


def _runs(results: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], k: str) -> str:
    """All single runs, in a part of the page that opens on a click."""
    lines = []
    for run in runs:
        scores = (run["target"], run["in_context_mean"], run["in_context_mean_with_prompt"])
        cells = [tables.rate(comparison.rate_key(run["learning_rate"])), run["seed"], *map(tables.number, scores)]
        details = ", ".join(f"{name} {value}" for name, value in (run.get("details") or {}).items())
        numbers = "".join(f"<td class=n>{_text(cell)}</td>" for cell in cells)
        label = _text(tables.label(results, run["method"]))
        lines.append(f"<tr><th scope=row>{label}</th>{numbers}<td>{_text(details)}</td></tr>")
    heads = "".join(f"<th class=n>{h}</th>" for h in ("learning rate", "seed", "target", "mean", "mean with prompt"))
    head = f"<thead><tr><th>method</th>{heads}<th>details</th></tr></thead>"
    table = f"<table class=runs>{head}<tbody>{''.join(lines)}</tbody></table>"
    of_k = f", {_text(k)}" if k else ""
    return f"<details><summary>All {len(runs)} single runs{of_k}</summary>{table}</details>" if runs else ""


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


def write_html(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the page atomically; it refers to no other file.

    Args:
      results: what `comparison.compare` or `read` returned.
      path: file to write.
    """
    files.write_whole(path, _page(results, figure.plot_png(results)).encode())


def _page(results: Mapping[str, Any], png: bytes) -> str:
    seeds = results["seeds"]
    repeated = len(seeds) > 1
    with_tasks = bool(tables.in_context_tasks(results))
    spread = "± is the sample standard deviation over seeds. " if repeated else "One seed, so there is no spread. "
    tints = '<span class=tint><span class=key style="background:rgba({0})"></span>{1}</span>'
    heat = tints.format("230,140,30,.45", "below the pretrained model") + tints.format("86,180,233,.45", "above it")
    shading = f" Shading of in-context scores: {heat}." if with_tasks else ""
    settings = [("seeds", ", ".join(map(str, seeds))), *(results.get("config") or {}).items()]
    return _TEMPLATES.get_template("page.html.j2").render(
        title=results.get("title") or TITLE,
        headline=headline(results).replace("in-context", "in\u2011context"),  # never broken at the hyphen
        summary=summary(results),
        figure=_figure(png, repeated) if with_tasks else "",
        table="".join(f"<h3>{_text(k)}</h3>{_table(view)}" if k else _table(view) for k, view in shots.views(results)),
        note=f"{spread}Bold: best of the methods that train the model.{shading}",
        reading=_READING,
        methods=_methods(results),
        config=_pairs(settings),
        versions=_pairs(results["versions"].items()),
        cuts=cut_counts.lines(results),
        runs="".join(_runs(view, view.get("runs") or (), k) for k, view in shots.views(results)),
    )


def _figure(png: bytes, repeated: bool) -> str:
    """The plot, embedded as PNG, with its caption."""
    alt = "In-context mean over the model learning rate, and in-context mean against target score, for each method"
    caption = (
        "Left: the in-context mean at each model learning rate; the dashed line is the model before any training."
        " Right: the same means against the target score; better is up and to the right."
    )
    caption += " Error bars: sample standard deviation over seeds." if repeated else ""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img alt="{alt}" src="{source}"><figcaption>{caption}</figcaption></figure>'


def write_all(results: Mapping[str, Any], out_dir: str | os.PathLike[str]) -> dict[str, str]:
    """Writes `report.html`, `comparison.md` and `report.png` into a folder.

    Args:
      results: what `comparison.compare` or `read` returned.
      out_dir: the folder, created if missing.

    Returns:
      The paths of the files: {"html": ..., "markdown": ..., "plot": ...}.
    """
    folder = epath.Path(out_dir).expanduser()
    png = figure.plot_png(results)
    text = f"{headline(results)}\n\n{tables.markdown_table(results)}\n{summary(results)}\n"
    if cuts := cut_counts.lines(results):
        text += "\nCut or lost:\n\n" + "".join(f"- {line}\n" for line in cuts)
    contents = {
        "html": ("report.html", _page(results, png).encode()),
        "markdown": ("comparison.md", text.encode()),
        "plot": ("report.png", png),
    }
    for name, data in contents.values():
        files.write_whole(folder / name, data)
    return {kind: os.fspath(folder / name) for kind, (name, _) in contents.items()}
