"""The page's HTML, made once and kept: Gradio would make its 600 KB anew for every visitor, in 0.13 s."""

from __future__ import annotations

import gzip
from collections import OrderedDict
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEPT = 8
"""Addresses whose page is kept: Gradio writes the address into it."""

ADDRESS = ("host", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-gradio-server")
"""Headers that tell by which address the page was reached."""

LEVEL = 6


@dataclass(frozen=True)
class Kept:
    """One page."""

    kind: str
    plain: bytes
    zipped: bytes


class FrontPage:
    """Answers with the kept page where one asks for it; the app makes it at first.

    For a page that is the same for all: without log-ins, as ours.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self._pages: OrderedDict[tuple[str, ...], Kept] = OrderedDict()

    @staticmethod
    def asked(scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        # Of all parameters this alone is Gradio's to read; share links are read by the browser's first call.
        return scope["method"] == "GET" and path in ("", "/") and b"deep_link" not in scope["query_string"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        key = (scope.get("root_path", ""), scope["scheme"], *(headers.get(name, "") for name in ADDRESS))
        page = self._pages.get(key)
        if page is None:
            page = await self._made(scope, receive, send)
            if page is not None:
                self._pages[key] = page
                while len(self._pages) > KEPT:
                    self._pages.popitem(last=False)
            return
        self._pages.move_to_end(key)
        zipped = "gzip" in headers.get("accept-encoding", "")
        answer = Response(page.zipped if zipped else page.plain, media_type=page.kind)
        answer.headers["Vary"] = "Accept-Encoding"
        if zipped:
            answer.headers["Content-Encoding"] = "gzip"
        await answer(scope, receive, send)

    async def _made(self, scope: Scope, receive: Receive, send: Send) -> Kept | None:
        """The app's answer, sent on; to be kept if it is a page."""
        status, kind, encoded, body = 0, "", False, bytearray()

        async def overhear(message: Message) -> None:
            nonlocal status, kind, encoded
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                status, kind = message["status"], headers.get("content-type", "")
                encoded = "content-encoding" in headers
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
            await send(message)

        # Without the parameters, of which Gradio reads more: the page is kept for visitors who have others.
        await self.app(scope | {"query_string": b""}, receive, overhear)
        if status != 200 or encoded or not kind.startswith("text/html"):
            return None
        return Kept(kind, bytes(body), gzip.compress(bytes(body), LEVEL, mtime=0))
