"""promot_t5x.data.evaluation_examples against features and targets worked out by hand."""

import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import cuts, evaluation_examples
from promot_t5x.tasks import few_shot

LENGTHS = {"inputs": 5, "targets": 4}
N = 24  # example i has the inputs i+10, 1..6 times, and the targets i+10, i+11


@pytest.fixture(scope="module", autouse=True)
def _tasks():
    def read(split, shuffle_files):
        rows = [([i + 10] * (i % 6 + 1), [i + 10, i + 11]) for i in range({"train": N, "empty": 0}[split])]
        return tf.data.Dataset.from_generator(
            lambda: ({"inputs": a, "targets": b} for a, b in rows),
            output_signature={k: tf.TensorSpec([None], tf.int32) for k in LENGTHS},
        )

    vocabulary = seqio.PassThroughVocabulary(100, eos_id=1)
    features = {k: seqio.Feature(vocabulary, add_eos=k == "targets") for k in LENGTHS}
    source = seqio.FunctionDataSource(read, splits=("train", "empty"))
    seqio.TaskRegistry.add("examples_plain", source, features, preprocessors=[seqio.preprocessors.append_eos])
    seqio.MixtureRegistry.add("examples_mixture", [("examples_plain", 1.0)])
    yield
    seqio.MixtureRegistry.remove("examples_mixture")
    seqio.TaskRegistry.remove("examples_plain")


def test_a_split_keeps_its_order_and_counts_what_it_trims():
    split = evaluation_examples.evaluation_examples("examples_plain", LENGTHS, "train")
    assert (split.features["decoder_target_tokens"][:, 0] - 10).tolist() == list(range(N))
    assert split.features["decoder_target_tokens"][0].tolist() == [10, 11, 1, 0]
    assert split.features["decoder_input_tokens"][0].tolist() == [0, 10, 11, 1]
    assert split.features["encoder_input_tokens"].shape == (N, 5)
    assert split.truncated == N // 6  # inputs of six tokens
    assert split.cuts == {"input_cut": N // 6, "target_cut": 0, "target_unwritable": 0}
    assert [len(e["inputs"]) for e in split.examples[:6]] == [1, 2, 3, 4, 5, 5]
    assert len(evaluation_examples.evaluation_examples("examples_plain", LENGTHS, "train", limit=5).targets) == 5


def test_a_second_call_reads_nothing_again():
    first = evaluation_examples.evaluation_examples("examples_plain", LENGTHS, "train")
    assert evaluation_examples.evaluation_examples("examples_plain", dict(LENGTHS), "train") is first
    assert evaluation_examples.evaluation_examples("examples_plain", {**LENGTHS, "inputs": 6}, "train") is not first


def test_targets_are_postprocessed():
    def postprocess(output, example, is_target):
        assert is_target and "other" in example
        return output.upper()

    rows = {"inputs": ["a", "b"], "targets": ["yes", "no"], "other": [1, 2]}
    source = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), ["test"])
    features = {k: seqio.Feature(seqio.ByteVocabulary()) for k in LENGTHS}
    seqio.TaskRegistry.add(
        "examples_text", source, features, preprocessors=[seqio.preprocessors.tokenize], postprocess_fn=postprocess
    )
    split = evaluation_examples.evaluation_examples("examples_text", LENGTHS, "test")
    assert split.targets == ["YES", "NO"]
    assert split.examples[0]["inputs_pretokenized"] == b"a"


def test_a_task_that_shortens_its_prompts_counts_for_itself():
    cuts = {"exemplars_dropped": [0, 2, 1, 0], "input_cut": [0, 0, 1, 0], "article_cut": [1, 1, 0, 0]}
    rows = {"inputs": [[5] * 5] * 4, "targets": [[7, 8]] * 3 + [[7, 8, 9]], **cuts}
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(
            {k: tf.ragged.constant(v) if k == "targets" else v for k, v in rows.items()}
        ),
        ["test"],
    )
    features = {k: seqio.Feature(seqio.PassThroughVocabulary(100, eos_id=1), add_eos=False) for k in LENGTHS}
    seqio.TaskRegistry.add("examples_cuts", source, features, preprocessors=[])
    split = evaluation_examples.evaluation_examples("examples_cuts", {"inputs": 5, "targets": 2}, "test")
    assert {name: count for name, count in split.cuts.items() if count} == {
        "exemplars_dropped": 3,
        "input_cut": 1,
        "article_cut": 2,
        "target_cut": 1,
    }
    assert split.truncated == 2, "prompts; an article that is cut first, or a target, is not lost to their length"


def test_tasks_and_framework_agree_on_the_features_that_count():
    assert few_shot.COUNTS == cuts.OF_PROMPTS


def test_a_missing_vocabulary_is_named():
    rows = {"inputs": ["a"], "targets": ["b"]}
    seqio.TaskRegistry.add(
        "examples_no_vocabulary",
        seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), ["test"]),
        {k: seqio.Feature(seqio.SentencePieceVocabulary("nowhere/sentencepiece.model")) for k in LENGTHS},
        preprocessors=[seqio.preprocessors.tokenize],
    )
    with pytest.raises(FileNotFoundError, match="no vocabulary file nowhere/sentencepiece.model; set VOCABULARY"):
        evaluation_examples.evaluation_examples("examples_no_vocabulary", LENGTHS, "test")


def test_errors_list_what_exists():
    with pytest.raises(ValueError, match="'examples_mixture' is a mixture"):
        evaluation_examples.evaluation_examples("examples_mixture", LENGTHS, "train")
    with pytest.raises(ValueError, match="examples_plain"):
        evaluation_examples.evaluation_examples("examples_plan", LENGTHS, "train")
    with pytest.raises(ValueError, match="no split 'dev'"):
        evaluation_examples.evaluation_examples("examples_plain", LENGTHS, "dev")
    with pytest.raises(ValueError, match="'empty' of task 'examples_plain' is empty"):
        evaluation_examples.evaluation_examples("examples_plain", LENGTHS, "empty")
