"""Versions of the packages that results depend on."""

import platform
from importlib import metadata

_FRAMEWORK = ("jax", "flax", "optax", "orbax", "seqio", "promot_t5x")

_EVALUATION = ("tfds", "sentencepiece", "sacrebleu", "rouge-score")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; "not installed" for a missing one.

    >>> versions()["jax"].split(".")[0]
    '0'
    """
    version_of = {"python": platform.python_version()}
    distributions = {"orbax": "orbax-checkpoint", "promot_t5x": "promot-t5x", "tfds": "tensorflow-datasets"}
    for package in (*_FRAMEWORK, *_EVALUATION):
        try:
            version_of[package] = metadata.version(distributions.get(package, package))
        except metadata.PackageNotFoundError:
            version_of[package] = "not installed"
    return version_of
