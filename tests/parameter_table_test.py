"""promot_t5x.parameter_table against counts worked out by hand."""

import dataclasses

import pytest

from promot_t5x import parameter_table, stages
from promot_t5x.architecture import T5Config
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner

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
    found = {group: (row[0], int(row[1].replace(",", ""))) for group, row in rows.items()}
    assert found == {
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
