"""Answers the inputs of a JSONL file with a checkpoint, the soft prompt removed or attached; called by `infer`.

    python -m promot_t5x.infer --gin_file=models/mt5_xxl.gin --gin_file=suites/infer.gin \
        --gin.CHECKPOINT_PATH=/path/to/run --gin.INPUTS=in.jsonl --gin.INFER_OUTPUT_DIR=out/answers
"""

import json
from typing import Any

import seqio
from etils import epath

from promot_t5x.checkpoints import loading
from promot_t5x.data import vocabularies
from promot_t5x.evaluation import answering, generation, scoring
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import files


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

    Args:
      model: the network and how it decodes.
      checkpoint_path: a checkpoint or run folder of ours or of T5X.
      vocabulary: the checkpoint's.
      inputs: a JSONL file with a column `input`; blank lines are skipped.
      output_dir: the folder for `predictions.jsonl`, which is written atomically.
      config: lengths, batch size, limit.
      prompt_id: the soft prompt in front of every input, None for none.
      partitioner: the mesh.

    Returns:
      The number of rows.

    Raises:
      FileNotFoundError: the input file or the vocabulary file is missing.
      ValueError: a row without a text `input`, a file that is not a vocabulary, or another network's vocabulary or
        checkpoint.
    """
    rows = _read(inputs)[: config.limit]
    vocabularies.open_vocabulary(vocabulary)
    vocabularies.check_vocabulary(vocabulary, model.config.vocab_size)
    lengths = config.task_feature_lengths
    texts = [row["input"] for row in rows]
    arrays, truncated = generation.encoder_features(texts, vocabulary, lengths["inputs"], lengths["targets"])
    params = loading.load(checkpoint_path, model, partitioner).params
    predictions: dict[int, str] = {}
    for numbers, tokens_BxU in answering.predict_tokens(
        model, params, arrays, prompt_id=prompt_id, batch_size=config.batch_size, partitioner=partitioner
    ):
        predictions |= {
            n: answering.decode(vocabulary, tokens_U) for n, tokens_U in zip(numbers, tokens_BxU, strict=True)
        }
    lines = [json.dumps({**row, "prediction": predictions[n]}, ensure_ascii=False) for n, row in enumerate(rows)]
    outputs = epath.Path(output_dir) / "predictions.jsonl"
    files.write_whole(outputs, ("\n".join(lines) + "\n").encode())
    cut = f"; inputs cut to {lengths['inputs']} tokens: {truncated}" if truncated else ""
    print(f"{len(lines)} predictions in {outputs}{cut}")
    return len(lines)


def _read(inputs: str) -> list[dict[str, Any]]:
    file = epath.Path(inputs)
    if not file.exists():
        raise FileNotFoundError(f"There is no file {inputs}; set INPUTS to a JSONL file with a column `input`.")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            has_input = isinstance(row["input"], str)
        except (ValueError, KeyError, TypeError):
            has_input = False
        if not has_input:
            raise ValueError(f"{inputs}, line {number} is not a JSON object with a text `input`: {line[:60]!r}.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{inputs} is empty; expected one JSON object per line, with a column `input`.")
    return rows
