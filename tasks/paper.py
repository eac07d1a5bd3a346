"""The tasks of the ProMoT paper (arXiv 2211.00635v3): templates of Table 7, data of Table 8, postprocessing of B.2.

Splits are named by their use: `train` is for training and exemplars, `validation` chooses checkpoints, `test` is
reported. The paper reports the dev split of RTE, CB and WiC; TriviaQA's own test split has no answers. RTE trains on
nine tenths of its training split and validates on the rest, so that the reported split plays no part in any choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from promot_t5x.tasks import metrics
from promot_t5x.tasks.wording import Wording

with epy.lazy_imports():  # the table of tasks needs no seqio
    import seqio
    import tensorflow as tf

    from promot_t5x.tasks import few_shot, sources, vocabularies

_ALL = {"train": "train", "validation": "validation", "test": "test"}
_ONLY_DEV = {"train": "train", "test": "validation"}
ENTAILMENT = "{premise} question: {hypothesis} Is it true or false or neither? answer:"
XNLI_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")


@dataclasses.dataclass(frozen=True)
class PaperTask:
    """One line of the paper's tables.

    Attributes:
      wording: template, labels in the data set's order, verbalizers, prefix.
      metrics: the first one is the paper's.
      tfds: TFDS data set and version.
      splits: the TFDS split for each of our splits.
      sizes: number of rows of each of our splits (from the TFDS catalog).
      columns: the path of each column in TFDS and in a JSONL line.
      folder: the folder of JSONL files in DATA_DIR.
    """

    wording: Wording
    metrics: tuple[metrics.Metric, ...]
    tfds: str
    splits: Mapping[str, str]
    sizes: Mapping[str, int]
    columns: Mapping[str, tuple[sources.TfdsColumn, str]]
    folder: str


def _same(*columns: str) -> dict[str, tuple[sources.TfdsColumn, str]]:
    """Columns with the same name everywhere."""
    return {column: (column, column) for column in columns}


def _translation(folder: str, tfds: str, language: str, code: str, sizes: Mapping[str, int]) -> PaperTask:
    return PaperTask(
        wording=Wording(f"Translate English to {language}: {{source}}", prefix="Translate"),
        metrics=(metrics.bleu,),
        tfds=tfds,
        splits=_ALL,
        sizes=sizes,
        columns={"source": ("en", "translation/en"), "target": (code, f"translation/{code}")},
        folder=folder,
    )


def _in_language(example: Mapping[str, Any], *, language: str) -> tf.Tensor:
    """The hypothesis of one language among XNLI's parallel ones."""
    is_language = tf.equal(example["hypothesis"]["language"], language)
    return tf.boolean_mask(example["hypothesis"]["translation"], is_language)[0]


def _xnli(language: str) -> PaperTask:
    hypothesis = functools.partial(_in_language, language=language)
    return PaperTask(
        wording=Wording(ENTAILMENT, ("entailment", "neutral", "contradiction"), ("True", "Neither", "False")),
        metrics=(metrics.accuracy,),
        tfds="xnli:1.1.0",  # it has no training split: validation gives the exemplars
        splits={"train": "validation", "test": "test"},
        sizes={"train": 2490, "test": 5010},
        columns={
            "premise": (f"premise/{language}", "premise"),
            "hypothesis": (hypothesis, "hypothesis"),
            "label": ("label", "label"),
        },
        folder=f"xnli_{language}",
    )


_QUESTION = Wording("Q: {question} A:", prefix="Q:")
_SUMMARY = Wording("Article: {article} One sentence summary:", prefix="Article:", max_input_tokens=1024)

