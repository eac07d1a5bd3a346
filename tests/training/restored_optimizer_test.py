"""A run that starts with the optimizer's state of a T5X checkpoint, against T5X's own second step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from promot_t5x.checkpoints import saving
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning import optimizer_slots
from promot_t5x.training import optimizers, restored_optimizer, stages, train_step
from tests.training import t5x_state, tiny

FINE_TUNING = stages.stage("fine_tuning")
STEP = 1_000_000


@pytest.fixture
def steps(testdata):
    """T5X's parameters before and after two updates of Adafactor, and their gradients, flat, by part."""
    parts = {}
    for name, array in np.load(testdata / "t5x_tiny" / "adafactor_steps.npz").items():
        part = "after_2" if name.startswith("scaled/after_2/") else name.split("/")[0]
        parts.setdefault(part, {})[name.removeprefix("scaled/").split("/", 1)[1]] = array
    return parts


def updated(optimizer, params, gradients, state):
    tree = parameter_names.unflatten(params)
    updates, state = jax.jit(optimizer.update)(parameter_names.unflatten(gradients), state, tree)
    return parameter_names.flatten(optax.apply_updates(tree, updates)), state


def test_the_update_after_a_checkpoint_of_t5x_is_t5xs(steps, tmp_path):
    adafactor = optimizers.adafactor(1e-2)
    tree = parameter_names.unflatten(steps["params"])
    optimizer = optimizers.Staged(adafactor, FINE_TUNING)
    after_1, _ = updated(optimizer, steps["params"], steps["grads_1"], optimizer.init(tree))
    folder = t5x_state.write(tmp_path / "checkpoint_1", after_1, t5x_state.moments(steps["grads_1"]), step=1)

    fresh = train_step.init_state(
        optimizer, jax.tree.map(jax.numpy.asarray, parameter_names.unflatten(after_1))
    ).opt_state
    stored = restored_optimizer.opened(str(folder), adafactor, tree, FINE_TUNING)
    after_2, _ = updated(optimizer, after_1, steps["grads_2"], restored_optimizer.restored(fresh, stored))
    without, _ = updated(optimizer, after_1, steps["grads_2"], fresh)
    for name, expected in steps["after_2"].items():
        np.testing.assert_allclose(after_2[name], expected, rtol=0, atol=1e-6, err_msg=name)
    assert max(np.abs(without[name] - expected).max() for name, expected in steps["after_2"].items()) > 1e-4


ADAFACTOR = optimizers.adafactor(0.05)


def state_of(folder, config, stage, adafactor=ADAFACTOR):
    """(slots, counts) of a run's start with the state of a checkpoint, by name."""
    model = EncoderDecoderModel(config)
    stored = restored_optimizer.opened(str(folder), adafactor, model.abstract_params(), stages.stage(stage))
    _, _, state, _ = tiny.start(model, stage, adafactor)
    leaves = optimizer_slots.by_path(restored_optimizer.restored(state.opt_state, stored))
    counts = {path: np.asarray(leaf) for path, leaf in leaves.items() if path.endswith("/count")}
    return {name: np.asarray(leaf) for name, leaf in restored_optimizer._slots(leaves).items()}, counts


