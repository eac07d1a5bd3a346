"""A world small enough for two CPU cores in which fine-tuning really costs in-context learning.

Words are tokens; inputs have at most 28 of them and targets at most 6 (including the end of sequence). Names, templates
(`S`, `H`, ... are placeholders), answers, split sizes and metrics:

| task | template | answer | splits | metric |
|---|---|---|---|---|
| toy_pretrain_nli3 | `context: S claim: H label:` | same, `not` inserted or words changed, in one of three label sets | P | accuracy |
| toy_pretrain_nli2 | `premise: S hypothesis: H answer:`, `text: S question: H verdict:`, `context: S claim: H answer:` | same or not, in one of four label sets, True False among them | P | accuracy |
| toy_pretrain_wic | `word: w first: c c second: c c same?` | same domain or not, in one of three label sets | P | accuracy |
| toy_pretrain_qa | `ask: REL of COUNTRY reply:` | `Y` or `it is Y` | P | accuracy |
| toy_pretrain_kind | `ask: kind of cat reply:`, `ask: kind of cat is tool reply:` | `animal`; whether it is, in one of two label sets | P | accuracy |
| toy_pretrain_translate | `translate: S =` | de, ro or fr; or back from de and ro | P | accuracy |
| toy_pretrain_summary | `article: N V . key N V . N V summary:`, `article: N V . N V . N V keywords:` | the key sentence; the nouns or the verbs | P | accuracy |
| toy_pretrain_seqop | `OP: d d d d output:`, OP copy, reverse, sort, first2, last2 | digits | P | accuracy |
| toy_pretrain_raw | two alternating sentences in en, de, ro or fr, cut off | the next four tokens | P | accuracy |
| toy_nli3, toy_wic, toy_qa_short, toy_qa_long | as in pretraining, one-shot | as the exemplar | E | accuracy |
| toy_en_de, toy_en_ro, toy_key_sentence, toy_keywords | as in pretraining, one-shot | as the exemplar | E | f1 |
| toy_rtec | `text: red cat moves question: red animal moves verdict:` | True or False | train 5000, validation 256, test 512 | accuracy |
| toy_enfr | `translate: S =` | fr, all words | train 480, validation 96, test 192 | f1 |

P is train 40000, validation 500; E is validation 200, test 200. One-shot prompts are `x0 y0 ; x1`, with the answer
`y1`; 85 % of the pretraining prompts are one-shot too (raw text: none). A one-shot prompt occurs in one split only.

`toy_pretraining` mixes the toy_pretrain tasks by PRETRAINING_WEIGHTS, `toy_in_context` the eight one-shot tasks.
`toy_rtec` and `toy_enfr` are the targets. Their validation and test splits have combinations that training lacks: for
`toy_rtec` half of the sentences, and four nouns that training never combines with a class; for `toy_enfr` pairs of
adjective and noun that pretraining does not translate into fr either.
"""  # noqa: E501

import collections
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import seqio
import tensorflow as tf

from promot_t5x.tasks import metrics
from promot_t5x.tasks import toy_generators as generators
from promot_t5x.tasks import toy_lexicon as lexicon
from promot_t5x.tasks.toy_tables import HEADLINE_METRICS, IN_CONTEXT_TASKS, TARGET_TASKS, sizes

VOCABULARY_MULTIPLE = 16
FEATURE_LENGTHS = {"inputs": 28, "targets": 6}

PRETRAINING_WEIGHTS = {
    "nli3": 3.0,
    "nli2": 5.0,
    "wic": 2.0,
    "qa": 1.5,
    "kind": 1.0,
    "translate": 2.0,
    "summary": 4.0,
    "seqop": 1.2,
    "raw": 0.4,
}


