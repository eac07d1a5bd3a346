"""Answers the inputs of a JSONL file with a checkpoint, the soft prompt removed or attached; called by `infer`.

    python -m promot_t5x.infer --gin_file=models/mt5_xxl.gin --gin_file=suites/infer.gin \
        --gin.CHECKPOINT_PATH=/path/to/run --gin.INPUTS=in.jsonl --gin.INFER_OUTPUT_DIR=out/answers
"""

import reprlib
from collections.abc import Iterator
from typing import Any

import seqio
from etils import epath

from promot_t5x.data import vocabularies
from promot_t5x.evaluation import answer_store, answering, generation, scoring, suite
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import files, strict_json

_PREDICTIONS, _ANSWERS = "predictions", "answers"


def infer(
    model: EncoderDecoderModel,
    checkpoint_path: str,
    vocabulary: seqio.Vocabulary,
    inputs: str,
    output_dir: str,
    config: scoring.EvaluationConfig,
    prompt_id: int | None = None,
    partitioner: Partitioner = Partitioner(),
) -> int:
    """Writes the input file's rows with a `prediction` each, and prints how many inputs were cut.

    Answers are stored as they are made: a second call with the same folder answers only what is missing, or was
    answered by another checkpoint or with other decoding settings.

    Args:
      model: the network and how it decodes.
      checkpoint_path: a checkpoint or run folder of ours or of T5X.
      vocabulary: the checkpoint's.
      inputs: a JSONL file with a column `input`; blank lines are skipped.
      output_dir: the folder for `predictions.jsonl`, which is written atomically at the end, and for the answers.
      config: lengths, batch size, limit.
      prompt_id: the soft prompt in front of every input, None for none.
      partitioner: the mesh.

    Returns:
      The number of rows.

    Raises:
      FileNotFoundError: the input file or the vocabulary file is missing.
      ValueError: a row without a text `input` or with a `prediction`, an input file that would be overwritten, a file
        that is not a vocabulary, or another network's vocabulary or checkpoint.
    """
    rows, folder = check(inputs, output_dir, vocabulary, model)[: config.limit], files.absolute(output_dir)
    lengths = config.task_feature_lengths
    texts = [row["input"] for row in rows]
    arrays, truncated = generation.encoder_features(texts, vocabulary, lengths["inputs"], lengths["targets"])
    checkpoint = suite.load(checkpoint_path, model, partitioner, run=checkpoint_path)

    def answer(missing: list[int]) -> Iterator[tuple[list[int], list[answering.Answer]]]:
        for numbers, tokens_BxU in answering.predict_tokens(
            model,
            checkpoint.params,
            arrays,
            prompt_id=prompt_id,
            batch_size=config.batch_size,
            partitioner=partitioner,
            rows=missing,
        ):
            yield numbers, [answering.Answer(answering.decode(vocabulary, tokens_U)) for tokens_U in tokens_BxU]

    sampled = model.decoding.method == "sample"
    examples = [
        {"inputs": tokens_T[tokens_T != 0], "inputs_pretokenized": text}
        for text, tokens_T in zip(texts, arrays["encoder_input_tokens"], strict=True)
    ]
    determined_by = suite.made_by(checkpoint, config, vocabulary, "generate", prompt_id)
    kept = answer_store.Answers(folder, _ANSWERS, answer_store.keys(examples, determined_by, numbered=sampled))
    answers = kept.complete(answer, f"answers to {epath.Path(inputs).name}", together=sampled)
    kept.finish([{}] * len(rows))
    lines = [strict_json.dumps({**row, "prediction": a.output}) for row, a in zip(rows, answers, strict=True)]
    outputs = folder / f"{_PREDICTIONS}.jsonl"
    files.write_whole(outputs, ("\n".join(lines) + "\n").encode())
    cut = f"; inputs cut to {lengths['inputs']} tokens: {truncated}" if truncated else ""
    print(f"{len(lines)} predictions in {outputs}{cut}")
    return len(lines)


def check(
    inputs: str, output_dir: str, vocabulary: seqio.Vocabulary, model: EncoderDecoderModel
) -> list[dict[str, Any]]:
    """Checks everything but the checkpoint; returns the rows of the input file. Takes and raises what `infer` does."""
    folder = files.writable_folder(output_dir, "INFER_OUTPUT_DIR")
    files.writable_file(folder / f"{_PREDICTIONS}.jsonl", "INFER_OUTPUT_DIR")
    answer_store.check(folder, _ANSWERS, "INFER_OUTPUT_DIR")
    _check_not_replaced(inputs, folder)
    rows = read_inputs(inputs)
    vocabularies.check_vocabulary(vocabulary, model.config.vocab_size)
    return rows


def _check_not_replaced(inputs: str, folder: epath.Path) -> None:
    """Raises ValueError if the input file is one of those that are written."""
    written = (f"{_PREDICTIONS}.jsonl", f"{_ANSWERS}.jsonl", f"{_ANSWERS}.others.jsonl")
    if files.absolute(inputs) in [folder / name for name in written]:
        raise ValueError(f"INPUTS is {inputs}, which the output would replace; give another INFER_OUTPUT_DIR.")


def read_inputs(inputs: str) -> list[dict[str, Any]]:
    """The rows of an input file.

    Raises:
      FileNotFoundError: it does not exist.
      ValueError: it has no rows, or a line is not a JSON object with a text `input` and without a `prediction`.
    """
    file = files.absolute(inputs)
    if not file.exists():
        raise FileNotFoundError(f"There is no file {inputs}; set INPUTS to a JSONL file with a column `input`.")
    rows = []
    for place, row in strict_json.read_lines(file):
        if not isinstance(row, dict) or not isinstance(row.get("input"), str):
            raise ValueError(f"{place} is not a JSON object with a text `input`: {reprlib.repr(row)}.")
        if "prediction" in row:
            raise ValueError(
                f"{place} has a column `prediction`, which is to hold the answer; rename it in the inputs."
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{inputs} is empty; expected one JSON object per line, with a column `input`.")
    return rows
