"""promot_t5x.data.kept_examples: what is kept is used only for the same contents, and never in place of a result."""

import json
import os
import shutil

import numpy as np
import pytest
import seqio
from absl import logging

from promot_t5x.data import evaluation_examples, kept_examples
from promot_t5x.runtime import files
from promot_t5x.tasks import few_shot, jsonl, metrics, sources
from promot_t5x.tasks.wording import Wording

SPM = os.path.join(os.path.dirname(seqio.__file__), "test_data", "sentencepiece", "sentencepiece.model")
LENGTHS = {"inputs": 64, "targets": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PROMOT_CACHE", str(folder))
    evaluation_examples.forget()
    yield folder / "examples"
    evaluation_examples.forget()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"input": f"{split} Ort {i}?", "target": "ja"} for i in range(8)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _task(data, name="kept", vocabulary=None, **arguments):
    return jsonl.jsonl_task(name, str(data), vocabulary=vocabulary or seqio.ByteVocabulary(), shots=2, **arguments)


def _read(name, lengths=LENGTHS, limit=None):
    """The features as another process would get them."""
    evaluation_examples.forget()
    return evaluation_examples.evaluation_examples(name, lengths, "test", limit=limit)


def _equal(one, other):
    assert (one.targets, one.cuts, one.truncated) == (other.targets, other.cuts, other.truncated)
    assert all(one.features[name].tobytes() == other.features[name].tobytes() for name in one.features)
    for a, b in zip(one.examples, other.examples, strict=True):
        assert set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_second_reading_reads_no_text(data, cache, monkeypatch):
    name = _task(data)
    first = _read(name)
    monkeypatch.setattr(few_shot, "prompter", lambda *_: pytest.fail("the prompts were made again"))
    _equal(_read(name), first)
    assert len(list(cache.iterdir())) == 1


def test_whatever_examples_are_made_of_is_part_of_their_key(data):
    """Data and exemplars by their contents, lengths, the limit, and what the task was registered with."""
    name = _task(data)

    def made_of(task=name, lengths=LENGTHS, limit=None):
        return kept_examples.made_of(seqio.TaskRegistry.get(task), lengths, "test", limit)

    before = {made_of(), made_of(limit=3), made_of(lengths={"inputs": 63, "targets": 8})}
    others = {made_of(_task(data, f"kept_{i}", **changed)) for i, changed in enumerate(({"seed": 1}, {"prefix": "t"}))}
    assert len(before | others) == 5
    for split in ("train", "test"):
        file = data / f"{split}.jsonl"
        stat = file.stat()
        file.write_text(file.read_text().replace("Ort 3", "Tor 3"))  # the same size
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        before.add(made_of())
    assert len(before) == 5


def test_another_vocabulary_under_the_same_path_size_and_time_is_another_one(data, tmp_path):
    file = tmp_path / "words.model"
    shutil.copy2(SPM, file)
    stat = file.stat()

    def inputs():
        seqio.vocabularies._load_model_internal.cache_clear()  # as in another process
        words = seqio.SentencePieceVocabulary(str(file))
        name = _task(data, vocabulary=words)
        read = _read(name).features["encoder_input_tokens"]
        seqio.TaskRegistry.remove(name)
        return read

    before = inputs()
    model = bytearray(file.read_bytes())
    one, other = (model.find(b"\n\x01" + piece + b"\x15") for piece in (b"a", b"t"))
    assert one > 0 and other > 0
    model[one + 2], model[other + 2] = model[other + 2], model[one + 2]  # the two letters trade their ids
    file.write_bytes(model)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and file.stat().st_mtime_ns == stat.st_mtime_ns
    assert inputs().tobytes() != before.tobytes(), "tokens of the old vocabulary were used again"


def test_data_that_change_while_they_are_read_are_not_kept(data, cache, monkeypatch):
    name, prompter = _task(data), few_shot.prompter

    def changing(*arguments):
        file = data / "test.jsonl"
        file.write_text(file.read_text().replace("Ort", "Tor"))
        return prompter(*arguments)

    monkeypatch.setattr(few_shot, "prompter", changing)
    _read(name)
    assert not cache.exists()


