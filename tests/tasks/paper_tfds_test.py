"""The paper's tasks from data on disk to scores: TFDS data sets written by TFDS's own builders, and JSONL files.

Every text of a row names its task, its table of rows and its number, so that a wrong column or split shows.
"""

import collections
import dataclasses
import json
import math
import re
import socket
import types

import pytest
import seqio
import tensorflow_datasets as tfds

from promot_t5x.tasks import few_shot, paper

BYTES = seqio.ByteVocabulary()
ROWS = {"train": 10, "test": 4, "other": 1}  # tables of rows; `other` is for splits that are not to be read
AS_NAMED = {"train": "train", "validation": "other", "test": "test"}
ONLY_DEV = {"train": "train", "validation": "test", "test": "other"}
XNLI = ("xnli_en", "xnli_sw", "xnli_zh")
ALL_XNLI = tuple(f"xnli_{language}" for language in paper.XNLI_LANGUAGES)
# TFDS data set, which rows each of its splits gets, folder of JSONL files.
STORED = {
    "rte": ("super_glue/rte:1.0.2", ONLY_DEV, "RTE"),
    "wmt14_enfr": ("wmt14_translate/fr-en:1.0.0", AS_NAMED, "wmt14_enfr"),
    "snli": ("snli:1.1.0", AS_NAMED, "snli"),
    "openbookqa": ("openbookqa:0.1.0", AS_NAMED, "openbookqa"),
    "cb": ("super_glue/cb:1.0.2", ONLY_DEV, "CB"),
    "wic": ("super_glue/wic:1.0.2", ONLY_DEV, "WiC"),
    "trivia_qa": ("trivia_qa/rc.nocontext:1.1.0", ONLY_DEV, "trivia_qa"),
    "web_questions": ("web_questions:1.0.0", {"train": "train", "test": "test"}, "web_questions"),
    "wmt16_ende": ("wmt16_translate/de-en:1.0.0", AS_NAMED, "wmt16_ende"),
    "wmt16_enro": ("wmt16_translate/ro-en:1.0.0", AS_NAMED, "wmt16_enro"),
    "xsum": ("xsum:1.1.0", AS_NAMED, "xsum"),
    "wiki_lingua_en": ("gem/wiki_lingua_english_en:1.1.0", AS_NAMED, "wiki_lingua_en"),
    **{name: ("xnli:1.1.0", {"validation": "train", "test": "test"}, name) for name in XNLI},
}
ENTAILMENT = "{} question: {} Is it true or false or neither? answer:"
QUESTIONS = {
    "rte": "{} question: {} Is it true or false? answer:",
    "wmt14_enfr": "Translate English to French: {}",
    "snli": ENTAILMENT,
    "openbookqa": "Q: {} A) {} B) {} C) {} D) {} A:",
    "cb": ENTAILMENT,
    "wic": "{} {} question: The word {} is used in the same way in the two sentences. Is it true or False? answer:",
    **dict.fromkeys(("trivia_qa", "web_questions"), "Q: {} A:"),
    "wmt16_ende": "Translate English to German: {}",
    "wmt16_enro": "Translate English to Romanian: {}",
    **dict.fromkeys(("xsum", "wiki_lingua_en"), "Article: {} One sentence summary:"),
    **dict.fromkeys(ALL_XNLI, ENTAILMENT),
}
# The official names of the labels in the order of their indices, and how each is spoken.
INFERENCE = {"entailment": "True", "neutral": "Neither", "contradiction": "False"}
LABELS = {
    "rte": {"entailment": "True", "not_entailment": "False"},
    "snli": INFERENCE,
    "openbookqa": dict(zip("ABCD", "ABCD", strict=True)),
    "cb": {"entailment": "True", "contradiction": "False", "neutral": "Neither"},
    "wic": {"False": "False", "True": "True"},
    **dict.fromkeys(ALL_XNLI, INFERENCE),
}
METRICS = {"cb": ["accuracy", "macro_f1"], "trivia_qa": ["exact_match"], "web_questions": ["exact_match"]}
METRICS |= dict.fromkeys(("wmt14_enfr", "wmt16_ende", "wmt16_enro"), ["bleu"])
METRICS |= dict.fromkeys(("xsum", "wiki_lingua_en"), ["rouge2", "rougeL"])


