"""The tab "Race": one class and seed through NestAR and the methods it is compared with, side by side."""

import math
from collections.abc import Iterator
from typing import Any

import gradio as gr

from nestar.pipeline import NestARPipeline
from nestar.settings import SOLVER_CALLS, SampleSettings, SettingsError, by_name
from nestar.ui import race_api
from nestar.ui.answers import fetching, place_of, told, unseen_answers
from nestar.ui.assets import asset, scripts, tells
from nestar.ui.frames import nesting_to_json, spaced
from nestar.ui.generate import first_settings
from nestar.ui.lanes import (
    IDEAS,
    LIMIT_SECONDS,
    MAX_PAUSED,
    SLICE_SECONDS,
    Entrant,
    PausedRaces,
    Race,
    Starter,
)
from nestar.ui.runs import SAMPLER, Runs

PART = "race"


def lay_out(starter: Starter, first: SampleSettings, first_k: int | None) -> gr.HTML:
    """The tab's panel; `first_k` is None where there are no weights of a nested kind."""
    return gr.HTML(
        None,
        html_template=asset("race.html"),
        js_on_load=scripts("token_map.js", "fields.js", "stops.js", "calls.js", "race.js"),
        apply_default_css=False,
        elem_id="race",
        classes=starter.pipeline.classes,
        first={"class_name": first.class_name, "k": first_k, "steps": first.steps, "seed": str(first.seed)},
        entrants=entrants_to_json(starter.entrants, first),
        rules={
            "together": starter.together,
            "limit": LIMIT_SECONDS,
            "slice": SLICE_SECONDS,
            "most": MAX_PAUSED,
            "calls": SOLVER_CALLS[first.solver],
            "device": str(starter.pipeline.device),
            "rising": first.schedule == "linear",
        },
    )


def build(pipeline: NestARPipeline, runs: Runs, page: gr.Blocks) -> None:
    """Lay out the tab on `page`, and bind its events and `/race`."""
    first, starter, paused = first_settings(pipeline), Starter(pipeline), PausedRaces()
    first_k = first.k if "nested" in starter.entrants else None
    panel = lay_out(starter, first, first_k)
    answers = unseen_answers()

    def slice_of(race: Race, request: gr.Request, seconds: float, warm: bool) -> Iterator[dict[str, Any]]:
        """Work on a race for a while, then put it aside if it has not ended."""
        try:
            with runs.run(request, PART) as cancel:
                yield race.to_json()
                if warm:
                    starter.warm_up(race, cancel)
                for _ in spaced(race.go(cancel, seconds)):
                    yield race.to_json()
        except BaseException:  # closed while it waited at a yield, too
            race.close()
            raise
        if race.running:
            paused.put(request.session_hash, race)
            yield race.to_json() | {"state": "paused"}
        else:
            race.close()
            yield race.to_json()

    def on_race(event: gr.EventData, request: gr.Request) -> Iterator[dict[str, Any]]:
        paused.drop(request)

        def begin() -> Iterator[dict[str, Any]]:
            asked = by_name(event._data, ("class_name", "k", "steps", "seed"))
            race = starter.race(**{"k": first_k} | asked)
            for lane in race.lanes:
                yield from fetching(pipeline.models.fetch(lane.entrant.weights), page)
            # Whole where lanes follow one another: a stream put aside would keep the GPU. Whole, too, where
            # no more can be put aside: nobody's race is given up for another's.
            whole = not starter.together or paused.full
            yield from slice_of(race, request, math.inf if whole else SLICE_SECONDS, warm=True)

        yield from told(begin)

    def on_lap(event: gr.EventData, request: gr.Request) -> Iterator[dict[str, Any]]:
        def go_on() -> Iterator[dict[str, Any]]:
            race = paused.take(request.session_hash, by_name(event._data, ["run"]).get("run"))
            if race is None:
                raise SettingsError("The race was given up meanwhile. Start it again.")
            yield from slice_of(race, request, SLICE_SECONDS, warm=False)

        yield from told(go_on)

    stop = runs.stop_in(PART)

    def on_stop(request: gr.Request) -> None:
        stop(request)
        paused.drop(request)

    def on_ask(request: gr.Request) -> dict[str, Any]:
        return place_of(PART, [on_race.__name__, on_lap.__name__], page, request)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    # The browser may ask again while it still tidies up after a slice that ended, or a run that was stopped.
    again = {"trigger_mode": "multiple", **quiet, **SAMPLER}
    racing = panel.race(on_race, None, panel, **again)
    lapping = panel.lap(on_lap, None, panel, **again)
    for each in (racing, lapping):
        each.success(None, js=tells("race-done"))
        each.failure(None, js=tells("race-failed"))
    panel.halt(on_stop, queue=False, cancels=[racing, lapping], **quiet)
    panel.halt(None, js=tells("race-halted"))
    panel.ask(on_ask, None, answers, queue=False, **quiet)
    page.unload(paused.drop)
    race_api.bind(starter, runs, page, first)


def entrants_to_json(found: dict[str, list[Entrant]], settings: SampleSettings) -> dict[str, Any]:
    """By kind, what the tab says of each before it runs, token map included."""
    return {
        kind: [
            {
                "weights": entrant.weights,
                "label": entrant.label,
                "idea": IDEAS[kind],
                "parameters": entrant.parameters,
                "images": entrant.images,
                "nesting": nesting_to_json(entrant.nesting, settings),
            }
            for entrant in own
        ]
        for kind, own in found.items()
    }
