"""Keys of config.json and generation_config.json that change results: adopted, or refused by name."""

import json

import pytest
from etils import epath

from promot_t5x.checkpoints.huggingface import config_file
from promot_t5x.models.architecture import T5Config

FILE = epath.Path("config.json")
VALUES = config_file.values_of(T5Config(), "mt5", "float32")


@pytest.mark.parametrize(
    "changed,expected",
    [
        (dict(feed_forward_proj="gated-gelu_new"), ("gelu", "linear")),
        (dict(feed_forward_proj="gated-gelu_pytorch_tanh"), ("gelu", "linear")),
        (dict(feed_forward_proj="gated-swish"), ("silu", "linear")),
        (dict(feed_forward_proj=None), ("gelu", "linear")),
        (dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", is_gated_act=True), ("gelu", "linear")),
        (dict(feed_forward_proj="gated-gelu", dense_act_fn="relu"), ("relu", "linear")),
        (dict(feed_forward_proj="gated-relu", is_gated_act=False), ("relu",)),
    ],
)
def test_the_layer_that_transformers_builds_is_read(changed, expected):
    assert config_file.fields(VALUES | changed, FILE)["mlp_activations"] == expected


@pytest.mark.parametrize(
    "key,value",
    [
        ("eos_token_id", 2),
        ("eos_token_id", [1, 2]),
        ("eos_token_id", True),
        ("pad_token_id", 1),
        ("pad_token_id", False),
        ("decoder_start_token_id", 250004),
        ("forced_bos_token_id", 250004),
        ("tie_encoder_decoder", True),
        ("is_encoder_decoder", False),
        ("is_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"load_in_8bit": True}),
        ("auto_map", {"AutoModelForSeq2SeqLM": "modeling.LongT5"}),
        ("tie_word_embeddings", "false"),
        ("scale_decoder_outputs", 0),
    ],
)
def test_keys_that_change_results_are_not_passed_over(key, value):
    with pytest.raises(ValueError, match=f"{key} is .* in config.json, expected"):
        config_file.fields(VALUES | {key: value}, FILE)


@pytest.mark.parametrize("value", [1, [1], None])
def test_the_networks_own_end_is_read(value):
    assert config_file.fields(VALUES | {"eos_token_id": value}, FILE)["vocab_size"] == 250112


def test_without_a_start_transformers_takes_another_id():
    with pytest.raises(ValueError, match="decoder_start_token_id is 5 in config.json, expected 0"):
        config_file.fields(VALUES | {"decoder_start_token_id": None, "bos_token_id": 5}, FILE)


@pytest.mark.parametrize("text", ['{"eos_token_id": 2}', '{"forced_bos_token_id": 7}', "{", "[]", "[" * 10**5])
def test_ids_of_generation_are_not_passed_over(text, tmp_path):
    file = epath.Path(tmp_path) / "generation_config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="in .*generation_config.json, expected|generation_config.json is damaged"):
        config_file.check_generation(file)
    file.write_text(json.dumps(config_file.generation_values() | {"num_beams": 4}))
    config_file.check_generation(file)
