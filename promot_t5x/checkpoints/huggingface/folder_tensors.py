"""The tensors in the files of a Hugging Face folder, each once: copies are compared, then dropped."""

import json
import os
from collections.abc import Mapping

from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import safetensors_file
from promot_t5x.checkpoints.stored_leaves import StoredLeaf

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"

EMBEDDING = "shared.weight"

OUTPUT = "lm_head.weight"

# The embedding's copies; some converters have kept one of them in its place.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

# Part of the first T5 checkpoints; no version of transformers that reads safetensors computes with it, so that its
# size alone can be compared.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

_USED = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

_LISTED = 5  # names in one message


def in_folder(path: epath.Path) -> dict[str, StoredLeaf]:
    """All tensors in a folder's files, under their names there.

    Raises:
      FileNotFoundError: one of the files of weights is missing.
      ValueError: the weights are pickled, or a file or the index is damaged.
    """
    if (path / WEIGHTS).is_file():
        return safetensors_file.leaves(path / WEIGHTS)
    if (path / INDEX).is_file():
        return _indexed(path)
    others = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))
    if others:
        raise ValueError(
            f"{path} holds no {WEIGHTS} but {some(others)}, which is not read (unpickling runs whatever code a file "
            "holds): load the model with transformers and save it with save_pretrained(folder), as safetensors."
        )
    raise FileNotFoundError(f"{path} holds neither {WEIGHTS} nor {INDEX}: copy the weights there.")


def _indexed(path: epath.Path) -> dict[str, StoredLeaf]:
    index = path / INDEX
    try:
        weight_map = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged, it maps no tensors to files ({error!r}): copy it again.") from error
    names = sorted(set(weight_map.values()))
    if elsewhere := [file for file in names if "/" in file or os.sep in file]:
        raise ValueError(f"{index} names {elsewhere[0]}, expected files of its own folder: copy it again.")
    if missing := [file for file in names if not (path / file).is_file()]:
        raise FileNotFoundError(
            f"{path} lacks {len(missing)} of the {len(names)} files of weights that {INDEX} names "
            f"({some(missing)}): copy them there."
        )
    by_file = {file: safetensors_file.leaves(path / file) for file in names}
    for name, file in weight_map.items():
        if name not in by_file[file]:
            raise ValueError(f"{path / file} lacks {name}, which {INDEX} says is in it: copy both files again.")
    for file, tensors in by_file.items():
        if unlisted := [name for name in tensors if weight_map.get(name) != file]:
            raise ValueError(
                f"{path / file} holds {some(unlisted)}, which {INDEX} does not say is in it: copy both files again."
            )
    return {name: by_file[file][name] for name, file in weight_map.items()}


def without_copies(tensors: Mapping[str, StoredLeaf], path: epath.Path, is_tied: bool) -> dict[str, StoredLeaf]:
    """Tensors with one embedding, under its own name, and without the relative positions that nothing uses.

    Args:
      tensors: of one model.
      path: its folder, for messages.
      is_tied: whether the output matrix may be the only place of the embedding.

    Raises:
      ValueError: what would be dropped is no copy: of other numbers than the embedding, or of another size.
    """
    result = dict(tensors)
    for name in (*_COPIES, *([OUTPUT] if is_tied else [])):
        if name in result:
            result.setdefault(EMBEDDING, result[name])
    for name in _COPIES:
        if name in result and not stored_leaves.equal(copy := result.pop(name), result[EMBEDDING]):
            shared = result[EMBEDDING]
            raise ValueError(
                f"{name} in {path} ({copy.dtype}{copy.shape}) is not {EMBEDDING} ({shared.dtype}{shared.shape}), "
                "though a (m)T5 has one embedding for both sides: give the model that they belong to, or remove the "
                "one that is not meant."
            )
    if (unused := result.pop(_UNUSED, None)) and _USED in result and unused.shape != result[_USED].shape:
        raise ValueError(
            f"{_UNUSED} in {path} has the shape {unused.shape}, expected {result[_USED].shape} as {_USED} has: copy "
            "the weights again."
        )
    return result


def some(names: list[str]) -> str:
    """The first few of many names, for a message.

    >>> some(["a", "b"]), some(list("abcdefg"))
    ('a, b', 'a, b, c, d, e, …')
    """
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
