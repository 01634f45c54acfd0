"""Gradio's queue, without what a single caller can do to it: in Gradio 6.31 one may end it for all visitors,
or fill the memory with what it keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import fastapi
from gradio import queueing
from gradio.data_classes import PredictBodyInternal
from gradio.server_messages import EventMessage
from gradio.utils import set_task_name

from nestar.ui.assets import SESSIONS
from nestar.ui.runs import SAMPLER

MAX_SESSION = 64
"""Characters of a session's name, which the queue keeps for good; Gradio's own clients use 36 at most."""

MAX_CALL = 2**18
"""Bytes of a call that may have to wait: controls and, at most, the text inside a saved picture."""

MAX_UNHEARD = 256
"""Messages that wait to be fetched by a session that calls again; the longest run has fewer."""


def outlast(queue: queueing.Queue) -> None:
    """Have the queue of a page go on whatever one of its callers does.

    - It remembers the messages of so many sessions, forgets the one that was first heard of longest ago, and
      ends when it has a message for one that it has forgotten. Here a session that calls or is told something
      is not the next to be forgotten, and what is told to a forgotten one is lost.
    - A call that is cancelled before its task has taken the first step leaves its place taken for ever, and
      the sampler has one place: see `_named_once_begun`.
    - What it keeps is bounded: calls that wait, with what they unpack to, answers that nobody fetches, names
      of sessions.
    """
    send, push, sessions = queue.send_message, queue.push, queue.pending_messages_per_session
    sessions.max_size = SESSIONS

    def send_message(event: queueing.Event, event_message: EventMessage) -> None:
        if event.session_hash in sessions:
            sessions.move_to_end(event.session_hash)
            send(event, event_message)

    async def pushed(body: PredictBodyInternal, request: fastapi.Request, username: str | None) -> Any:
        name = body.session_hash
        unheard = sessions[name].qsize() if name in sessions else 0
        if len(name or "") > MAX_SESSION:
            return False, f"session_hash has at most {MAX_SESSION} characters.", "error"
        if len(await request.body()) > MAX_CALL and not _is_one_text(queue, body):
            return False, f"A call has at most {MAX_CALL:,} bytes.", "error"
        if unheard > MAX_UNHEARD:
            return False, "Fetch the answers to the calls before this one first.", "error"
        if name in sessions:
            sessions.move_to_end(name)
        return await push(body=body, request=request, username=username)

    queue.send_message, queue.push = send_message, pushed
    queueing.set_task_name = _named_once_begun


def _is_one_text(queue: queueing.Queue, body: PredictBodyInternal) -> bool:
    """Whether a call brings a text alone, such as a picture, and waits for no run."""
    event = queue.blocks.fns.get(body.fn_index)
    waits = event is None or event.concurrency_id == SAMPLER["concurrency_id"]
    return not waits and len(body.data) == 1 and isinstance(body.data[0], str) and not body.event_data


def _named_once_begun(task: asyncio.Task[Any], session: str, *which: Any) -> None:
    """Gradio finds by its name what it cancels: a task has none before its first step, behind which this is
    called. What parts a name's parts may not stand in a session's."""
    name = session.replace("<gradio-sep>", " ")
    asyncio.get_running_loop().call_soon(set_task_name, task, name, *which)
