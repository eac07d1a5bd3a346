"""What a (m)T5 network is: its sizes and variants as one frozen dataclass, each marked as the network's or a run's."""

import dataclasses
from typing import Any

from promot_t5x.runtime import arguments

ACTIVATIONS = ("gelu", "relu", "silu", "linear")

TOKEN_IDS = {"decoder_start": 0, "end": 1, "padding": 0}

"""The ids that every (m)T5 starts, ends and pads its sequences with; masks and decoding assume them."""


def _function(default: Any) -> Any:
    """A field that decides what the network computes: a checkpoint carries it, and a configuration must agree."""
    return dataclasses.field(default=default, metadata={"decides": "function"})


def _of_a_run(default: Any) -> Any:
    """A field that each run chooses, whatever the checkpoint was trained with."""
    return dataclasses.field(default=default, metadata={"decides": "run"})


@arguments.checked
@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and variants of one network; the defaults are mT5-small's.

    Attributes:
      vocab_size: rows of the embedding (T5 32128, mT5 250112), padding rows included.
      embed_dim: D.
      num_heads: H.
      head_dim: K; H * K need not equal D.
      mlp_dim: F.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      mlp_activations: ("gelu", "linear") for T5 1.1 and mT5, ("relu",) for T5 1.0.
      logits_via_embedding: T5 1.0 shares the output matrix with the embedding; later models own `logits_dense`.
      relative_bias: "shared", one table for all layers of a stack (T5, mT5), or "per_layer" (scalable T5, umT5).
      relative_bias_buckets: rows of the relative position table.
      relative_bias_max_distance: distance from which all positions share the last bucket.
      dropout_rate: probability of dropping, used only when a dropout key is given.
      prompt_length: P, soft prompt vectors in front of the encoder's input; 0 builds a network without the subtree.
      num_prompts: N, one soft prompt per fine-tuned task.
      scan_layers: stack each side's layers and scan over them: compile time no longer grows with depth.
      remat: "none", "minimal" (keep matrix products) or "full" (keep layer inputs only).
      dtype: activations, "float32" or "bfloat16".
      param_dtype: parameters, "float32" or "bfloat16".
    """

    vocab_size: int = _function(250112)
    embed_dim: int = _function(512)
    num_heads: int = _function(6)
    head_dim: int = _function(64)
    mlp_dim: int = _function(1024)
    num_encoder_layers: int = _function(8)
    num_decoder_layers: int = _function(8)
    mlp_activations: tuple[str, ...] = _function(("gelu", "linear"))
    logits_via_embedding: bool = _function(False)
    relative_bias: str = _function("shared")
    relative_bias_buckets: int = _function(32)
    relative_bias_max_distance: int = _function(128)
    dropout_rate: float = _of_a_run(0.1)
    prompt_length: int = _of_a_run(0)
    num_prompts: int = _of_a_run(1)
    scan_layers: bool = _of_a_run(False)
    remat: str = _of_a_run("none")
    dtype: str = _of_a_run("float32")
    param_dtype: str = _of_a_run("float32")

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "prompt_length" else 1
            if field.type is int and not least <= value < 2**31:
                limit = f"at least {least}" if value < least else "below 2^31"
                raise ValueError(f"T5Config.{field.name} is {value}: expected {limit}.")
        choices = {
            "relative_bias": ("shared", "per_layer"),
            "remat": ("none", "minimal", "full"),
            "dtype": ("float32", "bfloat16"),
            "param_dtype": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"T5Config.{name} is {getattr(self, name)!r}: expected one of {', '.join(allowed)}.")
        if not self.mlp_activations:
            raise ValueError("T5Config.mlp_activations is empty: expected ('gelu', 'linear'), ('relu',) or the like.")
        for activation in self.mlp_activations:
            if activation not in ACTIVATIONS:
                raise ValueError(
                    f"T5Config.mlp_activations has {activation!r}: expected names among {', '.join(ACTIVATIONS)}."
                )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"T5Config.dropout_rate is {self.dropout_rate}: expected a probability below 1.")


def function_fields(config_class: Any) -> tuple[str, ...]:
    """The names of a configuration's fields that decide what its network computes.

    Args:
      config_class: a dataclass, or an instance of one, whose fields are marked as T5Config's are.

    >>> [field.name for field in dataclasses.fields(T5Config) if field.name not in function_fields(T5Config)]
    ['dropout_rate', 'prompt_length', 'num_prompts', 'scan_layers', 'remat', 'dtype', 'param_dtype']
    """
    fields = dataclasses.fields(config_class)
    return tuple(field.name for field in fields if field.metadata.get("decides") == "function")
