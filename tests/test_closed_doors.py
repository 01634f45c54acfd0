"""What a visitor cannot reach: files, paths, others' runs, the machine's memory. And how the page ends."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from gradio import queueing, routes
from gradio.utils import cancel_tasks, get_cache_folder, get_upload_folder

import app
import nestar
from nestar.checkpoints import open_checkpoint, shown
from nestar.frames import Frame
from nestar.model import WeightsError
from nestar.pipeline import Models, NestARPipeline
from nestar.ui import front
from nestar.ui.assets import SESSIONS, launch_options
from nestar.ui.doors import MAX_BODY
from nestar.ui.lasting import MAX_CALL, MAX_UNHEARD
from nestar.ui.runs import place_in_queue
from tests.small import K2, K4, save_checkpoint

REPOSITORY = Path(nestar.__file__).resolve().parent.parent
SECRET = "what only this machine may know"
DAMAGED = f"{K2.name}/module_1.safetensors"


class Page:
    """A page on a folder of small weights, whose streams a test can hold after their first frame."""

    def __init__(self, folder: Path):
        self.folder = save_checkpoint(folder, [K4, K2])
        checkpoint, device = open_checkpoint(folder), torch.device("cpu")
        outlines = {name: checkpoint.outline(name) for name in checkpoint.nestings}
        models = Models(outlines, checkpoint.nesting, device)
        (folder / DAMAGED).unlink()  # found out when a visitor asks for it
        self.pipeline = NestARPipeline(
            models, checkpoint.tokenizer(), classes=checkpoint.classes, origin=str(folder), device=device
        )
        self.demo = app.build_page(self.pipeline)
        self.pipeline.stream = partial(self.held, self.pipeline.stream)
        self.pipeline.stream_rows = partial(self.held, self.pipeline.stream_rows)
        self.hold()
        self.free()
        _, self.url, _ = self.demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def free(self) -> None:
        """Let every stream run."""
        self.go.set()

    def hold(self) -> None:
        """Let the next stream stand after its first frame; then `begun` is set."""
        self.begun, self.go, self.cancelled = threading.Event(), threading.Event(), False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the next stream for the block at most, so that a test that fails waits for nobody."""
        self.hold()
        try:
            yield
        finally:
            self.free()

    def held(
        self, stream: Callable[..., Iterator[Frame]], *arguments: Any, cancel: threading.Event, **values: Any
    ) -> Iterator[Frame]:
        for frame in stream(*arguments, cancel=cancel, **values):
            yield frame
            self.begun.set()
            while not (self.go.is_set() or cancel.is_set()):
                time.sleep(0.01)
            self.cancelled = cancel.is_set()

    def function(self, name: str) -> int:
        """Gradio's number of the first event with that function."""
        return next(number for number, each in self.demo.fns.items() if each.name == name)

    def call(self, **values: Any) -> str:
        """`/generate` as curl calls it, without a session: all that it answers."""
        asked = {"class_name": "fish", "steps": 2} | values
        event = self.client.post("/gradio_api/call/v2/generate", json=asked).json()["event_id"]
        return self.listen(f"call/generate/{event}")

    def join(self, session: str) -> None:
        """Generate as a browser asks for it."""
        dials = {"k": 4, "order": "lattice", "steps": 3, "temperature": 1.0, "cfg": 2.0, "seed": "1"}
        body = {"data": ["fish", dials], "fn_index": self.function("on_generate"), "session_hash": session}
        assert self.client.post("/gradio_api/queue/join", json=body).status_code == 200

    def told(self, session: str) -> str:
        """All that a session is told until its runs are over."""
        return self.listen(f"queue/data?session_hash={session}")

    def listen(self, path: str) -> str:
        """All events of a stream; Gradio breaks one off that nobody has asked for."""
        heard = ""
        with self.client.stream("GET", f"/gradio_api/{path}") as answer, suppress(httpx.RemoteProtocolError):
            for text in answer.iter_text():
                heard += text
        return heard

    def stop(self, session: str | None) -> None:
        body = {"data": [], "fn_index": self.function("stop"), "session_hash": session}
        assert self.client.post("/gradio_api/run/predict", json=body).status_code == 200

    def close(self) -> None:
        self.free()
        self.client.close()
        self.demo.close(verbose=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    opened = Page(tmp_path_factory.mktemp("secret-place") / "weights")
    yield opened
    opened.close()


@pytest.fixture
def visitors(served: Page) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool
        served.free()


def fetch(served: Page, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of a path that goes out as it is written here."""
    connection = http.client.HTTPConnection(httpx.URL(served.url).netloc.decode(), timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# ---- files and paths -----------------------------------------------------------------------------


ROUTES = ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "svelte/", "")
UPS = ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12, "....//" * 12, "..\\" * 12, "%252e%252e%252f" * 12, "/", "")
TARGETS = (
    "etc/passwd",
    str(REPOSITORY / "app.py").lstrip("/"),
    "app.py",
    "pyproject.toml",
    "assets/config.json",
)


@pytest.mark.parametrize("route", ROUTES)
def test_no_file_is_reached_by_any_way_up(served: Page, route: str) -> None:
    for up in UPS:
        for target in TARGETS:
            status, body = fetch(served, f"/{route}{up}{target}")
            assert status in (307, 400, 403, 404), (route, up, target)
            assert not any(
                part in body for part in (b"root:", b"QUEUE_LENGTH", b"[tool.ruff]", b"format_version")
            )


@pytest.mark.parametrize("place", [get_cache_folder, get_upload_folder], ids=["cache", "upload"])
@pytest.mark.parametrize(
    "route", ["gradio_api/file=", "gradio_api/file/", "gradio_api%2Ffile=", "%67radio_api/file="]
)
def test_not_even_what_gradio_keeps_is_served(served: Page, place: Any, route: str) -> None:
    folder = Path(place()) / "closed-doors-test"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "kept.txt").write_text(SECRET)
        for path in (f"{folder}/kept.txt", f"{folder}/../closed-doors-test/kept.txt"):
            status, body = fetch(served, f"/{route}{path}")
            assert status == 404 and SECRET.encode() not in body
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/upload?upload_id=1",
        "/gradio_api/upload_progress?upload_id=1",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/stream/x",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-code",
        "/monitoring",
        "/monitoring/summary",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_doors_that_the_page_has_no_use_for_are_shut(served: Page, path: str, method: str) -> None:
    assert fetch(served, path, method) == (404, b"There is nothing here.")


def test_an_upload_leaves_nothing(served: Page) -> None:
    answer = served.client.post("/gradio_api/upload", files={"files": ("closed-doors.txt", SECRET)})
    assert answer.status_code == 404
    assert not list(Path(get_upload_folder()).rglob("closed-doors.txt"))


def own_paths(served: Page) -> tuple[str, ...]:
    return (
        str(served.folder),
        str(served.folder.parent),
        str(REPOSITORY),
        str(Path.home()) + "/",
        sys.prefix,
    )


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/nowhere"])
def test_no_page_names_a_path_of_this_machine(served: Page, path: str) -> None:
    text = served.client.get(path).text
    assert len(text) > 20 and not [own for own in own_paths(served) if own in text]


def test_the_page_names_its_folder_and_so_do_its_pictures(served: Page) -> None:
    assert served.folder.name in served.client.get("/config").text
    assert served.pipeline.shown_origin == served.folder.name == shown(str(served.folder))
    assert shown(f"{served.folder}, user/repo@0123456") == f"{served.folder.name}, user/repo@0123456"
    assert shown("embedded") == "embedded" and shown("user/repo") == "user/repo"


def test_an_error_names_a_file_and_not_where_it_lies(served: Page) -> None:
    answer = served.call(k=2)
    assert "event: error" in answer and f"{DAMAGED} is missing." in answer
    assert not [own for own in own_paths(served) if own in answer]


def test_an_error_of_the_weights_is_public_without_its_folders() -> None:
    file = Path("/home/me/weights/k4-lattice/config.json")
    error = WeightsError(f"{file} does not fit {file.parent.parent} ({file}).", file, file.parent.parent)
    assert error.public == "k4-lattice/config.json does not fit weights (k4-lattice/config.json)."
    assert str(error).startswith(str(file)), "who runs it reads the whole path"


def test_a_fault_inside_is_no_message(served: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Iterator[Frame]:
        raise RuntimeError(f"{REPOSITORY}/nestar: {SECRET}")

    monkeypatch.setattr(served.pipeline, "stream", fail)
    answer = served.call()
    assert "event: error" in answer and SECRET not in answer and str(REPOSITORY) not in answer
    served.join("faulty")
    answer = served.told("faulty")
    assert "The run failed on the server." in answer and SECRET not in answer and "Traceback" not in answer


# ---- visitors among themselves -------------------------------------------------------------------


@pytest.mark.parametrize("session", [None, "mallory", ""])
def test_a_call_without_session_is_stopped_by_nobody(
    served: Page, visitors: ThreadPoolExecutor, session: str | None
) -> None:
    served.hold()
    called = visitors.submit(served.call)
    assert served.begun.wait(60)
    served.stop(session)
    assert not any(turn.is_set() for turn in served.demo.runs._cancels.values())
    assert not served.cancelled and not called.done()
    served.free()
    assert called.result(60).count("event: generating") == K4.evaluations and not served.cancelled


def test_a_visitor_neither_stops_nor_reads_another(served: Page, visitors: ThreadPoolExecutor) -> None:
    served.hold()
    served.join("alice")
    alice = visitors.submit(served.told, "alice")
    assert served.begun.wait(60)
    served.stop("mallory")
    cancel = {"session_hash": "mallory", "fn_index": served.function("on_generate"), "event_id": "guess"}
    assert served.client.post("/gradio_api/cancel", json=cancel).status_code == 200
    for answer in (served.told("mallory"), served.listen("call/generate/guess")):
        assert "data:image" not in answer and "404" in answer
    guess = {"data": "guess", "component_id": served.demo.fns[served.function("on_generate")].outputs[0]._id}
    guess |= {"fn_name": "animation_of", "session_hash": "mallory"}
    assert "no longer kept" in served.client.post("/gradio_api/component_server", json=guess).text
    assert not served.cancelled and not alice.done()
    served.stop("alice")
    answer = alice.result(60)
    assert served.cancelled and '"stopped"' in answer and "data:image" in answer


def test_nobody_computes_beside_the_queue(served: Page) -> None:
    for name in ("generate", "animation", "nearest", "failure"):
        assert served.client.post(f"/gradio_api/run/{name}", json={"data": []}).status_code == 404
    assert "event: complete" in served.call(), "through the queue it is open"


# ---- sizes, headers, health ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["call/generate", "queue/join", "cancel", "component_server", "run/settings_of"]
)
def test_a_request_is_bounded_however_it_comes(served: Page, path: str) -> None:
    chunks = (b"[" * 2**20 for _ in range(MAX_BODY // 2**20 + 1))
    for content in (b"[" * (MAX_BODY + 1), chunks):
        answer = served.client.post(f"/gradio_api/{path}", content=content)
        # Gradio calls a component's function by whatever of its body it could read: none.
        assert answer.status_code == (400 if path == "component_server" and content is chunks else 413)
        assert len(answer.text) < 100
    answer = served.client.post("/gradio_api/call/settings_of", json={"data": ["A" * (MAX_BODY - 100)]})
    assert answer.status_code == 200, "what is just small enough passes"


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/info", "/nowhere", "/health", "/gradio_api/upload"]
)
def test_every_answer_tells_the_browser_what_the_page_may_do(served: Page, path: str) -> None:
    headers = served.client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "same-origin"
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert "https://huggingface.co" in policy["frame-ancestors"].split(), "a Space is shown in a frame"
    assert policy["object-src"] == "'none'" and "http:" not in policy["default-src"]
    assert "X-Frame-Options" not in headers


def test_the_page_is_made_once_for_every_address(served: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    inner = routes.templates.TemplateResponse

    def watched(*arguments: Any, **options: Any) -> Any:
        made.append("page")
        return inner(*arguments, **options)

    monkeypatch.setattr(routes.templates, "TemplateResponse", watched)
    own, other = {"Host": "own.test"}, {"Host": "other.test", "X-Forwarded-Proto": "https"}
    first = served.client.get("/", headers=own)
    again = served.client.get("/", headers=own)
    plain = served.client.get("/", headers=own | {"Accept-Encoding": "identity"})
    assert made == ["page"] and first.text == again.text == plain.text and "http://own.test" in first.text
    assert again.headers["Content-Encoding"] == "gzip" and "Content-Encoding" not in plain.headers
    assert int(again.headers["Content-Length"]) < len(first.content) / 2
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert again.headers["Vary"] == "Accept-Encoding" and "Content-Security-Policy" in again.headers
    elsewhere = served.client.get("/", headers=other)
    assert len(made) == 2 and "https://other.test" in elsewhere.text and "own.test" not in elsewhere.text
    assert served.client.get("/?class=fish", headers=own).text == first.text and len(made) == 2
    for parameters in ("page=2", "all_endpoints=1"):  # which Gradio would read for the first who asks
        host = f"{parameters[:3]}.test"
        given = served.client.get(f"/?{parameters}", headers={"Host": host})
        assert given.status_code == 200 and given.text.replace(host, "own.test") == first.text
    for number in range(2 * front.KEPT):  # whoever makes addresses up fills no memory
        served.client.get("/", headers={"Host": f"made-up-{number}.test"})
    assert served.client.get("/", headers=own).text == first.text and len(made) == 5 + 2 * front.KEPT


def test_few_visitors_pages_are_kept_in_memory(served: Page) -> None:
    holder = served.demo.app.state_holder
    for number in range(SESSIONS + 5):
        holder[f"visitor-{number}"]
    assert len(holder.session_data) == SESSIONS
    assert "event: complete" in served.call(), "whoever was given up is served all the same"


def test_the_platform_learns_that_the_page_is_up(served: Page) -> None:
    answer = served.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "version": nestar.__version__})


def test_the_platform_learns_that_runs_are_not_served_any_more(
    served: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.demo, "_queue", types.SimpleNamespace(stopped=True))
    answer = served.client.get("/health")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)


def test_whoever_the_queue_has_forgotten_ends_it_for_nobody(
    served: Page, visitors: ThreadPoolExecutor
) -> None:
    """It remembers 2,000 sessions, and those that wait may be the oldest."""
    served.hold()
    running = visitors.submit(served.call)
    assert served.begun.wait(60)
    served.join("forgotten")
    del served.demo._queue.pending_messages_per_session["forgotten"]
    served.free()
    assert "event: complete" in running.result(60)
    assert "event: complete" in served.call()
    assert not served.demo._queue.stopped


def test_the_queue_forgets_those_first_who_hear_nothing(served: Page) -> None:
    queue = served.demo._queue
    served.join("alice")
    served.join("bob")
    assert "event: complete" in served.call()
    others = [each for each in queue.pending_messages_per_session if each != "alice"]
    event = types.SimpleNamespace(session_hash="alice", alive=True, _id="x")
    queue.send_message(event, types.SimpleNamespace())
    assert list(queue.pending_messages_per_session) == [*others, "alice"]


def test_a_call_cancelled_before_its_first_step_takes_it_first(served: Page) -> None:
    """One that never begins would never give its place at the sampler back."""

    async def scene() -> list[str]:
        seen = []

        async def run() -> None:
            seen.append("begun")
            try:
                await asyncio.sleep(60)
            finally:
                seen.append("place given back")

        task = asyncio.create_task(run())
        queueing.set_task_name(task, "a<gradio-sep>b", 0, "event", False)
        await cancel_tasks({"a b_0"})
        await asyncio.sleep(0.01)
        assert seen == ["begun"], "too early to be found"
        await cancel_tasks({"a b_0"})
        return seen

    assert asyncio.run(scene()) == ["begun", "place given back"]


def test_names_of_sessions_are_bounded(served: Page) -> None:
    said = served.client.post("/gradio_api/call/generate", json={"data": [], "session_hash": "x" * 10_000})
    assert said.status_code == 400 and "session_hash has at most 64 characters" in said.text


@pytest.mark.parametrize("path", ["call/generate", "call/v2/generate", "queue/join"])
def test_a_call_that_may_wait_is_small(served: Page, path: str) -> None:
    """Eight megabytes of brackets unpack to 170, and sixty-four calls may wait."""
    for much in ([[]] * MAX_CALL, "A" * MAX_CALL):
        body = {"class_name": much} if "v2" in path else {"data": [much]}
        if path == "queue/join":
            body |= {"fn_index": served.function("on_generate"), "session_hash": "hoarder"}
        said = served.client.post(f"/gradio_api/{path}", json=body)
        assert said.status_code == 400 and f"A call has at most {MAX_CALL:,} bytes" in said.text
    many = {
        "data": ["A" * MAX_CALL, []],
        "fn_index": served.function("settings_of"),
        "session_hash": "hoarder",
    }
    assert served.client.post("/gradio_api/queue/join", json=many).status_code == 400


def test_answers_that_nobody_fetches_are_few(served: Page) -> None:
    sessions = served.demo._queue.pending_messages_per_session
    served.join("hoarder")
    for _ in range(MAX_UNHEARD):
        sessions["hoarder"].put_nowait(None)
    until = time.monotonic() + 60
    while sessions["hoarder"].qsize() <= MAX_UNHEARD and time.monotonic() < until:
        time.sleep(0.01)
    body = {"data": [], "fn_index": served.function("generate"), "session_hash": "hoarder"}
    said = served.client.post("/gradio_api/queue/join", json=body)
    assert said.status_code == 400 and "Fetch the answers" in said.text
    assert "event: complete" in served.call(), "the hoarder's run is over, too"
    for number in range(SESSIONS):
        served.client.post("/gradio_api/call/settings_of", json={"data": [str(number)]})
    assert len(sessions) == SESSIONS and "hoarder" not in sessions


def test_a_queue_kept_elsewhere_costs_the_display_alone(served: Page) -> None:
    assert place_in_queue(served.demo, "nobody", ["generate"]) is None
    for other in (types.SimpleNamespace(), types.SimpleNamespace(_queue=object())):
        assert place_in_queue(other, "nobody", ["generate"]) is None


# ---- the end -------------------------------------------------------------------------------------


@pytest.fixture
def own_sigterm() -> Iterator[None]:
    """What the process does on SIGTERM, again as it was once the app's main has changed it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_sigterm")
def test_sigterm_ends_the_process_through_the_pages_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    def launch(**options: Any) -> None:
        assert options["app_kwargs"] and not closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("it went on")

    fake = types.SimpleNamespace(launch=launch, close=lambda: closed.append(True))
    monkeypatch.setattr(app, "open_page", lambda *_: fake)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0 and closed == [True]


@pytest.mark.usefixtures("own_sigterm")
def test_a_port_that_is_taken_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(**_: Any) -> None:
        raise OSError("Cannot find empty port in range: 7860-7860.")

    closed: list[bool] = []
    fake = types.SimpleNamespace(launch=launch, close=lambda: closed.append(True))
    monkeypatch.setattr(app, "open_page", lambda *_: fake)
    monkeypatch.setattr(sys, "argv", ["app.py", "--port", "7860"])
    with pytest.raises(SystemExit, match=r"^nestar: The page cannot have port 7860 here"):
        app.main()
    assert closed == [True]


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "1e3"])
def test_a_port_that_is_none_is_refused_before_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    monkeypatch.setattr(app, "open_page", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr(sys, "argv", ["app.py", f"--port={port}"])
    with pytest.raises(SystemExit) as refused:
        app.main()
    assert refused.value.code == 2
    assert f"{port!r} is no port: allowed are 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 70])
@pytest.mark.parametrize("by_name", [False, True])
def test_an_address_of_another_machine_is_refused_before_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch, host: str, by_name: bool
) -> None:
    monkeypatch.setattr(app, "open_page", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr(sys, "argv", ["app.py"] if by_name else ["app.py", "--host", host])
    if by_name:
        monkeypatch.setenv("GRADIO_SERVER_NAME", host)
    with pytest.raises(SystemExit, match=rf"^nestar: The page cannot listen at '{host}'"):
        app.main()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_own_addresses_are_not_refused(host: str) -> None:
    app.check_host(host)


def test_a_page_that_closes_tells_those_who_wait(
    tmp_path: Path, visitors: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(tmp_path / "weights")
    page.hold()
    page.join("running")
    page.join("waiting")
    told = [visitors.submit(page.told, session) for session in ("running", "waiting")]
    assert page.begun.wait(60)
    # However long this machine takes to tell them.
    monkeypatch.setattr(app, "time", types.SimpleNamespace(sleep=lambda seconds: wait(told, 60)))
    page.demo.close(verbose=False)
    assert app.ENDING_SECONDS + app.TELLING_SECONDS + 5 < 9, "a platform waits for ten seconds"
    for each in told:
        assert '"stopped"' in each.result(60)
    page.close()
    assert isinstance(page.demo, gr.Blocks) and not page.demo.is_running
