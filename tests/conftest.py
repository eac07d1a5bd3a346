"""Settings every test shares: CPU only, quiet TensorFlow, the folder of shared fixtures."""

import os
import pathlib

# Before anything imports jax or tensorflow: tests check numbers on the CPU whatever the machine offers.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder of fixtures and data sets outside the repository, $PROMOT_SHARED or `shared` beside the repository."""
    folder = pathlib.Path(os.environ.get("PROMOT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} with fixtures and data; set PROMOT_SHARED to where it is")
    return folder
