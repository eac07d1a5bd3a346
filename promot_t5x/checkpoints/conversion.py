"""Converts a checkpoint, or a soft prompt alone, to another format, and compares the result with its source."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from promot_t5x.checkpoints import (
    SOFT_PROMPT_FORMATS,
    formats,
    loading,
    networks,
    placing,
    soft_prompts,
    source_vocabulary,
    sources,
    stored_leaves,
)
from promot_t5x.checkpoints.huggingface import tokenizer_files
from promot_t5x.checkpoints.sources import Source
from promot_t5x.checkpoints.stored_leaves import Index, Leaves, StoredLeaf
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config, function_fields
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments
from promot_t5x.runtime.files import absolute

_MOST_DIFFERENCE = 1e-5  # of the largest logit

# Fields that must equal the source's wherever the format states them; shapes are compared leaf by leaf.
_KEPT = tuple(name for name in (*function_fields(T5Config), "dropout_rate") if name not in networks.FROM_SHAPES)


@arguments.checked
def convert_checkpoint(
    from_path: str | os.PathLike[str],
    to_path: str | os.PathLike[str],
    to_format: str,
    *,
    network: Mapping[str, Any] | None = None,
    prompt_path: str | os.PathLike[str] | None = None,
    force: bool = False,
    vocabulary: Any = None,
    extra_ids: int | None = None,
    check_logits: bool = False,
    dry_run: bool = False,
) -> None:
    """Writes a checkpoint in another format, reads it again and compares every bit; prints what it does.

    Args:
      from_path: a checkpoint or run folder of ours, a T5X checkpoint, a Hugging Face folder.
      to_path: a new folder; T5X's formats create `checkpoint_N` in it, unless it has such a name itself.
      to_format: one of `checkpoints.FORMATS`.
      network: fields of T5Config that the source does not state; by default those of the public models, and printed.
      prompt_path: a soft prompt to attach, see `soft_prompts`.
      force: attach it even if it was trained on another model.
      vocabulary: what the tokenizer of a Hugging Face folder is written from, a seqio vocabulary or the path of a
        SentencePiece model; None takes the one that the checkpoint names, if it is found, or copies the files of a
        Hugging Face source.
      extra_ids: number of sentinels to add to the SentencePiece model; None adds T5's 100 unless it has its own.
      check_logits: also compare the logits of a fixed batch; this loads both models.
      dry_run: only print the table of names.

    Raises:
      FileExistsError: `to_path` exists and is not empty.
      FileNotFoundError: `from_path` or the vocabulary's file does not exist.
      ValueError: an unknown format, the source is damaged, the format cannot hold it, the prompt or the vocabulary does
        not belong to it, the result differs, or the source is one of ours from before checkpoints carried their
        network.
    """
    formats.check_format(to_format)
    if to_format != "huggingface" and (vocabulary is not None or extra_ids is not None):
        raise ValueError(
            f"A vocabulary is given, which only the format huggingface holds, but the format is {to_format}; leave out "
            "--vocabulary_file and --extra_ids."
        )
    source = sources.open_source(from_path, network)
    sources.complete_config(source)
    _check_complete(source)
    if source.base is not None:
        sources.check_base(source, source.fingerprint)
    if prompt_path is not None:
        source = soft_prompts.attached(source, absolute(prompt_path), force)
    folder = formats.target_folder(to_path, to_format, source.step)
    print(f"{source.folder} ({source.format}) -> {folder} ({to_format})")
    if line := sources.assumptions(source):
        print(f"{line} (--network FIELD=VALUE gives another)")
    if prompt_path is None and (unread := source.folder / formats.ADAPTER).exists():
        print(f"the soft prompt in {unread} is left out (--soft_prompt={unread} attaches it)")
    tokenizer: Mapping[str, bytes] = {}
    if to_format == "huggingface":
        tokenizer, line = source_vocabulary.tokenizer(source, vocabulary, extra_ids)
        print(line)
    if dry_run:
        print(_table(source, to_format))
        return
    with _removed_on_failure(folder):
        progress = _Progress("written", source.leaves)
        formats.write(folder, dataclasses.replace(source, leaves=progress.watched), to_format)
        tokenizer_files.write(folder, tokenizer)
        progress.done()
        written = formats.written_leaves(folder, source.leaves)
        _compare(source.leaves, written)
        written_config = _same_network(source, folder)
    if check_logits:
        difference, largest = _logits_difference((source.config, source.leaves), (written_config, written))
        print(f"logits of a fixed batch: largest difference {difference:.2e}, largest logit {largest:.2e}")
        if not difference <= _MOST_DIFFERENCE * largest:
            raise ValueError(f"The logits of {folder} differ from those of {source.folder} by {difference:.2e}.")


def convert_soft_prompt(from_path: str, to_path: str, to_format: str, *, dry_run: bool = False) -> None:
    """Writes a soft prompt alone, from a prompt file or from a checkpoint, and reads it again to compare.

    Args:
      from_path: a soft prompt (see `soft_prompts`), or a checkpoint as for `convert_checkpoint`.
      to_path: a new file (npy) or folder.
      to_format: one of `checkpoints.SOFT_PROMPT_FORMATS`.
      dry_run: only print what would be written.

    Raises:
      FileExistsError: `to_path` exists.
      FileNotFoundError: `from_path` does not exist.
      ValueError: an unknown format, the source holds no soft prompt, the format cannot hold it, or the result differs.
    """
    formats.check_format(to_format, SOFT_PROMPT_FORMATS)
    path, target = absolute(from_path), absolute(to_path)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; give another path, or delete it.")
    if soft_prompts.is_prompt(path):
        prompt_NxPxD, description = soft_prompts.read(path)
    else:
        source = sources.open_source(path)
        if parameter_names.PROMPT not in source.leaves:
            raise ValueError(f"{source.folder} holds no soft prompt; give a checkpoint of prompt tuning, or a prompt.")
        prompt_NxPxD, description = stored_leaves.whole(source.leaves[parameter_names.PROMPT]), {}
    soft_prompts.check_format(to_format, prompt_NxPxD)
    if to_format == "npy" and target.suffix != ".npy":  # by which it is recognised when it is read
        raise ValueError(f"{to_path} is to be a .npy file: give a path that ends in .npy.")
    line = f"{path} -> {target} ({to_format}): {prompt_NxPxD.shape} {prompt_NxPxD.dtype}"
    if dry_run:
        print(line)
        return
    soft_prompts.write(target, to_format, prompt_NxPxD, description)
    if soft_prompts.read(target)[0].tobytes() != prompt_NxPxD.tobytes():
        raise ValueError(f"The numbers written to {target} differ from those in {path}; convert it again.")
    print(f"{line}, read again bit for bit")


def _check_complete(source: Source) -> None:
    """Compares the leaves with those of the network; any floating dtype is accepted.

    Raises:
      ValueError: lists what is missing, unexpected or misshapen.
    """
    config = dataclasses.replace(source.config, scan_layers=False)
    expected = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
    leaves = parameter_names.unstack_layers(source.leaves, stored_leaves.layer)
    for name, leaf in leaves.items():
        if name in expected and jnp.issubdtype(leaf.dtype, jnp.floating):
            leaves[name] = leaf._replace(dtype=expected[name].dtype)
    placing.compare(leaves, expected, str(source.folder), "does not hold a whole (m)T5", "copy the checkpoint again")


@contextlib.contextmanager
def _removed_on_failure(folder: epath.Path) -> Iterator[None]:
    """Removes a checkpoint if writing it fails; `formats.target_folder` has checked that the folder was empty."""
    parent_was_there = folder.parent.exists()
    try:
        yield
    except BaseException:
        for path in (folder, *folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*")):
            if path.exists():
                path.rmtree()
        if not parent_was_there and folder.parent.exists() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        raise


def _table(source: Source, to_format: str) -> str:
    """The name and shape of each leaf before and after; a stack of layers is named after its first layer."""
    ours = {n: leaf._replace(source=n) for n, leaf in source.leaves.items() if n != parameter_names.PROMPT}
    named = formats.as_named(ours, source.config, to_format)
    width = max(map(len, ours))
    rows = [
        f"{leaf.source:{width}}  {str(list(ours[leaf.source].shape)):16} -> {name}  {leaf.dtype} {list(leaf.shape)}"
        for name, leaf in named.items()
    ]
    return "\n".join([f"{len(ours)} leaves become {len(named)}", *rows])


class _Progress:
    """Prints how many bytes of the leaves have been read, every few seconds."""

    def __init__(self, verb: str, leaves: Leaves):
        self._verb, self._seen, self._began, self._printed = verb, 0, time.monotonic(), time.monotonic()
        self._total = sum(stored_leaves.num_bytes(leaf) for leaf in leaves.values())
        self.watched = {name: leaf._replace(read=self._watch(leaf)) for name, leaf in leaves.items()}

    def _watch(self, leaf: StoredLeaf):
        def read(index: Index) -> np.ndarray:
            block = leaf.read(index)
            self._seen += block.nbytes
            if time.monotonic() - self._printed > 5:
                self._printed = time.monotonic()
                rate = self._seen / (self._printed - self._began)
                left = max(0.0, self._total - self._seen) / rate
                print(
                    f"{self._verb} {self._seen / 1e9:.2f} of {self._total / 1e9:.2f} GB, {left:.0f} s left", flush=True
                )
            return block

        return read

    def done(self) -> None:
        seconds = time.monotonic() - self._began
        print(f"{self._verb} {self._total / 1e9:.2f} GB in {seconds:.0f} s", flush=True)


def _compare(source: Leaves, written: Leaves) -> None:
    """Compares the result with its source, block by block.

    Raises:
      ValueError: a name, shape, dtype or bit differs.
    """
    placing.compare(written, source, "The written checkpoint", "differs from its source", "convert it again")
    for name, leaf in source.items():
        other = written[name]
        if not stored_leaves.equal(leaf, other):
            raise ValueError(
                f"The numbers written to {other.source} differ from those in {leaf.source}; convert it again."
            )
    print(f"read again: {len(source)} leaves, bit for bit the same")


def _same_network(source: Source, folder: epath.Path) -> T5Config:
    """The network of the written checkpoint, as far as its format states one.

    Raises:
      ValueError: it differs from the source's.
    """
    written = sources.open_source(folder)
    config = dataclasses.replace(source.config, **{k: v for k, v in written.stated.items() if k in _KEPT})
    networks.check_agreement(written.stated, source.config, _KEPT, folder)
    if config != source.config:
        raise ValueError(f"{folder} was written with other settings than {source.folder} has: {config}.")
    return config


def _logits_difference(one: tuple[T5Config, Leaves], other: tuple[T5Config, Leaves]) -> tuple[float, float]:
    """(largest difference, largest logit) of two models in float32 on a fixed random batch."""
    config, partitioner = one[0], Partitioner()
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, config.vocab_size, (2, 2, 16)).astype(np.int32)
    batch = {"encoder_input_tokens": tokens[0], "decoder_input_tokens": tokens[1]}
    if config.prompt_length:
        batch["soft_prompt_ids"] = np.zeros(2, np.int32)
    logits = []
    for its_config, leaves in (one, other):
        in_float32 = {"dtype": "float32", "param_dtype": "float32", "scan_layers": False, "remat": "none"}
        model = EncoderDecoderModel(dataclasses.replace(its_config, **in_float32))
        params = parameter_names.unflatten(placing.place(leaves, loading.wanted_params(model, partitioner)))
        logits.append(np.asarray(jax.jit(model.logits)(params, jax.tree.map(jnp.asarray, batch))))
    return float(np.max(np.abs(logits[0] - logits[1]))), float(np.max(np.abs(logits[0])))
