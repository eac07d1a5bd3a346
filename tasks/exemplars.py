"""Exemplars of in-context prompts: a pool of training rows on disk, and the draw of exemplars for each question.

The exemplars of a question depend only on the task, their number, the seed and the text of the question, not on hosts,
batches or the order of reading; in training each reading of a question draws anew. A question is never its own
exemplar, and rows with the same question count as one; questions are compared in `normal_form`.
Random numbers come from `random.Random.random`, whose sequence Python guarantees for a seed.
"""

import dataclasses
import functools
import hashlib
import heapq
import json
import random
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio
from absl import logging
from etils import epath

from promot_t5x.runtime import files, strict_json
from promot_t5x.tasks.wording import Example, Wording

POOL_SIZE = 10_000
MODES = ("per_example", "fixed")
_FORMAT = 3  # format of the files; changing it discards the existing pools


def cache_folder() -> epath.Path:
    """The folder of the pools, in `files.cache_folder()`."""
    return files.cache_folder() / "exemplars"


def pool(
    name: str, source: seqio.DataSource, split: str, wording: Wording, *, size: int = POOL_SIZE, seed: int = 0
) -> tuple[Example, ...]:
    """The rows that a task's exemplars are drawn from: at most `size` rows of a split, all with different questions.

    From a larger split the rows with the smallest keyed hashes are taken, so the order of reading does not matter. The
    pool is read once, then kept on disk under the hash of its definition.

    Args:
      name: the task's name.
      source: the task's source; it has `identity` in addition to seqio's methods (see `sources`).
      split: the split to draw from.
      wording: turns rows into questions and answers.
      size: the largest number of rows.
      seed: seed of the choice among more rows than `size`.

    Raises:
      FileNotFoundError, ValueError: the source has no such data, or the split is empty.
    """
    identity: Mapping[str, Any] = source.identity(split)  # pyright: ignore[reportAttributeAccessIssue]
    definition = {"format": _FORMAT, "task": name, "source": identity, "wording": dataclasses.asdict(wording)}
    definition = json.dumps({**definition, "size": size, "seed": seed}, sort_keys=True)
    file = cache_folder() / f"{name}-{_digest(definition)[:16]}.jsonl"
    rows = _read(file, definition)
    if rows is None:
        logging.info("choosing the pool of exemplars of %s from its split %s", name, split)
        # Reading rows one by one would take TensorFlow several times as long.
        batches = source.get_dataset(split, shuffle=False).batch(1000)
        read = (json.loads(row) for batch in batches.as_numpy_iterator() for row in batch["row"])
        rows = _choose(read, wording, size, seed)
        if not rows:
            raise ValueError(f"Split {split!r} of task {name!r} is empty, but exemplars are drawn from it.")
        try:
            _write(file, definition, rows)
        except OSError as error:
            logging.warning("%s could not be saved (%s) and is read again next time; set PROMOT_CACHE", file, error)
    return tuple(wording.example(row) for row in rows)


def normal_form(text: str) -> str:
    """A text as SentencePiece normalizes it: in Unicode's NFKC, with single spaces between words.

    >>> normal_form(" Qui\\u3000etait-ce\\u00a0? ") == "Qui etait-ce ?"
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _choose(rows: Iterable[dict[str, Any]], wording: Wording, size: int, seed: int) -> list[dict[str, Any]]:
    """The rows with the smallest hashes, one per question, in the order of the hashes."""
    # Of several rows with one question, the one with the smallest hashes stays. Holds at most twice the pool.
    held: dict[str, tuple[str, str, str]] = {}
    largest = "g"  # above every hexadecimal digest
    for row in rows:
        question = wording.example(row).inputs
        order = _digest(f"{seed}\n{question}")
        if order > largest:  # enough rows have smaller hashes; in a large split this skips nearly every row
            continue
        text = json.dumps(row, sort_keys=True)
        candidate = (order, _digest(text), text)
        form = _digest(normal_form(question))
        held[form] = min(candidate, held.get(form, candidate))
        if len(held) > 2 * size:
            smallest = heapq.nsmallest(size, held, key=held.__getitem__)
            held = {form: held[form] for form in smallest}
            largest = held[smallest[-1]][0]
    return [json.loads(text) for _, _, text in heapq.nsmallest(size, held.values())]


def _read(file: epath.Path, definition: str) -> list[dict[str, Any]] | None:
    """The pool in a file; None if there is no file or it is damaged."""
    if not file.exists():
        return None
    try:
        head, *lines = file.read_text().splitlines()
        rows = [strict_json.loads(line) for line in lines]
        if strict_json.loads(head) == _head(definition, rows) and rows:
            return rows
    except ValueError:
        pass
    logging.warning("%s is damaged; the pool of exemplars is read again", file)
    return None


def _head(definition: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first line of a file."""
    return {"made_of": definition, "rows": len(rows), strict_json.CHECKSUM: strict_json.checksum(rows)}


