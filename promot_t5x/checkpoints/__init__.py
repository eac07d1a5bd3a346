"""Reads and writes checkpoints and soft prompts in every format.

| checkpoint | what it is |
|---|---|
| promot | a checkpoint of this package |
| t5x, t5x_legacy | T5X's with one leaf per layer, in Orbax or in msgpack and zarr |
| t5x_scanned, t5x_scanned_legacy | T5X's with stacked layers (`scalable_t5`) |
| huggingface | a folder of transformers, with a soft prompt as a PEFT adapter inside |

| soft prompt | what it is |
|---|---|
| soft_prompt | a folder with `soft_prompt.safetensors` and `soft_prompt.json`, as prompt tuning writes it |
| npy | one array [P, D] (or [N, P, D]), as in the prompt-tuning code of Lester et al. |
| peft | a folder with a PEFT adapter of one prompt |

Importing this package does not load jax, so that a command's help can list the formats.
"""

FORMATS = ("promot", "t5x", "t5x_legacy", "t5x_scanned", "t5x_scanned_legacy", "huggingface")

SOFT_PROMPT_FORMATS = ("soft_prompt", "npy", "peft")