def _numbers(name, table):
    """The numbers of the rows in a table; the last two of SNLI have no gold label."""
    return range(ROWS[table] + (2 if name == "snli" else 0))


def _row(name, table, i):
    """The columns that a question names, and its label, target or accepted answers."""
    columns = [f"{name} {table} {i} né 中 {c}" for c in range(QUESTIONS[name].count("{}"))]
    if name in LABELS:
        return *columns, "-" if i >= ROWS[table] else list(LABELS[name])[i % len(LABELS[name])]
    if name in ("trivia_qa", "web_questions"):
        return *columns, [f"The Answer {table} {i}", f"{table}-{i}!", f"another name of {table} {i}"]
    return *columns, f"Voilà the answer {i} of {table}."


def _questions(name, table):
    """The questions of a table with their targets, in order."""
    for i in range(ROWS[table]):
        *columns, answer = _row(name, table, i)
        target = LABELS[name][answer] if name in LABELS else answer[0] if isinstance(answer, list) else answer
        yield QUESTIONS[name].format(*columns), target


def _tfds_row(name, table, i):
    """A row as the TFDS builder yields it."""
    first, *rest, answer = _row(name, table, i)
    match name.split("_"):
        case ["rte" | "cb"]:
            return {"premise": first, "hypothesis": rest[0], "label": answer, "idx": i}
        case ["snli"]:
            return {"premise": first, "hypothesis": rest[0], "label": -1 if answer == "-" else answer}
        case ["xnli", _]:
            rows = {language: _row(f"xnli_{language}", table, i) for language in paper.XNLI_LANGUAGES}
            premises, hypotheses = ({language: row[i] for language, row in rows.items()} for i in (0, 1))
            return {"premise": premises, "hypothesis": hypotheses, "label": answer}
        case ["wic"]:
            spans = dict.fromkeys(("start1", "start2", "end1", "end2"), 0)
            return {"sentence1": first, "sentence2": rest[0], "word": rest[1], "label": answer, "idx": i, **spans}
        case ["openbookqa"]:
            question = {"stem": first} | {f"choice_{letter}": text for letter, text in zip("ABCD", rest, strict=True)}
            unread = {"fact1": "unread", "humanScore": 1.0, "clarity": 1.0, "turkIdAnonymized": "unread"}
            return {"question": question, "answerKey": answer, **unread}
        case ["trivia", "qa"]:
            if table == "other":  # TFDS's test split has no answers
                answer = ["<unk>"]
            unread = ("matched_wiki_entity_name", "normalized_matched_wiki_entity_name", "normalized_value", "type")
            answers = {"value": answer[0], "aliases": answer[1:] + answer[:1], "normalized_aliases": ["unread"]}
            answers |= dict.fromkeys(unread, "unread")
            named = {"question": first, "question_id": "unread", "question_source": "unread"}
            return {**named, "answer": answers, "entity_pages": [], "search_results": []}
        case ["web", "questions"]:
            return {"url": "unread", "question": first, "answers": answer}
        case ["xsum"]:
            return {"document": first, "summary": answer}
        case ["wiki", "lingua", "en"]:
            unread = {"source_aligned": {"en": "unread"}, "target_aligned": {"en": "unread"}, "references": ["unread"]}
            return {"source": first, "target": answer, "gem_id": "unread", "gem_parent_id": "unread", **unread}
        case ["wmt14" | "wmt16", pair]:
            return {"en": first, pair.removeprefix("en"): answer}


