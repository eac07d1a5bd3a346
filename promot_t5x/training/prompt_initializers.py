"""Initialisers of soft prompts (Lester et al. 2021, section 3.2, compare them).

An initialiser is called as `init(key, num_prompts, length, embedding_VxD)` and returns prompt_NxPxD in float32. Those
here are built from settings, frozen dataclasses with a method `build`; a plain function will do as well.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from promot_t5x.checkpoints import soft_prompts, stored_leaves
from promot_t5x.runtime import files

Initializer = Callable[[jax.Array, int, int, jax.Array], jax.Array]


@runtime_checkable
class InitializerSettings(Protocol):
    """Settings that an initialiser is built from."""

    def build(self) -> Initializer:
        """The initialiser."""
        ...


PromptInit = InitializerSettings | Initializer


def built(prompt_init: Any) -> Initializer:
    """The initialiser that settings build; a plain function is returned as it is."""
    return prompt_init.build() if hasattr(prompt_init, "build") else prompt_init


_FIRST_WORD_ID = 3  # 0, 1, 2 are padding, end of sequence and unknown in every T5 vocabulary


@dataclasses.dataclass(frozen=True)
class random_uniform:
    """Every component uniform in [low, high); Lester et al. state [-0.5, 0.5], their code draws from [0, 0.5).

    Attributes:
      low: the lower end, included.
      high: the upper end, excluded.

    Raises:
      ValueError: an empty range.

    >>> random_uniform().build()(jax.random.key(0), 1, 2, jnp.zeros((5, 3))).shape
    (1, 2, 3)
    """

    low: float = -0.5
    high: float = 0.5

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(
                f"prompt_initializers.random_uniform got low={self.low}, high={self.high}: expected low below high."
            )

    def build(self) -> Initializer:
        """The initialiser."""

        def init(key, num_prompts, length, embedding_VxD):
            shape = (num_prompts, length, embedding_VxD.shape[1])
            return jax.random.uniform(key, shape, minval=self.low, maxval=self.high)

        return init


@dataclasses.dataclass(frozen=True)
class sampled_vocabulary:
    """Embeddings of different tokens drawn from the `population` most frequent ones (the lowest ids).

    Attributes:
      population: how many tokens are drawn from.

    Raises:
      ValueError: (when called) fewer tokens than prompt positions.
    """

    population: int = 5000

    def build(self) -> Initializer:
        """The initialiser."""

        def init(key, num_prompts, length, embedding_VxD):
            available = min(self.population, embedding_VxD.shape[0]) - _FIRST_WORD_ID
            if available < length:
                raise ValueError(
                    f"prompt_initializers.sampled_vocabulary has {available} tokens to draw from, fewer than the "
                    f"prompt length {length}; raise its population or shorten architecture.T5Config.prompt_length."
                )
            ids_NxP = jnp.stack(
                [
                    _FIRST_WORD_ID + jax.random.choice(k, available, (length,), replace=False)
                    for k in jax.random.split(key, num_prompts)
                ]
            )
            return jnp.take(embedding_VxD, ids_NxP, axis=0).astype(jnp.float32)

        return init


@dataclasses.dataclass(frozen=True)
class class_labels:
    """The embedding of each label (mean over its tokens) on the first positions, sampled vocabulary on the rest.

    Attributes:
      labels: the task's answers as the model writes them.
      vocabulary: a seqio vocabulary.
      population: see `sampled_vocabulary`.

    Raises:
      ValueError: (when called) no labels, more labels than prompt positions, or a label without tokens.
    """

    labels: Sequence[str]
    vocabulary: Any
    population: int = 5000

    def build(self) -> Initializer:
        """The initialiser."""
        labels, vocabulary = self.labels, self.vocabulary

        def init(key, num_prompts, length, embedding_VxD):
            if not 0 < len(labels) <= length:
                raise ValueError(
                    f"prompt_initializers.class_labels got {len(labels)} labels for a prompt of length {length}: "
                    "expected between 1 and the length."
                )
            means = [_embedded("label", label, vocabulary, embedding_VxD).mean(axis=0) for label in labels]
            prompt_NxPxD = sampled_vocabulary(self.population).build()(key, num_prompts, length, embedding_VxD)
            return prompt_NxPxD.at[:, : len(labels)].set(jnp.stack(means))

        return init


@dataclasses.dataclass(frozen=True)
class text:
    """The embeddings of a text's tokens, cut to the prompt length or repeated up to it.

    Attributes:
      text: the words.
      vocabulary: a seqio vocabulary.

    Raises:
      ValueError: (when called) the text has no tokens.
    """

    text: str
    vocabulary: Any

    def build(self) -> Initializer:
        """The initialiser."""

        def init(key, num_prompts, length, embedding_VxD):
            del key
            tokens_CxD = _embedded("text", self.text, self.vocabulary, embedding_VxD)
            prompt_PxD = tokens_CxD[jnp.arange(length) % len(tokens_CxD)]
            return jnp.broadcast_to(prompt_PxD, (num_prompts, *prompt_PxD.shape))

        return init


def _embedded(what: str, words: str, vocabulary: Any, embedding_VxD: jax.Array) -> jax.Array:
    """The embeddings of the tokens of `words`, in float32, one row per token."""
    ids = vocabulary.encode(words)
    if not ids:
        raise ValueError(f"The soft prompt is to start from the {what} {words!r}, which has no tokens; give it words.")
    if max(ids) >= embedding_VxD.shape[0]:  # JAX would silently read the last row
        raise ValueError(
            f"The soft prompt is to start from the {what} {words!r}, whose tokens go up to {max(ids)}, but the "
            f"network's embedding has {embedding_VxD.shape[0]} rows; give the vocabulary of the network."
        )
    return jnp.asarray(embedding_VxD)[jnp.asarray(ids)].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class from_file:
    """A prompt that was saved before: `soft_prompt.safetensors` (or its folder), or a .npy [P, D] or [N, P, D].

    Attributes:
      path: the file, or the folder of soft_prompt.safetensors.

    Raises:
      FileNotFoundError: (when called) no such file.
      ValueError: (when called) its shape is not the network's, or a number is too large for float32.
    """

    path: str

    def build(self) -> Initializer:
        """The initialiser."""
        path = self.path

        def init(key, num_prompts, length, embedding_VxD):
            del key
            prompt_NxPxD, _ = soft_prompts.read(files.absolute(path))
            expected = (num_prompts, length, embedding_VxD.shape[1])
            if prompt_NxPxD.shape != expected:
                raise ValueError(
                    f"The soft prompt in {path} has the shape {prompt_NxPxD.shape}, the network expects {expected} "
                    "(prompts, length, embed); set architecture.T5Config.prompt_length and num_prompts to the file's."
                )
            return jnp.asarray(stored_leaves.converted(prompt_NxPxD, np.float32, path))

        return init


def initializer_name(prompt_init: PromptInit) -> str:
    """What an initialiser is called: the name of its settings' class, or of the function.

    >>> initializer_name(sampled_vocabulary())
    'sampled_vocabulary'
    """
    return getattr(prompt_init, "__qualname__", type(prompt_init).__name__)
