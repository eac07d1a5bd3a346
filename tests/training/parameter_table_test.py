"""promot_t5x.training.parameter_table against counts worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import parameter_table, stages

CONFIG = T5Config(
    vocab_size=32, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=2, num_decoder_layers=1
)
ATTENTION, MLP, RELATIVE = 4 * 8 * 8, 3 * 8 * 16, 2 * 32
ENCODER = 2 * (ATTENTION + MLP + 2 * 8) + 8 + RELATIVE
DECODER = 2 * ATTENTION + MLP + 3 * 8 + 8 + RELATIVE
EMBEDDING = 32 * 8
PROMPT = 5 * 8


def _table(stage, **changes):
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, prompt_length=5, **changes))
    lines = parameter_table.parameter_table(
        model.abstract_params(), stages.stage(stage), Partitioner(), model
    ).splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines[:-1]}, lines[-1]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_counts_and_states(scan_layers):
    rows, total = _table("prompt_tuning", scan_layers=scan_layers)
    assert list(rows.pop("group")) == ["stage", "parameters", "MiB", "dtype", "sharding"]
    states_and_counts = {group: (row[0], int(row[1].replace(",", ""))) for group, row in rows.items()}
    assert states_and_counts == {
        "encoder": ("frozen", ENCODER),
        "decoder": ("frozen", DECODER),
        "decoder/logits_dense": ("frozen", EMBEDDING),
        "token_embedder": ("frozen", EMBEDDING),
        "soft_prompt": ("trained", PROMPT),
    }
    weights = ENCODER + DECODER + 2 * EMBEDDING
    assert total == f"stage prompt_tuning: {PROMPT:,} parameters train, {weights:,} are frozen"
    _, total = _table("model_tuning", scan_layers=scan_layers)
    assert total == f"stage model_tuning: {weights:,} parameters train, {PROMPT:,} are frozen"


def test_bytes_dtype_and_sharding():
    rows, _ = _table("joint_tuning", vocab_size=2**16, param_dtype="bfloat16")
    assert rows["token_embedder"] == ["trained", f"{2**19:,}", "1.00", "bfloat16", "modelxdata"]
    assert rows["soft_prompt"][-1] == "-x-xdata"


def test_groups_are_what_the_table_shows():
    config = dataclasses.replace(CONFIG, vocab_size=64, prompt_length=5, scan_layers=True)
    model, stage = EncoderDecoderModel(config), stages.stage("prompt_tuning")
    params = model.abstract_params()
    groups = parameter_table.parameter_groups(params, stage, Partitioner(), model)
    assert {group.name: group for group in groups}["encoder"] == parameter_table.Group(
        name="encoder",
        state="frozen",
        count=ENCODER,
        bytes=4 * ENCODER,
        dtype="float32",
        sharding="-xdataxmodel",  # of the largest leaf, the MLP's, its layers first
    )
    assert sum(group.count for group in groups) == ENCODER + DECODER + 2 * 64 * 8 + PROMPT
    assert [group.name for group in groups if group.state == "trained"] == ["soft_prompt"]
    table = parameter_table.parameter_table(params, stage, Partitioner(), model).splitlines()
    assert [line.split()[0] for line in table[1:-1]] == [group.name for group in groups]


def test_groups_of_two_dtypes_and_of_another_preset():
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, prompt_length=5))
    params = model.abstract_params()
    params["decoder"]["decoder_norm"]["scale"] = jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    partitioner = Partitioner("fully_sharded")
    groups = parameter_table.parameter_groups(params, stages.stage("model_tuning"), partitioner, model)
    by_name = {group.name: group for group in groups}
    assert (by_name["decoder"].dtype, by_name["decoder"].bytes) == ("bfloat16,float32", 4 * DECODER - 2 * 8)
    assert (by_name["decoder"].state, by_name["soft_prompt"].state) == ("trained", "frozen")
    assert by_name["token_embedder"].sharding == "-xdata+model"


def test_a_part_that_trains_in_part_is_two_groups():
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, prompt_length=5))
    stage = stages.Stage("upper", trainable=("encoder/layers_1", "decoder"))
    groups = parameter_table.parameter_groups(model.abstract_params(), stage, Partitioner(), model)
    layer = ATTENTION + MLP + 2 * 8
    assert {group.name: (group.state, group.count) for group in groups} == {
        "encoder, trained": ("trained", layer),
        "encoder, frozen": ("frozen", ENCODER - layer),
        "decoder": ("trained", DECODER),
        "decoder/logits_dense": ("trained", EMBEDDING),
        "token_embedder": ("frozen", EMBEDDING),
        "soft_prompt": ("frozen", PROMPT),
    }
