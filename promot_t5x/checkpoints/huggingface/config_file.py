"""Converts config.json of transformers' T5, mT5 and umT5 to and from the sizes and variants of a network."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from promot_t5x.models.architecture import TOKEN_IDS, T5Config
from promot_t5x.runtime import files

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

# The names that are written. In transformers `gelu_new` and `gated-gelu` use the tanh approximation, as our gelu does;
# plain `gelu` is exact.
_FEED_FORWARD = {
    "relu": ("relu",),
    "silu": ("silu",),
    "gelu_new": ("gelu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-relu": ("relu", "linear"),
    "gated-silu": ("silu", "linear"),
}

# The names that are read: all that transformers has for the network's functions.
_ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
}

# Keys that can make transformers compute something else than the network, and their values that do not.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (None, True),
    "is_decoder": (None, False),
    "tie_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
    "tie_word_embeddings": (None, True, False),
    "scale_decoder_outputs": (None, True, False),
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
    values = files.read_json(file)
    model_type = values.get("model_type")
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
    epsilon = values.get("layer_norm_epsilon", _EPSILON)
    if epsilon != _EPSILON:
        raise ValueError(f"layer_norm_epsilon is {epsilon!r} in {file}, expected {_EPSILON}, the network's.")
    for name, harmless in _HARMLESS.items():
        if not any(type(values.get(name)) is type(value) and values.get(name) == value for value in harmless):
            expected = " or ".join(map(repr, harmless[1:])) or "none"
            raise ValueError(
                f"{name} is {values[name]!r} in {file}, expected {expected}: the network supports no other value."
            )
    check_ids(values, file)
    dropout_rate = values.get("dropout_rate", 0.1)
    if not isinstance(dropout_rate, int | float) or not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate is {dropout_rate!r} in {file}, expected a probability below 1.")
    stated["dropout_rate"] = float(dropout_rate)
    stated["mlp_activations"] = _activations(values, file)
    stated["relative_bias"] = "per_layer" if values["model_type"] == "umt5" else "shared"
    return stated


def _activations(values: Mapping[str, Any], file: epath.Path) -> tuple[str, ...]:
    """The MLP's activations; as in transformers, `dense_act_fn` and `is_gated_act` override `feed_forward_proj`."""
    name = values.get("feed_forward_proj")
    if name is None:
        name = "relu" if values["model_type"] == "t5" else "gated-gelu"
    gate, _, function = str(name).rpartition("-")
    function = values.get("dense_act_fn") or ("gelu_new" if name == "gated-gelu" else function)
    is_gated = values.get("is_gated_act")
    is_gated = gate == "gated" if is_gated is None else is_gated
    if gate not in ("", "gated") or function not in tuple(_ACTIVATIONS) or not isinstance(is_gated, bool):
        supported = ", ".join((*_ACTIVATIONS, "gated-gelu", *(f"gated-{each}" for each in _ACTIVATIONS)))
        overrides = "".join(
            f", {key} {values[key]!r}" for key in ("dense_act_fn", "is_gated_act") if values.get(key) is not None
        )
        raise ValueError(
            f"feed_forward_proj is {name!r}{overrides} in {file}, expected one of {supported}: the network has no such "
            "layer."
        )
    return (_ACTIVATIONS[function], "linear") if is_gated else (_ACTIVATIONS[function],)


def check_ids(values: Mapping[str, Any], file: epath.Path) -> None:
    """Checks that the token ids in config.json or generation_config.json are the network's.

    Raises:
      ValueError: another id starts, ends or pads an output, or an id is forced.
    """
    stated = {name: values.get(name) for name in _IDS}
    if stated["decoder_start_token_id"] is None:
        stated["decoder_start_token_id"] = values.get("bos_token_id")  # as transformers does
    for name, expected in _IDS.items():
        value = stated[name]
        if value is not None and value != [expected] and (type(value) is not int or value != expected):
            raise ValueError(
                f"{name} is {value!r} in {file}, expected {expected}: the network supports no other value."
            )
    if (forced := values.get("forced_bos_token_id")) is not None:
        raise ValueError(
            f"forced_bos_token_id is {forced!r} in {file}, expected none: the network supports no other value."
        )


def check_generation(file: epath.Path) -> None:
    """Checks the token ids in a generation_config.json, which override those in config.json; it may be missing.

    Raises:
      ValueError: another id than the network's, or the file is damaged.
    """
    if file.is_file():
        check_ids(files.read_json(file), file)


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
        **_IDS,
        **({} if dtype is None else {"torch_dtype": dtype}),  # the name that every version reads
    }


def generation_values() -> dict[str, Any]:
    """The content of a generation_config.json: the ids that start, end and pad an output."""
    return dict(_IDS)
