"""The checks of T5Config, and that the defaults are mT5-small's."""

import dataclasses

import pytest

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.models.parameter_names import flatten


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("embed_dim", -1),
        ("num_heads", 0),
        ("num_encoder_layers", 0),
        ("prompt_length", -1),
        ("num_prompts", 0),
        ("relative_bias", "none"),
        ("remat", "some"),
        ("dtype", "float16"),
        ("param_dtype", "float64"),
        ("mlp_activations", ("gelu", "tanh")),
        ("mlp_activations", ()),
        ("dropout_rate", 1.0),
        ("dropout_rate", -0.1),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=rf"^T5Config\.{field} .*expected"):
        T5Config(**{field: value})


def test_lists_become_tuples_so_that_a_config_can_be_a_static_argument():
    config = T5Config(mlp_activations=["relu"])
    assert config == T5Config(mlp_activations=("relu",))
    assert hash(config) == hash(dataclasses.replace(config))


def count(config):
    return sum(leaf.size for leaf in flatten(EncoderDecoderModel(config).abstract_params()).values())


def test_parameter_counts_are_the_published_ones():
    """mT5-small's checkpoint has 300,176,768 parameters; Xue et al. 2021, table 2 says 13B for XXL, rounded."""
    assert count(T5Config()) == 300176768
    # Scanned only to trace faster: the number of parameters is the same.
    assert count(T5Config(scan_layers=True)) == 300176768
    xxl = T5Config(
        embed_dim=4096, num_heads=64, mlp_dim=10240, num_encoder_layers=24, num_decoder_layers=24, scan_layers=True
    )
    assert round(count(xxl) / 1e9, 1) == 12.9
    assert count(dataclasses.replace(xxl, prompt_length=100)) == count(xxl) + 100 * 4096
