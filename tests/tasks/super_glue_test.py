"""promot_t5x.tasks.super_glue against the paper's wording, on hand-written rows and on the real files."""

import json

import pytest
import seqio

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
    assert seqio.TaskRegistry.get("super_glue_cb").splits == ("train", "validation")
    with pytest.raises(ValueError, match="already registered with other arguments"):
        super_glue.register_super_glue("nowhere/sentencepiece.model", data_dir="folder")


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
