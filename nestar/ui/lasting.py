"""Gradio's queue, without what a single call can do to it: in Gradio 6.31 one may end it for all visitors."""

from __future__ import annotations

import asyncio
from typing import Any

import fastapi
from gradio import queueing
from gradio.data_classes import PredictBodyInternal
from gradio.server_messages import EventMessage
from gradio.utils import set_task_name

MAX_SESSION = 64
"""Characters of a session's name, which the queue keeps for good; Gradio's own clients use 36 at most."""


def outlast(queue: queueing.Queue) -> None:
    """Have the queue of a page go on whatever one of its callers does.

    - It remembers the messages of so many sessions, forgets the one that was first heard of longest ago, and
      ends when it has a message for one that it has forgotten. Here a session that is told something is not
      the next to be forgotten, and what is told to a forgotten one is lost.
    - A call that is cancelled before its task has taken the first step leaves its place taken for ever, and
      the sampler has one place: see `_named_once_begun`.
    - Names of sessions are bounded.
    """
    send, push = queue.send_message, queue.push

    def send_message(event: queueing.Event, event_message: EventMessage) -> None:
        sessions = queue.pending_messages_per_session
        if event.session_hash in sessions:
            sessions.move_to_end(event.session_hash)
            send(event, event_message)

    async def pushed(body: PredictBodyInternal, request: fastapi.Request, username: str | None) -> Any:
        if len(body.session_hash or "") > MAX_SESSION:
            return False, f"session_hash has at most {MAX_SESSION} characters.", "error"
        return await push(body=body, request=request, username=username)

    queue.send_message, queue.push = send_message, pushed
    queueing.set_task_name = _named_once_begun


def _named_once_begun(task: asyncio.Task[Any], session: str, *which: Any) -> None:
    """Gradio finds by its name what it cancels: a task has none before its first step, behind which this is
    called. What parts a name's parts may not stand in a session's."""
    name = session.replace("<gradio-sep>", " ")
    asyncio.get_running_loop().call_soon(set_task_name, task, name, *which)
