"""Tests of the command line's flags and their error sentences."""

import absl.flags
import pytest

from promot_t5x.configuration import flags
from promot_t5x.runtime.processes import Processes


def test_flags_of_t5x():
    argv = ["--gin_file=a.gin", "--gin_file", "b.gin", "--gin_search_paths=x,y", "--gin.A=1", "--gin_bindings=B = 2"]
    argv += ["--gin.train.train.seed", "-3", "--tfds_data_dir=/d", "--dry_run", "--logtostderr", "--alsologtostderr=1"]
    assert flags.parse_flags(argv) == flags.Invocation(
        gin_files=("a.gin", "b.gin"),
        gin_bindings=("A = 1", "B = 2", "train.train.seed = -3"),
        gin_search_paths=("x", "y"),
        tfds_data_dir="/d",
        dry_run=True,
    )
    assert flags.parse_flags([]) == flags.Invocation()


@pytest.mark.parametrize(
    ("argv", "dry"),
    [
        (["--dry_run=true"], True),
        (["--dry_run=True"], True),
        (["--dry_run=1"], True),
        (["--dry_run=false"], False),
        (["--dry_run=F"], False),
        (["--dry_run=0"], False),
        (["--dry_run", "--dry_run=false"], False),
        (["--dry_run=false", "--dry_run", "--gin.X=1"], True),
    ],
)
def test_dry_run_is_a_boolean_as_in_absl(argv, dry):
    absl_flags = absl.flags.FlagValues()
    absl.flags.DEFINE_bool("dry_run", False, "", flag_values=absl_flags)
    absl_flags(["program", *(argument for argument in argv if not argument.startswith("--gin"))])
    assert flags.parse_flags(argv).dry_run is absl_flags.dry_run is dry


@pytest.mark.parametrize(
    ("typed", "gin_value"),
    [
        ("'/x'", "'/x'"),
        ("/tmp/x", "'/tmp/x'"),
        ("gs://bucket/x", "'gs://bucket/x'"),
        ("train[:10]", "'train[:10]'"),
        ("3.5/abc", "'3.5/abc'"),
        ("2024-01-01", "'2024-01-01'"),
        ("it's", '"it\'s"'),
        ("1e-3", "1e-3"),
        ("-1", "-1"),
        ("True", "True"),
        ("None", "None"),
        ("%OTHER", "%OTHER"),
        ("@core.run()", "@core.run()"),
        ("{'inputs': 8}", "{'inputs': 8}"),
        ("[1, 2", "[1, 2"),  # not a string: the bracket that is missing is an error of gin's syntax
        ("{1: 2", "{1: 2"),
        ("a=b", "'a=b'"),
    ],
)
def test_flag_values(typed, gin_value):
    assert flags.parse_flags([f"--gin.X={typed}"]).gin_bindings == (f"X = {gin_value}",)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--gin_fil=a"], "unknown flag --gin_fil (did you mean '--gin_file'?); --help lists the flags"),
        (["--dry-run"], "unknown flag --dry-run (did you mean '--dry_run'?); --help lists the flags"),
        (["a.gin"], "unexpected argument 'a.gin': arguments are written --flag=value"),
        (["--gin.X"], "--gin.X has no value: write --gin.X=VALUE"),
        (["--gin.X="], "--gin.X has no value: write --gin.X=VALUE"),
        (["--gin.X", "--dry_run"], "--gin.X has no value: write --gin.X=VALUE"),
        (["--gin.=3"], "--gin. names no macro or parameter: write --gin.NAME=VALUE"),
        (["--gin.X=false"], "--gin.X=false is not a gin value: write --gin.X=False"),
        (["--gin.X=none"], "--gin.X=none is not a gin value: write --gin.X=None"),
        (["--dry_run=maybe"], "argument --dry_run: 'maybe' is neither true nor false; --help lists the flags"),
        (["--dry_run="], "argument --dry_run: '' is neither true nor false; --help lists the flags"),
        (["--dry_run", "false"], "unexpected argument 'false': arguments are written --flag=value"),
        (["--gin_file", "--dry_run"], "argument --gin_file: expected one argument; --help lists the flags"),
        (["--gin_file"], "argument --gin_file: expected one argument; --help lists the flags"),
    ],
)
def test_flag_errors(argv, sentence):
    with pytest.raises(flags.ConfigError) as caught:
        flags.parse_flags(argv)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("argv", "processes"),
    [
        ([], None),
        (["--multiprocess_timeout=20"], None),
        (["--multiprocess"], Processes()),
        (["--multiprocess", "--multiprocess_timeout=20"], Processes(timeout=20)),
        (
            ["--coordinator_address=host:8476", "--process_count=4", "--process_index", "0"],
            Processes("host:8476", count=4, index=0, timeout=300),
        ),
        (
            ["--multiprocess", "--coordinator_address=[::1]:1", "--process_count=2", "--process_index=1"],
            Processes("[::1]:1", count=2, index=1),
        ),
    ],
)
def test_processes(argv, processes):
    invocation = flags.parse_flags(argv)
    assert invocation == flags.Invocation(processes=processes)
    assert invocation.extra == {}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--process_index=0"], "Several processes need all of --coordinator_address, --process_count and "),
        (["--multiprocess", "--process_count=2"], "Several processes need all of --coordinator_address, "),
        (
            ["--coordinator_address=host:1", "--process_count=2", "--process_index=2"],
            "--coordinator_address=host:1 --process_count=2 --process_index=2: expected HOST:PORT and an index from 0 ",
        ),
        (["--multiprocess", "--multiprocess_timeout=0"], "--multiprocess_timeout is 0: expected at least 1 second."),
        (["--process_count=two"], "argument --process_count: invalid int value: 'two'; --help lists the flags"),
        (["--multiproces"], "unknown flag --multiproces (did you mean '--multiprocess'?); --help lists the flags"),
        (["--multiprocess=true"], "argument --multiprocess: ignored explicit argument 'true'; --help lists the flags"),
    ],
)
def test_mistakes_in_processes(argv, sentence):
    with pytest.raises(ValueError) as caught:
        flags.parse_flags(argv)
    assert str(caught.value).startswith(sentence)


def test_extra_options_and_help(capsys):
    parser = flags.flag_parser(prog="eval")
    parser.add_argument("--limit", type=int, default=None)
    assert flags.parse_flags(["--limit=3"], parser).extra == {"limit": 3}
    with pytest.raises(flags.ConfigError, match=r"unknown flag --limi \(did you mean '--limit'\?\)"):
        flags.parse_flags(["--limi=3"], parser)
    with pytest.raises(flags.ConfigError, match="argument --limit: invalid int value: 'x'"):
        flags.parse_flags(["--limit=x"], parser)
    with pytest.raises(SystemExit) as caught:
        flags.parse_flags(["--help"], parser)
    assert caught.value.code == 0
    stdout = capsys.readouterr().out
    assert "--gin_file" in stdout and "--gin.NAME" in stdout and "--limit" in stdout
