"""promot_t5x.training.initial_parameters: random weights and new prompts follow the seed."""

import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import initial_parameters, prompt_initializers

SIZES = dict(vocab_size=16, embed_dim=4, num_heads=1, head_dim=4, mlp_dim=4, num_encoder_layers=1, num_decoder_layers=1)


def test_a_new_prompt_replaces_the_old_one_and_follows_the_seed():
    model = EncoderDecoderModel(T5Config(**SIZES, prompt_length=3, param_dtype="bfloat16"))
    params = {"token_embedder": {"embedding": jnp.ones((16, 4))}, "soft_prompt": {"embedding": jnp.zeros((1, 3, 4))}}

    def prompt(seed):
        made = initial_parameters.with_new_prompt(
            params, prompt_initializers.random_uniform(), model, Partitioner(), seed
        )
        assert made["token_embedder"] is params["token_embedder"]
        leaf = parameter_names.flatten(made)["soft_prompt/embedding"]
        assert leaf.shape == (1, 3, 4) and leaf.dtype == jnp.bfloat16
        return np.asarray(leaf, np.float32)

    np.testing.assert_array_equal(prompt(3), prompt(3))
    assert (prompt(3) != prompt(4)).mean() > 0.5 and prompt(3).all()


def test_a_network_without_a_prompt_is_refused():
    model = EncoderDecoderModel(T5Config(**SIZES))
    with pytest.raises(ValueError, match="no soft prompt; set architecture.T5Config.prompt_length"):
        initial_parameters.with_new_prompt({}, prompt_initializers.random_uniform(), model, Partitioner(), 0)
