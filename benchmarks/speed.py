"""Speed side by side: `python -m benchmarks.speed` writes `results/speed.json` and `results/speed.png`.

All contenders are nestings of as many blocks of one width (their sizes differ by what modules have of their
own) that run through the same sampler and cache, in turns within one run, so that what slows the machine
slows all alike; ratios are taken turn by turn. Embedded weights are used where they are of this shape, random
ones elsewhere: a network pass costs the same with either.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, positive, sentences, write_report
from benchmarks.first_picture import AIMED_AT, CLASS
from benchmarks.first_picture import measure as measure_stream
from benchmarks.machine import matrix_rate, products_of, rate_dtype, significant, spread, wait_for
from benchmarks.operations import picture_operations
from nestar import plots
from nestar.batches import consecutive
from nestar.engines import Engines
from nestar.evaluation.experiments.study import label_of
from nestar.model import NestAR, NestARConfig
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.sampler import ModuleDone, SolverSettings, sample
from nestar.training.presets import FAMILY, NESTINGS
from nestar.ui.frames import picture

BATCHES = (1, 8, 64)
FAIR = 0.7
"""A ratio to a baseline that reaches less than this times the nesting's own share of the matrix rate is
marked unfair: it would measure how well the baseline was built."""
YARDSTICK = "k4-lattice"

STREAMED = 3
"""Times as many runs of one streamed picture as of batches: each is short, and what disturbs it is not."""

GROWTH_SIDES = (8, 16, 32, 64)
GROWTH_STEPS = 5
"""Solver steps in the growth over n: few, because plain autoregression takes its time."""
PATIENCE = 20.0
"""Seconds; a contender of the growth that takes longer is timed once in place of several times."""


@dataclass(frozen=True)
class Contender:
    """A nesting to be timed; `trained`: with embedded weights."""

    model: NestAR
    trained: bool


def contenders(pipeline: NestARPipeline) -> dict[str, Contender]:
    """The family's nestings by name, without its variants of one nesting, all with as many blocks as the
    yardstick's weights: those that were trained with another number stand there as random ones."""
    found: dict[str, Contender] = {}
    blocks = pipeline.models.outline(YARDSTICK).config.blocks
    for preset in FAMILY:
        config = replace(NESTINGS[preset].model_config(pipeline.tokenizer.channels), blocks=blocks)
        name = config.nesting.name
        if config.nesting.kind == "nested" and config.nesting.order != "lattice":
            continue
        if name in pipeline.models and pipeline.models.outline(name).config.blocks == blocks:
            found[name] = Contender(pipeline.models[name], trained=True)
        elif name not in found:
            found[name] = Contender(NestAR(config).to(pipeline.device).eval(), trained=False)
    return found


def sample_once(engines: Engines, settings: SolverSettings, rows: int, run: int) -> dict[str, Any]:
    """Seconds of one batch, without decoding: in all, and until each module's end."""
    model = engines.model
    ids = torch.arange(rows) % model.config.classes
    wait_for(model.device)
    began = time.perf_counter()
    ends: list[float] = []
    for event in sample(model, ids, range(run * rows, (run + 1) * rows), settings, engines=engines):
        if isinstance(event, ModuleDone):
            wait_for(model.device)
            ends.append(time.perf_counter() - began)
    return {"seconds": ends[-1], "modules": [b - a for a, b in zip([0.0, *ends], ends, strict=False)]}


def record(engines: Engines, settings: SolverSettings, rows: int) -> None:
    """On a GPU, let passes over so many samples be started as a whole, as the page does.

    Raises:
        RuntimeError: they cannot be: what is measured then would be the host, not the GPU.
    """
    on_gpu = engines.model.device.type == "cuda"
    if on_gpu and not engines.record(rows, guided=settings.guided):
        raise RuntimeError(f"Passes of {engines.model.config.nesting.name} were not recorded, see the log.")


def made_ready(engines: Engines, settings: SolverSettings, rows: int) -> None:
    """The same, and a run of one step a patch."""
    record(engines, settings, rows)
    sample_once(engines, replace(settings, steps=1), rows, 0)


def in_turns(work: Mapping[str, Callable[[int], Any]], runs: int, say: str) -> dict[str, list[Any]]:
    """What each piece of work returns in each run, all of them once before the next run begins."""
    results: dict[str, list[Any]] = {name: [] for name in work}
    for run in range(runs):
        for name, piece in work.items():
            print(f"\r\033[K{say}, run {run + 1} of {runs}: {name}", end="", file=sys.stderr, flush=True)
            results[name].append(piece(run))
    print("\r\033[K", end="", file=sys.stderr)
    return results


