"""Where a batch's time goes: `python -m benchmarks.profiled` writes `results/profiled.json`.

One-shot flow and k = 4 of as many blocks, as in `benchmarks.speed`, each in torch's profiler: seconds inside
each kind of operation, and outside of them (Python, and the profiler itself). On a CPU: a GPU starts whole
passes, which have no operations to tell apart. A kind in which the nesting gains less over one-shot flow than
the arithmetic says is what holds the whole back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.common import RESULTS, positive, sentences, write_report
from benchmarks.first_picture import AIMED_AT
from benchmarks.machine import significant
from benchmarks.operations import picture_operations
from benchmarks.speed import YARDSTICK, Contender, contenders, made_ready, sample_once
from nestar.engines import Engines
from nestar.evaluation.experiments.study import label_of
from nestar.pipeline import NestARPipeline
from nestar.sampler import SolverSettings

BASELINE = "one-shot"

KINDS = {
    "products": ("mm", "addmm"),
    "attention": ("bmm", "_softmax", "_scaled_dot_product_flash_attention_for_cpu"),
    "norms": ("linalg_vector_norm",),
    "element by element": (
        "add",
        "add_",
        "addcdiv",
        "addcmul",
        "addcmul_",
        "div",
        "lerp",
        "lerp_",
        "mul",
        "mul_",
        "silu",
        "silu_",
        "sub",
        "sub_",
    ),
    "copies": ("copy_", "index_select", "cat", "clone"),
}
"""Operations of an engine's pass (without `aten::`) by what they do."""
REST, OUTSIDE = "other operations", "outside of them"


def kind_of(operation: str) -> str:
    """Which of KINDS an operation is of, or REST."""
    name = operation.removeprefix("aten::")
    return next((kind for kind, names in KINDS.items() if name in names), REST)


def profiled(engines: Engines, settings: SolverSettings, rows: int) -> dict[str, Any]:
    """One batch in the profiler: its seconds, and those inside each kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        seconds = sample_once(engines, settings, rows, 0)["seconds"]
    kinds = by_kind(
        (event.key, event.count, event.self_cpu_time_total)
        for event in record.key_averages()
        if event.key.startswith("aten::")
    )
    inside = sum(kind["seconds"] for kind in kinds.values())
    kinds[OUTSIDE] = {"operations": 0, "seconds": max(seconds - inside, 0.0)}
    return {"seconds": seconds, "kinds": kinds}


def by_kind(events: Iterable[tuple[str, int, float]]) -> dict[str, dict[str, Any]]:
    """How many operations of each kind ran, and their seconds.

    Args:
        events: name, number of calls and microseconds of each operation, of its own without those it calls.
    """
    kinds = {kind: {"operations": 0, "seconds": 0.0} for kind in (*KINDS, REST)}
    for name, count, microseconds in events:
        own = kinds[kind_of(name)]
        own["operations"] += count
        own["seconds"] += microseconds / 1e6
    return kinds


def summed(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs, kind by kind."""
    kinds = {
        kind: {
            "operations": own["operations"],
            "seconds": significant(statistics.median(each["kinds"][kind]["seconds"] for each in rounds)),
        }
        for kind, own in rounds[0]["kinds"].items()
    }
    return {"seconds": significant(statistics.median(each["seconds"] for each in rounds)), "kinds": kinds}


def measure(
    racing: dict[str, Contender], settings: SolverSettings, rows: int, runs: int
) -> dict[str, dict[str, Any]]:
    """Both contenders in turns, in the profiler and without it."""
    engines = {name: Engines(racing[name].model) for name in (YARDSTICK, BASELINE)}
    for each in engines.values():
        made_ready(each, settings, rows)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    plain: dict[str, list[float]] = {name: [] for name in engines}
    for run in range(runs):
        for name, each in engines.items():
            plain[name].append(sample_once(each, settings, rows, run)["seconds"])
            found[name].append(profiled(each, settings, rows))
    return {
        name: {
            "label": label_of(name, racing[name].model.config.nesting),
            "weights": "embedded" if racing[name].trained else "random",
            "operations": picture_operations(racing[name].model.config, settings),
            "seconds_without_profiler": significant(statistics.median(plain[name])),
            **summed(found[name]),
        }
        for name in engines
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=positive, default=AIMED_AT["steps"])
    parser.add_argument("--rows", type=positive, default=64, help="samples at a time")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "profiled.json")
    arguments = parser.parse_args()
    with sentences(parser):
        pipeline = NestARPipeline.from_pretrained(device="cpu")
    settings = SolverSettings(steps=arguments.steps, solver=AIMED_AT["solver"])
    named = [name for name in (YARDSTICK, BASELINE) if name in pipeline.models]
    report = {
        "device": str(pipeline.device),
        "cores": os.cpu_count(),
        "steps": settings.steps,
        "solver": settings.solver,
        "rows": arguments.rows,
        "runs": arguments.runs,
        "fingerprints": {name: pipeline.models.fingerprint(name) for name in named},
        "members": measure(contenders(pipeline), settings, arguments.rows, arguments.runs),
    }
    write_report(arguments.out, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
