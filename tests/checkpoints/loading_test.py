"""promot_t5x.checkpoints.loading: every kind of checkpoint a run can start from, and what is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.checkpoints import fingerprints, loading, networks, saving, stored_leaves
from promot_t5x.checkpoints.huggingface import weights
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import initial_parameters, prompt_initializers

CONFIG = T5Config(23, 6, 2, 4, 10, 2, 2)
MODEL = EncoderDecoderModel(CONFIG)
PROMPTED = EncoderDecoderModel(dataclasses.replace(CONFIG, prompt_length=3))
SCANNED = EncoderDecoderModel(dataclasses.replace(CONFIG, scan_layers=True))
ONE = Partitioner()


def _params(model, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), model.abstract_params())


def _base(folder, model=MODEL, **kwargs):
    params = _params(model, **kwargs)
    saving.export(folder, params, {"step": 0, "base": None})
    return params


def _prompt_run(folder, base_folder, base_params, scores=(0.5,)):
    """A prompt-tuning run's folder; the prompt of step s is full of s."""
    base = {"path": str(base_folder), "fingerprint": fingerprints.fingerprint(base_params)}
    run = saving.RunCheckpoints(folder, saving.CheckpointConfig(keep_latest=len(scores)))
    for step, score in enumerate(scores, start=1):
        prompt = {"soft_prompt": {"embedding": jnp.full((1, 3, 6), float(step))}}
        run.save(step, prompt, {"count": jnp.int32(step)}, {"base": base}, score)
    run.close()


def _same(params, expected):
    leaves, wanted = parameter_names.flatten(params), parameter_names.flatten(expected)
    assert set(leaves) == set(wanted)
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(leaves[name], leaf, err_msg=name)
        assert isinstance(leaves[name], jax.Array) and leaves[name].dtype == leaf.dtype


def test_our_own_checkpoint(tmp_path):
    params = _base(tmp_path / "base")
    for model in (MODEL, PROMPTED):  # a network with room for a prompt reads a model without one
        loaded = loading.load(tmp_path / "base", model, ONE)
        _same(loaded.params, params)
        assert loaded.base_path == str(tmp_path / "base")
        assert loaded.base_fingerprint == fingerprints.fingerprint(params)


def test_a_relative_path_is_remembered_whole(tmp_path, monkeypatch):
    _base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert loading.load("base", MODEL, ONE).base_path == str(tmp_path / "base")


@pytest.mark.parametrize("stored,wanted", [(MODEL, SCANNED), (SCANNED, MODEL), (SCANNED, SCANNED)])
def test_scanned_and_single_layers_are_converted(tmp_path, stored, wanted):
    params = _base(tmp_path / "base", stored)
    loaded = loading.load(tmp_path / "base", wanted, ONE)
    _same(
        loaded.params,
        parameter_names.unflatten(
            parameter_names.as_stored_in(parameter_names.flatten(params), parameter_names.flatten(_params(wanted)))
        ),
    )
    assert loaded.base_fingerprint == fingerprints.fingerprint(params)


def test_a_run_folder_gives_its_best_checkpoint(tmp_path):
    run = saving.RunCheckpoints(tmp_path, saving.CheckpointConfig(keep_latest=3))
    for step, score in ((1, 0.2), (2, 0.7), (3, 0.7)):
        run.save(step, _params(MODEL, seed=step), {"count": jnp.int32(step)}, {"base": None}, score)
    run.close()
    loaded = loading.load(tmp_path, MODEL, ONE)
    _same(loaded.params, _params(MODEL, seed=2))
    assert loaded.base_path == str(tmp_path / "checkpoint_2")


