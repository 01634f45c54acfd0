"""How long pictures take: members in turns within one run, so that what slows the machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nestar.data import tiny_worlds
from nestar.engine import has_bf16
from nestar.engines import Engines
from nestar.model import NestAR
from nestar.sampler import SolverSettings, sample_images
from nestar.tokenizer import Tokenizer

RUNS = 5
BATCH = 64


def latencies(
    members: Mapping[str, tuple[NestAR, SolverSettings]],
    tokenizer: Tokenizer,
    *,
    runs: int = RUNS,
    batch: int = BATCH,
) -> dict[str, dict[str, Any]]:
    """Seconds and pictures per second of every member, decoding included; medians after one warm-up.

    Returns:
        By member: `seconds_per_picture` (one at a time), `pictures_per_second` (`batch` at a time), `batch`,
        `evaluations` (patches one after another) and `function_evaluations` (network passes); and of the
        machine `device`, `threads` and whether it multiplies in `bf16`.
    """
    seconds: dict[str, dict[int, list[float]]] = {name: {1: [], batch: []} for name in members}
    engines = {name: Engines(model) for name, (model, _) in members.items()}  # weights are read once
    for rows in (1, batch):
        for name, (model, settings) in members.items():
            if model.device.type == "cuda":
                engines[name].record(rows, guided=settings.guided)
        for run in range(runs + 1):
            for name, (_, settings) in members.items():
                taken = _seconds(engines[name], tokenizer, settings, rows, run)
                if run:
                    seconds[name][rows].append(taken)
    result = {}
    for name, (model, settings) in members.items():
        nesting = model.config.nesting
        result[name] = {
            "seconds_per_picture": round(statistics.median(seconds[name][1]), 5),
            "pictures_per_second": round(batch / statistics.median(seconds[name][batch]), 3),
            "batch": batch,
            "evaluations": nesting.evaluations,
            "function_evaluations": nesting.function_evaluations(settings.steps, settings.calls_per_step),
            "device": str(model.device),
            "threads": torch.get_num_threads(),
            "bf16": has_bf16(model.device),
        }
    return result


def _seconds(engines: Engines, tokenizer: Tokenizer, settings: SolverSettings, rows: int, run: int) -> float:
    ids = torch.arange(rows) % len(tiny_worlds.CLASSES)
    seeds: Sequence[int] = range(run * rows, (run + 1) * rows)
    began = time.perf_counter()
    sample_images(
        engines.model, tokenizer, ids, seeds, settings, engines=engines
    )  # ends on the CPU: nothing is still queued
    return time.perf_counter() - began
