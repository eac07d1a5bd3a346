"""promot_t5x.checkpoints.networks: what metadata say about a network, and what is refused."""

import dataclasses
import json

import pytest

from promot_t5x.checkpoints import networks
from promot_t5x.models.architecture import T5Config, function_fields

CONFIG = T5Config(
    vocab_size=384,
    mlp_activations=("silu",),
    relative_bias="per_layer",
    relative_bias_max_distance=64,
    dropout_rate=0.25,
    prompt_length=5,
    dtype="bfloat16",
    remat="full",
)
VOCABULARY = {"name": "a file (384 pieces)", "hash": "0123456789abcdef", "sentinels": [383, 382]}


def _as_json(metadata):
    return json.loads(json.dumps(metadata))


def test_every_field_survives_json():
    metadata = _as_json({"step": 3, **networks.described(CONFIG, VOCABULARY)})
    assert T5Config(**networks.stated_fields(metadata, "here")) == CONFIG
    assert metadata["token_ids"] == {"decoder_start": 0, "end": 1, "padding": 0, "sentinels": [383, 382]}
    assert metadata["vocabulary"] == {"name": "a file (384 pieces)", "hash": "0123456789abcdef"}
    assert networks.carried(metadata) == {key: value for key, value in metadata.items() if key != "step"}
    assert networks.stated_fields({"step": 3}, "here") == {}


def test_every_field_is_of_one_kind():
    kinds = {field.name: field.metadata.get("decides") for field in dataclasses.fields(T5Config)}
    assert set(kinds.values()) == {"function", "run"}
    assert {name for name, kind in kinds.items() if kind == "function"} == set(function_fields(CONFIG))


@pytest.mark.parametrize(
    "key,change,message",
    [
        ("network", {"class": "Mamba"}, "here holds a network of the class 'Mamba'; expected T5Config"),
        ("network", {"experts": 8}, "here was written by another version, whose T5Config has experts"),
        ("token_ids", {"padding": 5}, "here has the token ids padding 5; the network computes with .*padding 0"),
    ],
)
def test_other_networks_are_refused(key, change, message):
    metadata = _as_json(networks.described(CONFIG))
    with pytest.raises(ValueError, match=message):
        networks.stated_fields({**metadata, key: {**metadata[key], **change}}, "here")


@pytest.mark.parametrize("name", function_fields(T5Config))
def test_what_decides_the_function_must_agree(name):
    value = getattr(CONFIG, name)
    other = {"mlp_activations": ("relu",), "relative_bias": "shared"}.get(name, not value if value is False else 7)
    with pytest.raises(ValueError, match=f"T5Config.{name} is .*, the configuration has ") as caught:
        networks.check_agreement(
            dataclasses.asdict(CONFIG), dataclasses.replace(CONFIG, **{name: other}), [name], "here"
        )
    assert repr(value) in str(caught.value) and repr(other) in str(caught.value)


def test_what_belongs_to_a_run_may_differ():
    other = dict(dropout_rate=0.0, prompt_length=0, num_prompts=2, scan_layers=True, remat="none", dtype="float32")
    config = dataclasses.replace(CONFIG, **other, param_dtype="bfloat16")
    stated = dataclasses.asdict(CONFIG)
    changed = {name for name, value in stated.items() if getattr(config, name) != value}
    assert changed == set(stated) - set(function_fields(CONFIG))
    networks.check_agreement(stated, config, stated, "here")


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("relative_bias_max_distance", None, "T5Config.relative_bias_max_distance is None, expected int"),
        ("vocab_size", "384", "T5Config.vocab_size is '384', expected int"),
        ("num_heads", True, "T5Config.num_heads is True, expected int"),
        ("scan_layers", 1, "T5Config.scan_layers is 1, expected bool"),
        ("dropout_rate", "0.1", "T5Config.dropout_rate is '0.1', expected float"),
        ("mlp_activations", "relu", "T5Config.mlp_activations is 'relu', expected tuple"),
        ("mlp_dim", 0, "T5Config.mlp_dim is 0: expected at least 1"),
        ("class", ["T5Config"], "holds a network of the class ..T5Config..; expected T5Config"),
    ],
)
def test_a_field_with_a_value_that_it_cannot_have(key, value, message):
    metadata = _as_json(networks.described(CONFIG))
    with pytest.raises(ValueError, match=message) as caught:
        networks.stated_fields({**metadata, "network": {**metadata["network"], key: value}}, "here")
    assert "here" in str(caught.value)
