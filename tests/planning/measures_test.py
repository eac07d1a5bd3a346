"""promot_t5x.planning.measures: sums and bounds worked out by hand, the compiler's refusals, links of a torus."""

import dataclasses
import itertools
import random

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import DecodingConfig, EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.planning import chips, measures, programs
from promot_t5x.planning.hlo_costs import Collective
from promot_t5x.planning.measures import GIB, Measured
from tests.absent_devices import Tpu

FITS = Measured(
    arguments=3 * GIB,
    temporaries=2 * GIB,
    peak=4 * GIB,
    hbm=16 * GIB,
    fits=True,
    largest=(),
    devices=8,
    flops_jaxpr=8e12,
    flops_hlo=8e12,
    collectives=(
        Collective("all-gather", "data", 10, 1e9),
        Collective("all-reduce", "data", 1, 1e6),
        Collective("all-reduce", "model", 20, 4e9),
        Collective("ring reduce-scatter", "data+model", 1, 2e6),
        Collective("ring all-gather", "replica+data", 1, 5e8),
        Collective("reduce-scatter", "replica", 1, 4e6),
        Collective("all-reduce", "none", 1, 0.0),
    ),
    compute_seconds=0.25,
    collective_seconds=0.5,
)


def test_sums():
    assert FITS.needed == 5 * GIB
    assert dataclasses.replace(FITS, peak=6 * GIB).needed == 6 * GIB
    assert dataclasses.replace(FITS, temporaries=None, peak=2 * GIB).needed == 3 * GIB
    assert FITS.bound_seconds == 0.5 and dataclasses.replace(FITS, collective_seconds=0.1).bound_seconds == 0.25
    assert FITS.traffic == 1e9 + 1e6 + 4e9 + 2e6 + 5e8 + 4e6
    assert FITS.data_axis_reductions == 1e6 + 2e6 + 4e6


# What the compiler says where a program does not fit

