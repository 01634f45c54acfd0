"""Who cancels or is gone frees the sampler inside a patch, and nobody else's run ends with theirs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import app
from nestar.ui.leaving import CANCEL, SESSION_STREAM, Leaving
from nestar.ui.runs import SAMPLER
from tests.small import K4, save_checkpoint
from tests.test_closed_doors import Page

SOON = 60.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    opened = Page(tmp_path_factory.mktemp("weights"))
    yield opened
    opened.close()


def joined(served: Page, session: str) -> str:
    """The event of a run that a session has asked for."""
    dials = {"k": 4, "order": "lattice", "steps": 2, "temperature": 1.0, "cfg": 2.0, "seed": "1"}
    body = {"data": ["fish", dials], "fn_index": served.function("on_generate"), "session_hash": session}
    return served.client.post("/gradio_api/queue/join", json=body).json()["event_id"]


def cancel(served: Page, session: str, event: Any, function: str = "on_generate") -> int:
    body = {"session_hash": session, "fn_index": served.function(function), "event_id": event}
    return served.client.post(CANCEL, json=body).status_code


def hear_until_held(served: Page, path: str) -> None:
    """Listen to a run until it is held inside its second patch, and cut the connection."""
    with served.client.stream("GET", f"/gradio_api/{path}") as stream:
        lines = stream.iter_lines()  # the connection is cut with it
        assert any("generating" in line for line in lines) and served.begun.wait(60)


def assert_ended(served: Page) -> None:
    """The held run has seen its flag: a generator closed between two frames would not have."""
    until = time.monotonic() + SOON
    while served.demo.runs.going and time.monotonic() < until:
        time.sleep(0.01)
    assert served.demo.runs.going == 0 and served.cancelled


def assert_goes_on(served: Page) -> None:
    time.sleep(0.3)
    assert served.demo.runs.going == 1 and not served.cancelled


def test_a_client_that_cancels_ends_its_run_inside_a_patch(served: Page) -> None:
    with ThreadPoolExecutor() as pool, served.holding():
        event = joined(served, "canceller")
        listener = pool.submit(served.told, "canceller")
        assert served.begun.wait(60)
        assert cancel(served, "canceller", event) == 200
        assert_ended(served)
        assert "process_completed" in listener.result(60), "and the client hears that it is over"


def test_a_cut_connection_ends_its_run_inside_a_patch(served: Page) -> None:
    with served.holding():
        joined(served, "cut")
        hear_until_held(served, "queue/data?session_hash=cut")
        assert_ended(served)


def test_so_does_one_that_called_by_name(served: Page) -> None:
    with served.holding():
        call = served.client.post("/gradio_api/call/v2/generate", json={"class_name": "fish", "steps": 2})
        hear_until_held(served, f"call/generate/{call.json()['event_id']}")
        assert_ended(served)


def test_who_cancels_another_call_keeps_the_run_that_goes_on(served: Page) -> None:
    with ThreadPoolExecutor() as pool, served.holding():
        joined(served, "both")
        listener = pool.submit(served.told, "both")
        assert served.begun.wait(60)
        assert cancel(served, "both", "another's", function="on_siblings") == 200
        assert_goes_on(served)
        served.free()
        listener.result(60)


@pytest.mark.parametrize("leaves", ["cancels", "is gone"])
def test_nobody_ends_the_run_of_another(served: Page, leaves: str) -> None:
    with ThreadPoolExecutor() as pool, served.holding():
        joined(served, "first")
        listener = pool.submit(served.told, "first")
        assert served.begun.wait(60)
        event = joined(served, "second")
        if leaves == "cancels":
            cancel(served, "second", event)
        else:
            with served.client.stream("GET", "/gradio_api/queue/data?session_hash=second") as stream:
                next(stream.iter_lines())
        assert_goes_on(served)
        served.free()
        assert "finished" in listener.result(60)


@pytest.mark.parametrize("body", [b"", b"[]", b"no JSON", b'{"event_id": {}}', b'{"event_id": null}'])
def test_a_request_to_cancel_that_makes_no_sense_is_refused(served: Page, body: bytes) -> None:
    assert served.client.post(CANCEL, content=body).status_code == 422


def test_a_request_to_cancel_that_is_too_deep_to_be_read_is_refused(served: Page) -> None:
    assert served.client.post(CANCEL, content=b"[" * 200_000).status_code == 422


def test_the_servers_own_start_passes_through(served: Page) -> None:
    """Gradio begins in it what gives up old sessions and files."""
    failed = [
        flag for name, flag in vars(served.demo.server.lifespan).items() if name.startswith("error_occur")
    ]
    assert failed == [False]
    passed: list[Any] = []

    async def heard(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    with ThreadPoolExecutor(1) as elsewhere:  # here the browser's loop may run
        elsewhere.submit(asyncio.run, Leaving(heard)({"type": "lifespan"}, None, None)).result(60)
    assert passed == [{"type": "lifespan"}]


def test_an_answer_that_is_complete_is_not_taken_for_a_visitor_who_left() -> None:
    """Servers call both a disconnection. The session may have its next run by then."""
    event = SimpleNamespace(
        concurrency_id=SAMPLER["concurrency_id"],
        session_hash="stays",
        _id="b" * 32,
        fn=SimpleNamespace(_id=0),
    )
    stopped: list[str] = []
    blocks = SimpleNamespace(
        _queue=SimpleNamespace(active_jobs=[None, [event]]), runs=SimpleNamespace(stop_session=stopped.append)
    )

    def visit(more: bool, begun: str = "b") -> list[str]:
        """What is stopped when the connection ends after an answer to which more, or nothing, was to come,
        and which told of the beginning of this run."""
        told = f'data: {{"msg":"process_starts","eta":null,"event_id":"{begun * 32}"}}'.encode()

        async def answering(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.body", "body": told, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": more})
            for _ in range(2):
                assert (await receive())["type"] == "http.disconnect"

        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        stopped.clear()
        scope = {
            "type": "http",
            "method": "GET",
            "path": SESSION_STREAM,
            "query_string": b"session_hash=stays",
            "headers": [],
            "app": SimpleNamespace(get_blocks=lambda: blocks),
        }
        with ThreadPoolExecutor(1) as elsewhere:  # the browser's tests have a loop running in this thread
            elsewhere.submit(asyncio.run, Leaving(answering)(scope, receive, send)).result(60)
        return list(stopped)

    assert visit(more=False) == []
    assert visit(more=True) == ["stays"]
    assert visit(more=True, begun="a") == [], "its run is told of on a newer connection"


def test_the_page_is_opened_on_a_thread_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its OpenMP workers would stay beside the sampler's, and slow them down."""
    threads: set[threading.Thread] = set()
    forward = torch.nn.Linear.forward

    def noted(*arguments: Any) -> torch.Tensor:
        threads.add(threading.current_thread())
        return forward(*arguments)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    app.open_page(str(save_checkpoint(tmp_path, [K4])), None, "cpu").close(verbose=False)
    assert len(threads) == 1 and not threads.pop().is_alive()


def test_whoever_asks_one_thread_computes(served: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread that has run torch keeps memory of its own, and Gradio has forty."""
    threads: list[int] = []
    forward = torch.nn.Linear.forward

    def noted(*arguments: Any) -> torch.Tensor:
        threads.append(threading.get_ident())
        return forward(*arguments)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)

    def ask(name: str) -> str:
        call = served.client.post(f"/gradio_api/call/v2/{name}", json={"class_name": "fish", "steps": 1})
        return served.listen(f"call/{name}/{call.json()['event_id']}")

    with ThreadPoolExecutor(8) as crowd:
        heard = list(crowd.map(ask, ("generate", "animation", "diversity", "nearest") * 2))
    assert all("event: complete" in each for each in heard)
    assert len(threads) > 100 and len(set(threads)) == 1
