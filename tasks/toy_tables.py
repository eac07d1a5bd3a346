"""Names, metrics and sizes of the toy world's tasks, which `toy_world` registers; read without seqio."""

from collections.abc import Mapping

from promot_t5x.tasks import toy_generators as generators

IN_CONTEXT_TASKS = tuple(f"toy_{name}" for name in generators.IN_CONTEXT_FAMILIES)
TARGET_TASKS = ("toy_rtec", "toy_enfr")
HEADLINE_METRICS = {
    "toy_nli3": "accuracy",
    "toy_wic": "accuracy",
    "toy_qa_short": "accuracy",
    "toy_qa_long": "accuracy",
    "toy_en_de": "f1",
    "toy_en_ro": "f1",
    "toy_key_sentence": "f1",
    "toy_keywords": "f1",
    "toy_rtec": "accuracy",
    "toy_enfr": "f1",
}


def sizes(task: str) -> Mapping[str, int]:
    """The number of examples in each split of an in-context or target task.

    >>> sizes("toy_enfr")["test"]
    192
    """
    targets: dict[str, Mapping[str, int]] = dict(
        zip(TARGET_TASKS, (generators.RTEC_SIZES, generators.ENFR_SIZES), strict=True)
    )
    return targets.get(task, generators.IN_CONTEXT_SIZES)
