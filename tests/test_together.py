"""Pictures made along for visitors who wait: that they are the right ones, and what a crowd sees of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from nestar.frames import Frame
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings
from nestar.ui import runs as runs_module
from nestar.ui import together as together_module
from nestar.ui.runs import waiting_calls
from nestar.ui.together import ALIKE, KEPT, MOST, Together
from tests.small import K2, K4, SIZE, save_checkpoint
from tests.test_closed_doors import Page


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> NestARPipeline:
    folder = save_checkpoint(tmp_path_factory.mktemp("weights"), [K4, K2])
    return NestARPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def batches(pipe: NestARPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are made."""
    made: list[int] = []
    inner = pipe._frames

    def watched(settings: SampleSettings, cancel: Any, rows: Any = None, *given: Any, **named: Any) -> Any:
        made.append(len(rows.seeds) if rows else 1)
        return inner(settings, cancel, rows, *given, **named)

    monkeypatch.setattr(pipe, "_frames", watched)
    return made


def asked(pipe: NestARPipeline, **values: Any) -> SampleSettings:
    return pipe.settings(**{"class_name": "fish", "steps": 2} | values)


def distance(one: Frame, other: Frame) -> float:
    """Mean difference of two frames' pictures, of 255."""
    return float(np.abs(np.asarray(one.image, np.int64) - np.asarray(other.image, np.int64)).mean())


def test_those_who_wait_find_the_picture_they_would_have_got_alone(
    pipe: NestARPipeline, batches: list[int]
) -> None:
    crowd = [
        asked(pipe, seed=1),
        asked(pipe, seed=2, class_name="flower"),
        asked(pipe, seed=3, temperature=0.5, cfg=1.5),
        asked(pipe, seed=2**60, class_name="hot-air balloon", temperature=1.5),
    ]
    waiting = list(crowd)
    along = Together(pipe, lambda: waiting)
    streams: list[list[Frame]] = []
    for settings in crowd:
        waiting.remove(settings)
        assert (settings in along) is bool(streams)
        streams.append(list(along.stream(settings, threading.Event())))
    assert batches == [4] and not any(settings in along for settings in crowd)
    for settings, frames in zip(crowd, streams, strict=True):
        alone = list(pipe.stream(**vars(settings)))
        for frame, own in zip(frames, alone, strict=True):
            assert len(frame.images) == len(frame.norms) == 1 and (frame.batch, own.batch) == (4, 1)
            assert distance(frame, own) <= 1, "rounding may move a pixel by a grey level"
            assert frame.norms[0] == pytest.approx(own.norms[0], rel=1e-4)
            assert (frame.module, frame.patch, frame.known) == (own.module, own.patch, own.known)


@pytest.mark.parametrize("change", [{"k": 2}, {"steps": 3}, {"cfg": 1.0}])
def test_what_does_not_fit_is_left_to_its_turn(
    pipe: NestARPipeline, batches: list[int], change: dict[str, Any]
) -> None:
    other = asked(pipe, seed=2, **change)
    along = Together(pipe, lambda: [other, asked(pipe, seed=3)])
    list(along.stream(asked(pipe, seed=1), threading.Event()))
    assert batches == [2] and other not in along


def test_every_setting_but_class_seed_temperature_and_guidance_is_alike() -> None:
    assert {*ALIKE, "class_name", "seed", "temperature", "cfg", "count"} == set(
        SampleSettings.__dataclass_fields__
    )


def test_a_batch_is_bounded_and_takes_the_first_who_wait(pipe: NestARPipeline, batches: list[int]) -> None:
    waiting = [asked(pipe, seed=seed) for seed in range(20)]
    along = Together(pipe, lambda: waiting)
    list(along.stream(asked(pipe, seed=100), threading.Event()))
    assert batches == [MOST]
    assert [settings.seed for settings in waiting if settings in along] == list(range(MOST - 1))
    waiting = waiting[1:]  # the first one left; the next turn takes those that nobody has made yet
    list(along.stream(asked(pipe, seed=101), threading.Event()))
    assert batches == [MOST, MOST]
    assert [settings.seed for settings in waiting if settings in along] == list(range(1, 2 * MOST - 2))


def test_two_who_want_the_same_each_get_it(pipe: NestARPipeline, batches: list[int]) -> None:
    same = asked(pipe, seed=5)
    waiting = [same, same]
    along = Together(pipe, lambda: waiting)
    list(along.stream(same, threading.Event()))
    for _ in range(2):
        assert same in along and waiting.pop()
        assert list(along.stream(same, threading.Event()))[-1].final
    assert batches == [3] and same not in along


def test_what_was_stopped_is_not_kept(pipe: NestARPipeline) -> None:
    other, cancel = asked(pipe, seed=2), threading.Event()
    along = Together(pipe, lambda: [other])
    stream = along.stream(asked(pipe, seed=1), cancel)
    next(stream)
    cancel.set()
    assert list(stream) == [] and other not in along


