"""Reads and writes weights of transformers' T5, mT5 and umT5 (for conditional generation) as safetensors.

A folder has config.json and model.safetensors, or several weight files and model.safetensors.index.json. Neither torch
nor transformers is needed, and nothing is unpickled. The bits stay the same: names change, and matrices are transposed,
since torch stores a Linear's weight as [out, in].

Versions of transformers disagree on the output matrix. A model without one (`lm_head.weight`) shares the embedding. If
transformers scales its output by 1/sqrt(D), we share it too, with the same scale (`network.scaled_for_embedding`); if
transformers does not scale, the transposed embedding becomes our `logits_dense`. A model with an output matrix has no
scale. (transformers 5 scales umT5's logits even then, which leaves greedy answers unchanged, but not scores, beams and
samples; setting `model.config.tie_word_embeddings = False` after loading avoids it.)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import config_file, folder_tensors, safetensors_file
from promot_t5x.checkpoints.huggingface.folder_tensors import EMBEDDING, INDEX, OUTPUT, WEIGHTS
from promot_t5x.checkpoints.stored_leaves import StoredLeaf
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.runtime import files, processes

_CONFIG = "config.json"

_GENERATION = "generation_config.json"


def is_huggingface(folder: epath.Path) -> bool:
    """Whether a folder holds a model of transformers, of any kind, even a damaged one.

    >>> is_huggingface(epath.Path("/nothing/here"))
    False
    """
    if not folder.is_dir():
        return False
    names = (WEIGHTS, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
    if any((folder / name).is_file() for name in names):
        return True
    return (folder / _CONFIG).is_file() and b'"model_type"' in (folder / _CONFIG).read_bytes()


def write(
    folder: epath.Path,
    leaves: stored_leaves.Leaves,
    config: T5Config,
    *,
    model_type: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model that transformers' from_pretrained reads: weights, config.json and generation_config.json.

    One block of one tensor is in memory at a time. config.json, without which the folder is not a model, is written
    last; only process 0 writes. For the tokenizer see `tokenizer_files`.

    Args:
      folder: may exist, but must not hold a model.
      leaves: the network's, one leaf per layer or stacks of layers, without the soft prompt.
      config: the network's.
      model_type: "t5", "mt5" or "umt5"; None determines it, see `config_file.model_type_of`.
      max_shard_bytes: most bytes in one weight file; a larger tensor gets a separate file.

    Raises:
      FileExistsError: the folder already holds a model.
      ValueError: the leaves are not those of the network, or transformers has no class for it.
      files.NoRoomError: the disk is full.
    """
    model_type = config_file.model_type_of(config, model_type)
    tensors = as_named(leaves, config)
    dtypes = {str(leaf.dtype) for leaf in tensors.values()}
    values = config_file.values_of(config, model_type, dtypes.pop() if len(dtypes) == 1 else None)
    if not processes.speaks():
        return
    if present := _model_files(folder):
        raise FileExistsError(
            f"{folder} holds {folder_tensors.some(present)} already: give another folder, or remove these files."
        )
    shards = _sharded(tensors, max_shard_bytes)
    try:
        for file, names in shards.items():
            safetensors_file.write(folder / file, {name: tensors[name] for name in names})
        if list(shards) != [WEIGHTS]:
            total = sum(stored_leaves.num_bytes(leaf) for leaf in tensors.values())
            weight_map = {name: file for file, names in shards.items() for name in names}
            files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        files.write_json(folder / _GENERATION, config_file.generation_values())
        files.write_json(folder / _CONFIG, values)
    except BaseException:
        for file in (*shards, INDEX, _GENERATION):
            (folder / file).unlink(missing_ok=True)
        raise