def _flip(content):
    """One bit of a text, an "O" that becomes an "N"."""
    assert b"Ort 5" in content
    return content.replace(b"Ort 5", b"Nrt 5", 1)


@pytest.mark.parametrize("damage", [_flip, lambda content: content[:-100], lambda content: b"", lambda content: b"x"])
def test_a_damaged_file_costs_one_line_and_is_made_again(damage, data, cache, caplog):
    name = _task(data)
    first = _read(name)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        _equal(_read(name), first)
        assert [record.getMessage().count("is damaged") for record in caplog.records] == [1]
        caplog.clear()
        _equal(_read(name), first)
    assert not caplog.records and file.stat().st_size == len(whole)


def test_the_examples_of_another_task_under_this_name_are_not_used(data, cache, caplog):
    first = _read(_task(data))
    (file,) = cache.iterdir()
    other = _read(_task(data, "kept_other", seed=1))
    (other_file,) = set(cache.iterdir()) - {file}
    shutil.copy(other_file, file)
    with caplog.at_level("WARNING", logger="absl"):
        _equal(_read(_task(data)), first)
    assert "is damaged (it is of other examples)" in caplog.text
    assert other.features["encoder_input_tokens"].tobytes() != first.features["encoder_input_tokens"].tobytes()


def test_a_full_disk_costs_one_line(data, cache, caplog, monkeypatch):
    def full(*_, **__):
        raise files.NoRoomError(28, "No space left on device")

    names = [_task(data), _task(data, "kept_too")]
    monkeypatch.setattr(logging, "_log_counter_per_token", {})  # as in a process of its own
    monkeypatch.setattr(np, "savez", full)
    with caplog.at_level("WARNING", logger="absl"):
        assert [len(_read(name).targets) for name in names] == [8, 8]
    assert caplog.text.count("No space left on device") == 1 and "examples are not kept in" in caplog.text
    assert not list(cache.iterdir()), "no part of a file stays"


def test_a_folder_that_cannot_be_made_costs_one_line(data, tmp_path, caplog, monkeypatch):
    names = [_task(data), _task(data, "kept_too")]
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    monkeypatch.setattr(files, "_UNSETTLED", -10.0)  # as for files that were written long ago
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROMOT_CACHE", str(tmp_path / "file"))
    with caplog.at_level("WARNING", logger="absl"):
        assert [len(_read(name).targets) for name in names] == [8, 8]
    assert caplog.text.count("examples are not kept in") == 1 and "Not a directory" in caplog.text
    assert caplog.text.count("is hashed again") == 2, "one line for each file, however often it is read"


def test_the_files_that_were_not_used_for_longest_go_first(data, cache, monkeypatch):
    names = [_task(data, f"kept_{i}") for i in range(3)]
    _read(names[0])
    (size,) = [file.stat().st_size for file in cache.iterdir()]
    monkeypatch.setattr(kept_examples, "_BYTES", int(2.5 * size))
    _read(names[1])
    for file in cache.iterdir():
        os.utime(file, (1, 1) if file.name.startswith(names[0]) else (2, 2))
    _read(names[0])  # is used
    _read(names[2])
    assert sorted(file.name.split("-")[0] for file in cache.iterdir()) == sorted(
        [f"{n}_2shot_seed0" for n in ("kept_0", "kept_2")]
    )


def test_what_is_not_known_is_not_kept(data, cache):
    """A reader of a column, and a vocabulary, from outside the package: only their names are known."""

    class Words(seqio.ByteVocabulary):
        pass

    def shout(value):
        return value.upper()

    columns = {"input": ("input", shout), "target": ("target", sources.text)}
    source = sources.JsonlRows(str(data), {"train": "train.jsonl", "test": "test.jsonl"}, columns)
    task = few_shot.TextTask("shouted", source, Wording("{input}"), (metrics.accuracy,))
    shouted = few_shot.register(task, few_shot.Prompting(seqio.ByteVocabulary()), 2)
    for name in (shouted, _task(data, vocabulary=Words())):
        assert len(_read(name).targets) == 8
    assert not cache.exists()