TASKS: dict[str, PaperTask] = {
    # Fine-tuning tasks (section 5.1 and appendix C)
    "rte": PaperTask(
        wording=Wording(
            "{premise} question: {hypothesis} Is it true or false? answer:",
            ("entailment", "not_entailment"),
            ("True", "False"),
        ),
        metrics=(metrics.accuracy,),
        tfds="super_glue/rte:1.0.2",
        splits={"train": "train[:90%]", "validation": "train[90%:]", "test": "validation"},
        sizes={"train": 2241, "validation": 249, "test": 277},
        columns=_same("premise", "hypothesis", "label"),
        folder="RTE",
    ),
    "wmt14_enfr": _translation(
        "wmt14_enfr",
        "wmt14_translate/fr-en:1.0.0",
        "French",
        "fr",
        {"train": 40_836_715, "validation": 3000, "test": 3003},  # the paper's Table 8 prints cs-en's 15,786,979
    ),
    "snli": PaperTask(
        wording=Wording(ENTAILMENT, ("entailment", "neutral", "contradiction"), ("True", "Neither", "False")),
        metrics=(metrics.accuracy,),
        tfds="snli:1.1.0",
        splits=_ALL,
        sizes={"train": 550_152, "validation": 10_000, "test": 10_000},  # with the rows without a gold label
        columns=_same("premise", "hypothesis", "label"),
        folder="snli",
    ),
    "openbookqa": PaperTask(
        wording=Wording("Q: {stem} A) {a} B) {b} C) {c} D) {d} A:", tuple("ABCD"), tuple("ABCD"), prefix="Q:"),
        metrics=(metrics.accuracy,),
        tfds="openbookqa:0.1.0",
        splits=_ALL,
        sizes={"train": 4957, "validation": 500, "test": 500},
        columns={
            "stem": ("question/stem", "question_stem"),
            "a": ("question/choice_A", "choices/text/0"),
            "b": ("question/choice_B", "choices/text/1"),
            "c": ("question/choice_C", "choices/text/2"),
            "d": ("question/choice_D", "choices/text/3"),
            "label": ("answerKey", "answerKey"),
        },
        folder="openbookqa",
    ),
    # The eight in-context tasks, in the order of Table 3
    "cb": PaperTask(
        wording=Wording(ENTAILMENT, ("entailment", "contradiction", "neutral"), ("True", "False", "Neither")),
        metrics=(metrics.accuracy, functools.partial(metrics.macro_f1, labels=("True", "False", "Neither"))),
        tfds="super_glue/cb:1.0.2",
        splits=_ONLY_DEV,
        sizes={"train": 250, "test": 56},
        columns=_same("premise", "hypothesis", "label"),
        folder="CB",
    ),
    "wic": PaperTask(
        wording=Wording(
            "{sentence1} {sentence2} question: The word {word} is used in the same way in the two sentences. "
            "Is it true or False? answer:",
            ("false", "true"),
            ("False", "True"),
        ),
        metrics=(metrics.accuracy,),
        tfds="super_glue/wic:1.0.2",
        splits=_ONLY_DEV,
        sizes={"train": 5428, "test": 638},
        columns=_same("sentence1", "sentence2", "word", "label"),
        folder="WiC",
    ),
    "trivia_qa": PaperTask(
        wording=_QUESTION,
        metrics=(functools.partial(metrics.exact_match, normal_form=metrics.trivia_qa_answer),),
        tfds="trivia_qa/rc.nocontext:1.1.0",
        splits=_ONLY_DEV,  # TFDS's test split has no answers
        sizes={"train": 138_384, "test": 18_669},
        columns={
            "question": ("question", "question"),
            "target": ("answer/value", "answers/0"),
            "answers": ("answer/aliases", "answers"),
        },
        folder="trivia_qa",
    ),
    "web_questions": PaperTask(
        wording=_QUESTION,
        metrics=(metrics.exact_match,),
        tfds="web_questions:1.0.0",
        splits={"train": "train", "test": "test"},
        sizes={"train": 3778, "test": 2032},
        columns=_same("question", "answers"),
        folder="web_questions",
    ),
    "wmt16_ende": _translation(
        "wmt16_ende",
        "wmt16_translate/de-en:1.0.0",
        "German",
        "de",
        {"train": 4_548_885, "validation": 2169, "test": 2999},
    ),
    "wmt16_enro": _translation(
        "wmt16_enro",
        "wmt16_translate/ro-en:1.0.0",
        "Romanian",
        "ro",
        {"train": 610_320, "validation": 1999, "test": 1999},
    ),
    "xsum": PaperTask(
        wording=_SUMMARY,
        metrics=(metrics.rouge,),
        tfds="xsum:1.1.0",
        splits=_ALL,
        sizes={"train": 203_577, "validation": 11_305, "test": 11_301},
        columns={"article": ("document", "document"), "target": ("summary", "summary")},
        folder="xsum",
    ),
    "wiki_lingua_en": PaperTask(
        wording=_SUMMARY,
        metrics=(metrics.rouge,),
        tfds="gem/wiki_lingua_english_en:1.1.0",
        splits=_ALL,
        sizes={"train": 99_020, "validation": 13_823, "test": 28_614},
        columns={"article": ("source", "document"), "target": ("target", "summary")},
        folder="wiki_lingua_en",
    ),
    # Not in the paper
    **{f"xnli_{language}": _xnli(language) for language in XNLI_LANGUAGES},
}

