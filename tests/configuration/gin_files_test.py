"""Tests of gin files, their error sentences and the wrapper of the binaries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from promot_t5x.configuration import flags, gin_checks, gin_files, program

PACKAGE = Path(gin_files.__file__).resolve().parents[1]
ROOT = Path(__file__).resolve().parents[2]

LIBRARY = """
import dataclasses
import gin


@dataclasses.dataclass(frozen=True)
class Config:
    embed_dim: int = 8
    dropout_rate: float = 0.1


def run(config, steps, model_dir="", seed=0):
    return config, steps, model_dir, seed


def required(rate=gin.REQUIRED):
    return rate


def broken():
    return run()


def unmentioned(x=1):
    return x
"""

HEADER = "from __gin__ import dynamic_registration\nfrom gin_library import core\n"
MAIN = (
    HEADER
    + """
TRAIN_STEPS = 10
DROPOUT_RATE = 0.1
core.Config.embed_dim = 32
core.Config.dropout_rate = %DROPOUT_RATE
core.run.config = @core.Config()
core.run.steps = %TRAIN_STEPS
"""
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A package `gin_library` made once, since gin remembers registered functions for the process."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "gin_library").mkdir()
    (folder / "gin_library" / "__init__.py").write_text("")
    (folder / "gin_library" / "core.py").write_text(LIBRARY)
    (folder / "gin_library" / "other.py").write_text("def run(size=1):\n    return size\n")
    sys.path.insert(0, str(folder))
    import gin_library.core  # pyright: ignore[reportMissingImports]

    yield gin_library.core
    sys.path.remove(str(folder))


@pytest.fixture
def write(tmp_path, library):
    def write_file(text, name="main.gin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


def parse_error(*arguments):
    with pytest.raises(gin_files.ConfigError) as caught:
        gin_files.parse(*arguments)
    assert not gin_files.resolved_config(), "a failed parse must leave nothing behind"
    return str(caught.value)


# Files


def test_resolve_order(tmp_path, monkeypatch):
    packaged, searched, here = tmp_path / "packaged", tmp_path / "searched", tmp_path / "here"
    for folder in (packaged, searched, here):
        (folder / "models").mkdir(parents=True)
    monkeypatch.setattr(gin_files, "_PACKAGED", packaged)
    monkeypatch.chdir(here)
    for folder in (packaged, searched, here):
        (folder / "models" / "x.gin").write_text("")
        path = gin_files.resolve("models/x.gin", ["nowhere", str(searched)])
        assert path == folder / "models" / "x.gin" and path.is_absolute()
    assert gin_files.resolve("promot_t5x/gin/models/x.gin") == packaged / "models" / "x.gin"
    assert gin_files.resolve(str(searched / "models" / "x.gin")) == searched / "models" / "x.gin"
    assert gin_files.resolve("../searched/models/x.gin") == searched / "models" / "x.gin"
    assert gin_files.gin_files_packaged() == [packaged / "models" / "x.gin"]


def test_resolve_error(tmp_path, monkeypatch):
    (tmp_path / "packaged" / "models").mkdir(parents=True)
    (tmp_path / "packaged" / "models" / "mt5_small.gin").write_text("")
    monkeypatch.setattr(gin_files, "_PACKAGED", tmp_path / "packaged")
    monkeypatch.chdir(tmp_path)
    folders = f"{tmp_path}, {tmp_path / 's'}, {tmp_path / 'packaged'}"
    for name in ("models/mt5_smal.gin", "mt5_small.gin"):
        with pytest.raises(FileNotFoundError) as caught:
            gin_files.resolve(name, ["s"])
        sentence = f"gin file {name!r} was not found in {folders}; the nearest names are models/mt5_small.gin"
        assert str(caught.value) == sentence
    with pytest.raises(FileNotFoundError, match=r"^gin file '/nowhere/zzz' was not found$"):
        gin_files.resolve("/nowhere/zzz")


def test_dynamic_registration_and_precedence(write, library):
    path = write(MAIN)
    gin_files.parse([path])
    gin_checks.check_macros()
    run = gin_files.configurable(library.run)
    assert run() == (library.Config(32, 0.1), 10, "", 0)
    assert run(steps=1)[1] == 1
    assert gin_files.configurable(library.Config)() == library.Config(32, 0.1)

    override = write("include 'main.gin'\nTRAIN_STEPS = 11\n", "override.gin")
    search = [str(Path(path).parent)]
    bindings = flags.parse_flags(["--gin.core.Config.embed_dim=64", "--gin.core.run.model_dir=/m"]).gin_bindings
    gin_files.parse([override, path], bindings, search)
    assert gin_files.configurable(library.run)() == (library.Config(64, 0.1), 10, "/m", 0)
    gin_files.parse([path, override], [*bindings, "TRAIN_STEPS = 12", "Config.dropout_rate = 0.5"], search)
    assert gin_files.configurable(library.run)() == (library.Config(64, 0.5), 12, "/m", 0)
    gin_files.parse([path], ["core.run.config = @two/core.Config()", "two/core.Config.embed_dim = 2"])
    assert gin_files.configurable(library.run)()[0] == library.Config(2, 0.1)
    gin_files.parse([path], ["from gin_library import other", "core.run.seed = @other.run()", "other.run.size = 7"])
    assert gin_files.configurable(library.run)()[3] == 7


def test_including_file_decides_what_a_name_means(write, library):
    write(
        "from __gin__ import dynamic_registration\nfrom gin_library import other as core\ncore.run.size = 5\n", "b.gin"
    )
    path = write(HEADER + "include 'b.gin'\ncore.run.steps = 1\n")
    gin_files.parse([path], ["core.run.seed = 4"], [str(Path(path).parent)])
    assert gin_files.configurable(library.run)(config=0) == (0, 1, "", 4)


def test_many_configurations_in_one_process(write, library):
    path = write(MAIN)
    aliased = write(MAIN.replace("import core", "import core as c").replace("core.", "c."), "aliased.gin")
    for step in range(15):
        if step % 2:
            gin_files.parse([path], [f"TRAIN_STEPS = {step}"])
        else:
            gin_files.parse([aliased], [f"c.run.steps = {step}"])
        gin_checks.check_macros()
        assert gin_files.configurable(library.run)()[1] == step
        assert f"run.steps = {step}\n" in gin_files.resolved_config()
    gin_files.parse([write(HEADER + "core.Config.embed_dim = 3\n", "only_config.gin")])
    with pytest.raises(gin_files.ConfigError, match="the gin files never mention core.run"):
        gin_files.configurable(library.run)


def test_dotted_import(write, library):
    path = write("from __gin__ import dynamic_registration\nimport gin_library.core\ngin_library.core.run.steps = 1\n")
    gin_files.parse([path], ["gin_library.core.run.seed = 2"])
    assert gin_files.configurable(library.run)(config=0) == (0, 1, "", 2)


def test_includes_ignore_decoy_folders(write, library, tmp_path, monkeypatch):
    for decoy in ("gin", "models", "promot_t5x/gin"):
        (tmp_path / "cwd" / decoy).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    write(MAIN, "packaged/models/x.gin")
    write("include 'models/x.gin'\n", "packaged/recipes/y.gin")
    monkeypatch.setattr(gin_files, "_PACKAGED", tmp_path / "packaged")
    main = write(HEADER + "include 'promot_t5x/gin/recipes/y.gin'\ncore.run.seed = 9\n")
    gin_files.parse([main])
    assert gin_files.configurable(library.run)() == (library.Config(32, 0.1), 10, "", 9)
    gin_files.parse(["recipes/y.gin"])
    assert gin_files.configurable(library.run)()[1] == 10


# Errors, each with its place


def test_misspelt_names(write):
    path = write(HEADER + "core.run.stepz = 1\n")
    assert parse_error([path]) == (
        f"{path}:3: core.run has no parameter 'stepz' (did you mean 'steps'?); it has config, steps, model_dir, seed"
    )
    assert parse_error([write(MAIN)], ["core.Config.embed_dimm = 1"]) == (
        "flag 'core.Config.embed_dimm = 1': core.Config has no parameter 'embed_dimm' (did you mean 'embed_dim'?); "
        "it has embed_dim, dropout_rate"
    )
    path = write(HEADER + "core.run:\n  steps = 1\n  sed = 1\n")
    assert parse_error([path]).startswith(f"{path}:5: core.run has no parameter 'sed' (did you mean 'seed'?)")
    path = write(HEADER + "core.Confg.embed_dim = 1\n")
    assert parse_error([path]) == f"{path}:3: core has no attribute 'Confg' (did you mean 'Config'?)"
    path = write(HEADER + "\ncore.run.config = [\n  @core.Confg()]\n")
    assert parse_error([path]) == f"{path}:5: core has no attribute 'Confg' (did you mean 'Config'?)"
    path = write(HEADER + "cor.run.steps = 1\n")
    assert parse_error([path]) == (
        f"{path}:3: 'cor' is not an imported module (did you mean 'core'?); imported are core"
    )
    path = write("a.b = 1\n")
    assert parse_error([path]) == (
        f"{path}:1: nothing called 'a' is known: import its module after `from __gin__ import dynamic_registration`"
    )


def test_failing_imports(write):
    path = write("from __gin__ import dynamic_registration\nfrom gin_library import cor\n")
    assert parse_error([path]) == (
        f"{path}:2: `from gin_library import cor` failed: No module named 'gin_library.cor' "
        "(gin imports modules, not names inside them)"
    )
    path = write("from gin_library import core\nfrom __gin__ import dynamic_registration\n")
    assert f"{path}:2: `from __gin__ import dynamic_registration` failed: Dynamic registration" in parse_error([path])


def test_syntax_errors(write):
    path = write("A = 1\nB = hello\n")
    assert parse_error([path]) == (
        f"{path}:2: gin syntax error: 'hello' is not a gin value (a string needs quotes) in `B = hello`"
    )
    path = write("A = 1\nB 2\n")
    assert parse_error([path]) == f"{path}:2: gin syntax error: Couldn't parse statement, expected ':' or '=' in `B 2`"
    path = write("A = [1,\n")
    assert "gin syntax error" in parse_error([path]) and path in parse_error([path])
    assert "flag 'A = @'" in parse_error([], ["A = @"])


def test_a_byte_order_mark_is_no_syntax_error(tmp_path):
    """Editors on Windows begin files with one."""
    (tmp_path / "mark.gin").write_text("STEPS = 3\n", encoding="utf-8-sig")
    gin_files.parse([str(tmp_path / "mark.gin")])
    assert gin_files.bindings(gin_files.resolved_config()) == ["STEPS = 3"]


def test_bindings_of_modules_that_no_file_imports_may_be_skipped(write, library):
    bindings = ["other.Config.a = 1", "core.run.steps = 2", "X = @other.make()"]
    with pytest.raises(gin_files.ConfigError, match="'other' is not an imported module"):
        gin_files.parse([write(HEADER)], bindings)
    assert gin_files.parse([write(HEADER)], bindings, skip_not_imported=True) == (bindings[0], bindings[2])
    with pytest.raises(gin_files.ConfigError, match="core.run has no parameter 'step'"):
        gin_files.parse([write(HEADER)], ["core.run.step = 2"], skip_not_imported=True)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "x.gin"
    path.write_bytes(b"\xff\xfe\x00")
    assert parse_error([str(path)]) == f"{path} is not a gin file: its bytes are not UTF-8 text"


def test_missing_and_circular_includes(write, tmp_path):
    path = write("A = 1\ninclude 'zzz.gin'\n")
    assert parse_error([path]).startswith(f"{path}:2: gin file 'zzz.gin' was not found in ")
    with pytest.raises(FileNotFoundError, match="gin file 'zzz.gin' was not found in"):
        gin_files.parse(["zzz.gin"])
    path = write("include 'loop.gin'\n", "loop.gin")
    assert parse_error([path], [], [str(tmp_path)]) == (
        f"{path}:1: 'loop.gin' includes itself: remove one of the includes"
    )
    write("include 'second.gin'\n", "first.gin")
    second = write("A = 1\ninclude 'first.gin'\n", "second.gin")
    assert parse_error([str(tmp_path / "first.gin")], [], [str(tmp_path)]) == (
        f"{second}:2: 'first.gin' includes itself: remove one of the includes"
    )


def test_never_mentioned(library):
    with pytest.raises(gin_files.ConfigError) as caught:
        gin_files.configurable(library.unmentioned)
    assert str(caught.value) == (
        "the gin files never mention core.unmentioned: give a --gin_file that imports gin_library.core "
        "and binds a parameter, such as `core.unmentioned.x = ...`"
    )


def test_what_is_configured(write, library):
    assert not gin_files.is_configured(library.run)
    gin_files.parse([write(HEADER + "core.run.steps = 1\n")])
    assert gin_files.is_configured(library.run)
    assert not gin_files.is_configured(library.Config) and not gin_files.is_configured(library.unmentioned)
    gin_files.parse([write(HEADER + "core.run.config = @core.Config()\n")])
    assert gin_files.is_configured(library.Config), "a reference mentions it too"
    gin_files.parse([])
    assert not gin_files.is_configured(library.run), "gin remembers a function that it saw before"


def test_arguments_without_the_call(write, library):
    gin_files.parse([write(MAIN)], ["core.run.seed = %SEED", "SEED = 5", "core.run.model_dir = '/m'"])
    arguments = gin_files.bound_arguments(library.run)
    assert arguments == {"config": library.Config(32, 0.1), "steps": 10, "seed": 5, "model_dir": "/m"}
    assert gin_files.bound_arguments(library.Config) == {"embed_dim": 32, "dropout_rate": 0.1}
    # What nothing binds is left to the function's own defaults; what has none is the caller's, or is asked for.
    gin_files.parse([write(HEADER + "core.run.seed = 3\n")])
    assert gin_files.bound_arguments(library.run, given=("config", "steps")) == {"seed": 3}
    with pytest.raises(gin_files.ConfigError, match="core.run needs steps and .* pass --gin.core.run.steps=VALUE"):
        gin_files.bound_arguments(library.run, given=("config",))
    with pytest.raises(gin_files.ConfigError, match="the gin files never mention core.unmentioned"):
        gin_files.bound_arguments(library.unmentioned)


# What is shown and stored


def test_resolved_and_operative_config(write, library, tmp_path):
    gin_files.parse([write(MAIN)], ["DROPOUT_RATE = %OTHER", "OTHER = 0.3"])
    resolved = gin_files.resolved_config()
    assert "core.Config.dropout_rate = 0.3\n" in resolved and "core.run.config = @core.Config()\n" in resolved
    assert "%" not in resolved and resolved.index("core.Config.embed_dim") < resolved.index("core.run.steps")
    gin_files.configurable(library.run)(seed=3)
    operative = gin_files.operative_config()
    assert "core.run.model_dir = ''" in operative and "core.run.seed" not in operative
    gin_files.parse([write(resolved, "config.gin")])
    assert gin_files.resolved_config() == resolved


# The wrapper of the binaries


def run_and_read(main, capsys, argv=()):
    code = program.run_main(main, argv)
    return code, capsys.readouterr().err


def test_run_main(write, library, capsys, monkeypatch, tmp_path):
    def parses(argv):
        flags.parse_flags(argv)

    assert run_and_read(parses, capsys) == (0, "")
    assert run_and_read(lambda argv: 3, capsys) == (3, "")
    assert run_and_read(parses, capsys, ["--x"])[0] == 1

    def opens(argv):
        open(tmp_path / "absent")

    assert run_and_read(opens, capsys) == (1, f"error: {tmp_path / 'absent'} does not exist; check the path\n")
    gin_files.parse([write(HEADER + "core.run.steps = %ABSENT\ncore.run.config = 0\n")])
    sentence = "error: macro ABSENT is used but defined nowhere: pass --gin.ABSENT=VALUE\n"
    assert run_and_read(lambda argv: gin_files.configurable(library.run)(), capsys) == (1, sentence)
    gin_files.parse([write(HEADER + "core.run.seed = 1\n")])
    sentence = (
        "error: core.run needs config, steps and nothing gives a value: "
        "pass --gin.core.run.config=VALUE --gin.core.run.steps=VALUE\n"
    )
    assert run_and_read(lambda argv: gin_files.configurable(library.run)(), capsys) == (1, sentence)
    gin_files.parse([write(HEADER + "core.run.config = @core.required()\ncore.run.steps = 1\n")])
    sentence = "error: core.required needs rate and nothing gives a value: pass --gin.core.required.rate=VALUE\n"
    assert run_and_read(lambda argv: gin_files.configurable(library.run)(), capsys) == (1, sentence)
    monkeypatch.setenv("PROMOT_TRACEBACK", "1")
    code, stderr = run_and_read(parses, capsys, ["--x"])
    assert code == 1 and stderr.startswith("Traceback") and "\nerror: unknown flag --x" in stderr


def test_a_process_that_is_missing_is_no_traceback(capsys):
    def waits(argv):
        raise TimeoutError("Only 1 of 2 processes joined within 2 s; missing: 1; look at their logs.")

    sentence = "error: Only 1 of 2 processes joined within 2 s; missing: 1; look at their logs.\n"
    assert run_and_read(waits, capsys) == (1, sentence)


def test_processes_are_joined_before_files_are_read(write, library, monkeypatch):
    seen = []
    monkeypatch.setattr(program.processes, "start", seen.append)
    path = write(MAIN)
    program.configure(flags.parse_flags([f"--gin_file={path}"]))
    processes = flags.Processes("host:1", 2, 1, 7)
    program.configure(flags.Invocation(gin_files=(path,), processes=processes))
    assert seen == [None, processes] and gin_files.is_configured(library.run)

    def refused(processes):
        raise TimeoutError("nobody came")

    monkeypatch.setattr(program.processes, "start", refused)
    with pytest.raises(TimeoutError, match="nobody came"):
        program.configure(flags.Invocation(gin_files=("absent.gin",), processes=processes))


def test_run_main_lets_program_errors_through(write, library, capsys):
    gin_files.parse([write(HEADER + "core.run.config = @core.broken()\ncore.run.steps = 1\n")])
    with pytest.raises(TypeError, match="missing 2 required"):
        program.run_main(lambda argv: gin_files.configurable(library.run)(), [])
    with pytest.raises(ZeroDivisionError):
        program.run_main(lambda argv: 1 // 0, [])


BINARY = """
import sys
from promot_t5x.configuration import flags, gin_checks, gin_files, program


