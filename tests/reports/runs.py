"""Runs for tests of comparisons, their rows made of plain scores; and damaged copies of results."""

import copy

from promot_t5x.reports import comparison


def run(method, learning_rate, seed, target, in_context, with_prompt=None, details=None) -> comparison.Run:
    """A run of its scores in percent.

    Args:
      method, learning_rate, seed, details: see `comparison.Run`.
      target: of the trained task, asked with the prompt if there is one; None leaves it out.
      in_context: score per task, prompt removed.
      with_prompt: the same with the prompt attached; None for a method without one.
    """
    prompt = None if with_prompt is None else 0
    scores = [] if target is None else [("target", "t", prompt, target)]
    scores += [("other", task, None, value) for task, value in in_context.items()]
    scores += [("other", task, prompt, value) for task, value in (with_prompt or {}).items()]
    rows = [dict(zip(("role", "seqio_task", "prompt", "value"), score, strict=True)) for score in scores]
    return comparison.Run(method, learning_rate, seed, rows, details or {})


def damaged(results):
    """Yields (place, copy) of results in which one value is missing or of another type; of lists the first item."""
    for place in _places(results, ()):
        for value in ("missing", None, [], {}, "x", -1, [{}], {"x": {}}, True):
            changed = copy.deepcopy(results)
            parent = changed
            for key in place[:-1]:
                parent = parent[key]
            if value == "missing":
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            yield (*place, value), changed


def _places(value, place):
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from _places(item, (*place, key))
