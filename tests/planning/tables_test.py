"""promot_t5x.planning.tables: what is printed and written of plans put together by hand."""

import dataclasses
import json
import re

import jax
import pytest

from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.planning import chips, tables
from promot_t5x.planning.hlo_costs import Collective
from promot_t5x.planning.measures import GIB, Measured
from promot_t5x.training.parameter_table import Group
from tests import absent_devices

PROMPT_TUNING = Measured(
    arguments=int(1.5 * GIB),
    temporaries=int(0.5 * GIB),
    peak=int(1.75 * GIB),
    hbm=int(30.75 * GIB),
    fits=True,
    largest=(),
    devices=64,
    flops_jaxpr=1.6e15,
    flops_hlo=1.584e15,
    weight_gradient_flops=0.0,
    collectives=(
        Collective("all-gather", "data", 1234, 2.5e9),
        Collective("all-reduce", "data", 3, 1.5e6),
        Collective("all-to-all", "model", 1, 9999.0),
    ),
    compute_seconds=0.09,
    collective_seconds=0.025,
)
TOO_LARGE = Measured(
    arguments=2 * GIB,
    temporaries=None,
    peak=40 * GIB,
    hbm=int(30.75 * GIB),
    fits=False,
    largest=("12.00G  jit(train_step)/mul", "4.50G  jit(train_step)/exp"),
    devices=64,
    flops_jaxpr=2.4e15,
    weight_gradient_flops=0.8e15,
)
GROUPS = [
    Group("encoder", "frozen", 5_000_000_000, 20_000_000_000, "float32", "-xdataxmodel"),
    Group("soft_prompt", "trained", 409_600, 1_638_400, "float32", "-x-xdata"),
]


def _partitioner(count=1, **changes):
    return Partitioner(devices=tuple(jax.devices()[:count]), **changes)


def _plan(**changes):
    trained = [dataclasses.replace(GROUPS[0], state="trained"), dataclasses.replace(GROUPS[1], state="frozen")]
    plan = tables.Plan(
        topology=chips.topology("v4:4x4x4"),
        partitioner=_partitioner(),
        groups={"prompt_tuning": GROUPS, "model_tuning": trained},
        stages={"prompt_tuning": PROMPT_TUNING, "model_tuning": TOO_LARGE},
        evaluation={"scoring": dataclasses.replace(PROMPT_TUNING, collectives=())},
        advice={"model_tuning": ["--gin.T5Config.remat=full: less memory", "a bigger slice"]},
    )
    return dataclasses.replace(plan, **changes)


