"""What a (m)T5 network is: its sizes and variants as one frozen dataclass that gin binds."""

import dataclasses

ACTIVATIONS = ("gelu", "relu", "silu", "linear")


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

    vocab_size: int = 250112
    embed_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    relative_bias: str = "shared"
    relative_bias_buckets: int = 32
    relative_bias_max_distance: int = 128
    dropout_rate: float = 0.1
    prompt_length: int = 0
    num_prompts: int = 1
    scan_layers: bool = False
    remat: str = "none"
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < (0 if field.name == "prompt_length" else 1):
                raise ValueError(f"T5Config.{field.name} is {value}: expected a positive number.")
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
