"""Reads and writes a soft prompt as a PEFT adapter (prompt tuning of an encoder-decoder), without torch or peft.

An adapter's folder has adapter_config.json and adapter_model.safetensors with one tensor, the prompt [P, D]. With
PEFT's default for encoder-decoders, num_transformer_submodules 2, the tensor has as many rows again, but in prompt
tuning PEFT puts only the first P in front of the encoder's input and never uses the others; so these P are read.
Adapters are written with num_transformer_submodules 1.
"""

from typing import Any

import numpy as np
from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import safetensors_file
from promot_t5x.runtime import files, processes

_CONFIG = "adapter_config.json"

_WEIGHTS = "adapter_model.safetensors"

_PICKLED = "adapter_model.bin"

_TENSOR = "prompt_embeddings"

_KIND = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM"}

_SUBMODULES = "num_transformer_submodules"


def write_adapter(folder: epath.PathLike, prompt_PxD: np.ndarray, base_model_name_or_path: str) -> None:
    """Writes one soft prompt as an adapter that PEFT's PeftModel.from_pretrained reads.

    adapter_config.json, without which the folder is not an adapter, is written last. Only process 0 writes.

    Args:
      folder: an existing adapter is replaced.
      prompt_PxD: one prompt, such as prompt_NxPxD[0]; float32, bfloat16 or float16.
      base_model_name_or_path: the model that the prompt belongs to, as transformers names it.

    Raises:
      ValueError: the prompt is not a matrix, or has another dtype.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_adapter(folder, np.ones((3, 4), np.float32), "google/mt5-small")
    >>> read_adapter(folder).shape
    (1, 3, 4)
    """
    path = epath.Path(folder).expanduser()
    prompt_PxD = np.asarray(prompt_PxD)
    if prompt_PxD.ndim != 2 or not prompt_PxD.size:
        raise ValueError(
            f"The prompt for the adapter {path} has the shape {prompt_PxD.shape}, expected [length, embed]: give one "
            "prompt, such as prompt_NxPxD[0]."
        )
    length, embed = prompt_PxD.shape
    values = {
        **_KIND,
        _SUBMODULES: 1,
        "base_model_name_or_path": str(base_model_name_or_path),
        "inference_mode": True,
        "num_virtual_tokens": length,
        "token_dim": embed,
        "prompt_tuning_init": "RANDOM",  # required by PEFT, which then loads the stored prompt
    }
    if processes.speaks():
        (path / _CONFIG).unlink(missing_ok=True)
    leaf = stored_leaves.from_array(prompt_PxD, "the soft prompt")
    safetensors_file.write(path / _WEIGHTS, {_TENSOR: leaf})
    files.write_json(path / _CONFIG, values)


def read_adapter(folder: epath.PathLike) -> np.ndarray:
    """The soft prompt of an adapter, in the dtype it is stored in; if rows are left out, prints which.

    Args:
      folder: a local folder.

    Returns:
      prompt_1xPxD.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ValueError: a file is damaged or pickled, or the adapter is not a prompt for the encoder.
    """
    path = epath.Path(folder).expanduser()
    values = _config(path / _CONFIG)
    for key, expected in _KIND.items():
        if values.get(key) != expected:
            raise ValueError(
                f"{key} is {values.get(key)!r} in {path / _CONFIG}, expected {expected!r}: only a prompt in front of "
                "the encoder's input can be read."
            )
    submodules = values.get(_SUBMODULES)
    submodules = 2 if submodules is None else submodules  # PEFT's default
    if type(submodules) is not int or submodules not in (1, 2):
        raise ValueError(f"{_SUBMODULES} is {submodules!r} in {path / _CONFIG}, expected 1 or 2: copy it again.")
    if not (path / _WEIGHTS).is_file() and (path / _PICKLED).is_file():
        raise ValueError(
            f"{path} holds no {_WEIGHTS} but {_PICKLED}, which is not read (unpickling can run any code): load the "
            "adapter with PEFT and save it with save_pretrained(folder), as safetensors."
        )
    tensors = safetensors_file.leaves(path / _WEIGHTS)
    length = values.get("num_virtual_tokens")
    if type(length) is not int or length < 1:
        raise ValueError(
            f"num_virtual_tokens is {length!r} in {path / _CONFIG}, expected a positive number: copy it again."
        )
    shape = (submodules * length, values.get("token_dim"))
    if {name: leaf.shape for name, leaf in tensors.items()} != {_TENSOR: shape}:
        held = ", ".join(f"{name} {leaf.shape}" for name, leaf in tensors.items()) or "nothing"
        raise ValueError(
            f"{path / _WEIGHTS} holds {held}, expected {_TENSOR} {shape} as {_CONFIG} says: copy both files again."
        )
    rows_RxD = stored_leaves.whole(tensors[_TENSOR])
    if submodules == 2 and processes.speaks():
        print(
            f"{path}: the first {length} of {2 * length} rows are the prompt; PEFT never uses the others "
            f"({_SUBMODULES} is 2)."
        )
    return rows_RxD[None, :length]


def _config(file: epath.Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: give the folder of a PEFT adapter.")
    return files.read_json(file)
