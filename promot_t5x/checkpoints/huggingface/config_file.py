"""Converts config.json of transformers' T5, mT5 and umT5 to and from the sizes and variants of a network."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from promot_t5x.models.architecture import TOKEN_IDS, T5Config

MODEL_TYPES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}

_MT5_VOCABULARY = 250112

_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "embed_dim",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
    "num_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
    "relative_attention_num_buckets": "relative_bias_buckets",
    "relative_attention_max_distance": "relative_bias_max_distance",
}

# In transformers `gelu_new` and `gated-gelu` use the tanh approximation, as our gelu does; plain `gelu` is exact.
_FEED_FORWARD = {
    "relu": ("relu",),
    "silu": ("silu",),
    "gelu_new": ("gelu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-relu": ("relu", "linear"),
    "gated-silu": ("silu", "linear"),
}

_EPSILON = 1e-6  # of the network's layer norms

_IDS = {
    "decoder_start_token_id": TOKEN_IDS["decoder_start"],
    "eos_token_id": TOKEN_IDS["end"],
    "pad_token_id": TOKEN_IDS["padding"],
}


def load(file: epath.Path) -> dict[str, Any]:
    """Reads a config.json and checks that it belongs to the T5 family.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not JSON, or of another kind of model.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, which describes the weights next to it: copy it there.")
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged, it is not JSON ({error}): copy it again.") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in tuple(MODEL_TYPES):  # a tuple, since a damaged value may not be hashable
        raise ValueError(
            f"{file} is of a model of type {model_type!r}, expected one of {', '.join(MODEL_TYPES)}: give the folder "
            "of a T5, mT5 or umT5."
        )
    return values


def fields(values: Mapping[str, Any], file: epath.Path) -> dict[str, Any]:
    """The fields of T5Config that config.json alone states: all but whether the embedding is the output matrix.

    Args:
      values: what `load` returned.
      file: for messages.

    Raises:
      ValueError: a size is missing or not a positive number, or the network does not support a variant or a token id.
    """
    # transformers' defaults for keys that older files lack.
    by_default: dict[str, Any] = {
        "num_decoder_layers": values.get("num_layers"),
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    stated: dict[str, Any] = {}
    for theirs, ours in _SIZES.items():
        value = values.get(theirs)
        value = by_default.get(theirs) if value is None else value
        if type(value) is not int or value < 1:
            raise ValueError(f"{theirs} is {value!r} in {file}, expected a positive number: copy the file again.")
        stated[ours] = value
    feed_forward = values.get("feed_forward_proj", "relu" if values["model_type"] == "t5" else "gated-gelu")
    if feed_forward not in tuple(_FEED_FORWARD):
        raise ValueError(
            f"feed_forward_proj is {feed_forward!r} in {file}, expected one of {', '.join(_FEED_FORWARD)}: the network "
            "has no such layer."
        )
    epsilon = values.get("layer_norm_epsilon", _EPSILON)
    if epsilon != _EPSILON:
        raise ValueError(f"layer_norm_epsilon is {epsilon!r} in {file}, expected {_EPSILON}, the network's.")
    for name, expected in _IDS.items():
        if values.get(name) not in (None, expected):
            raise ValueError(
                f"{name} is {values[name]!r} in {file}, expected {expected}: the network supports no other value."
            )
    dropout_rate = values.get("dropout_rate", 0.1)
    if not isinstance(dropout_rate, int | float) or not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate is {dropout_rate!r} in {file}, expected a probability below 1.")
    stated["dropout_rate"] = float(dropout_rate)
    stated["mlp_activations"] = _FEED_FORWARD[feed_forward]
    stated["relative_bias"] = "per_layer" if values["model_type"] == "umt5" else "shared"
    return stated


def tied(values: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the output matrix is the embedding.

    From version 5 on, transformers writes so for every model, even if the weights contradict it.
    """
    return values.get("tie_word_embeddings") is not False


def scales_output(values: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the decoder's output is divided by sqrt(D) before the output matrix.

    Tied models of T5 and umT5 do so; from transformers 5 on, T5's config.json states it separately. Tied mT5 models do
    so before transformers 5, and not from then on.

    >>> scales_output({"model_type": "t5"}), scales_output({"model_type": "t5", "tie_word_embeddings": False})
    (True, False)
    """
    if values["model_type"] == "t5":
        return bool(values.get("scale_decoder_outputs", tied(values)))
    version = str(values.get("transformers_version", "4")).split(".")[0]
    return tied(values) and not (values["model_type"] == "mt5" and version.isdigit() and int(version) >= 5)


def model_type_of(config: T5Config, model_type: str | None = None) -> str:
    """The model type whose class in transformers computes the same as a network.

    Args:
      config: the network.
      model_type: one of MODEL_TYPES; None chooses umt5 for one bias table per layer, mt5 for mT5's vocabulary, else t5.

    Raises:
      ValueError: no such model type, or one that computes something else.

    >>> model_type_of(T5Config(vocab_size=32128)), model_type_of(T5Config(relative_bias="per_layer"))
    ('t5', 'umt5')
    """
    if model_type is None:
        if config.relative_bias == "per_layer":
            return "umt5"
        return "mt5" if config.vocab_size == _MT5_VOCABULARY and not config.logits_via_embedding else "t5"
    if model_type not in MODEL_TYPES:
        raise ValueError(f"The model type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}, or none.")
    if (model_type == "umt5") != (config.relative_bias == "per_layer"):
        raise ValueError(
            f"The model type is {model_type} and T5Config.relative_bias is {config.relative_bias!r}: umt5 alone has "
            "per_layer; give no model type, so that the right one is chosen."
        )
    if model_type == "mt5" and config.logits_via_embedding:
        raise ValueError(
            "The model type is mt5 and T5Config.logits_via_embedding is True, for which versions of transformers "
            "compute different logits: give t5 instead."
        )
    return model_type


def values_of(config: T5Config, model_type: str, dtype: str | None) -> dict[str, Any]:
    """The content of a config.json; `dtype` is that of the weights, None if they have several.

    Raises:
      ValueError: the network has an MLP that transformers has no name for.
    """
    feed_forward = {activations: name for name, activations in _FEED_FORWARD.items()}.get(config.mlp_activations)
    if feed_forward is None:
        raise ValueError(
            f"T5Config.mlp_activations is {config.mlp_activations}, which config.json cannot express, expected one of "
            f"{', '.join(map(str, _FEED_FORWARD.values()))}."
        )
    return {
        "architectures": [MODEL_TYPES[model_type]],
        "model_type": model_type,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "feed_forward_proj": feed_forward,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": _EPSILON,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.logits_via_embedding,
        "use_cache": True,
        "tokenizer_class": "T5Tokenizer",
        **_IDS,
        **({} if dtype is None else {"torch_dtype": dtype}),  # the name that every version reads
    }


def generation_values() -> dict[str, Any]:
    """The content of a generation_config.json: the ids that start, end and pad an output."""
    return dict(_IDS)
