"""What tasks and mixtures are made of, for the record of a run's settings: definitions, vocabularies and data.

Data are identified by their contents, not by their path: a hash of each file, or the name and version of a TFDS data
set. So a folder may be moved, and a changed file is noticed.
"""

from collections.abc import Iterable
from typing import Any

import seqio
from etils import epath

from promot_t5x.data import features, vocabularies
from promot_t5x.runtime import files
from promot_t5x.tasks import few_shot


def made_of(name: str, parameter: str, splits: Iterable[str] = (), from_cache: Iterable[str] = ()) -> dict[str, Any]:
    """The definition of a task, or of each task of a mixture.

    Args:
      name: a task or mixture of seqio's registry.
      parameter: the gin name of `name`, for the error.
      splits: the splits that are read.
      from_cache: the splits that are read from seqio's cache, of those tasks that are cached.

    Returns:
      For each task its rate in the mixture (None for a single task), its preprocessors, the hash of each feature's
      vocabulary, and the `identity` of each split and of the split that its exemplars are drawn from. A split that is
      read from the cache is called `<split> (cached)`.

    Raises:
      ValueError: there is no such task or mixture, or a vocabulary cannot be read.
      FileNotFoundError: a file of the data or of a vocabulary is missing.
    """
    task_or_mixture = features.find(name, parameter)
    if isinstance(task_or_mixture, seqio.Mixture):
        rates = {task: task_or_mixture.get_rate(task) for task in task_or_mixture.tasks}
    else:
        rates = {task_or_mixture: None}
    hashes: dict[int, str] = {}  # the features of a task, and often all tasks, share one vocabulary

    def vocabulary(feature: Any) -> str:
        words = feature.vocabulary
        if id(words) not in hashes:
            vocabularies.open_vocabulary(words)
            hashes[id(words)] = vocabularies.vocabulary_hash(words)
        return hashes[id(words)]

    return {
        task.name: {
            "rate": rate,
            "preprocessors": list(task.preprocessors),
            "vocabularies": {key: vocabulary(feature) for key, feature in task.output_features.items()},
            "data": _data(task, splits, from_cache),
        }
        for task, rate in rates.items()
    }


def _data(task: seqio.Task, splits: Iterable[str], from_cache: Iterable[str]) -> dict[str, Any]:
    """The identity of each split that is read; a mixture leaves out tasks without the split."""
    caches = {split: features.cached_source(task, split) for split in from_cache if split in task.splits}
    uncached = [split for split, source in caches.items() if source is None]
    wanted = dict.fromkeys((*uncached, *splits, *few_shot.exemplar_splits(task.name)))
    cached = {f"{split} (cached)": _identity(source, split) for split, source in caches.items() if source}
    return {**{split: identity(task, split) for split in wanted if split in task.splits}, **cached}


def identity(task: seqio.Task, split: str) -> dict[str, Any]:
    """What identifies a split's data, as JSON values without paths; empty for a function, which says nothing of them.

    Raises:
      FileNotFoundError, ValueError: the source has no such data.
    """
    return _identity(task.source, split)


def _identity(source: Any, split: str) -> dict[str, Any]:
    if hasattr(source, "identity"):  # ours
        return {key: value for key, value in source.identity(split).items() if key != "folder"}
    if isinstance(source, seqio.TfdsDataSource):
        return {"tfds": source.tfds_dataset.name, "split": split}
    if isinstance(source, seqio.FileDataSource):
        return {epath.Path(file).name: files.content_hash(file) for file in source.list_shards(split)}
    return {}
