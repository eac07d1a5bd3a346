"""Answers of an evaluation on disk, so that an interrupted evaluation resumes where it stopped.

An answer is identified by its key, a hash of everything that determines it: prompt, checkpoint, way of answering.
While a task is being answered, its answers are written in parts, `<name>.unfinished/00000.jsonl` and so on, each of
them atomically; at the end, `<name>.jsonl` replaces them. Answers that this evaluation does not need, because the task
is limited or another checkpoint is evaluated, are kept in `<name>.others.jsonl`. Each line has a checksum; a
damaged one is left out, and its example answered again.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import logging
from etils import epath

from promot_t5x.data import features
from promot_t5x.evaluation.answering import Answer
from promot_t5x.runtime import files, processes, strict_json, text

_SECONDS_PER_PART = 10.0


def input_text(example: Mapping[str, Any]) -> str:
    """The prompt of an example as text; empty for a task that has tokens only."""
    prompt = example.get("inputs_pretokenized", b"")
    return prompt.decode() if isinstance(prompt, bytes) else str(prompt)


def keys(examples: Sequence[Mapping[str, Any]], made_by: Mapping[str, Any], numbered: bool = False) -> list[str]:
    """One key per example; equal prompts of one task have equal keys and share an answer.

    Args:
      examples: the examples to answer: `inputs` (tokens), and `inputs_pretokenized` and `choices` if they have them.
      made_by: what else determines an answer, JSON values only: checkpoint, prompt, decoding.
      numbered: whether an answer also depends on the example's position, as in sampling.
    """
    common = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())

    def key(number: int, example: Mapping[str, Any]) -> str:
        digest = common.copy()
        tokens = np.asarray(example["inputs"], "<i4").tobytes()
        texts = (str(number) if numbered else "", input_text(example), *features.choices(example))
        for part in (tokens, *(t.encode() for t in texts)):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()[:32]

    return [key(number, example) for number, example in enumerate(examples)]


def check(folder: epath.Path, name: str, macro: str) -> None:
    """Checks, before the first answer, that answers can be stored.

    Args:
      folder, name: see `Answers`.
      macro: the macro that gives the folder.

    Raises:
      ValueError: a file of answers is a folder, or their folder is a file.
      OSError: a file cannot be written.
    """
    file, others, parts = _paths(folder, name)
    files.writable_file(file, macro)
    files.writable_file(others, macro)
    if parts.exists() and not parts.is_dir():
        raise ValueError(f"{macro} is to hold the folder {parts}, which is a file; give another path, or delete it.")
    files.writable_folder(parts, macro)


def _paths(folder: epath.Path, name: str) -> tuple[epath.Path, epath.Path, epath.Path]:
    """The file of a task's answers, that of others, and the folder of parts."""
    return folder / f"{name}.jsonl", folder / f"{name}.others.jsonl", folder / f"{name}.unfinished"


