"""How the page runs the pipeline: one call at a time, each with a cancel flag for its visitor's Stop."""

import importlib.util
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any

import gradio as gr

from nestar.settings import SampleSettings, SettingsError

if TYPE_CHECKING:
    from nestar.frames import Frame
    from nestar.pipeline import NestARPipeline

log = logging.getLogger(__name__)

Stream = Callable[[SampleSettings, threading.Event], Iterator["Frame"]]

# Every event that computes shares this queue, so that one visitor's run never slows another's.
SAMPLER = {"concurrency_limit": 1, "concurrency_id": "sampler"}


PATIENCE_SECONDS = 60.0
"""What a run may take while others wait for the sampler. The largest that the page's controls ask for, 64
turns of a hundred steps, takes about as long on two cores; calls by name may ask for twice the steps."""


class Turn(threading.Event):
    """A run's cancel flag: set by hand, or when the run has taken PATIENCE_SECONDS and others wait; alone it
    may take as long as it likes.

    Attributes:
        gave_way: whether it was the others who ended it.
    """

    def __init__(self, others_wait: Callable[[], bool]):
        super().__init__()
        self._others_wait = others_wait
        self._patience, self.gave_way = PATIENCE_SECONDS, False
        self.begin()

    def begin(self) -> None:
        """Its time counts from now: what went before was no work of the sampler's."""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def is_for(self, visitors: int) -> None:
        """So many are served by this run, and each has a right to its time."""
        self._patience = PATIENCE_SECONDS * visitors

    def is_set(self) -> bool:
        if not super().is_set() and self.seconds >= self._patience and self._others_wait():
            self.gave_way = True
            self.set()
        return super().is_set()


