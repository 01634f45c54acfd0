"""Engines that outlive a run: recorded passes are those of a run, and nobody's run is another's.

On a CPU nothing is recorded; here the recorder calls the work again, which reads and writes the same memory
at each call as a CUDA graph does. `test_cuda.py` holds the graphs themselves to the same.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nestar.engine import Engine, EngineWeights, Work
from nestar.engines import Engines
from nestar.model import NestAR
from nestar.nesting import Nesting
from nestar.sampler import PatchDone, SolverSettings, sample
from tests.small import CLASSES, K2, K4, small_model

SETTINGS = SolverSettings(steps=3, solver="heun", cfg=2.0)
IDS = torch.tensor([2, 0, 1])
NESTINGS = [
    K4,
    K2,
    Nesting.nested(3, 3, 2),
    Nesting.nested(4, 4, 4, order="raster"),
    Nesting.autoregressive(2, 3),
    Nesting.cells(4, 4, 4),
    Nesting.one_shot(4, 4),
]


class Counting:
    """A recorder that counts how often recorded work is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, work: Work) -> Work:
        def again() -> None:
            self.calls += 1
            work()

        return again


def tokens(
    model: NestAR, seeds: tuple[int, ...] = (3, 1, 4), settings: SolverSettings = SETTINGS, **given: object
) -> Tensor:
    ids = IDS[: len(seeds)] % len(CLASSES)
    *_, last = (
        event for event in sample(model, ids, seeds, settings, **given) if isinstance(event, PatchDone)
    )
    return last.sequence_BNC.clone()


def recorded(model: NestAR, samples: int = 3, guided: bool = True) -> tuple[Engines, Counting]:
    engines, counting = Engines(model), Counting()
    assert engines.record(samples, guided=guided, recorder=counting)
    counting.calls = 0
    return engines, counting


@pytest.mark.parametrize("nesting", NESTINGS, ids=lambda nesting: f"{nesting.name}-{nesting.n}")
@pytest.mark.parametrize("guided", [True, False])
def test_every_pass_of_a_run_is_recorded_and_answers_as_unrecorded(nesting: Nesting, guided: bool) -> None:
    model = small_model(nesting)
    engines, counting = recorded(model, guided=guided)
    settings = replace(SETTINGS, cfg=2.0 if guided else 1.0)
    for seeds, own in (((3, 1, 4), settings), ((1, 5, 9), replace(settings, steps=2, solver="midpoint"))):
        counting.calls = 0
        assert torch.equal(tokens(model, seeds, own, engines=engines), tokens(model, seeds, own))
        assert counting.calls == nesting.function_evaluations(own.steps, own.calls_per_step)


def test_other_rows_run_unrecorded() -> None:
    model = small_model(K4)
    engines, counting = recorded(model)
    for seeds, settings in (((3,), SETTINGS), ((3, 1, 4), replace(SETTINGS, cfg=1.0))):
        assert torch.equal(tokens(model, seeds, settings, engines=engines), tokens(model, seeds, settings))
    assert counting.calls == 0


def test_runs_that_take_turns_do_not_share_an_engine() -> None:
    model = small_model(K4)
    engines, counting = recorded(model)
    expected = [tokens(model, seeds) for seeds in ((3, 1, 4), (1, 5, 9))]
    runs = [sample(model, IDS, seeds, SETTINGS, engines=engines) for seeds in ((3, 1, 4), (1, 5, 9))]
    last: list[Tensor] = [torch.empty(0)] * 2
    ended: set[int] = set()
    while len(ended) < 2:
        for number, run in enumerate(runs):
            event = next(run, None)
            if event is None:
                ended.add(number)
            elif isinstance(event, PatchDone):
                last[number] = event.sequence_BNC.clone()
    assert all(torch.equal(one, other) for one, other in zip(last, expected, strict=True))
    whole = K4.function_evaluations(SETTINGS.steps, SETTINGS.calls_per_step)
    assert 0 < counting.calls <= whole, "at most one of two runs at a time has the recorded engine"


def test_two_runs_at_a_time_have_what_was_recorded_twice() -> None:
    model = small_model(K4)
    engines, counting = recorded(model)
    assert engines.record(3, guided=True, recorder=counting)
    counting.calls = 0
    runs = [sample(model, IDS, seeds, SETTINGS, engines=engines) for seeds in ((3, 1, 4), (1, 5, 9))]
    for _ in itertools.zip_longest(*runs):
        pass
    assert counting.calls == 2 * K4.function_evaluations(SETTINGS.steps, SETTINGS.calls_per_step)


@pytest.mark.parametrize("leave", ["cancel", "close", "begin", "remember"])
def test_a_run_that_ends_early_gives_its_engine_back(leave: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cancel = small_model(K4), threading.Event()
    engines, counting = recorded(model)
    run = sample(model, IDS, (3, 1, 4), SETTINGS, engines=engines, cancel=cancel)
    next(run)
    if leave == "cancel":
        cancel.set()
        assert list(run) == []
    elif leave == "close":
        run.close()
    else:  # module 1 has been left by then, or is
        with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
            patched.setattr(Engine, leave, lambda *_: fails(cancel.set))
            list(run)
    counting.calls = 0
    assert torch.equal(tokens(model, engines=engines), tokens(model))
    assert counting.calls == K4.function_evaluations(SETTINGS.steps, SETTINGS.calls_per_step)


def does_nothing(work: Work) -> Work:
    return lambda: None


def fails(work: Work) -> Work:
    raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize(
    ("recorder", "said"), [(does_nothing, "answers otherwise"), (fails, "no memory left")]
)
def test_what_cannot_be_recorded_is_told_and_runs_as_before(
    recorder: Callable[[Work], Work], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model(K4)
    engines = Engines(model)
    with caplog.at_level(logging.WARNING):
        assert not engines.record(3, guided=True, recorder=recorder)
    assert said in caplog.text and K4.name in caplog.text
    assert torch.equal(tokens(model, engines=engines), tokens(model))


def test_weights_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = small_model(K4), []
    inner = EngineWeights.of.__func__

    def of(cls: type[EngineWeights], *arguments: object) -> EngineWeights:
        read.append(arguments)
        return inner(cls, *arguments)

    monkeypatch.setattr(EngineWeights, "of", classmethod(of))
    engines = Engines(model)
    for seeds in ((3, 1, 4), (7,)):
        tokens(model, seeds, engines=engines)
    assert len(read) == K4.modules
