"""promot_t5x.partitioning.partitioner: where every array of a run lives, and what does not fit a mesh."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from promot_t5x.models import chunked_logits, layers, parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning import meshes
from promot_t5x.partitioning.optimizer_slots import slot_shardings
from promot_t5x.partitioning.partitioner import PRESETS, Partitioner, pieces
from promot_t5x.training import optimizers, stages

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONFIG = T5Config(32, 8, 2, 4, 16, 1, 1, prompt_length=4)
P = PartitionSpec
# Every program here runs once or twice: most of the time is compilation, which needs no optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclasses.dataclass(frozen=True)
class _Client:
    def process_index(self):
        return 1


@dataclasses.dataclass(frozen=True)
class _Device:
    """A device that this machine lacks, of another process or of process 1, as which the test runs."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "cpu"
    device_kind: str = "a kind without rules of its own"
    client: _Client = _Client()


def _devices(count, per_process=4, slices=1):
    return tuple(_Device(i, i // per_process, i * slices // count) for i in range(count))


EIGHT = _devices(8)


def _leaves(config):
    model = EncoderDecoderModel(config)
    return model.logical_axes(), model.abstract_params()


# Rules.


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("relative_bias", ["shared", "per_layer"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_has_a_place(preset, scan_layers, relative_bias):
    axes, shapes = _leaves(dataclasses.replace(CONFIG, scan_layers=scan_layers, relative_bias=relative_bias))
    rules = {axis for axis, _ in Partitioner(preset).all_rules()}
    shardings = parameter_names.flatten(Partitioner(preset, 2, devices=EIGHT[:4]).shardings(axes, shapes))
    flat_axes, flat_shapes = parameter_names.flatten(axes), parameter_names.flatten(shapes)
    assert set(flat_axes) == set(flat_shapes) == set(shardings)
    for name, spec in flat_axes.items():
        assert len(spec) == len(flat_shapes[name].shape), name
        assert set(spec) <= rules, name
        cut = shardings[name].shard_shape(flat_shapes[name].shape)  # an axis twice in one leaf would be an error here
        assert preset != "data" or cut == flat_shapes[name].shape


@pytest.mark.parametrize("preset", PRESETS)
def test_every_axis_of_an_activation_has_a_rule(preset, monkeypatch):
    model, named = EncoderDecoderModel(dataclasses.replace(CONFIG, dtype="bfloat16")), set()

    def constrained(x, axes):
        assert len(axes) == x.ndim
        named.update(axis for axis in axes if axis is not None)
        return x

    for module in (layers, chunked_logits):
        monkeypatch.setattr(module, "with_logical_constraint", constrained)
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    batch = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"), tokens)
    batch |= {"decoder_loss_weights": tokens, "soft_prompt_ids": jax.ShapeDtypeStruct((2,), jnp.int32)}
    jax.eval_shape(lambda params, batch: model.loss_fn(params, batch, None), model.abstract_params(), batch)
    assert {"batch", "embed_activation", "heads", "mlp", "vocab"} <= named
    assert named <= {axis for axis, _ in Partitioner(preset).all_rules()}


EVERYWHERE = ("data", "model")
SPECS = {
    # embedding [V, D], logits [D, V], prompt [N, P, D], wi_0 [D, F], wo [F, D], query [D, HK], norm [D], bias [H, R]
    "mixed": [
        P("model", "data"),
        P("data", "model"),
        P(None, None, "data"),
        P("data", "model"),
        P("model", "data"),
        P("data", "model"),
        P("data"),
        P("model"),
    ],
    "fully_sharded": [
        P(None, EVERYWHERE),
        P(EVERYWHERE),
        P(None, None, EVERYWHERE),
        P(EVERYWHERE),
        P(None, EVERYWHERE),
        P(EVERYWHERE),
        P(EVERYWHERE),
        P(),
    ],
    "tensor": [P("model"), P(None, "model"), P(), P(None, "model"), P("model"), P(None, "model"), P(), P("model")],
    "data": [P()] * 8,
}
BATCH = {
    "mixed": P(("replica", "data")),
    "fully_sharded": P(("replica", "data", "model")),
    "tensor": P(("replica", "data")),
    "data": P(("replica", "data", "model")),
}


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_where_a_preset_puts_leaves_and_batches(preset, scan_layers):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    partitioner = Partitioner(preset, 2, devices=EIGHT)
    shardings = parameter_names.flatten(partitioner.shardings(*_leaves(config)))
    layer = "layers" if scan_layers else "layers_0"
    names = ["token_embedder/embedding", "decoder/logits_dense/kernel", parameter_names.PROMPT]
    names += [f"encoder/{layer}/mlp/wi_0/kernel", f"decoder/{layer}/mlp/wo/kernel"]
    names += [f"decoder/{layer}/encoder_decoder_attention/query/kernel", "encoder/encoder_norm/scale"]
    names += ["decoder/relpos_bias/rel_embedding"]
    for name, spec in zip(names, SPECS[preset], strict=True):
        stacked = P(None, *spec) if "/layers/" in name and any(spec) else spec
        assert shardings[name].spec == stacked, name
        assert shardings[name].mesh.shape == {"replica": 1, "data": 4, "model": 2}
    assert partitioner.batch_sharding().spec == BATCH[preset]
    assert partitioner.replicated().spec == P() and partitioner.replicated().mesh == partitioner.mesh()


def test_own_rules_replace_the_presets():
    # Lists are what gin makes of a list; a hash shows that none is kept.
    rules = (("embed", None), ("vocab", ["data", "model"]), ("batch", "data"))
    partitioner = Partitioner("mixed", 2, rules=rules, devices=EIGHT)
    assert hash(partitioner) == hash(Partitioner("mixed", 2, rules=partitioner.rules, devices=EIGHT))
    by_axis = dict(partitioner.all_rules())
    assert len(by_axis) == len(partitioner.all_rules()) == len(PRESETS["mixed"])
    changed = {axis for axis in by_axis if by_axis[axis] != PRESETS["mixed"][axis]}
    assert changed == {"embed", "vocab", "batch"} and by_axis["vocab"] == ("data", "model")
    shardings = parameter_names.flatten(partitioner.shardings(*_leaves(CONFIG)))
    assert shardings["token_embedder/embedding"].spec == P(("data", "model"))
    assert shardings["encoder/layers_0/mlp/wi_0/kernel"].spec == P(None, "model")
    assert partitioner.batch_sharding().spec == P("data")


def test_the_number_of_pieces_is_the_mesh_s_in_force():
    assert pieces("vocab") == 1
    mesh = AbstractMesh((2, 3, 4), meshes.AXES)
    expected = {"mixed": (4, 3, 6), "fully_sharded": (1, 12, 24), "tensor": (4, 1, 6), "data": (1, 1, 24)}
    for preset, numbers in expected.items():
        with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(Partitioner(preset).all_rules()):
            assert tuple(map(pieces, ("vocab", "embed", "batch"))) == numbers
    with Partitioner().context():
        assert pieces("vocab") == 1
    assert jax.sharding.get_abstract_mesh().empty


# Configurations that cannot work.

MISTAKES = {
    "preset": (
        dict(preset="fsdp"),
        "Partitioner.preset is 'fsdp': expected one of mixed, fully_sharded, tensor, data.",
    ),
    "no partitions": (dict(num_partitions=0), "num_partitions=0, num_slices=None: expected at least 1, or None for "),
    "no slices": (dict(num_slices=0), "num_partitions=1, num_slices=0: expected at least 1, or None for "),
    "an empty block": (
        dict(model_parallel_submesh=(2, 0, 1, 1)),
        "Partitioner has model_parallel_submesh=(2, 0, 1, 1): expected at least 1 everywhere.",
    ),
    "two sizes": (
        dict(num_partitions=2, model_parallel_submesh=(2, 2, 1, 1)),
        "Partitioner has num_partitions=2 and model_parallel_submesh=(2, 2, 1, 1), which has 4 devices; give one of "
        "the two.",
    ),
    "a logical axis": (
        dict(rules=(("embedding", "data"),)),
        "Partitioner.rules has ('embedding', 'data'): expected a logical axis among batch, embed, ",
    ),
    "a mesh axis": (dict(rules=(("embed", ("data", "modle")),)), "and mesh axes among replica, data, model."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake):
    arguments, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError) as error:
        Partitioner(**arguments)
    assert sentence in str(error.value)


def test_a_submesh_says_how_many_partitions_there_are():
    for numbers in (1, 4):
        partitioner = Partitioner(num_partitions=numbers, model_parallel_submesh=[2, 2, 1, 1])  # pyright: ignore
        assert partitioner.num_partitions == 4 and hash(partitioner)
        with pytest.raises(ValueError, match="model_parallel_submesh is a block of TPU hardware"):
            dataclasses.replace(partitioner, devices=EIGHT).mesh()


def test_the_number_of_partitions_divides_the_devices():
    count = len(jax.devices())
    with pytest.raises(ValueError, match=f"num_partitions is {count + 1}, which does not divide the {count} devices"):
        Partitioner(num_partitions=count + 1).mesh()


SIX_HEADS = dataclasses.replace(CONFIG, num_heads=6, head_dim=4)


@pytest.mark.parametrize(
    "partitioner,config,sentence",
    [
        (
            Partitioner("mixed", 4, devices=EIGHT),
            SIX_HEADS,
            "decoder/relpos_bias/rel_embedding has a dimension of 6, which does not divide over the 4 devices of mesh "
            "axis 'model'; Partitioner.num_partitions could be 2 (data 4 x model 2), 1 (data 8 x model 1), or choose "
            "another preset or other rules.",
        ),
        (  # the nearest first, by factors; of sixteen devices five meshes would do, three are named
            Partitioner("mixed", 16, devices=_devices(16)),
            dataclasses.replace(CONFIG, embed_dim=16, num_heads=8),
            "decoder/relpos_bias/rel_embedding has a dimension of 8, which does not divide over the 16 devices of mesh "
            "axis 'model'; Partitioner.num_partitions could be 8 (data 2 x model 8), 4 (data 4 x model 4), 2 (data 8 x "
            "model 2), or choose another preset or other rules.",
        ),
        (  # model 1 and 2 would put 8 and 4 devices on an embed axis of 6
            Partitioner("mixed", 2, devices=EIGHT),
            dataclasses.replace(CONFIG, embed_dim=6, num_heads=8),
            "decoder/decoder_norm/scale has a dimension of 6, which does not divide over the 4 devices of mesh axis "
            "'data'; Partitioner.num_partitions could be 4 (data 2 x model 4), 8 (data 1 x model 8), or choose another "
            "preset or other rules.",
        ),
        (  # the advice is for one slice
            Partitioner("tensor", 4, devices=_devices(8, slices=2)),
            SIX_HEADS,
            "decoder/relpos_bias/rel_embedding has a dimension of 6, which does not divide over the 4 devices of mesh "
            "axis 'model'; Partitioner.num_partitions could be 2 (data 2 x model 2), 1 (data 4 x model 1), or choose "
            "another preset or other rules.",
        ),
        (
            Partitioner("fully_sharded", 2, devices=EIGHT),
            dataclasses.replace(CONFIG, embed_dim=12),
            "decoder/decoder_norm/scale has a dimension of 12, which does not divide over the 8 devices of mesh axis "
            "('data', 'model'); no mesh over these devices fits: choose another Partitioner.preset, other rules or "
            "another slice.",
        ),
    ],
)
def test_what_does_not_divide_names_the_leaf_and_what_would(partitioner, config, sentence):
    with pytest.raises(ValueError) as error:
        partitioner.shardings(*_leaves(config))
    assert str(error.value) == sentence
    for written in sentence.split("could be ")[-1].split("), ")[:-1]:  # what is offered does fit
        dataclasses.replace(partitioner, num_partitions=int(written.split()[0])).shardings(*_leaves(config))


def test_the_mesh_is_made_once(monkeypatch):
    partitioner, made, original = Partitioner(), [], meshes.make_mesh
    monkeypatch.setattr(meshes, "make_mesh", lambda *args: made.append(original(*args)) or made[-1])
    for _ in range(3):
        partitioner.place_batch({"x": np.zeros((2, 2))})
        with partitioner.context():
            assert partitioner.mesh() is made[0]
    assert len(made) == 1
    assert partitioner == Partitioner() and hash(partitioner) == hash(Partitioner())


# Optimizers.


@pytest.fixture(scope="module")
def parameters():
    """Leaves of the network's names: square and oblong kernels, in layers, stacked and single; a prompt, a norm."""
    rng = np.random.default_rng(0)

    def kernels(*stack):
        shapes = {"square": (128, 128), "wide": (128, 256), "tall": (256, 128), "small": (8, 16)}
        return {name: {"kernel": rng.normal(size=(*stack, *shape))} for name, shape in shapes.items()}

    tree = {
        "encoder": {"layers": kernels(3), "encoder_norm": {"scale": rng.normal(size=128)}},
        "decoder": {"layers_0": kernels(), "layers_1": kernels()},
        "soft_prompt": {"embedding": rng.normal(size=(2, 256, 128))},
        "token_embedder": {"embedding": rng.normal(size=(256, 128))},
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


LOGICAL = {"square": ("embed", "joined_kv"), "wide": ("embed", "mlp"), "tall": ("mlp", "embed"), "small": ("embed",)}


def _placed(parameters, preset):
    """The parameters' shapes with a place on two by four devices."""
    partitioner = Partitioner(preset, 4, devices=EIGHT)

    def axes(name, leaf):
        if name.endswith("kernel"):
            return P(*["layers"] * (leaf.ndim - 2), *LOGICAL[name.split("/")[-2]])
        special = {
            parameter_names.PROMPT: P("prompts", "prompt_length", "embed"),
            "token_embedder/embedding": P("vocab", "embed"),
        }
        return special.get(name, P("embed"))

    shardings = partitioner.shardings(parameter_names.map_with_names(axes, parameters), parameters)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), parameters, shardings)


def _full(sharding, ndim):
    return [*sharding.spec, *[None] * (ndim - len(sharding.spec))]


OPTIMIZERS = {
    "adafactor": lambda: optimizers.adafactor(0.1),
    "adam": lambda: optimizers.adam(0.1, clip_norm=1.0),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
}


@pytest.fixture(scope="module")
def states(parameters):
    """The state of each optimizer after one step: what a slot is the mean over shows in its numbers."""
    stage, states = stages.stage("joint_tuning"), {}
    jit = functools.partial(jax.jit, compiler_options=QUICK)
    for name, make in OPTIMIZERS.items():
        optimizer = optimizers.Staged(make(), stage)
        _, states[name] = jit(optimizer.update)(parameters, optimizer.init(parameters), parameters)
    return states


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_slot_is_cut_as_the_dimensions_it_has(name, preset, parameters, states):
    like, leaves = parameter_names.flatten(_placed(parameters, preset)), parameter_names.flatten(parameters)
    state = states[name]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    shardings = slot_shardings(shapes, parameter_names.unflatten(like))
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    seen = {}
    for (path, slot), sharding in zip(
        jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(shardings), strict=True
    ):
        words = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        owner = next((leaf for leaf in leaves if words.endswith(leaf)), None)
        if owner is None or slot.size <= 3:  # counters, one for each layer of a stack, and placeholders of no slot
            assert sharding.spec == P(), words
            continue
        squares, spec = np.float64(leaves[owner]) ** 2, _full(like[owner].sharding, leaves[owner].ndim)
        if slot.shape == squares.shape:
            kept = spec
        else:
            # The only dimension whose mean this is, by the numbers: shapes do not tell those of a square kernel apart.
            means = [np.mean(squares, axis=axis) for axis in range(squares.ndim)]
            (lacking,) = [a for a, m in enumerate(means) if m.shape == slot.shape and np.allclose(slot, m, rtol=1e-4)]
            kept = [axes for axis, axes in enumerate(spec) if axis != lacking]
            seen.setdefault(owner, set()).add(lacking)
        assert _full(sharding, slot.ndim) == kept, words
        assert sharding.shard_shape(slot.shape)
    factored = {
        leaf for leaf in leaves if leaf != parameter_names.PROMPT and "scale" not in leaf and "small" not in leaf
    }
    assert set(seen) == (factored if name == "adafactor" else set())
    assert all(len(lacking) == 2 for lacking in seen.values()), "a row and a column"


def test_slots_of_one_device_are_with_the_parameters(parameters):
    trainable, _ = stages.partition(parameters, stages.stage("prompt_tuning"))
    slots = jax.eval_shape(optax.adam(0.1).init, trainable)
    shardings = set(jax.tree.leaves(slot_shardings(slots, trainable)))
    assert shardings == {trainable["soft_prompt"]["embedding"].sharding}


# Batches.


def test_batches_are_placed_by_rows():
    placed = Partitioner().place_batch({"x": np.arange(6).reshape(3, 2), "ids": np.zeros(3, np.int32)})
    assert placed["x"].sharding == NamedSharding(
        Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), meshes.AXES), P(("replica", "data"))
    )
    np.testing.assert_array_equal(placed["x"], np.arange(6).reshape(3, 2))


@pytest.mark.parametrize(
    "arguments,devices,expected",
    [
        (dict(preset="mixed"), _devices(8), range(8, 16)),
        (dict(preset="mixed", num_partitions=4), _devices(8), range(8, 16)),
        (dict(preset="mixed", num_partitions=8), _devices(8), range(16)),  # every process needs every row
        (dict(preset="tensor", num_partitions=4), _devices(16), range(4, 8)),
        (dict(preset="tensor", num_partitions=8), _devices(16), range(8)),  # which two processes share
        (dict(preset="fully_sharded", num_partitions=8), _devices(8), range(8, 16)),
        (dict(preset="data", num_partitions=4), _devices(16), range(4, 8)),
        (dict(preset="mixed", num_partitions=2), _devices(8, slices=2), range(8, 16)),
        # Devices of two processes by turns.
        (dict(preset="mixed"), tuple(_Device(i, i % 2) for i in range(4)), [4, 5, 6, 7, 12, 13, 14, 15]),
    ],
)
def test_a_process_needs_the_rows_of_its_devices(arguments, devices, expected):
    np.testing.assert_array_equal(Partitioner(devices=devices, **arguments).rows(16), list(expected))


def test_rows_that_do_not_divide_are_refused():
    sentence = (
        "A batch has 6 rows, which do not divide over the 4 devices of mesh axis ('replica', 'data'); choose a batch "
        "size that is a multiple of it, or more num_partitions."
    )
    partitioner = Partitioner(num_partitions=2, devices=EIGHT)
    batch = {"x": np.zeros((6, 2))}
    for refused in (
        partitioner.check_rows,
        partitioner.rows,
        lambda _: partitioner.place_batch(batch),
        lambda rows: partitioner.place_batch({"x": np.zeros((3, 2))}, range(3), rows),
    ):
        with pytest.raises(ValueError) as error:
            refused(6)
        assert str(error.value) == sentence
    partitioner.check_rows(8)


_TWO_PROCESSES = """
import json, sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from promot_t5x.partitioning.partitioner import Partitioner

first, second = jax.devices()[:2], jax.devices()[2:]
by_turns = tuple(device for pair in zip(first, second) for device in pair)
whole, report = np.arange(24).reshape(8, 3), []
for partitioner in (Partitioner(), Partitioner("data"), Partitioner(num_partitions=2), Partitioner(num_partitions=4),
                    Partitioner(devices=by_turns), Partitioner(num_slices=2)):
    rows = partitioner.rows(8)
    placed = partitioner.place_batch({"x": whole[rows]}, rows, 8)["x"]
    assert placed.shape == whole.shape and placed.sharding == partitioner.batch_sharding()
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])
    report.append(rows.tolist())
print(json.dumps(report))
"""


def test_two_processes_place_what_each_has_of_a_batch():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO_PROCESSES, address, str(index)],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": ROOT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], [error[-2000:] for _, error in outputs]
    halves, every, by_turns = [[0, 1, 2, 3], [4, 5, 6, 7]], list(range(8)), [[0, 1, 4, 5], [2, 3, 6, 7]]
    for index, (output, _) in enumerate(outputs):
        half, turn = halves[index], by_turns[index]
        assert json.loads(output.splitlines()[-1]) == [half, half, half, every, turn, half]
