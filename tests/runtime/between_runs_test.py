"""promot_t5x.runtime.between_runs: what is kept, until when, and what has to go."""

from promot_t5x.runtime import between_runs


def test_nothing_is_kept_outside_and_nothing_outlives_the_runs():
    assert between_runs.kept("weights") is None
    with between_runs.keeping():
        between_runs.kept("weights").put("a", 1)
        assert between_runs.kept("weights").get("a") == 1
        assert between_runs.kept("batches").get("a") is None, "each kind on its own"
    assert between_runs.kept("weights") is None
    with between_runs.keeping():
        assert between_runs.kept("weights").get("a") is None


def test_the_longest_unused_go_first():
    kept = between_runs.Kept(most_bytes=10)
    kept.put("a", 1, 4)
    kept.put("b", 2, 4)
    assert kept.get("a") == 1
    kept.put("c", 3, 4)
    assert [kept.get(key) for key in "abc"] == [1, None, 3]
    kept.put("a", 1, 7)
    assert [kept.get(key) for key in "ac"] == [1, None], "a thing that grew makes others go"
    assert kept.fits(10) and not kept.fits(11)
    for number in range(100):
        kept.put(number, number)
    assert 1 < sum(kept.get(number) is not None for number in range(100)) < 20, "things without bytes are limited, too"
