"""One training step with mT5's vocabulary on a CPU: this package next to T5X, each in processes of its own, in turn.

    python benchmarks/cpu_step.py --t5x=/path/to/t5x:/path/to/airio:/path/to/jestimator

Prints the temporaries that XLA reports for the step, and CPU seconds a step. Without --t5x only ours is measured.
T5X is not on PyPI; clone google-research/t5x, google/airio and google-research/jestimator, install what they import.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import optimizers, stages, train_step

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"vocab_size": 250112, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024, "layers": 8, "embed": 512}
BATCH, INPUTS, TARGETS = 8, 128, 32


def batch():
    """The same random batch for both, as numpy arrays."""
    import numpy as np

    rng = np.random.default_rng(0)
    targets = rng.integers(2, 250000, (BATCH, TARGETS)).astype(np.int32)
    return {
        "encoder_input_tokens": rng.integers(2, 250000, (BATCH, INPUTS)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones((BATCH, TARGETS), np.float32),
    }


def ours():
    """(compiled step, its arguments, from a result to the next arguments)."""
    import jax
    import jax.numpy as jnp

    s = SIZES
    config = T5Config(
        s["vocab_size"], s["embed"], s["num_heads"], s["head_dim"], s["mlp_dim"], s["layers"], s["layers"]
    )
    model, stage = EncoderDecoderModel(config), stages.stage("fine_tuning")
    params = jax.jit(model.init)(jax.random.key(0))
    trainable, frozen = stages.partition(params, stage)
    optimizer = optimizers.Staged(optimizers.adafactor(1e-3), stage)
    state = train_step.init_state(optimizer, trainable)
    arguments = (trainable, state.opt_state, frozen, batch(), jnp.int32(0))
    with Partitioner().context():
        step = train_step.make_step(model, optimizer)
        compiled = step.lower(*arguments).compile()
    of_run = step.of_run
    return compiled, (*arguments, *of_run), lambda result: (*result[:2], frozen, arguments[3], jnp.int32(1), *of_run)


def t5x():
    """The same of T5X."""
    import jax
    import seqio
    from flax import linen as nn  # noqa: F401 (T5X's modules expect it to be loaded)
    from t5x import adafactor, models, train_state, trainer
    from t5x.examples.t5 import network

    s = SIZES
    config = network.T5Config(
        vocab_size=s["vocab_size"],
        emb_dim=s["embed"],
        num_heads=s["num_heads"],
        head_dim=s["head_dim"],
        mlp_dim=s["mlp_dim"],
        num_encoder_layers=s["layers"],
        num_decoder_layers=s["layers"],
        mlp_activations=("gelu", "linear"),
        logits_via_embedding=False,
        dtype="float32",
        dropout_rate=0.1,
    )
    vocabulary = seqio.PassThroughVocabulary(s["vocab_size"])
    optimizer = adafactor.Adafactor(decay_rate=0.8, step_offset=0)
    model = models.EncoderDecoderModel(network.Transformer(config), vocabulary, vocabulary, optimizer, z_loss=1e-4)
    one = batch()
    shapes = {name: array.shape for name, array in one.items()}
    variables = jax.jit(lambda key: model.get_initial_variables(key, shapes))(jax.random.PRNGKey(0))
    state = train_state.FlaxOptimTrainState.create(optimizer, variables)

    def step(state, rows, key):
        return trainer.train_with_lr(state, rows, 1e-3, key, model, num_microbatches=None)

    arguments = (state, one, jax.random.PRNGKey(0))
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    return compiled, arguments, lambda result: (result[0], *arguments[1:])


def measure(name: str, steps: int) -> dict[str, float]:
    """Runs in its own process."""
    import jax

    step, arguments, following = {"ours": ours, "t5x": t5x}[name]()
    seconds = []
    for _ in range(steps):
        began = time.process_time()
        result = jax.block_until_ready(step(*arguments))
        seconds.append(time.process_time() - began)
        arguments = following(result)
    memory = step.memory_analysis()
    return {"temporaries_mb": memory.temp_size_in_bytes / 1e6, "cpu_seconds": statistics.median(seconds[1:])}


def main() -> None:
    """Runs both in turn and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t5x", default="", help="folders of the checkouts of t5x, airio and jestimator, joined by :")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.steps)))
        return
    measured: dict[str, list[dict[str, float]]] = {}
    path = os.pathsep.join([str(ROOT), *filter(None, [arguments.t5x, os.environ.get("PYTHONPATH", "")])])
    for _ in range(arguments.rounds):
        for name in ("ours", *(["t5x"] if arguments.t5x else [])):
            command = [sys.executable, __file__, "--measure", name, "--steps", str(arguments.steps)]
            done = subprocess.run(
                command, env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            measured.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
            print(name, measured[name][-1], flush=True)
    best = {name: {key: min(row[key] for row in rows) for key in rows[0]} for name, rows in measured.items()}
    for name, row in best.items():
        print(f"{name:5} temporaries {row['temporaries_mb']:.0f} MB, {row['cpu_seconds']:.2f} CPU s a step (best)")
    if "t5x" in best:
        print("ours / t5x:", {key: round(best["ours"][key] / best["t5x"][key], 2) for key in best["ours"]})


if __name__ == "__main__":
    main()
