"""seqio tasks and mixtures of ProMoT. What is here is loaded on first use; `toy_world` registers the toy world.

The other tasks are registered by functions, which take the vocabulary and the location of the data.

The tasks know seqio, not the framework. The two share seqio's registry and the feature names `inputs`, `targets`,
`answers` and `choices`.
"""

from etils import epy

with epy.lazy_api_imports(globals()):  # the tables of tasks are read without seqio, which takes seconds to import
    from promot_t5x.tasks import catalog, jsonl, paper, toy_world  # noqa: F401
    from promot_t5x.tasks.jsonl import jsonl_task  # noqa: F401
