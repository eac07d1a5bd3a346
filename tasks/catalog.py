"""What there is to evaluate on: the tasks and suites by name, and their expansion into exemplar numbers and seeds."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import seqio

from promot_t5x.runtime.text import aligned, nearest
from promot_t5x.tasks import few_shot, paper, registration, toy_world

_SPLITS = ("train", "validation", "test")
SUITES: dict[str, tuple[str, ...]] = {
    "in_context": paper.IN_CONTEXT_TASKS,
    "fine_tuning": paper.FINE_TUNING_TASKS,
    "xnli": tuple(f"xnli_{language}" for language in paper.XNLI_LANGUAGES),
    "toy_in_context": toy_world.IN_CONTEXT_TASKS,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing to score.

    Attributes:
      task: the task's name in the results.
      k: exemplars a prompt; None for a task whose prompts are its own.
      seed: of the exemplars; None where none are drawn.
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
    """Registers tasks with every number of exemplars and seed, and says what is to be scored.

    Args:
      tasks: names of tasks of the paper, of `jsonl_task`, of suites, or of any seqio tasks and mixtures. Only the first
        two get exemplars; one that was registered with exemplars keeps those.
      shots: numbers of exemplars.
      seeds: of the exemplars; every number above 0 is scored with each.
      vocabulary: the checkpoint's; the tasks of the paper need it unless `paper.task` has registered them already, the
        others have their own.
      data_dir, splits, sentinels: of the tasks of the paper, see `paper.task`; a `jsonl_task` brings its own.
      exemplars: "per_example" or "fixed"; None as the task was registered, "per_example" if it was not.
      module: a module that registers seqio tasks, imported first; None where something else registers them.

    Returns:
      The entries, each task's together.

    Raises:
      ValueError: an unknown task or suite (with the nearest names), no vocabulary, nothing to score, or no such module.

    >>> [entry.name for entry in entries(("toy_in_context",))][:2]
    ['toy_nli3', 'toy_wic']
    """
    if not tasks or not shots or not seeds or min(shots) < 0:
        raise ValueError(
            f"catalog.entries has tasks={tasks!r}, shots={shots!r}, seeds={seeds!r}: expected at least one of each, "
            "and no negative number of exemplars."
        )
    if module is not None:
        registration.import_module(module, "catalog.entries.module")
    found = []
    for name in dict.fromkeys(_expand(tasks)):
        known = few_shot.registered(name)
        if name in paper.TASKS and vocabulary is not None:
            task, prompting = paper.text_task(name, data_dir, splits), few_shot.Prompting(vocabulary, sentinels)
        elif known and not known.shots:
            task, prompting = known.task, known.prompting
        elif known:
            found.append(Entry(known.task.name, known.shots, known.seed, name))
            continue
        elif name in paper.TASKS:
            raise ValueError(f"Task {name!r} has no vocabulary: set catalog.entries.vocabulary to the checkpoint's.")
        else:
            found.append(Entry(name, None, None, name))
            continue
        if exemplars is not None:
            prompting = dataclasses.replace(prompting, exemplars=exemplars)
        for k in dict.fromkeys(shots):
            for seed in dict.fromkeys(seeds) if k else (None,):
                seqio_name = few_shot.register(task, prompting, k, seed or 0)
                found.append(Entry(name, k, seed, seqio_name))
    return tuple(found)


def entry(name: str) -> Entry:
    """The entry of one seqio task as it was registered: with its own exemplars, and nothing registered anew.

    >>> entry("toy_enfr")
    Entry(task='toy_enfr', k=None, seed=None, name='toy_enfr')
    """
    registered = few_shot.registered(name)
    if registered is None:
        return Entry(name, None, None, name)
    return Entry(registered.task.name, registered.shots, registered.seed if registered.shots else None, name)


def names(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The seqio tasks of entries.

    >>> names(entries(("toy_enfr",)))
    ('toy_enfr',)
    """
    return tuple(entry.name for entry in entries)


def _expand(names: Sequence[str]) -> Iterator[str]:
    """Suites and mixtures as their tasks."""
    for name in names:
        if name in SUITES:
            yield from SUITES[name]
        elif name in seqio.MixtureRegistry.names():
            yield from (task.name for task in seqio.MixtureRegistry.get(name).tasks)
        elif name in paper.TASKS or name in seqio.TaskRegistry.names():
            yield name
        else:
            known = sorted({*SUITES, *paper.TASKS, *seqio.TaskRegistry.names()})
            near = nearest(name.lower(), known) or list(SUITES)
            raise ValueError(
                f"{name!r} is no task, suite or mixture; the nearest names are {', '.join(near)}: correct the name, "
                "import the module that registers it, or see `promot-t5x eval --list`."
            )


def listing() -> str:
    """A table of all tasks and suites, with sizes and sources, as text."""
    rows = [("task", "metric", "train", "validation", "test", "TFDS (test split)", "JSONL folder")]
    for name, task in paper.TASKS.items():
        source = f"{task.tfds} ({task.splits['test']})"
        rows.append((name, _metric_name(task), *_sizes(task.sizes), source, task.folder))
    for name in (*toy_world.IN_CONTEXT_TASKS, *toy_world.TARGET_TASKS):
        metric = toy_world.HEADLINE_METRICS[name]
        rows.append((name, metric, *_sizes(toy_world.sizes(name)), "- (made by a rule)", "-"))
    suites = [f"{name} ({len(tasks)} tasks): {', '.join(tasks)}" for name, tasks in SUITES.items()]
    return "\n".join([aligned(rows), "", "suites", *suites])


def _sizes(sizes: Mapping[str, int]) -> tuple[str, str, str]:
    train, validation, test = (f"{sizes[split]:,}" if split in sizes else "-" for split in _SPLITS)
    return train, validation, test


def _metric_name(task: paper.PaperTask) -> str:
    metric = task.metrics[0].__name__  # pyright: ignore[reportAttributeAccessIssue]  # a plain function
    return "rouge2" if metric == "rouge" else metric
