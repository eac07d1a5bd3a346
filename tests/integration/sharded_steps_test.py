"""Training is the same on every mesh: eight devices of the CPU, cut in every way that a preset knows, against one.

The cases run in processes of their own, which make eight devices before JAX starts (`python sharded_steps_test.py` runs
the cases in its argument and prints the reports).
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from promot_t5x.checkpoints import fingerprints, saving
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import optimizers, run_folder, stages, train_step, trainer

ROOT = Path(__file__).resolve().parents[2]
STEPS, ROWS, INPUT_LENGTH, TARGET_LENGTH, VOCAB = 5, 16, 6, 5, 64
MESHES: dict[str, dict[str, Any]] = {
    "one": dict(count=1),
    "data 2": dict(count=2),
    "model 2": dict(count=2, num_partitions=2),
    "data 2 x model 4": dict(count=8, num_partitions=4),
    "replica 2 x data 2 x model 2": dict(count=8, num_partitions=2, num_slices=2),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One short run."""

    mesh: str
    preset: str = "mixed"
    stage: str = "model_tuning"
    scan_layers: bool = False
    remat: str = "none"
    num_microbatches: int = 1
    factored: bool = False  # matrices large enough for Adafactor's factored second moments, some of them square
    begun: tuple[str, str] | None = None  # mesh and preset of the first steps, after which the run was stopped

    def __str__(self) -> str:
        words = [self.stage, self.preset, self.mesh, "scanned" if self.scan_layers else "looped", f"remat {self.remat}"]
        words += [f"{self.num_microbatches} microbatches"] if self.num_microbatches > 1 else []
        words += ["factored"] if self.factored else []
        return ", ".join(words + ([f"begun on {self.begun[1]} {self.begun[0]}"] if self.begun else []))

    @property
    def reference(self) -> "Case":
        """The same run on one device, which holds everything and has nothing to recompute or add up."""
        return Case("one", "mixed", self.stage, self.scan_layers, factored=self.factored)


def _run(case: Case) -> tuple[list[float], dict[str, Any], str]:
    """(loss of every step, the leaves that trained, the fingerprint of all leaves before)"""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        losses = []
        if case.begun is not None:
            mesh, preset = case.begun
            losses, _, _ = _steps(dataclasses.replace(case, mesh=mesh, preset=preset), 3, folder)
        more_losses, trainable, fingerprint = _steps(case, STEPS, folder)
    return losses + more_losses, jax.device_get(parameter_names.flatten(trainable)), fingerprint


def _steps(case: Case, last_step: int, folder: str) -> tuple[list[float], Any, str]:
    """The steps from the newest checkpoint in the folder, or else from the first, to some step."""
    import jax

    mesh = dict(MESHES[case.mesh])
    partitioner = Partitioner(case.preset, devices=tuple(jax.devices()[: mesh.pop("count")]), **mesh)
    model, params = _network(case)
    params = jax.tree.map(jax.device_put, params, partitioner.shardings(model.logical_axes(), params))
    fingerprint = fingerprints.fingerprint(params)
    stage = stages.stage(case.stage)
    trainable, frozen = stages.partition(params, stage)
    optimizer = optimizers.Staged(optimizers.adafactor(0.05), stage)
    places = train_step.state_shardings(optimizer, trainable)
    losses, made, make_step = [], [], trainer.make_step

    def recorded(*args):
        made.append(make_step(*args))
        return made[-1]

    class Writer:
        def write_scalars(self, step, scalars):
            losses.append(scalars["train/loss"])

        def flush(self):
            pass

    with contextlib.closing(saving.RunCheckpoints(folder, saving.CheckpointConfig())) as run_checkpoints:
        state = run_folder.restored(run_checkpoints, train_step.init_state(optimizer, trainable), frozen, None)
        assert places == _places(state), "the optimizer's state begins where its parameters are"
        with mock.patch.object(trainer, "make_step", recorded):
            state = trainer.train(
                model,
                optimizer,
                state,
                frozen,
                map(_batch, range(state.step, last_step)),
                trainer.LoopConfig(last_step, log_period=1, num_microbatches=case.num_microbatches),
                partitioner=partitioner,
                batch_size=ROWS,
                save_period=STEPS,
                evaluate=lambda _: None,
                save=trainer.saver(run_checkpoints, frozen, {"base": None}) if case.begun else lambda *_: None,
                writer=Writer(),  # pyright: ignore[reportArgumentType]
            )
    assert places == _places(state), "a step leaves every leaf where it was"
    assert [step._cache_size() for step in made] == [1], "a step is compiled once"
    return losses, state.trainable, fingerprint


def _places(state):
    import jax

    return jax.tree.map(lambda leaf: leaf.sharding, (state.trainable, state.opt_state))


def _network(case: Case):
    import numpy as np

    depth = 2 if case.scan_layers else 1
    config = T5Config(VOCAB, 16, 4, 8, 32, depth, depth, prompt_length=4, dropout_rate=0.0)
    if case.factored:  # query, key and value kernels are square
        config = dataclasses.replace(config, embed_dim=128, head_dim=32, mlp_dim=256)
    config = dataclasses.replace(config, scan_layers=case.scan_layers, remat=case.remat)
    model = EncoderDecoderModel(config, label_smoothing=0.1, loss_normalizing_factor="NUM_REAL_TARGET_TOKENS")
    rng = np.random.default_rng(0)

    def draw(name, like):
        # As the network's own initialisers do: attention that is nearly hard would blow rounding errors up.
        fan_in = like.shape[-2] * (config.head_dim if "query" in name else 1) if name.endswith("kernel") else 1
        noise = rng.normal(size=like.shape) / np.sqrt(fan_in)
        return np.asarray(1 + 0.1 * noise if name.endswith("scale") else noise, like.dtype)

    return model, parameter_names.map_with_names(draw, model.abstract_params())


