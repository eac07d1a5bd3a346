"""What every test shares: CPU only, quiet TensorFlow, no global state left over, the folders of data."""

import dataclasses
import importlib.util
import os
import pathlib
import tempfile

# Before anything imports jax or tensorflow: tests check numbers on the CPU whatever the machine offers.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # A program is compiled once for all tests, workers and commands that are run, which inherit these.
    _COMPILED = tempfile.TemporaryDirectory(prefix="promot_t5x_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import seqio  # noqa: E402

import promot_t5x.tasks.toy_world  # noqa: E402, F401  # what it registers is there before the first test
from promot_t5x.checkpoints import saving  # noqa: E402
from promot_t5x.configuration import gin_statements  # noqa: E402
from promot_t5x.models import architecture, encoder_decoder  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Tests marked tpu_compiler are skipped where the compiler is absent."""
    if item.get_closest_marker("tpu_compiler") and importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: make test-plan")


@pytest.fixture(autouse=True)
def nothing_global_stays():
    """No gin configuration and no seqio task outlives the test that made it."""
    before = set(seqio.TaskRegistry.names())
    yield
    gin_statements.clear()
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


@pytest.fixture(scope="session", autouse=True)
def pools_of_exemplars(tmp_path_factory):
    """Pools are kept in a folder of the test run, not in the user's."""
    os.environ["PROMOT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def testdata() -> pathlib.Path:
    """The folder of what other programs computed; its README says which."""
    return ROOT / "tests" / "testdata"


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder of real text outside the repository, $PROMOT_SHARED or `shared` next to the repository."""
    folder = pathlib.Path(os.environ.get("PROMOT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} with real text; set PROMOT_SHARED to where it is")
    return folder


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A network for the binaries: folder/with has a prompt that changes its answers, folder/without has none."""

    sizes: dict[str, int]
    folder: pathlib.Path

    @property
    def flags(self) -> list[str]:
        return [f"--gin.architecture.T5Config.{name}={value}" for name, value in self.sizes.items()]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> TinyModel:
    """Its weights are drawn by numpy; its vocabulary is the toy world's, which bytes fit into as well."""
    sizes = dict(vocab_size=288, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1)
    sizes |= dict(num_decoder_layers=1, prompt_length=4)
    folder = tmp_path_factory.mktemp("tiny_model")
    rng = np.random.default_rng(0)
    shapes = encoder_decoder.EncoderDecoderModel(architecture.T5Config(**sizes)).abstract_params()
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    params["soft_prompt"] = {"embedding": 5 * params["soft_prompt"]["embedding"]}
    saving.export(folder / "with", params, {"step": 0, "base": None})
    del params["soft_prompt"]
    saving.export(folder / "without", params, {"step": 0, "base": None})
    return TinyModel(sizes, folder)
