"""promot_t5x.data.definitions: what a task is made of, wherever its data are."""

import hashlib
import json

import pytest
import sentencepiece
import seqio
import tensorflow as tf

from promot_t5x.data import definitions, training_batches
from promot_t5x.runtime import settings
from promot_t5x.tasks import jsonl, sources
from promot_t5x.training import run_settings


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"input": f"{split} {number}", "target": "yes"}) for number in range(4)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path / "data"


def _described(folder, **arguments):
    """What is recorded of a task of JSONL files that is validated on."""
    name = jsonl.jsonl_task("described", str(folder), vocabulary=seqio.ByteVocabulary(), **arguments)
    described = settings.describe(definitions.made_of(name, "task", ["validation"]))
    seqio.TaskRegistry.remove(name)
    return described


@pytest.mark.parametrize("shots", [0, 1])
def test_a_moved_folder_is_the_same_data_and_a_changed_file_is_not(folder, tmp_path, shots):
    before = _described(folder, shots=shots)
    assert str(tmp_path) not in json.dumps(before)
    moved = folder.rename(tmp_path / "moved")
    assert _described(moved, shots=shots) == before
    with (moved / "validation.jsonl").open("a") as stream:
        stream.write("\n")
    assert settings.differences(before, _described(moved, shots=shots)) != []


def test_exemplars_come_from_a_split_that_counts_as_well(folder):
    zero_shot, one_shot = _described(folder), _described(folder, shots=1)
    (folder / "train.jsonl").write_text('{"input": "another", "target": "no"}')
    assert _described(folder) == zero_shot
    (clause,) = settings.differences(one_shot, _described(folder, shots=1))
    assert clause.startswith("described_1shot_seed0.data.train.content is ")


def test_other_columns_or_slices_are_other_data(folder):
    before = _described(folder)
    assert _described(folder, target_column="input") != before
    assert _described(folder, splits={"train": "train.jsonl", "validation": "validation.jsonl[:3]"}) != before


def test_a_moved_vocabulary_is_the_same(tmp_path):
    text = tmp_path / "text"
    text.write_text("one two three four five\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "here"), vocab_size=16, minloglevel=2
    )
    hashes = []
    for name in ("here", "moved"):
        vocabulary = seqio.SentencePieceVocabulary(str(tmp_path / f"{name}.model"))
        source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"])
        seqio.TaskRegistry.add(name, source, {"inputs": seqio.Feature(vocabulary)}, [])
        hashes.append(definitions.made_of(name, "task")[name]["vocabularies"])
        (tmp_path / f"{name}.model").rename(tmp_path / "moved.model")
    assert hashes[0] == hashes[1]


def test_seqios_own_sources(folder):
    feature = {"inputs": seqio.Feature(seqio.ByteVocabulary())}
    lines = seqio.TextLineDataSource({"train": f"{folder}/*.jsonl"})
    identity = definitions.identity(seqio.Task("lines", lines, feature, []), "train")
    assert list(identity) == ["train.jsonl", "validation.jsonl"] and len(set(identity.values())) == 2
    versioned = seqio.TfdsDataSource("glue/cola:2.0.0", splits=["train"])
    named = definitions.identity(seqio.Task("cola", versioned, feature, []), "train")
    assert named == {"tfds": "glue/cola:2.0.0", "split": "train"}
    function = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.range(3), splits=["train"])
    assert definitions.identity(seqio.Task("function", function, feature, []), "train") == {}


def test_missing_data_are_told(folder):
    (folder / "validation.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="validation.jsonl is not found"):
        _described(folder)


def test_a_cached_task_is_known_by_the_files_of_its_cache(folder, tmp_path, monkeypatch):
    """The source was recorded, which the run does not read: a changed cache went unnoticed."""
    source = sources.JsonlRows(str(folder), {"train": "train.jsonl"}, {"input": ("input", sources.text)})
    feature = {"inputs": seqio.Feature(seqio.ByteVocabulary())}
    seqio.TaskRegistry.add("cached", source, feature, [seqio.CacheDatasetPlaceholder()])
    uncached = definitions.made_of("cached", "task", from_cache=["train"])
    assert uncached == definitions.made_of("cached", "task", ["train"])
    cache = tmp_path / "caches" / "cached"
    cache.mkdir(parents=True)
    for name, content in (
        ("info", {"features": {}, "num_shards": 1, "seqio_version": "0.0.19"}),
        ("stats", {"examples": 2}),
    ):
        (cache / f"{name}.train.json").write_text(json.dumps(content))
    (cache / "COMPLETED").touch()
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(cache.parent)])
    (folder / "train.jsonl").unlink()
    dataset = training_batches.DatasetConfig("cached", {"inputs": 8, "targets": 4}, use_cached=True)
    shard = cache / "train.tfrecord-00000-of-00001"
    for content in (b"one", b"other"):
        shard.write_bytes(content)
        data = run_settings.made_of(dataset, None)["cached"]["cached"]["data"]
        assert data == {"train (cached)": {shard.name: hashlib.sha256(content).hexdigest()}}
    (cache / "info.train.json").unlink()
    with pytest.raises(FileNotFoundError, match="of task 'cached' lacks the split 'train': cache the task again"):
        run_settings.made_of(dataset, None)
    seqio.TaskRegistry.remove("cached")