def _batch(number: int) -> dict[str, Any]:
    """Rows of different lengths, some of them without a prompt, one without any target."""
    import numpy as np

    rng = np.random.default_rng(number)
    inputs = rng.integers(2, VOCAB, (ROWS, INPUT_LENGTH)) * (
        np.arange(INPUT_LENGTH) < rng.integers(2, INPUT_LENGTH + 1, (ROWS, 1))
    )
    targets = rng.integers(2, VOCAB, (ROWS, TARGET_LENGTH)) * (
        np.arange(TARGET_LENGTH) < rng.integers(1, TARGET_LENGTH + 1, (ROWS, 1))
    )
    targets[3] = 0
    return {
        "encoder_input_tokens": inputs.astype(np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1].astype(np.int32),
        "decoder_target_tokens": targets.astype(np.int32),
        "decoder_loss_weights": (targets > 0).astype(np.float32),
        "soft_prompt_ids": np.where(np.arange(ROWS) % 5, 0, -1).astype(np.int32),
    }


def _compare(cases: list[Case]) -> list[dict[str, Any]]:
    """How far each case is from its reference at the end."""
    import jax
    import numpy as np

    reference = functools.cache(_run)
    reports = []
    for case in cases:
        started = time.monotonic()
        expected_losses, expected, fingerprint = reference(case.reference)
        losses, leaves, same_fingerprint = _run(case)
        start = parameter_names.flatten(_network(case)[1])
        norms = {
            n: [float(np.linalg.norm(np.ravel(x))) for x in (leaves[n] - e, e - start[n], start[n])]
            for n, e in expected.items()
        }
        worst = max(norms, key=lambda name: norms[name][0] / norms[name][1])
        report = {
            "case": str(case),
            "losses": expected_losses,
            "loss": float(np.max(np.abs(np.array(losses) / expected_losses - 1))),
            "leaves": len(norms),
            "leaf": worst,
            "difference": norms[worst][0] / norms[worst][1],
            "moved": min(moved / size for _, moved, size in norms.values()),
            "fingerprints": [fingerprint, same_fingerprint],
            "seconds": time.monotonic() - started,
        }
        reports.append(report)
        print(report, file=sys.stderr, flush=True)
        jax.clear_caches()
    return reports


def _reports(cases: list[Case]) -> list[dict[str, Any]]:
    """The reports of `_compare`, run in a process with eight devices."""
    flags = ["--xla_force_host_platform_device_count=8"]
    # Every program runs five times: most of the time is compilation, which needs no optimisation.
    flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(ROOT)}
    written = json.dumps([dataclasses.asdict(case) for case in cases])
    command = [sys.executable, __file__, written]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def _check(report: dict[str, Any], case: Case) -> None:
    assert report["case"] == str(case)
    assert len(report["losses"]) == STEPS and len(set(report["losses"])) == STEPS
    assert report["leaves"] == (1 if case.stage == "prompt_tuning" else 29)
    assert report["moved"] > 0.03, "or else nothing would be compared"
    assert len(set(report["fingerprints"])) == 1, "what weights are does not depend on where they are"
    assert report["loss"] <= 1e-5, report
    assert report["difference"] <= 1e-4, report


# Every mesh, preset, stage, layout and way to save memory once; the product of all is below.
COVERING = [
    Case("data 2 x model 4", "mixed", scan_layers=True, remat="full"),
    Case("data 2 x model 4", "fully_sharded", scan_layers=True, num_microbatches=2),
    Case("replica 2 x data 2 x model 2", "mixed", factored=True, remat="full", begun=("model 2", "tensor")),
    Case("data 2 x model 4", "fully_sharded", "prompt_tuning", remat="full", num_microbatches=2),
    Case("model 2", "tensor", "prompt_tuning"),
    Case("data 2", "data", "prompt_tuning", scan_layers=True),
]


@pytest.fixture(scope="module")
def covered() -> dict[str, dict[str, Any]]:
    return {report["case"]: report for report in _reports(COVERING)}


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_training_is_the_same_on_every_mesh(case, covered):
    _check(covered[str(case)], case)


@pytest.mark.slow  # 40 programs to compile each time, several seconds each
@pytest.mark.parametrize("scan_layers", [False, True], ids=["looped", "scanned"])
@pytest.mark.parametrize("stage", ["prompt_tuning", "model_tuning"])
def test_training_is_the_same_in_every_combination(stage, scan_layers):
    cut = [(mesh, 1) for mesh in MESHES if mesh != "one"] + [("data 2 x model 4", 2)]
    presets = ("mixed", "fully_sharded", "tensor", "data")
    cases = [
        Case(mesh, preset, stage, scan_layers, remat, num_microbatches)
        for (mesh, num_microbatches), preset, remat in itertools.product(cut, presets, ("none", "full"))
    ]
    reports = _reports(cases)
    assert len(reports) == len(cases) == 40
    for report, case in zip(reports, cases, strict=True):
        _check(report, case)


if __name__ == "__main__":
    cases = [Case(**{**case, "begun": case["begun"] and tuple(case["begun"])}) for case in json.loads(sys.argv[1])]
    print(json.dumps(_compare(cases)))
