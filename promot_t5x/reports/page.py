"""Results -> a page that explains them: one HTML file with its style and plot inside, no script, no network."""

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from etils import epath

from promot_t5x.reports import comparison, figure, tables
from promot_t5x.runtime import files

TITLE = "ProMoT beside standard fine-tuning: what is left of in-context learning"

"""Heading of the page where none is given."""

_DESCRIPTIONS = {
    "pretrained": "The checkpoint as it came, with nothing trained. It is the reference for the in-context learning"
    " that there is to lose.",
    "prompt_tuning": "Stage 1 of ProMoT alone: only a soft prompt is trained on the target task. With the prompt"
    " removed the model is the pretrained one.",
    "fine_tuning": "All weights are trained on the target task, without a prompt. This is the usual way; the model"
    " may take over the target’s output format for everything else.",
    "random_prompt": "Control: all weights are trained behind a fixed prompt that was itself never trained. It shows"
    " how much of ProMoT’s effect is owed to merely having a prefix.",
    "promot": "Stage 1 trains a soft prompt on the target task; stage 2 freezes it and trains all other weights"
    " behind it. For every other task the prompt is removed.",
}

_READING = (
    "Each method is trained on the <em>target</em> task only. The other columns are <em>in-context</em> tasks: the"
    " model is given worked examples in its input, and no method here is trained on them; a score below the pretrained"
    " model’s is what training on the target has cost. All scores lie between 0 and 1 and are measured without the"
    " prompt, except the target of a method that has a prompt and <em>mean with prompt</em>, which shows what leaving"
    " the prompt on does. A comparison is fair where the target scores are equal: compare two methods at the same"
    " learning rate, and look at the whole curve, since small learning rates cost every method little."
    " <em>Mean</em> is the plain mean of the in-context tasks."
)