def run(steps=1):
    print("module", run.__module__, "steps", steps)


def main(argv):
    invocation = flags.parse_flags(argv)
    gin_files.parse(invocation.gin_files, invocation.gin_bindings, invocation.gin_search_paths)
    gin_checks.check_macros()
    gin_files.configurable(run)()


if __name__ == "__main__":
    sys.exit(program.run_main(main))
"""


def test_binary_as_a_subprocess(tmp_path):
    (tmp_path / "gin").mkdir()
    (tmp_path / "my_binary.py").write_text(BINARY)
    (tmp_path / "a.gin").write_text(
        "from __gin__ import dynamic_registration\nimport my_binary\nmy_binary.run.steps = %STEPS\nSTEPS = 2\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PROMOT_TRACEBACK", None)

    def start(*arguments):
        command = [sys.executable, "-m", "my_binary", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    good = start("--gin_file=a.gin", "--gin.STEPS=5")
    assert (good.returncode, good.stdout) == (0, "module my_binary steps 5\n"), good.stderr
    bad = start("--gin_file=a.gin", "--gin.my_binary.run.step=5")
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    assert bad.stderr == (
        "error: flag 'my_binary.run.step = 5': my_binary.run has no parameter 'step' (did you mean 'steps'?); "
        "it has steps\n"
    )
    absent = start("--gin_file=b.gin")
    assert absent.returncode == 1 and absent.stderr.startswith("error: gin file 'b.gin' was not found in ")
    assert start("--help").returncode == 0


def test_packaged_folder_is_the_packages_own():
    assert gin_files._PACKAGED == PACKAGE / "gin"
    assert all(path.is_absolute() and path.suffix == ".gin" for path in gin_files.gin_files_packaged())


def test_a_packaged_name_means_the_package_whatever_the_folder_holds(tmp_path, monkeypatch):
    name = "promot_t5x/gin/models/mt5_small.gin"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert gin_files.resolve(name) in gin_files.gin_files_packaged()
    assert gin_files.resolve(f"./{name}") == tmp_path / name
