"""The Generate tab: choose a class, watch the modules build its picture, replay every patch, keep it."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import gradio as gr
import torch

from nestar import keepsakes
from nestar.data import tiny_worlds
from nestar.data.imagenet import other_names
from nestar.images import to_pil
from nestar.model import WeightsError
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import (
    MAX_SEED,
    RANGES,
    SOLVER_CALLS,
    SampleSettings,
    SettingsError,
    by_name,
    find_nesting,
    typed,
)
from nestar.ui import generate_api
from nestar.ui.answers import fetching, place_of, refused, remark, unseen_answers
from nestar.ui.assets import asset, scripts, tells, template_text
from nestar.ui.doors import said
from nestar.ui.frames import data_uri, plans_to_json, to_uri
from nestar.ui.grown import Grown
from nestar.ui.kept import KeptRuns
from nestar.ui.runs import SAMPLER, Runs, waiting_calls

log = logging.getLogger(__name__)

PART = "generate"
K_POSITIONS = (2, 4, 8, 16, 32, 64)
ORDER_POSITIONS = ("lattice", "raster")
# What the sliders span, and their step; the number fields beside them take all of RANGES.
SLIDERS = {"steps": (1, 100, 1), "temperature": (0.0, 1.5, 0.05), "cfg": (1.0, 6.0, 0.1)}
DEFAULTS = SampleSettings(class_name="")
# What a visitor sets beside the class, and the names that all of it has in a share link.
CONTROLS = ("k", "order", "steps", "temperature", "cfg", "seed")
ON_GENERATE = "on_generate"
"""The event's function by name, as Gradio tells calls that wait."""
LINK_NAMES = {"class": "class_name"} | {name: name for name in CONTROLS}
# Of a stranger's file, no more than this many characters are repeated.
MAX_CAVEAT = 120
# The run that stands on the page before the first click.
FIRST_CLASS = "sailboat"
FIRST_SEED = 38  # by day: its picture is bright enough to be read at a glance, at every size
THUMBNAIL_SIDE = 96
# The stage's scripts: what they share with other panels, then its own.
STAGE = (
    "token_map.js",
    "norm_plot.js",
    "keepsake.js",
    "stops.js",
    "stage_view.js",
    "stage.js",
    "stage_keep.js",
)
# More classes than this are searched, not looked through.
AT_A_GLANCE = 24
# Any Tiny World does for a class's small picture; these are the same on every start.
THUMBNAIL_SEED = 7


def thumbnail(class_name: str) -> str:
    """A small Tiny World of that class as a data URI, or "" for a class that Tiny Worlds has not."""
    if class_name not in tiny_worlds.CLASSES:
        return ""
    class_ids_B = torch.tensor([tiny_worlds.CLASSES.index(class_name)])
    scene = tiny_worlds.draw(class_ids_B, torch.tensor([THUMBNAIL_SEED]), size=THUMBNAIL_SIDE)
    return data_uri(to_pil(scene.images)[0])


def class_cards(classes: tuple[str, ...]) -> str:
    """The class chooser: one radio button a class, as a card with its name and picture; of more classes than
    one sees at a glance, a field to search them by any of their names."""
    cards = []
    others = other_names(classes)
    for name in classes:
        source = thumbnail(name)
        # The name stands beside it, so the picture is decoration to a screen reader.
        sides = f'width="{THUMBNAIL_SIDE}" height="{THUMBNAIL_SIDE}"'
        picture = f'<img src="{source}" alt="" {sides}>' if source else '<i class="blank"></i>'
        also = template_text(", ".join(others.get(name, ())))
        cards.append(
            f'<label class="card" data-others="{also}">'
            f'<input type="radio" name="nestar-class" value="{template_text(name)}">'
            f"{picture}<span>{template_text(name)}</span></label>"
        )
    text = asset("classes_many.html" if len(classes) > AT_A_GLANCE else "classes.html")
    return text.replace("<!-- count -->", f"{len(classes):,}").replace("<!-- cards -->", "".join(cards))