def engine(
    pipeline: NestARPipeline, settings: SolverSettings, batches: Sequence[int], runs: int
) -> dict[str, Any]:
    """All contenders at every batch size, and the ratios of the baselines to them, turn by turn."""
    racing = contenders(pipeline)
    work = {name: Engines(contender.model) for name, contender in racing.items()}
    dtype = rate_dtype(pipeline.device)
    members = {name: described(contender, settings) for name, contender in racing.items()}
    ratios: dict[str, Any] = {}
    rates: list[float] = []
    for rows in batches:
        for engines in work.values():  # what is made on first use is made before the clocks start
            made_ready(engines, settings, rows)
        before = matrix_rate(pipeline.device, dtype)
        pieces = {name: partial(sample_once, engines, settings, rows) for name, engines in work.items()}
        taken = in_turns(pieces, runs, f"batch {rows}")
        rates += [before, matrix_rate(pipeline.device, dtype)]
        rate = statistics.mean(rates[-2:])
        for name, rounds in taken.items():
            members[name]["batches"][str(rows)] = timed(
                rounds, rows, rows * members[name]["operations"] / rate
            )
        ratios[str(rows)] = speed_ups(
            taken, {name: engines.model.config.nesting for name, engines in work.items()}
        )
    return {
        **products_of(racing[YARDSTICK].model),
        "fair_from": FAIR,
        "matrix_gigaoperations_per_second": spread([rate / 1e9 for rate in rates]),
        "members": members,
        "speed_up": ratios,
    }


def described(contender: Contender, settings: SolverSettings) -> dict[str, Any]:
    """What is known of a contender before it is timed."""
    config = contender.model.config
    return {
        "weights": "embedded" if contender.trained else "random",
        "label": label_of(config.nesting.name, config.nesting),
        "parameters": config.parameters,
        "evaluations": config.nesting.evaluations,
        "function_evaluations": config.nesting.function_evaluations(settings.steps, settings.calls_per_step),
        "operations": picture_operations(config, settings),
        "batches": {},
    }


def timed(rounds: Sequence[Mapping[str, Any]], rows: int, ideal_seconds: float) -> dict[str, Any]:
    """A contender's figures at one batch size; `ideal_seconds`: of its matrix products alone."""
    seconds = spread([each["seconds"] for each in rounds])
    return {
        "seconds": seconds,
        "pictures_per_second": significant(rows / seconds["median"]),
        "module_seconds": [
            significant(statistics.median(own)) for own in zip(*(r["modules"] for r in rounds), strict=True)
        ],
        "share_of_matrix_rate": significant(ideal_seconds / seconds["median"], 3),
    }


def speed_ups(
    taken: Mapping[str, Sequence[Mapping[str, Any]]], nestings: Mapping[str, Nesting]
) -> dict[str, Any]:
    """For each nested contender, how many times its seconds each baseline takes."""
    nested = [name for name, nesting in nestings.items() if nesting.kind == "nested"]
    return {
        name: {
            other: spread(
                [b["seconds"] / a["seconds"] for a, b in zip(taken[name], taken[other], strict=True)]
            )
            for other in nestings
            if other not in nested
        }
        for name in nested
    }


def streaming(pipeline: NestARPipeline, solved: SolverSettings, runs: int) -> dict[str, Any]:
    """A streamed picture, a frame a patch encoded as the page does, against the finished picture alone."""
    pipeline.record()  # as the page does
    names = [name for name, nesting in pipeline.nestings.items() if nesting.kind == "nested"]
    report: dict[str, Any] = {}
    given = asdict(solved)

    def whole(name: str, run: int) -> dict[str, float]:
        settings = pipeline.settings(class_name=CLASS, nesting=name, seed=run, **given)
        began = time.perf_counter()
        for frame in pipeline.stream_rows(settings, consecutive(settings), previews=False):
            if frame.final:
                picture(frame)
        return {"whole_picture": time.perf_counter() - began}

    work: dict[str, Callable[[int], Any]] = {}
    for name in names:
        work[f"{name}, streamed"] = lambda run, name=name: measure_stream(
            pipeline, seed=run, nesting=name, **given
        )
        work[f"{name}, at once"] = lambda run, name=name: whole(name, run)
    in_turns(work, 1, "warm-up")
    taken = in_turns(work, runs, "streaming")
    for name in names:
        live, still = taken[f"{name}, streamed"], taken[f"{name}, at once"]
        report[name] = {
            **{f"{key}_seconds": spread([each[key] for each in live]) for key in live[0]},
            "not_streamed_seconds": spread([each["whole_picture"] for each in still]),
            "streamed_over_not": spread(
                [a["whole_picture"] / b["whole_picture"] for a, b in zip(live, still, strict=True)]
            ),
        }
    return report


def growth_nestings(side: int) -> dict[str, Nesting]:
    return {
        "k = 2": Nesting.nested(side, side, 2),
        "k = 4": Nesting.nested(side, side, 4),
        "k = 8": Nesting.nested(side, side, 8),
        "plain autoregression": Nesting.autoregressive(side, side),
        "one-shot flow": Nesting.one_shot(side, side),
    }