def headline(results: Mapping[str, Any]) -> str:
    """One sentence computed from the numbers: ProMoT beside standard fine-tuning at one learning rate.

    The learning rate is the middle one of those that both methods have (the lower of two), not the one that looks best.
    """
    comparisons = comparison.verdict(results)
    if not comparisons:
        names = " and ".join(tables.label(name) for name in ("promot", "fine_tuning") if name not in results["methods"])
        return (
            f"No comparison: there are no scores of {names or 'ProMoT and standard fine-tuning at one learning rate'}."
        )
    middle = comparisons[(len(comparisons) - 1) // 2]
    methods, key = results["methods"], middle.learning_rate
    promot, tuned = (methods[name]["learning_rates"][key] for name in ("promot", "fine_tuning"))
    opening = f"At learning rate {tables.rate(key)} {_target_clause(middle, promot['target'], tuned['target'])}, "
    gain = middle.in_context_difference
    if gain is None:
        return opening + "the in-context tasks were not measured for both methods."
    before = next(iter(methods["pretrained"]["learning_rates"].values())) if "pretrained" in methods else {}
    reference = before.get("in_context_mean")
    kept, baseline = promot["in_context_mean"], tuned["in_context_mean"]
    of_reference = (
        " as in-context mean" if reference is None else f" of the pretrained in-context mean of {reference:.3f}"
    )
    scores = f"{kept:.3f}{of_reference}; standard fine-tuning keeps {baseline:.3f}"
    noise = (promot.get("in_context_mean_std") or 0.0) + (tuned.get("in_context_mean_std") or 0.0)
    caution = ", a difference within the spread over seeds" if 0 < abs(gain) < noise else ""
    if round(gain, 3) == 0:
        effect = "ProMoT makes no difference in context: it keeps "
    elif gain < 0:
        effect = "ProMoT keeps less, not more: "
    else:
        effect = "ProMoT keeps " if middle.in_context_gained else "ProMoT keeps only slightly more: "
    return f"{opening}{effect}{scores}{caution}."


def _target_clause(outcome: comparison.Comparison, promot: float | None, tuned: float | None) -> str:
    difference = outcome.target_difference
    if difference is None or promot is None or tuned is None:
        return "(no target score for both methods)"
    scores = f"(ProMoT {promot:.3f}, standard fine-tuning {tuned:.3f})"
    if not outcome.target_kept:
        return f"and a lower target score {scores}, which makes the comparison unequal"
    return f"and {'a higher' if difference > comparison.TARGET_MARGIN else 'the same'} target score {scores}"


def summary(results: Mapping[str, Any]) -> str:
    """A second sentence: the differences at every learning rate, and at how many of them the claim holds."""
    comparisons = comparison.verdict(results)
    shown = []
    for found in comparisons:
        target, in_context = (_signed(d) for d in (found.target_difference, found.in_context_difference))
        shown.append(f"{in_context} in context and {target} on the target at {tables.rate(found.learning_rate)}")
    if not shown or any(found.in_context_difference is None for found in comparisons):
        return ""
    holding = sum(found.holds for found in comparisons)
    return (
        f"ProMoT minus standard fine-tuning: {'; '.join(shown)}. ProMoT’s claim (target at most "
        f"{comparison.TARGET_MARGIN:g} lower, in-context mean at least {comparison.IN_CONTEXT_MARGIN:g} higher and "
        f"nearer to the pretrained model’s) holds at {holding} of {len(comparisons)} learning rates."
    )


def _signed(difference: float | None) -> str:
    return tables.MISSING if difference is None else f"{difference:+.3f}".replace("-", "−")


def _heat(value: float | None, reference: float | None) -> str:
    """Cell colour: blue above the pretrained score, orange below, full at a difference of a half."""
    if value is None or reference is None or round(value - reference, 3) == 0:
        return ""
    strength = 0.6 * min(1.0, abs(value - reference) / 0.5) ** 0.7
    tint = "86,180,233" if value > reference else "230,140,30"
    return f' style="background:rgba({tint},{strength:.2f})"'


def _table(results: Mapping[str, Any]) -> str:
    """The score table: heat against the pretrained row, bold for the best of the methods that train the model."""
    lines, heads = tables.rows(results), tables.columns(results)
    bold = tables.best(lines)
    reference = next((row for row in lines if row.method == "pretrained"), None)
    cells = ["<th scope=col>method</th>", "<th scope=col class=n>learning rate</th>"]
    cells += [f"<th scope=col class=n>{_breakable(head)}</th>" for head in heads]
    body = [f"<thead><tr>{''.join(cells)}</tr></thead><tbody>"]
    for index, row in enumerate(lines):
        first = index == 0 or lines[index - 1].method != row.method
        dot = f'<i style="background:{figure.colour(row.method)}"></i>'
        cells = [f"<th scope=row>{dot}{_text(row.label)}</th><td class=n>{_text(row.rate)}</td>"]
        for column, (value, spread) in enumerate(zip(row.values, row.spreads, strict=True)):
            compared = reference.values[column] if reference and column and row is not reference else None
            number = tables.number(value)
            inner = f"<b>{number}</b>" if (index, column) in bold else number
            inner += "" if spread is None else f"<small>± {spread:.3f}</small>"
            edge = " e" if heads[column] in ("target", "mean") and column in (0, len(heads) - 2) else ""
            cells.append(f'<td class="n{edge}"{_heat(value, compared)}>{inner}</td>')
        body.append(f"<tr{' class=first' if first else ''}>{''.join(cells)}</tr>")
    return "<table class=scores>" + "\n".join(body) + "</tbody></table>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _breakable(name: str) -> str:
    """A heading that a narrow column may break behind an underscore."""
    return _text(name).replace("_", "_<wbr>")


def _methods(results: Mapping[str, Any]) -> str:
    found = dict.fromkeys(row.method for row in tables.rows(results))
    return "".join(
        f'<dt><i style="background:{figure.colour(name)}"></i>{_text(tables.label(name))}</dt>'
        f"<dd>{_DESCRIPTIONS.get(name, 'A method of this run.')}</dd>"
        for name in found
    )


def _pairs(entries: Iterable[tuple[str, Any]]) -> str:
    lines = "".join(f"<tr><th scope=row>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in entries)
    return f"<table class=pairs>{lines}</table>"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """Every single run in a part of the page that opens on a click."""
    lines = []
    for run in runs:
        scores = (run["target"], run["in_context_mean"], run["in_context_mean_with_prompt"])
        cells = [tables.rate(comparison.rate_key(run["learning_rate"])), run["seed"], *map(tables.number, scores)]
        details = ", ".join(f"{name} {value}" for name, value in run.get("details", {}).items())
        numbers = "".join(f"<td class=n>{_text(cell)}</td>" for cell in cells)
        lines.append(
            f"<tr><th scope=row>{_text(tables.label(run['method']))}</th>{numbers}<td>{_text(details)}</td></tr>"
        )
    heads = "".join(f"<th class=n>{h}</th>" for h in ("learning rate", "seed", "target", "mean", "mean with prompt"))
    head = f"<thead><tr><th>method</th>{heads}<th>details</th></tr></thead>"
    table = f"<table class=runs>{head}<tbody>{''.join(lines)}</tbody></table>"
    return f"<details><summary>All {len(runs)} single runs</summary>{table}</details>" if runs else ""


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


def write_html(results: Mapping[str, Any], path: str | os.PathLike[str], title: str = TITLE) -> None:
    """Writes the page, as a whole or not at all; it names nothing outside itself.

    Args:
      results: what `promot_t5x.results.summarize` or `read` returned.
      path: file to write.
      title: the page's heading.
    """
    files.write_whole(path, _page(results, title, figure.plot_png(results)).encode())


def _page(results: Mapping[str, Any], title: str, png: bytes) -> str:
    seeds = results["seeds"]
    repeated = len(seeds) > 1
    with_tasks = bool(tables.in_context_tasks(results))
    spread = "± is the sample standard deviation over seeds. " if repeated else "One seed, so no spread is known. "
    tints = '<span class=tint><span class=key style="background:rgba({0})"></span>{1}</span>'
    heat = tints.format("230,140,30,.45", "below the pretrained model") + tints.format("86,180,233,.45", "above it")
    shading = f" Shading of in-context scores: {heat}." if with_tasks else ""
    settings = [("seeds", ", ".join(map(str, seeds))), *results.get("config", {}).items()]
    return _TEMPLATES.get_template("page.html.j2").render(
        title=title,
        headline=headline(results).replace("in-context", "in\u2011context"),  # never broken at the hyphen
        summary=summary(results),
        figure=_figure(png, repeated) if with_tasks else "",
        table=_table(results),
        note=f"{spread}Bold: best of the methods that train the model.{shading}",
        reading=_READING,
        methods=_methods(results),
        config=_pairs(settings),
        versions=_pairs(results["versions"].items()),
        runs=_runs(results.get("runs", [])),
    )


def _figure(png: bytes, repeated: bool) -> str:
    """The plot with its caption, the PNG inside the page."""
    alt = "In-context mean over the model learning rate, and in-context mean against target score, for each method"
    caption = (
        "Left: the in-context mean at each model learning rate; the dashed line is the model before any training."
        " Right: the same means against the target score; better is up and to the right."
    )
    caption += " Error bars: sample standard deviation over seeds." if repeated else ""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img alt="{alt}" src="{source}"><figcaption>{caption}</figcaption></figure>'


def write_all(results: Mapping[str, Any], out_dir: str | os.PathLike[str], title: str = TITLE) -> dict[str, str]:
    """Writes `report.html`, `results.md` and `report.png` into a folder.

    Args:
      results: what `promot_t5x.results.summarize` or `read` returned.
      out_dir: folder, made if missing.
      title: the page's heading.

    Returns:
      Paths written: {"html": ..., "markdown": ..., "plot": ...}.
    """
    folder = epath.Path(out_dir)
    png = figure.plot_png(results)
    text = f"{headline(results)}\n\n{tables.markdown_table(results)}\n{summary(results)}\n"
    contents = {
        "html": ("report.html", _page(results, title, png).encode()),
        "markdown": ("results.md", text.encode()),
        "plot": ("report.png", png),
    }
    for name, data in contents.values():
        files.write_whole(folder / name, data)
    return {kind: os.fspath(folder / name) for kind, (name, _) in contents.items()}
