"""The page, the plot and the tables say what the numbers say: parsed back and compared with them."""

import base64
import functools
import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from promot_t5x.recipes import methods
from promot_t5x.reports import comparison, figure, page, tables
from promot_t5x.reports.comparison import rate_key
from promot_t5x.reports.method_rows import Compared
from tests.reports.runs import run

ROWS = {name: method.row for name, method in methods.METHODS.items()}
TASKS = ("nli3", "wic", "qa_short", "key_sentence")
VOID = {"meta", "img", "wbr", "br", "hr", "link", "input"}


def compare(runs, versions, config, title=""):
    """The comparison as a recipe makes it of this package's methods."""
    return comparison.compare(runs, versions, config, ROWS, Compared(*methods.HEADLINE), title)


class _Page(HTMLParser):
    """Text, attributes and properly nested tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def _world(seeds=(0,), swap=False, drop=0.0, methods=("pretrained", "prompt_tuning", "fine_tuning", "promot")):
    """Scores like those of a small study; `swap` exchanges the two methods, `drop` lowers ProMoT's target."""
    means = {1e-4: (85.2, 90.6), 3e-4: (73.5, 87.0), 5e-4: (40.4, 74.7)}
    runs = []
    for seed in seeds:
        shift = 1.0 * seed

        def scores(mean, shift=shift):
            return {task: mean - shift + 2 * place for place, task in zip((-3, -1, 1, 3), TASKS, strict=True)}

        runs += [
            run("pretrained", None, seed, 49.7, scores(90.6)),
            run("prompt_tuning", None, seed, 77 + shift, scores(90.6), scores(30)),
        ]
        for rate, (low, high) in means.items():
            low, high = (high, low) if swap else (low, high)
            runs.append(run("fine_tuning", rate, seed, 99.8 - shift / 4, scores(low)))
            runs.append(run("random_prompt", rate, seed, 99.5, scores((low + high) / 2), scores(40)))
            runs.append(run("promot", rate, seed, 99.7 - drop, scores(high), scores(45), {"step": 250}))
    return compare([one for one in runs if one.method in methods], {"jax": "1.2.3"}, {"recipe": "demo.gin"})