def growth(device: torch.device, shape: NestARConfig, sides: Sequence[int], runs: int) -> dict[str, Any]:
    """One picture at a time over the number of tokens, random weights, all blocks of one shape and as many in
    all, evenly split, for every contender and n. No passes are recorded: token by token they would be
    thousands."""
    settings = SolverSettings(steps=GROWTH_STEPS, solver=AIMED_AT["solver"])
    rows: list[dict[str, Any]] = []
    speed_up: dict[str, Any] = {}
    for side in sides:
        nestings = growth_nestings(side)
        configs = {label: replace(shape, nesting=own, split=()) for label, own in nestings.items()}
        racing = {label: Engines(NestAR(config).to(device).eval()) for label, config in configs.items()}
        taken = patient_turns(racing, settings, runs)
        rows += [
            {
                "contender": label,
                "n": side * side,
                "evaluations": config.nesting.evaluations,
                "function_evaluations": config.nesting.function_evaluations(settings.steps),
                "operations": picture_operations(config, settings),
                "runs": len(taken[label]),
                "seconds": spread(taken[label]),
            }
            for label, config in configs.items()
        ]
        turns = zip(taken["plain autoregression"], taken["k = 4"], strict=False)  # those that both took
        speed_up[str(side * side)] = spread([slow / fast for slow, fast in turns])
    exponents: dict[str, Any] = {}
    for label in growth_nestings(sides[0]):
        own = [row for row in rows if row["contender"] == label]
        n = [row["n"] for row in own]
        exponents[label] = {
            "evaluations": exponent(n, [row["evaluations"] for row in own]),
            "seconds": exponent(n, [row["seconds"]["median"] for row in own]),
            "operations": exponent(n, [row["operations"] for row in own]),
        }
    return {
        "steps": settings.steps,
        "blocks": shape.blocks,
        "dim": shape.dim,
        "rows": rows,
        "exponents": exponents,
        "speed_up_of_k4_over_autoregression": speed_up,
    }


def patient_turns(
    racing: Mapping[str, Engines], settings: SolverSettings, runs: int
) -> dict[str, list[float]]:
    """Seconds of each contender's pictures, in turns; whoever took longer than PATIENCE takes no other."""
    for engines in racing.values():
        # A GPU chooses kernels shape by shape; a CPU has enough to warm on, token by token.
        if engines.model.device.type == "cuda" or engines.model.config.nesting.kind != "autoregressive":
            sample_once(engines, replace(settings, steps=1), 1, 0)
    taken: dict[str, list[float]] = {label: [] for label in racing}
    for run in range(runs):
        for label, engines in racing.items():
            if not taken[label] or taken[label][0] < PATIENCE:
                taken[label].append(sample_once(engines, settings, 1, run)["seconds"])
                n = engines.model.config.nesting.n
                print(f"n = {n}, {label}: {taken[label][-1]:.2f} s", file=sys.stderr, flush=True)
    return taken


def exponent(n: Sequence[float], values: Sequence[float]) -> float | None:
    """p of the power law values ~ n^p that fits best on logarithmic axes (least squares)."""
    if len(n) < 2:
        return None
    slope, _ = statistics.linear_regression([math.log(x) for x in n], [math.log(y) for y in values])
    return significant(slope, 3)


def draw(report: Mapping[str, Any]) -> Figure | None:
    """Sequential evaluations, time and work over n, on logarithmic axes."""
    rows = report.get("growth", {}).get("rows")
    if not rows:
        return None
    labels = list(dict.fromkeys(row["contender"] for row in rows))
    values: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "patches one after another": lambda row: row["evaluations"],
        "seconds per picture": lambda row: row["seconds"]["median"],
        "billion operations": lambda row: row["operations"] / 1e9,
    }
    panels = plots.new_figure("How a picture's cost grows with its tokens n", len(values), panel_height=330)
    for number, (axis, (title, read)) in enumerate(zip(panels, values.items(), strict=True)):
        series = [
            plots.Series(
                label,
                [row["n"] for row in rows if row["contender"] == label],
                [read(row) for row in rows if row["contender"] == label],
            )
            for label in labels
        ]
        last = number == len(values) - 1
        plots.lines(axis, series, x_label="n", y_label="", title=title, log_x=True, log_y=True, named=last)
    return panels[0].figure


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command writes."""
    pipeline = NestARPipeline.from_pretrained(device=arguments.device)
    settings = SolverSettings(steps=arguments.steps, solver=AIMED_AT["solver"])
    return {
        "device": str(pipeline.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "steps": settings.steps,
        "solver": settings.solver,
        "cfg": settings.cfg,
        "runs": arguments.runs,
        "fingerprints": {name: pipeline.models.fingerprint(name) for name in pipeline.models},
        "engine": engine(pipeline, settings, arguments.batches, arguments.runs),
        "streaming": streaming(pipeline, settings, STREAMED * arguments.runs),
        "growth": growth(
            pipeline.device, pipeline.models.outline(YARDSTICK).config, arguments.sides, arguments.runs
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=positive, default=AIMED_AT["steps"])
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--batches", type=positive, nargs="+", default=list(BATCHES))
    parser.add_argument(
        "--sides", type=positive, nargs="+", default=list(GROWTH_SIDES), help="growth: grid sides"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    parser.add_argument("--json", action="store_true", help="print the whole report")
    arguments = parser.parse_args()
    with sentences(parser):
        report = measured(arguments)
    write_report(arguments.out, report)
    figure = draw(report)
    if figure is not None:
        plots.save(figure, arguments.out.with_suffix(".png"))
    print(json.dumps(report) if arguments.json else arguments.out)


if __name__ == "__main__":
    main()
