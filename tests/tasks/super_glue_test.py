"""promot_t5x.tasks.super_glue against the paper's wording, on hand-written rows and on the real files."""

import collections
import doctest
import json
import re
import types

import gin
import pytest
import seqio
import tensorflow_datasets as tfds
from tensorflow_datasets.text import super_glue as tfds_super_glue

from promot_t5x import data, launcher
from promot_t5x.tasks import jsonl, super_glue

NAMES = ("super_glue_rte", "super_glue_cb", "super_glue_wic")
RTE = {"premise": "P.", "hypothesis": "H.", "idx": 0}


@pytest.fixture(autouse=True)
def _clean_registry():
    def clean():
        for name in NAMES:
            if name in seqio.TaskRegistry.names():
                seqio.TaskRegistry.remove(name)
            jsonl._registered.pop(name, None)

    clean()
    yield
    clean()


def _write(folder, task, split, rows):
    (folder / task).mkdir(exist_ok=True)
    (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _texts(name, split):
    ds = seqio.TaskRegistry.get(name).get_dataset(None, split=split, shuffle=False)
    rows = ds.as_numpy_iterator()
    return [(row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode()) for row in rows]


def test_wording_and_verbalizers(tmp_path):
    _write(tmp_path, "RTE", "validation", [{**RTE, "label": k} for k in ("entailment", "not_entailment", 0, 1)])
    _write(tmp_path, "CB", "validation", [{**RTE, "label": k} for k in ("entailment", "contradiction", "neutral", 2)])
    wic = {"sentence1": "S1.", "sentence2": "S2.", "word": "w"}
    _write(tmp_path, "WiC", "validation", [{**wic, "label": k} for k in (False, True, "true", 0)])
    super_glue.register_super_glue(seqio.ByteVocabulary(), data_dir=str(tmp_path))
    rte, cb, wic = (_texts(name, "validation") for name in NAMES)
    assert rte[0][0] == "P. question: H. Is it true or false? answer:"
    assert cb[0][0] == "P. question: H. Is it true or false or neither? answer:"
    assert wic[0][0] == (
        "S1. S2. question: The word w is used in the same way in the two sentences. Is it true or False? answer:"
    )
    assert [target for _, target in rte] == ["True", "False", "True", "False"]
    assert [target for _, target in cb] == ["True", "False", "Neither", "Neither"]
    assert [target for _, target in wic] == ["False", "True", "True", "False"]


def test_absent_files_are_cut_off_the_end_of_train(tmp_path):
    rows = [{"premise": str(i), "hypothesis": "", "label": 0} for i in range(60)]
    _write(tmp_path, "CB", "train", rows)
    super_glue.register_super_glue(seqio.ByteVocabulary(), data_dir=str(tmp_path))
    read = [[int(text.split()[0]) for text, _ in _texts("super_glue_cb", s)] for s in ("train", "validation", "test")]
    assert read == [list(range(10)), list(range(10, 35)), list(range(35, 60))]
    _write(tmp_path, "CB", "test", rows[:1])
    assert [len(_texts("super_glue_cb", s)) for s in ("train", "validation", "test")] == [35, 25, 1]


def test_errors_name_the_file(tmp_path):
    super_glue.register_super_glue(seqio.ByteVocabulary(), data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="RTE of the task's JSONL files is not found"):
        _texts("super_glue_rte", "train")
    _write(tmp_path, "RTE", "train", [{**RTE, "label": "neutral"}])
    with pytest.raises(ValueError, match="train.jsonl line 1, column 'label': found 'neutral', expected one of entail"):
        _texts("super_glue_rte", "train")
    _write(tmp_path, "RTE", "train", [{**RTE, "label": 0}])
    with pytest.raises(ValueError, match="has 1 rows, too few to hold 245 out"):
        _texts("super_glue_rte", "test")


def test_tfds_is_not_touched_at_registration():
    for _ in range(2):
        super_glue.register_super_glue("nowhere/sentencepiece.model")
    assert seqio.TaskRegistry.get("super_glue_cb").splits == ("train", "validation", "test")
    with pytest.raises(ValueError, match="already registered with other arguments"):
        super_glue.register_super_glue("nowhere/sentencepiece.model", data_dir="folder")


# How the official files spell the labels, and the texts that TFDS's order of the labels makes of them.
OFFICIAL_LABELS = {
    "rte": {"not_entailment": "False", "entailment": "True"},
    "cb": {"neutral": "Neither", "contradiction": "False", "entailment": "True"},
    "wic": {True: "True", False: "False"},
}
TFDS_ROWS = {"train": 40, "validation": 9, "test": 6}


def _official_row(key, split, number):
    row = {field: f"{split} {number}" if i == 0 else field for i, field in enumerate(super_glue.TASKS[key].fields)}
    row |= {"idx": number}
    if key == "wic":
        row |= {"start1": 0, "start2": 0, "end1": 1, "end2": 1}
    labels = list(OFFICIAL_LABELS[key])
    return row if split == "test" else {**row, "label": labels[number % len(labels)]}


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    """TFDS's own super_glue/rte, cb and wic of generated rows; what TFDS and seqio keep in globals is put back."""

    def split_generators(self, dl_manager):
        key = self.builder_config.name
        files = {split: tmp_path / f"{key}_{split}.jsonl" for split in TFDS_ROWS}
        for split, file in files.items():
            file.write_text("".join(json.dumps(_official_row(key, split, i)) + "\n" for i in range(TFDS_ROWS[split])))
        return {split: self._generate_examples(file, split) for split, file in files.items()}

    no_downloads = types.SimpleNamespace(downloaded_size=0)
    monkeypatch.setattr(tfds_super_glue.SuperGlue, "_split_generators", split_generators)
    monkeypatch.setattr(tfds_super_glue.SuperGlue, "_make_download_manager", lambda *_, **__: no_downloads)
    monkeypatch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", True)
    monkeypatch.setattr(seqio.utils.LazyTfdsLoader, "_MEMOIZED_BUILDERS", {})
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", None)
    folder = tmp_path / "tfds"
    for key in OFFICIAL_LABELS:
        tfds_super_glue.SuperGlue(config=key, data_dir=folder).download_and_prepare()
    return folder


@pytest.mark.parametrize("key", OFFICIAL_LABELS)
def test_tfds_splits(tfds_folder, key):
    seqio.set_tfds_data_dir_override(str(tfds_folder))  # what --tfds_data_dir does
    super_glue.register_super_glue(seqio.ByteVocabulary())
    name = f"super_glue_{key}"
    found = {split: _texts(name, split) for split in ("train", "validation", "test")}
    assert {split: len(texts) for split, texts in found.items()} == {"train": 36, "validation": 4, "test": 9}

    def expected(split):
        for row in (_official_row(key, split, i) for i in range(TFDS_ROWS[split])):
            yield super_glue.TASKS[key].template.format(**row), OFFICIAL_LABELS[key][row["label"]]

    # TFDS keeps rows in an order of its own; the first nine tenths of that order train.
    assert sorted(found["train"] + found["validation"]) == sorted(expected("train"))
    stored = tfds.load(f"super_glue/{key}:1.0.2", split="train", data_dir=tfds_folder, download=False)
    order = [int(row["idx"]) for row in stored.as_numpy_iterator()]
    rows = [int(re.match(r"train (\d+) ", text)[1]) for text, _ in found["train"] + found["validation"]]
    assert rows == order
    assert sorted(found["test"]) == sorted(expected("validation"))

    lengths = {"inputs": 32, "targets": 8}
    batch = next(data.train_batches(data.DatasetConfig(name, lengths, batch_size=36, shards=4)))
    decode = seqio.ByteVocabulary().decode
    targets = [decode([int(t) for t in row if t]) for row in batch["decoder_target_tokens"]]
    assert collections.Counter(targets) == collections.Counter(target for _, target in found["train"])


@pytest.mark.parametrize("file,values", [("rte", []), ("rte_jsonl", ["DATA_DIR = '/data'"])])
def test_the_shipped_splits_are_the_tasks(file, values):
    launcher.parse(["models/mt5_small.gin", f"tasks/{file}.gin"], values)
    name = launcher.configurable(super_glue.super_glue_task)()
    splits = [gin.query_parameter(f"{which}_SPLIT/gin.macro.value") for which in ("TRAIN", "VALIDATION", "TEST")]
    assert splits == ["train", "validation", "test"]
    assert set(splits) <= set(seqio.TaskRegistry.get(name).splits)


def test_docstring_examples_do_not_depend_on_what_is_registered():
    super_glue.register_super_glue("nowhere/sentencepiece.model")
    result = doctest.testmod(super_glue)
    assert result.attempted > 0 and result.failed == 0


def test_real_rows_with_the_t5_vocabulary(shared_dir):
    vocabulary = shared_dir / "data" / "spm" / "t5_cc_all_32000.model"
    folder = shared_dir / "data" / "super_glue"
    if not (vocabulary.is_file() and folder.is_dir()):
        pytest.skip(f"needs {vocabulary} and {folder}")
    super_glue.register_super_glue(str(vocabulary), data_dir=str(folder))
    sizes = [len(_texts("super_glue_rte", s)) for s in ("train", "validation", "test")]
    assert sizes == [2000, 245, 245]
    assert {target for _, target in _texts("super_glue_cb", "train")} == {"True", "False", "Neither"}
    assert len(_texts("super_glue_wic", "train")) == 22
    task = seqio.TaskRegistry.get("super_glue_rte")
    (row,) = task.get_dataset(None, split="train", shuffle=False).take(1).as_numpy_iterator()
    assert row["inputs"][-1] == 1 and 2 not in row["inputs"]  # ends the sequence; no unknown piece
    decoded = task.output_features["inputs"].vocabulary.decode(row["inputs"].tolist())
    assert decoded == row["inputs_pretokenized"].decode()
    assert row["targets_pretokenized"] == b"False"
