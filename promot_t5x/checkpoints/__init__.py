"""Checkpoints and soft prompts in every format, read and written.

| checkpoint | is |
|---|---|
| promot | a checkpoint of this package |
| t5x, t5x_legacy | T5X's with one leaf per layer, in Orbax or in msgpack and zarr |
| t5x_scanned, t5x_scanned_legacy | T5X's with stacked layers (`scalable_t5`) |
| huggingface | a folder of transformers, with a soft prompt as PEFT's adapter in it |

| soft prompt | is |
|---|---|
| soft_prompt | a folder with `soft_prompt.safetensors` and `soft_prompt.json`, as prompt tuning writes it |
| npy | one array [P, D] (or [N, P, D]), as the prompt-tuning code of Lester et al. has them |
| peft | a folder with an adapter of PEFT, one prompt |

Importing this package loads no jax, so that a command can list the formats in its help.
"""

FORMATS = ("promot", "t5x", "t5x_legacy", "t5x_scanned", "t5x_scanned_legacy", "huggingface")

SOFT_PROMPT_FORMATS = ("soft_prompt", "npy", "peft")