def _jsonl_row(name, table, i):
    """A row as a line of a JSONL file has it."""
    first, *rest, answer = _row(name, table, i)
    match name.split("_"):
        case ["wic"]:
            return {"sentence1": first, "sentence2": rest[0], "word": rest[1], "label": answer == "True"}
        case ["openbookqa"]:
            return {"question_stem": first, "choices": {"text": rest, "label": [*"ABCD"]}, "answerKey": answer}
        case ["trivia" | "web", _]:
            return {"question": first, "answers": answer}
        case ["xsum" | "wiki", *_]:
            return {"document": first, "summary": answer}
        case ["wmt14" | "wmt16", pair]:
            return {"translation": {"en": first, pair.removeprefix("en"): answer}}
    return {"premise": first, "hypothesis": rest[0], "label": answer}


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """All data sets, each stored by its own TFDS builder, which only gets the rows from here."""
    folder = tmp_path_factory.mktemp("tfds")
    no_downloads = types.SimpleNamespace(downloaded_size=0)
    for name in [*STORED][: -len(XNLI) + 1]:  # XNLI has all languages in one
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", True)
            builder, tables = tfds.builder(STORED[name][0], data_dir=folder), STORED[name][1]
            rows = {split: [(i, _tfds_row(name, t, i)) for i in _numbers(name, t)] for split, t in tables.items()}
            patch.setattr(type(builder), "_split_generators", lambda *_, rows=rows: rows)
            patch.setattr(type(builder), "_make_download_manager", lambda *_, **__: no_downloads)
            builder.download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def reading(tfds_folder, monkeypatch):
    """seqio reads from the folder, and any use of the network is an error; seqio's globals are put back."""
    monkeypatch.setattr(seqio.utils.LazyTfdsLoader, "_MEMOIZED_BUILDERS", {})
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tfds_folder))  # what --tfds_data_dir sets
    attempts = []

    def refuse(*args, **_):
        attempts.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", False)
    monkeypatch.setattr(tfds.core.utils.gcs_utils, "exists", refuse)
    yield
    assert not attempts


def _worded(name, split, **kwargs):
    """Questions and targets of a split, in the source's order."""
    task = paper.text_task(name, **kwargs)
    rows = (json.loads(row["row"]) for row in task.source.get_dataset(split, shuffle=False).as_numpy_iterator())
    return [(example.inputs, example.target) for example in map(task.wording.example, rows)]


def _read(name, **lengths):
    """A seqio task and the examples of its test split."""
    task = seqio.TaskRegistry.get(name)
    return task, list(task.get_dataset(lengths or None, split="test", shuffle=False).as_numpy_iterator())


def _scores(task, examples, outputs):
    targets = [task.postprocess_fn("", example=row, is_target=True) for row in examples]
    pairs = zip(outputs, examples, strict=True)
    predictions = [task.postprocess_fn(output, example=row, is_target=False) for output, row in pairs]
    scores = {key: value for metric in task.metric_fns for key, value in metric(targets, predictions).items()}
    return {key: value for key, value in scores.items() if key.split("_")[-1] not in ("stderr", "signature")}


def _bleu_of_one(hit, texts):
    """Corpus BLEU where one text is right and the others are one wrong word each."""
    right, *lengths = (len(re.findall(r"\w+|[^\w\s]", text)) for text in (hit, *texts))
    words = right + len(texts) - 1
    return 100 * math.exp(1 - sum(lengths) / words) * (right / words) ** 0.25  # n-grams beyond words are all right


def test_every_task_of_the_table_is_tested():
    assert [*STORED] == [name for name in paper.TASKS if not name.startswith("xnli")] + [*XNLI]
    assert [*QUESTIONS] == [*paper.TASKS]


@pytest.mark.parametrize("name", STORED)
def test_tfds_finds_the_data_set_where_its_builder_stored_it(tfds_folder, name):
    folder = tfds_folder / STORED[name][0].replace(":", "/")
    assert (folder / "dataset_info.json").is_file()
    assert paper.text_task(name).source.identity("test")["folder"] == str(folder)


@pytest.mark.parametrize("name", STORED)
def test_from_tfds_to_the_score(name):
    task, examples = _read(paper.task(name, BYTES), inputs=512, targets=128)
    texts = [tuple(BYTES.decode(example[key].tolist()) for key in ("inputs", "targets")) for example in examples]
    assert sorted(texts) == sorted(_questions(name, "test"))
    assert all(example[key][-1] == BYTES.eos_id for example in examples for key in ("inputs", "targets"))
    targets = [target for _, target in texts]
    metrics = METRICS.get(name, ["accuracy"])
    assert _scores(task, examples, targets) == pytest.approx(dict.fromkeys(metrics, 100))
    going_on = [f"{target} {question}" for question, target in texts]
    assert _scores(task, examples, going_on) == pytest.approx(dict.fromkeys(metrics, 100))
    assert _scores(task, examples, ["zzz"] * 4) == dict.fromkeys(metrics, 0)
    share = _bleu_of_one(targets[0], targets) if metrics == ["bleu"] else 25
    assert _scores(task, examples, [targets[0], "zzz", "zzz", "zzz"])[metrics[0]] == pytest.approx(share)


