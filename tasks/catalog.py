"""The catalog of evaluation tasks and suites, and their expansion over numbers of exemplars and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from absl import logging
from etils import epy

from promot_t5x.runtime.text import aligned, nearest
from promot_t5x.tasks import paper, registration, toy_tables

with epy.lazy_imports():  # the listing needs no seqio
    import seqio

    from promot_t5x.tasks import few_shot

_SPLITS = ("train", "validation", "test")
SUITES: dict[str, tuple[str, ...]] = {
    "in_context": paper.IN_CONTEXT_TASKS,
    "fine_tuning": paper.FINE_TUNING_TASKS,
    "xnli": tuple(f"xnli_{language}" for language in paper.XNLI_LANGUAGES),
    "toy_in_context": toy_tables.IN_CONTEXT_TASKS,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One seqio task to score.

    Attributes:
      task: the task's name in the results.
      k: exemplars per prompt; None for a task that builds its own prompts.
      seed: seed of the exemplars; None if none are drawn.
      name: the seqio task.
    """

    task: str
    k: int | None
    seed: int | None
    name: str


def entries(
    tasks: Sequence[str],
    shots: Sequence[int] = (0,),
    seeds: Sequence[int] = (0,),
    vocabulary: seqio.Vocabulary | None = None,
    data_dir: str | None = None,
    splits: Mapping[str, str] | None = None,
    sentinels: bool = False,
    exemplars: str | None = None,
    module: str | None = None,
) -> tuple[Entry, ...]:
    """Registers tasks with every number of exemplars and seed, and lists what to score.

    Args:
      tasks: names of the paper's tasks, of tasks made by `jsonl_task`, of suites, or of any seqio tasks and mixtures.
        Only the first two kinds get exemplars; a task that was registered with exemplars keeps those.
      shots: numbers of exemplars.
      seeds: seeds of the exemplars; every number of exemplars above 0 is scored with each seed.
      vocabulary: the checkpoint's vocabulary. The paper's tasks need it unless `paper.task` has registered them; other
        tasks have their own.
      data_dir, splits, sentinels: arguments of the paper's tasks, see `paper.task`; a `jsonl_task` has its own.
      exemplars: "per_example" or "fixed"; None keeps the registered choice, by default "per_example".
      module: a module to import first because it registers seqio tasks; None if they are registered elsewhere.

    Returns:
      The entries, grouped by task.

    Raises:
      ValueError: a task or suite is unknown (the sentence has the nearest names), a vocabulary is missing, there is
        nothing to score, or the module cannot be imported.

    >>> [entry.name for entry in entries(("toy_in_context",))][:2]
    ['toy_nli3', 'toy_wic']
    """
    if not tasks or not shots or not seeds or min(*shots, *seeds) < 0:
        raise ValueError(
            f"catalog.entries has tasks={tasks!r}, shots={shots!r}, seeds={seeds!r}: expected at least one of each, "
            "and no negative number of exemplars or seed."
        )
    registration.import_module("promot_t5x.tasks.toy_world", "catalog.entries.tasks")
    if module is not None:
        registration.import_module(module, "catalog.entries.module")
    listed: list[Entry] = []
    as_registered: list[Entry] = []
    for name in dict.fromkeys(_expand(tasks)):
        registered = few_shot.registered(name)
        if name in paper.TASKS and vocabulary is not None:
            task, prompting = paper.text_task(name, data_dir, splits), few_shot.Prompting(vocabulary, sentinels)
        elif registered and not registered.shots:
            task, prompting = registered.task, registered.prompting
        elif name in paper.TASKS and not registered:
            raise ValueError(f"Task {name!r} has no vocabulary: set catalog.entries.vocabulary to the checkpoint's.")
        elif min(shots):
            raise ValueError(
                f"catalog.entries.shots is {tuple(shots)}, but task {name!r} {_shots_of(entry(name))}; set SHOTS=(0,), "
                "or score it on its own."
            )
        else:
            as_registered.append(entry(name))
            listed.append(entry(name))
            continue
        if exemplars is not None:
            prompting = dataclasses.replace(prompting, exemplars=exemplars)
        for k in dict.fromkeys(shots):
            for seed in dict.fromkeys(seeds) if k else (None,):
                seqio_name = few_shot.register(task, prompting, k, seed or 0)
                listed.append(Entry(name, k, seed, seqio_name))
    if as_registered and max(shots):
        tasks_shots = [f"task {one.name!r} {_shots_of(one)}" for one in as_registered]
        logging.warning("SHOTS does not apply to all tasks: %s", ", ".join(tasks_shots))
    return tuple(dict.fromkeys(listed))  # a task with exemplars may be named itself, too


def _shots_of(registered: Entry) -> str:
    """Why a task that is scored as it is registered takes no other number of exemplars."""
    if registered.k is None:
        return "makes its own prompts and takes no exemplars"
    return f"is registered with {registered.k} exemplar{'s' if registered.k > 1 else ''} per prompt and keeps them"


def entry(name: str) -> Entry:
    """The entry of one seqio task as it is registered, with its own exemplars; registers nothing.

    >>> entry("toy_enfr")
    Entry(task='toy_enfr', k=None, seed=None, name='toy_enfr')
    """
    registered = few_shot.registered(name)
    if registered is None:
        return Entry(name, None, None, name)
    return Entry(registered.task.name, registered.shots, registered.seed if registered.shots else None, name)


def names(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The names of the seqio tasks of entries.

    >>> names(entries(("toy_enfr",)))
    ('toy_enfr',)
    """
    return tuple(entry.name for entry in entries)


def _expand(names: Sequence[str]) -> Iterator[str]:
    """Replaces suites and mixtures by their tasks."""
    for name in names:
        if name in SUITES:
            yield from SUITES[name]
        elif name in seqio.MixtureRegistry.names():
            yield from (task.name for task in seqio.MixtureRegistry.get(name).tasks)
        elif name in paper.TASKS or name in seqio.TaskRegistry.names():
            yield name
        else:
            all_names = sorted({*SUITES, *paper.TASKS, *seqio.TaskRegistry.names()})
            similar = nearest(name.lower(), all_names) or list(SUITES)
            raise ValueError(
                f"{name!r} is no task, suite or mixture; the nearest names are {', '.join(similar)}: correct the name, "
                "import the module that registers it, or see `promot-t5x eval --list`. A task that a gin file makes "
                "has the name %MIXTURE_OR_TASK_NAME."
            )


def listing() -> str:
    """A table of all tasks and suites, with sizes and sources, as text."""
    rows = [("task", "metric", "train", "validation", "test", "TFDS (test split)", "JSONL folder")]
    for name, task in paper.TASKS.items():
        source = f"{task.tfds} ({task.splits['test']})"
        rows.append((name, _metric_name(task), *_sizes(task.sizes), source, task.folder))
    for name in (*toy_tables.IN_CONTEXT_TASKS, *toy_tables.TARGET_TASKS):
        metric = toy_tables.HEADLINE_METRICS[name]
        rows.append((name, metric, *_sizes(toy_tables.sizes(name)), "- (generated)", "-"))
    suites = [f"{name} ({len(tasks)} tasks): {', '.join(tasks)}" for name, tasks in SUITES.items()]
    return "\n".join([aligned(rows), "", "suites", *suites])


def _sizes(sizes: Mapping[str, int]) -> tuple[str, str, str]:
    train, validation, test = (f"{sizes[split]:,}" if split in sizes else "-" for split in _SPLITS)
    return train, validation, test


def _metric_name(task: paper.PaperTask) -> str:
    return next(iter(task.metrics[0]([], [])))
