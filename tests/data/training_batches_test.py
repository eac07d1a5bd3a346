"""promot_t5x.data.training_batches against streams, shifts and paddings worked out by hand or in numpy."""

import collections
import functools
import itertools
import json
import re

import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import evaluation_examples, training_batches
from promot_t5x.tasks import exemplars, few_shot, jsonl

LENGTHS = {"inputs": 5, "targets": 4}
N = 24  # examples of the train split: example i has inputs i+10, ..., 1..6 of them, and targets i+10, i+11


def _example(i):
    return [i + 10] * (i % 6 + 1), [i + 10, i + 11]


def _examples(n):
    rows = [_example(i) for i in range(n)]
    signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}
    return tf.data.Dataset.from_generator(
        lambda: ({"inputs": a, "targets": b} for a, b in rows), output_signature=signature
    )


def _source(sizes):
    return seqio.FunctionDataSource(lambda split, shuffle_files: _examples(sizes[split]), splits=tuple(sizes))


def _with_prompt_seven(ds):
    return ds.map(lambda example: {**example, "soft_prompt_ids": 7})


def _append_eos(ds, output_features):
    return seqio.preprocessors.append_eos(ds, output_features)


def _drop_all(ds):
    return ds.filter(lambda example: tf.size(example["inputs"]) < 0)


def _keep(ds, low, high):
    """Only the examples from number `low` to number `high`."""
    return ds.filter(lambda example: (example["targets"][0] >= low + 10) & (example["targets"][0] <= high + 10))


@pytest.fixture(scope="module", autouse=True)
def _tasks():
    vocabulary = seqio.PassThroughVocabulary(100, eos_id=1)
    features = {k: seqio.Feature(vocabulary, add_eos=k == "targets") for k in ("inputs", "targets")}
    prompted = {**features, "soft_prompt_ids": seqio.Feature(vocabulary, add_eos=False, rank=0)}
    eos = seqio.preprocessors.append_eos
    sizes = {"train": N, "small": 3, "empty": 0}
    added = {
        "data_plain": dict(source=_source(sizes), preprocessors=[eos], output_features=features),
        "data_other": dict(source=_source(sizes), preprocessors=[eos], output_features=features),
        "data_filtered": dict(source=_source(sizes), preprocessors=[_drop_all, eos], output_features=features),
        "data_prompted": dict(source=_source(sizes), preprocessors=[eos, _with_prompt_seven], output_features=prompted),
    }
    for low, high in ((0, 2), (1, 3), (5, 5)):
        keep = functools.partial(_keep, low=low, high=high)
        added[f"data_{low}_to_{high}"] = dict(
            source=_source(sizes), preprocessors=[keep, eos], output_features=features
        )
    for name, task in added.items():
        seqio.TaskRegistry.add(name, **task)
    seqio.MixtureRegistry.add("data_mixture", [("data_plain", 3.0), ("data_other", 1.0)])
    seqio.MixtureRegistry.add("data_mixture_filtered", [("data_plain", 3.0), ("data_0_to_2", 1.0)])
    yield
    seqio.MixtureRegistry.remove("data_mixture")
    seqio.MixtureRegistry.remove("data_mixture_filtered")
    for name in added:
        seqio.TaskRegistry.remove(name)


def _config(task="data_plain", **kwargs):
    return training_batches.DatasetConfig(task, LENGTHS, **{"batch_size": 8, "shards": 4, **kwargs})


def _take(n, config, **kwargs):
    return list(itertools.islice(training_batches.training_batches(config, **kwargs), n))


def _assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert list(batch) == list(other)
        for k in batch:
            assert batch[k].dtype == other[k].dtype and batch[k].tobytes() == other[k].tobytes(), k


def _ids(batch):
    return batch["decoder_target_tokens"][:, 0] - 10  # the example's index


@pytest.mark.parametrize("task", ["data_plain", "data_mixture"])
def test_a_stream_is_a_function_of_task_and_seed(task):
    batches = _take(10, _config(task))
    _assert_equal(_take(10, _config(task)), batches)
    _assert_equal(_take(4, _config(task), start_batch=6), batches[6:])
    other = _take(10, _config(task, seed=1))
    assert any((_ids(a) != _ids(b)).any() for a, b in zip(batches, other, strict=True))


