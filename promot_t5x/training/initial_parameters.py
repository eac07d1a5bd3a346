"""The parameters that a run starts from where no checkpoint has them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from promot_t5x.checkpoints import loading
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import prompt_initializers


def random_parameters(model: EncoderDecoderModel, partitioner: Partitioner, seed: int) -> dict[str, Any]:
    """Freshly initialised parameters without adapters, created with their shardings."""
    shardings = partitioner.shardings(model.logical_axes(), model.abstract_params())
    params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(seed))
    return parameter_names.split_adapters(params)[0]


def with_new_prompt(
    params: Mapping[str, Any],
    prompt_init: prompt_initializers.PromptInit,
    model: EncoderDecoderModel,
    partitioner: Partitioner,
    seed: int,
) -> dict[str, Any]:
    """The parameters with a freshly initialised soft prompt, in place of any they had.

    Raises:
      ValueError: the network has no soft prompt, or the initialiser cannot make one of its shape.
    """
    c = model.config
    if not c.prompt_length:
        raise ValueError("The network has no soft prompt; set architecture.T5Config.prompt_length (the paper: 100).")
    init = prompt_initializers.built(prompt_init)
    key = jax.random.fold_in(jax.random.key(seed), 0x50)  # not the key that initialised the weights
    sharding = loading.wanted_params(model, partitioner)[parameter_names.PROMPT].sharding

    def make(embedding_VxD):
        return jnp.asarray(init(key, c.num_prompts, c.prompt_length, embedding_VxD), c.param_dtype)

    placed = jax.jit(make, out_shardings=sharding)(params["token_embedder"]["embedding"])
    return parameter_names.attach_adapters(params, parameter_names.unflatten({parameter_names.PROMPT: placed}))
