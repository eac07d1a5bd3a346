"""Versions of the packages that the numbers depend on."""

import platform
from importlib import metadata

_FRAMEWORK = ("jax", "flax", "optax", "orbax", "seqio", "promot_t5x")

_EVALUATION = ("tfds", "sentencepiece", "sacrebleu", "rouge-score")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide the numbers; "not installed" where one is missing.

    >>> versions()["jax"].split(".")[0]
    '0'
    """
    found = {"python": platform.python_version()}
    distributions = {"orbax": "orbax-checkpoint", "promot_t5x": "promot-t5x", "tfds": "tensorflow-datasets"}
    for package in (*_FRAMEWORK, *_EVALUATION):
        try:
            found[package] = metadata.version(distributions.get(package, package))
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