def _html(results, tmp_path):
    page.write_html(results, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


EVERYTHING = {"methods": ("pretrained", "prompt_tuning", "fine_tuning", "random_prompt", "promot")}
WORLDS = {
    "five methods, three seeds": _world((0, 1, 2), **EVERYTHING),
    "one seed": _world(),
    "two methods": _world(methods=("pretrained", "promot")),
    "no pretrained": _world(methods=("fine_tuning", "promot")),
    "no learning rates": _world(methods=("pretrained", "prompt_tuning")),
    "no tasks": compare([run("fine_tuning", 1e-3, 0, 50.0, {}), run("promot", 1e-3, 0, 60.0, {})], {}, {}),
    "nothing measured": compare([run("pretrained", None, 0, None, {})], {}, {}),
    "no target": compare([run("promot", 1e-3, 0, None, {"qa": 50.0})], {}, {}),
    "another method": compare([run("my_method", 0.05, 7, 0.0, {"$a_1$": 100.0}, {"$a_1$": 0.0})], {}, {}),
    "the required keys only": {
        "unit": "percent",
        "methods": {
            "promot": {
                "learning_rates": {
                    "0.001": {
                        "target": 90.0,
                        "in_context": {"qa": 50.0},
                        "in_context_mean": 50.0,
                        "in_context_mean_with_prompt": None,
                    }
                }
            }
        },
        "seeds": [0],
        "versions": {},
    },
    "equal scores": compare([run(m, 1e-3, 0, 50.0, {"qa": 50.0}) for m in ("fine_tuning", "promot")], {}, {}),
}


@functools.cache
def _drawn(name):
    """Page and plot of a world; drawing takes most of the time of these tests."""
    png = figure.plot_png(WORLDS[name])
    return page._page(WORLDS[name], png), png


@pytest.mark.parametrize("name", WORLDS)
def test_every_number_is_on_the_page_and_in_the_tables(name):
    results = WORLDS[name]
    parsed = _Page(_drawn(name)[0])
    assert parsed.open == []
    markdown, terminal = tables.markdown_table(results), tables.text_table(results)
    assert len(markdown.splitlines()) == 2 + len(tables.rows(results))
    assert len({line.count(" | ") for line in markdown.splitlines()}) == 1
    for rates in results["methods"].values():
        for key, entry in rates["learning_rates"].items():
            columns = ("target", "in_context_mean", "in_context_mean_with_prompt")
            spreads = [entry.get(f"{column}_std") for column in columns]
            values = [entry[column] for column in columns]
            for value in [*spreads, *values, *entry["in_context"].values()]:
                if value is not None:
                    assert any(f"{value:.1f}" in cell for cell in parsed.cells)
                    assert f"{value:.1f}" in markdown and f"{value:.1f}" in terminal
            assert tables.rate(key) in parsed.cells


@pytest.mark.parametrize("name", WORLDS)
def test_the_page_needs_nothing_outside_itself(name):
    text, png = _drawn(name)
    assert "http" not in text and "//" not in re.sub(r"base64,[^\"]*", "", text)
    for tag, attribute, value in _Page(text).attributes:
        assert tag not in ("script", "link", "iframe")
        assert attribute not in ("src", "href") or value.startswith("data:image/png;base64,")
    images = re.findall(r'base64,([^"]*)"', text)
    assert len(images) == bool(tables.in_context_tasks(WORLDS[name]))
    for image in images:
        assert base64.b64decode(image) == png


@pytest.mark.parametrize("name", WORLDS)
def test_plot_is_a_png(name):
    data = _drawn(name)[1]
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    assert int.from_bytes(data[16:20], "big") == 1900


def test_equal_results_give_equal_files(tmp_path):
    figure.plot(WORLDS["one seed"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == _drawn("one seed")[1]
    assert _html(WORLDS["one seed"], tmp_path) == _drawn("one seed")[0]


def test_headline_follows_the_numbers():
    good, bad = page.headline(_world()), page.headline(_world(swap=True))
    assert "learning rate 3e-4 and the same target score (ProMoT 99.7, standard fine-tuning 99.8)" in good
    assert "ProMoT keeps 87.0 (pretrained 90.6) in context; standard fine-tuning keeps 73.5." in good
    assert "ProMoT keeps less, not more: 73.5" in bad and "standard fine-tuning keeps 87.0." in bad
    unequal = page.headline(_world(drop=10.0))
    assert "a lower target score" in unequal and "the comparison unequal" in unequal and "89.7" in unequal


@pytest.mark.parametrize(
    ("promot", "target", "words"),
    [
        (50.0, 90.0, "makes no difference in context"),
        (52.0, 90.0, "keeps only slightly more: 52.0"),
        (60.0, 90.0, "keeps 60.0 (pretrained 80.0) in context"),
        (60.0, 100.0, "a higher target score"),
        (60.0, None, "no target score for both"),
    ],
)
def test_headline_in_between(promot, target, words):
    runs = [
        run("pretrained", None, 0, 0.0, {"qa": 80.0}),
        run("fine_tuning", 1e-3, 0, 90.0, {"qa": 50.0}),
        run("promot", 1e-3, 0, target, {"qa": promot}),
    ]
    assert words in page.headline(compare(runs, {}, {}))


def test_headline_of_a_recipe_without_in_context_tasks():
    runs = [run(name, 1e-3, 0, 90.0, {}) for name in ("fine_tuning", "promot")]
    assert page.headline(compare(runs, {}, {})).endswith("there are no in-context scores of both methods to compare.")


def test_headline_admits_noise_and_missing_methods():
    runs = [run("fine_tuning", 1e-3, seed, 90.0, {"qa": 50.0 + 20 * seed}) for seed in (0, 1)]
    runs += [run("promot", 1e-3, seed, 90.0, {"qa": 60.0 + 20 * seed}) for seed in (0, 1)]
    assert "a difference within the spread over seeds" in page.headline(compare(runs, {}, {}))
    assert page.headline(WORLDS["two methods"]) == "No comparison: there are no scores for standard fine-tuning."


def test_summary_counts_where_the_claim_holds():
    assert "holds at 3 of 3 learning rates" in page.summary(_world())
    assert "holds at 0 of 3 learning rates" in page.summary(_world(swap=True))
    assert "+13.5 in context and −0.1 on the target at 3e-4" in page.summary(_world())


def test_all_text_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&'
    only = run(evil, 1e-3, 0, 50.0, {evil: 50.0}, {evil: 50.0}, {evil: evil})
    text = _html(compare([only], {evil: evil}, {evil: evil, "nested": {"k": [evil]}}, title=evil), tmp_path)
    assert "<script" not in text
    parsed = _Page(text)
    assert parsed.open == [] and evil in parsed.texts and parsed.cells.count(evil) >= 4


def test_nulls_are_dashes():
    row = next(row for row in tables.rows(_world()) if row.method == "fine_tuning")
    assert row.values[-1] is None
    line = next(line for line in tables.markdown_table(_world()).splitlines() if "standard fine-tuning" in line)
    assert line.endswith("| – |")
    assert tables.text_table(WORLDS["nothing measured"]).splitlines()[-1].split() == ["pretrained", "–", "–"]


def test_terminal_table_is_aligned_and_plain():
    for results in WORLDS.values():
        lines = tables.text_table(results).splitlines()
        ruler = next(index for index, line in enumerate(lines) if set(line) == {"-"})
        assert all(len(line) <= len(lines[ruler]) for line in lines)
        assert len({len(line) for line in lines[ruler + 1 :]}) == 1
        assert "\x1b" not in "".join(lines)


def test_best_marks_trained_methods_only_and_no_column_of_equals():
    results = _world()
    lines = tables.rows(results)
    marked = tables.best(lines)
    index = next(i for i, row in enumerate(lines) if row.method == "promot" and row.rate == "1e-4")
    assert {column for line, column in marked if line == index} == {1, 2, 3, 4, 5}
    assert all(lines[line].rate != tables.MISSING for line, _ in marked)
    assert "**90.6**" in tables.markdown_table(results)
    assert tables.best(tables.rows(WORLDS["equal scores"])) == set()


def test_rows_keep_methods_in_order_and_learning_rates_rising():
    rates = (1e-3, 5e-5, 3e-4)
    runs = [run(method, rate, 0, 50.0, {}) for method in ("own", "promot", "fine_tuning") for rate in rates]
    methods_and_rates = [(row.method, row.rate) for row in tables.rows(compare(runs, {}, {}))]
    assert methods_and_rates == list(itertools.product(("fine_tuning", "promot", "own"), ("5e-5", "3e-4", "1e-3")))
    assert tables.rate(rate_key(None)) == tables.MISSING


def test_labels_are_kept_apart():
    heights = [0.5, 0.52, 0.1, 0.5, 0.9, 0.11]
    moved = figure.apart(heights, 0.1)
    ordered = sorted(moved)
    assert all(high - low >= 0.1 - 1e-9 for low, high in itertools.pairwise(ordered))
    assert moved[4] == 0.9 and sum(moved) == pytest.approx(sum(heights))


def test_write_all_makes_three_files(tmp_path):
    paths = page.write_all(_world((0, 1)), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.md", "report.html", "report.png"]
    assert paths["html"] == str(tmp_path / "out" / "report.html")
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert page.headline(_world((0, 1))) in markdown and tables.markdown_table(_world((0, 1))) in markdown


def test_a_report_that_is_written_again_keeps_its_title(tmp_path):
    (tmp_path / "comparison.json").write_text(
        json.dumps(compare([run("mine", 1e-3, 0, 1.0, {})], {}, {}, title="On qa"))
    )
    results = comparison.read(tmp_path / "comparison.json")
    assert "<h1>On qa</h1>" in _html(results, tmp_path)
    assert f"<h1>{page.TITLE}</h1>" in _html({**results, "title": ""}, tmp_path)


def test_rows_that_were_handed_in_are_what_is_shown():
    row = methods.Method("mine", ("mine.gin",), label="Mine & more", colour="#abcdef", description="About <mine>.").row
    runs = [run("mine", 1e-3, 0, 90.0, {"qa": 60.0}), run("usual", 1e-3, 0, 90.0, {"qa": 50.0})]
    results = comparison.compare(runs, {}, {}, {"mine": row}, Compared("mine", "usual", "before"))
    text = page._page(results, figure.plot_png(results))
    assert "Mine &amp; more" in text and "background:#abcdef" in text and "About &lt;mine&gt;." in text
    expected = "At learning rate 1e-3 and the same target score (Mine & more 90.0, usual 90.0), Mine & more keeps 60.0"
    assert page.headline(results).startswith(expected)
    assert page.summary(results).startswith("Mine & more minus usual: +10.0 in context")
