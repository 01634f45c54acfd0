"""The Diversity tab: many seeds at once, what they share, what each module decides, and the nearest real
picture beside any of them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr

from nestar import batches, neighbours
from nestar.evaluation.diversity import FeatureSpace, stored_results
from nestar.model import WeightsError
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import MAX_SEED, RANGES, SampleSettings, SettingsError, by_name
from nestar.ui import diversity_api
from nestar.ui.answers import fetched, fetching, place_of, refused, run_id, told, unseen_answers
from nestar.ui.assets import asset, scripts, tells
from nestar.ui.diversity_api import SIBLINGS
from nestar.ui.diversity_desk import ASKED, MEASURED_AT, PARENTS, Desk
from nestar.ui.frames import paced
from nestar.ui.generate import SLIDERS, first_settings
from nestar.ui.runs import SAMPLER, Runs

log = logging.getLogger(__name__)

PART = "diversity"
COUNTS = (4, 9, 16)
PANEL = ("stops.js", "calls.js", "diversity_panel.js")
SHEET = (*PANEL, "diversity_sheet.js")


def choices(pipeline: NestARPipeline) -> list[dict[str, str]]:
    """Nestings to choose from: the paper's kind, each in its usual training, or all there are."""
    nested = {
        name: each for name, each in pipeline.nestings.items() if each.kind == "nested" and name == each.name
    }
    offered = nested or pipeline.nestings
    orders = {nesting.order for nesting in offered.values()}
    return [{"name": name, "label": _label(name, each, len(orders) > 1)} for name, each in offered.items()]


def _label(name: str, nesting: Nesting, with_order: bool) -> str:
    if nesting.kind != "nested":
        return name
    return f"k = {nesting.k}, {nesting.order}" if with_order else f"k = {nesting.k}"


def first_controls(pipeline: NestARPipeline) -> dict[str, Any]:
    """What the controls say when the page opens."""
    names, first = [choice["name"] for choice in choices(pipeline)], first_settings(pipeline)
    usual = f"k{SampleSettings.k}-{SampleSettings.order}"
    return {
        "class_name": first.class_name,
        "nesting": usual if usual in names else names[0],
        "temperature": first.temperature,
        "cfg": first.cfg,
        "steps": first.steps,
        "seed": SampleSettings.seed,
        "count": max(COUNTS),
    }


def committed(pipeline: NestARPipeline, space: FeatureSpace) -> dict[str, Any]:
    """What `python -m benchmarks.diversity` has measured on these very weights, by nesting."""
    found = {}
    for name, model in pipeline.models.loaded.items():  # of the others, what is asked for is measured
        try:
            stored = stored_results(name, model, pipeline.tokenizer, space)
        except WeightsError as error:
            log.warning("%s", error)
            continue
        if stored is not None:
            found[name] = {key: stored[key] for key in ("mean", "classes", "parents", "siblings")}
            found[name]["settings"] = {key: stored[key] for key in MEASURED_AT}
    return found


class Panels(NamedTuple):
    """The tab's components. `answers` shows nothing itself: it tells places in the queue."""

    controls: gr.HTML
    generate_button: gr.Button
    stop_button: gr.Button
    grid: gr.HTML
    nearest: gr.HTML
    distances: gr.HTML
    keep: gr.HTML
    resample_button: gr.Button
    siblings: gr.HTML
    explained: gr.HTML
    measure_button: gr.Button
    sweep: gr.HTML
    sweep_button: gr.Button
    answers: gr.HTML


def panel(template: str, script: tuple[str, ...], elem_id: str, **props: Any) -> gr.HTML:
    return gr.HTML(
        props.pop("value", None),
        html_template=asset(template),
        js_on_load=scripts(*script),
        apply_default_css=False,
        elem_id=elem_id,
        **props,
    )