class Runs:
    """Which runs each visitor has going, so that Stop or a closed tab ends them within one solver step.

    A visitor may have several: one computes, others wait or were put aside in other parts of the page. Stop
    ends that of its own part.

    Args:
        others_wait: whether anyone waits for the sampler.
    """

    def __init__(self, others_wait: Callable[[], bool] = lambda: False) -> None:
        self._others_wait = others_wait
        self._lock = threading.Lock()
        self._cancels: dict[tuple[str | None, str], Turn] = {}
        self._ended = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")

    def on_one_thread(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An event's function, or generator function, that computes on the one thread that is kept for it.

        Gradio would take any of its forty, and each of them that has run torch once keeps tens of MB, and
        OpenMP workers that are in the way of the others' (see `app.open_page`).
        """

        def there(function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
            return self._thread.submit(copy_context().run, function, *arguments, **named)

        @wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            return there(function, *arguments, **named).result()

        @wraps(function)
        def generated(*arguments: Any, **named: Any) -> Iterator[Any]:
            end = object()
            values = function(*arguments, **named)
            try:
                while (value := there(next, values, end).result()) is not end:
                    yield value
            finally:
                # Not waited for: Gradio closes runs from the thread that serves everyone.
                there(values.close)

        return generated if inspect.isgeneratorfunction(function) else called

    @contextmanager
    def run(self, request: gr.Request, part: str = "") -> Iterator[Turn]:
        """The cancel flag of the visitor's new run in a part of the page; set when the block is left,
        whichever way.

        Raises:
            SettingsError: the run was long, others waited, and so it was ended; once the block is left.
        """
        cancel, key = Turn(self._others_wait), (request.session_hash, part)
        with self._lock:
            self._cancels[key] = cancel
            if self._ended:
                cancel.set()
        try:
            yield cancel
        finally:
            cancel.set()
            with self._lock:
                if self._cancels.get(key) is cancel:
                    del self._cancels[key]
        if cancel.gave_way:
            raise SettingsError(
                f"This run was stopped after {cancel.seconds:.0f} s, as others wait: fewer steps, turns or "
                "pictures take less."
            )

    def stop_in(self, part: str) -> Callable[[gr.Request], None]:
        """What a Stop button calls: sets the cancel flag of the visitor's run in that part, if any."""

        def stop(request: gr.Request) -> None:
            with self._lock:
                cancel = self._cancels.get((request.session_hash, part))
            if cancel is not None:
                cancel.set()

        return stop

    def leave(self, request: gr.Request) -> None:
        """Set the cancel flags of all of the visitor's runs."""
        self.stop_session(request.session_hash)

    def stop_session(self, session: str | None) -> None:
        """The same by the name of the visitor's session."""
        with self._lock:
            cancels = [cancel for (owner, _), cancel in self._cancels.items() if owner == session]
        for cancel in cancels:
            cancel.set()

    @property
    def going(self) -> int:
        """How many runs there are."""
        return len(self._cancels)

    def end(self, seconds: float) -> bool:
        """Stop all runs, and those that still wait as soon as they begin; wait until none goes on, at most so
        long. Whether there was any."""
        with self._lock:
            self._ended = True
            going = list(self._cancels.values())
        for cancel in going:
            cancel.set()
        until = time.monotonic() + seconds
        while self.going and time.monotonic() < until:
            time.sleep(0.05)
        return bool(going)


def waiting_calls(page: gr.Blocks) -> list[tuple[str | None, str | None, list[Any]]]:
    """Session, function and values of the calls that wait for the sampler, in their order.

    They are read where Gradio keeps them; from a version that keeps them elsewhere nothing comes, which costs
    the display of places and the making of pictures together, and nothing else.
    """
    try:
        waiting = page._queue.event_queue_per_concurrency_id.get(SAMPLER["concurrency_id"])
        events = list(waiting.queue) if waiting else []
        return [
            (event.session_hash, event.fn.name, list(event.data.data) if event.data else [])
            for event in events
        ]
    except AttributeError as error:
        log.warning("This Gradio does not tell places in its queue (%s).", error)
        return []


def compute_on_one_thread(page: gr.Blocks, runs: Runs) -> None:
    """Have every event of the finished page that shares the sampler's queue compute on one thread."""
    if on_zero_gpu():
        return  # computes in another process
    for event in page.fns.values():
        if event.concurrency_id == SAMPLER["concurrency_id"]:
            event.fn = runs.on_one_thread(event.fn)


def sampling_call(page: gr.Blocks) -> Any | None:
    """Gradio's event that has the sampler, which it keeps beside those that wait; None if none has."""
    jobs = getattr(page._queue, "active_jobs", [])
    running = (event for job in jobs for event in job or ())
    return next((event for event in running if event.concurrency_id == SAMPLER["concurrency_id"]), None)


def place_in_queue(page: gr.Blocks, session: str | None, functions: Iterable[str]) -> tuple[int, int] | None:
    """Which of the calls that wait for the sampler is this visitor's first of `functions`, from 1, and how
    many wait; None if there is none. Gradio tells this to its own progress bars only."""
    waiting = [(owner, function) for owner, function, _ in waiting_calls(page)]
    own = [place for place, call in enumerate(waiting, 1) if call in {(session, each) for each in functions}]
    return (own[0], len(waiting)) if own else None


def streamer(pipeline: "NestARPipeline", timed: bool = False) -> Stream:
    """The pipeline's stream as this host runs it; `timed` as there."""

    def stream(settings: SampleSettings, cancel: threading.Event | None = None) -> Iterator["Frame"]:
        yield from pipeline.stream(**vars(settings), cancel=cancel, timed=timed)

    return hosted(stream)


def on_zero_gpu() -> bool:
    """Whether this is a Space whose GPU is lent a call at a time. Every Gradio Space has the package; on the
    others its decorator hands back the function itself."""
    if importlib.util.find_spec("spaces") is None:
        return False
    import spaces

    return spaces.GPU(on_zero_gpu) is not on_zero_gpu


def hosted(stream: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A stream as this host runs it: in this process, or on ZeroGPU inside `spaces.GPU`. Its last argument is
    the cancel flag, the others go to another process there."""
    if not on_zero_gpu():
        return stream
    import spaces

    on_gpu = spaces.GPU(stream)
    # ZeroGPU runs the stream in a fork, which never sees a flag set here: Stop ends it at its next frame.
    return lambda *arguments: on_gpu(*arguments[:-1])