def _rows(text, head):
    """The cells of the table that begins with a head, by the first cell of each line."""
    block = next(block for block in text.split("\n\n") if head in block)
    lines = block[block.index(head) :].splitlines()
    cells = [re.split(r" {2,}", line) for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_the_text_of_a_plan():
    text = tables.text(_plan())
    assert text.startswith("v4:4x4x4 (v4-128 in Google Cloud, 64 chips), preset mixed, mesh data 1 x model 1\n\n")
    assert _rows(text, "parameters ") == {
        "parameters": ["count", "total GiB", "sharding", "prompt_tuning", "model_tuning"],
        "encoder": ["5,000,000,000", "18.63", "-xdataxmodel", "frozen float32", "trained float32"],
        "soft_prompt": ["409,600", "0.00", "-x-xdata", "trained float32", "frozen float32"],
    }
    assert _rows(text, "GiB per device") == {
        "GiB per device": ["arguments", "temporaries", "sum", "peak", "HBM", "fits"],
        "prompt_tuning": ["1.50", "0.50", "2.00", "1.75", "30.75", "yes"],
        "model_tuning": ["2.00", "-", "-", "40.00", "30.75", "NO"],
        "scoring": ["1.50", "0.50", "2.00", "1.75", "30.75", "yes"],
    }
    heads = ["FLOPs jaxpr", "FLOPs HLO", "ratio", "weight gradients", "compute s", "traffic s", "bound s"]
    assert _rows(text, "per step") == {
        "per step": heads,
        "prompt_tuning": ["1.6e+15", "1.584e+15", "0.990", "0", "0.090", "0.025", "0.090"],
        "model_tuning": ["2.4e+15", "-", "-", "8e+14", "-", "-", "-"],
        "scoring": ["1.6e+15", "1.584e+15", "0.990", "0", "0.090", "0.025", "0.090"],
    }
    assert "Traffic of model_tuning" not in text and "Traffic of scoring" in text
    assert _rows(text, "kind ") == {
        "kind": ["mesh axes", "times", "MB"],
        "all-gather": ["data", "1,234", "2,500.00"],
        "all-reduce": ["data", "3", "1.50"],  # what is less than ten kilobytes is in the sum alone
        "all": ["2,501.51"],
        "sums over data": ["1.50"],
    }
    assert (
        "model_tuning does not fit: 40.00 GiB needed, 30.75 GiB available\n"
        "  largest: 12.00G  jit(train_step)/mul\n"
        "  largest: 4.50G  jit(train_step)/exp\n"
        "  1. --gin.T5Config.remat=full: less memory\n"
        "  2. a bigger slice\n"
    ) in text
    assert not re.search(r" $", text, re.MULTILINE) and max(map(len, text.splitlines())) <= 120


def test_a_refusal_that_does_not_say_how_much():
    unsaid = dataclasses.replace(TOO_LARGE, peak=0, largest=())
    text = tables.text(_plan(stages={"model_tuning": unsaid}))
    assert "model_tuning does not fit into 30.75 GiB\n  1. --gin" in text
    assert _rows(text, "GiB per device")["model_tuning"] == ["2.00", "-", "-", "-", "30.75", "NO"]


def test_stages_with_different_parameters():
    """Standard fine-tuning has no prompt, but the other stages have."""
    text = tables.text(_plan(groups={"fine_tuning": GROUPS[:1], "prompt_tuning": GROUPS}))
    assert _rows(text, "parameters ")["soft_prompt"][-2:] == ["-", "trained float32"]


def test_names_of_meshes():
    assert tables.mesh_name(_partitioner(preset="data")) == "preset data, mesh data 1 x model 1"
    devices = (*absent_devices.devices(4, 0), *absent_devices.devices(4, 1))
    partitioner = Partitioner("tensor", 2, devices=devices)
    assert tables.mesh_name(partitioner) == "preset tensor, mesh replica 2 x data 2 x model 2"


STAGE_KEYS = {
    "arguments_gib",
    "temporaries_gib",
    "peak_gib",
    "hbm_gib",
    "fits",
    "flops_jaxpr",
    "flops_hlo",
    "weight_gradient_flops",
    "data_axis_reduction_bytes",
    "traffic_bytes",
    "ideal_step_seconds",
}


def _strict(value):
    """What a strict reader reads of a value: no NaN, no infinity, only strings as keys."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(json.dumps(value, allow_nan=False), parse_constant=refuse)


def test_the_json_of_a_plan():
    written = tables.as_json(_plan())
    parsed = _strict(written)
    assert parsed["topology"] == "v4:4x4x4" and parsed["cloud_name"] == "v4-128" and parsed["slices"] == 1
    assert parsed["mesh"] == {"preset": "mixed", "replica": 1, "data": 1, "model": 1}
    assert parsed["parameters"]["count"] == 5_000_409_600
    assert parsed["parameters"]["groups"]["model_tuning"][1] == {
        "name": "soft_prompt",
        "state": "frozen",
        "count": 409_600,
        "bytes": 1_638_400,
        "dtype": "float32",
        "sharding": "-x-xdata",
    }
    fits, too_large = parsed["stages"]["prompt_tuning"], parsed["stages"]["model_tuning"]
    assert STAGE_KEYS <= set(fits) == set(too_large) == set(parsed["evaluation"]["scoring"])
    assert {key: fits[key] for key in STAGE_KEYS} == {
        "arguments_gib": 1.5,
        "temporaries_gib": 0.5,
        "peak_gib": 1.75,
        "hbm_gib": 30.75,
        "fits": True,
        "flops_jaxpr": 1.6e15,
        "flops_hlo": 1.584e15,
        "weight_gradient_flops": 0.0,
        "data_axis_reduction_bytes": 1.5e6,
        "traffic_bytes": 2.5e9 + 1.5e6 + 9999,
        "ideal_step_seconds": 0.09,
    }
    assert fits["collectives"][0] == {"kind": "all-gather", "axes": "data", "count": 1234, "bytes": 2.5e9}
    assert {key: too_large[key] for key in STAGE_KEYS} == {
        "arguments_gib": 2.0,
        "temporaries_gib": None,
        "peak_gib": 40.0,
        "hbm_gib": 30.75,
        "fits": False,
        "flops_jaxpr": 2.4e15,
        "flops_hlo": None,
        "weight_gradient_flops": 0.8e15,
        "data_axis_reduction_bytes": None,
        "traffic_bytes": None,
        "ideal_step_seconds": None,
    }


@pytest.mark.parametrize("best_first", [True, False])
def test_a_comparison(best_first):
    candidates = [(_partitioner(preset="tensor"), PROMPT_TUNING), (_partitioner(preset="data"), TOO_LARGE)]
    candidates = candidates if best_first else candidates[::-1]
    rows = _rows(tables.comparison(candidates), "preset and mesh")
    assert list(rows) == ["preset and mesh"] + [tables.mesh_name(partitioner) for partitioner, _ in candidates]
    assert rows["preset tensor, mesh data 1 x model 1"] == ["2.00", "yes", "0.090", "0.025", "0.090"]
    assert rows["preset data, mesh data 1 x model 1"] == ["40.00", "NO", "-", "-", "-"]
    line = _strict(tables.candidate_json(*candidates[0]))
    assert line["mesh"]["preset"] == candidates[0][0].preset and STAGE_KEYS <= set(line)