def opened(folder: epath.Path) -> tuple[dict[str, Any], dict[str, StoredLeaf]]:
    """A model's network and its weights under our names, one leaf per layer, in their stored dtype.

    Names and shapes are compared with config.json before any weight is read.

    Args:
      folder: a local folder.

    Returns:
      The fields of T5Config that the folder determines (sizes, activations, relative positions, output matrix; only the
      weights' headers say whether the embedding is the output matrix), and leaves sorted by name; a block of a kernel
      is read from the transposed block of the file.

    Raises:
      FileNotFoundError: the folder, config.json or a weight file is missing.
      ValueError: it is another kind of model, its weights are pickled, a file is damaged, or weights are missing,
        unknown, or of other sizes than in config.json.
    """
    if not folder.exists():
        raise FileNotFoundError(f"The Hugging Face folder {folder} does not exist: check the path.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder with {_CONFIG} and {WEIGHTS}.")
    values = config_file.load(folder / _CONFIG)
    fields = config_file.fields(values, folder / _CONFIG)
    config_file.check_generation(folder / _GENERATION)
    tensors = folder_tensors.without_copies(folder_tensors.in_folder(folder), folder, config_file.tied(values))
    if (depth := fields["num_encoder_layers"] + fields["num_decoder_layers"]) > len(tensors):
        raise ValueError(
            f"{folder / _CONFIG} has {depth} layers, but the weights next to it are only {len(tensors)} tensors: put "
            f"the {_CONFIG} of these weights there."
        )
    fields["logits_via_embedding"] = _shares_embedding(values, tensors, folder)
    if fields["logits_via_embedding"]:
        tensors.pop(OUTPUT, None)
    elif OUTPUT not in tensors and EMBEDDING in tensors and config_file.tied(values):
        tensors[OUTPUT] = tensors[EMBEDDING]  # shared, but without the scale
    table = {theirs: (ours, shape) for ours, theirs, shape in _table(T5Config(**fields))}
    _compare({theirs: _file_shape(ours, shape) for theirs, (ours, shape) in table.items()}, tensors, folder)
    leaves = {ours: _turned(ours, tensors[theirs]) for theirs, (ours, _) in table.items()}
    return fields, dict(sorted(leaves.items()))


def _shares_embedding(values: Mapping[str, Any], tensors: Mapping[str, StoredLeaf], path: epath.Path) -> bool:
    """Whether the scaled embedding is the output matrix, as with T5Config.logits_via_embedding."""
    if not config_file.scales_output(values):
        return False
    if OUTPUT not in tensors or EMBEDDING not in tensors:
        return True
    if stored_leaves.equal(tensors[OUTPUT], tensors[EMBEDDING]):
        return True
    if values["model_type"] == "t5":
        raise ValueError(
            f"{OUTPUT} in {path} is not {EMBEDDING}, though its {_CONFIG} says that the embedding is the output "
            "matrix: for a T5 1.1 set tie_word_embeddings (and scale_decoder_outputs, if present) to false in it."
        )
    return False


def _compare(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredLeaf], path: epath.Path) -> None:
    """Raises ValueError if the tensors of a folder do not match its config.json."""
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"lack {len(missing)} tensors ({folder_tensors.some(missing)})")
    if unknown := [name for name in tensors if name not in expected]:
        problems.append(f"have {len(unknown)} that are unknown ({folder_tensors.some(unknown)})")
    shapes = {name: (tensors[name].shape, shape) for name, shape in expected.items() if name in tensors}
    if other := [f"{name} {stored} for {shape}" for name, (stored, shape) in shapes.items() if stored != shape]:
        problems.append(f"have {len(other)} of other shapes ({folder_tensors.some(other)})")
    if problems:
        raise ValueError(
            f"The weights in {path} are not those of its {_CONFIG}: they {', and '.join(problems)}; put the "
            f"{_CONFIG} of these weights there."
        )


def as_named(leaves: stored_leaves.Leaves, config: T5Config) -> dict[str, StoredLeaf]:
    """Our leaves under transformers' names and in its shapes.

    Raises:
      ValueError: the leaves are not those of the network, or include a soft prompt.
    """
    if parameter_names.PROMPT in leaves:
        raise ValueError(
            f"{parameter_names.PROMPT} has no place in a model of transformers: leave it out "
            "and write it as a PEFT adapter."
        )
    table = {ours: (theirs, shape) for ours, theirs, shape in _table(config)}
    leaves = stored_leaves.as_stored_in(leaves, table)
    wrong = [f"{name} (missing)" for name in table if name not in leaves]
    wrong += [f"{name} (unknown)" for name in leaves if name not in table]
    shapes = {name: (leaves[name].shape, shape) for name, (_, shape) in table.items() if name in leaves}
    wrong += [f"{name} ({given} for {shape})" for name, (given, shape) in shapes.items() if given != shape]
    if wrong:
        raise ValueError(
            f"The parameters are not those of the network in T5Config: {folder_tensors.some(wrong)}; give the "
            "parameters of this network."
        )
    return {theirs: _turned(ours, leaves[ours]) for ours, (theirs, _) in table.items()}


