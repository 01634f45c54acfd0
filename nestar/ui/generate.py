"""The page's content: choose a class, watch the modules build its picture, replay every patch."""

import logging
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch

from nestar.data import tiny_worlds
from nestar.images import to_pil
from nestar.model import WeightsError
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import RANGES, SampleSettings, SettingsError
from nestar.ui.assets import asset, template_text
from nestar.ui.frames import data_uri, frame_to_json, nesting_to_json, plans_to_json, thin
from nestar.ui.runs import SAMPLER, Runs, streamer

log = logging.getLogger(__name__)

K_POSITIONS = (2, 4, 8, 16, 32, 64)
# What the sliders span, and their step; the number fields beside them take all of RANGES.
SLIDERS = {"steps": (1, 100, 1), "temperature": (0.0, 1.5, 0.05), "cfg": (1.0, 6.0, 0.1)}
DEFAULTS = SampleSettings(class_name="")
# The run that stands on the page before the first click.
FIRST_CLASS = "lighthouse"
THUMBNAIL_SIDE = 96
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
    """The class chooser: one radio button a class, as a card with its name and picture."""
    cards = []
    for name in classes:
        source = thumbnail(name)
        # The name stands beside it, so the picture is decoration to a screen reader.
        sides = f'width="{THUMBNAIL_SIDE}" height="{THUMBNAIL_SIDE}"'
        picture = f'<img src="{source}" alt="" {sides}>' if source else '<i class="blank"></i>'
        cards.append(
            f'<label class="card"><input type="radio" name="nestar-class" value="{template_text(name)}">'
            f"{picture}<span>{template_text(name)}</span></label>"
        )
    return asset("classes.html").replace("<!-- cards -->", "".join(cards))


def shown_order(pipeline: NestARPipeline) -> str:
    """The token order of the page's runs: the default one, or another if the checkpoint has only that.

    Raises:
        WeightsError: the checkpoint has nothing that makes more than one patch.
    """
    orders = [nesting.order for nesting in pipeline.nestings.values() if nesting.k > 1]
    if not orders:
        raise WeightsError(
            f"{pipeline.origin} has no nesting with k > 1, so the page could show nothing growing."
        )
    return DEFAULTS.order if DEFAULTS.order in orders else orders[0]


def k_plans(pipeline: NestARPipeline) -> list[tuple[Nesting, bool]]:
    """The nestings that the k slider offers, and whether this checkpoint has weights for each."""
    order = shown_order(pipeline)
    some = next(iter(pipeline.nestings.values()))
    trained = {
        nesting.k for nesting in pipeline.nestings.values() if nesting.order == order and nesting.k > 1
    }
    positions = sorted({k for k in K_POSITIONS if k <= some.n} | trained)
    return [(Nesting.nested(some.height, some.width, k), k in trained) for k in positions]


def first_settings(pipeline: NestARPipeline) -> SampleSettings:
    """The settings that the page opens with: the defaults, as far as this checkpoint has them."""
    class_name = FIRST_CLASS if FIRST_CLASS in pipeline.classes else pipeline.classes[0]
    trained = [nesting.k for nesting, has_weights in k_plans(pipeline) if has_weights]
    k = DEFAULTS.k if DEFAULTS.k in trained else trained[0]
    return pipeline.settings(class_name=class_name, k=k, order=shown_order(pipeline))


def run_id() -> str:
    """A name for a run. Numbers would start again with the server, while a page left open keeps its last."""
    return uuid.uuid4().hex


def refusal(message: str) -> dict[str, Any]:
    """A stage value that shows one sentence and leaves the picture before it standing."""
    return {"run": run_id(), "state": "refused", "message": message, "frames": []}


def build(pipeline: NestARPipeline, demo: gr.Blocks) -> None:
    """Lay out the page inside `demo`, compute the run shown on load, and bind the events and `/generate`."""
    runs = Runs()
    stream = streamer(pipeline)
    first = first_settings(pipeline)

    def run_to_json(settings: SampleSettings, cancel: threading.Event) -> Iterator[dict[str, Any]]:
        """The stage's value after every patch: all frames so far, so that merged updates lose nothing."""
        value = {
            "run": run_id(),
            "state": "running",
            "settings": vars(settings),
            "nesting": nesting_to_json(pipeline.plan(settings.k, settings.order, settings.nesting), settings),
            "device": str(pipeline.device),
        }
        frames: list[dict[str, Any]] = []
        yield value | {"frames": []}
        for frame in stream(settings, cancel):
            frames.append(frame_to_json(frame))
            thin(frames)
            yield value | {"state": "finished" if frame.final else "running", "frames": list(frames)}
        if not frames or not frames[-1]["final"]:
            yield value | {"state": "stopped", "frames": list(frames)}

    *_, first_run = run_to_json(first, threading.Event())

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
            js_on_load=asset("token_map.js") + asset("stage.js"),
            apply_default_css=False,
            elem_id="stage",
        )
        dials = gr.HTML(
            {name: getattr(first, name) for name in ("k", "steps", "temperature", "cfg", "seed")},
            html_template=asset("dials.html"),
            js_on_load=asset("dials.js"),
            apply_default_css=False,
            elem_id="dials",
            plans=plans_to_json(k_plans(pipeline)),
            sliders=SLIDERS,
            ranges=RANGES,
        )

    def on_generate(class_name: str, values: dict[str, Any], request: gr.Request) -> Iterator[dict[str, Any]]:
        try:
            settings = pipeline.settings(class_name=class_name, order=first.order, **values)
            with runs.run(request) as cancel:
                yield from run_to_json(settings, cancel)
        except (SettingsError, WeightsError) as error:
            yield refusal(str(error))
        except Exception:
            log.exception("The run failed.")
            yield refusal("The run failed inside the model; the server's log says why.")

    def on_stop(request: gr.Request) -> None:
        runs.stop(request)

    # gr.api reads the annotations, and one JSON object is what each yield sends.
    def generate(
        request: gr.Request,
        class_name: str = first.class_name,
        k: int = first.k,
        steps: int = first.steps,
        temperature: float = first.temperature,
        cfg: float = first.cfg,
        seed: int = first.seed,
    ) -> dict:
        """Grow one picture. Streams one JSON object a patch: image (a data URI, PNG when final), module,
        patch, known, evaluations, function_evaluations, seconds, module_done, final."""
        try:
            values = {"k": k, "steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed}
            settings = pipeline.settings(class_name=class_name, order=first.order, **values)
            with runs.run(request) as cancel:
                for frame in stream(settings, cancel):
                    yield frame_to_json(frame)
        except (SettingsError, WeightsError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    running = generate_button.click(
        on_generate, [classes, dials], stage, show_progress="hidden", api_visibility="private", **SAMPLER
    )
    # A call that the full queue turned away, or that broke, has no value to show: tell the stage by an event
    # of the document.
    running.failure(None, js="() => { document.dispatchEvent(new Event('nestar:failed')); }")
    # on_stop reaches the solver at once; cancels= also takes a call that still waits out of the queue.
    stop_button.click(on_stop, queue=False, show_progress="hidden", api_visibility="private", cancels=running)
    demo.unload(on_stop)
    gr.api(generate, api_name="generate", **SAMPLER)