def shown_order(pipeline: NestARPipeline) -> str:
    """The token order of the page's runs: the default one, or another if the checkpoint has only that.

    Raises:
        WeightsError: the checkpoint has nothing that makes more than one patch.
    """
    orders = [nesting.order for nesting in pipeline.nestings.values() if nesting.k > 1]
    if not orders:
        raise WeightsError(
            f"{pipeline.shown_origin} has no nesting with k > 1, so the page could show nothing growing."
        )
    return DEFAULTS.order if DEFAULTS.order in orders else orders[0]


def k_plans(pipeline: NestARPipeline) -> list[tuple[Nesting, bool]]:
    """The nestings that the order and k controls offer, and whether this checkpoint has weights for each."""
    some = next(iter(pipeline.nestings.values()))
    plans = []
    for order in dict.fromkeys((*ORDER_POSITIONS, shown_order(pipeline))):
        trained = {
            nesting.k: pipeline.nestings[find_nesting(pipeline.nestings, nesting.k, order)]
            for nesting in pipeline.nestings.values()
            if nesting.order == order and nesting.k > 1
        }
        # Of an order that no nesting but cells can have, only what there is.
        others = {k for k in K_POSITIONS if k <= some.n} if order in ORDER_POSITIONS else set()
        for k in sorted(others | set(trained)):
            nesting = trained.get(k) or Nesting.nested(some.height, some.width, k, order)
            plans.append((nesting, k in trained))
    return plans


def other_plans(pipeline: NestARPipeline) -> list[Nesting]:
    """Nestings with weights that these controls have no position for; a link or a picture may ask for one."""
    offered = {(nesting.k, nesting.order) for nesting, _ in k_plans(pipeline)}
    pairs = dict.fromkeys((nesting.k, nesting.order) for nesting in pipeline.nestings.values())
    names = [find_nesting(pipeline.nestings, *pair) for pair in pairs if pair not in offered]
    return [pipeline.nestings[name] for name in names]


def first_settings(pipeline: NestARPipeline) -> SampleSettings:
    """The settings that the page opens with: the defaults, as far as this checkpoint has them."""
    class_name = FIRST_CLASS if FIRST_CLASS in pipeline.classes else pipeline.classes[0]
    order = shown_order(pipeline)
    trained = [
        nesting.k for nesting, has_weights in k_plans(pipeline) if has_weights and nesting.order == order
    ]
    k = DEFAULTS.k if DEFAULTS.k in trained else trained[0]
    return pipeline.settings(class_name=class_name, k=k, order=order, seed=FIRST_SEED)


def controls(settings: SampleSettings) -> dict[str, Any]:
    """The dials' value. The seed is text: a browser's numbers end before the largest seeds."""
    return {name: getattr(settings, name) for name in CONTROLS} | {"seed": str(settings.seed)}


def solver_steps(solver: str) -> str:
    """What the page's steps are, for a reader."""
    calls = SOLVER_CALLS[solver]
    return f"steps of {solver.capitalize()}, {calls} passes each" if calls > 1 else "steps"


def caveat(kept: Mapping[str, Any], pipeline: NestARPipeline, first: SampleSettings) -> str:
    """A sentence on what a page that opens with `first` cannot restore of a picture, or ""."""
    plain = find_nesting(pipeline.nestings, kept["k"], kept["order"])
    others = [
        f"{name} {kept[name]}"
        for name in ("solver", "schedule")
        if kept.get(name, getattr(first, name)) != getattr(first, name)
    ]
    if "modules" in kept:
        others.append(f"modules 1 to {kept['modules']} of seed {kept.get('parent')}")
    if kept.get("nesting") not in (None, plain):
        others.append(f"the weights {kept['nesting']}")
    elif kept.get("weights") != pipeline.shown_origin:
        others.append(f"weights from {kept.get('weights')}")
    elif plain in pipeline.models.loaded and kept.get("fingerprint") not in (
        None,
        pipeline.models.fingerprint(plain),
    ):
        others.append(f"other {pipeline.shown_origin} weights")
    if not others:
        return ""
    return f" It was made with {' and '.join(others)[:MAX_CAVEAT]}, so this page's will differ."