def test_the_pictures_of_those_who_left_are_dropped_at_the_next_turn(
    pipe: NestARPipeline, batches: list[int]
) -> None:
    same, other = asked(pipe, seed=1), asked(pipe, seed=2)
    waiting = [same, same, other]
    along = Together(pipe, lambda: waiting)
    list(along.stream(asked(pipe, seed=0), threading.Event()))
    assert same in along and other in along
    waiting = [same]
    list(along.stream(asked(pipe, seed=3, steps=1), threading.Event()))
    assert same in along and other not in along
    waiting = []
    list(along.stream(same, threading.Event()))
    assert batches == [4, 1] and same not in along, "one was wanted, and one taken"


def test_a_device_without_memory_for_many_makes_one_at_a_time(
    pipe: NestARPipeline, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [asked(pipe, seed=seed) for seed in (1, 2)]
    along = Together(pipe, lambda: waiting)
    monkeypatch.setattr(pipe, "device", torch.device("cuda"))  # and frames come from the CPU
    list(along.stream(asked(pipe, seed=0), threading.Event()))
    waiting = [asked(pipe, seed=seed) for seed in (3, 4)]
    list(along.stream(asked(pipe, seed=5), threading.Event()))
    assert batches == [3, 1]


def test_pictures_that_nobody_fetches_are_given_up(
    pipe: NestARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together_module, "KEPT", 5 * K4.evaluations * SIZE**2)
    assert KEPT >= 4 * MOST * 10 * 128**2
    waiting = [asked(pipe, seed=seed, steps=1) for seed in range(6)]
    along = Together(pipe, lambda: waiting)
    list(along.stream(asked(pipe, seed=100, steps=1), threading.Event()))
    assert [settings.seed for settings in waiting if settings in along] == [1, 2, 3, 4, 5]


# ---- on the page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    opened = Page(tmp_path_factory.mktemp("page") / "weights")
    yield opened
    opened.close()


def wait_until(held: Callable[[], bool]) -> None:
    for _ in range(3000):
        if held():
            return
        threading.Event().wait(0.02)
    raise AssertionError("It never came.")


def test_a_queue_is_served_in_few_batches_and_in_order(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, made = page.pipeline.stream_rows, []

    def watched(settings: SampleSettings, rows: Any, **others: Any) -> Iterator[Frame]:
        made.append(rows.seeds)
        return inner(settings, rows, **others)

    monkeypatch.setattr(page.pipeline, "stream_rows", watched)
    with ThreadPoolExecutor(8) as pool, page.holding():
        first = pool.submit(page.call, seed=100)
        assert page.begun.wait(60)
        calls = []
        for seed in range(4):
            calls.append(pool.submit(page.call, seed=seed))
            wait_until(lambda: len(waiting_calls(page.demo)) == len(calls))
        for number, visitor in enumerate(("alice", "bob"), 5):
            page.join(visitor)
            calls.append(pool.submit(page.told, visitor))
            wait_until(lambda number=number: len(waiting_calls(page.demo)) == number)
        bad = pool.submit(page.call, class_name="unicorn")
        wait_until(lambda: len(waiting_calls(page.demo)) == 7)
        page.free()
        assert "event: complete" in first.result(60)
        answers = [call.result(60) for call in calls]
        assert "event: error" in bad.result(60)
    # On the page they want other steps, see `Page.join`, and both the same picture.
    assert made == [(0, 1, 2, 3), (1, 1)]
    for answer in answers[:4]:
        frames = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
        assert len([frame for frame in frames if frame and frame[0]["batch"] == 4]) >= K4.evaluations
    for answer, values in zip(answers[4:], (K4.evaluations + 1, 2), strict=True):
        told = [json.loads(line[5:]) for line in answer.splitlines() if line.startswith("data:")]
        assert sum(each["msg"] == "process_generating" for each in told) == values, (
            "what is there comes at once"
        )
        (completed,) = (each for each in told if each["msg"] == "process_completed")
        assert completed["success"] and completed["output"]["data"][0]["state"] == "finished"


def test_a_long_run_gives_way_and_says_so(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "PATIENCE_SECONDS", 0.0)
    with ThreadPoolExecutor(2) as pool, page.holding():
        first = pool.submit(page.call)
        assert page.begun.wait(60)
        second = pool.submit(page.call, seed=1)
        assert "event: error" in first.result(60) and "as others wait" in first.result(60)
        page.free()
        assert "event: complete" in second.result(60)


def test_what_waits_is_read_where_gradio_keeps_it(page: Page) -> None:
    with ThreadPoolExecutor(2) as pool, page.holding():
        first = pool.submit(page.call)
        assert page.begun.wait(60)
        page.join("carol")
        assert waiting_calls(page.demo) == [
            (
                "carol",
                "on_generate",
                [
                    "fish",
                    {"k": 4, "order": "lattice", "steps": 3, "temperature": 1.0, "cfg": 2.0, "seed": "1"},
                ],
            )
        ]
        page.free()
        first.result(60)
        page.told("carol")