def _table(config: T5Config) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(our name, transformers' name, our shape) of every parameter but the soft prompt."""
    c = config
    width, bias = c.num_heads * c.head_dim, (c.num_heads, c.relative_bias_buckets)
    gates = ["wi"] if len(c.mlp_activations) == 1 else [f"wi_{i}" for i in range(len(c.mlp_activations))]
    attentions = {
        "encoder": [("attention", "SelfAttention", "pre_attention_layer_norm")],
        "decoder": [
            ("self_attention", "SelfAttention", "pre_self_attention_layer_norm"),
            ("encoder_decoder_attention", "EncDecAttention", "pre_cross_attention_layer_norm"),
        ],
    }
    depths = {"encoder": c.num_encoder_layers, "decoder": c.num_decoder_layers}
    bias_name = "block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    yield "token_embedder/embedding", EMBEDDING, (c.vocab_size, c.embed_dim)
    for side, depth in depths.items():
        for i in range(depth):
            ours, theirs = f"{side}/layers_{i}", f"{side}.block.{i}.layer"
            for j, (attention, their_attention, norm) in enumerate(attentions[side]):
                for part, their_part in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                    shape = (width, c.embed_dim) if part == "out" else (c.embed_dim, width)
                    yield (
                        f"{ours}/{attention}/{part}/kernel",
                        f"{theirs}.{j}.{their_attention}.{their_part}.weight",
                        shape,
                    )
                yield f"{ours}/{norm}/scale", f"{theirs}.{j}.layer_norm.weight", (c.embed_dim,)
            j = len(attentions[side])
            for gate in gates:
                yield (
                    f"{ours}/mlp/{gate}/kernel",
                    f"{theirs}.{j}.DenseReluDense.{gate}.weight",
                    (c.embed_dim, c.mlp_dim),
                )
            yield f"{ours}/mlp/wo/kernel", f"{theirs}.{j}.DenseReluDense.wo.weight", (c.mlp_dim, c.embed_dim)
            yield f"{ours}/pre_mlp_layer_norm/scale", f"{theirs}.{j}.layer_norm.weight", (c.embed_dim,)
            if c.relative_bias == "per_layer":
                yield f"{ours}/relpos_bias/rel_embedding", f"{side}.{bias_name.format(i)}", bias
        if c.relative_bias == "shared":
            yield f"{side}/relpos_bias/rel_embedding", f"{side}.{bias_name.format(0)}", bias
        yield f"{side}/{side}_norm/scale", f"{side}.final_layer_norm.weight", (c.embed_dim,)
    if not c.logits_via_embedding:
        yield "decoder/logits_dense/kernel", OUTPUT, (c.embed_dim, c.vocab_size)


def _is_transposed(ours: str) -> bool:
    return ours.endswith(("/kernel", "/rel_embedding"))


def _turned(ours: str, leaf: StoredLeaf) -> StoredLeaf:
    """Converts a parameter from our shape to transformers', or back."""
    return stored_leaves.transposed(leaf, (1, 0)) if _is_transposed(ours) else leaf


def _file_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if _is_transposed(ours) else shape


def _sharded(tensors: Mapping[str, StoredLeaf], max_shard_bytes: int) -> dict[str, list[str]]:
    """File names to the tensors in each, in order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, leaf in tensors.items():
        more = stored_leaves.num_bytes(leaf)
        if shards[-1] and size + more > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _model_files(path: epath.Path) -> list[str]:
    """The files of a model in a folder, including weights left by a writer that was killed."""
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    return [n for n in names if n in (_CONFIG, INDEX) or (n.startswith("model") and n.endswith(".safetensors"))]
