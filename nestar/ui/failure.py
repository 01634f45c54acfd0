"""The tab "When it fails": what goes wrong, provoked beside a healthy run, and what coordination aligns."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, SettingsError, by_name
from nestar.ui import failure_api
from nestar.ui.answers import fetching, place_of, told, unseen_answers
from nestar.ui.assets import asset, scripts, tells
from nestar.ui.generate import first_settings
from nestar.ui.laboratory import METERS, PICTURES, Laboratory, experiment_panels
from nestar.ui.runs import SAMPLER, Runs
from nestar.ui.signatures import Failure, unequal, unhealthy, why_not

ROWS, PANEL = "failure", "alignment"


def lay_out(laboratory: Laboratory, first: SampleSettings) -> tuple[gr.HTML, gr.HTML]:
    """The rows of failures, and the panel on coordination."""
    no_velocities = laboratory.why_no_velocities()
    rows = gr.HTML(
        None,
        html_template=asset("failure.html"),
        js_on_load=scripts("fields.js", "stops.js", "calls.js", "failure.js"),
        apply_default_css=False,
        elem_id="failures",
        classes=laboratory.pipeline.classes,
        first={"class_name": first.class_name, "seed": str(first.seed)},
        signatures=signatures_to_json(laboratory, first),
        meters=meters_to_json(),
    )
    panel = gr.HTML(
        None,
        html_template=asset("alignment.html"),
        js_on_load=scripts("token_map.js", "stops.js", "calls.js", "alignment.js"),
        apply_default_css=False,
        elem_id="alignment",
        reason=no_velocities,
        weights=[] if no_velocities else laboratory.comparable(),
        experiment=experiment_panels(),
    )
    return rows, panel


def build(pipeline: NestARPipeline, runs: Runs, page: gr.Blocks) -> None:
    """Lay out the tab on `page`, and bind its events, `/failure` and `/alignment`."""
    first, laboratory = first_settings(pipeline), Laboratory(pipeline)
    no_velocities = laboratory.why_no_velocities()
    rows, panel = lay_out(laboratory, first)
    answers = unseen_answers()

    def on_provoke(event: gr.EventData, request: gr.Request) -> Iterator[dict[str, Any]]:
        def work() -> Iterator[dict[str, Any]]:
            failure = laboratory.find(by_name(event._data, ["failure"]).get("failure"))
            values = by_name(event._data, ("class_name", "seed"))
            sides = laboratory.sides(failure, k=first.k, order=first.order, **values)
            for settings in sides:
                yield from fetching(pipeline.fetch(settings), page)
            with runs.run(request, ROWS) as cancel:
                yield from laboratory.provoke(failure, sides, cancel)

        yield from told(work)

    def on_measure(request: gr.Request) -> Iterator[dict[str, Any]]:
        def work() -> Iterator[dict[str, Any]]:
            if no_velocities:
                raise SettingsError(no_velocities)
            names = laboratory.comparable()
            for name in names:
                yield from fetching(pipeline.models.fetch(name), page)
            with runs.run(request, PANEL) as cancel:
                yield from laboratory.alignment(names, PICTURES, cancel)

        yield from told(work)

    def on_ask_for_rows(request: gr.Request) -> dict[str, Any]:
        return place_of(ROWS, [on_provoke.__name__], page, request)

    def on_ask_for_panel(request: gr.Request) -> dict[str, Any]:
        return place_of(PANEL, [on_measure.__name__], page, request)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    # The browser may ask again while it still tidies up after a run that was stopped.
    again = {"trigger_mode": "multiple", **quiet, **SAMPLER}
    provoking = rows.provoke(on_provoke, None, rows, **again)
    measuring = panel.measure(on_measure, None, panel, **again)
    provoking.failure(None, js=tells("failure-failed"))
    measuring.failure(None, js=tells("alignment-failed"))
    rows.halt(runs.stop_in(ROWS), queue=False, cancels=provoking, **quiet)
    panel.halt(runs.stop_in(PANEL), queue=False, cancels=measuring, **quiet)
    rows.halt(None, js=tells("failure-halted"))
    panel.halt(None, js=tells("alignment-halted"))
    rows.ask(on_ask_for_rows, None, answers, queue=False, **quiet)
    panel.ask(on_ask_for_panel, None, answers, queue=False, **quiet)
    failure_api.bind(laboratory, runs, page, first)


def signatures_to_json(laboratory: Laboratory, first: SampleSettings) -> list[dict[str, Any]]:
    """What the tab says of each failure before it is provoked with the settings `first`."""
    return [
        {
            "name": one.name,
            "title": one.title,
            "why": one.why,
            "failures": [
                {
                    "name": each.name,
                    "button": each.button,
                    "count": each.count,
                    "labels": each.labels(
                        [replace(first, **side.values) for side in (each.healthy, each.broken)]
                    ),
                    "reason": why_not(each, laboratory.pipeline) or _begins_there(each, first),
                    "remark": unequal(each, laboratory.pipeline),
                }
                for each in one.failures
            ],
        }
        for one in laboratory.signatures
    ]


def _begins_there(failure: Failure, first: SampleSettings) -> str:
    """Why the failure cannot be shown beside what these weights begin with, or ""."""
    reason = unhealthy(failure, first)
    return f"These weights begin so themselves: {reason}" if reason else ""


def meters_to_json() -> list[dict[str, str]]:
    """What each figure means, as the tab explains it."""
    return [{"label": meter.label, "hint": meter.hint} for meter in METERS.values()]
