"""How long a picture takes: `python -m benchmarks.first_picture` writes `results/first_picture.json` here.

Seconds from the call of `pipe.stream` to the first module's encoded frame and to the whole picture, a frame a
patch encoded on the way as the page does; medians over seeds, after one run that warms up. Measured with the
default steps and solver, and with those that the project's aims were set for. README shows every
`results/first_picture*.json`, so that machines of different kinds can stand beside one another. With
`--without-bf16` all is computed as on a CPU that has none; that goes to `results/first_picture_float32.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.common import RESULTS, positive, sentences, write_report
from benchmarks.machine import matrix_rate, products_of, rate_dtype, significant
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, find_nesting
from nestar.ui.frames import picture

CLASS = "lighthouse"
AIMED_AT: dict[str, Any] = {"steps": 25, "solver": "euler"}
"""Steps and solver that the aims for speed were set for, before Heun's six steps became the default."""
USUAL: dict[str, Any] = {name: getattr(SampleSettings, name) for name in AIMED_AT}


def measure(pipeline: NestARPipeline, **settings: object) -> dict[str, float]:
    """Seconds of one streamed picture, by what the caller's own clock says."""
    began = time.perf_counter()
    times: dict[str, float] = {}
    for frame in pipeline.stream(CLASS, **settings):
        picture(frame)
        elapsed = time.perf_counter() - began
        times.setdefault("first_frame", elapsed)
        if frame.module_done:
            times.setdefault("first_module", elapsed)
        times["whole_picture"] = elapsed
    return times


def row(pipeline: NestARPipeline, arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Medians with these steps and this solver."""
    runs = [
        measure(pipeline, k=arguments.k, cfg=arguments.cfg, seed=seed, **settings)
        for seed in range(arguments.runs + 1)
    ]
    medians = {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}
    return settings | {f"{name}_seconds": round(seconds, 4) for name, seconds in medians.items()}


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command writes."""
    pipeline = NestARPipeline.from_pretrained(device=arguments.device)
    pipeline.record()  # as the page does
    name = find_nesting(pipeline.nestings, arguments.k, SampleSettings.order)
    model = pipeline.models[name]
    rate = matrix_rate(pipeline.device, rate_dtype(pipeline.device))
    return {
        "command": "python -m benchmarks.first_picture" + " --without-bf16" * arguments.without_bf16,
        "fingerprints": {name: pipeline.models.fingerprint(name)},
        "parameters": model.config.parameters,
        "k": arguments.k,
        "cfg": arguments.cfg,
        "device": str(pipeline.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        **products_of(model),
        "matrix_gigaoperations_per_second": significant(rate / 1e9),
        "runs": arguments.runs,
        "rows": [row(pipeline, arguments, settings) for settings in (AIMED_AT, USUAL)],
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, default=SampleSettings.k)
    parser.add_argument("--cfg", type=float, default=SampleSettings.cfg)
    parser.add_argument("--runs", type=positive, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--without-bf16", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    hidden = mock.patch.object(torch.cpu, "get_capabilities", return_value={})
    with sentences(parser), hidden if arguments.without_bf16 else nullcontext():
        report = measured(arguments)
    name = "first_picture_float32" if arguments.without_bf16 else "first_picture"
    write_report(arguments.out or RESULTS / f"{name}.json", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
