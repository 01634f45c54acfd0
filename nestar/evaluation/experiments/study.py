"""What all experiments share: weights, references, finished rows, a member's own best settings, the clock.

Settings are searched on few samples of another seed (`samples`, seed + 1) and against other references; what
is compared in the end are finalists on more samples (`final_samples`, seed). References are drawn and
described once an experiment.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from nestar import plots
from nestar.checkpoints import alike
from nestar.data.tiny_worlds import CLASSES
from nestar.engine import has_bf16
from nestar.evaluation.experiments import QUESTIONS
from nestar.evaluation.experiments.defaults import (
    FINAL_SAMPLES,
    IMAGES,
    MEMBER,
    RESULTS,
    RUNS,
    SAMPLES,
)
from nestar.evaluation.experiments.latency import latencies
from nestar.evaluation.experiments.rows import Row, Rows, rounded
from nestar.evaluation.experiments.search import (
    SLACK,
    as_good,
    coordinate_search,
    effective,
    pays,
    search_axes,
    search_rows,
)
from nestar.evaluation.report import (
    Evaluator,
    PictureFeatures,
    check_classes,
    instruments,
    picture_size,
    shares_of,
)
from nestar.files import CACHE, write_json
from nestar.model import NestAR, fingerprint_of
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.sampler import SolverSettings
from nestar.settings import SampleSettings, SettingsError
from nestar.training.loop import has_passed
from nestar.training.nesting import NestingTrainConfig

MEASURE = 3
"""Part of every row's key: raise it when what is measured changes, and old rows are measured again."""

FIGURES = (
    "fid",
    "inception_score",
    "precision",
    "recall",
    "class_accuracy",
    "redrawn",
    "seams",
    "diversity",
    "vendi",
)
SEARCH_FROM = 100_000 * len(CLASSES)
"""Number of the first held-out picture that searches and grids are compared with; finalists, as evaluations,
are compared with those from 0 on. So nothing that a search fits is measured on what it was fitted to; what
finalists are chosen by is what they report, see `Study.compare_at_best`."""

COVERAGE = ("bins_reached", "histogram_distance")


class OutOfTime(Exception):
    """The command's time is up, or it was asked to stop; the message says where the next call goes on."""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        samples: of a grid's or search's rows; final_samples: of the finalists.
        seed: of the finalists; searches and grids take the next one.
        steps: solver steps per patch, wherever they are not what is compared.
        nesting: the member that experiments on a single one take.
        images: each training arm sees; base: the recipe arms are made from.
        folder: of the JSON files and figures; runs: of the arms' training; cache: of pools.
        deadline: a `time.monotonic()` value.
        command: what was asked for, as it is typed.
    """

    samples: int = SAMPLES
    final_samples: int = FINAL_SAMPLES
    seed: int = 0
    steps: int = SampleSettings.steps
    nesting: str = MEMBER
    images: int = IMAGES
    base: NestingTrainConfig = field(default_factory=NestingTrainConfig)
    folder: Path = RESULTS
    runs: Path = RUNS
    cache: Path = CACHE
    compile_modules: bool = False
    deadline: float | None = None
    command: str = ""

    @property
    def search_seed(self) -> int:
        return self.seed + 1

    @property
    def images_per_arm(self) -> int:
        """Images in whole batches: what every arm sees."""
        return self.images // self.base.batch * self.base.batch

    @property
    def settings(self) -> SolverSettings:
        """The sampler's defaults at these steps: centre of every grid, start of every search."""
        return SolverSettings(steps=self.steps)


