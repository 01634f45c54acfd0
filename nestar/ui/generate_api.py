"""The Generate tab's calls by name: `/generate`, `/animation`, `/settings_of`."""

from functools import partial

import gradio as gr

from nestar import keepsakes
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, SettingsError
from nestar.ui.answers import sentences, settings_here
from nestar.ui.frames import from_uri, to_uri
from nestar.ui.grown import Grown
from nestar.ui.kept import encode
from nestar.ui.runs import SAMPLER, Runs

GENERATE = "generate"
NAMES = ("class_name", "k", "steps", "temperature", "cfg", "seed", "order")
"""Parameters of `/generate`, in their order."""


def bind(pipeline: NestARPipeline, grown: Grown, runs: Runs, page: gr.Blocks, first: SampleSettings) -> None:
    """Bind the calls inside the page's blocks; `first` are their defaults."""

    checked = partial(settings_here, pipeline, page)

    # gr.api reads the annotations, and one JSON object is what each yield sends.
    def generate(
        request: gr.Request,
        class_name: str = first.class_name,
        k: int = first.k,
        steps: int = first.steps,
        temperature: float = first.temperature,
        cfg: float = first.cfg,
        seed: int = first.seed,
        order: str = first.order,
    ) -> dict:
        """Grow one picture. Streams one JSON object a patch: image (a data URI; PNG when final, with the
        settings inside), module, patch, known, evaluations, function_evaluations, seconds, module_done,
        final, norms (of the velocity, a solver step each), batch (pictures made at once), device."""
        dials = {"steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed}
        with sentences(), runs.run(request) as cancel:
            settings = checked(cancel, class_name=class_name, k=k, order=order, **dials)
            yield from grown.frames(settings, cancel)

    def animation(
        request: gr.Request,
        class_name: str = first.class_name,
        k: int = first.k,
        steps: int = first.steps,
        temperature: float = first.temperature,
        cfg: float = first.cfg,
        seed: int = first.seed,
        order: str = first.order,
    ) -> str:
        """Grow one picture and return its growth as an animated WebP, a data URI."""
        dials = {"steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed}
        with sentences():
            with runs.run(request) as cancel:
                settings = checked(cancel, class_name=class_name, k=k, order=order, **dials)
                *_, value = grown.values(settings, cancel)
            if value["state"] != "finished":
                raise SettingsError("The run was stopped before its end.")
            return to_uri(encode(value), "WEBP")

    def settings_of(picture: str) -> dict:
        """The settings inside a PNG that this page or the command line saved. `picture` is a data URI, or the
        file in base64."""
        with sentences():
            try:
                data = from_uri(picture)
            except (ValueError, AttributeError):  # no base64, no text
                raise SettingsError("picture must be a PNG as a data URI or in base64.") from None
            kept = keepsakes.read_png(data)
            settings = pipeline.settings(**keepsakes.values(kept))
            weights, fingerprint = (str(kept.get(name, "")) for name in ("weights", "fingerprint"))
            return keepsakes.about(settings, weights, fingerprint) | keepsakes.shared(kept)

    gr.api(generate, api_name=GENERATE, **SAMPLER)
    gr.api(animation, api_name="animation", **SAMPLER)
    gr.api(settings_of, api_name="settings_of", queue=False)
