"""Plain strings in, plain strings out: what a loaded checkpoint answers."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import seqio

from promot_t5x.checkpoints import soft_prompts, stored_leaves
from promot_t5x.checkpoints.loading import Loaded
from promot_t5x.data import features, vocabularies
from promot_t5x.evaluation import answering
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import DecodingConfig
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments, files, strict_json
from promot_t5x.tasks.vocabularies import as_vocabulary


def encoder_features(
    texts: Sequence[str], vocabulary: seqio.Vocabulary, inputs_length: int, targets_length: int
) -> tuple[dict[str, np.ndarray], int]:
    """The features for decoding some texts, and how many texts were cut.

    Args:
      texts: N inputs.
      vocabulary: the network's.
      inputs_length: most tokens of an input; a longer one keeps its start and the end of sequence.
      targets_length: most tokens of an answer.

    Returns:
      ({"encoder_input_tokens": NxT, "decoder_input_tokens": zeros NxU}, number of texts that were cut).
    """
    encoded = [vocabulary.encode(text) for text in texts]
    kept = [[*tokens[: inputs_length - 1], vocabulary.eos_id] for tokens in encoded]
    arrays = {
        "encoder_input_tokens": features.padded(kept, inputs_length),
        "decoder_input_tokens": np.zeros((len(texts), targets_length), np.int32),
    }
    return arrays, sum(len(tokens) > inputs_length - 1 for tokens in encoded)


@arguments.checked
def generate(
    loaded: Loaded,
    texts: Sequence[str],
    prompt: int | str | os.PathLike[str] | None = None,
    *,
    vocabulary: str | seqio.Vocabulary | None = None,
    decoding: DecodingConfig | None = None,
    inputs_length: int = 512,
    targets_length: int = 128,
    batch_size: int = 32,
    partitioner: Partitioner = Partitioner(),
) -> list[str]:
    """Answers texts.

    Args:
      loaded: what `load` returned.
      texts: the inputs; those longer than `inputs_length` are cut.
      prompt: None removes the soft prompt, a number attaches the checkpoint's prompt of that number, a path attaches a
        prompt from a file (see `load_soft_prompt`).
      vocabulary: the checkpoint's, or the path of its SentencePiece file; None takes the one named in the checkpoint.
      decoding: None takes the model's own.
      inputs_length: in tokens, including the end of sequence.
      targets_length: in tokens.
      batch_size: rows of a batch of inputs of the full length; batches of shorter ones have more. It changes answers
        only if they are sampled.
      partitioner: the mesh that the parameters were loaded onto.

    Returns:
      One answer per text, in order.

    Raises:
      TypeError: `texts` is a single string.
      ValueError: a length below 1, a text that cannot be encoded, no such prompt, or a vocabulary that is not the
        network's.
    """
    if min(inputs_length, targets_length, batch_size) < 1:
        raise ValueError(
            f"generate has inputs_length={inputs_length}, targets_length={targets_length}, batch_size={batch_size}: "
            "expected at least 1 each."
        )
    for number, text in enumerate(texts):
        if reason := strict_json.lone_surrogate(text):
            raise ValueError(f"generate cannot encode texts[{number}], which holds {reason}; correct it.")
    if not texts:
        return []
    model = loaded.model if decoding is None else dataclasses.replace(loaded.model, decoding=decoding)
    opened = _vocabulary(loaded) if vocabulary is None else as_vocabulary(vocabulary)
    vocabularies.check_vocabulary(opened, model.config.vocab_size)
    params = loaded.params
    if prompt is None or isinstance(prompt, int):
        prompt_id = prompt
    else:
        prompt_NxPxD, _ = soft_prompts.read(files.absolute(prompt))
        soft_prompts.check_width(prompt_NxPxD, prompt, model.config.embed_dim, loaded.base_path)
        prompt_NxPxD = stored_leaves.converted(prompt_NxPxD, model.config.param_dtype, prompt)
        count, length, _ = prompt_NxPxD.shape
        model = dataclasses.replace(
            model, config=dataclasses.replace(model.config, num_prompts=count, prompt_length=length)
        )
        params, prompt_id = {**params, parameter_names.SOFT_PROMPT: {"embedding": prompt_NxPxD}}, 0
    arrays, _ = encoder_features(texts, opened, inputs_length, targets_length)
    answers: dict[int, str] = {}
    for numbers, tokens_BxU in answering.predict_tokens(
        model, params, arrays, prompt_id=prompt_id, batch_size=batch_size, partitioner=partitioner
    ):
        answers |= {n: answering.decode(opened, tokens_U) for n, tokens_U in zip(numbers, tokens_BxU, strict=True)}
    return [answers[number] for number in range(len(texts))]


def _vocabulary(loaded: Loaded) -> seqio.Vocabulary:
    """The vocabulary named in a checkpoint: its file, or that of a registered task with the same contents."""
    description = loaded.vocabulary or {}
    vocabulary = vocabularies.find_vocabulary(description) if description else None
    if vocabulary is None:
        named = f"names the vocabulary {description['name']}, which was not found" if description else "names none"
        raise ValueError(f"{loaded.base_path} {named}; pass its SentencePiece file to generate as `vocabulary`.")
    return vocabulary
