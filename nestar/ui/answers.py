"""What the server says to a visitor beside pictures: refusals, remarks, weights on their way, a place in the
queue."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from nestar.model import WeightsError
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, SettingsError
from nestar.ui.assets import asset
from nestar.ui.doors import said
from nestar.ui.runs import Turn, place_in_queue, waiting_calls

log = logging.getLogger(__name__)

FETCH_SECONDS = 5.0
"""How long weights on their way may keep the sampler from others who wait for it."""


def unseen_answers() -> gr.HTML:
    """A component that shows nothing itself: its script tells the document what the server answers beside
    runs."""
    return gr.HTML(
        None, html_template="", js_on_load=asset("answers.js"), apply_default_css=False, elem_classes="unseen"
    )


def run_id() -> str:
    """A name for a run. Numbers would start again with the server, while a page left open keeps its last."""
    return uuid.uuid4().hex


def refusal(message: str) -> dict[str, Any]:
    """A stage value that shows one sentence and leaves the picture before it standing."""
    return {"run": run_id(), "state": "refused", "message": message, "frames": []}


def refused(error: Exception) -> dict[str, Any]:
    """`refusal` in the words of the error, where it was meant for a reader."""
    if isinstance(error, SettingsError | WeightsError):
        return refusal(said(error))
    if isinstance(error, gr.Error):  # of who lends the GPU: that a visitor's share of it is used up, for one
        return refusal(str(error.message))
    log.error("The run failed.", exc_info=error)
    return refusal("The run failed on the server. Try again in a moment.")


def remark(message: str, alarming: bool = False) -> dict[str, Any]:
    """A sentence for the visitor that belongs to no run."""
    return {"id": run_id(), "message": message, "alarming": alarming}


def on_its_way(path: str, here: int, whole: int) -> str:
    """A sentence on weights that come from the Hub."""
    if not path:
        return "Weights are on their way."
    share = f"{here / whole:.0%} of {whole / 2**20:.1f} MB" if whole else f"{here / 2**20:.1f} MB"
    return f"Weights are on their way from the Hub: {path}, {share}."


def fetching(told: Iterable[tuple[str, int, int]], page: gr.Blocks) -> Iterator[dict[str, Any]]:
    """The values of a panel while `Models.fetch` tells of weights on their way; none if they are here.

    Raises:
        WeightsError: they take longer than FETCH_SECONDS, and others wait for the sampler, which idles
            meanwhile. The download goes on.
    """
    until = time.monotonic() + FETCH_SECONDS
    for progress in told:
        sentence = on_its_way(*progress)
        if time.monotonic() > until and waiting_calls(page):
            raise WeightsError(f"{sentence} Others wait for the sampler: try again in a moment.")
        yield {"run": run_id(), "state": "fetching", "message": sentence}


def fetched(told: Iterable[tuple[str, int, int]], page: gr.Blocks, cancel: Turn) -> None:
    """The same for a call that hears of weights on their way only if it has to give up; its run's time counts
    from when they are here.

    Raises:
        WeightsError: as there; or the run was stopped meanwhile.
    """
    for _ in fetching(told, page):
        if cancel.is_set():
            raise WeightsError("The run was stopped while its weights were on their way.")
    cancel.begin()


def settings_here(
    pipeline: NestARPipeline, page: gr.Blocks, cancel: Turn, **values: object
) -> SampleSettings:
    """Checked settings of a call by name, once their weights are here."""
    settings = pipeline.settings(**values)
    fetched(pipeline.fetch(settings), page, cancel)
    return settings


@contextmanager
def sentences() -> Iterator[None]:
    """Refusals as the one kind of error whose sentence a client of the API gets to read."""
    try:
        yield
    except (SettingsError, WeightsError) as error:
        raise gr.Error(said(error), print_exception=False) from error


def told(work: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The values of `work`; if it fails, a value that says why in one sentence."""
    try:
        yield from work()
    except Exception as error:
        yield refused(error)


def place_of(call: str, functions: Iterable[str], page: gr.Blocks, request: gr.Request) -> dict[str, Any]:
    """Which place a visitor's call has in the queue, told to the script that asked for it: `call`, which is
    made by one of `functions`."""
    place = place_in_queue(page, request.session_hash, functions)
    return {"id": run_id(), "of": call, "place": place}
