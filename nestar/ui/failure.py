"""The tab "When it fails": what goes wrong, provoked beside a healthy run, and what coordination aligns."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, SettingsError, by_name, check_choice
from nestar.ui.answers import fetched, fetching, place_of, sentences, told, unseen_answers
from nestar.ui.assets import asset, scripts, tells
from nestar.ui.generate import first_settings
from nestar.ui.laboratory import METERS, PICTURES, Laboratory, experiment_panels
from nestar.ui.runs import SAMPLER, Runs
from nestar.ui.signatures import Failure, unequal, unhealthy, why_not

ROWS, PANEL = "failure", "alignment"
MOST_PICTURES = 4 * PICTURES
"""Of one call of `/alignment`."""


def build(pipeline: NestARPipeline, runs: Runs, page: gr.Blocks) -> None:
    """Lay out the tab on `page`, and bind its events, `/failure` and `/alignment`."""
    first, laboratory = first_settings(pipeline), Laboratory(pipeline)
    no_velocities = laboratory.why_no_velocities()
    rows = gr.HTML(
        None,
        html_template=asset("failure.html"),
        js_on_load=scripts("fields.js", "stops.js", "calls.js", "failure.js"),
        apply_default_css=False,
        elem_id="failures",
        classes=pipeline.classes,
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

    # gr.api reads the annotations, and one JSON object is what each yield sends.
    def failure_api(
        request: gr.Request,
        failure: str = next(iter(laboratory.failures)),
        class_name: str = first.class_name,
        k: int = first.k,
        steps: int = first.steps,
        temperature: float = first.temperature,
        cfg: float = first.cfg,
        seed: int = first.seed,
    ) -> dict:
        """Provoke a failure beside a healthy run of these settings: steps-1, steps-2, steps-3, cold, hot,
        guidance, separate, or k. Streams one JSON object a patch: state, sides (label, images as data URIs,
        known), and at the end figures (of both sides) and consequence, a sentence."""
        values = {"class_name": class_name, "k": k, "steps": steps, "temperature": temperature, "cfg": cfg}
        with sentences():
            found = laboratory.find(failure)
            sides = laboratory.sides(found, order=first.order, seed=seed, **values)
            with runs.run(request) as cancel:
                for settings in sides:
                    fetched(pipeline.fetch(settings), page, cancel)
                yield from laboratory.provoke(found, sides, cancel)

    def alignment_api(request: gr.Request, nesting: str = "", pictures: int = PICTURES) -> dict:
        """How far neighbouring modules' velocities are apart on the earlier one's last patch, of held-out
        pictures, for the weights named by `nesting` (default: the first that the tab compares). Streams
        lines, one a pair of modules, of points t, difference (mean squared), cosine, error_former,
        error_latter."""
        with sentences():
            if no_velocities:
                raise SettingsError(no_velocities)
            several = tuple(name for name, each in pipeline.nestings.items() if each.modules > 1)
            name = check_choice("nesting", nesting, several) if nesting else laboratory.comparable()[0]
            if isinstance(pictures, bool) or pictures not in range(1, MOST_PICTURES + 1):
                raise SettingsError(f"pictures must be a whole number from 1 to {MOST_PICTURES}.")
            with runs.run(request) as cancel:
                fetched(pipeline.models.fetch(name), page, cancel)
                yield from laboratory.alignment([name], int(pictures), cancel)

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
    gr.api(failure_api, api_name="failure", **SAMPLER)
    gr.api(alignment_api, api_name="alignment", **SAMPLER)


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