def test_a_constant_answer_scores_the_share_of_its_class():
    task, examples = _read(paper.task("cb", BYTES))  # two rows of the first class, one of each of the others
    assert _scores(task, examples, ["True"] * 4) == pytest.approx({"accuracy": 50, "macro_f1": 100 * (2 / 3) / 3})
    assert _scores(task, examples, ["false."] * 4) == {"accuracy": 0, "macro_f1": 0}
    assert _scores(task, examples, ["False. So"] * 4) == pytest.approx({"accuracy": 25, "macro_f1": 100 * (2 / 5) / 3})


@pytest.mark.parametrize("name", sorted(LABELS.keys() & STORED.keys()))
def test_labels_by_their_official_names(tfds_folder, name):
    features = tfds.builder(STORED[name][0], data_dir=tfds_folder).info.features
    assert features["answerKey" if name == "openbookqa" else "label"].names == [*LABELS[name]]
    splits = {"test": "+".join(split for split, table in STORED[name][1].items() if table != "other")}
    assert sorted(_worded(name, "test", splits=splits)) == sorted(
        [*_questions(name, "train"), *_questions(name, "test")]
    )


@pytest.mark.parametrize("name", sorted(STORED.keys() - {"rte"}))
def test_splits_of_tfds(name):
    ours = {"train": "train"} | ({"validation": "other"} if STORED[name][1] is AS_NAMED else {})
    assert {*paper.text_task(name).source.splits} == {*ours, "test"}
    for split, table in ours.items():
        assert sorted(_worded(name, split)) == sorted(_questions(name, table)), split


def test_rte_trains_on_nine_tenths_of_the_training_split_and_chooses_on_the_rest(tfds_folder):
    by_split = {split: _worded("rte", split) for split in paper.text_task("rte").source.splits}
    assert {split: len(rows) for split, rows in by_split.items()} == {"train": 9, "validation": 1, "test": 4}
    stored = tfds.load("super_glue/rte:1.0.2", split="train", data_dir=tfds_folder, download=False)
    questions = list(_questions("rte", "train"))
    assert by_split["train"] + by_split["validation"] == [questions[row["idx"]] for row in stored.as_numpy_iterator()]
    assert sorted(by_split["test"]) == sorted(_questions("rte", "test"))


def test_splits_may_be_slices():
    splits = {"train": "train[:3]", "test": "validation[1:]"}
    whole = {"train": _worded("cb", "train"), "test": _worded("cb", "test")}
    assert _worded("cb", "train", splits=splits) == whole["train"][:3]
    assert _worded("cb", "test", splits=splits) == whole["test"][1:]
    _, examples = _read(paper.task("cb", BYTES, splits=splits, shots=2))
    prompts = [example["inputs_pretokenized"].decode() for example in examples]
    kept, left = ([question for question, _ in rows] for rows in (whole["train"][:3], whole["train"][3:]))
    assert all(sum(question in prompt for question in kept) == 2 for prompt in prompts)
    assert not any(question in prompt for question in left for prompt in prompts)


@pytest.mark.parametrize("name", STORED)
def test_jsonl_files_give_the_prompts_that_tfds_gives(tmp_path, name):
    _, tables, folder = STORED[name]
    (tmp_path / folder).mkdir()
    for table in ("train", "test"):
        lines = [json.dumps(_jsonl_row(name, table, i)) + "\n" for i in _numbers(name, table)]
        (tmp_path / folder / f"{table}.jsonl").write_text("".join(lines))
    assert _worded(name, "test", data_dir=tmp_path) == list(_questions(name, "test"))

    def prompts(**kwargs):
        task = paper.text_task(name, **kwargs)
        rows = task.source.get_dataset("test", shuffle=False)
        dataset = few_shot.prompts(rows, task=task, prompting=few_shot.Prompting(BYTES), shots=4, seed=0)
        return sorted(tuple(row[key].decode() for key in few_shot.TEXT_FEATURES) for row in dataset.as_numpy_iterator())

    whole = {table: split for split, table in tables.items() if table != "other"}  # RTE's own leave a tenth out
    from_tfds = prompts(splits=whole)
    assert from_tfds == prompts(data_dir=str(tmp_path))
    questions, exemplars = sorted(_questions(name, "test")), [" ".join(row) for row in _questions(name, "train")]
    for prompt, _, _ in from_tfds:
        assert sum(exemplar in prompt for exemplar in exemplars) == 4
        assert sum(prompt.endswith(" " + question) for question, _ in questions) == 1