class WordVocabulary(seqio.Vocabulary):
    """Words separated by white space, one id each; 0 is padding, 1 the end of sequence, 2 every unknown word.

    The size is padded with unused ids to a multiple of VOCABULARY_MULTIPLE, which divides well.

    Args:
      words: the words in the order of their ids, which start at 3; without repetition.

    >>> vocabulary = WordVocabulary(["red", "cat"])
    >>> vocabulary.encode("red cat moves"), vocabulary.decode([3, 4, 1, 0]), vocabulary.vocab_size
    ([3, 4, 2], 'red cat', 16)
    """

    def __init__(self, words: Iterable[str]):
        super().__init__(extra_ids=0)
        listed = ["<pad>", "</s>", "<unk>", *words]
        listed += [f"<unused{i}>" for i in range(-len(listed) % VOCABULARY_MULTIPLE)]
        self._words = tuple(listed)
        self._ids = {word: i for i, word in enumerate(self._words)}
        if len(self._ids) != len(self._words):
            repeated = [word for word, count in collections.Counter(self._words).items() if count > 1]
            raise ValueError(f"WordVocabulary has the words {repeated} more than once; list every word once.")

    @property
    def words(self) -> tuple[str, ...]:
        """The word of every id, unused ids included."""
        return self._words

    @property
    def bos_id(self) -> int:
        """Decoding starts from padding, as in T5."""
        return self.pad_id

    @property
    def eos_id(self) -> int:
        """Id of `</s>`."""
        return 1

    @property
    def unk_id(self) -> int:
        """Id of every word outside the vocabulary."""
        return 2

    @property
    def _base_vocab_size(self) -> int:
        return len(self._words)

    @functools.cached_property
    def _table(self) -> tf.lookup.StaticHashTable:
        # Created outside of the tf.data graph that needs it first, so that all graphs share one table.
        with tf.init_scope():
            keys, values = tf.constant(self._words), tf.range(len(self._words), dtype=tf.int32)
            initializer = tf.lookup.KeyValueTensorInitializer(keys, values)
            return tf.lookup.StaticHashTable(initializer, default_value=self.unk_id)

    def _encode(self, s: str) -> Sequence[int]:
        # bytes.split knows ASCII's white space only, as TensorFlow does.
        return [self._ids.get(word.decode(), self.unk_id) for word in s.encode().split()]

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return self._table.lookup(tf.strings.split(s))

    def _decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._words[i] for i in ids if i not in (self.pad_id, self.eos_id))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        words = tf.gather(tf.constant(self._words), ids)
        kept = tf.where(tf.less_equal(ids, self.eos_id), "", words)
        joined = tf.strings.reduce_join(kept, axis=-1, separator=" ")
        return tf.strings.strip(tf.strings.regex_replace(joined, " +", " "))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordVocabulary) and self._words == other._words

    def __hash__(self) -> int:
        return hash(self._words)

    def __getstate__(self) -> dict:
        # A table belongs to its process; a copy in another process creates its own.
        return {name: value for name, value in self.__dict__.items() if name != "_table"}


VOCABULARY = WordVocabulary(lexicon.all_words())


def vocabulary() -> WordVocabulary:
    """The toy world's vocabulary, for gin files."""
    return VOCABULARY


def unigram_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The mean over examples of F1 = 2 common / (len(target) + len(prediction)), words as multisets, in percent.

    >>> unigram_f1(["cat moves", "red"], ["cat", "red"])
    {'f1': 83.33333333333333}
    """
    total = 0.0
    for target, prediction in zip(targets, predictions, strict=True):
        words, predicted = collections.Counter(target.split()), collections.Counter(prediction.split())
        total += 2 * (words & predicted).total() / max(1, words.total() + predicted.total())
    return {"f1": 100 * total / len(targets)}


METRIC_FNS = {"accuracy": metrics.accuracy, "f1": unigram_f1}


def strip_text(text: str, **unused_seqio_arguments: object) -> str:
    """The decoded text without surrounding white space (seqio also passes the example and `is_target`)."""
    return text.strip()


@functools.cache
def examples(task: str, split: str) -> tuple[generators.Example, ...]:
    """One split of a toy task as (input, target) texts; generated on first use, then cached.

    Args:
      task: the task's registered name.
      split: one of its splits.
    """
    name = task.removeprefix("toy_")
    if name == "rtec":
        drawn = generators.rtec_train_examples() if split == "train" else generators.rtec_held_out_examples(split)
    elif name == "enfr":
        drawn = generators.enfr_examples(split)
    elif name in generators.IN_CONTEXT_FAMILIES:
        drawn = generators.in_context_examples(name, split)
    else:
        drawn = generators.pretraining_examples(name.removeprefix("pretrain_"), split)
    return tuple(drawn)


def _dataset(split: str, shuffle_files: bool, seed: int | None = None, *, task: str) -> tf.data.Dataset:
    """Reads a split in its fixed order; seqio shuffles examples itself if told to."""
    del shuffle_files, seed
    inputs, targets = zip(*examples(task, split), strict=True)
    features = {"inputs": tf.constant(inputs), "targets": tf.constant(targets)}
    return tf.data.Dataset.from_tensor_slices(features)  # pyright: ignore[reportArgumentType]  # any nest is fine


def _register(task: str, split_sizes: Mapping[str, int], metric_fn: Callable[..., dict[str, float]]) -> None:
    feature = seqio.Feature(VOCABULARY, add_eos=True)
    source = seqio.FunctionDataSource(
        functools.partial(_dataset, task=task), splits=tuple(split_sizes), num_input_examples=split_sizes
    )
    seqio.TaskRegistry.add(
        task,
        source=source,  # pyright: ignore[reportArgumentType]  # seqio's own sources miss its protocol by `int | None`
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=strip_text,
        metric_fns=[metric_fn],
    )


def _register_all() -> None:
    for name in PRETRAINING_WEIGHTS:
        _register(f"toy_pretrain_{name}", generators.PRETRAINING_SIZES, metrics.accuracy)
    for task in (*IN_CONTEXT_TASKS, *TARGET_TASKS):
        _register(task, sizes(task), METRIC_FNS[HEADLINE_METRICS[task]])
    seqio.MixtureRegistry.add(
        "toy_pretraining", [(f"toy_pretrain_{name}", weight) for name, weight in PRETRAINING_WEIGHTS.items()]
    )
    seqio.MixtureRegistry.add("toy_in_context", IN_CONTEXT_TASKS, default_rate=1.0)


_register_all()
