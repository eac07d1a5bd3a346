"""The convert command: converts a checkpoint to another format, and compares the result with its source.

promot-t5x convert --from=checkpoint_1000000 --to=mt5_hf --to_format=huggingface
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epy

from promot_t5x import checkpoints
from promot_t5x.configuration import flags
from promot_t5x.models.architecture import T5Config
from promot_t5x.runtime.text import did_you_mean

# Fields that do not follow from shapes, and that not every format states.
_AS_TYPED: dict[str, Callable[[str], Any]] = {
    "mlp_activations": lambda text: tuple(text.split(",")),
    "relative_bias_max_distance": int,
    "dropout_rate": float,
}

# Flag -> its name among the arguments.
_OF_WHOLE_CHECKPOINTS = {
    "--network": "network",
    "--soft_prompt": "prompt_path",
    "--force": "force",
    "--vocabulary_file": "vocabulary_file",
    "--extra_ids": "extra_ids",
    "--check-logits": "check_logits",
}

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.checkpoints import conversion


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    examples = (
        "promot-t5x convert --from=checkpoint_1000000 --to=mt5_hf --to_format=huggingface",
        "promot-t5x convert --from=out/stage1 --to=adapter --to_format=peft",
    )
    result = flags.flag_parser(
        "promot-t5x convert",
        "Converts a checkpoint to another format, and compares the result with its source.",
        examples=examples,
    )
    result.add_argument("--from", dest="source", required=True, metavar="PATH", help="the checkpoint; any format")
    result.add_argument("--to", dest="target", required=True, metavar="PATH", help="a new folder")
    result.add_argument(
        "--to_format",
        required=True,
        choices=(*checkpoints.FORMATS, *checkpoints.SOFT_PROMPT_FORMATS),
        help=f"{', '.join(checkpoints.SOFT_PROMPT_FORMATS)} write the soft prompt alone",
    )
    result.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="what the checkpoint does not state, such as relative_bias_max_distance=64; repeatable",
    )
    result.add_argument(
        "--soft_prompt",
        dest="prompt_path",
        metavar="PATH",
        help="a soft prompt to attach: its folder, .npy, or adapter",
    )
    result.add_argument("--force", action="store_true", help="attach it even if it was trained on another model")
    result.add_argument(
        "--vocabulary_file",
        metavar="PATH",
        help="the SentencePiece model for the tokenizer of a huggingface folder, if the checkpoint names no other",
    )
    result.add_argument(
        "--extra_ids", type=int, metavar="N", help="sentinels to add to it; by default 100, unless it has its own"
    )
    result.add_argument("--check-logits", action="store_true", help="also compare the logits of a fixed batch")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and converts."""
    invocation = flags.parse_flags(sys.argv[1:] if argv is None else argv, parser())
    flags.refuse_configuration(invocation, "convert", but=("dry_run",))
    extra = invocation.extra
    paths = extra["source"], extra["target"], extra["to_format"]
    if extra["to_format"] in checkpoints.SOFT_PROMPT_FORMATS:
        _refuse_flags_of_whole_checkpoints(extra)
        conversion.convert_soft_prompt(*paths, dry_run=invocation.dry_run)
        return
    conversion.convert_checkpoint(
        *paths,
        network=network_fields(extra["network"]),
        prompt_path=extra["prompt_path"],
        force=extra["force"],
        vocabulary=extra["vocabulary_file"],
        extra_ids=extra["extra_ids"],
        check_logits=extra["check_logits"],
        dry_run=invocation.dry_run,
    )


def _refuse_flags_of_whole_checkpoints(extra: Mapping[str, Any]) -> None:
    default = parser().get_default
    if given := [flag for flag, name in _OF_WHOLE_CHECKPOINTS.items() if extra[name] != default(name)]:
        raise flags.ConfigError(
            f"--to_format={extra['to_format']} writes the soft prompt of --from alone, to which {' and '.join(given)} "
            f"cannot apply; leave out what is for whole checkpoints, or choose one of {', '.join(checkpoints.FORMATS)}"
        )


def network_fields(assignments: Sequence[str]) -> dict[str, Any]:
    """Parses the values of `--network` into the types of T5Config's fields.

    Raises:
      ConfigError: an unknown field, or an invalid value.

    >>> network_fields(["mlp_activations=gelu,linear", "relative_bias_max_distance=64"])
    {'mlp_activations': ('gelu', 'linear'), 'relative_bias_max_distance': 64}
    """
    values = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in _AS_TYPED:
            raise flags.ConfigError(
                f"--network={assignment} names no field of T5Config{did_you_mean(name, _AS_TYPED)}: "
                f"expected one of {', '.join(_AS_TYPED)}"
            )
        try:
            values[name] = _AS_TYPED[name](text)
            T5Config(**values)
        except ValueError as error:
            raise flags.ConfigError(f"--network={assignment} is not valid: {error}") from error
    return values
