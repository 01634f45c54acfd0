"""Callers who cancel or are gone: their run ends at the sampler's next step. Gradio alone would notice at the
run's next frame, and the visitors who wait would wait for it, too."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestar.ui.runs import sampling_call

CANCEL = "/gradio_api/cancel"
SESSION_STREAM, CALL_STREAM = "/gradio_api/queue/data", "/gradio_api/call/"
"""Where a session, and whoever has made one call by its name, hears of its run."""

EVENT = re.compile(rb'"event_id":"([0-9a-f]{32})"')


class Leaving:
    """The middleware; goes to `Blocks.launch` by `app_kwargs`, on a page that has `runs`."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)  # the start and end of the server, which have no path
            return
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        if method == "POST" and path == CANCEL:
            receive = await _cancelling(scope, receive)
            await self.app(scope, receive, send)
        elif method == "GET" and path == SESSION_STREAM:
            await self._listening(scope, receive, send, set())
        elif method == "GET" and path.startswith(CALL_STREAM):
            await self._listening(scope, receive, send, {path.rpartition("/")[2]})
        else:
            await self.app(scope, receive, send)

    async def _listening(self, scope: Scope, receive: Receive, send: Send, calls: set[str]) -> None:
        """The app's answer to one who listens until it is over; who leaves before ends the run, if it is of
        these calls or of those that this listener was told the beginning of. A session may have left an older
        connection for a new run."""
        messages: asyncio.Queue[Message] = asyncio.Queue()
        over = False

        async def watch() -> None:
            message: Message = {}
            while message.get("type") != "http.disconnect":
                message = await receive()
                messages.put_nowait(message)
            if not over:
                _end_run(scope, lambda run: run._id in calls)

        async def received() -> Message:
            message = await messages.get()
            if message["type"] == "http.disconnect":
                messages.put_nowait(message)  # it stays true, however often the app asks
            return message

        async def sent(message: Message) -> None:
            nonlocal over
            if b"process_starts" in (body := message.get("body", b""))[:100]:
                calls.update(each.decode() for each in EVENT.findall(body))
            # Servers also call it a disconnection when the answer is complete.
            over = over or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        watching = asyncio.create_task(watch())
        try:
            await self.app(scope, received, sent)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


async def _cancelling(scope: Scope, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """End the run that a request to cancel means, as Gradio does by session and function; the request once
    more, for Gradio."""
    body = await Request(scope, receive).body()
    with suppress(ValueError, AttributeError, RecursionError):  # what makes no sense, Gradio refuses
        told = json.loads(body)
        named = (told.get("session_hash"), told.get("fn_index"))
        _end_run(scope, lambda run: (run.session_hash, run.fn._id) == named)
    again: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return again.pop() if again else await receive()

    return received


def _end_run(scope: Scope, meant: Callable[[Any], bool]) -> None:
    """End the run that goes on, if it is the one that is meant."""
    page = scope["app"].get_blocks()
    run = sampling_call(page)
    if run and meant(run):
        page.runs.stop_session(run.session_hash)
