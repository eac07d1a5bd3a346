"""The tensors in the files of a Hugging Face folder; copies of a tensor are compared before they are dropped."""

import os
from collections.abc import Mapping

from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import safetensors_file
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.runtime import files

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"

EMBEDDING = "shared.weight"

OUTPUT = "lm_head.weight"

# Copies of the embedding; some converters store one of them instead of it.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

# Part of the first T5 checkpoints; no version of transformers that reads safetensors uses it, so only its shape can be
# checked.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

_USED = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

_LISTED = 5  # most names in a message


def in_folder(path: epath.Path) -> dict[str, StoredLeaf]:
    """All tensors in a folder's files, by their names in these files.

    Raises:
      FileNotFoundError: a weight file is missing.
      ValueError: the weights are pickled, or a file or the index is damaged.
    """
    if (path / WEIGHTS).is_file():
        return safetensors_file.leaves(path / WEIGHTS)
    if (path / INDEX).is_file():
        return _indexed(path)
    others = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))
    if others:
        raise ValueError(
            f"{path} holds no {WEIGHTS} but {some(others)}, which is not read (unpickling can run any code): load "
            "the model with transformers and save it with save_pretrained(folder), as safetensors."
        )
    raise FileNotFoundError(f"{path} holds neither {WEIGHTS} nor {INDEX}: copy the weights there.")


def _indexed(path: epath.Path) -> dict[str, StoredLeaf]:
    index = path / INDEX
    values = files.read_json(index)
    try:
        weight_map = {str(name): str(file) for name, file in values["weight_map"].items()}
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{index} is damaged, it maps no tensors to files ({error!r}): copy it again.") from error
    names = sorted(set(weight_map.values()))
    if elsewhere := [file for file in names if "/" in file or os.sep in file]:
        raise ValueError(f"{index} names {elsewhere[0]}, expected files of its own folder: copy it again.")
    if missing := [file for file in names if not (path / file).is_file()]:
        raise FileNotFoundError(
            f"{path} lacks {len(missing)} of the {len(names)} weight files that {INDEX} names "
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
    """Drops copies of the embedding and the relative positions that nothing uses; renames the embedding if necessary.

    Args:
      tensors: one model's.
      path: its folder, for messages.
      is_tied: whether the embedding may be stored as the output matrix alone.

    Raises:
      ValueError: a copy differs from the embedding in a bit, shape or dtype, or the unused table has another shape.
    """
    result = dict(tensors)
    for name in (*_COPIES, *([OUTPUT] if is_tied else [])):
        if name in result:
            result.setdefault(EMBEDDING, result[name])
    for name in _COPIES:
        if name in result and not stored_leaves.equal(copy := result.pop(name), result[EMBEDDING]):
            shared = result[EMBEDDING]
            raise ValueError(
                f"{name} in {path} ({copy.dtype}{copy.shape}) is not {EMBEDDING} ({shared.dtype}{shared.shape}), but "
                "encoder and decoder of an (m)T5 share one embedding: remove the wrong one of the two."
            )
    if (unused := result.pop(_UNUSED, None)) and _USED in result and unused.shape != result[_USED].shape:
        raise ValueError(
            f"{_UNUSED} in {path} has the shape {unused.shape}, expected {result[_USED].shape}, that of {_USED}: copy "
            "the weights again."
        )
    return result


def some(names: list[str]) -> str:
    """The first few of many names, for a message.

    >>> some(["a", "b"]), some(list("abcdefg"))
    ('a, b', 'a, b, c, d, e, …')
    """
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
