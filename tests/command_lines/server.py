"""Runs command lines in forks of one process that has imported the program: an import takes seconds, a fork none.

`Server` is what tests use; the module, run as a program, is its process. That process must not start JAX's or
TensorFlow's threads, which would not survive a fork.
"""

import ctypes
import dataclasses
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command line did: its exit code (negative: killed by that signal), the texts it wrote, its CPU seconds."""

    code: int
    stdout: str
    stderr: str
    cpu: float


class Server:
    """The process, and a folder for the texts that its forks write."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        command = [sys.executable, "-m", "tests.command_lines.server", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: Sequence[str], here: pathlib.Path, environment: Mapping[str, str], seconds: int) -> Outcome:
        """Runs `promot-t5x ARGV` in the folder `here`; it is killed after some seconds."""
        request = {"argv": argv, "here": str(here), "environment": dict(environment), "seconds": seconds}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        code, cpu = json.loads(self._process.stdout.readline())
        stdout, stderr = ((self._folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Outcome(code, stdout, stderr, cpu)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def _serve(folder: str) -> None:
    from promot_t5x import cli, compare, convert, doctor, eval, infer, pipeline, plan, report, train
    from promot_t5x.checkpoints import conversion
    from promot_t5x.evaluation import inference
    from promot_t5x.planning import search
    from promot_t5x.recipes import from_command
    from promot_t5x.reports import page

    _ = (
        compare,
        convert,
        doctor,
        eval,
        infer,
        pipeline,
        plan,
        report,
        train,
    )  # commands import rooms only when they need them
    _ = conversion, inference, search, from_command, page

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.collect()
    gc.freeze()  # or every fork would copy all that it only looks at
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(cli.main, folder, **json.loads(line))
        _, status, used = os.wait4(child, 0)
        answer = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        print(json.dumps(answer), file=answers, flush=True)


def _run(main, folder: str, argv: list[str], here: str, environment: dict[str, str], seconds: int) -> None:
    """Runs one command line in this process, which ends with it."""
    import jax

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    os.chdir(here)
    os.environ.update(environment)
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])  # it was read when jax was imported
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.close(0)
    _obey_permissions()
    code = 70
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _obey_permissions() -> None:
    """Gives up root's right to read and write what a file's permissions forbid."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same of the higher capabilities
    libc = ctypes.CDLL(None)
    libc.capget(header, sets)
    for number in (0, 1):
        sets[number] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(header, sets)


if __name__ == "__main__":
    _serve(sys.argv[1])
