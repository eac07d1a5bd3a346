"""The command promot-t5x: its verbs, the demo's flags, the doctor and the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import promot_t5x
from promot_t5x import checkpoints, cli
from promot_t5x.configuration import flags, gin_checks, gin_files
from promot_t5x.recipes import from_command
from promot_t5x.reports import comparison
from promot_t5x.reports.method_rows import MethodRow
from promot_t5x.runtime import files, processes
from promot_t5x.runtime.versions import versions
from tests.reports.runs import run

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(argv, capsys):
    assert cli.main(argv) == 0
    stdout = capsys.readouterr().out
    verbs = ("train", "eval", "infer", "pipeline", "plan", "convert", "demo", "compare", "report", "doctor")
    assert all(f"\n  {verb} " in stdout for verb in verbs)


def test_unknown_verb(capsys):
    assert cli.main(["trian"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "error: promot-t5x has no verb 'trian' (did you mean 'train'?); it has train, eval, "
    )
    assert not captured.out


def test_list_gin_has_every_file_and_what_it_is(capsys):
    assert cli.main(["--list_gin"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == {file.relative_to(ROOT / "gin").as_posix() for file in (ROOT / "gin").rglob("*.gin")}
    assert listed["models/mt5_xxl.gin"] == "mT5-xxl, 13B parameters"


def test_bash_completes_verbs_and_flags(capsys, tmp_path):
    assert cli.main(["--completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)

    def completed(*words):
        typed = f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}"
        command = f"source {script}; {typed}; _shtab_promot_t5x; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", command], text=True, capture_output=True, check=True).stdout.split()

    assert completed("promot-t5x", "pi") == ["pipeline"]
    assert "--gin_file" in completed("promot-t5x", "train", "--gin_f")
    assert completed("promot-t5x", "plan", "--topo") == ["--topology"]
    assert cli.main(["--completion", "cmd"]) == 1
    assert "error: --completion takes the name of a shell: one of bash, " in capsys.readouterr().err


@pytest.mark.parametrize("verb", cli._VERBS)
def test_every_verb_has_help_and_refuses_unknown_flags(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert "--gin_file" in capsys.readouterr().out
    assert cli.main([verb, "--gin_fil=x"]) == 1
    stderr = capsys.readouterr().err
    # Of two mistakes argparse tells a missing flag first.
    needed = {"report": "--out", "plan": "--topology", "convert": "--from", "compare": "RUN_A"}.get(verb)
    assert "error: unknown flag --gin_fil (did you mean '--gin_file'?)" in stderr or (needed and needed in stderr)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"promot-t5x {promot_t5x.__version__}\n"


_HEAVY = ("jax", "matplotlib", "nltk", "sacrebleu", "scipy", "seqio", "tensorflow")


def _run_and_list_modules(argv, folder):
    """Output of a verb in a process of its own, then the heavy packages that it imported."""
    code = (
        f"HEAVY = {_HEAVY}\n"
        "import atexit, sys\n"
        "atexit.register(lambda: print('imported', *sorted({*HEAVY} & set(sys.modules))))\n"
        "from promot_t5x import cli\n"
        "sys.exit(cli.main())"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *argv]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    stdout, imported = run.stdout.rsplit("imported", 1)
    return stdout, imported.split()


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([verb, "--help"] for verb in cli._VERBS)], ids=" ".join)
def test_what_only_parses_flags_starts_without_jax_and_tensorflow(argv, tmp_path):
    stdout, imported = _run_and_list_modules(argv, tmp_path)
    assert stdout and imported == []


def test_the_report_is_written_without_jax_and_tensorflow(tmp_path):
    _write_results(tmp_path / "results.json")
    stdout, imported = _run_and_list_modules(["report", "--results=results.json", "--out=report"], tmp_path)
    assert "Report: report/report.html" in stdout and imported == ["matplotlib"]


def test_tasks_are_listed_without_seqio_and_the_libraries_of_metrics(tmp_path):
    stdout, imported = _run_and_list_modules(["eval", "--list"], tmp_path)
    assert "xsum" in stdout and "toy_key_sentence" in stdout and imported == []


def test_doctor_imports_jax_for_its_last_lines_only(tmp_path):
    stdout, imported = _run_and_list_modules(["doctor"], tmp_path)
    assert imported == ["jax"]
    names = [line[:24].strip() for line in stdout.splitlines()]
    assert names[-2:] == ["backend", "processes"] and {"python", "jax", "TFDS data", "gin files"} < set(names[:-2])


def test_convert_lists_all_formats(capsys):
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    stdout = "".join(capsys.readouterr().out.split())
    assert "{" + ",".join((*checkpoints.FORMATS, *checkpoints.SOFT_PROMPT_FORMATS)) + "}" in stdout


@pytest.mark.parametrize("verb", ["train", "eval", "infer", "pipeline"])
def test_a_verb_without_a_gin_file(verb, capsys):
    assert cli.main([verb]) == 1
    assert "error: the gin files never mention " in capsys.readouterr().err


def test_plan_needs_a_topology(capsys):
    assert cli.main(["plan", "--gin_file=recipes/promot_rte.gin"]) == 1
    assert "error: the following arguments are required: --topology; --help lists the flags" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "eval", "infer", "pipeline"])
def test_a_verb_waits_for_its_other_processes_first(verb, capsys, monkeypatch):
    """Before anything is read: each process reports a missing gin file, or none does."""

    def start(processes):
        raise TimeoutError(f"waiting for {processes.count} in vain")

    monkeypatch.setattr(processes, "start", start)
    argv = ["--coordinator_address=host:1", "--process_count=3", "--process_index=0", "--gin_file=absent.gin"]
    assert cli.main([verb, *argv]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: waiting for 3 in vain"


def test_command_and_module_are_the_same_program(tmp_path):
    """One sentence and exit code 1 from the shell, whichever way it is started."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    code = "import sys; from promot_t5x import cli; sys.exit(cli.main())"
    for start in (["-m", "promot_t5x.train"], ["-c", code, "train"]):
        command = [sys.executable, *start, "--gin_file=models/mt5_smal.gin"]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 1 and run.stdout == ""
        assert run.stderr.splitlines()[-1].startswith("error: gin file 'models/mt5_smal.gin' was not found in ")
        assert "models/mt5_small.gin" in run.stderr and "Traceback" not in run.stderr


