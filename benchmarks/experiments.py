"""Experiments against an earlier commit: CPU seconds of both, in processes of their own, in turn.

    git worktree add /tmp/before 07b7e47
    python benchmarks/experiments.py --before=/tmp/before

Cases: ranking (32 inputs of 512 tokens with 3 choices each, embed 512, 8+8 layers, random weights).
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, BATCH, INPUTS = 32, 32, 512
SIZES = {"vocab_size": 32128, "embed_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 1024}
LAYERS = 8
CHOICES = [b"entailment", b"neutral", b"contradiction"]

# Where commit 07b7e47 has these modules.
_BEFORE = {
    "data.evaluation_examples": "examples",
    "evaluation.answering": "answering",
    "models.architecture": "architecture",
    "models.encoder_decoder": "model",
    "partitioning.partitioner": "partitioning",
}


def _module(name: str) -> Any:
    """A module of the package by its name today, of whichever of the two commits this process runs."""
    try:
        return importlib.import_module(f"promot_t5x.{name}")
    except ModuleNotFoundError:
        return importlib.import_module(f"promot_t5x.{_BEFORE[name]}")


def ranking() -> Any:
    """Ranks the choices of one task; returns their scores."""
    import jax
    import numpy as np
    import seqio
    import tensorflow as tf

    rng = np.random.default_rng(0)
    rows = {
        "inputs": ["".join(map(chr, rng.integers(97, 122, INPUTS - 1))) for _ in range(EXAMPLES)],
        "targets": [b"neutral"] * EXAMPLES,
        "choices": [CHOICES] * EXAMPLES,
    }
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), splits=("test",)
    )
    features = {k: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for k in ("inputs", "targets")}
    preprocessors = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]
    seqio.TaskRegistry.add("ranking", source, features, preprocessors=preprocessors)
    examples_module = _module("data.evaluation_examples")
    read = getattr(examples_module, "evaluation_examples", None) or examples_module.eval_examples
    examples = read("ranking", {"inputs": INPUTS, "targets": 16}, "test")

    config = _module("models.architecture").T5Config(**SIZES, num_encoder_layers=LAYERS, num_decoder_layers=LAYERS)
    model = _module("models.encoder_decoder").EncoderDecoderModel(config)
    params = jax.tree.map(
        lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype), model.abstract_params()
    )
    params = jax.device_put(params)
    partitioner = _module("partitioning.partitioner").Partitioner()

    def run():
        answers = _module("evaluation.answering").answers(
            model, params, examples, "rank", prompt_id=None, batch_size=BATCH, partitioner=partitioner
        )
        by_number = {n: a.scores for numbers, of_batch in answers for n, a in zip(numbers, of_batch, strict=True)}
        return [by_number[n] for n in range(EXAMPLES)]

    return run


CASES = {"ranking": ranking}


def measure(case: str) -> dict[str, Any]:
    """Runs in its own process: CPU seconds the first time, compilation included, and the second."""
    run = CASES[case]()
    seconds, results = [], None
    for _ in range(2):
        began = time.process_time()
        results = run()
        seconds.append(time.process_time() - began)
    return {"first": seconds[0], "second": seconds[1], "results": results}


def main() -> None:
    """Measures both commits in turn and prints ratios of the least CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier commit")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps(measure(flags.measure)))
        return
    import numpy as np

    for case in flags.cases:
        measured: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
        for _ in range(flags.rounds):
            for name, root in (("before", flags.before), ("now", ROOT)):
                command = [sys.executable, __file__, f"--before={flags.before}", f"--measure={case}"]
                environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
                if done.returncode:
                    sys.exit(f"{case} {name} failed:\n{done.stderr[-3000:]}")
                measured[name].append(json.loads(done.stdout.splitlines()[-1]))
        least = {n: {k: min(row[k] for row in rows) for k in ("first", "second")} for n, rows in measured.items()}
        results = [np.array(rows[-1]["results"]) for rows in measured.values()]
        print(
            f"{case}: {least['now']['first'] / least['before']['first']:.2f} of the CPU seconds the first time "
            f"({least['before']['first']:.1f} before), {least['now']['second'] / least['before']['second']:.2f} the "
            f"second ({least['before']['second']:.1f}); results differ by at most "
            f"{np.max(np.abs(results[0] - results[1]) / np.abs(results[0])):.1e} of their size"
        )


if __name__ == "__main__":
    main()
