"""Two real processes of four devices each: trained, stopped, resumed on other meshes, they do what one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # seven processes, each with its imports and compilation: two minutes on 2 cores

_PROGRAM = """
import dataclasses, hashlib, json, sys
import jax, numpy as np, seqio, tensorflow as tf

from promot_t5x.checkpoints import loading, saving
from promot_t5x.data import training_batches
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import processes
from promot_t5x.training import optimizers, prompt_initializers, stage_run, trainer

options = json.loads(sys.argv[1])
if options["count"] > 1:
    processes.start(processes.Processes(options["address"], options["count"], options["index"], timeout=120))
rng = np.random.default_rng(0)
rows = [(rng.integers(3, 64, n % 5 + 2).tolist(), [n % 30 + 3]) for n in range(50)]
signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}
source = seqio.FunctionDataSource(
    lambda split, shuffle_files: tf.data.Dataset.from_generator(
        lambda: ({"inputs": a, "targets": b} for a, b in rows), output_signature=signature
    ),
    splits=("train",),
)
feature = seqio.Feature(seqio.PassThroughVocabulary(64, eos_id=1))
both, end = {"inputs": feature, "targets": feature}, [seqio.preprocessors.append_eos]
seqio.TaskRegistry.add("two", source, both, preprocessors=end)

report = {"losses": {}, "batches": {}, "rows": [], "printed": True}
original = training_batches.opened
def recorded(config, *, rows, **more):
    def batches(start_batch):
        for number, batch in enumerate(opened(start_batch), start=start_batch):
            if number == options["stop_before"]:
                raise SystemExit(finish())
            for position, row in enumerate(rows):
                content = b"".join(batch[name][position].tobytes() for name in sorted(batch))
                report["batches"][f"{number}/{row}"] = hashlib.sha256(content).hexdigest()
            yield batch
    report["rows"] = np.asarray(rows).tolist()
    opened = original(config, rows=rows, **more)
    return batches
training_batches.opened = recorded

class Writer:
    def write_scalars(self, step, scalars):
        if "train/loss" in scalars:
            report["losses"][step] = float(scalars["train/loss"]).hex()
    def flush(self):
        pass
stage_run.metric_writers.create_default_writer = lambda *args, **kwargs: Writer()

def finish():
    with open(options["report"], "w") as stream:
        json.dump(report, stream)
    return 0

config = T5Config(64, 16, 4, 8, 32, 1, 1, prompt_length=4, dropout_rate=0.1, scan_layers=True)
model = EncoderDecoderModel(config, label_smoothing=0.1)
partitioner = Partitioner(num_partitions=options["num_partitions"])
report["mesh"] = dict(partitioner.mesh().shape)
result = stage_run.run_stage(
    model,
    options["stage"],
    optimizers.adafactor(0.05),
    training_batches.DatasetConfig("two", {"inputs": 8, "targets": 3}, batch_size=8, shards=4),
    trainer.LoopConfig(options["steps"], log_period=1),
    options["folder"],
    saving.CheckpointConfig(period=2),
    prompt_init=prompt_initializers.random_uniform(),
    partitioner=partitioner,
)
report["best"] = result.best_step
params = loading.load(options["folder"], model, partitioner).params
report["norm"] = float(jax.jit(lambda p: sum(jax.numpy.sum(x**2) for x in jax.tree.leaves(p)))(params))
finish()
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(reports_in: Path, name: str, count: int, devices: int, **options) -> list[dict]:
    """Runs `count` processes; returns their reports."""
    address, running, reports = f"127.0.0.1:{_free_port()}", [], []
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    for index in range(count):
        reports.append(reports_in / f"{name}_{index}.json")
        arguments = {"count": count, "index": index, "address": address, "report": str(reports[-1]), **options}
        command = [sys.executable, "-c", _PROGRAM, json.dumps(arguments)]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        for process in running:
            _, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors.decode()[-3000:]
    finally:  # one that waits for another in vain would outlive the test
        for process in running:
            process.kill()
            process.communicate()
    return [json.loads(report.read_text()) for report in reports]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    common = {"stage": "joint_tuning", "steps": 6}
    (alone,) = _run(folder, "alone", 1, 1, folder=str(folder / "alone"), num_partitions=1, stop_before=99, **common)
    pairs = [
        _run(folder, name, 2, 4, folder=str(folder / "pair"), num_partitions=model, stop_before=stop, **common)
        for name, model, stop in (("first", 2, 2), ("second", 2, 4), ("third", 4, 99))
    ]
    return alone, pairs


def test_two_processes_have_the_losses_of_one(runs):
    alone, pairs = runs
    assert [pair[0]["mesh"] for pair in pairs] == [
        {"replica": 1, "data": 4, "model": 2},
        {"replica": 1, "data": 4, "model": 2},
        {"replica": 1, "data": 2, "model": 4},
    ]
    losses = {int(step): float.fromhex(loss) for pair in pairs for step, loss in pair[0]["losses"].items()}
    expected = {int(step): float.fromhex(loss) for step, loss in alone["losses"].items()}
    assert sorted(losses) == sorted(expected) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([losses[s] for s in range(1, 7)], [expected[s] for s in range(1, 7)], rtol=1e-5)
    assert max(expected.values()) - min(expected.values()) > 0.1, "the losses of different parameters differ"
    assert [pair[0]["losses"] for pair in pairs] == [pair[1]["losses"] for pair in pairs]
    assert pairs[2][0]["best"] == pairs[2][1]["best"] == alone["best"] == 6
    np.testing.assert_allclose(pairs[2][0]["norm"], alone["norm"], rtol=1e-5)


def test_each_process_reads_its_share_and_all_are_the_batches_of_one(runs):
    alone, pairs = runs
    assert alone["rows"] == list(range(8)) and len(alone["batches"]) == 48
    together = {}
    for pair in pairs:
        assert [report["rows"] for report in pair] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        for report in pair:
            assert not set(together) & set(report["batches"])
            together |= report["batches"]
    assert together == alone["batches"]