class Study:
    """One run of an experiment. What it measures goes into `rows`; `design` says by what rules."""

    def __init__(
        self,
        name: str,
        pipeline: NestARPipeline,
        features: PictureFeatures,
        options: Options,
        *,
        progress: bool = True,
    ):
        self.name, self.pipeline, self.features, self.options = name, pipeline, features, options
        self.rows: list[Row] = []
        self.arms: list[Row] = []
        self.design: dict[str, Any] = {}
        self.missing: list[str] = []
        self.finished = Rows(options.folder, name)
        self.progress = progress
        self.bar = tqdm(total=0, unit="row", desc=name, disable=not progress)
        self._evaluators: dict[tuple[int, int], Evaluator] = {}
        self._sizes: dict[int, int] = {}
        self._prints: dict[int, tuple[nn.Module, str]] = {}

    def members(self, names: Iterable[str]) -> dict[str, NestAR]:
        """Those of the named nestings that have weights, in this order; others are noted as missing. Where
        several are compared, weights that saw as many images as the others' stand for a nesting (`alike`).

        Raises:
            SettingsError: none has.
            ValueError: they know other classes than Tiny Worlds.
        """
        check_classes(self.pipeline.classes)
        models = self.pipeline.models
        names = tuple(names)
        self.missing += [name for name in names if name not in models and name not in self.missing]
        found = {name: alike(models, name) if len(names) > 1 else name for name in names if name in models}
        if not found:
            raise SettingsError(
                f"{self.pipeline.origin} has no weights for {', '.join(names)}; it has "
                f"{', '.join(models) or 'no nesting'}."
            )
        seen = {each: models.outline(each).images_seen for each in found.values()}
        self.design["images_seen"] = {**self.design.get("images_seen", {}), **seen}
        prints = {each: models.fingerprint(each) for each in found.values()}
        self.design["fingerprints"] = {**self.design.get("fingerprints", {}), **prints}
        stand_ins = {name: weights for name, weights in found.items() if weights != name}
        if stand_ins:
            self.design["weights_that_stand_for"] = stand_ins
        return {name: models[weights] for name, weights in found.items()}

    def expect(self, rows: int) -> None:
        """Let the bar know of rows to come."""
        self.bar.total += rows
        self.bar.refresh()

    def probe(self, part: str, member: str, model: NestAR, settings: SolverSettings, **labels: Any) -> Row:
        """A row of a grid or search: few samples, the search's seed."""
        options = self.options
        return self._measure(part, member, model, settings, options.samples, options.search_seed, labels)

    def final(
        self, member: str, model: NestAR, settings: SolverSettings, *, given: int = 0, **labels: Any
    ) -> Row:
        """A finalist's row; `given` as in `Evaluator.measure`."""
        options = self.options
        return self._measure(
            "final", member, model, settings, options.final_samples, options.seed, labels, given
        )

    def best_settings(self, member: str, model: NestAR) -> SolverSettings:
        """A member's own best settings, found on another seed than the finalists': of least FID among those
        that are `as_good` as the start."""
        evaluations = model.config.nesting.evaluations
        before = len(self.rows)

        def score(settings: SolverSettings) -> float:
            row = self.probe("search", member, model, settings)
            return row["fid"] if as_good(row, self.rows[before]) else math.inf

        start = self.options.settings
        best = coordinate_search(score, start, search_axes(start), same=lambda s: effective(s, evaluations))
        expected = search_rows(search_axes(start))
        self.bar.update(expected - (len(self.rows) - before))  # settings that are the same to it
        return best

    def compare_at_best(self, models: Mapping[str, NestAR]) -> dict[str, SolverSettings]:
        """A final row of every member at its own best settings; returns these. What a search on few samples
        took for better must prove so on the finalists' samples, too, else the start stands for it. So the
        choice of these two, though not the search, is made on what is then compared: every member's figures
        are by that much too good, the lower of two FIDs that differ by chance."""
        start = self.options.settings
        axes = search_axes(start)
        self.design["own_best_settings"] = {
            "tried_one_axis_after_another": {name: list(values) for name, values in axes.items()},
            "start": asdict(start),
            "by": "fid",
            "with_precision_and_recall_within": SLACK,
            "finalists": "of no more FID, and of no clearly less precision or recall",
            "else": "the start",
            "samples": self.options.samples,
            "seed": self.options.search_seed,
        }
        self.expect(len(models) * (search_rows(axes) + 2))
        best = {}
        for member, model in models.items():
            found = self.best_settings(member, model)
            begun = effective(start, model.config.nesting.evaluations)
            rows = {
                settings: self.final(member, model, settings) for settings in dict.fromkeys([begun, found])
            }
            self.bar.update(2 - len(rows))
            proved = not pays(rows[found], rows[begun]) and rows[found]["fid"] <= rows[begun]["fid"]
            best[member] = found if proved else begun
            for settings, row in rows.items():
                if settings != best[member]:
                    row["part"] = "start" if settings == begun else "refused"
        return best

    def time(self, members: Mapping[str, tuple[NestAR, SolverSettings]]) -> None:
        """A latency row of every member, all measured in this run: never taken from an earlier one."""
        self.check_time("pictures were timed")
        self.bar.set_postfix_str("timing")
        for name, figures in latencies(members, self.pipeline.tokenizer).items():
            settings = asdict(members[name][1])
            self.rows.append({"part": "latency", "member": name, "settings": settings, **figures})

    def finals(self, member: str, model: NestAR, finalists: Mapping[str, SolverSettings]) -> None:
        """A final row (labelled `which`) of each of these settings, one where two sample alike."""
        seen: list[SolverSettings] = []
        for which, settings in finalists.items():
            settings = effective(settings, model.config.nesting.evaluations)
            if settings in seen:
                self.bar.update()
            else:
                self.final(member, model, settings, which=which)
            seen.append(settings)

    def once(self, what: str, key: Mapping[str, Any], compute: Callable[[], Row]) -> Row:
        """A finished row of this key (and of tokenizer and features), or a new one if there is time.

        Raises:
            OutOfTime: there is none, and no time to compute it; `what` says what is left.
        """

        def in_time() -> Row:
            self.check_time(what)
            return compute()

        return self.finished.once(self._key(key), in_time)

    def ceilings(self, samples: int) -> dict[str, Any]:
        """What references and decoded references reach themselves at this count of samples."""
        what = f"the references' own figures were taken ({samples} samples)"
        return self.once(what, self._ceilings_key(samples), lambda: self._ceilings(samples))

    def known_ceilings(self, finished: bool) -> dict[str, Any]:
        """Ceilings at every count of samples that rows have; an unfinished study takes no new ones."""
        if finished:
            return {str(samples): self.ceilings(samples) for samples in sorted(self._sizes)}
        stored = {n: self.finished.get(self._key(self._ceilings_key(n))) for n in sorted(self._sizes)}
        return {str(samples): row for samples, row in stored.items() if row is not None}

    def check_time(self, what: str) -> None:
        """Raises OutOfTime once the deadline has passed; the message says `what` is left."""
        if has_passed(self.options.deadline):
            raise OutOfTime(f"Time was up before {what}.")

    def print_of(self, model: NestAR) -> str:
        """A fingerprint of the model's weights and shape."""
        if id(model) not in self._prints:  # the model is kept: a freed one's id would be given out again
            self._prints[id(model)] = (model, fingerprint_of(model, model.config))
        return self._prints[id(model)][1]

    def _measure(
        self,
        part: str,
        member: str,
        model: NestAR,
        settings: SolverSettings,
        samples: int,
        seed: int,
        labels: Mapping[str, Any],
        given: int = 0,
    ) -> Row:
        nesting = model.config.nesting
        settings = effective(settings, nesting.evaluations)
        self._sizes[samples] = size = picture_size(model, self.pipeline.tokenizer, self.features)
        self.bar.set_postfix_str(f"{member} {part}")
        first = SEARCH_FROM if seed == self.options.search_seed else 0
        key = {
            "size": size,
            "first": first,
            "model": self.print_of(model),
            "settings": asdict(settings),
            "samples": samples,
            "seed": seed,
        }
        if given:  # a key that rows of whole samples do not have
            key["given"] = given

        def sampled() -> Row:
            evaluator = self._evaluator(samples, size, first)
            waiting = samples * (1 if evaluator.has_references else 2)  # the first draws the references too
            with tqdm(total=waiting, unit="image", leave=False, disable=not self.progress) as evaluator.bar:
                report = evaluator.measure(model, settings, seed, given=given)
            return _figures(report)

        row = {
            "part": part,
            "member": member,
            **labels,
            "settings": asdict(settings),
            "samples": samples,
            "seed": seed,
            "evaluations": nesting.evaluations,
            "function_evaluations": nesting.function_evaluations(settings.steps, settings.calls_per_step),
            **self.once(f"{member} was measured ({part})", key, sampled),
        }
        self.rows.append(row)
        self.bar.update()
        return row

    def _evaluator(self, samples: int, size: int, first: int) -> Evaluator:
        if (samples, first) not in self._evaluators:
            self._evaluators[samples, first] = Evaluator(
                self.pipeline.tokenizer, self.features, samples=samples, size=size, first=first
            )
        return self._evaluators[samples, first]

    @cached_property
    def _instruments(self) -> dict[str, str]:
        """What all pictures are made and measured with, as a part of keys."""
        return instruments(self.pipeline.tokenizer, self.features)

    @property
    def _computed_on(self) -> dict[str, Any]:
        """What rounds: rows of one report are of one kind of device and product."""
        device = self.pipeline.device
        return {"device": device.type, "bf16": has_bf16(device)}

    def _key(self, key: Mapping[str, Any]) -> dict[str, Any]:
        return {"measure": MEASURE, **self._computed_on, **self._instruments, **key}

    def _ceilings_key(self, samples: int) -> dict[str, Any]:
        return {"size": self._sizes[samples], "first": self._first_of(samples), "ceilings": samples}

    def _first_of(self, samples: int) -> int:
        """Where the references begin that so many samples are compared with."""
        return 0 if samples == self.options.final_samples else SEARCH_FROM

    def _ceilings(self, samples: int) -> dict[str, Any]:
        evaluator = self._evaluator(samples, self._sizes[samples], self._first_of(samples))
        waiting = samples * (2 if evaluator.has_references else 3)
        with tqdm(total=waiting, unit="image", leave=False, disable=not self.progress) as evaluator.bar:
            found = evaluator.ceilings
        return {
            "tokenizer_psnr": found["tokenizer_psnr"],
            "reference": _figures(found["reference"]),
            "reconstruction": _figures(found["reconstruction"]),
        }


