"""The calls by name of the tab "When it fails": `/failure` and `/alignment`."""

import gradio as gr

from nestar.settings import SampleSettings, SettingsError, check_choice
from nestar.ui.answers import fetched, sentences
from nestar.ui.laboratory import PICTURES, Laboratory
from nestar.ui.runs import SAMPLER, Runs

MOST_PICTURES = 4 * PICTURES
"""Of one call of `/alignment`."""


def bind(laboratory: Laboratory, runs: Runs, page: gr.Blocks, first: SampleSettings) -> None:
    """Bind the calls inside the page's blocks; `first` are their defaults."""
    no_velocities = laboratory.why_no_velocities()

    # gr.api reads the annotations, and one JSON object is what each yield sends.
    def provoke(
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
                    fetched(laboratory.pipeline.fetch(settings), page, cancel)
                yield from laboratory.provoke(found, sides, cancel)

    def alignment(request: gr.Request, nesting: str = "", pictures: int = PICTURES) -> dict:
        """How far neighbouring modules' velocities are apart on the earlier one's last patch, of held-out
        pictures, for the weights named by `nesting` (default: the first that the tab compares). Streams
        lines, one a pair of modules, of points t, difference (mean squared), cosine, error_former,
        error_latter."""
        with sentences():
            if no_velocities:
                raise SettingsError(no_velocities)
            several = tuple(name for name, each in laboratory.pipeline.nestings.items() if each.modules > 1)
            name = check_choice("nesting", nesting, several) if nesting else laboratory.comparable()[0]
            if isinstance(pictures, bool) or pictures not in range(1, MOST_PICTURES + 1):
                raise SettingsError(f"pictures must be a whole number from 1 to {MOST_PICTURES}.")
            with runs.run(request) as cancel:
                fetched(laboratory.pipeline.models.fetch(name), page, cancel)
                yield from laboratory.alignment([name], int(pictures), cancel)

    gr.api(provoke, api_name="failure", **SAMPLER)
    gr.api(alignment, api_name="alignment", **SAMPLER)
