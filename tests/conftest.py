"""Fixtures of the browser tests: one page served in this process, and Chromium in front of it."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.browser import find_browser

# Without this, torch's threads spin against the browser's on a small machine and a 50 ms step takes a second.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

PATIENCE_MS = 60_000  # a busy machine's page is slow, and what is awaited here comes in the end or never
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session", autouse=True)
def patient() -> None:
    """What is expected of a page may take its time."""
    try:
        from playwright.sync_api import expect
    except ImportError:  # the tests of a GPU run where there is none
        return
    expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """pytest-playwright's launch arguments: the system's Chromium, found by name."""
    path = find_browser()
    if path is None:
        pytest.fail("The browser tests need Chromium; get it with `apt-get install chromium`.", pytrace=False)
    return {"executable_path": path, "args": BROWSER_ARGUMENTS}


@pytest.fixture(scope="session")
def pipeline() -> Any:
    """The pipeline with the embedded weights, on the CPU as CI has it."""
    from nestar.pipeline import NestARPipeline

    return NestARPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For what is compared bit for bit, or too small to gain by more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def served(demo: Any) -> Iterator[str]:
    """Address of a page, served in this process inside the block."""
    from nestar.ui.assets import launch_options

    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    demo.close(verbose=False)


@pytest.fixture(scope="session")
def page_url(pipeline: Any) -> Iterator[str]:
    """Address of the page for the whole session."""
    import app

    with served(app.build_page(pipeline)) as url:
        yield url


@dataclass
class Visit:
    """One visitor's tab, and what went wrong in it."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def generate(self) -> None:
        self.page.locator("#generate").click()

    def wait_until_rested(self) -> None:
        """Wait for the end of the run and of its playback."""
        self.page.locator('.stage[data-state="finished"]:not(.playing)').wait_for()


def schemes(page: Any) -> Iterator[str]:
    """Shows the page light, then dark, each once its colours stand."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            "dark => document.body.classList.contains('dark') === dark", arg=scheme == "dark"
        )
        page.wait_for_function("document.getAnimations().every((each) => !(each instanceof CSSTransition))")
        yield scheme


@pytest.fixture
def visit(browser: Any, page_url: str) -> Iterator[Callable[..., Visit]]:
    """Opens the page in a browser context of its own; at the end no tab may have complained."""
    with visitors(browser, page_url) as open_page:
        yield open_page


class Contexts:
    """Browser contexts that a module's tests hand on to each other: the page's files then come from a cache,
    which saves a third of a visit's time. No two tabs that are open at once share one."""

    def __init__(self) -> None:
        self.idle: dict[str, list[Any]] = {}

    @contextmanager
    def lent(self, browser: Any, options: dict[str, Any]) -> Iterator[Any]:
        """A context with these options; afterwards its tabs are closed and it is online."""
        idle = self.idle.setdefault(repr(sorted(options.items())), [])
        context = idle.pop() if idle else browser.new_context(**options)
        closed: list[Any] = []
        context.once("close", lambda context: closed.append(context))
        try:
            yield context
        finally:
            # Each tab holds a connection open; left-over ones would starve the next test's.
            for page in context.pages:
                page.close()
            if not closed:
                context.set_offline(False)
                idle.append(context)

    def close(self) -> None:
        for context in itertools.chain(*self.idle.values()):
            context.close()
        self.idle.clear()


CONTEXTS = Contexts()


@pytest.fixture(scope="module", autouse=True)
def own_contexts() -> Iterator[None]:
    """Another module may serve another page at the same address."""
    yield
    CONTEXTS.close()


@contextmanager
def visitors(browser: Any, page_url: str, ready: str = ".film .ready") -> Iterator[Callable[..., Visit]]:
    """A function that opens the page at `page_url` in a browser context of its own, with that context's
    options and `at`, what follows the address, until `ready` selects something; at the end no tab may have
    complained.

    A complaint is a console error or warning, an uncaught exception, or a request to another server.
    """
    visits: list[Visit] = []

    def open_page(at: str = "", **options: Any) -> Visit:
        context = lent.enter_context(
            CONTEXTS.lent(browser, {"viewport": {"width": 1440, "height": 900}} | options)
        )
        context.set_default_timeout(PATIENCE_MS)
        visited = Visit(context.new_page())
        visits.append(visited)
        note = visited.complaints.append
        page = visited.page
        page.on("console", lambda m: note(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(f"exception: {error}"))
        page.on("request", lambda r: None if r.url.startswith((page_url, "data:", "blob:")) else note(r.url))
        page.goto(page_url + at)
        page.locator(ready).first.wait_for()
        return visited

    with ExitStack() as lent:
        yield open_page
    assert [complaint for visited in visits for complaint in visited.complaints] == []


@contextmanager
def tab_visitors(browser: Any, page_url: str, tab: str, ready: str) -> Iterator[Callable[..., Any]]:
    """As `visitors`, but the function turns to a tab and gives the page once `ready` selects something."""
    with visitors(browser, page_url) as open_page:

        def open_tab(**options: Any) -> Any:
            page = open_page(**options).page
            page.get_by_role("tab", name=tab).first.click()
            page.locator(ready).first.wait_for(state="attached")
            return page

        yield open_tab