def waiting_settings(pipeline: NestARPipeline, page: gr.Blocks) -> list[SampleSettings]:
    """Settings of the pictures that visitors wait for; what will be refused is left to its turn."""
    found = []
    for _, function, values in waiting_calls(page):
        with suppress(SettingsError, ValueError):
            if function == ON_GENERATE:
                class_name, dials = values
                found.append(pipeline.settings(class_name=class_name, **by_name(dials, CONTROLS)))
            elif function == generate_api.GENERATE:
                found.append(pipeline.settings(**dict(zip(generate_api.NAMES, values, strict=True))))
    return found


class Parts(NamedTuple):
    """The tab's components. `answers` shows nothing itself: it is what the server says beside runs, a
    sentence or a place in the queue."""

    classes: gr.HTML
    generate_button: gr.Button
    stop_button: gr.Button
    stage: gr.HTML
    dials: gr.HTML
    answers: gr.HTML


def lay_out(
    pipeline: NestARPipeline,
    first: SampleSettings,
    first_run: Mapping[str, Any],
    animation_of: Callable[[str], Mapping[str, str]],
) -> Parts:
    """The tab, with a run that stands there already; `animation_of` is what its page's button asks."""
    # In the order in which a phone shows them: that of Tab and of screen readers. page.css places them.
    with gr.Row(elem_id="studio", equal_height=False):
        classes = gr.HTML(
            first.class_name,
            html_template=class_cards(pipeline.classes),
            js_on_load=asset("classes.js"),
            apply_default_css=False,
            elem_id="classes",
        )
        with gr.Row(elem_id="actions"):
            generate_button = gr.Button("Generate", variant="primary", elem_id="generate", min_width=80)
            stop_button = gr.Button("Stop", elem_id="stop", min_width=60)
        stage = gr.HTML(
            first_run,
            html_template=asset("stage.html"),
            js_on_load=scripts(*STAGE),
            apply_default_css=False,
            elem_id="stage",
            pace={"module": keepsakes.MODULE_MS, "frame": keepsakes.FRAME_MS},
            keepsake={
                "keyword": keepsakes.KEYWORD,
                "longest": keepsakes.MAX_TEXT,
                "chunks": keepsakes.MAX_CHUNKS,
            },
            link=LINK_NAMES,
            server_functions=[animation_of],
        )
        dials = gr.HTML(
            controls(first),
            html_template=asset("dials.html").replace("<!-- solver -->", solver_steps(first.solver)),
            js_on_load=scripts("fields.js", "controls.js", "dials.js"),
            apply_default_css=False,
            elem_id="dials",
            plans=plans_to_json(
                k_plans(pipeline),
                other_plans(pipeline),
                {name: pipeline.models.outline(name).images_said for name in pipeline.models},
            ),
            sliders=SLIDERS,
            ranges=RANGES,
            largest_seed=str(MAX_SEED),
            starts=generate_button.elem_id,
            rising=first.schedule == "linear",
        )
    answers = unseen_answers()
    return Parts(classes, generate_button, stop_button, stage, dials, answers)


