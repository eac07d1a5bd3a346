"""What the tests of training share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation():
    """Every program here runs a few times: most of the time is compilation, which needs no optimisation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
