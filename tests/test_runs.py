"""Which run a Stop button ends."""

from types import SimpleNamespace

import pytest

from nestar.settings import SettingsError
from nestar.ui import runs as runs_module
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


def test_a_long_run_gives_way_to_those_who_wait_and_only_to_them(monkeypatch: pytest.MonkeyPatch):
    clock, waiting = [0.0], [False]
    monkeypatch.setattr(runs_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    runs, visitor = Runs(lambda: waiting[0]), SimpleNamespace(session_hash="one")
    with runs.run(visitor) as alone:
        clock[0] += 10 * runs_module.PATIENCE_SECONDS
        assert not alone.is_set(), "nobody waits"
    said = pytest.raises(SettingsError, match=r"^This run was stopped after 60 s, as others wait: ")
    with said, runs.run(visitor) as run:
        waiting[0] = True
        clock[0] += runs_module.PATIENCE_SECONDS - 1
        assert not run.is_set()
        clock[0] += 1
        assert run.is_set()
    with runs.run(visitor) as stopped:
        stopped.set()  # by hand: no refusal
        clock[0] += 10 * runs_module.PATIENCE_SECONDS
        assert stopped.is_set()
    with runs.run(visitor) as shared:
        shared.is_for(3)
        clock[0] += 3 * runs_module.PATIENCE_SECONDS - 1
        assert not shared.is_set(), "as long for each of its visitors"
    assert runs.going == 0
