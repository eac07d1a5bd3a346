"""Experiments against an earlier commit: both run every case, in processes of their own, in turn.

    git worktree add /tmp/before 07b7e47
    python benchmarks/experiments.py --before=/tmp/before --data=DATA --cases ranking reading

The cases are in experiment_cases.py. Those on real text (paper_tasks, reading, long_line) need DATA, a folder of JSONL
data sets and a SentencePiece model: super_glue, nq_open, web_questions, ntrex128, wiki_lingua and spm. Without
`--before` only this commit is measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiment_cases import CASES

ROOT = Path(__file__).resolve().parents[1]


def measured(case: str, root: Path, data: Path) -> dict[str, Any]:
    """One case in a process of its own, with a cache folder of its own."""
    command = [sys.executable, __file__, f"--measure={case}", f"--data={data.resolve()}"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "PROMOT_CACHE": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    if done.returncode:
        sys.exit(f"{case} failed in {root}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str, roots: dict[str, Path], data: Path, rounds: int) -> None:
    """Prints the least of each number over all rounds, and how far apart the results are."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in roots}
    for _ in range(rounds):
        for name, root in roots.items():
            rows[name].append(measured(case, root, data))
    print(f"{case}: {CASES[case].__doc__}")
    least = {
        name: {number: min(row["numbers"][number] for row in of_commit) for number in of_commit[0]["numbers"]}
        for name, of_commit in rows.items()
    }
    for number, now in least["now"].items():
        before = least.get("before", {}).get(number)
        ratio = "" if not before else f"  before {before:9.2f}  ratio {now / before:.2f}"
        print(f"  {number or 'CPU seconds':60} now {now:9.2f}{ratio}")
    if "before" in rows and (results := [rows[name][-1]["results"] for name in roots])[0]:
        differences = [abs(a - b) for a, b in zip(*results, strict=True)]
        print(f"  {len(differences)} results differ by at most {max(differences):.1e}", flush=True)


def main() -> None:
    """Measures the cases."""
    epilog = "cases:\n" + "\n".join(f"  {name:18} {case.__doc__}" for name, case in CASES.items())
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog, formatter_class=form)
    parser.add_argument("--before", type=Path, help="a checkout of the earlier commit")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of data sets (default: data)")
    parser.add_argument("--rounds", type=int, default=1, help="of which the least numbers are printed (default: 1)")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="default: all, half an hour")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps(CASES[flags.measure](flags.data)._asdict()))
        return
    if flags.before and not (flags.before / "promot_t5x").is_dir():
        parser.error(f"--before={flags.before} holds no checkout of the package")
    before = {"before": flags.before.resolve()} if flags.before else {}
    for case in flags.cases:
        compare(case, {**before, "now": ROOT}, flags.data, flags.rounds)


if __name__ == "__main__":
    main()
