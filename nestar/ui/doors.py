"""What a visitor's requests reach, and what they do not: doors of Gradio that this page has no use for are
shut, bodies are bounded, and every answer tells the browser what this page may do."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestar import __version__
from nestar.model import WeightsError
from nestar.settings import SettingsError
from nestar.ui.front import FrontPage

log = logging.getLogger(__name__)

HEALTH = "/health"
"""Answers with 200 from when the weights are loaded and the page is served, for as long as runs are."""

SHUT = (
    "/gradio_api/upload",
    "/gradio_api/file",
    "/gradio_api/proxy=",
    "/gradio_api/stream",
    "/gradio_api/process_recording",
    "/gradio_api/deep_link",
    "/gradio_api/run-history",
    "/gradio_api/vibe",
    "/gradio_api/undo-vibe",
    "/monitoring",
)
"""Pictures travel inside JSON: nothing is uploaded, and no file served but Gradio's own scripts. The file
route would fetch from other hosts, too; the others belong to components and tools that the page has not."""

MAX_BODY = 8 * 2**20
"""Bytes of a request: a PNG of 1,024 x 1,024 pixels in base64 has 4 million at most."""

MAX_SENTENCE = 200
"""Characters of a request that is refused, as far as they are repeated."""

MISUNDERSTANDINGS = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Gradio fails with where a request's values are of other kinds, numbers or depths than it expects."""

POLICY = "; ".join(
    (
        # Gradio's page starts inline, and gr.HTML compiles its templates.
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'",
        # On a Space, Gradio's client asks Hugging Face about it.
        "connect-src 'self' data: blob: https://huggingface.co https://*.hf.space",
        "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def said(error: SettingsError | WeightsError) -> str:
    """An error's sentence as a visitor reads it: without paths of this machine."""
    return error.public if isinstance(error, WeightsError) else str(error)


class Doors:
    """The middleware; goes to `Blocks.launch` by `app_kwargs`."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self._front = FrontPage(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self._answering(scope)(scope, _bounded(receive), send_with_headers)
        except HTTPException as error:  # of a middleware before Gradio's own, which would answer it
            if begun:
                raise
            await PlainTextResponse(error.detail, error.status_code)(scope, receive, send_with_headers)
        except Exception as error:  # runs fail inside Gradio's queue: this is Gradio at a loss with a request
            if begun or not isinstance(error, MISUNDERSTANDINGS):
                raise
            log.warning("%s %s was not understood (%r).", scope["method"], scope["path"], error)
            await _not_understood(error)(scope, receive, send_with_headers)

    def _answering(self, scope: Scope) -> ASGIApp:
        """Who answers the request."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        length = Headers(scope=scope).get("content-length", "0")
        if path == HEALTH:
            ready = not scope["app"].get_blocks()._queue.stopped
            return JSONResponse({"ready": ready, "version": __version__}, 200 if ready else 503)
        if path.startswith(SHUT):
            return PlainTextResponse("There is nothing here.", 404)
        if not length.isdecimal() or int(length) > MAX_BODY:
            return PlainTextResponse(_TOO_LONG, 413)
        return self._front if self._front.asked(scope) else self.app


def _not_understood(error: Exception) -> JSONResponse:
    """The answer to a request of which Gradio can make nothing, for which it has no answer of its own."""
    sentence = str(error).partition(" Please click")[0]
    # So it says which argument of a call by name is wrong; a longer one is the caller's own text.
    told = isinstance(error, TypeError) and sentence.startswith(("Parameter `", "No value provided for"))
    if not told or len(sentence) > MAX_SENTENCE:
        sentence = "The server cannot make sense of this; /gradio_api/info says which calls there are."
    return JSONResponse({"detail": sentence}, 422)


_TOO_LONG = f"A request has at most {MAX_BODY:,} bytes."


def _bounded(receive: Receive) -> Receive:
    """`receive`, refusing a body that goes on for longer than it may."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise HTTPException(413, _TOO_LONG)
        return message

    return bounded
