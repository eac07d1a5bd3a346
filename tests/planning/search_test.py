"""promot_t5x.planning.search: what is advised, what is tried, and plans from plain Python."""

import dataclasses

import pytest

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import PRESETS, Partitioner
from promot_t5x.planning import chips, measures, programs, search
from promot_t5x.planning.hlo_costs import Collective
from promot_t5x.planning.measures import GIB, Measured
from promot_t5x.training import optimizers
from tests import absent_devices

DEVICES = absent_devices.devices(8)


# What is advised


def _training(stage="prompt_tuning", partitioner=None, batch_size=16, **changes):
    config = {"remat": "none", **{k: v for k, v in changes.items() if k in T5Config.__dataclass_fields__}}
    rest = {k: v for k, v in changes.items() if k not in config}
    model = EncoderDecoderModel(T5Config(64, 16, 4, 8, 32, 1, 1, prompt_length=4, **config))
    partitioner = partitioner or Partitioner(num_partitions=2, devices=DEVICES)
    return programs.Training(
        model, stage, optimizers.adafactor(0.1), {"inputs": 6, "targets": 5}, batch_size, partitioner, **rest
    )


def _flags_of(advice):
    return [line.partition(":")[0] for line in advice]


def test_advice_costs_little_first():
    assert search.training_advice(_training()) == [
        "--gin.T5Config.remat=full: recompute activations instead of keeping them (now none)",
        "--gin.NUM_MICROBATCHES=2: the same update, fewer rows at once",
        "--gin.FROZEN_WEIGHTS_DTYPE=bfloat16: frozen weights in half the memory",
        "--search: another mesh or preset",
        "a bigger slice",
    ]
    others = ["--search", "a bigger slice"]
    assert _flags_of(search.training_advice(_training("model_tuning", remat="full", num_microbatches=2))) == [
        "--gin.NUM_MICROBATCHES=4",
        *others,
    ]
    done = _training(remat="full", num_microbatches=4, frozen_weights_dtype="bfloat16")
    assert _flags_of(search.training_advice(done)) == others


def test_advised_microbatches_are_possible():
    odd = _training("model_tuning", batch_size=36, remat="full")
    assert _flags_of(search.training_advice(odd))[0] == "--gin.NUM_MICROBATCHES=3"
    programs.training_step(dataclasses.replace(odd, num_microbatches=3))
    with pytest.raises(ValueError, match="^A batch has 18 rows, which do not divide over the 4 devices"):
        programs.training_step(dataclasses.replace(odd, num_microbatches=2))
    # Where the batch is shared out over all devices, each has a row already.
    everywhere = Partitioner("fully_sharded", 2, devices=DEVICES)
    advice = search.training_advice(_training("model_tuning", everywhere, batch_size=8, remat="full"))
    assert _flags_of(advice) == ["--search", "a bigger slice"]


# What is searched


def test_candidates_are_all_that_divide():
    own = Partitioner("fully_sharded", devices=DEVICES, rules=(("heads", None),))
    training = _training("prompt_tuning", own, batch_size=8)

    def divides(preset, model):
        """Every cut dimension of this network, by hand: D 16, joined heads 32, F 32, V 64, heads 4 left whole."""
        if preset in ("mixed", "tensor"):
            data = 8 // model
            return (
                8 % data == 0 and all(size % model == 0 for size in (32, 64)) and (preset == "tensor" or 16 % data == 0)
            )
        return model == 1 and (preset == "data" or 16 % 8 == 0)

    expected = {(preset, model) for preset in PRESETS for model in (1, 2, 4, 8) if divides(preset, model)}
    candidates = list(search.candidates(training))
    assert {(p.preset, p.num_partitions) for p in candidates} == expected and len(candidates) == len(expected)
    assert all(p.devices == own.devices and p.rules == own.rules for p in candidates)
    # Three heads are not to be cut, and rows must be shared evenly.
    few = _training("prompt_tuning", Partitioner(devices=DEVICES), batch_size=4)
    candidates = {(p.preset, p.num_partitions) for p in search.candidates(few)}
    assert candidates == {(preset, model) for preset in ("mixed", "tensor") for model in (2, 4)}