@pytest.mark.parametrize("base_model", [MODEL, SCANNED, PROMPTED])
def test_a_prompt_is_joined_with_its_base(tmp_path, base_model):
    """Also where the base was scanned, or had a prompt of its own, which the new one replaces."""
    params = _base(tmp_path / "base", base_model)
    _prompt_run(tmp_path / "run", tmp_path / "base", params, scores=(0.1, 0.9, 0.3))
    loaded = loading.load(tmp_path / "run", PROMPTED, ONE)
    weights = parameter_names.unstack_layers(
        parameter_names.flatten({k: v for k, v in params.items() if k != "soft_prompt"})
    )
    _same(
        loaded.params,
        parameter_names.unflatten({**weights, "soft_prompt/embedding": np.full((1, 3, 6), 2.0, np.float32)}),
    )
    assert loaded.base_path == str(tmp_path / "base")
    single = loading.load(tmp_path / "run" / "checkpoint_3", PROMPTED, ONE)
    assert float(single.params["soft_prompt"]["embedding"][0, 0, 0]) == 3.0


def test_a_prompt_needs_the_base_it_was_trained_with(tmp_path):
    params = _base(tmp_path / "base")
    _prompt_run(tmp_path / "run", tmp_path / "base", params)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match="soft prompt for the model in .*base, which does not exist"):
        loading.load(tmp_path / "run", PROMPTED, ONE)
    _base(tmp_path / "base", seed=1)
    with pytest.raises(ValueError, match="with fingerprint .* but the model there now has"):
        loading.load(tmp_path / "run", PROMPTED, ONE)
    with pytest.raises(ValueError, match="unexpected *soft_prompt/embedding|the network has none"):
        loading.load(tmp_path / "run", MODEL, ONE)


def test_a_checkpoint_brings_its_network(tmp_path):
    config = dataclasses.replace(CONFIG, relative_bias_max_distance=64, dropout_rate=0.25, scan_layers=True)
    params = _params(EncoderDecoderModel(config))
    saving.export(tmp_path / "base", params, {"step": 0, "base": None, **networks.described(config)})
    loaded = loading.load(tmp_path / "base")
    assert loaded.model == EncoderDecoderModel(config)
    _same(loaded.params, params)
    of_a_run = dataclasses.replace(config, dropout_rate=0.0, scan_layers=False, dtype="bfloat16", prompt_length=3)
    assert loading.load(tmp_path / "base", EncoderDecoderModel(of_a_run), ONE).model.config == of_a_run
    nearer = dataclasses.replace(config, relative_bias_max_distance=128)
    with pytest.raises(ValueError, match="base .*relative_bias_max_distance is 64, the configuration has 128;"):
        loading.load(tmp_path / "base", EncoderDecoderModel(nearer), ONE)


def test_a_prompt_alone_brings_the_network_of_its_model(tmp_path):
    params = _params(MODEL)
    network = networks.described(dataclasses.replace(CONFIG, relative_bias_max_distance=64))
    saving.export(tmp_path / "base", params, {"step": 0, "base": None, **network})
    _prompt_run(tmp_path / "run", tmp_path / "base", params)
    config = loading.load(tmp_path / "run").model.config
    assert (config.relative_bias_max_distance, config.prompt_length, config.num_prompts) == (64, 3, 1)


def test_a_checkpoint_written_without_its_network(tmp_path):
    params = _base(tmp_path / "base")
    with pytest.raises(
        ValueError,
        match="base was written before checkpoints carried their network, and its weights do not determine "
        "mlp_activations and relative_bias_max_distance; give the network's configuration",
    ):
        loading.load(tmp_path / "base")
    _same(loading.load(tmp_path / "base", MODEL).params, params)


def test_a_hugging_face_folder_states_its_network(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, relative_bias_max_distance=64, dropout_rate=0.0, mlp_activations=("silu",))
    params = parameter_names.flatten(_params(EncoderDecoderModel(config)))
    leaves = {name: stored_leaves.from_array(leaf, name) for name, leaf in params.items()}
    weights.write(tmp_path, leaves, config)
    assert loading.load(tmp_path).model.config == config
    assert "assumed" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="T5Config.mlp_activations is .'silu',., the configuration has .'relu',."):
        loading.load(tmp_path, EncoderDecoderModel(dataclasses.replace(config, mlp_activations=("relu",))))


