"""The network that a checkpoint carries in its metadata: configuration, token ids and vocabulary, as JSON.

    "network": {"class": "T5Config", "vocab_size": 32128, ...}
    "token_ids": {"decoder_start": 0, "end": 1, "padding": 0, "sentinels": [32099, ...] or null}
    "vocabulary": {"name": "...", "hash": "..."} or null

The fields of a configuration are of two kinds (see `architecture.T5Config`): those that decide what the network
computes must agree with a configuration that is given as well; the others are the run's that reads the checkpoint.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import Leaves
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import TOKEN_IDS, T5Config, function_fields

_CLASSES = {"T5Config": T5Config}

_KEYS = ("network", "token_ids", "vocabulary")

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple[str, ...]: "names"}

# What transformers' resize_token_embeddings(len(tokenizer)) leaves of a public model.
_ROWS_WITHOUT_PADDING = {
    32100: " (T5's vocabulary with its 100 sentinels, without the 28 padding rows of 32128)",
    250100: " (mT5's vocabulary without the 12 padding rows of 250112)",
}

TOLD_BY_SHAPES = (
    "vocab_size",
    "embed_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "logits_via_embedding",
    "relative_bias",
    "relative_bias_buckets",
    "prompt_length",
    "num_prompts",
    "param_dtype",
)


def described(config: Any, vocabulary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the metadata of a checkpoint say about its network.

    Args:
      config: the network's configuration, a dataclass.
      vocabulary: what `vocabularies.description` returned; None where no vocabulary is known.

    >>> described(T5Config(vocab_size=384))["network"]["vocab_size"]
    384
    """
    named = None if vocabulary is None else {"name": vocabulary["name"], "hash": vocabulary["hash"]}
    return {
        "network": {"class": type(config).__name__, **dataclasses.asdict(config)},
        "token_ids": {**TOKEN_IDS, "sentinels": (vocabulary or {}).get("sentinels")},
        "vocabulary": named,
    }


def carried(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint's metadata that describes its network; nothing where it was written without.

    >>> carried({"step": 3, "vocabulary": None})
    {'vocabulary': None}
    """
    return {key: metadata[key] for key in _KEYS if key in metadata}


def stated_fields(metadata: Mapping[str, Any], folder: epath.PathLike) -> dict[str, Any]:
    """The fields of T5Config that a checkpoint's metadata state; none where it was written without its network.

    Args:
      metadata: of the checkpoint.
      folder: for messages.

    Raises:
      ValueError: the network or the token ids are not those that this package computes with, or a field has no value
        that it can have.
    """
    ids = {name: value for name, value in (metadata.get("token_ids") or {}).items() if name in TOKEN_IDS}
    if other := [f"{name} {value}" for name, value in ids.items() if value != TOKEN_IDS[name]]:
        expected = ", ".join(f"{name} {value}" for name, value in TOKEN_IDS.items())
        raise ValueError(f"{folder} has the token ids {', '.join(other)}; the network computes with {expected}.")
    network = dict(metadata.get("network") or {})
    if not network:
        return {}
    class_name = network.pop("class", None)
    if class_name not in tuple(_CLASSES):  # compared, as a damaged one may not be hashable
        raise ValueError(f"{folder} holds a network of the class {class_name!r}; expected {', '.join(_CLASSES)}.")
    kinds = {field.name: field.type for field in dataclasses.fields(_CLASSES[class_name])}
    if unknown := sorted(set(network) - set(kinds)):
        raise ValueError(
            f"{folder} is of another version, its {class_name} has {', '.join(unknown)}; read it with that one."
        )
    try:
        for name, value in network.items():
            if not _is_of_kind(value, kinds[name]):
                raise ValueError(f"{class_name}.{name} is {value!r}: expected {_KINDS[kinds[name]]}.")
        _CLASSES[class_name](**network)
    except ValueError as error:
        raise ValueError(f"The network in the metadata of {folder} is damaged: {error} Copy them again.") from error
    return {name: tuple(value) if isinstance(value, list) else value for name, value in network.items()}


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Whether a value that was JSON is of a field's type."""
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool, str):
        return type(value) is kind
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def check_agreement(stated: Mapping[str, Any], config: T5Config, names: Iterable[str], folder: epath.PathLike) -> None:
    """Compares a configuration with what a checkpoint says about its network.

    Args:
      stated: fields of the checkpoint's network.
      config: the configuration that is given as well.
      names: the fields to compare; those that decide what the network computes are, where they are stated.
      folder: the checkpoint, for messages.

    Raises:
      ValueError: names the first field that differs, and both values.
    """
    decisive = function_fields(config)
    for name in names:
        if name in decisive and name in stated and stated[name] != getattr(config, name):
            named = _ROWS_WITHOUT_PADDING.get(stated[name], "") if name == "vocab_size" else ""
            raise ValueError(
                f"{folder} does not hold this network's parameters: its {type(config).__name__}.{name} is "
                f"{stated[name]!r}{named}, the configuration has {getattr(config, name)!r}; give the checkpoint's own "
                "value, or none."
            )


