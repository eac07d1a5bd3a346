"""promot_t5x.runtime.files: files that are whole or not there, and versions."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promot_t5x.runtime import files, processes
from promot_t5x.runtime.versions import versions

ROOT = Path(__file__).resolve().parents[2]


def test_old_results_survive_a_full_disk(tmp_path):
    """The operating system itself refuses the bytes: the process may write files of at most 4,096 bytes."""
    path = tmp_path / "results.json"
    files.write_json(path, {"old": True})
    program = (
        "import resource, sys; from promot_t5x.runtime import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "files.write_json(sys.argv[1], {'new': 'x' * 100_000})"
    )
    done = subprocess.run([sys.executable, "-B", "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"r.json was not written"):
        files.write_json(tmp_path / "r.json", {"value": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content,problem",
    [
        (b"", "is damaged, it is not JSON"),
        (b'{"a": ', "is damaged, it is not JSON"),
        (b"\xff\xfe", "is damaged, it is not JSON"),
        (b"[" * 10**5, "is damaged, it is not JSON"),
        (b"[1]", "is damaged, it is not a JSON object"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a git-lfs pointer"),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path, content, problem):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"r.json {problem}"):
        files.read_json(tmp_path / "r.json")


def test_of_several_processes_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "speaks", lambda: False)
    files.write_json(tmp_path / "folder" / "r.json", {"by": 1})
    files.write_whole(tmp_path / "r.bin", b"1")
    assert list(tmp_path.iterdir()) == []
    # A mistake is one in every process: none goes on as if the file were there.
    with pytest.raises(ValueError, match=r"r.json was not written"):
        files.write_json(tmp_path / "r.json", {"value": math.inf})
    monkeypatch.setattr(processes, "speaks", lambda: True)
    files.write_json(tmp_path / "folder" / "r.json", {"by": 0})
    assert json.loads((tmp_path / "folder" / "r.json").read_text()) == {"by": 0}


def test_versions_are_those_of_the_imported_packages():
    import flax
    import jax
    import optax

    actual = versions()
    assert actual["python"] == sys.version.split()[0]
    assert (actual["jax"], actual["flax"], actual["optax"]) == (jax.__version__, flax.__version__, optax.__version__)


def test_the_folder_of_caches_follows_the_environment(monkeypatch):
    monkeypatch.setenv("PROMOT_CACHE", "~/elsewhere")
    assert str(files.cache_folder()).endswith("/elsewhere") and "~" not in str(files.cache_folder())
    monkeypatch.delenv("PROMOT_CACHE")
    assert str(files.cache_folder()).endswith("/.cache/promot_t5x")


def test_the_packaged_checkpoint_has_one_name_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (files.absolute("promot_t5x/demo_checkpoint") / "_CHECKPOINT_METADATA").exists()
    assert files.absolute("./promot_t5x/demo_checkpoint/") == files.absolute("promot_t5x/demo_checkpoint")
    assert files.absolute("promot_t5x/other") == tmp_path / "promot_t5x" / "other"


def test_an_address_is_no_path():
    with pytest.raises(ValueError, match="http://host/x is no path: expected a local one, or one in a bucket"):
        files.absolute("http://host/x")


def test_a_folder_for_results_is_checked_before_them(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.json").mkdir()
    assert files.writable_folder(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert files.writable_file(tmp_path / "a" / "b.json", "--json") == tmp_path / "a" / "b.json"
    assert files.writable_file(tmp_path / "file", "--json") == tmp_path / "file"
    for path in ("file", "file/x", "file/x/y"):
        with pytest.raises(ValueError, match=f"--out is .*, but {tmp_path}/file is a file, expected a folder"):
            files.writable_folder(tmp_path / path, "--out")
    with pytest.raises(ValueError, match="--json is to write .*taken.json, which is a folder"):
        files.writable_file(tmp_path / "taken.json", "--json")
    for check in (files.writable_folder, files.writable_file):
        with pytest.raises(OSError, match="too long"):
            check(tmp_path / "a" / ("x" * 300), "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.json"], "nothing is created"


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files.time, "time", lambda now=time.time: now() + 10)
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"one")
    assert files.content_hash(file) == hashlib.sha256(b"one").hexdigest()
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    kept.write_text(kept.read_text().replace(hashlib.sha256(b"one").hexdigest(), "remembered"))
    assert files.content_hash(file) == "remembered"
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"two")
    shutil.copystat(file, other)  # as unzip, tar, cp -p and rsync do

    def rewritten():
        file.write_bytes(b"six")
        os.utime(file, (1e9, 1e9))

    for change in (lambda: os.utime(file, (1e9, 1e9)), rewritten, lambda: other.replace(file)):
        change()
        assert files.content_hash(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    for damage in ("", "{", "[1]", "{}", "[" * 10**5):
        kept.write_text(damage)
        assert files.content_hash(file) == hashlib.sha256(b"two").hexdigest()


def test_a_hash_of_a_file_that_has_just_changed_is_not_remembered(tmp_path, monkeypatch):
    """Another change within the resolution of the file system's times would not be noticed."""
    monkeypatch.setenv("PROMOT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "data.jsonl"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, (time.time(), time.time()))
        assert files.content_hash(file) == hashlib.sha256(content).hexdigest()
    assert not (tmp_path / "cache").exists()