def lay_out(pipeline: NestARPipeline, desk: Desk, first: Mapping[str, Any]) -> Panels:
    """The tab; `first` is what its controls say when the page opens."""
    # In the order in which a phone shows them; diversity.css places them beside one another.
    with gr.Row(elem_id="diversity", equal_height=False):
        with gr.Column(elem_id="diversity-side", min_width=0):
            controls = panel(
                "diversity_controls.html",
                ("fields.js", "controls.js", "diversity_controls.js"),
                "diversity-controls",
                value=first,
                classes=list(pipeline.classes),
                nestings=choices(pipeline),
                counts=COUNTS,
                sliders=SLIDERS,
                ranges=RANGES,
                largest_seed=str(MAX_SEED),
                starts="diversity-generate",
            )
            with gr.Row(elem_id="diversity-actions"):
                generate_button = gr.Button(
                    "Generate", variant="primary", elem_id="diversity-generate", min_width=80
                )
                stop_button = gr.Button("Stop", elem_id="diversity-stop", min_width=60)
        grid = panel("diversity_grid.html", (*SHEET, "diversity_grid.js"), "diversity-grid")
        nearest = panel("diversity_nearest.html", (*PANEL, "diversity_nearest.js"), "diversity-nearest")
        distances = panel(
            "diversity_distances.html", (*PANEL, "diversity_distances.js"), "diversity-distances"
        )
        with gr.Column(elem_id="diversity-family", min_width=0):
            keep = panel(
                "diversity_keep.html",
                ("diversity_keep.js",),
                "diversity-keep",
                value={"modules": 1, "round": 0},
            )
            resample_button = gr.Button("Resample", elem_id="diversity-resample", min_width=80)
            siblings = panel(
                "diversity_siblings.html", (*SHEET, "diversity_siblings.js"), "diversity-siblings"
            )
        with gr.Column(elem_id="diversity-modules", min_width=0):
            explained = panel(
                "diversity_explained.html",
                (*PANEL, "token_map.js", "diversity_explained.js"),
                "diversity-explained",
                committed=committed(pipeline, desk.space),
                nestings=choices(pipeline),
                parents=PARENTS,
                first={"nesting": first["nesting"], "class_name": first["class_name"]},
            )
            measure_button = gr.Button("Measure", elem_id="diversity-measure", min_width=80)
        with gr.Column(elem_id="diversity-heat", min_width=0):
            sweep = panel(
                "diversity_sweep.html", (*SHEET, "diversity_sweep.js"), "diversity-sweep", sweep=batches.SWEEP
            )
            sweep_button = gr.Button("Sweep temperature", elem_id="diversity-warm", min_width=80)
        answers = unseen_answers()
    return Panels(
        controls,
        generate_button,
        stop_button,
        grid,
        nearest,
        distances,
        keep,
        resample_button,
        siblings,
        explained,
        measure_button,
        sweep,
        sweep_button,
        answers,
    )


