"""The network that a checkpoint carries in its metadata: configuration, token ids and vocabulary, as JSON.

    "network": {"class": "T5Config", "vocab_size": 32128, ...}
    "token_ids": {"decoder_start": 0, "end": 1, "padding": 0, "sentinels": [32099, ...] or null}
    "vocabulary": {"name": "...", "hash": "..."} or null

A configuration has two kinds of fields (see `architecture.T5Config`): those that determine what the network computes
must equal those of a configuration that is given as well; the others are up to the run that reads the checkpoint.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.stored_leaves import Leaves
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import TOKEN_IDS, T5Config, function_fields
from promot_t5x.runtime import arguments

_CLASSES = {"T5Config": T5Config}

_EMBEDDING = "token_embedder/embedding"

_KEYS = ("network", "token_ids", "vocabulary")

# The rows that transformers' resize_token_embeddings(len(tokenizer)) leaves of a public model's embedding.
_ROWS_WITHOUT_PADDING = {
    32100: " (T5's vocabulary with its 100 sentinels, without the 28 padding rows of 32128)",
    250100: " (mT5's vocabulary, without the 12 padding rows of 250112)",
}

FROM_SHAPES = (
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
    """The part of a checkpoint's metadata that describes its network.

    Args:
      config: the network's configuration, a dataclass.
      vocabulary: what `vocabularies.description` returned; None if no vocabulary is known.

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
    """Selects what describes the network from a checkpoint's metadata; empty if it was written without.

    >>> carried({"step": 3, "vocabulary": None})
    {'vocabulary': None}
    """
    return {key: metadata[key] for key in _KEYS if key in metadata}


def stated_fields(metadata: Mapping[str, Any], folder: epath.PathLike) -> dict[str, Any]:
    """The fields of T5Config stated in a checkpoint's metadata; empty if it was written without its network.

    Args:
      metadata: the checkpoint's.
      folder: the checkpoint, for messages.

    Raises:
      ValueError: this package does not support the network or the token ids, or a field has an impossible value.
    """
    ids = {name: value for name, value in (metadata.get("token_ids") or {}).items() if name in TOKEN_IDS}
    if other := [f"{name} {value}" for name, value in ids.items() if value != TOKEN_IDS[name]]:
        expected = ", ".join(f"{name} {value}" for name, value in TOKEN_IDS.items())
        raise ValueError(f"{folder} has the token ids {', '.join(other)}; the network computes with {expected}.")
    stored: dict[str, Any] = metadata.get("network") or {}
    if not stored:
        return {}
    class_name = stored.get("class")
    network: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items() if name != "class"
    }
    if class_name not in tuple(_CLASSES):  # a tuple, since a damaged value may not be hashable
        raise ValueError(f"{folder} holds a network of the class {class_name!r}; expected {', '.join(_CLASSES)}.")
    fields = {field.name for field in dataclasses.fields(_CLASSES[class_name])}
    if unknown := sorted(set(network) - fields):
        raise ValueError(
            f"{folder} was written by another version, whose {class_name} has {', '.join(unknown)}; read it with that "
            "version."
        )
    try:
        _CLASSES[class_name](**network)
    except (ValueError, arguments.WrongTypeError) as error:
        raise ValueError(f"The metadata of {folder} are damaged: {error} Copy the checkpoint again.") from error
    return network


def check_agreement(stated: Mapping[str, Any], config: T5Config, names: Iterable[str], folder: epath.PathLike) -> None:
    """Compares a configuration with what a checkpoint states about its network.

    Args:
      stated: fields of the checkpoint's network.
      config: the configuration that is given as well.
      names: the fields to compare; those that are not stated or do not affect what the network computes are skipped.
      folder: the checkpoint, for messages.

    Raises:
      ValueError: names the first field that differs, and both values.
    """
    decisive = function_fields(config)
    for name in names:
        if name in decisive and name in stated and stated[name] != getattr(config, name):
            value = _described_rows(stated[name]) if name == "vocab_size" else repr(stated[name])
            raise ValueError(
                f"{folder} does not hold this network's parameters: its {type(config).__name__}.{name} is {value}, the "
                f"configuration has {getattr(config, name)!r}; give the checkpoint's value, or none."
            )


def vocab_size_advice(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What to do about an embedding without padding rows where a network has them; empty for any other difference.

    Args:
      stored: the checkpoint's leaves.
      wanted: the network's.

    >>> import numpy as np
    >>> vocab_size_advice({_EMBEDDING: np.zeros((32100, 8))}, {_EMBEDDING: np.zeros((32128, 8))})[:56]
    'set architecture.T5Config.vocab_size to the stored 32100'
    """
    rows, wanted_rows = (leaves[_EMBEDDING].shape[0] if _EMBEDDING in leaves else None for leaves in (stored, wanted))
    if rows == wanted_rows or rows not in _ROWS_WITHOUT_PADDING:
        return ""
    return f"set architecture.T5Config.vocab_size to the stored {_described_rows(rows)}"


def _described_rows(rows: int) -> str:
    return f"{rows}{_ROWS_WITHOUT_PADDING.get(rows, '')}"


def from_shapes(leaves: Leaves, folder: epath.PathLike) -> dict[str, Any]:
    """The fields of T5Config that follow from the names, shapes and dtypes of the leaves (see FROM_SHAPES).

    Args:
      leaves: the network's, with or without a soft prompt.
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
        vocab_size, embed_dim = flat[_EMBEDDING].shape
        prompts = flat[parameter_names.PROMPT].shape if parameter_names.PROMPT in flat else (1, 0)
        dtype = str(flat[_EMBEDDING].dtype)
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
        raise ValueError(
            f"{folder} does not hold an (m)T5: its parameters have other dimensions ({error}); check the path."
        ) from error


def of_public_models(leaves: Leaves) -> dict[str, Any]:
    """The public models' values for the fields of T5Config that do not follow from shapes: GELU if the MLP is gated."""
    gated = any(name.endswith("mlp/wi_0/kernel") for name in leaves)
    return {
        "mlp_activations": ("gelu", "linear") if gated else ("relu",),
        "relative_bias_max_distance": 128,
        "dropout_rate": 0.1,
    }
