"""promot_t5x.runtime.compiled_programs: a second process compiles nothing; a folder in trouble costs one line."""

import os
import subprocess
import sys

import pytest
from etils import epath

from promot_t5x.runtime import compiled_programs

_PROGRAM = """
import os, resource, signal
if os.environ.get("FIRST"):
    import jax
from promot_t5x.configuration import program
from promot_t5x.runtime import compiled_programs
program.show_progress()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
most = int(os.environ.get("MOST", -1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
compiled_programs.keep()
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
programs = [jax.jit(lambda x, n=n: x @ x * n) for n in (2.0, 3.0)]
print([program(jax.numpy.ones((2, 2))).tolist() for program in programs])
print(events.count("/jax/compilation_cache/cache_hits"), events.count("/jax/compilation_cache/cache_misses"))
"""


@pytest.fixture
def start(tmp_path):
    """Runs the program in a process of its own; returns (results, hits, misses, lines of stderr)."""

    def run(cache=tmp_path / "cache", **more):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
        environment |= {"PROMOT_CACHE": str(cache), **more}
        done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results, counts = done.stdout.splitlines()
        return (results, *map(int, counts.split()), done.stderr.splitlines())

    return run


def test_a_second_process_compiles_nothing_and_damage_is_mended(start, tmp_path):
    results, hits, misses, lines = start()
    assert hits == 0 and misses >= 2 and lines == []
    assert start() == (results, misses, 0, [])
    kept = sorted((tmp_path / "cache" / "compiled").glob("*-cache"))
    assert len(kept) == misses
    for file in kept:
        file.write_bytes(file.read_bytes()[:-9])
    again, hits, _, lines = start()
    assert again == results and hits == 0
    assert len(lines) == 1 and "reading a compiled program in" in lines[0] and "are compiled again" in lines[0]
    assert start() == (results, misses, 0, [])


def test_programs_are_kept_where_jax_was_imported_first(start):
    """As in a pipeline, which imports jax with the recipe."""
    results, hits, misses, _ = start(FIRST="1")
    assert hits == 0 and misses >= 2
    assert start(FIRST="1") == (results, misses, 0, [])


def test_a_folder_that_cannot_be_made_costs_a_line(start, tmp_path):
    (tmp_path / "file").write_text("")
    _, hits, _, lines = start(cache=tmp_path / "file")
    assert hits == 0 and len(lines) == 1 and "compiled programs are not kept" in lines[0] and "PROMOT_CACHE" in lines[0]


def test_a_full_disk_costs_a_line(start):
    results, _, _, lines = start(MOST="100")
    assert len(lines) == 1 and "writing a compiled program in" in lines[0] and "the next start" in lines[0]
    assert start()[0] == results


@pytest.mark.parametrize(
    "reason, remain",
    [
        ("OSError: [Errno 30] Read-only file system: '/c/x'", 1),
        ("[Errno 28] No space left on device", 1),
        ("zlib.error: incorrect header check", 0),
    ],
)
def test_only_damaged_programs_are_deleted(reason, remain, tmp_path, monkeypatch, caplog):
    (tmp_path / "a-cache").write_text("a program")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    message = f"Error reading persistent compilation cache entry for 'jit_f': {reason}"
    with caplog.at_level("WARNING", logger="absl"):
        compiled_programs._show(message, following=print, own=True, told=set())
    assert len(list(tmp_path.iterdir())) == remain and "are compiled again" in caplog.text


def test_damaged_programs_that_cannot_be_deleted_stop_nothing(tmp_path, monkeypatch):
    def refuse(path, missing_ok):
        raise OSError(30, "Read-only file system", str(path))

    (tmp_path / "a-cache").write_text("a program")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(type(epath.Path(tmp_path)), "unlink", refuse)
    compiled_programs._clear()
    assert (tmp_path / "a-cache").is_file()


def test_a_folder_of_ones_own_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/programs")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    monkeypatch.setattr("warnings.showwarning", print)
    compiled_programs.keep()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/programs"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
