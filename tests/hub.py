"""A stand-in for the Hugging Face Hub on 127.0.0.1, and a process that loads checkpoints from it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# One JSON request a line, one JSON answer a line. A process of its own, since huggingface_hub reads
# HF_ENDPOINT when it is imported.
LOADER = """
import contextlib, io, json, os, sys, time
from pathlib import Path
from nestar import cli, hub
from nestar.checkpoints import open_checkpoint
from nestar.model import WeightsError
from nestar.pipeline import NestARPipeline

hub.PROBE_SECONDS, hub.PATIENT_SECONDS = 0.5, 1.5  # what answers here answers at once, or never

def whole(source, revision):
    told = []
    checkpoint = open_checkpoint(source, revision)
    for name in checkpoint.nestings:
        checkpoint.nesting(name, lambda *progress: told.append(progress))
    tokenizer = checkpoint.tokenizer()
    return {"origin": checkpoint.origin, "tokenizer": tokenizer.fingerprint, "told": told, "files": sorted(
        str(file.relative_to(checkpoint.folder))
        for file in checkpoint.folder.rglob("*") if file.is_file())}

def painted(source, revision, nesting):
    pipe = NestARPipeline.from_pretrained(source, revision=revision, device="cpu")
    pipe("flower", steps=1, nesting=nesting)
    return {"origin": pipe.origin, "nestings": list(pipe.nestings), "loaded": list(pipe.models.loaded)}

def opened(source, revision, page):
    import app, gradio
    from gradio_client import Client
    from nestar import checkpoints
    from nestar.ui.assets import launch_options
    checkpoints.EMBEDDED = Path(page)
    demo = app.open_page(source, revision, "cpu")
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    shown = [each.value for each in demo.blocks.values() if isinstance(each, gradio.HTML)]
    notices = [value for value in shown if isinstance(value, str) and 'class="notice"' in value]
    client = Client(url, verbose=False)
    *_, last = client.submit(steps=1, api_name="/generate")
    kept = client.predict(last["image"], api_name="/settings_of")
    demo.close(verbose=False)
    return {"notice": "".join(notices), "weights": kept["weights"]}

def pushed(source, revision, to, token):
    os.environ["HF_TOKEN"] = token
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        status = cli.main(["push", source, to])
    return {"status": status, "out": out.getvalue(), "said": said.getvalue()}

ACTIONS = {"page": opened, "nesting": painted, "to": pushed}

print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    try:
        asked = json.loads(line)
        action = next((action for name, action in ACTIONS.items() if name in asked), whole)
        answer = action(**asked)
    except WeightsError as error:
        answer = {"error": str(error)}
    print(json.dumps({**answer, "seconds": time.perf_counter() - began}), flush=True)
