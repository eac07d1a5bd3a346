"""Soft prompts in separate files: anything else in such a file is refused by name."""

import numpy as np
import pytest
import safetensors.numpy

from promot_t5x.checkpoints import conversion, soft_prompts
from promot_t5x.checkpoints.huggingface import peft

PROMPT_NxPxD = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32)


def test_other_tensors_next_to_the_prompt_are_not_dropped(tmp_path):
    tensors = {"soft_prompt/embedding": PROMPT_NxPxD, "token_embedder/embedding": np.ones((4, 8), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "prompt.safetensors")
    with pytest.raises(ValueError, match="prompt.safetensors does not hold a soft prompt: it also holds token_emb"):
        soft_prompts.load(tmp_path / "prompt.safetensors")


def _npy(folder, prompt_NxPxD):
    np.save(folder / "prompt.npy", prompt_NxPxD[0])
    return folder / "prompt.npy"


def _folder(folder, prompt_NxPxD):
    (folder / "prompt").mkdir()
    safetensors.numpy.save_file({"soft_prompt/embedding": prompt_NxPxD}, folder / "prompt" / "soft_prompt.safetensors")
    return folder / "prompt"


def _adapter(folder, prompt_NxPxD):
    peft.write_adapter(folder / "adapter", prompt_NxPxD[0], "some/model")
    return folder / "adapter"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("written", [_npy, _folder, _adapter])
def test_a_prompt_that_is_not_finite_is_not_accepted(tmp_path, written, dtype, bad):
    prompt_NxPxD = PROMPT_NxPxD.astype(dtype)
    prompt_NxPxD[0, 2, 5] = bad
    path = written(tmp_path, prompt_NxPxD)
    with pytest.raises(ValueError, match=f"{path}.* holds numbers that are not finite"):
        soft_prompts.read(path)
    for to_format in ("npy", "soft_prompt", "peft"):
        with pytest.raises(ValueError, match="not finite"):
            conversion.convert_soft_prompt(str(path), str(tmp_path / "out"), to_format)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="out.*soft_prompt.safetensors holds numbers that are not finite"):
        soft_prompts.save(tmp_path / "out", prompt_NxPxD, {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [np.int64, np.int8, bool, np.complex64, ">f4", "U1"])
def test_a_prompt_of_no_floats_is_not_accepted(tmp_path, dtype):
    np.save(tmp_path / "prompt.npy", np.ones((3, 8)).astype(dtype))
    with pytest.raises(ValueError, match="prompt.npy holds .*, expected a prompt of at least one vector in one of flo"):
        soft_prompts.read(tmp_path / "prompt.npy")


@pytest.mark.parametrize(
    "written,name",
    [
        (_npy, "prompt.npy"),
        (_folder, "soft_prompt.safetensors"),
        (_folder, "soft_prompt.json"),
        (_adapter, "adapter_config.json"),
        (_adapter, "adapter_model.safetensors"),
    ],
)
def test_a_git_lfs_pointer_is_named_as_one(tmp_path, written, name):
    path = written(tmp_path, PROMPT_NxPxD)
    (path / name if path.is_dir() else path).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer, .*: run `git lfs pull`"):
        soft_prompts.read(path)