@dataclass(frozen=True)
class Experiment:
    """A question that the paper raises, and how it is answered.

    Attributes:
        measure: adds rows to a study, until all are there or time is up.
        find: from rows and arms, what they say; a statement whose rows are not there yet is left out.
        draw: the figure of a report, or None if there is nothing to show yet.
        trains: whether it trains arms; single: whether it samples one member, `Options.nesting`.
        searches: whether it has rows of `Options.samples`; finals: of `Options.final_samples`.
    """

    name: str
    measure: Callable[[Study], None]
    find: Callable[[list[Row], list[Row]], dict[str, Any]]
    draw: Callable[[Mapping[str, Any]], Figure | None]
    trains: bool = False
    single: bool = False
    searches: bool = True
    finals: bool = True

    @property
    def question(self) -> str:
        """What it asks, one sentence."""
        return QUESTIONS[self.name]


def conduct(experiment: Experiment, study: Study) -> dict[str, Any]:
    """Measure until finished or out of time, and write `<name>.json` and, once there is something to show,
    `<name>.png`; a figure of an earlier report goes with it.

    Returns:
        The report as it was written.

    Raises:
        SettingsError: what is asked for does not exist or does not fit.
        WeightsError: an arm's weights do not load.
    """
    began = time.monotonic()
    unfinished = None
    with study.bar:
        try:
            experiment.measure(study)
        except OutOfTime as reason:
            unfinished = str(reason)
        try:
            ceilings = study.known_ceilings(finished=unfinished is None)
        except OutOfTime as reason:
            unfinished = str(reason)
            ceilings = study.known_ceilings(finished=False)
    for row in study.rows:
        ceiling = ceilings.get(str(row.get("samples")))
        if ceiling and "precision" in row:
            row |= rounded(shares_of(ceiling["reference"], row))
    options = study.options
    report = {
        "name": experiment.name,
        "question": experiment.question,
        "command": options.command,
        "finished": unfinished is None,
        "unfinished": unfinished,
        "missing": study.missing,
        "finding": rounded(experiment.find(study.rows, study.arms)),
        "settings": rounded(study.design),
        "samples": options.samples,
        "final_samples": options.final_samples,
        "seed": options.seed,
        "search_seed": options.search_seed,
        "images_per_arm": options.images_per_arm if experiment.trains else None,
        "weights": study.pipeline.origin,
        "instruments": instruments(study.pipeline.tokenizer, study.features),
        "device": str(study.pipeline.device),
        "seconds": round(time.monotonic() - began, 1),
        "ceilings": ceilings,
        "arms": rounded(study.arms),
        "rows": rounded(study.rows),
    }
    _write(options.folder / f"{experiment.name}.json", report)
    figure, drawn = experiment.draw(report), options.folder / f"{experiment.name}.png"
    if figure is None:
        drawn.unlink(missing_ok=True)
    else:
        plots.save(figure, drawn)
    return report