"""


BUSY = "busy"


class StandInHub:
    """Serves `repositories`, a folder or an error code by id, at one commit; the code "" is a bare refusal,
    BUSY the answer to one who asks too often.

    Attributes:
        served: paths of the files it gave.
        damage: by the end of a path, what is done to that file: `cut` (the first answer breaks off half-way),
            `torn` (every answer does), `swapped` (other bytes than its hash says).
    """

    def __init__(self, repositories: Mapping[str, Path | str]):
        self.repositories = dict(repositories)
        self.served: list[str] = []
        self.damage: dict[str, str] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def stop(self) -> None:
        """From now on connections are refused; a second call does nothing."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str) -> tuple[str | None, bytes]:
        """An error code or None, and the body."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if len(parts) < 5:
            return "EntryNotFound", b""  # the client looks around elsewhere too
        if parts[:2] == ["api", "models"]:
            repository, what, revision, name = "/".join(parts[2:4]), parts[4], parts[5], None
        else:
            repository, what, revision, name = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        folder = self.repositories.get(repository, "RepoNotFound")
        if isinstance(folder, str):
            return folder, b""
        if revision not in ("main", "v1", COMMIT):
            return "RevisionNotFound", b""
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if what == "resolve":
            return (None, (folder / name).read_bytes()) if name in names else ("EntryNotFound", b"")
        if what == "revision":
            listed: Any = {
                "id": repository,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
        else:
            listed = [
                {
                    "type": "file",
                    "path": name,
                    "size": (folder / name).stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name in names
            ]
        return None, json.dumps(listed).encode()

    def damaged(self, path: str, body: bytes) -> bytes:
        """The bytes that are sent in place of `body`."""
        ending = next((ending for ending in self.damage if path.endswith(ending)), None)
        if ending is None:
            return body
        how = self.damage[ending]
        if how == "cut":
            del self.damage[ending]
        return body[::-1] if how == "swapped" else body[: len(body) // 2]

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                error, body = hub.answer(self.path)
                statuses = {None: 200, "GatedRepo": 403, "": 403, "RepoNotFound": 401, BUSY: 429}
                status = statuses.get(error, 404)
                # Weights are kept under their SHA-256, small files under a hash of git's.
                digest = hashlib.sha256 if self.path.endswith(".safetensors") else hashlib.sha1
                tag, size = digest(body).hexdigest(), len(body)
                start = 0
                if self.command == "GET" and (asked := self.headers.get("Range")) and status == 200:
                    start, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
                    body = body[start:]
                self.send_response(status)
                if error and error != BUSY:
                    self.send_header("X-Error-Code", error)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{tag}"')
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    hub.served.append(self.path.split("?")[0])
                    self.wfile.write(hub.damaged(self.path, body))

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None:
                pass

        return Handler


WRITER = "hf_writer"
"""The one token that may write."""


class WritableHub(StandInHub):
    """A stand-in that also takes commits, into folders below `root`: small files inline, weights by LFS."""

    def __init__(self, root: Path):
        super().__init__({})
        self.root = root
        self.commits: list[list[str]] = []  # paths of each
        self.card_errors: list[dict[str, str]] = []
        self._objects: dict[str, bytes] = {}

    def take(self, path: str, body: bytes) -> Any:
        """The answer to a POST or PUT: an object for JSON."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(repository, self.root / repository.replace("/", "--"))
            return {"url": f"{self.url}/{repository}", "name": repository}
        if parts == ["api", "validate-yaml"]:  # of a model card's head
            return {"errors": self.card_errors, "warnings": []}
        if parts[0] == "lfs":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self._objects[parts[1]] = body
            return {}
        if parts[-2:] == ["objects", "batch"]:
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        if parts[4] == "preupload":
            modes = {True: "lfs", False: "regular"}
            names = [each["path"] for each in json.loads(body)["files"]]
            return {
                "files": [
                    {"path": name, "uploadMode": modes[name.endswith(".safetensors")], "shouldIgnore": False}
                    for name in names
                ]
            }
        assert parts[4] == "commit", path
        return self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        folder, paths = self.repositories[repository], []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                continue
            data = (
                self._objects[value["oid"]]
                if line["key"] == "lfsFile"
                else base64.b64decode(value["content"])
            )
            target = folder / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            paths.append(value["path"])
        self.commits.append(sorted(paths))
        return {
            "commitUrl": f"{self.url}/{repository}/commit/{COMMIT}",
            "commitOid": COMMIT,
            "hookOutput": "",
        }

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(super()._handler()):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                allowed = self.command == "PUT" or self.headers["Authorization"] == f"Bearer {WRITER}"
                said = hub.take(self.path, body) if allowed else {"error": "no"}
                answer, refused = json.dumps(said).encode(), isinstance(said, dict) and said.get("errors")
                self.send_response((400 if refused else 200) if allowed else 403)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_PUT = do_POST

        return Handler


class Loader:
    """A process that loads checkpoints from the Hub at `endpoint`, with a cache of its own."""

    def __init__(self, endpoint: str, cache: Path):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NESTAR_"))
        }
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"HF_HUB_DISABLE_XET": "1"}  # which the stand-in does not speak
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOADER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )
        assert self.process.stdout.readline() == "ready\n"

    def load(self, source: str, revision: str | None = None, **more: str) -> dict[str, Any]:
        """Load everything of a repository, or with `nesting` make a picture by it, or with `page` open the
        page on it, with the weights in that folder as those embedded; returns origin and files, or which
        nestings there are and which of them were loaded, or the page's notice and the weights that make its
        pictures, or the error's sentence; and seconds."""
        return self._ask(source=source, revision=revision, **more)

    def push(self, folder: Path, to: str, token: str) -> dict[str, Any]:
        """Publish a checkpoint by the command line; returns its exit status, and what it wrote to standard
        output (`out`) and to standard error (`said`)."""
        return self._ask(source=str(folder), revision=None, to=to, token=token)

    def _ask(self, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=120)
        self.process.stdout.close()