def _measured(fits=True, seconds=1.0, arguments=GIB, **changes):
    return Measured(
        arguments=arguments,
        temporaries=GIB if fits else None,
        peak=0 if fits else 20 * GIB,
        hbm=int(15.75 * GIB),
        fits=fits,
        largest=(),
        devices=8,
        flops_jaxpr=1e12,
        flops_hlo=1e12 if fits else None,
        collectives=(Collective("all-reduce", "data", 1, 1e6),) if fits else (),
        compute_seconds=seconds if fits else 0.0,
        **changes,
    )


def _untraced(training):
    """In place of a step whose program does not matter."""
    return programs.Traced(None, None, None, training.partitioner)


def test_the_proposed_evaluation_fills_the_memory():
    """32 rows with 1 GiB of temporaries: 0.9 * 16 GiB less 2 GiB of weights have room for 12 times as much."""
    own = _training()
    evaluation = programs.Answering(own.model, own.lengths, 32, own.partitioner)
    one = dataclasses.replace(_measured(arguments=2 * GIB), hbm=16 * GIB)
    assert search.proposed_rows(evaluation, [one]) == 32 * 8
    assert search.proposed_rows(evaluation, [one, dataclasses.replace(one, temporaries=4 * GIB)]) == 32 * 2
    assert search.proposed_rows(evaluation, [dataclasses.replace(one, temporaries=13 * GIB)]) == 32
    assert search.proposed_rows(evaluation, [one, _measured(False)]) is None
    assert search.proposed_rows(evaluation, []) is None


def test_the_fastest_that_fits_comes_first(monkeypatch):
    answers = {("mixed", 1): _measured(seconds=3.0), ("mixed", 2): _measured(seconds=1.0)}
    answers |= {("mixed", 4): _measured(False), ("tensor", 2): _measured(seconds=1.0, arguments=2 * GIB)}

    def measure(traced, topology, unknown_trips=None):
        own = traced.partitioner
        return answers.get((own.preset, own.num_partitions), _measured(seconds=9.0))

    monkeypatch.setattr(measures, "measure", measure)
    monkeypatch.setattr(programs, "training_step", _untraced)
    partitioner = Partitioner(devices=DEVICES)
    ranked = search.search(_training("prompt_tuning", partitioner, batch_size=8), chips.topology("v5e:2x4"))
    names = [(p.preset, p.num_partitions) for p, _ in ranked]
    assert names[:2] == [("mixed", 2), ("tensor", 2)] and names[2] == ("mixed", 1) and names[-1] == ("mixed", 4)


# From plain Python


def test_a_plan_of_one_stage(monkeypatch):
    """The step is the one of its arguments, on devices of the slices; the compiler is left out."""
    measured = []

    def measure(traced, topology, unknown_trips=None):
        measured.append(traced)
        return _measured(fits=False)

    monkeypatch.setattr(measures, "measure", measure)
    devices = (*absent_devices.devices(8, 0), *absent_devices.devices(8, 1))
    monkeypatch.setattr(chips.Topology, "devices", lambda self: devices)
    training = _training(frozen_weights_dtype="bfloat16", num_microbatches=2)
    plan = search.plan_training(
        training.model,
        "prompt_tuning",
        training.optimizer,
        training.lengths,
        32,
        "v5e:2x4",
        slices=2,
        partitioner=Partitioner("tensor", 2),
        num_microbatches=2,
        frozen_weights_dtype="bfloat16",
    )
    partitioner = Partitioner("tensor", 2, devices=devices)
    (traced,) = measured
    expected = programs.training_step(dataclasses.replace(training, batch_size=32, partitioner=partitioner))
    assert traced.partitioner == partitioner and str(traced.traced.jaxpr) == str(expected.traced.jaxpr)
    assert list(plan.stages) == list(plan.groups) == ["prompt_tuning"] and plan.evaluation == {}
    assert str(plan).startswith("2 x v5e:2x4 (v5litepod-8 in Google Cloud, 8 chips), preset tensor, mesh replica 2 x ")
    assert "\n  1. --gin.T5Config.remat=full" in str(plan)


def test_mistakes_of_a_plan_are_sentences():
    own = _training()
    arguments = (own.model, "prompt_tuning", own.optimizer, own.lengths, 8)
    with pytest.raises(ValueError, match=r"a slice of v4 has 3 dimensions"):
        search.plan_training(*arguments, "v4:4x4")
    with pytest.raises(ValueError, match=r"expected at least 1"):
        search.plan_training(*arguments, "v5e:2x2", slices=0)
