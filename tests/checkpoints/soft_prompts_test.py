"""Soft prompts in files of their own: what is in them and is no soft prompt is refused by name."""

import numpy as np
import pytest
import safetensors.numpy

from promot_t5x.checkpoints import soft_prompts

PROMPT_NxPxD = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32)


def test_other_tensors_next_to_the_prompt_are_not_dropped(tmp_path):
    tensors = {"soft_prompt/embedding": PROMPT_NxPxD, "token_embedder/embedding": np.ones((4, 8), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "prompt.safetensors")
    with pytest.raises(ValueError, match="prompt.safetensors does not hold a soft prompt: it holds token_embedder/emb"):
        soft_prompts.load(tmp_path / "prompt.safetensors")
