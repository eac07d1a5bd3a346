"""config.json of transformers' T5, mT5 and umT5, to and from the sizes and variants of a network."""

import json
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

_FEED_FORWARD = {
    "relu": ("relu",),
    "silu": ("silu",),
    "gelu_new": ("gelu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-relu": ("relu", "linear"),
    "gated-silu": ("silu", "linear"),
}

# transformers' names of one function each; its `gelu` is another one, of which `gated-gelu` alone means `gelu_new`.
_ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
}

# Keys with which transformers computes something else than the network, and the values that change nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (None, True),
    "is_decoder": (None, False),
    "tie_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
    "forced_bos_token_id": (None,),
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
    """Reads a config.json and looks whether it is one of the T5 family.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or of another model.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, which says what the weights next to it are: copy it there.")
    files.check_no_pointer(file)
    try:
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, it is not JSON ({error}): copy it again.") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in tuple(MODEL_TYPES):  # compared, as a damaged one may not be hashable
        raise ValueError(
            f"{file} is of a model of type {model_type!r}, expected one of {', '.join(MODEL_TYPES)}: give the folder "
            "of a T5, mT5 or umT5."
        )
    return values


def fields(values: Mapping[str, Any], file: epath.Path) -> dict[str, Any]:
    """The fields of T5Config that a config.json states by itself: all but whether the embedding is the output matrix.

    Args:
      values: what `load` returned.
      file: for messages.

    Raises:
      ValueError: a size is missing or no positive number, or a variant or a token id is not the network's.
    """
    # Defaults of transformers, for the keys that older files do not have.
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
    for name, harmless in _WITHOUT_EFFECT.items():
        if not any(type(values.get(name)) is type(value) and values.get(name) == value for value in harmless):
            raise ValueError(
                f"{name} is {values[name]!r} in {file}, expected {' or '.join(map(repr, harmless[1:])) or 'none'}: the "
                "network computes something else."
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
    """The MLP's, as transformers finds them: `dense_act_fn` and `is_gated_act` win over `feed_forward_proj`."""
    named = values.get("feed_forward_proj")
    if named is None:
        named = "relu" if values["model_type"] == "t5" else "gated-gelu"
    gate, _, function = str(named).rpartition("-")
    function = values.get("dense_act_fn") or ("gelu_new" if named == "gated-gelu" else function)
    is_gated = values.get("is_gated_act")
    is_gated = gate == "gated" if is_gated is None else is_gated
    if gate not in ("", "gated") or function not in tuple(_ACTIVATIONS) or not isinstance(is_gated, bool):
        names = ", ".join((*_ACTIVATIONS, "gated-gelu", *(f"gated-{name}" for name in _ACTIVATIONS)))
        told = "".join(
            f", {key} {values[key]!r}" for key in ("dense_act_fn", "is_gated_act") if values.get(key) is not None
        )
        raise ValueError(
            f"feed_forward_proj is {named!r}{told} in {file}, expected one of {names}: the network has no such layer."
        )
    return (_ACTIVATIONS[function], "linear") if is_gated else (_ACTIVATIONS[function],)


def check_ids(values: Mapping[str, Any], file: epath.Path) -> None:
    """Compares the ids that start, end and pad an output, in config.json or generation_config.json, with the network's.

    Raises:
      ValueError: another id.
    """
    given = {name: values.get(name) for name in _IDS}
    if given["decoder_start_token_id"] is None and values.get("bos_token_id") is not None:
        given["decoder_start_token_id"] = values["bos_token_id"]  # which transformers takes then
    for name, expected in _IDS.items():
        value = given[name]
        if value is not None and value != [expected] and (type(value) is not int or value != expected):
            raise ValueError(f"{name} is {value!r} in {file}, expected {expected}, which the network is built for.")


def check_generation(file: epath.Path) -> None:
    """Looks at the ids of a generation_config.json, which win over those of config.json; there need be none.

    Raises:
      ValueError: another id, or damaged.
    """
    if not file.is_file():
        return
    try:
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, it is not JSON ({error}): copy it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged, it is no JSON object: copy it again.")
    if values.get("forced_bos_token_id") is not None:
        raise ValueError(
            f"forced_bos_token_id is {values['forced_bos_token_id']!r} in {file}, expected none: the network computes "
            "something else."
        )
    check_ids(values, file)


def tied(values: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the output matrix is the embedding.

    From version 5 on transformers writes so of every model, which its weights may contradict.
    """
    return values.get("tie_word_embeddings") is not False


def scales_output(values: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the decoder's output is divided by sqrt(D) before the output matrix.

    For T5 and umT5 that is what tied models do; only T5's says it apart, from version 5 of transformers on. mT5 did so
    before version 5 and does so no longer.

    >>> scales_output({"model_type": "t5"}), scales_output({"model_type": "t5", "tie_word_embeddings": False})
    (True, False)
    """
    if values["model_type"] == "t5":
        return bool(values.get("scale_decoder_outputs", tied(values)))
    version = str(values.get("transformers_version", "4")).split(".")[0]
    return tied(values) and not (values["model_type"] == "mt5" and version.isdigit() and int(version) >= 5)


def model_type_of(config: T5Config, model_type: str | None = None) -> str:
    """The class of transformers that computes what a network computes.

    Args:
      config: the network.
      model_type: one of MODEL_TYPES; None takes umt5 for biases of each layer's own, mt5 for mT5's vocabulary, else t5.

    Raises:
      ValueError: no such class, or one that computes something else.

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
            "per_layer; leave the model type to be found."
        )
    if model_type == "mt5" and config.logits_via_embedding:
        raise ValueError(
            "The model type is mt5 and T5Config.logits_via_embedding is True, for which versions of transformers "
            "compute different logits: give t5."
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
            f"T5Config.mlp_activations is {config.mlp_activations}, which config.json cannot say, expected one of "
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