def tell(report: Mapping[str, Any], folder: Path, *, as_json: bool = False) -> None:
    """Print what was found, or the whole report; what is missing or left goes to standard error."""
    if report["missing"]:
        print(f"nestar: no weights for {', '.join(report['missing'])}: left out.", file=sys.stderr)
    if report["unfinished"]:
        print(f"nestar: {report['unfinished']} The same command goes on there.", file=sys.stderr)
    if as_json:
        print(json.dumps(report))
        return
    print(report["question"])
    if report["arms"]:
        print(arms_said(report))
    for name, value in report["finding"].items():
        print(f"{name:40} {json.dumps(value)}")
    print(folder / f"{report['name']}.json")


def arms_note(report: Mapping[str, Any]) -> str:
    """What a figure's title says of its arms."""
    size = millions(report["arms"][0]["parameters"])
    return f" ({size} weights, {report['images_per_arm']:,} images an arm)"


def arms_said(report: Mapping[str, Any]) -> str:
    """What stands beside findings on arms: their size and training."""
    size = millions(report["arms"][0]["parameters"])
    images = f"{report['images_per_arm']:,}"
    return f"Arms of {size} weights saw {images} images each and are compared with each other only."


def millions(count: int) -> str:
    """A count in words: "1.5 million", or "17,500" where it is less than a tenth of one."""
    return f"{count / 1e6:.1f} million" if count >= 1e5 else f"{count:,}"


def label_of(name: str, nesting: Nesting) -> str:
    """A member in plain words; `name` is its weights' folder."""
    words = {
        "nested": f"k = {nesting.k}" + (", raster" if nesting.order == "raster" else ""),
        "autoregressive": "plain autoregression" + (", lattice" if nesting.order == "lattice" else ""),
        "cells": f"{nesting.k} cells",
        "one-shot": "one-shot flow",
    }[nesting.kind]
    variant = name.partition(".")[2]
    return f"{words}, {variant}" if variant else words


def _figures(report: Mapping[str, Any]) -> Row:
    """The figures that rows keep; those that need classes or factors are left out where there are none."""
    kept = {name: report[name] for name in FIGURES if name in report}
    return kept | {name: report["coverage"][name] for name in COVERAGE if "coverage" in report}


def _write(file: Path, report: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, report, allow_nan=False)