def test_demo_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--dry_run"]) == 0
    stdout = capsys.readouterr().out
    assert f"WORK_DIR = '{tmp_path}/out/demo'" in stdout
    assert stdout.count("\n=== ") == 2 + 3 * 3
    assert "INITIAL_CHECKPOINT_PATH = 'promot_t5x/demo_checkpoint'" in stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def invocations(monkeypatch) -> list[flags.Invocation]:
    """The invocations that the demo hands to the pipeline; nothing runs."""
    followed = []

    def follow(invocation):
        gin_files.parse(invocation.gin_files, invocation.gin_bindings, invocation.gin_search_paths)
        gin_checks.check_macros()
        followed.append(invocation)

    monkeypatch.setattr(from_command, "follow", follow)
    return followed


def _value(macro):
    prefix, lines = f"{macro} = ", gin_files.bindings(gin_files.resolved_config())
    return next(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


def test_demo_defaults(invocations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == 0
    assert invocations[0].gin_files == ("recipes/demo.gin",)
    assert _value("WORK_DIR") == repr(str(tmp_path / "out" / "demo"))
    assert _value("DEMO_CHECKPOINT") == "'promot_t5x/demo_checkpoint'"


def test_demo_flags_win(invocations, tmp_path):
    assert cli.main(["demo", "--gin.DEMO_CHECKPOINT=/c", "--gin.WORK_DIR=/w", "--gin.TRAIN_STEPS=3"]) == 0
    assert (_value("DEMO_CHECKPOINT"), _value("WORK_DIR"), _value("TRAIN_STEPS")) == ("'/c'", "'/w'", "3")
    assert cli.main(["demo", f"--out={tmp_path}/it's", "--gin_file=recipes/demo_seeds.gin"]) == 0
    assert _value("WORK_DIR") == repr(f"{tmp_path}/it's")
    assert invocations[1].gin_files == ("recipes/demo_seeds.gin",)
    assert _value("pipeline.Recipe.seeds") == "(0, 1, 2)"
    (tmp_path / "mine.gin").write_text("include 'promot_t5x/gin/recipes/demo.gin'\nTRAIN_STEPS = 7\n")
    assert cli.main(["demo", "--gin_file=mine.gin", f"--gin_search_paths={tmp_path}"]) == 0
    assert _value("TRAIN_STEPS") == "7"


def test_demo_without_its_checkpoint(tmp_path, capsys):
    assert cli.main(["demo", f"--out={tmp_path}/o", f"--gin.DEMO_CHECKPOINT={tmp_path}/absent"]) == 1
    assert f"error: There is no checkpoint at {tmp_path}/absent" in capsys.readouterr().err
    assert not (tmp_path / "o" / "comparison.json").exists()


def test_doctor(capsys, tmp_path):
    assert cli.main(["doctor", f"--tfds_data_dir={tmp_path}"]) == 0
    stdout = capsys.readouterr().out
    lines = {line[:24].strip(): line[25:] for line in stdout.splitlines()}
    assert lines["jax"] == versions()["jax"]
    assert lines["backend"].startswith("cpu: ") and lines["TFDS data"] == str(tmp_path)
    assert lines["gin files"] == f"{len(gin_files.gin_files_packaged())} in {gin_files._PACKAGED}"


def _write_results(file):
    runs = [
        run("pretrained", None, 0, 50.0, {"a": 70.0}),
        run("fine_tuning", 1e-3, 0, 90.0, {"a": 20.0}),
        run("promot", 1e-3, 0, 91.0, {"a": 60.0}, {"a": 10.0}),
    ]
    files.write_json(file, comparison.compare(runs, versions(), {}, {"promot": MethodRow("ProMoT")}))


def test_report(tmp_path, capsys):
    _write_results(tmp_path / "comparison.json")
    assert cli.main(["report", f"--results={tmp_path}/comparison.json", f"--out={tmp_path}/report"]) == 0
    assert {"report.html", "comparison.md", "report.png"} <= {file.name for file in (tmp_path / "report").iterdir()}
    stdout = capsys.readouterr().out
    assert "ProMoT" in stdout and f"Report: {tmp_path}/report/report.html" in stdout


def test_report_of_scores(tmp_path, capsys):
    entry = {"task": "cb", "k": 4, "prompt": None, "metric": "accuracy", "value": 71.5, "stderr": 1.0}
    entries = {step: {**entry, "step": step, "seed_std": None, "n": 56, "truncated": 0} for step in (100, 200)}
    results = {"unit": "percent", "results": entries, "mean": {}, "rows": list(entries.values())}
    files.write_json(tmp_path / "scores.json", results)
    assert cli.main(["report", f"--scores={tmp_path}/scores.json", f"--out={tmp_path}/report"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:3] == ["100", "cb", "4"] and lines[2][:3] == ["200", "cb", "4"]
    assert lines[-1] == ["Report:", f"{tmp_path}/report/scores.md"]
    assert "| 200 | cb | 4 | removed | accuracy | 71.50 |" in (tmp_path / "report" / "scores.md").read_text()


def test_report_mistakes(tmp_path, capsys):
    def mistake(*argv):
        assert cli.main(["report", *argv]) == 1
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return sentence

    out = f"--out={tmp_path}/report"
    assert "does not exist; give the comparison.json" in mistake(f"--results={tmp_path}/absent.json", out)
    (tmp_path / "broken.json").write_text("{")
    assert "is not JSON" in mistake(f"--results={tmp_path}/broken.json", out)
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    assert "the keys ['a']" in mistake(f"--results={tmp_path}/other.json", out)
    assert "--results" in mistake(out)
    both = mistake(f"--results={tmp_path}/other.json", f"--scores={tmp_path}/other.json", out)
    assert "not allowed with argument --results" in both
    assert "scores.json" in mistake(f"--scores={tmp_path}/other.json", out)
    assert not (tmp_path / "report").exists()