def test_rows_of_snli_without_a_gold_label_are_left_out(tfds_folder):
    whole = tfds.load("snli:1.1.0", split="train", data_dir=tfds_folder, download=False)
    assert collections.Counter(int(row["label"]) for row in whole.as_numpy_iterator())[-1] == 2
    assert sorted(_worded("snli", "train")) == sorted(_questions("snli", "train"))
    for seed in range(3):
        _, examples = _read(paper.task("snli", BYTES, shots=4, seed=seed))
        assert len(examples) == ROWS["test"]
        prompts = [example["inputs_pretokenized"].decode() for example in examples]
        assert not any(f"snli train {i} " in prompt for i in (10, 11) for prompt in prompts)
    paper.task("snli", BYTES, shots=10)
    with pytest.raises(ValueError, match="'snli' has 10 exemplars per prompt, but they are drawn from 10 "):
        _read("snli_10shot_seed0")


@pytest.mark.parametrize("name", ("trivia_qa", "web_questions"))
def test_any_accepted_answer_scores_in_its_normal_form(name):
    task, examples = _read(paper.task(name, BYTES))
    hyphen = {"trivia_qa": " ", "web_questions": ""}[name]  # of "test-0!", in TriviaQA's and in SQuAD's normal form
    alias = f"test{hyphen}{{}}"
    for wording in (
        "answer test {}",
        f"  the {alias.upper()}. ",
        "Another name, of test {}!",
        f"{alias} Q: what? A: no",
    ):
        outputs = [wording.format(re.search(r"test (\d)", str(row["inputs_pretokenized"]))[1]) for row in examples]
        assert _scores(task, examples, outputs) == {"exact_match": 100}
    assert _scores(task, examples, ["answer test"] * 4) == {"exact_match": 0}


def test_a_missing_data_set_is_named_with_those_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"TFDS data set snli:1.1.0 is not in {tmp_path}, which holds none: prepare"
    ):
        _read(paper.task("snli", BYTES))
    for there in ("snli/1.0.0", "super_glue/cb/1.0.2"):
        (tmp_path / there).mkdir(parents=True)
        (tmp_path / there / "dataset_info.json").touch()
    listed = "which holds snli/1.0.0, super_glue/cb/1.0.2: prepare it.* with --data_dir"
    with pytest.raises(FileNotFoundError, match=listed):
        _read("snli")


def test_an_unknown_split_of_tfds_is_named():
    paper.task("cb", BYTES, splits={"test": "dev[:10]"})
    message = "cb:1.0.2 has no split 'dev\\[:10\\]', only test, train, validation: name one"
    with pytest.raises(ValueError, match=message):
        _read("cb")
    for name, wrong in (("wic", "validation[7:]"), ("snli", "validation[a:b]")):
        paper.task(name, BYTES, splits={"test": wrong})
        with pytest.raises(ValueError, match=f"TFDS data set .* has no slice {re.escape(repr(wrong))}"):
            _read(name)
    with pytest.raises(ValueError, match="has no split 'train', only test"):
        _read(paper.task("cb", BYTES, splits={"test": "validation"}, shots=1))  # exemplars come from `train`


@pytest.mark.parametrize("path,there", [("query", "answers question url"), ("question/stem", "none")])
def test_a_column_that_tfds_lacks_is_named(monkeypatch, path, there):
    columns = {"question": (path, "question"), "answers": ("answers", "answers")}
    changed = dataclasses.replace(paper.TASKS["web_questions"], columns=columns)
    monkeypatch.setitem(paper.TASKS, "web_questions", changed)
    with pytest.raises(ValueError, match=f"web_questions:1.0.0 has no feature '{path}'; its features are ") as error:
        _read(paper.task("web_questions", BYTES))
    assert set(there.split()) <= set(re.findall(r"\w+", str(error.value).split("its features are")[1]))
