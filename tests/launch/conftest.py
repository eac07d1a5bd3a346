"""A TPU slice whose gcloud runs commands right here."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.launch.fake_cloud import Cloud, git
from tests.launch.programs import LAUNCH


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A git repository with no more than the launch scripts need."""
    if shutil.which("git") is None:
        pytest.skip("setup copies what git archives")
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(LAUNCH, folder / "launch")
    (folder / "constraints.txt").write_text("jax==0.10.2\n")
    git(folder, "init", "--quiet", "--template=")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=x")
    return folder


@pytest.fixture
def cloud(tmp_path, checkout):
    made = Cloud(tmp_path, checkout)
    yield made
    for file in made.folder.glob("*/promot_t5x/run.pid"):
        try:
            os.killpg(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture
def ready(cloud) -> Cloud:
    """A slice that exists and is set up."""
    cloud.well("up", FAKE_STATES="ACTIVE")
    cloud.well("setup")
    cloud.calls()
    return cloud
