"""The Diversity tab's calls by name: `/diversity`, `/siblings`, `/temperatures`, `/explained`, `/nearest`."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from nestar import batches
from nestar.pipeline import NestARPipeline
from nestar.settings import RANGES, SampleSettings, SettingsError
from nestar.ui.answers import sentences, settings_here
from nestar.ui.diversity_desk import Desk
from nestar.ui.runs import SAMPLER, Runs

# Siblings of one call unless it says how many; with their parent two rows of four.
SIBLINGS = 7
_COUNT = int(RANGES["count"][1])


def bind(pipeline: NestARPipeline, desk: Desk, runs: Runs, page: gr.Blocks, usual: SampleSettings) -> None:
    """Bind the calls inside the page's blocks; `usual` are their defaults."""

    def grown(values: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Those values of a sheet that have pictures."""
        return (value for value in values if value["images"])

    checked = partial(settings_here, pipeline, page)

    # gr.api reads the annotations, and one JSON object is what each yield sends.
    def diversity(
        request: gr.Request,
        class_name: str = usual.class_name,
        k: int = usual.k,
        steps: int = usual.steps,
        temperature: float = usual.temperature,
        cfg: float = usual.cfg,
        seed: int = usual.seed,
        count: int = _COUNT,
        order: str = usual.order,
    ) -> dict:
        """Grow up to 16 pictures as one batch; sample b has seed + b. Streams one JSON object a patch: images
        (data URIs, PNG when final), samples, module, patch, known, evaluations, seconds, final; the last one
        has also distances, among the samples and among real pictures, in features."""
        dials = {"steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed}
        with sentences(), runs.run(request) as cancel:
            settings = checked(cancel, class_name=class_name, k=k, order=order, count=count, **dials)
            rows = batches.consecutive(settings)
            for value in grown(desk.sheets(settings, rows, cancel)):
                if value["final"] and settings.count > 1:
                    value["distances"] = desk.distances(settings, rows, cancel)
                yield value

    def siblings(
        request: gr.Request,
        class_name: str = usual.class_name,
        k: int = usual.k,
        steps: int = usual.steps,
        temperature: float = usual.temperature,
        cfg: float = usual.cfg,
        parent: int = 0,
        modules: int = 1,
        seed: int = 1,
        count: int = SIBLINGS,
        order: str = usual.order,
    ) -> dict:
        """Keep modules 1 to `modules` of the sample with seed `parent` and make the rest again from seeds
        seed, seed + 1, … Streams as /diversity does; the parent comes first."""
        dials = {"steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed}
        with sentences(), runs.run(request) as cancel:
            settings = checked(cancel, class_name=class_name, k=k, order=order, count=count, **dials)
            rows = batches.siblings(settings, pipeline.plan_of(settings), parent, modules)
            yield from grown(desk.sheets(settings, rows, cancel))

    def temperatures(
        request: gr.Request,
        class_name: str = usual.class_name,
        k: int = usual.k,
        steps: int = usual.steps,
        cfg: float = usual.cfg,
        seed: int = usual.seed,
        order: str = usual.order,
    ) -> dict:
        """One seed at temperatures from 0 to 1.5, as one batch. Streams as /diversity does."""
        dials = {"steps": steps, "cfg": cfg, "seed": seed}
        with sentences(), runs.run(request) as cancel:
            settings = checked(cancel, class_name=class_name, k=k, order=order, **dials)
            yield from grown(desk.sheets(settings, batches.temperature_row(settings), cancel))

    def explained(
        request: gr.Request,
        class_name: str = usual.class_name,
        k: int = usual.k,
        steps: int = usual.steps,
        temperature: float = usual.temperature,
        cfg: float = usual.cfg,
        seed: int = usual.seed,
        order: str = usual.order,
    ) -> dict:
        """Measure how much of the differences among samples each module decides. Streams how far it is, then
        explained: shares (after modules 0 … M), increments (of each module), and their standard errors."""
        dials = {"steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed}
        with sentences(), runs.run(request) as cancel:
            settings = checked(cancel, class_name=class_name, k=k, order=order, **dials)
            yield from desk.explained(settings, cancel)

    def nearest(
        request: gr.Request,
        class_name: str = usual.class_name,
        k: int = usual.k,
        steps: int = usual.steps,
        temperature: float = usual.temperature,
        cfg: float = usual.cfg,
        seed: int = usual.seed,
        sample: int = 0,
        order: str = usual.order,
        parent: int = 0,
        modules: int = 0,
    ) -> dict:
        """The training picture nearest to number `sample` of a batch, from 0; with `modules`, of those
        siblings that keep modules 1 to `modules` of the sample with seed `parent`. Returns image (a data
        URI), class_name, number, distance; unseen, copied: how near real pictures and copies come (5, 50,
        95th percentile)."""
        dials = {"steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed}
        with sentences(), runs.run(request) as cancel:
            settings = checked(cancel, class_name=class_name, k=k, order=order, **dials)
            if isinstance(sample, bool) or sample not in range(_COUNT):
                raise SettingsError(f"sample must be a whole number from 0 to {_COUNT - 1}.")
            (own,) = batches.seeds_from(settings.seed + int(sample), 1)
            return desk.nearest(desk.sample(replace(settings, seed=own), parent, modules), cancel)

    for call in (diversity, siblings, temperatures, explained, nearest):
        gr.api(call, api_name=call.__name__, **SAMPLER)