def told_by_shapes(leaves: Leaves, folder: epath.PathLike) -> dict[str, Any]:
    """The fields of T5Config that names, shapes and dtypes of a network's leaves tell (see TOLD_BY_SHAPES).

    Args:
      leaves: of the network, with or without a soft prompt.
      folder: the checkpoint, for messages.

    Raises:
      ValueError: leaves that every (m)T5 has are missing, or have other dimensions.
    """
    try:
        flat = parameter_names.unstack_layers(leaves, stored_leaves.layer)
        layers = {
            side: len({n.split("/")[1] for n in flat if n.startswith(f"{side}/layers_")})
            for side in ("encoder", "decoder")
        }
        biases = {name: leaf for name, leaf in flat.items() if name.endswith("relpos_bias/rel_embedding")}
        heads, buckets = next(iter(biases.values())).shape
        first = "encoder/layers_0"
        vocab_size, embed_dim = flat["token_embedder/embedding"].shape
        prompts = flat[parameter_names.PROMPT].shape if parameter_names.PROMPT in flat else (1, 0)
        dtype = str(flat["token_embedder/embedding"].dtype)
        return {
            "vocab_size": vocab_size,
            "embed_dim": embed_dim,
            "num_heads": heads,
            "head_dim": flat[f"{first}/attention/query/kernel"].shape[1] // heads,
            "mlp_dim": flat[f"{first}/mlp/wo/kernel"].shape[0],
            "num_encoder_layers": layers["encoder"],
            "num_decoder_layers": layers["decoder"],
            "logits_via_embedding": "decoder/logits_dense/kernel" not in flat,
            "relative_bias": "per_layer" if any("/layers_" in name for name in biases) else "shared",
            "relative_bias_buckets": buckets,
            "num_prompts": prompts[0],
            "prompt_length": prompts[1],
            "param_dtype": "bfloat16" if dtype == "bfloat16" else "float32",
        }
    except (KeyError, StopIteration) as error:
        lacking = error.args[0] if error.args else "relpos_bias/rel_embedding"
        raise ValueError(f"{folder} lacks a parameter that every (m)T5 has, {lacking}: copy it again.") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{folder} holds no (m)T5: its parameters have other dimensions ({error}).") from error


def of_public_models(leaves: Leaves) -> dict[str, Any]:
    """The fields of T5Config that shapes do not tell, as all public (m)T5 have them: GELU where the MLP is gated."""
    gated = any(name.endswith("mlp/wi_0/kernel") for name in leaves)
    return {
        "mlp_activations": ("gelu", "linear") if gated else ("relu",),
        "relative_bias_max_distance": 128,
        "dropout_rate": 0.1,
    }
