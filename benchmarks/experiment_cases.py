"""The cases of experiments.py. Each runs in a process of its own, on whichever commit of the package is imported.

A case returns its seconds (CPU seconds of this process and of those it starts, unless a name says otherwise), and
results that both commits must agree on.
"""

import importlib
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from measured_commands import IMPORTED, IS_BEFORE, command

SIZES = {"vocab_size": 32128, "embed_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 1024}
LAYERS = 8

PAPER_TASKS = ("cb", "wic", "trivia_qa", "web_questions", "wmt16_ende", "wmt16_enro", "xsum", "wiki_lingua_en")
PROMPTS, BATCH, LENGTHS = 64, 32, {"inputs": 2048, "targets": 32}

# Where commit 07b7e47 has these modules.
_BEFORE = {
    "data.evaluation_examples": "examples",
    "evaluation.answering": "answering",
    "evaluation.scoring": "evaluation",
    "models.architecture": "architecture",
    "models.encoder_decoder": "model",
    "partitioning.partitioner": "partitioning",
}


class Measured(NamedTuple):
    """What a case measured: numbers by name, and results to compare."""

    numbers: dict[str, float]
    results: list[float]


def _module(name: str) -> Any:
    """A module of the package by its name today, of whichever of the two commits this process runs."""
    return importlib.import_module(f"promot_t5x.{_BEFORE.get(name, name) if IS_BEFORE else name}")


def _read(*args: Any) -> Any:
    module = _module("data.evaluation_examples")
    return (getattr(module, "evaluation_examples", None) or module.eval_examples)(*args)


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def _network() -> tuple[Any, Any]:
    """(a model of SIZES, random parameters, the same on both commits)."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    config = _module("models.architecture").T5Config(**SIZES, num_encoder_layers=LAYERS, num_decoder_layers=LAYERS)
    model = _module("models.encoder_decoder").EncoderDecoderModel(config)
    params = jax.tree.map(
        lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype), model.abstract_params()
    )
    return model, jax.device_put(params)


def ranking(data: Path) -> Measured:
    """Ranks 3 choices for each of 32 inputs of 512 tokens, twice."""
    import numpy as np
    import seqio
    import tensorflow as tf

    del data
    examples, inputs, choices = 32, 512, [b"entailment", b"neutral", b"contradiction"]
    rng = np.random.default_rng(0)
    rows = {
        "inputs": ["".join(map(chr, rng.integers(97, 122, inputs - 1))) for _ in range(examples)],
        "targets": [b"neutral"] * examples,
        "choices": [choices] * examples,
    }
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), splits=("test",)
    )
    features = {k: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for k in ("inputs", "targets")}
    preprocessors = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]
    seqio.TaskRegistry.add("ranking", source, features, preprocessors=preprocessors)
    read = _read("ranking", {"inputs": inputs, "targets": 16}, "test")
    model, params = _network()
    partitioner = _module("partitioning.partitioner").Partitioner()

    def run() -> list[float]:
        answers = _module("evaluation.answering").answers(
            model, params, read, "rank", prompt_id=None, batch_size=BATCH, partitioner=partitioner
        )
        by_number = {n: a.scores for numbers, of_batch in answers for n, a in zip(numbers, of_batch, strict=True)}
        return [score for n in range(examples) for score in by_number[n]]

    (first, _), (second, scores) = _seconds(run), _seconds(run)
    return Measured({"with compilation": first, "without": second}, scores)


def paper_tasks(data: Path) -> Measured:
    """Reads, answers and scores 64 one-shot prompts of each of the paper's eight in-context tasks."""
    paper, scoring = _module("tasks.paper"), _module("evaluation.scoring")
    with tempfile.TemporaryDirectory() as folder:
        _write_paper_tasks(data, Path(folder), paper)
        vocabulary = _vocabulary(data)
        names = [paper.task(name, vocabulary, data_dir=folder, shots=1) for name in PAPER_TASKS]
        model, params = _network()
        config = scoring.EvaluationConfig(LENGTHS, batch_size=BATCH)
        partitioner = _module("partitioning.partitioner").Partitioner()

        def run() -> list[float]:
            outcomes = [
                scoring.evaluate(model, params, name, "test", config, prompt_id=None, partitioner=partitioner)
                for name in names
            ]
            return [outcome.value for outcome in outcomes]

        seconds, values = _seconds(run)
    return Measured({"with compilation": seconds}, values)


def _vocabulary(data: Path) -> Any:
    return _module("tasks.vocabularies").sentencepiece(str(data / "spm" / "t5_cc_all_32000.model"), extra_ids=100)


def _write_paper_tasks(data: Path, folder: Path, paper: Any) -> None:
    """Real rows where `data` has them; articles of XSum's and WikiLingua's lengths from a few real ones' words."""

    def rows(file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (data / file).read_text().splitlines()]

    articles = rows("wiki_lingua/en.jsonl")
    words = itertools.cycle(" ".join(row["document"] for row in articles).split())
    rng = random.Random(0)

    def article(mean: float, summary: int) -> dict[str, str]:
        # Log-normal lengths: a median of 0.85 of the mean, as the data sets' own.
        length = round(mean * 0.85 * rng.lognormvariate(0, 0.57))
        taken = list(itertools.islice(words, length + summary))
        return {"document": " ".join(taken[summary:]), "summary": " ".join(taken[:summary])}

    questions = rows("nq_open/NQ-open.dev.jsonl")
    of_task = {
        "cb": rows("super_glue/CB/train.jsonl"),
        "wic": [*rows("super_glue/WiC/dev32.jsonl"), *rows("super_glue/WiC/train.jsonl")],
        "trivia_qa": [{"question": row["question"], "answers": row["answer"]} for row in questions],
        "web_questions": rows("web_questions/train.jsonl"),
        "wmt16_ende": rows("ntrex128/en-de.jsonl"),
        "wmt16_enro": rows("ntrex128/en-ro.jsonl"),
        "xsum": [article(430, 23) for _ in range(2 * PROMPTS)],
        "wiki_lingua_en": [article(390, 39) for _ in range(2 * PROMPTS)],
    }
    for name, of_name in of_task.items():
        (folder / paper.TASKS[name].folder).mkdir()
        # WiC has 64 rows here, which serve for both; a question is never its own exemplar.
        parts = {"test": of_name[:PROMPTS], "train": of_name[PROMPTS:] or of_name}
        for split, part in parts.items():
            _write(folder / paper.TASKS[name].folder / f"{split}.jsonl", part)


def _write(file: Path, rows: Any) -> None:
    with file.open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def _sentences(count: int, words: int) -> Iterator[str]:
    """Different texts of about so many words each."""
    rng = random.Random(0)
    lexicon = "red cat moves the old house sees a small bird near every river and green trees grow slowly".split()
    for number in range(count):
        yield " ".join([*rng.choices(lexicon, k=words), str(number)])


def reading(data: Path) -> Measured:
    """Reads 20,000 four-shot prompts of about 140 tokens, and again with what the first time left in the cache."""
    jsonl = _module("tasks.jsonl")
    count, lengths = 20_000, {"inputs": 256, "targets": 16}
    with tempfile.TemporaryDirectory() as folder:
        for split, rows in (("train", 1000), ("test", count)):
            texts = _sentences(rows, 20)
            _write(Path(folder) / f"{split}.jsonl", ({"input": f"{text}?", "target": text[:8]} for text in texts))
        splits = {"train": "train.jsonl", "test": "test.jsonl"}
        jsonl.jsonl_task("reading", folder, vocabulary=_vocabulary(data), splits=splits, shots=4)
        name = "reading_4shot_seed0"
        first, examples = _seconds(lambda: _read(name, lengths, "test"))
        sums = examples.features["encoder_input_tokens"].sum(axis=1).tolist()
        _module("data.evaluation_examples").forget()
        second, _ = _seconds(lambda: _read(name, lengths, "test"))
    return Measured({"first": first, "again": second}, sums)


def long_line(data: Path) -> Measured:
    """Reads an article of 5 MB in one line, without spaces."""
    paper = _module("tasks.paper")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "xsum").mkdir()
        article = "".join(random.Random(0).choices("あいうえおかきくけこさしすせそ", k=5_000_000 // 3))
        _write(Path(folder) / "xsum" / "test.jsonl", [{"document": article, "summary": "A cat."}])
        name = paper.task("xsum", _vocabulary(data), data_dir=folder)
        seconds, examples = _seconds(lambda: _read(name, {"inputs": 2048, "targets": 64}, "test"))
    tokens_T = examples.features["encoder_input_tokens"][0]
    return Measured({"": seconds}, tokens_T[tokens_T != 0].tolist())


_TOY = ["--gin_file=models/toy.gin"]
_TOY_STAGE = [
    *_TOY,
    "--gin_file=stages/prompt_tuning.gin",
    "--gin.MIXTURE_OR_TASK_NAME=toy_enfr",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 10, 'targets': 4}",
    "--gin.TRAIN_SPLIT=train",
    "--gin.VALIDATION_SPLIT=validation",
]


def start_up(data: Path) -> Measured:
    """The first step of the demo's stage, with nothing compiled before, and again with what that left in the cache."""
    del data
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMOT_CACHE"] = f"{folder}/cache"
        for name in ("first", "second"):
            flags = ["--gin_file=recipes/demo_prompt_tuning.gin", f"--gin.MODEL_DIR={folder}/{name}"]
            start = ["--gin.INITIAL_CHECKPOINT_PATH=promot_t5x/demo_checkpoint"]
            imported, stepped, _ = command(
                ["train", *_TOY_STAGE, *flags, *start, "--gin.TRAIN_STEPS=1", "--gin.CHECKPOINT_PERIOD=1"],
                IMPORTED,
                "step 1/1",
            )
            numbers[f"imports, {name} start"] = imported.cpu
            numbers[f"from there to step 1, {name} start"] = stepped.cpu - imported.cpu
            numbers[f"wall seconds from the command to step 1, {name} start"] = stepped.wall
    return Measured(numbers, [])


def million_rows(data: Path) -> Measured:
    """The first step of the demo's stage on a JSONL file of 1,000,000 rows."""
    del data
    with tempfile.TemporaryDirectory() as folder:
        texts = _sentences(1_000_000, 5)
        _write(Path(folder) / "train.jsonl", ({"input": f"{text} :", "target": text[:4]} for text in texts))
        rows = ({"input": f"{text} :", "target": text[:4]} for text in _sentences(64, 5))
        _write(Path(folder) / "validation.jsonl", rows)
        flags = [*_TOY, "--gin_file=tasks/jsonl.gin", "--gin_file=stages/prompt_tuning.gin", f"--data_dir={folder}"]
        start = ["--gin.INITIAL_CHECKPOINT_PATH=promot_t5x/demo_checkpoint"]
        lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 10, 'targets': 4}"
        stepped, _ = command(
            ["train", *flags, *start, lengths, f"--gin.MODEL_DIR={folder}/run", "--gin.TRAIN_STEPS=1"], "step 1/1"
        )
    return Measured({"CPU": stepped.cpu, "wall seconds": stepped.wall, "peak memory, gigabytes": stepped.gigabytes}, [])