class Answers:
    """The answers of one task on disk.

    Args:
      folder: the evaluation's folder.
      name: the file names without their endings.
      keys: one per example, see `keys`.

    Attributes:
      by_number: the answers that were on disk and those added since, by the number of the example.
    """

    def __init__(self, folder: epath.Path, name: str, keys: Sequence[str]):
        self._file, self._others_file, self._parts = _paths(folder, name)
        self._keys = keys
        on_disk = self._read()
        self.by_number = {number: on_disk[key] for number, key in enumerate(keys) if key in on_disk}
        self._numbers_of: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            self._numbers_of.setdefault(key, []).append(number)
        self._others = {key: answer for key, answer in on_disk.items() if key not in self._numbers_of}
        self._waiting: list[int] = []
        self._written = time.monotonic()

    def _read(self) -> dict[str, Answer]:
        """Answers by key."""
        parts = sorted(self._parts.glob("*.jsonl")) if self._parts.exists() else []
        answers: dict[str, Answer] = {}
        for file in (self._others_file, self._file, *parts):
            if file.exists():
                answers |= _read_file(file)
        return answers

    def complete(
        self,
        answer: Callable[[list[int]], Iterable[tuple[Sequence[int], Sequence[Answer]]]],
        description: str,
        *,
        together: bool = False,
    ) -> list[Answer]:
        """Answers the examples that have no answer yet, and shows the progress; what was answered survives an error.

        Of examples with equal keys only the first is answered, as scores of another batch may have other last digits.

        Args:
          answer: for the numbers of examples, yields (some of them, their answers).
          description: of the progress bar.
          together: whether answers depend on those of the same batch, as in sampling: all are made again if one is
            missing.

        Returns:
          All answers, in the order of the examples.
        """
        missing = [number for number in range(len(self._keys)) if number not in self.by_number]
        if together and missing:
            missing = list(range(len(self._keys)))
        with tqdm.tqdm(
            desc=description,
            total=len(self._keys),
            initial=len(self._keys) - len(missing),
            unit=" examples",
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
            file=sys.stderr if sys.stderr.isatty() else text.Lines(sys.stderr),
        ) as bar:
            try:
                for numbers, answers in answer([n for n in missing if n == self._of_equal_key(n)[0]]):
                    self.add(numbers, answers)
                    bar.update(sum(len(self._of_equal_key(n)) for n in numbers))
            except KeyboardInterrupt as interrupt:
                done = f"{len(self.by_number)} of {len(self._keys)} answers of {description}"
                interrupt.add_note(f"{done} are kept; the same command continues after them")
                raise
            finally:
                self.flush()
        return [self.by_number[number] for number in range(len(self._keys))]

    def add(self, numbers: Sequence[int], answers: Sequence[Answer]) -> None:
        """Adds answers, also for examples of equal keys; on disk within about ten seconds if answers keep coming."""
        for number, answer in zip(numbers, answers, strict=True):
            self.by_number |= dict.fromkeys(self._of_equal_key(number), answer)
        self._waiting += numbers
        if time.monotonic() - self._written > _SECONDS_PER_PART:
            self.flush()

    def _of_equal_key(self, number: int) -> list[int]:
        """The numbers of the examples that share an example's answer, its own among them."""
        return self._numbers_of[self._keys[number]]

    def flush(self) -> None:
        """Writes what has been added since the last part."""
        if self._waiting:
            number = len(list(self._parts.glob("*.jsonl"))) if self._parts.exists() else 0
            while (self._parts / f"{number:05}.jsonl").exists():
                number += 1
            lines = [_line(self._keys[n], self.by_number[n]) for n in self._waiting]
            files.write_whole(self._parts / f"{number:05}.jsonl", _joined(lines))
        self._waiting, self._written = [], time.monotonic()

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the parts by the task's file, one line per example.

        Args:
          rows: for each example what to write next to its answer, JSON values only.
        """
        if self._others:
            _write(self._others_file, _joined(_line(key, answer) for key, answer in self._others.items()))
        _write(self._file, _joined({**row, **_line(self._keys[n], self.by_number[n])} for n, row in enumerate(rows)))
        if self._parts.exists() and processes.speaks():
            self._parts.rmtree()


def _write(file: epath.Path, contents: bytes) -> None:
    """Writes a file atomically, unless it has these contents already."""
    if not (file.exists() and file.read_bytes() == contents):
        files.write_whole(file, contents)


def _line(key: str, answer: Answer) -> dict[str, Any]:
    scores = {} if answer.scores is None else {"choice_scores": answer.scores}  # null for those that are not finite
    return {"output": answer.output, **scores, "key": key}


def _read_file(file: epath.Path) -> dict[str, Answer]:
    """The answers in a file by key; damaged lines are reported and removed from it."""
    lines = [line for line in file.read_bytes().split(b"\n") if line]
    answers: dict[str, Answer] = {}
    whole: list[bytes] = []
    for line in lines:
        try:
            key, answer = _parse(line)
        except ValueError:
            continue
        answers[key] = answer
        whole.append(line + b"\n")
    if damaged := len(lines) - len(whole):
        logging.warning("%s is damaged; %d of its %d answers are made again if needed", file, damaged, len(lines))
        files.write_whole(file, b"".join(whole))
    return answers


def _parse(line: bytes) -> tuple[str, Answer]:
    """The key and the answer of a line; raises ValueError if it is not as it was written."""
    try:
        fields = json.loads(line.decode())  # the checksum finds what a strict reader would
    except RecursionError as error:
        raise ValueError("too many levels of nesting") from error
    if not strict_json.is_sealed(fields):
        raise ValueError("not an answer with its checksum")
    scores = fields.get("choice_scores")
    if scores is not None:
        scores = tuple(math.nan if score is None else score for score in scores)
    return fields["key"], Answer(fields["output"], scores)


def _joined(lines: Iterable[Mapping[str, Any]]) -> bytes:
    stored = (strict_json.sealed(strict_json.finite(line), default=str) for line in lines)
    return "".join(strict_json.dumps(line) + "\n" for line in stored).encode()