def _write(file: epath.Path, definition: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a pool atomically; several processes may do so at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_head(definition, rows)), *(json.dumps(row) for row in rows)]
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws the exemplars of a task.

    Attributes:
      name: the task's name.
      pool: the rows to draw from.
      shots: exemplars per question, fewer than the pool has rows.
      seed: another seed draws other exemplars.
      mode: "per_example" draws anew for every question, "fixed" gives all questions the same set (a question that is in
        the set gets the next row of its class instead of itself).
    """

    name: str
    pool: tuple[Example, ...]
    shots: int
    seed: int = 0
    mode: str = "per_example"

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"Exemplars are drawn {self.mode!r}, expected one of {', '.join(MODES)}.")
        if not 0 <= self.shots < max(len(self.pool), 1):
            raise ValueError(
                f"Task {self.name!r} has {self.shots} exemplars per prompt, but they are drawn from {len(self.pool)} "
                "training questions, one of which may be the question itself: use fewer exemplars."
            )

    def draw(self, question: str, reading: int | None = None) -> list[Example]:
        """The exemplars before a question, in their order.

        Classes take turns: if all rows of the pool have the same choices, no answer occurs twice before all others have
        occurred once.

        Args:
          question: the question, as the prompt has it.
          reading: distinguishes the readings of a question in training, each of which draws anew; None in evaluation.
            The mode "fixed" ignores it.

        >>> pool = tuple(Example("", f"{i}?", "", ("yes", "no")[i % 2 :][:1], ("yes", "no")) for i in range(8))
        >>> drawn = Sampler("even", pool, shots=4).draw("0?")
        >>> sorted(example.target for example in drawn), "0?" in [example.inputs for example in drawn]
        (['no', 'no', 'yes', 'yes'], False)
        """
        if not self.shots:
            return []
        key = [self.name, self.shots, self.seed]
        if self.mode == "per_example":
            key += [question] if reading is None else [question, int(reading)]
        rng = random.Random(int(_digest(json.dumps(key))[:16], 16))
        # One more of each class than needed, since one may be the question itself.
        sampled = [_sample(rng, members, self.shots + 1) for members in self._classes]
        classes = [sampled[c] for c in _sample(rng, range(len(sampled)), len(sampled))]
        form = normal_form(question)
        classes = [[i for i in members if self._forms[i] != form] for members in classes]
        turns = [members[turn] for turn in range(self.shots) for members in classes if turn < len(members)]
        chosen = turns[: self.shots]
        return [self.pool[chosen[i]] for i in _sample(rng, range(self.shots), self.shots)]

    @functools.cached_property
    def _forms(self) -> list[str]:
        """The normal form of each question in the pool."""
        return [normal_form(example.inputs) for example in self.pool]

    @functools.cached_property
    def _classes(self) -> list[list[int]]:
        """Indices into the pool by class; a single class if answers are free text."""
        classified = len({example.choices for example in self.pool}) == 1 and self.pool[0].choices
        by_class: dict[str, list[int]] = {}
        for i, example in enumerate(self.pool):
            by_class.setdefault(example.target if classified else "", []).append(i)
        return [by_class[key] for key in sorted(by_class)]


def _sample(rng: random.Random, items: Sequence[int], count: int) -> list[int]:
    """`count` items (all, if there are fewer) in random order, in time independent of the number of items."""
    moved: dict[int, int] = {}  # a shuffle from the front that stores only the positions it has touched
    picked, uniform, size = [], rng.random, len(items)
    for i in range(min(count, size)):
        j = i + int(uniform() * (size - i))
        picked.append(items[moved.get(j, j)])
        moved[j] = moved.get(i, i)
    return picked