def test_what_t5x_does_not_state_is_printed(shared_dir, capsys):
    folder = shared_dir / "fixtures" / "t5x_tiny" / "t5_legacy" / "checkpoint_0"
    config = loading.load(folder).model.config
    assert config == T5Config(384, 32, 4, 8, 64, 2, 2)
    line = "assumed, as in the public models: mlp_activations ('gelu', 'linear'), relative_bias_max_distance 128, "
    assert capsys.readouterr().out.startswith(line + "dropout_rate 0.1, decoder_start id 0, end id 1, padding id 0")


def test_a_prompt_that_names_no_model(tmp_path):
    prompt = {"soft_prompt": {"embedding": jnp.ones((1, 3, 6))}}
    saving.export(tmp_path / "prompt", prompt, {"step": 1, "base": None})
    with pytest.raises(
        ValueError, match="prompt holds a soft prompt alone and does not name its model; give a checkpoint"
    ):
        loading.load(tmp_path / "prompt", PROMPTED, ONE)


def test_a_model_with_its_prompt(tmp_path):
    params = _base(tmp_path / "base", PROMPTED)
    _same(loading.load(tmp_path / "base", PROMPTED, ONE).params, params)
    with pytest.raises(ValueError, match="holds a soft prompt .*the network has none; set architecture.T5Config"):
        loading.load(tmp_path / "base", MODEL, ONE)


