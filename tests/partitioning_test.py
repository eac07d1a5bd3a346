"""promot_t5x.partitioning: axes, shapes that do not divide, and four devices that compute what one does."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from promot_t5x import layout, partitioning
from promot_t5x.architecture import T5Config
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import MIXED_RULES, Partitioner

CONFIG = T5Config(32, 8, 2, 4, 16, 1, 1, prompt_length=4)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("relative_bias", ["shared", "per_layer"])
def test_every_axis_of_the_network_has_a_rule(scan_layers, relative_bias):
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, scan_layers=scan_layers, relative_bias=relative_bias))
    axes, shapes = layout.flatten(model.logical_axes()), layout.flatten(model.abstract_params())
    assert set(axes) == set(shapes)
    for name, spec in axes.items():
        assert len(spec) == len(shapes[name].shape), name
        assert set(spec) <= {axis for axis, _ in MIXED_RULES}, name
    shardings = layout.flatten(Partitioner().shardings(model.logical_axes(), model.abstract_params()))
    assert set(shardings) == set(shapes)
    assert shardings["token_embedder/embedding"].spec == PartitionSpec("model", "data")
    assert shardings["soft_prompt/embedding"].spec == PartitionSpec(None, None, "data")
    stack = (None,) if scan_layers else ()
    layer = "encoder/layers" if scan_layers else "encoder/layers_0"
    assert shardings[f"{layer}/mlp/wi_0/kernel"].spec == PartitionSpec(*stack, "data", "model")
    assert shardings[f"{layer}/attention/out/kernel"].spec == PartitionSpec(*stack, "model", "data")


class _FourByTwo(Partitioner):
    """A mesh that is larger than this machine: enough to check shapes against."""

    def mesh(self):
        return _AbstractMesh


class _AbstractMesh:
    shape = {"data": 4, "model": 3}


def test_what_does_not_divide_names_the_leaf():
    model = EncoderDecoderModel(CONFIG)
    sentence = "has a dimension of (8|16|32|2), which does not divide over the 3 devices of mesh axis 'model'"
    with pytest.raises(ValueError, match=f"(encoder|decoder)/.*{sentence}"):
        _FourByTwo().shardings(model.logical_axes(), model.abstract_params())


def test_the_number_of_partitions_divides_the_devices():
    count = len(jax.devices())
    with pytest.raises(ValueError, match=f"num_partitions is {count + 1}, which does not divide the {count} devices"):
        Partitioner(count + 1).mesh()
    with pytest.raises(ValueError, match="num_partitions is 0"):
        Partitioner(0)


def test_the_mesh_is_made_once(monkeypatch):
    partitioner, made = Partitioner(), []
    monkeypatch.setattr(partitioning, "Mesh", lambda *args, **kwargs: made.append(Mesh(*args, **kwargs)) or made[-1])
    for _ in range(3):
        partitioner.place_batch({"x": np.zeros((2, 2))})
        with partitioner.context():
            assert partitioner.mesh() is made[0]
    assert len(made) == 1
    assert partitioner == Partitioner() and hash(partitioner) == hash(Partitioner())


def test_batches_are_placed_by_rows():
    placed = Partitioner().place_batch({"x": np.arange(6).reshape(3, 2), "ids": np.zeros(3, np.int32)})
    mesh = Mesh(np.array([[jax.devices()[0]]]), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    assert placed["x"].sharding == NamedSharding(mesh, PartitionSpec("data"))
    np.testing.assert_array_equal(placed["x"], np.arange(6).reshape(3, 2))


_FOUR_DEVICES = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
from promot_t5x import checkpoints, initialize, layout, stages, trainer
from promot_t5x.architecture import T5Config
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner

model = EncoderDecoderModel(T5Config(64, 16, 4, 8, 32, 1, 1, prompt_length=4, dropout_rate=0.0), z_loss=1e-4)
rng = np.random.default_rng(0)
params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(x.dtype), model.abstract_params())
targets = rng.integers(2, 64, (8, 5)).astype(np.int32)
batch = {
    "encoder_input_tokens": rng.integers(1, 64, (8, 6)).astype(np.int32),
    "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.ones((8, 5), np.float32),
    "soft_prompt_ids": np.zeros(8, np.int32),
}
partitioner = Partitioner(num_partitions=2)
shardings = partitioner.shardings(model.logical_axes(), model.abstract_params())
placed = jax.tree.map(jax.device_put, params, shardings)
report = {"devices": len(jax.devices()), "mesh": dict(partitioner.mesh().shape)}
report["fingerprints"] = [checkpoints.fingerprint(params), checkpoints.fingerprint(placed)]
which, results = stages.stage("model_tuning"), []
for tree, feed in ((jax.tree.map(jnp.asarray, params), batch), (placed, partitioner.place_batch(batch))):
    sharded = tree is placed
    trainable, frozen = stages.partition(tree, which)
    optimizer = stages.staged_optimizer(optax.sgd(1e-2, momentum=0.9), tree, which)
    state = trainer.init_state(optimizer, trainable)
    step = trainer.make_step(model, optimizer)
    def specs(tree):
        return [str(x.sharding.spec) for x in jax.tree.leaves(tree) if x.ndim] if sharded else None
    before = specs((trainable, state.opt_state))
    args = trainable, state.opt_state
    losses = []
    for number in range(2):
        if sharded:
            with partitioner.context():
                *args, metrics = step(*args, frozen, feed, jnp.int32(number))
        else:
            *args, metrics = step(*args, frozen, feed, jnp.int32(number))
        losses.append(float(metrics["sums"].loss))
        if number == 0:
            first = {n: np.asarray(x) for n, x in layout.flatten(args[0]).items()}
            after = specs(args)
    report["stable" if sharded else "single"] = before == after
    report["changed"] = [pair for pair in zip(before, after) if pair[0] != pair[1]][:4] if sharded else None
    if sharded:
        report["compilations"] = step._cache_size()
    results.append((losses, first))
(loss, first), (sharded_loss, sharded_first) = results
report["losses"] = [loss, sharded_loss]
report["difference"] = max(float(np.max(np.abs(first[n] - sharded_first[n]))) for n in first)
report["moved"] = min(float(np.max(np.abs(first[n] - x))) for n, x in layout.flatten(params).items() if n in first)
try:
    partitioner.place_batch({"x": np.zeros((3, 2))})
except ValueError as error:
    report["rows"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def four_devices():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": root,
    }
    done = subprocess.run([sys.executable, "-c", _FOUR_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_step_on_four_devices_is_the_step_on_one(four_devices):
    assert four_devices["devices"] == 4 and four_devices["mesh"] == {"data": 2, "model": 2}
    np.testing.assert_allclose(*four_devices["losses"], rtol=1e-5)
    assert four_devices["difference"] < 1e-4 and four_devices["moved"] > 1e-3


def test_a_step_leaves_every_leaf_where_it_was(four_devices):
    assert four_devices["stable"], four_devices["changed"]
    assert four_devices["compilations"] == 1


def test_a_fingerprint_does_not_depend_on_the_sharding(four_devices):
    first, second = four_devices["fingerprints"]
    assert first == second


def test_rows_that_do_not_divide_are_refused(four_devices):
    assert "3 rows" in four_devices["rows"] and "2" in four_devices["rows"]