def build(pipeline: NestARPipeline, runs: Runs) -> None:
    """Lay out the tab, compute the run shown on load, and bind the events, `/generate`, `/animation` and
    `/settings_of`."""
    first = first_settings(pipeline)
    page = gr.context.Context.root_block
    grown = Grown(pipeline, lambda: waiting_settings(pipeline, page))
    *_, first_run = grown.values(first, threading.Event())
    kept_runs = KeptRuns(first_run)

    def animation_of(run: str) -> dict[str, str]:
        """The growth of a run that is still kept, for the page's own button."""
        try:
            found = kept_runs.animation(run)
        except Exception:
            log.exception("The animation failed.")
            return {"message": "The animation could not be made. Try again in a moment."}
        if found is None:
            return {"message": "This run is no longer kept here: press Generate to make it again."}
        return {"uri": to_uri(found[0], "WEBP"), "name": found[1]}

    parts = lay_out(pipeline, first, first_run, animation_of)

    def on_generate(class_name: Any, values: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        try:
            settings = pipeline.settings(class_name=class_name, **by_name(values, CONTROLS))
            yield from fetching(pipeline.fetch(settings), page)
            with runs.run(request, PART) as cancel:
                for value in grown.values(settings, cancel):
                    if value["state"] == "finished":
                        kept_runs.keep(request.session_hash, value)
                    yield value
        except Exception as error:
            yield refused(error)

    def on_ask(request: gr.Request) -> dict[str, Any]:
        return place_of(PART, [ON_GENERATE], page, request)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    # Gradio tidies up after a run and would drop a click meanwhile, unsaid: the stage keeps to one at a time.
    again = {"trigger_mode": "multiple", **quiet, **SAMPLER}
    running = parts.generate_button.click(on_generate, [parts.classes, parts.dials], parts.stage, **again)
    # A call that the full queue turned away, or that broke, has no value to show: tell the stage by an event
    # of the document.
    running.failure(None, js=tells("failed"))
    # stop_in reaches the solver at once; cancels= also takes a call that still waits out of the queue.
    parts.stop_button.click(runs.stop_in(PART), queue=False, cancels=running, **quiet)
    parts.stop_button.click(None, js=tells("halted"))
    parts.stage.ask(on_ask, None, parts.answers, queue=False, **quiet)
    bind_restoring(pipeline, first, parts)
    generate_api.bind(pipeline, grown, runs, page, first)


def bind_restoring(pipeline: NestARPipeline, first: SampleSettings, parts: Parts) -> None:
    """Have dropped pictures and share links set the controls; what cannot be used changes nothing."""

    def restore(kept: Mapping[str, Any], remarked: Callable[[SampleSettings], str]) -> tuple[Any, Any, Any]:
        try:
            known = {name: kept[name] for name in ("class_name", *CONTROLS) if name in kept}
            settings = pipeline.settings(**known)
            return settings.class_name, controls(settings), remark(remarked(settings))
        except (SettingsError, WeightsError) as error:
            return gr.skip(), gr.skip(), remark(said(error), alarming=True)

    def on_picture(event: gr.EventData) -> tuple[Any, Any, Any]:
        """A saved picture was dropped; the browser has read the text of its chunk."""
        try:
            kept = keepsakes.parse(str(by_name(event._data, ["kept"]).get("kept")))
        except SettingsError as error:
            return gr.skip(), gr.skip(), remark(said(error), alarming=True)

        def restored(settings: SampleSettings) -> str:
            return (
                f"Restored: {settings.class_name}, k = {settings.k}, seed {settings.seed}. "
                f"Press Generate to see it.{caveat(kept | controls(settings), pipeline, first)}"
            )

        return restore(kept, restored)

    def on_link(request: gr.Request) -> tuple[Any, Any, Any]:
        """The page was opened; a share link says with which settings."""
        asked = dict(request.query_params)
        given = {LINK_NAMES[name]: value for name, value in asked.items() if name in LINK_NAMES}
        if not given:
            return gr.skip(), gr.skip(), gr.skip()
        numbers = {name: typed(given[name]) for name in ("k", "steps", "temperature", "cfg") if name in given}
        defaults = {"class_name": first.class_name} | controls(first)
        return restore(
            defaults | given | numbers,
            lambda settings: (
                "The settings in the address stand in the controls. Press Generate to see their picture."
            ),
        )

    quiet = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    restored = [parts.classes, parts.dials, parts.answers]
    for event in (  # each picture that is dropped counts, also while another is being read
        parts.stage.picture(on_picture, None, restored, trigger_mode="multiple", **quiet),
        gr.on(None, on_link, None, restored, **quiet),
    ):
        event.failure(None, js=tells("unrestored"))