@pytest.mark.parametrize("kind", ["t5_legacy", "t5_orbax"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_t5x_checkpoints(testdata, kind, scan_layers):
    folder = testdata / "t5x_tiny" / kind / "checkpoint_0"
    model = EncoderDecoderModel(T5Config(384, 32, 4, 8, 64, 2, 2, scan_layers=scan_layers, prompt_length=4))
    loaded = loading.load(folder, model, ONE)
    assert parameter_names.is_scanned(parameter_names.flatten(loaded.params)) == scan_layers
    assert len(parameter_names.unstack_layers(parameter_names.flatten(loaded.params))) == 52
    single = dataclasses.replace(model.config, scan_layers=False)
    legacy = loading.load(folder.parents[1] / "t5_legacy" / "checkpoint_0", EncoderDecoderModel(single), ONE)
    assert loaded.base_fingerprint == legacy.base_fingerprint
    with pytest.raises(ValueError, match="differs *decoder/decoder_norm/scale .*stored \\(32,\\).* wanted \\(6,\\)"):
        loading.load(folder, MODEL, ONE)


def test_another_network_or_dtype_is_refused(tmp_path):
    _base(tmp_path / "base")
    wider = EncoderDecoderModel(dataclasses.replace(CONFIG, mlp_dim=12))
    with pytest.raises(ValueError, match="12 leaves differ(.|\n)*wi_0/kernel .*stored \\(6, 10\\).*wanted \\(6, 12\\)"):
        loading.load(tmp_path / "base", wider, ONE)
    deeper = EncoderDecoderModel(dataclasses.replace(CONFIG, num_encoder_layers=3, scan_layers=True))
    with pytest.raises(ValueError, match="missing *encoder/layers_2/attention/key/kernel"):
        loading.load(tmp_path / "base", deeper, ONE)
    bfloat16 = EncoderDecoderModel(dataclasses.replace(CONFIG, param_dtype="bfloat16"))
    with pytest.raises(ValueError, match="stored .*float32 *wanted .*bfloat16"):
        loading.load(tmp_path / "base", bfloat16, ONE)


def test_paths_without_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*absent; check INITIAL_CHECKPOINT_PATH"):
        loading.load(tmp_path / "absent", MODEL, ONE)
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="neither a checkpoint nor a run folder.*T5X"):
            loading.load(path, MODEL, ONE)


def test_random_parameters_and_a_new_prompt():
    params = initial_parameters.random_parameters(PROMPTED, ONE, seed=3)
    assert "soft_prompt" not in params
    assert set(parameter_names.flatten(params)) == set(parameter_names.flatten(MODEL.abstract_params()))
    init = prompt_initializers.random_uniform(-0.25, 0.25)
    first, second = (initial_parameters.with_new_prompt(params, init, PROMPTED, ONE, seed) for seed in (3, 4))
    prompt = first["soft_prompt"]["embedding"]
    assert prompt.shape == (1, 3, 6) and prompt.dtype == jnp.float32 and np.max(np.abs(prompt)) <= 0.25
    assert np.any(prompt != second["soft_prompt"]["embedding"])
    again = initial_parameters.with_new_prompt(first, init, PROMPTED, ONE, 3)
    np.testing.assert_array_equal(again["soft_prompt"]["embedding"], prompt)
    assert first["encoder"] is params["encoder"]
    with pytest.raises(ValueError, match="no soft prompt; set architecture.T5Config.prompt_length"):
        initial_parameters.with_new_prompt(params, init, MODEL, ONE, 0)


_FOUR_DEVICES = """
import dataclasses, json, pathlib, sys
import jax, numpy as np
from flax import serialization
from promot_t5x.checkpoints import loading, placing, saving
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

folder = pathlib.Path(sys.argv[1])
single = EncoderDecoderModel(T5Config(384, 32, 4, 8, 64, 4, 4))
scanned = EncoderDecoderModel(dataclasses.replace(single.config, scan_layers=True))
rng = np.random.default_rng(0)
params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), single.abstract_params())
flat = parameter_names.stack_layers(parameter_names.flatten(params))
stacked = parameter_names.unflatten({n: np.array(x) for n, x in flat.items()})
saving.export(folder / "single", params, {"step": 0, "base": None})
saving.export(folder / "scanned", stacked, {"step": 0, "base": None})
(folder / "t5x").mkdir()
index = {"version": 3, "optimizer": {"state": {}, "target": params}}
(folder / "t5x" / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
whole, largest = (of(x.nbytes for x in jax.tree.leaves(stacked)) for of in (sum, max))

def fullest_device():
    buffers = {device: {} for device in jax.devices()}  # by address: a shard that was looked at is a live array too
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            buffers[shard.device][shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return max(sum(sizes.values()) for sizes in buffers.values())

peak, read = 0, placing._read
def watched(*arguments):
    global peak
    arrays = read(*arguments)
    peak = max(peak, fullest_device())
    return arrays
placing._read = watched

partitioner, report = Partitioner(num_partitions=2), {"devices": len(jax.devices()), "largest": largest / whole}
for source in ("single", "scanned", "t5x"):
    for wanted, model, expected in (("single", single, params), ("scanned", scanned, stacked)):
        peak = 0
        flat = parameter_names.flatten(loading.load(folder / source, model, partitioner).params)
        peak = max(peak, fullest_device())
        shardings = parameter_names.flatten(partitioner.shardings(model.logical_axes(), model.abstract_params()))
        report[f"{source} as {wanted}"] = {
            "placed": {n: x.sharding for n, x in flat.items()} == shardings,
            "same": all(np.array_equal(flat[n], x) for n, x in parameter_names.flatten(expected).items()),
            "peak": peak / whole,
        }
        del flat
print(json.dumps(report))
"""


def test_no_model_is_ever_whole_on_one_of_four_devices(tmp_path):
    """From either layout to either, and from T5X: each part of a leaf goes straight to its device."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _FOUR_DEVICES, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report.pop("devices") == 4
    # A quarter of everything, norms and biases on all devices, and the parts of one leaf in both layouts.
    limit = 0.25 + 0.05 + 0.25 * report.pop("largest")
    assert len(report) == 6
    for case, result in report.items():
        assert result["placed"] and result["same"], case
        assert 0.25 <= result["peak"] < limit, (case, result["peak"], limit)
