"""seqio tasks and mixtures of ProMoT; importing this package registers the toy world.

The other tasks are registered by functions, which take the vocabulary and the location of the data.

The tasks know seqio, not the framework. The two share seqio's registry and the feature names `inputs`, `targets`,
`answers` and `choices`.
"""

from promot_t5x.tasks import catalog, jsonl, paper, toy_world  # noqa: F401
from promot_t5x.tasks.jsonl import jsonl_task  # noqa: F401
