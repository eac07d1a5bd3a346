"""The graph of runs: its order, and what is refused."""

import graphlib

import pytest
from matplotlib.markers import MarkerStyle

from promot_t5x.recipes.methods import METHODS, PRETRAINED, Method
from promot_t5x.recipes.recipe import Recipe, planned_runs
from promot_t5x.reports import method_rows


def _recipe(*methods, **changes):
    return Recipe(**{"methods": methods, "target": "t", "in_context": (), "learning_rates": (1e-3, 2e-3), **changes})


def _graph(runs):
    return {run.name: {start.name for start in run.starts_from if not isinstance(start, str)} for run in runs}


def test_planned_runs_come_after_what_they_start_from():
    runs = planned_runs(_recipe(*METHODS, seeds=(0, 1)))
    names = [run.name for run in runs]
    assert names[:3] == ["seed0/pretrained", "seed0/prompt_tuning", "seed0/fine_tuning_lr0.001"]
    assert len(names) == len(set(names)) == 1 + 2 * (1 + 2 * 4)
    for seed in (0, 1):
        first = names.index(f"seed{seed}/prompt_tuning")
        assert all(first < i for i, run in enumerate(runs) if run.method == "promot" and run.seed == seed)


def test_a_chain_and_an_average_in_any_order_of_the_rows():
    """Each run starts from those of its own seed and rate; graphlib agrees that the order is a topological one."""
    rows = (
        Method("average", ("average.gin",), starts_from=("second", "promot")),
        Method("second", ("stages/model_tuning.gin",), starts_from=("promot",)),
        METHODS["promot"],
        METHODS["prompt_tuning"],
    )
    runs = planned_runs(_recipe(*rows, seeds=(0, 1)))
    graph = _graph(runs)
    assert graph["seed1/average_lr0.002"] == {"seed1/second_lr0.002", "seed1/promot_lr0.002"}
    assert graph["seed0/second_lr0.001"] == {"seed0/promot_lr0.001"}
    assert graph["seed0/promot_lr0.002"] == {"seed0/prompt_tuning"} and graph["seed0/prompt_tuning"] == set()
    assert set(graphlib.TopologicalSorter(graph).static_order()) == {run.name for run in runs}
    names = [run.name for run in runs]
    assert all(names.index(start) < names.index(name) for name, starts in graph.items() for start in starts)


def test_a_run_knows_its_files_prompt_and_start():
    files = {"promot": ("mine.gin",)}
    checkpoint = Method("theirs", (), starts_from=("/their/checkpoint",), prompt=None, grid=False)
    tuned = Method("tuned", ("tuned.gin",), starts_from=("theirs",), prompt=2, grid=False)
    runs = {
        run.name: run for run in planned_runs(_recipe("prompt_tuning", "promot", tuned, checkpoint, stage_files=files))
    }
    assert runs["seed0/promot_lr0.001"].gin_files == ("stages/model_tuning.gin", "mine.gin")
    assert runs["seed0/promot_lr0.001"].starts_from == (runs["seed0/prompt_tuning"],)
    assert runs["seed0/prompt_tuning"].starts_from == (PRETRAINED,) and runs["seed0/prompt_tuning"].prompt == 0
    assert not runs["seed0/theirs"].trains and runs["seed0/theirs"].starts_from == ("/their/checkpoint",)
    assert runs["seed0/tuned"].starts_from == ("/their/checkpoint",) and runs["seed0/tuned"].prompt == 2


@pytest.mark.parametrize(
    "methods,expected",
    [
        ((Method("a", ("a.gin",), ("b",)), Method("b", ("b.gin",), ("a",))), "in a cycle: (a -> b -> a|b -> a -> b)"),
        ((Method("a", ("a.gin",), ("a",)),), "in a cycle: a -> a"),
        ((Method("a", ("a.gin",), ("b",)),), "The method a starts from 'b'; expected a method of the recipe"),
        ((Method("a", ("a.gin",), ("promot",)),), "Recipe.methods has a without promot, which it starts from"),
        ((Method("a", ("a.gin",), ()),), "The method a starts from nothing"),
        ((Method("a", (), ("/x", "/y")),), "has no gin files, so it trains nothing, but starts from /x, /y"),
        (("fine_tuning", Method("a", ("a.gin",), ("fine_tuning",), grid=False)), "one run per learning rate"),
        (("promot",), "Recipe.methods has promot without prompt_tuning"),
        (("fine_tunning",), r"expected names among pretrained, .* \(did you mean 'fine_tuning'\?\)"),
    ],
)
def test_graphs_that_cannot_run_are_refused_in_a_sentence(methods, expected):
    with pytest.raises(ValueError, match=expected) as error:
        _recipe(*methods)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "headline", [("promot", "fine_tuning"), ("promot", "fine_tuning", "pretrained", "joint_tuning")]
)
def test_a_headline_has_three_methods(headline):
    with pytest.raises(ValueError, match="Recipe.headline is .*; expected the names of three methods"):
        _recipe("fine_tuning", headline=headline)


def test_a_name_that_could_not_be_a_folder():
    with pytest.raises(ValueError, match="Method.name is 'a/b', expected letters"):
        Method("a/b", ())


def test_the_rows_of_this_package_can_be_distinguished():
    for attribute in ("label", "colour", "marker", "description"):
        assert len({getattr(method.row, attribute) for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize(
    "changes,expected",
    [
        (dict(learning_rates=(1e-3, 1e-3)), "would share the folder seed0/fine_tuning_lr0.001"),
        (dict(learning_rates=(1e-3, 1.0000000001e-3)), "would share the folder seed0/fine_tuning_lr0.001"),
        (dict(seeds=(1, 1)), "would share the folder seed1/fine_tuning_lr0.001"),
        (dict(learning_rates=(-1e-3,)), "learning_rates has -0.001; expected positive numbers"),
        (dict(learning_rates=(float("nan"),)), "learning_rates has nan; expected positive numbers"),
        (dict(seeds=(-1,)), "seeds has -1; expected whole numbers from 0 on"),
        (dict(methods=()), "need at least one entry each"),
        (dict(in_context=("a", "a")), "in_context has a more than once"),
        (dict(headline=("promott", "fine_tuning", PRETRAINED)), "names 'promott', which is no method .did you mean"),
    ],
)
def test_what_no_recipe_can_be_is_said_before_anything_runs(changes, expected):
    with pytest.raises(ValueError, match=expected):
        _recipe(*changes.pop("methods", ("fine_tuning",)), **changes)


@pytest.mark.parametrize(
    "changes,expected",
    [
        (dict(name="a/b"), "it names folders"),
        (dict(name="x" * 300), "it names folders"),
        (dict(name=PRETRAINED), "which is the model that the recipe starts from"),
        (dict(colour="bleu"), "has the colour 'bleu'; expected '#rrggbb'"),
        (dict(colour="red;background:url(x)"), "expected '#rrggbb'"),
        (dict(marker="zz"), "has the marker 'zz'; expected one of matplotlib's"),
        (dict(label="two\nlines"), "expected one line of text"),
        (dict(prompt=-1), "Method.prompt is -1"),
    ],
)
def test_a_row_that_could_not_be_shown(changes, expected):
    with pytest.raises(ValueError, match=expected):
        Method(**{"name": "mine", "gin_files": ("mine.gin",), **changes})


def test_every_marker_that_a_row_may_have_is_matplotlibs():
    for marker in method_rows._MARKERS:
        assert marker in MarkerStyle.markers