FINE_TUNING_TASKS = ("rte", "wmt14_enfr", "snli", "openbookqa")
IN_CONTEXT_TASKS = ("cb", "wic", "trivia_qa", "web_questions", "wmt16_ende", "wmt16_enro", "xsum", "wiki_lingua_en")


def text_task(name: str, data_dir: str | None = None, splits: Mapping[str, str] | None = None) -> few_shot.TextTask:
    """A task of the paper with its source; nothing is read until a split is.

    Args:
      name: one of TASKS.
      data_dir: None for TFDS; otherwise a folder with a folder of JSONL files for each task.
      splits: overrides the task's splits (TFDS) or the default of one file per split (JSONL); may be slices.

    Raises:
      ValueError: there is no such task, or a split's file is malformed.
    """
    if name not in TASKS:
        raise ValueError(f"paper.task.name is {name!r}: expected one of {', '.join(TASKS)}.")
    task = TASKS[name]
    if data_dir is None:
        columns = {column: tfds for column, (tfds, _) in task.columns.items()}
        source = sources.TfdsRows(task.tfds, splits or task.splits, columns)
    else:
        readers = {
            "label": functools.partial(sources.label_index, labels=task.wording.labels),
            "answers": sources.texts,
        }
        columns = {column: (jsonl, readers.get(column, sources.text)) for column, (_, jsonl) in task.columns.items()}
        folder = str(epath.Path(data_dir) / task.folder)
        source = sources.JsonlRows(folder, splits or sources.JSONL_SPLITS, columns)
    aliases = "answers" in task.columns
    made_from = (data_dir and str(data_dir), splits and dict(splits))
    return few_shot.TextTask(name, source, task.wording, task.metrics, aliases, made_from)


def task(
    name: str,
    vocabulary: str | seqio.Vocabulary,
    data_dir: str | None = None,
    splits: Mapping[str, str] | None = None,
    shots: int = 0,
    seed: int = 0,
    sentinels: bool = False,
    exemplars: str = "per_example",
) -> str:
    """Registers a task of the paper and returns its seqio name, so gin files can use it in place of a task's name.

    Registering the same task again does nothing.

    Args:
      name: one of TASKS.
      vocabulary: the checkpoint's vocabulary, or the path of a SentencePiece model.
      data_dir: None for TFDS; otherwise a folder with a folder of JSONL files for each task
        (`<data_dir>/RTE/train.jsonl`).
      splits: for each of our splits a TFDS split or slice ("train[:90%]"), or with `data_dir` a file or a slice of its
        rows ("train.jsonl[:-100]"); None for the paper's (TFDS), or train.jsonl, validation.jsonl and test.jsonl.
      shots: exemplars before each question.
      seed: seed of the exemplars.
      sentinels: True for a checkpoint of span corruption, False for an LM-adapted one.
      exemplars: "per_example", or "fixed" for one set for the whole task.

    Raises:
      ValueError: there is no such task, or it is registered with other arguments.

    >>> task("rte", "spm.model", data_dir="my_data", shots=1)
    'rte_1shot_seed0'
    >>> TASKS["cb"].wording.template.format(premise="It rains.", hypothesis="It is wet.")
    'It rains. question: It is wet. Is it true or false or neither? answer:'
    >>> seqio.TaskRegistry.remove("rte_1shot_seed0")
    """
    prompting = few_shot.Prompting(vocabularies.as_vocabulary(vocabulary), sentinels, exemplars)
    return few_shot.register(text_task(name, data_dir, splits), prompting, shots, seed)