@pytest.mark.parametrize("task", ["data_plain", "data_mixture"])
@pytest.mark.parametrize("batch_size,shards", [(8, 4), (12, 4), (8, 8), (8, 1)])
def test_processes_share_the_batches_of_one(task, batch_size, shards):
    config = _config(task, batch_size=batch_size, shards=shards)
    whole = _take(5, config, start_batch=2)
    for count in (2, 4):
        blocks = np.split(np.arange(batch_size), count)
        parts = [_take(5, config, start_batch=2, rows=rows) for rows in blocks]
        joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]
        _assert_equal(joined, whole)
        assert [len(_ids(part[0])) for part in parts] == [batch_size // count] * count


@pytest.mark.parametrize("task", ["data_plain", "data_mixture"])
@pytest.mark.parametrize("rows", [[1, 4, 5], [0, 7], [6], [2, 3, 6, 7], np.arange(8)])
def test_any_rows_are_those_of_the_whole_batches(task, rows):
    """Where a mesh cuts batches, a process's rows need not be adjacent."""
    whole, part = (_take(4, _config(task), start_batch=1, rows=taken) for taken in (None, rows))
    _assert_equal(part, [{k: v[rows] for k, v in batch.items()} for batch in whole])
    assert [len(_ids(batch)) for batch in part] == [len(rows)] * 4


@pytest.mark.parametrize("rows,shards", [([1, 4, 5], [0, 1]), ([2, 6], [2]), ([7, 0], [0, 3]), (None, [0, 1, 2, 3])])
def test_only_the_shards_of_the_rows_are_read(rows, shards, monkeypatch):
    built, build = [], training_batches._TrainingStreams.shard

    def recorded(self, shard, start_batch):
        built.append(shard)
        return build(self, shard, start_batch)

    monkeypatch.setattr(training_batches._TrainingStreams, "shard", recorded)
    (batch,) = _take(1, _config(), rows=rows)
    assert sorted(built) == shards
    assert set(_ids(batch) % 4) == set(shards)


def test_row_r_comes_from_shard_r_mod_s_once_an_epoch():
    batches = _take(3 * N // 8, _config())  # three epochs
    ids = np.stack([_ids(batch) for batch in batches])
    epochs = []
    for shard in range(4):
        stream = ids[:, shard::4].reshape(3, N // 4)
        for epoch in stream:
            assert sorted(epoch) == list(range(shard, N, 4))
        epochs.append(stream)
    assert any((stream[0] != stream[1]).any() for stream in epochs)  # shuffled anew


def test_arrays_equal_a_numpy_construction():
    seen = []
    for batch in _take(3, _config(soft_prompt_id=2)):
        inputs, targets = np.zeros((8, 5), np.int32), np.zeros((8, 4), np.int32)
        for row, i in enumerate(_ids(batch)):
            tokens, target = _example(i)
            inputs[row, : len(tokens)] = tokens[:5]
            targets[row, :3] = [*target, 1]
        expected = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": np.concatenate([np.zeros((8, 1), np.int32), targets[:, :3]], axis=1),
            "decoder_target_tokens": targets,
            "decoder_loss_weights": (targets > 0).astype(np.float32),
            "soft_prompt_ids": np.full(8, 2, np.int32),
        }
        _assert_equal([batch], [expected])
        seen += _ids(batch).tolist()
    assert sorted(seen) == list(range(N)), "the three batches are one epoch"


def test_a_task_may_name_its_own_prompt():
    (batch,) = _take(1, _config("data_prompted"))
    assert batch["soft_prompt_ids"].tolist() == [7] * 8


def test_a_mixture_mixes_by_its_rates():
    ids = np.concatenate([_ids(batch) for batch in _take(30, _config("data_mixture"))])
    assert set(ids) == set(range(N))


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Registers questions q0 to q23 with the answers a0 to a23 and one exemplar, and returns a reader of batches."""
    folder = tmp_path_factory.mktemp("shots")
    rows = [{"input": f"q{i}", "target": f"a{i}"} for i in range(N)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vocabulary = seqio.ByteVocabulary()
    jsonl.jsonl_task("data_shots", str(folder), vocabulary=vocabulary)
    questions = few_shot.registered("data_shots")
    assert questions is not None
    for mode in exemplars.MODES:
        few_shot.register(questions.task, few_shot.Prompting(vocabulary, exemplars=mode), shots=1)
    yield lambda batch: [
        tuple(map(int, re.fullmatch(r"q(\d+) a\1 q(\d+)", vocabulary.decode(row.tolist())).groups()))  # pyright: ignore
        for row in batch["encoder_input_tokens"]
    ]
    for name in ("data_shots", "data_shots_1shot_seed0", "data_shots_1shot_seed0_fixed"):
        seqio.TaskRegistry.remove(name)


def _shots_config(task, **kwargs):
    lengths = {"inputs": 16, "targets": 8}
    return training_batches.DatasetConfig(task, lengths, **{"batch_size": 8, "shards": 4, **kwargs})


def test_one_shot_training_draws_exemplars_anew_in_every_epoch(shots):
    drawn = collections.defaultdict(list)
    for batch in _take(10 * N // 8, _shots_config("data_shots_1shot_seed0")):
        for exemplar, question in shots(batch):
            drawn[question].append(exemplar)
    assert sorted(drawn) == list(range(N)) and {len(of_question) for of_question in drawn.values()} == {10}
    # Ten draws from 23 others hold 8.3 different ones on average, and fewer than 5 once in ten thousand times.
    assert min(len(set(of_question)) for of_question in drawn.values()) >= 5
    assert all(question not in of_question for question, of_question in drawn.items())


def test_a_fixed_exemplar_stays_fixed_in_training(shots):
    pairs = {
        pair for batch in _take(4 * N // 8, _shots_config("data_shots_1shot_seed0_fixed")) for pair in shots(batch)
    }
    assert len(pairs) == N and len({exemplar for exemplar, _ in pairs}) == 2  # one of them for the other itself


@pytest.mark.parametrize("start_batch", [1, 3, 7])
def test_a_resumed_run_draws_the_same_exemplars(shots, start_batch):
    config = _shots_config("data_shots_1shot_seed0")
    whole = _take(10, config)
    _assert_equal(_take(10 - start_batch, config, start_batch=start_batch), whole[start_batch:])
    _assert_equal(_take(10, config, rows=[2, 5]), [{k: v[[2, 5]] for k, v in batch.items()} for batch in whole])


def test_evaluation_of_the_same_task_keeps_a_question_s_exemplars(shots):
    """Also of questions that were trained on, and after training."""
    name, lengths = "data_shots_1shot_seed0", {"inputs": 16, "targets": 8}
    before = evaluation_examples.evaluation_examples(name, lengths, "train")
    _take(6, _shots_config(name))
    evaluation_examples.forget()
    after = evaluation_examples.evaluation_examples(name, lengths, "train")
    texts = [example["inputs_pretokenized"].decode() for example in before.examples]
    assert [example["inputs_pretokenized"].decode() for example in after.examples] == texts
    assert len(texts) == N and len({text.split()[0] for text in texts}) > 5


def test_files_are_read_in_pieces(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("".join(f"{10 * i + j}\n" for j in range(4)))
    feature = seqio.Feature(seqio.PassThroughVocabulary(100), add_eos=False)

    def parse(ds):
        return ds.map(lambda line: dict.fromkeys(LENGTHS, tf.strings.to_number([line], tf.int32) + 10))

    source = seqio.TextLineDataSource({"train": str(tmp_path / "*.txt")})
    seqio.TaskRegistry.add("data_files", source, {k: feature for k in LENGTHS}, preprocessors=[parse])
    batches = _take(4, _config("data_files"))
    _assert_equal(_take(2, _config("data_files"), start_batch=2), batches[2:])
    for shard in range(4):
        stream = np.concatenate([_ids(batch)[shard::4] for batch in batches])
        assert len(set(stream // 10)) == 1 and sorted(stream[:4]) == sorted(stream[4:]) == sorted(set(stream))


@pytest.mark.parametrize(
    "change,sentence",
    [
        (
            dict(batch_size=10),
            "training_batches.DatasetConfig.batch_size=10 is not a multiple of training_batches.DatasetConfig.shards=4",
        ),
        (dict(shards=0), "training_batches.DatasetConfig.shards is 0"),
        (dict(seed=-1), "training_batches.DatasetConfig.seed is -1"),
        (dict(soft_prompt_id=-2), "training_batches.DatasetConfig.soft_prompt_id is -2"),
    ],
)
def test_configuration_errors_name_the_parameter(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        _config(**change)


def test_lengths_must_name_both_features():
    with pytest.raises(ValueError, match="training_batches.DatasetConfig.task_feature_lengths"):
        training_batches.DatasetConfig("data_plain", {"inputs": 3})


@pytest.mark.parametrize(
    "config,sentence",
    [
        (dict(task="data_plian"), "mixture_or_task_name='data_plian'.*data_plain"),
        (dict(split="validation"), "no split 'validation', only train, small, empty"),
        (
            dict(split="small"),
            "'small' of task 'data_plain' has 3 examples, fewer than training_batches.DatasetConfig.shards=4",
        ),
        (dict(split="empty"), "'empty' of task 'data_plain' is empty"),
        (dict(task="data_filtered"), "'train' of task 'data_filtered' is empty after its preprocessors"),
    ],
)
def test_data_errors_come_before_the_first_batch(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        training_batches.training_batches(_config(**config))


@pytest.mark.parametrize(
    "task,rows,left,empty",
    [
        ("data_0_to_2", None, 3, 1),
        ("data_1_to_3", None, 3, 1),  # shard 0 is the empty one
        ("data_5_to_5", None, 1, 3),
        ("data_mixture_filtered", None, 3, 1),
        ("data_0_to_2", [2, 7], 3, 1),  # a process reads shard 3 for row 7
    ],
)
def test_a_shard_that_a_filter_leaves_empty_is_no_endless_wait(task, rows, left, empty):
    """The stream of an empty shard would look for its first example forever."""
    name = task.replace("mixture_filtered", "0_to_2")
    sentence = f"'{name}' has {left} examples after its preprocessors, which leave {empty} of 4 shards empty"
    with pytest.raises(ValueError, match=sentence):
        training_batches.training_batches(_config(task), rows=rows)


def test_what_a_filter_leaves_is_trained_on_where_every_shard_has_some():
    """A process whose own shards have examples reads on; so does one with fewer shards."""
    (batch,) = _take(1, _config("data_0_to_2"), rows=[0, 1, 2, 4])
    assert _ids(batch).tolist() == [0, 1, 2, 0]
    (batch,) = _take(1, _config("data_5_to_5", shards=1))
    assert _ids(batch).tolist() == [5] * 8


def test_a_file_without_rows_is_named_too(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("11\n" * (i != 2))
    feature = seqio.Feature(seqio.PassThroughVocabulary(100), add_eos=False)

    def parse(ds):
        return ds.map(lambda line: dict.fromkeys(LENGTHS, tf.strings.to_number([line], tf.int32)))

    source = seqio.TextLineDataSource({"train": str(tmp_path / "*.txt")})
    seqio.TaskRegistry.add("data_empty_file", source, {k: feature for k in LENGTHS}, preprocessors=[parse])
    with pytest.raises(ValueError, match="'data_empty_file' has 3 examples after its preprocessors, which leave 1 of"):
        training_batches.training_batches(_config("data_empty_file"))


def test_a_missing_vocabulary_is_an_error_before_the_first_batch():
    vocabulary = seqio.SentencePieceVocabulary("nowhere/sentencepiece.model")
    seqio.TaskRegistry.add(
        "data_no_vocabulary",
        seqio.FunctionDataSource(lambda split, shuffle_files: pytest.fail("rows are read first"), splits=["train"]),
        {k: seqio.Feature(vocabulary) for k in LENGTHS},
        preprocessors=[seqio.preprocessors.tokenize],
    )
    with pytest.raises(FileNotFoundError, match="no vocabulary file nowhere/sentencepiece.model; set VOCABULARY"):
        training_batches.training_batches(_config("data_no_vocabulary"))


@pytest.mark.parametrize("rows", [[], [8], [0, 9], [-1, 0]])
def test_rows_outside_the_batch_are_named(rows):
    sentence = re.escape(
        f"rows are {rows}, expected at least one, each from 0 to 7, training_batches.DatasetConfig.batch_size minus one"
    )
    with pytest.raises(ValueError, match=sentence):
        training_batches.training_batches(_config(), rows=rows)


def test_fewer_shards_read_a_small_split():
    (batch,) = _take(1, _config(split="small", shards=1))
    assert set(_ids(batch)) == {0, 1, 2}
    (batch,) = _take(1, _config(split="small", batch_size=3, shards=3))
    assert _ids(batch).tolist() == [0, 1, 2], "as many shards as examples"


def test_rows_are_what_seqio_converts_them_to():
    converter = seqio.EncDecFeatureConverter(pack=False)
    plain = seqio.get_mixture_or_task("data_plain").get_dataset(LENGTHS, split="train", shuffle=False)
    converted = converter(plain.map(lambda ex: {k: ex[k] for k in LENGTHS}), LENGTHS)
    by_id = {int(row["decoder_target_tokens"][0]) - 10: row for row in converted.as_numpy_iterator()}
    for batch in _take(2, _config(soft_prompt_id=-1)):
        for r, i in enumerate(_ids(batch)):
            for k, v in by_id[i].items():
                np.testing.assert_array_equal(batch[k][r], v)


def test_a_cached_task_is_read_from_its_cache(tmp_path, monkeypatch):
    """The files of the cache hold other rows than the source: 40 to 47, before the preprocessors after caching."""
    vocabulary = seqio.PassThroughVocabulary(100, eos_id=1)
    seqio.TaskRegistry.add(
        "data_cached",
        _source({"train": N}),
        {k: seqio.Feature(vocabulary, add_eos=k == "targets") for k in LENGTHS},
        preprocessors=[lambda ds: pytest.fail("the cache was not read"), seqio.CacheDatasetPlaceholder(), _append_eos],
    )
    folder = tmp_path / "data_cached"
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
        for token in range(40, 48):
            ids = tf.train.Feature(int64_list=tf.train.Int64List(value=[token]))
            example = tf.train.Example(features=tf.train.Features(feature={k: ids for k in LENGTHS}))
            writer.write(example.SerializeToString())
    described = {k: {"shape": [None], "dtype": "int32"} for k in LENGTHS}
    info = {"features": described, "num_shards": 1, "seqio_version": "0.0.19"}
    (folder / "info.train.json").write_text(json.dumps(info))
    (folder / "stats.train.json").write_text(json.dumps({"examples": 8}))
    (folder / "COMPLETED").touch()
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(tmp_path)])
    try:
        (batch,) = _take(1, _config("data_cached", use_cached=True))
        with pytest.raises(pytest.fail.Exception, match="the cache was not read"):
            _take(1, _config("data_cached"))
    finally:
        seqio.TaskRegistry.remove("data_cached")
    assert sorted(batch["encoder_input_tokens"][:, 0]) == list(range(40, 48))
    np.testing.assert_array_equal(batch["decoder_target_tokens"][:, 1:3], [[1, 0]] * 8)
    # Tasks without a cache are preprocessed as ever.
    for with_cache, without in zip(_take(2, _config(use_cached=True)), _take(2, _config()), strict=True):
        np.testing.assert_array_equal(with_cache["encoder_input_tokens"], without["encoder_input_tokens"])


def test_a_module_that_cannot_be_imported():
    with pytest.raises(ValueError, match="DatasetConfig.module is 'no_such_module'.*set MIXTURE_OR_TASK_MODULE to"):
        training_batches.DatasetConfig("data_plain", LENGTHS, module="no_such_module")
