"""promot_t5x.planning.programs: no array is made, and the programs are those of training and evaluation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metric_writers
from jax.sharding import PartitionSpec

from promot_t5x.evaluation import answering
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import DecodingConfig, EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.planning import programs
from promot_t5x.training import optimizers, stages, train_step, trainer
from tests import absent_devices

ROWS, T, U, P = 8, 6, 5, 4
CONFIG = T5Config(64, 16, 4, 8, 32, 2, 1, prompt_length=P, dropout_rate=0.1, scan_layers=True)
LENGTHS = {"inputs": T, "targets": U}
BATCH = {
    "encoder_input_tokens": ((ROWS, T), "int32"),
    "decoder_input_tokens": ((ROWS, U), "int32"),
    "decoder_target_tokens": ((ROWS, U), "int32"),
    "decoder_loss_weights": ((ROWS, U), "float32"),
}


def _training(stage, partitioner=None, **changes):
    partitioner = partitioner or Partitioner(num_partitions=2, devices=absent_devices.devices(8))
    optimizer = optimizers.adafactor(0.05)
    return programs.Training(EncoderDecoderModel(CONFIG), stage, optimizer, LENGTHS, ROWS, partitioner, **changes)


def _here():
    return Partitioner(devices=tuple(jax.devices()[:1]))


def _shapes(tree):
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in tree.items()}


@pytest.mark.parametrize("stage", stages.STAGES)
def test_arguments_of_a_step(stage):
    before = {id(array) for array in jax.live_arrays()}
    traced = programs.training_step(_training(stage, frozen_weights_dtype="bfloat16"))
    made = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in made) < 1000, "keys and the like, but no parameters"

    trainable, slots, frozen, batch = traced.arguments
    own, mesh = stages.stage(stage), traced.partitioner.mesh()
    for leaf in jax.tree.leaves(traced.arguments):
        assert isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.mesh == mesh
    prompts = {"soft_prompt_ids": ((ROWS,), "int32")} if own.attaches_prompt else {}
    assert _shapes(batch) == BATCH | prompts
    assert {leaf.sharding.spec for leaf in batch.values()} == {PartitionSpec(("replica", "data"))}

    leaves = {name: leaf for tree in (trainable, frozen) for name, leaf in parameter_names.flatten(tree).items()}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    shapes = parameter_names.flatten(EncoderDecoderModel(CONFIG).abstract_params())
    if not own.attaches_prompt:
        del shapes["soft_prompt/embedding"]
    assert {name: leaf.shape for name, leaf in leaves.items()} == {name: leaf.shape for name, leaf in shapes.items()}
    held = {name for name, leaf in leaves.items() if leaf.dtype == jnp.bfloat16}
    assert held == {name for name in shapes if not own.trains(name) and not name.startswith("soft_prompt")}
    assert {leaf.dtype for leaf in jax.tree.leaves(slots)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    by_hand = {
        "encoder/layers/attention/query/kernel": (None, "data", "model"),
        "encoder/layers/mlp/wo/kernel": (None, "model", "data"),
        "decoder/logits_dense/kernel": ("data", "model"),
        "token_embedder/embedding": ("model", "data"),
        "decoder/decoder_norm/scale": ("data",),
        **({"soft_prompt/embedding": (None, None, "data")} if own.attaches_prompt else {}),
    }
    assert {name: tuple(leaves[name].sharding.spec) for name in by_hand} == by_hand


def _bytes(data, model):
    """Of the parameters on one device, float32, preset mixed: both axes cut matrices, `data` cuts scales."""
    d, joined, f, vocab, heads, buckets = 16, 32, 32, 64, 4, 32
    both = data * model
    attention, mlp, scale = 4 * d * joined // both, 3 * d * f // both, d // data
    encoder = 2 * (attention + mlp + 2 * scale) + scale + heads * buckets // model
    decoder = 1 * (2 * attention + mlp + 3 * scale) + scale + heads * buckets // model
    return {"encoder": 4 * encoder, "decoder": 4 * (decoder + d * vocab // both), "embedding": 4 * d * vocab // both}


def test_bytes_of_a_device():
    training = _training("model_tuning")
    trainable, frozen = programs.parameters(training)
    weights, prompt = sum(_bytes(4, 2).values()), 4 * P * 16 // 4
    assert programs.bytes_per_device(trainable) == weights
    assert programs.bytes_per_device(frozen) == prompt
    arguments = programs.training_step(training).arguments
    assert programs.bytes_per_device(arguments[0]) + programs.bytes_per_device(arguments[2]) == weights + prompt
    # A second moment for each weight; rows and columns that are not factored (one number for each layer's or other
    # leaf), and a counter of either transform for each layer of a stack and for the other leaves.
    assert programs.bytes_per_device(arguments[1]) == weights + 4 * (2 * (2 * 9 + 1 * 14 + 6) + 2 * (2 + 1 + 1))
    assert programs.bytes_per_device(arguments[3]) == ROWS // 4 * 4 * (T + 3 * U + 1)

    tuning = _training("prompt_tuning", frozen_weights_dtype="bfloat16")
    trainable, frozen = programs.parameters(tuning)
    assert (programs.bytes_per_device(trainable), programs.bytes_per_device(frozen)) == (prompt, weights // 2)
    alone = _training("model_tuning", _here())
    assert programs.bytes_per_device(programs.parameters(alone)[0]) == sum(_bytes(1, 1).values())


def test_bytes_of_leaves_of_every_kind():
    mesh = _training("model_tuning").partitioner.mesh()

    def leaf(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, PartitionSpec(*spec)))

    tree = {"cut": leaf((8, 6), jnp.bfloat16, "data", "model"), "whole": leaf((3,), jnp.float32), "none": None}
    tree["by_both"] = leaf((16, 3), jnp.int8, ("data", "model"))
    assert programs.bytes_per_device(tree) == 2 * (8 // 4) * (6 // 2) + 4 * 3 + 16 // 8 * 3
    assert programs.bytes_per_device(jax.ShapeDtypeStruct((5, 7), jnp.float32)) == 4 * 5 * 7
    assert programs.bytes_per_device({}) == 0


def test_a_batch_twice_as_large_is_traced_as_well():
    traced = programs.training_step(_training("prompt_tuning"))
    shapes = [[v.aval.shape for v in jaxpr.invars] for jaxpr in (traced.traced.jaxpr.jaxpr, traced.larger)]
    rows = [{shape[0] for shape in of_one if shape[1:] in ((T,), (U,))} for of_one in shapes]
    assert rows == [{ROWS}, {2 * ROWS}]


def test_a_batch_that_cannot_be_shared():
    training = dataclasses.replace(_training("prompt_tuning"), batch_size=6)
    with pytest.raises(ValueError, match=r"^A batch has 6 rows, which do not divide over the 4 devices"):
        programs.training_step(training)


# What is compiled is what runs


def _random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), tree)


def _rows():
    rng = np.random.default_rng(1)
    targets = rng.integers(2, 64, (ROWS, U)).astype(np.int32)
    return {
        "encoder_input_tokens": rng.integers(2, 64, (ROWS, T)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones((ROWS, U), np.float32),
        "soft_prompt_ids": np.zeros(ROWS, np.int32),
    }


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    "stage,changes",
    [
        ("prompt_tuning", {"frozen_weights_dtype": "bfloat16"}),
        ("model_tuning", {"num_microbatches": 2}),
        ("fine_tuning", {}),
    ],
)
def test_a_step_of_training(stage, changes, monkeypatch):
    """The planned program is that of `trainer.train` to the letter, before XLA sees it."""
    training = _training(stage, _here(), **changes)
    model, partitioner = training.model, training.partitioner
    own, params, batch = stages.stage(stage), _random(model.abstract_params()), _rows()
    params = jax.tree.map(jax.device_put, params, partitioner.shardings(model.logical_axes(), params))
    if not own.attaches_prompt:
        del params["soft_prompt"], batch["soft_prompt_ids"]
    trainable, frozen = stages.partition(params, own)
    frozen = stages.held_in(frozen, training.frozen_weights_dtype)
    optimizer = optimizers.Staged(training.optimizer, own)
    make_step, lowered = train_step.make_step, []

    def recorded(*args):
        def step(*arguments):
            lowered.append(make_step(*args).lower(*arguments).as_text())
            raise _Stop

        return step

    monkeypatch.setattr(trainer, "make_step", recorded)
    with pytest.raises(_Stop):
        trainer.train(
            model,
            optimizer,
            train_step.init_state(optimizer, trainable),
            frozen,
            iter([batch]),
            trainer.LoopConfig(1, num_microbatches=training.num_microbatches),
            partitioner=partitioner,
            batch_size=ROWS,
            save_period=1,
            evaluate=lambda _: None,
            save=lambda *_: None,
            writer=metric_writers.MultiWriter([]),
        )
    monkeypatch.undo()
    traced = programs.training_step(training)
    with partitioner.context():
        planned = traced.traced.lower().as_text()
    assert len(planned.splitlines()) > 500
    assert planned == lowered[0]


def test_programs_of_evaluation():
    model = EncoderDecoderModel(CONFIG, decoding=DecodingConfig("greedy"))
    evaluation = programs.Answering(model, LENGTHS, ROWS, _here())
    params = _random(model.abstract_params())
    del params["soft_prompt"]
    batch, first = {k: jnp.asarray(v) for k, v in _rows().items() if k != "soft_prompt_ids"}, jnp.int32(0)

    scoring = programs.scoring(evaluation)
    choices = {name: array if name.startswith("encoder") else np.stack([array] * 4, 1) for name, array in batch.items()}
    assert _shapes(scoring.arguments[1]) == _shapes(choices)
    with evaluation.partitioner.context():
        scores = answering.score(model, params, choices, first)
    np.testing.assert_array_equal(scoring.compile()(params, choices, first), scores)
    decoding = programs.decoding(evaluation)
    features = ("encoder_input_tokens", "decoder_input_tokens")
    assert _shapes(decoding.arguments[1]) == {name: BATCH[name] for name in features}
    batch = {name: batch[name] for name in features}
    answers = decoding.compile()(params, batch, first)
    with evaluation.partitioner.context():
        np.testing.assert_array_equal(answers, answering.predict(model, params, batch, first))
    assert answers.shape == (ROWS, U) and math.prod(answers.shape) > np.sum(np.asarray(answers) == 0)
    for traced in (scoring, decoding):
        assert traced.larger is None
        assert not any(name.startswith("soft_prompt") for name in parameter_names.flatten(traced.arguments[0]))
