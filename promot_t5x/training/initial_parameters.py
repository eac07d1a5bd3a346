"""The parameters that a run starts from: random, a checkpoint's, or the mean of several; with or without a prompt."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from promot_t5x.checkpoints import fingerprints, loading
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import prompt_initializers, stages


def starting_parameters(
    model: EncoderDecoderModel,
    stage: stages.Stage,
    paths: Sequence[str],
    prompt_init: prompt_initializers.PromptInit | None,
    partitioner: Partitioner,
    seed: int,
) -> tuple[dict[str, Any], dict[str, str] | None]:
    """All parameters of a stage, and the base that later readers take the model's weights from.

    Args:
      model: the network.
      stage: what trains, and whether a prompt is attached.
      paths: checkpoints or run folders; none for random weights, several for the mean of their weights.
      prompt_init: makes a new soft prompt; None takes the checkpoint's, or that of the first of several.
      partitioner: the mesh.
      seed: seed of random weights and of a new prompt.

    Returns:
      (nested parameters, placed on the mesh; path and fingerprint of the base, None for random weights).

    Raises:
      ValueError: the stage trains no weights of the model, and no single checkpoint holds them; or there is no prompt
        to attach.
    """
    check_starts(model, stage, paths)
    if not paths:
        params, base = random_parameters(model, partitioner, seed), None
    else:
        params, base = _read(paths, model, partitioner)
    if not stage.attaches_prompt:
        return parameter_names.split_adapters(params)[0], base
    if prompt_init is not None:
        return with_new_prompt(params, prompt_init, model, partitioner, seed), base
    if parameter_names.SOFT_PROMPT not in params:
        raise ValueError(
            f"Stage {stage.name} takes its soft prompt from INITIAL_CHECKPOINT_PATH, but "
            f"{paths[0] if paths else 'a random model'} has none; give the prompt-tuning run's folder, or set "
            "train.train.prompt_init."
        )
    return params, base


def check_starts(model: EncoderDecoderModel, stage: stages.Stage, paths: Sequence[str]) -> None:
    """Raises ValueError if a stage stores no weights of the model, and no single checkpoint holds them."""
    if len(paths) != 1 and not trains_model(model, stage):
        start = f"averages {len(paths)} checkpoints" if paths else "is None"
        raise ValueError(
            f"Stage {stage.name} stores no weights of the model, so later readers need a checkpoint that holds them, "
            f"but INITIAL_CHECKPOINT_PATH {start}: give the path of one pretrained model."
        )


def trains_model(model: EncoderDecoderModel, stage: stages.Stage) -> bool:
    """Whether a stage trains any leaf of the model itself, not counting adapters."""
    return stage.trains_any(parameter_names.split_adapters(model.abstract_params())[0])


def _read(
    paths: Sequence[str], model: EncoderDecoderModel, partitioner: Partitioner
) -> tuple[dict[str, Any], dict[str, str]]:
    """One checkpoint's parameters, or the mean of several models' weights with the first one's adapters.

    The mean w = (w_1 + … + w_n) / n of fine-tuned models is Wortsman et al.'s uniform soup (2022, section 2). It is
    summed in float32, two models in memory at a time.
    """
    first = loading.load(paths[0], model, partitioner)
    if len(paths) == 1:
        return first.params, {"path": first.base_path, "fingerprint": first.base_fingerprint}
    weights, adapters = parameter_names.split_adapters(first.params)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, weights)
    total = _as_float32(weights)
    for path in paths[1:]:
        weights = parameter_names.split_adapters(loading.load(path, model, partitioner).params)[0]
        total = _sum(total, weights)
    mean = jax.tree.map(lambda leaf, dtype: (leaf / len(paths)).astype(dtype), total, dtypes)
    fingerprint = fingerprints.fingerprint(mean)
    return parameter_names.attach_adapters(mean, adapters), {"path": ", ".join(paths), "fingerprint": fingerprint}


@jax.jit
def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


@functools.partial(jax.jit, donate_argnums=0)
def _sum(total: Any, addend: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, addend)


def random_parameters(model: EncoderDecoderModel, partitioner: Partitioner, seed: int) -> dict[str, Any]:
    """Newly initialised parameters without adapters, created with their shardings."""
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
    """The parameters with a newly initialised soft prompt, which replaces an existing one.

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