def slots_of(config, seed=7):
    """Random slots, in which no number occurs twice, for a network of one leaf per layer."""
    shapes = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
    shapes.pop(parameter_names.PROMPT)
    rng = np.random.default_rng(seed)
    gradients = {name: rng.normal(size=leaf.shape) for name, leaf in shapes.items()}
    return t5x_state.moments(gradients), {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(a checkpoint of T5X with the sizes of tests.training.tiny, its slots)"""
    slots, params = slots_of(tiny.CONFIG)
    return t5x_state.write(tmp_path_factory.mktemp("t5x") / "checkpoint_5", params, slots, STEP), slots


@pytest.mark.parametrize("stage", ["model_tuning", "joint_tuning", "prompt_tuning"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_stage_and_layout_starts_with_the_slots_of_what_it_trains(checkpoint, stage, scan_layers):
    folder, stored = checkpoint
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    adafactor = dataclasses.replace(optimizers.adafactor(0.05), learning_rate=schedule)
    slots, counts = state_of(folder, dataclasses.replace(tiny.CONFIG, scan_layers=scan_layers), stage, adafactor)
    prompt = {name: slots.pop(name) for name in list(slots) if name.startswith("soft_prompt/")}
    assert bool(prompt) == (stage != "model_tuning")
    assert not any(array.any() for array in prompt.values())  # T5X's checkpoint has none: they start at zero
    per_layer = parameter_names.unstack_layers(slots)
    expected = {} if stage == "prompt_tuning" else stored
    assert {name: array.tobytes() for name, array in per_layer.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    # Those of the moments and those of the schedule, which so goes on from the checkpoint's step as T5X's does.
    assert len(counts) >= 2 and {int(x) for count in counts.values() for x in np.ravel(count)} == {STEP}


def test_slots_that_t5x_wrote(testdata):
    folder = testdata / "prompt_tuning_t5x" / "test_data" / "test_t5_1_1_tiny" / "checkpoint_3"
    config = T5Config(32128, 4, num_heads=1, head_dim=4, mlp_dim=4, num_encoder_layers=2, num_decoder_layers=2)
    raw = t5x_state.serialization.msgpack_restore((folder / "checkpoint").read_bytes())["optimizer"]["state"]
    stored = {n: x for n, x in parameter_names.flatten(raw["param_states"]).items() if not n.endswith("/m")}
    shapes = {n.rsplit("/", 1)[0]: x.shape for n, x in stored.items() if n.endswith("/v")}
    rel = shapes["encoder/relpos_bias/rel_embedding"]
    config = dataclasses.replace(config, num_heads=rel[0], relative_bias_buckets=rel[1])
    heads = shapes["encoder/layers_0/attention/query/kernel"][1]
    config = dataclasses.replace(config, head_dim=heads // rel[0], mlp_dim=shapes["encoder/layers_0/mlp/wo/kernel"][0])
    slots, counts = state_of(folder, config, "fine_tuning")
    assert {name: x.tobytes() for name, x in slots.items()} == {name: x.tobytes() for name, x in stored.items()}
    assert slots["decoder/decoder_norm/scale/v"].max() > 400 and {int(x) for x in counts.values()} == {3}


def _changed(change):
    slots, params = slots_of(tiny.CONFIG)
    change(slots)
    return slots, params


def _without(slots, part):
    for name in [name for name in slots if part in name]:
        del slots[name]


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda slots: slots.clear(), "checkpoint_5 holds no optimizer state: set RESTORE_OPTIMIZER to False"),
        (
            lambda slots: _without(slots, "layers_1/mlp/wo/"),
            r"no slot decoder/layers_1/mlp/wo/kernel/v_row, expected \(1,\): give",
        ),
        (
            lambda slots: slots.update({"encoder/encoder_norm/scale/v": np.zeros(3, np.float32)}),
            r"has encoder/encoder_norm/scale/v \(3,\), expected \(11,\): give the checkpoint of this network",
        ),
        (
            lambda slots: slots.update({"encoder/encoder_norm/scale/grad_ema": np.zeros(11, np.float32)}),
            "the state of another optimizer than T5X's Adafactor, with slots named grad_ema",
        ),
        (lambda slots: slots.pop("encoder/encoder_norm/scale/v_row"), "encoder/encoder_norm/scale has no slot v_row"),
    ],
)
def test_a_state_that_does_not_fit_is_one_sentence(tmp_path, change, message):
    slots, params = _changed(change)
    folder = t5x_state.write(tmp_path / "checkpoint_5", params, slots, STEP)
    model = EncoderDecoderModel(tiny.CONFIG)
    with pytest.raises(ValueError, match=message):
        restored_optimizer.opened(str(folder), ADAFACTOR, model.abstract_params(), stages.stage("model_tuning"))


def test_stacks_that_t5x_factors_although_they_are_small(testdata):
    config = T5Config(384, 32, 4, 8, 64, 2, 2, relative_bias="per_layer", scan_layers=True)
    folder = testdata / "t5x_tiny" / "scalable_t5_orbax" / "checkpoint_0"
    params = EncoderDecoderModel(config).abstract_params()
    with pytest.raises(ValueError, match=r"has decoder/layers/.*kernel/v_row \(2, 32\), expected \(2, 1\)"):
        restored_optimizer.opened(str(folder), ADAFACTOR, params, FINE_TUNING)


@pytest.mark.parametrize("optimizer", [optimizers.adam(0.1), optax.sgd(0.1)], ids=["adam", "sgd"])
def test_an_optimizer_that_is_not_adafactor(checkpoint, optimizer):
    params = EncoderDecoderModel(tiny.CONFIG).abstract_params()
    with pytest.raises(ValueError, match=r"but OPTIMIZER has (state such as .*mu|no second moments).*adafactor"):
        restored_optimizer.opened(str(checkpoint[0]), optimizer, params, FINE_TUNING)


def test_what_a_run_cannot_restore_from_is_said_before_a_weight_is_read(checkpoint, tmp_path):
    saving.export(tmp_path / "own", tiny.random_params(EncoderDecoderModel(tiny.ONE_LAYER)), {"step": 0})
    for initial, message in (
        (None, "INITIAL_CHECKPOINT_PATH is None: give one checkpoint of T5X"),
        ([str(checkpoint[0])] * 2, "INITIAL_CHECKPOINT_PATH averages 2 checkpoints"),
        (str(tmp_path / "own"), "own, no checkpoint of T5X, whose optimizer state alone can be restored"),
        (str(tmp_path / "nowhere"), "There is no checkpoint at .*nowhere"),
    ):
        with tiny.registered_task() as task, pytest.raises((ValueError, FileNotFoundError), match=message):
            tiny.train(tmp_path / "run", "fine_tuning", task, initial, restore_optimizer=True)
    assert not list((tmp_path / "run").glob("checkpoint_*"))


def test_a_run_counts_from_the_checkpoints_step_and_records_that_it_does(tmp_path):
    slots, params = slots_of(tiny.ONE_LAYER)
    folder = t5x_state.write(tmp_path / "checkpoint_5", params, slots, STEP)
    with tiny.registered_task() as task:
        tiny.train(tmp_path / "run", "fine_tuning", task, str(folder), steps=2, restore_optimizer=True)
        with pytest.raises(ValueError, match="restore_optimizer is false, was true"):
            tiny.train(tmp_path / "run", "fine_tuning", task, str(folder), steps=2)
    folder = tmp_path / "run" / "checkpoint_2"
    leaves = saving.ocp.StandardCheckpointer().restore(folder / "opt_state")
    stored = dict(zip(saving.read_metadata(folder)["opt_state"], leaves.values(), strict=True))
    assert {int(leaf) for path, leaf in stored.items() if ".count " in path} == {STEP + 2}
    # At this count, two updates change a moment by 3.2e-5 of what the gradients' squares are.
    [moments] = [leaf for path, leaf in stored.items() if ".v['encoder']['layers_0']['mlp']['wo']" in path]
    np.testing.assert_allclose(moments, slots["encoder/layers_0/mlp/wo/kernel/v"], rtol=1e-4, atol=1e-3)