REFUSALS = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (800.00G) exceeds "
    "available HBM (15.75G).": (800 * GIB, ()),
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 35.21G of 15.75G "
    "hbm. Exceeded hbm capacity by 19.46G.": (int(35.21 * GIB), ()),
    "Used 900.5M of 100.0M hbm.": (int(900.5 * 2**20), ()),
    "the total memory required for HLO temporaries (1.25T) exceeds available HBM (95.74G).": (int(1.25 * 2**40), ()),
    "RESOURCE_EXHAUSTED: something else": (0, ()),
    """\
RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded hbm capacity by 4.25G.

Total hbm usage >= 20.26G:
    reserved        263.00M
    program          20.00G
    arguments            0B

Program hbm requirement 20.00G:
    HLO temp         20.00G (100.0% utilization: Unpadded (20.00G) Padded (20.00G), 0.0% fragmentation (0B))

  Largest program allocations in hbm:

  1. Size: 12.00G
     Operator: op_name="jit(train_step)/jvp(Transformer.hidden)/encoder/mul" source_file="/a/b.py" source_line=3
     Shape: f32[24,64,612,4096]{3,2,1,0:T(8,128)}
     Unpadded size: 12.00G
     XLA label: fusion.1 = fusion(copy.1), kind=kLoop, calls=fused_computation.1
     Allocation type: HLO temp
     ==========================

  2. Size: 4.50G
     Shape: f32[24,64,612,1024]{3,2,1,0:T(8,128)}
     Unpadded size: 4.50G
     XLA label: copy.7 = copy(get-tuple-element.4)
     Allocation type: HLO temp
     ==========================

  3. Size: 3.00G
     Operator: op_name="jit(train_step)/transpose" source_file="/a/b.py" source_line=4
     Shape: f32[24,64,612,512]{3,2,1,0:T(8,128)}
     Unpadded size: 3.00G
     Allocation type: HLO temp
     ==========================

  4. Size: 2.00K
     Operator: op_name="jit(train_step)/fourth"
     ==========================

  5. Size: 1.00K
     Operator: op_name="jit(train_step)/fifth"
""": (
        20 * GIB,
        (
            "12.00G  jit(train_step)/jvp(Transformer.hidden)/encoder/mul",
            "4.50G  f32[24,64,612,1024]{3,2,1,0:T(8,128)}",
            "3.00G  jit(train_step)/transpose",
        ),
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_would_be_needed(message):
    needed, largest = measures._needed(message)
    assert (needed, largest) == REFUSALS[message]


class _Traced:
    """A program of a batch of 4 numbers that the compiler refuses, or never sees."""

    def __init__(self, refusal, bytes_each=4):
        self.refusal, self.larger, self.compiled = refusal, None, False
        self.partitioner = Partitioner(devices=tuple(jax.devices()[:1]))
        self.arguments = {"x": jax.ShapeDtypeStruct((4, bytes_each // 4), np.float32)}
        self.traced = jax.jit(lambda x: x["x"] @ x["x"].T).trace(self.arguments)

    def compile(self):
        self.compiled = True
        raise self.refusal


def test_a_program_that_the_compiler_refuses():
    topology = chips.topology("v5e:2x2")
    refused = _Traced(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 35.50G of 15.75G hbm."))
    measured = measures.measure(refused, topology)  # pyright: ignore[reportArgumentType]
    assert (measured.fits, measured.arguments, measured.temporaries) == (False, 16, None)
    assert measured.needed == int(35.5 * GIB)
    assert (measured.flops_jaxpr, measured.flops_hlo, measured.hbm) == (2 * 4 * 4, None, int(15.75 * GIB))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        measures.measure(_Traced(jax.errors.JaxRuntimeError("INTERNAL: a bug")), topology)  # pyright: ignore


def test_arguments_that_do_not_fit_are_not_compiled():
    """The compiler would look for minutes for what it could move elsewhere."""
    too_large = _Traced(AssertionError("compiled"), bytes_each=4 * GIB)
    measured = measures.measure(too_large, chips.topology("v5e:2x2"))  # pyright: ignore[reportArgumentType]
    assert not too_large.compiled
    assert (measured.fits, measured.arguments, measured.needed, measured.largest) == (False, 16 * GIB, 16 * GIB, ())


def test_rounds_of_a_decode_are_counted_in_the_jaxpr():
    traced = _Traced(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"))

    def function(x):
        return jax.lax.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + 1, s[1] @ s[1]), (0, x["x"] @ x["x"].T))

    traced.traced = jax.jit(function).trace(traced.arguments)
    measured = measures.measure(traced, chips.topology("v5e:2x2"), unknown_trips=5)  # pyright: ignore
    assert measured.flops_jaxpr == 2 * 4 * 4 + 5 * 2 * 4 * 4 * 4


# Links


def _mesh(torus, sizes, cores=1):
    """Neighbours on the torus one after the other, the last dimension first."""
    devices = [Tpu(place[:3], place[3]) for place in itertools.product(*map(range, torus), range(cores))]
    return Mesh(np.array(devices, object).reshape(sizes), ("replica", "data", "model"))


LINK = {"v3": 82e9, "v4": 50e9, "v5e": 50e9, "v5p": 100e9, "v6e": 100e9}
BANDWIDTHS = [
    # One dimension of a cube of 3-D chips is a ring: a device hears from both sides.
    ("v4:4x4x4", (1, 16, 4), "model", 2 * 50e9),
    ("v4:4x4x4", (1, 16, 4), "data", 4 * 50e9),
    ("v4:4x4x4", (1, 16, 4), "data+model", 6 * 50e9),
    ("v4:4x4x4", (1, 64, 1), "data", 6 * 50e9),
    ("v4:2x2x4", (1, 4, 4), "model", 2 * 50e9),
    ("v4:2x2x4", (1, 4, 4), "data", 2 * 50e9),  # two dimensions without a ring
    ("v5p:4x4x8", (1, 16, 8), "model", 2 * 100e9),
    # Slices of 2-D chips are rings only where they are whole pods.
    ("v5e:4x8", (1, 4, 8), "model", 50e9),
    ("v5e:4x8", (1, 4, 8), "data+model", 2 * 50e9),
    ("v5e:16x16", (1, 16, 16), "model", 2 * 50e9),
    ("v6e:2x4", (1, 2, 4), "data", 100e9),
    # Where nobody differs there is nothing to send; the number must not divide by zero.
    ("v5e:2x2", (1, 2, 2), "none", 50e9),
]


@pytest.mark.parametrize("name,sizes,axes,expected", BANDWIDTHS)
def test_bandwidth(name, sizes, axes, expected):
    topology = chips.topology(name)
    torus = (*topology.shape, 1)[:3]
    assert topology.chip.link_bandwidth == LINK[topology.chip.name]
    assert measures._bandwidth(axes, _mesh(torus, sizes), topology) == expected


def test_bandwidth_of_chips_of_two_devices():
    """Both share the chip's links; within a chip too, the link to a neighbour is what counts."""
    topology = chips.topology("v3:4x4")
    mesh = _mesh((4, 4, 1), (1, 16, 2), cores=2)
    assert measures._bandwidth("model", mesh, topology) == 82e9 / 2
    assert measures._bandwidth("data", mesh, topology) == 2 * 82e9 / 2


def test_bandwidth_between_slices():
    topology = chips.topology("v5e:2x2", 2)
    mesh = Mesh(np.array([Tpu((0, i, 0)) for i in range(8)], object).reshape(2, 2, 2), ("replica", "data", "model"))
    for axes in ("replica", "replica+data"):
        assert measures._bandwidth(axes, mesh, topology) == topology.chip.dcn_bandwidth


# What the compiler measures


@pytest.mark.tpu_compiler
def test_a_compiled_program():
    """Everything but the program is a closed form: its arguments, its operations and its sums over the batch."""
    topology = chips.topology("v5e:2x2")
    partitioner = Partitioner("data", devices=topology.devices())
    model = EncoderDecoderModel(T5Config(256, 128, 2, 64, 256, 1, 1, dtype="bfloat16", scan_layers=False))
    evaluation = programs.Answering(model, {"inputs": 128, "targets": 128}, 4, partitioner)
    measured = measures.measure(programs.scoring(evaluation), topology)
    d, f, vocab, length, choices = 128, 256, 256, 128, 4
    parameters = 2 * (4 * d * d + 3 * d * f) + 4 * d * d + 2 * vocab * d + (2 + 3 + 2) * d + 2 * 2 * 32
    arguments = 4 * parameters + 4 * (1 + 3 * choices) * length + 4  # one row of the batch, and its number
    # XLA leaves out what it does not use: scoring does not look at the number of a row.
    assert arguments - 4 <= measured.arguments <= 1.05 * arguments
    encoder, decoder = 4 * d * d + 3 * d * f + 2 * d * d, 6 * d * d + 3 * d * f  # keys and values are of the input
    products = 2 * length * (encoder + choices * (decoder + d * vocab)) + (1 + 2 * choices) * 4 * length * length * d
    assert measured.flops_jaxpr == 4 * products
    assert measured.flops_hlo == pytest.approx(4 * products, rel=0.01)
    assert measured.compute_seconds == pytest.approx(products / 197e12, rel=0.01)
    assert measured.fits and measured.devices == 4 and measured.weight_gradient_flops == 0
    # Each device has its own rows: nothing but the scores is exchanged.
    assert measured.traffic < 100 and measured.data_axis_reductions < 100
    assert measured.temporaries is not None and measured.arguments <= measured.needed < 2**25 < measured.hbm


@pytest.mark.tpu_compiler
def test_a_compiled_decode():
    """Its loop may end early, so that its rounds are not in the program: they are what the caller says."""
    topology = chips.topology("v5e:2x2")
    partitioner = Partitioner("data", devices=topology.devices())
    model = EncoderDecoderModel(T5Config(256, 128, 2, 64, 256, 1, 1), decoding=DecodingConfig("greedy"))
    evaluation = programs.Answering(model, {"inputs": 128, "targets": 128}, 4 * 128, partitioner)
    measured, twice = (measures.measure(programs.decoding(evaluation), topology, trips) for trips in (128, 256))
    rows, d, f, vocab = 4 * 128, 128, 256, 256
    # The decoder's weights but for the encoder's keys and values, and the logits; attention to both sides.
    weights = 2 * rows * (6 * d * d + 3 * d * f + d * vocab)
    attention = 2 * rows * 2 * d * (128 + 128)
    assert twice.flops_jaxpr - measured.flops_jaxpr == 128 * (weights + attention)
    assert twice.flops_hlo is not None and measured.flops_hlo is not None
    # Products of single vectors the compiler may write as multiplications and sums, which are not counted.
    assert 128 * weights <= twice.flops_hlo - measured.flops_hlo <= 128 * (weights + attention)
    assert 0.75 < measured.flops_hlo / measured.flops_jaxpr <= 1


@pytest.mark.tpu_compiler
def test_activations_that_do_not_fit():
    """Arguments fit, activations do not: the compiler's message is read, not raised."""
    topology = chips.topology("v5e:2x2")
    model = EncoderDecoderModel(T5Config(256, 128, 2, 64, 256, 1, 1, dtype="bfloat16"))
    evaluation = programs.Answering(
        model, {"inputs": 8192, "targets": 128}, 4 * 256, Partitioner("data", devices=topology.devices())
    )
    measured = measures.measure(programs.scoring(evaluation), topology)
    assert not measured.fits and measured.temporaries is None and measured.flops_hlo is None
    assert measured.needed > measured.hbm > 100 * measured.arguments


def test_the_order_of_devices_does_not_matter_to_a_cube():
    topology = chips.topology("v4:4x4x4")
    places = list(itertools.product(range(4), repeat=3))
    random.Random(0).shuffle(places)
    mesh = Mesh(np.array([Tpu(place) for place in places], object).reshape(1, 64, 1), ("replica", "data", "model"))
    assert measures._bandwidth("data", mesh, topology) == 6 * 50e9
