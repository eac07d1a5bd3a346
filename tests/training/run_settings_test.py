"""promot_t5x.training.run_settings: what is recorded of a run's data."""

import json

import pytest
import seqio

from promot_t5x.data import training_batches
from promot_t5x.evaluation import scoring
from promot_t5x.tasks import jsonl
from promot_t5x.training import run_settings
from promot_t5x.training.validation import Validation

LENGTHS = {"inputs": 8, "targets": 4}


@pytest.fixture
def mixture(tmp_path):
    """A mixture of two tasks; yields its name."""
    names = ("settings_one", "settings_other")
    for name in names:
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            (tmp_path / name / f"{split}.jsonl").write_text(json.dumps({"input": name, "target": split}))
        jsonl.jsonl_task(name, str(tmp_path / name), vocabulary=seqio.ByteVocabulary())
    seqio.MixtureRegistry.add("settings_mixture", [(name, 1.0) for name in names])
    yield "settings_mixture"
    seqio.MixtureRegistry.remove("settings_mixture")
    for name in names:
        seqio.TaskRegistry.remove(name)


def test_data_of_a_mixture_that_a_task_of_its_own_validates_have_both_splits(mixture):
    dataset = training_batches.DatasetConfig(mixture, LENGTHS, batch_size=8)
    validation = Validation("settings_one", "validation", scoring.EvaluationConfig(LENGTHS))
    tasks = run_settings.made_of(dataset, validation)
    data = run_settings.data_of(tasks)
    assert {name: set(splits) for name, splits in data.items()} == {
        "settings_one": {"train", "validation"},
        "settings_other": {"train"},
    }
    assert data["settings_one"]["train"] == tasks[mixture]["settings_one"]["data"]["train"]
    assert data["settings_one"]["train"] != data["settings_one"]["validation"]
