"""Sources of a task's rows: a TFDS data set on disk, or a folder of JSONL files.

Both are seqio sources whose examples hold one text, `row`: a JSON object with the columns that the task's wording
names. The column `label` is the index of a class, `answers` and `choices` are lists of strings, others are strings.
Rows without a gold label (label -1, in files also "-") are left out. Nothing is read until a split is requested.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from etils import epath
from tensorflow_datasets.core import constants, naming

from promot_t5x.runtime import files, strict_json

Rows = list[dict[str, Any]]
TfdsColumn = str | Callable[[Mapping[str, Any]], Any]
"""A column in TFDS: a path through nested features ("answer/value"), or a function of the example's tensors."""

JSONL_SPLITS = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
UNLABELLED = -1

_ROWS_AT_ONCE = 20_000

_SLICED_FILE = re.compile(r"(?P<file>[^\[\]]+)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?")


class TfdsRows(seqio.TfdsDataSource):
    """Rows of a TFDS data set on disk; never downloads anything.

    Args:
      name: the data set with its version, such as "super_glue/cb:1.0.2".
      splits: the TFDS split, or a slice of it, for each split of the task: {"train": "train[:90%]"}.
      columns: the TFDS column for each column of the task.
    """

    def __init__(self, name: str, splits: Mapping[str, str], columns: Mapping[str, TfdsColumn]):
        super().__init__(tfds_name=name, splits=dict(splits), read_only=True)
        self._mapped, self._columns = dict(splits), columns

    def get_dataset(self, split: str | None = None, *args: Any, **kwargs: Any) -> tf.data.Dataset:
        self._check(split or "train")
        dataset = super().get_dataset(split, *args, **kwargs)
        return dataset.map(self._to_json).filter(lambda example: tf.strings.length(example["row"]) > 0)

    def list_shards(self, split: str) -> Sequence[str]:
        self._check(split)
        return super().list_shards(split)

    def num_input_examples(self, split: str) -> int | None:
        self._check(split)
        return super().num_input_examples(split)

    def identity(self, split: str) -> dict[str, Any]:
        """What a split's rows are made of, so that something kept on disk can be told to be out of date."""
        self._check(split)
        info, folder = self.tfds_dataset.info, str(self.tfds_dataset.builder.data_dir)
        sizes = {name: [part.num_examples, part.num_bytes] for name, part in sorted(info.splits.items())}
        data = {"tfds": self.tfds_dataset.name, "split": self._mapped[split], "folder": folder, "sizes": sizes}
        return {**data, "columns": {column: path for column, path in self._columns.items() if isinstance(path, str)}}

    def _check(self, split: str) -> None:
        """Raises FileNotFoundError or ValueError unless data set, split and columns exist."""
        name = str(self.tfds_dataset.name)
        _check_split(split, self._mapped, f"TFDS data set {name}")
        _check_prepared(name, self.tfds_dataset.data_dir)
        info = self.tfds_dataset.info
        tfds_split = self._mapped[split]
        present = ", ".join(sorted(info.splits))
        if not {part.strip().split("[")[0] for part in tfds_split.split("+")} <= set(info.splits):
            raise ValueError(f"TFDS data set {name} has no split {tfds_split!r}, only {present}: name one of these.")
        try:
            self.tfds_dataset.files(split)
        except (ValueError, AssertionError) as error:
            raise ValueError(f"TFDS data set {name} has no slice {tfds_split!r} ({error}): correct SPLITS.") from error
        for column in self._columns.values():
            features = info.features
            for key in column.split("/") if isinstance(column, str) else ():
                if not hasattr(features, "keys") or key not in features.keys():
                    names = ", ".join(sorted(features.keys())) if hasattr(features, "keys") else "none inside"
                    raise ValueError(f"TFDS data set {name} has no feature {column!r}; its features are {names}.")
                features = features[key]

    def _to_json(self, example: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        tensors = [
            _at(example, column) if isinstance(column, str) else column(example) for column in self._columns.values()
        ]

        def encode(*values: Any) -> bytes:
            row = dict(zip(self._columns, map(_plain, values), strict=True))
            return b"" if row.get("label") == UNLABELLED else json.dumps(row).encode()

        row = tf.numpy_function(encode, tensors, tf.string, stateful=False)
        return {"row": tf.ensure_shape(row, [])}


def _at(example: Mapping[str, Any], path: str) -> Any:
    for key in path.split("/"):
        example = example[key]
    return example


def _plain(value: Any) -> Any:
    """A numpy value as JSON has it."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else int(value)


def _check_prepared(name: str, data_dir: str | None) -> None:
    builder, kwargs = naming.parse_builder_name_kwargs(name)
    root = epath.Path(data_dir or constants.DATA_DIR)
    parts = [str(builder), *([kwargs["config"]] if "config" in kwargs else []), str(kwargs["version"])]
    if not (root.joinpath(*parts) / "dataset_info.json").exists():
        present = sorted(p.parent.relative_to(root).as_posix() for p in root.glob("*/*/dataset_info.json"))
        present += sorted(p.parent.relative_to(root).as_posix() for p in root.glob("*/*/*/dataset_info.json"))
        raise FileNotFoundError(
            f"TFDS data set {name} is not in {root}, which holds {', '.join(present) or 'none'}: prepare it on a "
            f'machine with a network by python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
            f'data_dir={str(root)!r}).download_and_prepare()", name another folder with --tfds_data_dir, or read JSONL '
            "files with --data_dir."
        )


class JsonlRows(seqio.FunctionDataSource):
    """Rows of a folder of JSONL files: one JSON object per line, one file, or slice of a file, per split.

    Args:
      folder: the folder of the files.
      splits: the file of each split, or a slice of a file's rows as in Python: {"train": "train.jsonl[:2000]",
        "validation": "train.jsonl[2000:]"}.
      columns: for each column of the task its path in a line's object ("choices/text/0") and a function to read it.
      check: raises ValueError for a row that is invalid as a whole.
    """

    def __init__(
        self,
        folder: str,
        splits: Mapping[str, str],
        columns: Mapping[str, tuple[str, Callable[[Any], Any]]],
        check: Callable[[dict[str, Any]], None] = lambda row: None,
    ):
        self._folder, self._files = files.absolute(folder), {split: _parse(file) for split, file in splits.items()}
        self._columns, self._row_check = columns, check
        super().__init__(self._read, splits=tuple(splits))

    def identity(self, split: str) -> dict[str, Any]:
        """What a split's rows are made of, so that something kept on disk can be told to be out of date."""
        file, part = self._file(split)
        content = files.content_hash(self._folder / file)
        columns = {column: path for column, (path, _) in self._columns.items()}
        name = os.path.basename(file)  # SPLITS may have whole paths
        return {"jsonl": name, "content": content, "start": part.start, "stop": part.stop, "columns": columns}

    def _read(self, split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # rows keep the file's order; training shuffles them itself
        file, part = self._file(split)
        rows = _rows(self._folder / file, self._columns, self._row_check)
        parts, labelled = [], bytearray()
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):  # all as dictionaries would take gigabytes
            labelled += bytes(row.get("label") != UNLABELLED for row in batch)
            parts.append(tf.constant([json.dumps(row) for row in batch]))
        is_wanted_N = np.zeros(len(labelled), bool)
        is_wanted_N[part] = True
        in_slice = int(is_wanted_N.sum())
        is_wanted_N &= np.frombuffer(labelled, bool)
        if not is_wanted_N.any():
            raise ValueError(
                f"Split {split!r} of {self._folder} is empty: {file} has {len(labelled)} rows, and {in_slice} of them "
                "in the slice; choose another file or slice."
            )
        wanted = np.split(is_wanted_N, range(_ROWS_AT_ONCE, len(labelled), _ROWS_AT_ONCE))
        texts = [rows_N if keep.all() else rows_N[keep] for rows_N, keep in zip(parts, wanted, strict=True)]
        datasets = [tf.data.Dataset.from_tensor_slices({"row": rows_N}) for rows_N in texts]
        while len(datasets) > 1:  # in pairs of pairs, so that a row passes through few of them
            pairs = zip(datasets[::2], datasets[1::2], strict=False)
            datasets = [*(one.concatenate(other) for one, other in pairs), *datasets[len(datasets) // 2 * 2 :]]
        return datasets[0]

    def _file(self, split: str) -> tuple[str, slice]:
        """The file of a split, which exists, and the slice of its rows."""
        _check_split(split, self._files, str(self._folder))
        file, part = self._files[split]
        path = self._folder / file
        if not self._folder.is_dir():
            raise FileNotFoundError(
                f"Folder {self._folder} of the task's JSONL files is not found: correct DATA_DIR, or its data_dir."
            )
        if not path.is_file():
            present = ", ".join(sorted(p.name for p in self._folder.glob("*.jsonl"))) or "none"
            raise FileNotFoundError(
                f"File {path} is not found; the JSONL files in its folder are {present}: name one in SPLITS."
            )
        return file, part


def _check_split(split: str, splits: Mapping[str, Any], where: str) -> None:
    if split not in splits:
        raise ValueError(f"{where} has no split {split!r}, only {', '.join(splits)}: name one of these, or set SPLITS.")


def _parse(file: str) -> tuple[str, slice]:
    """Splits "train.jsonl[:2000]" into the file and the slice of its rows, with Python's meaning."""
    match = _SLICED_FILE.fullmatch(file)
    if not match:
        raise ValueError(f"Split file {file!r} is not understood, expected a file name with or without [start:stop].")
    start, stop = (None if match[part] is None else int(match[part]) for part in ("start", "stop"))
    return match["file"], slice(start, stop)


def read_rows(
    path: epath.PathLike,
    columns: Mapping[str, tuple[str, Callable[[Any], Any]]],
    check: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Rows:
    """Reads some columns of a JSONL file; blank lines are skipped.

    Args:
      path: the file.
      columns: for each column its path in the line's object, and a function of its value that raises ValueError for an
        invalid one.
      check: raises ValueError for a row that is invalid as a whole.

    Returns:
      One dict of converted values per line.

    Raises:
      ValueError: a line is not JSON, lacks a column or has an invalid value, or the file has no rows.
    """
    return list(_rows(path, columns, check))


def _rows(
    path: epath.PathLike,
    columns: Mapping[str, tuple[str, Callable[[Any], Any]]],
    check: Callable[[dict[str, Any]], None],
) -> Iterator[dict[str, Any]]:
    keys = {column: path.split("/") for column, (path, _) in columns.items()}
    row = None
    for where, record in strict_json.read_lines(path):
        row = _convert_row(record, columns, keys, check, where)
        yield row
    if row is None:
        raise ValueError(f"File {path} is empty, expected one JSON object per line.")


def _convert_row(
    record: Any,
    columns: Mapping[str, tuple[str, Callable[[Any], Any]]],
    keys: Mapping[str, list[str]],
    check: Callable[[dict[str, Any]], None],
    where: str,
) -> dict[str, Any]:
    if not isinstance(record, dict):
        paths = ", ".join(path for path, _ in columns.values())
        raise ValueError(f"{where} is a {type(record).__name__}, expected a JSON object with columns {paths}.")
    row = {}
    for column, (path, convert) in columns.items():
        try:
            value = functools.reduce(_inside, keys[column], record)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{where} has no column {path!r}, only {', '.join(record)}: name one of these columns."
            ) from error
        try:
            row[column] = convert(value)
        except ValueError as error:
            raise ValueError(f"{where}, column {path!r}: {error}.") from error
    try:
        check(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from error
    return row


def _inside(value: Any, key: str) -> Any:
    """The member of an object by its name, or of a list by its index."""
    if isinstance(value, list) and key.isdigit():
        return value[int(key)]
    if isinstance(value, dict):
        return value[key]
    raise KeyError(key)


def text(value: Any) -> str:
    """A column's value as text; numbers are converted, anything else is refused.

    >>> text("a"), text(3)
    ('a', '3')
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"found {value!r}, expected text")
    return str(value)


def texts(value: Any) -> list[str]:
    """A column's value as a list of at least one text.

    >>> texts(["a", 3])
    ['a', '3']
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"found {value!r}, expected a list of at least one text")
    return [text(item) for item in value]


def label_index(value: Any, labels: Sequence[str]) -> int:
    """The index of a label given by its name, as true or false, or by its index; UNLABELLED for "-" and -1.

    >>> label_index("neutral", ("entailment", "contradiction", "neutral")), label_index(True, ("false", "true"))
    (2, 1)
    """
    if value in ("-", UNLABELLED):
        return UNLABELLED
    if isinstance(value, bool):
        value = str(value).lower()
    folded = [label.lower() for label in labels]
    if isinstance(value, str) and value.lower() in folded:
        return folded.index(value.lower())
    if isinstance(value, int) and 0 <= value < len(labels):
        return value
    raise ValueError(f"found {value!r}, expected one of {', '.join(labels)} or an index below {len(labels)}")
