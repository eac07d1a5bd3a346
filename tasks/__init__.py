"""seqio tasks and mixtures of ProMoT; importing this package registers the toy world.

The others are registered by their functions, which know the vocabulary and the data's place.

The tasks know seqio, not the framework: the two meet in seqio's registry and in the feature names `inputs`, `targets`,
`answers` and `choices`.
"""

from promot_t5x.tasks import catalog, jsonl, paper, toy_world  # noqa: F401
from promot_t5x.tasks.jsonl import jsonl_task  # noqa: F401