def second_evaluation(data: Path) -> Measured:
    """20,000 examples on the demo's model, and again with all answers kept."""
    del data
    split, output = ("SPLIT", "OUTPUT_DIR") if IS_BEFORE else ("MIXTURE_OR_TASK_SPLIT", "EVAL_OUTPUT_DIR")
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("train", 1000), ("test", 20_000)):
            texts = _sentences(count, 5)
            _write(Path(folder) / f"{name}.jsonl", ({"input": f"{text} :", "target": text[:4]} for text in texts))
        flags = [*_TOY, "--gin_file=suites/eval.gin", "--gin_file=tasks/jsonl.gin", f"--data_dir={folder}"]
        lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 28, 'targets': 6}"
        tasks, shots = "--gin.TASKS=(%MIXTURE_OR_TASK_NAME,)", "--gin.SHOTS=(1,)"
        where = [f"--gin.{output}={folder}/scores", "--gin.CHECKPOINT_PATH=promot_t5x/demo_checkpoint"]
        for name in ("the first time", "with all answers kept"):
            (end,) = command(["eval", *flags, lengths, tasks, shots, f"--gin.{split}=test", *where])
            numbers[name] = end.cpu
            numbers[f"peak memory {name}, gigabytes"] = end.gigabytes
        file = "results.json" if IS_BEFORE else "scores.json"
        row = json.loads((Path(folder) / "scores" / file).read_text())["mean"]
    return Measured(numbers, [mean["value"] / (1 if IS_BEFORE else 100) for mean in row.values()])


def demo(data: Path) -> Measured:
    """The demo's pipeline of ten trainings, with nothing compiled before, and again into another folder."""
    del data
    numbers, results = {}, []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMOT_CACHE"] = f"{folder}/cache"
        for name in ("first", "again"):
            (end,) = command(["demo", f"--out={folder}/{name}"])
            numbers[name], numbers[f"wall seconds, {name}"] = end.cpu, end.wall
        file = Path(folder, "again", "results.json" if IS_BEFORE else "comparison.json")
        contents = json.loads(file.read_text())
        for method in contents["methods"].values():
            for of_rate in method["learning_rates"].values():
                values = [of_rate["target"], *of_rate["in_context"].values()]
                results += [value if IS_BEFORE else value / 100 for value in values]
    return Measured(numbers, results)


CASES = {
    case.__name__: case
    for case in (ranking, paper_tasks, reading, long_line, start_up, million_rows, second_evaluation, demo)
}
