"""promot_t5x.tasks.catalog: names become tasks with exemplars and seeds; unknown ones get the nearest."""

import json
import re

import pytest
import seqio

from promot_t5x.tasks import catalog, jsonl, paper, toy_world
from promot_t5x.tasks.catalog import Entry

BYTES = seqio.ByteVocabulary()
ALONE = ("toy_rtec", "toy_enfr")


@pytest.fixture
def own(tmp_path):
    """A task of JSONL files of six questions."""
    for split in ("train", "test"):
        rows = [{"input": f"{split} {i}?", "target": "x"} for i in range(6)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return jsonl.jsonl_task("catalog_own", str(tmp_path), vocabulary=BYTES)


def _names(*args, **kwargs):
    return [entry.name for entry in catalog.entries(*args, **kwargs)]


def test_suites_are_those_of_the_paper_and_of_the_toy_world():
    assert {name: len(tasks) for name, tasks in catalog.SUITES.items()} == {
        "in_context": 8,
        "fine_tuning": 4,
        "xnli": 15,
        "toy_in_context": 8,
    }
    assert all(set(catalog.SUITES[suite]) <= set(paper.TASKS) for suite in ("in_context", "fine_tuning", "xnli"))
    assert not set(catalog.SUITES) & set(paper.TASKS)


def test_a_suite_is_its_tasks_with_every_number_of_exemplars_and_seed():
    entries = catalog.entries(("in_context",), shots=(0, 1, 4), seeds=(0, 7), vocabulary=BYTES, data_dir="nowhere")
    expected = []
    for task in paper.IN_CONTEXT_TASKS:
        expected.append(Entry(task, 0, None, task))
        expected += [Entry(task, k, seed, f"{task}_{k}shot_seed{seed}") for k in (1, 4) for seed in (0, 7)]
    assert entries == tuple(expected)  # and nothing was read: there is no such folder
    assert {entry.name for entry in entries} <= set(seqio.TaskRegistry.names())


def test_tasks_with_prompts_of_their_own_get_no_exemplars():
    entries = catalog.entries(ALONE, shots=(0, 4), seeds=(0, 1))
    assert entries == tuple(Entry(name, None, None, name) for name in ALONE)


def test_toy_suite_and_mixtures_are_their_tasks():
    assert _names(("toy_in_context",)) == list(toy_world.IN_CONTEXT_TASKS)
    assert _names(("toy_pretraining",)) == sorted(f"toy_pretrain_{name}" for name in toy_world.PRETRAINING_WEIGHTS)


def test_tasks_of_jsonl_files_get_exemplars(own):
    entries = catalog.entries((own,), shots=(2, 0), seeds=(5, 6))
    assert entries == (
        Entry(own, 2, 5, "catalog_own_2shot_seed5"),
        Entry(own, 2, 6, "catalog_own_2shot_seed6"),
        Entry(own, 0, None, own),
    )
    for entry in entries:
        dataset = seqio.TaskRegistry.get(entry.name).get_dataset(None, split="test", shuffle=False).as_numpy_iterator()
        texts = [example["inputs_pretokenized"].decode() for example in dataset]
        assert len(texts) == 6 and all(text.count("train") == entry.k for text in texts)
    assert catalog.entries((own,), shots=(2, 0), seeds=(5, 6)) == entries


def test_a_jsonl_task_with_exemplars_is_one_thing_under_its_own_name(tmp_path):
    name = jsonl.jsonl_task("catalog_shots", str(tmp_path), vocabulary=BYTES, shots=2, seed=1)
    assert catalog.entries((name,), shots=(0, 4)) == (Entry("catalog_shots", 2, 1, name),)


def test_a_jsonl_task_with_fixed_exemplars(own):
    """Without exemplars there is nothing to fix, and the task is the registered one."""
    assert _names((own,), shots=(0, 1), exemplars="fixed") == [own, f"{own}_1shot_seed0_fixed"]


def test_both_ways_of_drawing_share_the_task_without_exemplars():
    for mode in ("per_example", "fixed"):
        suffix = "_fixed" if mode == "fixed" else ""
        names = _names(("cb",), shots=(0, 1), vocabulary=BYTES, data_dir="nowhere", exemplars=mode)
        assert names == ["cb", f"cb_1shot_seed0{suffix}"]


@pytest.mark.parametrize(
    "other", [{"data_dir": "elsewhere"}, {"vocabulary": seqio.ByteVocabulary(extra_ids=100)}, {"sentinels": True}]
)
@pytest.mark.parametrize("shots", [(0,), (1,), (0, 1)])
def test_a_task_of_the_paper_is_not_taken_for_one_with_other_arguments(other, shots):
    arguments = {"vocabulary": BYTES, "data_dir": "nowhere"}
    catalog.entries(("cb",), shots=shots, **arguments)
    with pytest.raises(ValueError, match="already registered with other arguments"):
        catalog.entries(("cb",), shots=shots, **{**arguments, **other})


def test_what_is_named_twice_is_scored_once(own):
    assert _names(("toy_in_context", "toy_wic", "toy_in_context")) == list(toy_world.IN_CONTEXT_TASKS)
    assert _names((own, own), shots=(1, 1), seeds=(0,)) == [f"{own}_1shot_seed0"]


def test_a_task_with_exemplars_that_is_also_named_itself_is_scored_once(own, caplog):
    """It was scored twice, and the spread over seeds was 0 instead of null."""
    catalog.entries((own,), shots=(2,))
    assert _names((own, f"{own}_2shot_seed0"), shots=(0, 2)) == [own, f"{own}_2shot_seed0"]
    assert f"task '{own}_2shot_seed0' is registered with 2 exemplars per prompt and keeps them" in caplog.text
    with pytest.raises(ValueError, match="_2shot_seed0' is registered with 2 exemplars per prompt and keeps them; set"):
        catalog.entries((f"{own}_2shot_seed0",), shots=(1,))


def test_a_seed_named_twice_is_scored_once(own):
    assert _names((own,), shots=(1,), seeds=(3, 3)) == [f"{own}_1shot_seed3"]


def test_the_order_is_that_of_the_names():
    assert _names(("toy_wic", "toy_nli3")) == ["toy_wic", "toy_nli3"]


@pytest.mark.parametrize(
    "name,nearest",
    [
        ("toy_in_contxt", "toy_in_context"),
        ("trivia", "trivia_qa"),
        ("wmt16_deen", "wmt16_ende"),
        ("catalog_onw", "catalog_own"),
        ("!!!", "in_context, fine_tuning, xnli, toy_in_context"),
    ],
)
def test_unknown_names_get_the_nearest(own, name, nearest):
    with pytest.raises(ValueError) as raised:
        catalog.entries(("toy_wic", name))
    listed = re.search(
        f"^'{name}' is no task, suite or mixture; the nearest names are (.*): correct", str(raised.value)
    )
    assert nearest in listed[1]


def test_tasks_of_the_paper_need_a_vocabulary():
    with pytest.raises(ValueError, match="Task 'rte' has no vocabulary: set catalog.entries.vocabulary"):
        catalog.entries(("rte",), data_dir="nowhere")


@pytest.mark.parametrize("wrong", [{"tasks": ()}, {"shots": ()}, {"seeds": ()}, {"shots": (0, -1)}])
def test_nothing_to_score_is_an_error(wrong):
    with pytest.raises(ValueError, match="expected at least one of each, and no negative number"):
        catalog.entries(**{"tasks": ALONE, **wrong})


def test_the_listing_names_every_task_and_suite():
    text = catalog.listing()
    table, suites = text.split("\n\nsuites\n")
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    toy = (*toy_world.IN_CONTEXT_TASKS, *toy_world.TARGET_TASKS)
    assert list(rows) == [*paper.TASKS, *toy]
    for name, task in paper.TASKS.items():
        assert all(part in rows[name] for part in (task.tfds, task.folder, f"{task.sizes['test']:,}"))
    for name in toy:
        assert toy_world.HEADLINE_METRICS[name] in rows[name] and f"{toy_world.sizes(name)['test']:,}" in rows[name]
    metrics = {"cb": "accuracy", "trivia_qa": "exact_match", "wmt16_ende": "bleu", "xsum": "rouge2"}
    assert all(rows[name].split()[1] == metric for name, metric in metrics.items())
    expected = [f"{name} ({len(tasks)} tasks): {', '.join(tasks)}" for name, tasks in catalog.SUITES.items()]
    assert suites.splitlines() == expected
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_task_of_the_paper_that_gin_has_registered_is_reused():
    """The target task of a run, named by the function that trained on it."""
    name = paper.task("rte", BYTES, data_dir="nowhere", splits={"train": "a.jsonl", "test": "b.jsonl"})
    entries = catalog.entries((name,), shots=(0, 1))
    assert [(entry.task, entry.k, entry.name) for entry in entries] == [
        ("rte", 0, "rte"),
        ("rte", 1, "rte_1shot_seed0"),
    ]
    assert seqio.TaskRegistry.get("rte_1shot_seed0").splits == ("train", "test")
