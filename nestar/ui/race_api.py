"""The Race tab's call by name: `/race`."""

import math

import gradio as gr

from nestar.settings import SampleSettings
from nestar.ui.answers import fetched, sentences
from nestar.ui.lanes import Starter
from nestar.ui.runs import SAMPLER, Runs


def bind(starter: Starter, runs: Runs, page: gr.Blocks, first: SampleSettings) -> None:
    """Bind the call inside the page's blocks; `first` are its defaults."""

    # gr.api reads the annotations, and one JSON object is what each yield sends.
    def race(
        request: gr.Request,
        class_name: str = first.class_name,
        k: int = first.k,
        steps: int = first.steps,
        temperature: float = first.temperature,
        cfg: float = first.cfg,
        seed: int = first.seed,
    ) -> dict:
        """Race NestAR against the other methods with weights. Streams one JSON object a patch: run, state,
        settings, device, lanes; of each lane state, image (a data URI, PNG when finished), seconds (of
        sampling), known, evaluations, function_evaluations, tokens_processed, and `of`, their ends."""
        values = {"class_name": class_name, "steps": steps, "temperature": temperature, "cfg": cfg}
        with sentences():
            entered = starter.race(k=k, seed=seed, **values)
            try:
                with runs.run(request) as cancel:
                    for lane in entered.lanes:
                        fetched(starter.pipeline.models.fetch(lane.entrant.weights), page, cancel)
                    starter.warm_up(entered, cancel)
                    for _ in entered.go(cancel, math.inf):
                        yield entered.to_json()
                yield entered.to_json()
            finally:
                entered.close()

    gr.api(race, api_name="race", **SAMPLER)