def build(pipeline: NestARPipeline, runs: Runs) -> None:
    """Lay out the tab and bind its events and `/diversity`, `/siblings`, `/temperatures`, `/explained` and
    `/nearest`. Nothing is computed before the visitor asks."""
    desk = Desk(pipeline, neighbours.FOLDER)
    page = gr.context.Context.root_block
    first = first_controls(pipeline)
    panels = lay_out(pipeline, desk, first)

    def settings_of(values: Any, **others: Any) -> SampleSettings:
        """Checked settings from what a browser sent."""
        given = by_name(values, (*ASKED, "count"))
        return pipeline.settings(**{"class_name": first["class_name"]} | given | others)

    def on_grid(values: Any, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        try:
            settings = settings_of(values)
            rows = batches.consecutive(settings)
            for word in fetching(pipeline.fetch(settings), page):
                yield word, gr.skip()
            with runs.run(request, PART) as cancel:
                for value in paced(desk.sheets(settings, rows, cancel)):
                    yield value, gr.skip()
                if value["state"] == "finished" and settings.count > 1:
                    yield gr.skip(), desk.distances(settings, rows, cancel)
        except Exception as error:
            yield refused(error), gr.skip()

    def on_siblings(values: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        def work() -> Iterator[dict[str, Any]]:
            spec = values.get("sample") if isinstance(values, Mapping) else None
            if not spec:
                raise SettingsError("Choose a picture in the grid first: it becomes the parent.")
            chosen = settings_of(spec)
            # Never the parent's own seed: that sibling would be its parent again.
            (own,) = batches.seeds_from(chosen.seed + 1 + SIBLINGS * _round(values.get("round")), 1)
            settings = replace(chosen, seed=own, count=SIBLINGS)
            rows = batches.siblings(settings, pipeline.plan_of(settings), chosen.seed, values.get("modules"))
            yield from fetching(pipeline.fetch(settings), page)
            with runs.run(request, PART) as cancel:
                yield from paced(desk.sheets(settings, rows, cancel))

        yield from told(work)

    def on_sweep(values: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        def work() -> Iterator[dict[str, Any]]:
            settings = settings_of(values, count=1)
            yield from fetching(pipeline.fetch(settings), page)
            with runs.run(request, PART) as cancel:
                yield from paced(desk.sheets(settings, batches.temperature_row(settings), cancel))

        yield from told(work)

    def on_explain(values: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        def work() -> Iterator[dict[str, Any]]:
            settings = settings_of(values, count=1)
            yield from fetching(pipeline.fetch(settings), page)
            with runs.run(request, PART) as cancel:
                yield from paced(desk.explained(settings, cancel))

        yield from told(work)

    def on_nearest(event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        spec = event._data if isinstance(event._data, Mapping) else {}
        mark = {"mark": str(spec.get("mark", ""))[:80]}
        try:
            settings, parent = settings_of(spec, count=1), spec.get("parent")
            kept = 0 if parent is None else spec.get("modules")
            sample = desk.sample(settings, parent, kept)
            with runs.run(request, PART) as cancel:
                fetched(pipeline.fetch(sample.settings), page, cancel)
                found = desk.nearest(sample, cancel)
            return {"run": run_id(), "state": "finished", **mark, **found}
        except Exception as error:
            return refused(error) | mark

    functions = {
        "grid": on_grid,
        "siblings": on_siblings,
        "explained": on_explain,
        "sweep": on_sweep,
        "nearest": on_nearest,
    }

    def on_ask(event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        call = str(event._data.get("call")) if isinstance(event._data, Mapping) else ""
        asked = [each.__name__ for name, each in functions.items() if f"{PART}-{name}" == call]
        return place_of(call[:80], asked, page, request)

    private = {"show_progress": "hidden", "api_visibility": "private"}
    # The panels themselves see to it that one call of theirs at a time is under way.
    again = {"trigger_mode": "multiple", **private, **SAMPLER}
    computing = {
        "grid": panels.generate_button.click(
            on_grid, panels.controls, [panels.grid, panels.distances], **again
        ),
        "siblings": panels.resample_button.click(on_siblings, panels.keep, panels.siblings, **again),
        "explained": panels.measure_button.click(on_explain, panels.controls, panels.explained, **again),
        "sweep": panels.sweep_button.click(on_sweep, panels.controls, panels.sweep, **again),
        "nearest": panels.nearest.nearest(on_nearest, None, panels.nearest, **again),
    }
    for name, event in computing.items():
        # A call that the full queue turned away, or that broke, has no value to show.
        event.failure(None, js=tells(f"diversity-{name}-failed"))
    panels.controls.ask(on_ask, None, panels.answers, queue=False, **private)
    panels.stop_button.click(runs.stop_in(PART), queue=False, cancels=list(computing.values()), **private)
    panels.stop_button.click(None, js=tells("diversity-halted"))
    shown = pipeline.nestings[first["nesting"]]
    usual = pipeline.settings(class_name=first["class_name"], k=shown.k, order=shown.order)
    diversity_api.bind(pipeline, desk, runs, page, usual)


def _round(value: Any) -> int:
    """How many times siblings of this parent have been made, as the browser counts."""
    return value % 1_000_000 if isinstance(value, int) and not isinstance(value, bool) else 0
