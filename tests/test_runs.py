"""Which run a Stop button ends."""

from types import SimpleNamespace

from nestar.ui.runs import Runs


def test_stop_ends_the_run_of_its_own_part_alone():
    runs, visitor = Runs(), SimpleNamespace(session_hash="one")
    with runs.run(visitor, "generate") as growing, runs.run(visitor, "race") as racing:
        runs.stop_in("diversity")(visitor)
        assert not growing.is_set() and not racing.is_set()
        runs.stop_in("race")(visitor)
        assert racing.is_set() and not growing.is_set()
        runs.stop_in("generate")(SimpleNamespace(session_hash="other"))
        assert not growing.is_set()
        runs.leave(visitor)
        assert growing.is_set()
    assert runs.going == 0


def test_a_run_that_was_followed_by_another_leaves_that_its_flag():
    runs, visitor = Runs(), SimpleNamespace(session_hash="one")
    with runs.run(visitor, "generate"):
        with runs.run(visitor, "generate") as second:
            pass
        assert second.is_set() and runs.going == 0
    first = runs.run(visitor, "generate")
    first.__enter__()
    with runs.run(visitor, "generate") as second:
        first.__exit__(None, None, None)
        runs.stop_in("generate")(visitor)
        assert second.is_set()
