"""What training costs at the paper's scale: `python -m benchmarks.imagenet_step` takes real optimiser steps
of each ImageNet-256 size at its whole batch, by accumulation, on random latents, and writes
`results/imagenet_step.json`: memory, images a second, and the hours that the recipe's steps would take.

It is meant for a GPU. Elsewhere it can be rehearsed: `--device cpu --sizes s --batch 4 --rows 2 --out FILE`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, positive, sentences, write_report
from benchmarks.machine import significant, wait_for
from nestar.checkpoints import resolve_device
from nestar.engine import products_in
from nestar.files import CACHE
from nestar.registry import SIDE, SIZES
from nestar.tokenizer import Tokenizer, build_autoencoder
from nestar.training.loop import let_go
from nestar.training.nesting import LatentPools, NestingTask, NestingTrainConfig
from nestar.training.presets import NESTINGS, STEPS

POOL, HELD_OUT = 4096, 16
"""Random latents; a step costs the same whatever they show."""
ROWS = 64
"""Rows that run at once: a batch of 2048 is accumulated from 32 such parts."""


def pools_of(config: NestingTrainConfig, channels: int) -> LatentPools:
    """Random latents and labels, as many as the recipe says."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        latents = torch.randn(count, channels, SIDE, SIDE, generator=generator).half()
        return latents, torch.randint(config.classes, (count,), generator=generator)

    names = tuple(map(str, range(config.classes)))
    return LatentPools(*drawn(config.pool), *drawn(config.held_out), classes=names)


def gibibytes(device: torch.device) -> float:
    """Most memory held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def equal_part(batch: int, most: int) -> int:
    """Rows of the largest equal parts of a batch that have `most` rows at most."""
    return max(rows for rows in range(1, min(most, batch) + 1) if batch % rows == 0)


def measure(name: str, device: torch.device, batch: int | None, rows: int, steps: int) -> dict[str, Any]:
    """One warm-up step and `steps` timed ones of the preset `name`."""
    config = replace(NESTINGS[name], pool=POOL, held_out=HELD_OUT)
    config = replace(config, batch=batch or config.batch)
    rows = equal_part(config.batch, rows)
    tokenizer = Tokenizer(build_autoencoder(patch=16, channels=(16,), latent_channels=16), patch=16)
    let_go(device, compiled=device.type == "cuda")  # the size before this one
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    task = NestingTask(
        config,
        tokenizer,
        device,
        CACHE,
        pools=pools_of(config, tokenizer.channels),
        compile_modules=device.type == "cuda",  # as `train` does
        accumulate=config.batch // rows,
        checkpoint_activations=True,
    )
    taken = []
    for step in range(steps + 1):
        wait_for(device)
        began = time.perf_counter()
        losses = task.train_step(step, 1e-3)
        wait_for(device)
        taken.append(time.perf_counter() - began)
    rate = config.batch / statistics.median(taken[1:])
    return {
        "name": name,
        "parameters": sum(each.numel() for each in task.model.parameters()),
        "batch": config.batch,
        "rows_at_once": rows,
        "seconds_per_step": significant(config.batch / rate),
        "images_per_second": significant(rate),
        "memory_gib": significant(gibibytes(device)),
        "losses": {key: significant(float(value)) for key, value in losses.items()},
        "recipe_steps": STEPS[name],
        "projected_hours": significant(STEPS[name] * config.batch / rate / 3600, 3),
    }


def main(argv: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--batch", type=positive, help="in place of the recipe's")
    parser.add_argument(
        "--rows", type=positive, default=ROWS, help=f"that run at once, at most (default: {ROWS})"
    )
    parser.add_argument("--steps", type=positive, default=2, help="timed steps (default: 2)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "imagenet_step.json")
    arguments = parser.parse_args(argv)
    with sentences(parser):
        device = resolve_device(arguments.device)
    if device.type == "cpu" and arguments.out == RESULTS / "imagenet_step.json":
        parser.error("without a GPU this is a rehearsal: give it another file (--out)")
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": products_in(device),
        "activations": "checkpointed",
        "rows": [],
    }
    for size in arguments.sizes:
        row = measure(f"imagenet256-{size}", device, arguments.batch, arguments.rows, arguments.steps)
        print(json.dumps(row), flush=True)
        report["rows"].append(row)
        write_report(arguments.out, report)


if __name__ == "__main__":
    main()
