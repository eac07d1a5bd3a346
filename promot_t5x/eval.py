"""The eval binary: scores one checkpoint on seqio tasks, with the soft prompt removed, attached, or both.

    python -m promot_t5x.eval --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin --gin_file=suites/eval.gin \
        --gin.CHECKPOINT_PATH=/path/to/run --gin.TASKS="(%MIXTURE_OR_TASK_NAME,)" --gin.OUTPUT_DIR=/tmp/scores
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from promot_t5x import evaluation, flags, gin_checks, initialize, launcher, results
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner


def evaluate(
    model: EncoderDecoderModel,
    checkpoint_path: str,
    tasks: Sequence[str],
    split: str,
    config: evaluation.EvaluationConfig,
    output_dir: str,
    prompts: Sequence[str] = ("removed",),
    prompt_id: int = 0,
    partitioner: Partitioner = Partitioner(),
) -> list[dict[str, Any]]:
    """Scores tasks and writes scores.json, and per task and prompt a JSONL of every input, prediction and target.

    Args:
      model: the network and how it decodes.
      checkpoint_path: a checkpoint or run folder of ours or of T5X.
      tasks: seqio tasks.
      split: their split.
      config: lengths, batch size, limit.
      output_dir: where the files go.
      prompts: "removed", "attached", or both.
      prompt_id: the prompt that "attached" attaches.
      partitioner: the mesh.

    Returns:
      One dictionary a task and prompt, as in scores.json.

    Raises:
      ValueError: an unknown word in `prompts`, an unknown task, or a checkpoint of another network.
    """
    if not prompts or not set(prompts) <= {"removed", "attached"}:
        raise ValueError(f"eval.evaluate.prompts is {tuple(prompts)}: expected 'removed', 'attached' or both.")
    loaded = initialize.load(checkpoint_path, model, partitioner)
    folder = epath.Path(output_dir)
    scores = []
    for task in tasks:
        for prompt in prompts:
            attached = prompt_id if prompt == "attached" else None
            outcome = evaluation.evaluate(
                model, loaded.params, task, split, config, prompt_id=attached, partitioner=partitioner
            )
            lines = [
                json.dumps({"input": text, "prediction": prediction, "target": target}, default=str, ensure_ascii=False)
                for text, prediction, target in zip(outcome.inputs, outcome.predictions, outcome.targets, strict=True)
            ]
            results.write_whole(folder / f"{task}.{split}.{prompt}.jsonl", ("\n".join(lines) + "\n").encode())
            scores.append(
                {
                    "task": task,
                    "split": split,
                    "prompt": prompt,
                    "metrics": dict(outcome.metrics),
                    "examples": len(lines),
                    "truncated": outcome.truncated,
                }
            )
            print(f"{task} {split}, prompt {prompt}: {outcome.metric} {outcome.value:.4f} ({len(lines)} examples)")
    checkpoint = {"path": checkpoint_path, "base": loaded.base_path, "base_fingerprint": loaded.base_fingerprint}
    results.write(folder / "scores.json", {"scores": scores, "checkpoint": checkpoint, "versions": results.versions()})
    return scores


def main(argv: Sequence[str]) -> None:
    """Runs `evaluate` as the gin files and flags say."""
    parser = flags.flag_parser("python -m promot_t5x.eval", "Scores a checkpoint on seqio tasks.")
    invocation = launcher.start(argv, parser)
    gin_checks.check_flags()
    if not invocation.dry_run:
        launcher.configurable(evaluate)()


if __name__ == "__main__":
    from promot_t5x import eval as binary

    sys.exit(launcher.run_main(binary.main))
