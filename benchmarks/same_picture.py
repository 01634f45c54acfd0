"""Whether a seed's picture is always the same: `python -m benchmarks.same_picture` writes
`results/same_picture.json`.

Each picture is made alone, and then again: after others, in another process, on one thread, and inside a
batch of 16. Of each arrangement: how many pictures are equal bit for bit, and the PSNR of the others.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.first_picture import RESULTS
from nestar.pipeline import NestARPipeline
from nestar.settings import RANGES

Pictures = dict[int, np.ndarray]

BATCH = int(RANGES["count"][1])
BOUND = 35.0
"""PSNR in dB that a picture is to keep wherever it is made."""


def class_of(pipeline: NestARPipeline, seed: int) -> str:
    """Neighbours in a batch share a class."""
    return pipeline.classes[seed // BATCH % len(pipeline.classes)]


def alone(pipeline: NestARPipeline, seeds: Sequence[int], **settings: Any) -> Pictures:
    """Pictures made one at a time, in this order."""
    return {
        seed: np.asarray(pipeline(class_of(pipeline, seed), seed=seed, **settings).image) for seed in seeds
    }


def in_batches(pipeline: NestARPipeline, seeds: Sequence[int], **settings: Any) -> Pictures:
    made: Pictures = {}
    for first in range(0, len(seeds), BATCH):
        own = seeds[first : first + BATCH]
        result = pipeline(class_of(pipeline, own[0]), seed=own[0], count=len(own), **settings)
        made |= {seed: np.asarray(image) for seed, image in zip(own, result.images, strict=True)}
    return made


def _elsewhere(source: str | None, device: str, seeds: Sequence[int], settings: dict[str, Any]) -> Pictures:
    return alone(NestARPipeline.from_pretrained(source, device=device), seeds, **settings)


def in_another_process(source: str | None, device: str, seeds: Sequence[int], **settings: Any) -> Pictures:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_elsewhere, (source, device, seeds, settings))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB; infinite for equal pictures."""
    error = np.square(one.astype(np.float64) - other).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def compared(expected: Pictures, made: Pictures) -> dict[str, Any]:
    """Of the pictures that both have."""
    found = sorted(psnr(expected[seed], picture) for seed, picture in made.items())
    others = [value for value in found if value < math.inf]
    return {
        "pictures": len(found),
        "equal": len(found) - len(others),
        "at_least_35_db": round(sum(value >= BOUND for value in found) / len(found), 4),
        "least_psnr": round(others[0], 1) if others else None,
        "median_psnr_of_others": round(others[len(others) // 2], 1) if others else None,
    }


def measure(source: str | None, device: str, count: int, few: int, **settings: Any) -> dict[str, Any]:
    """`few`: pictures of the two arrangements that are to be equal bit for bit."""
    pipeline = NestARPipeline.from_pretrained(source, device=device)
    seeds = range(count)
    threads = torch.get_num_threads()
    expected = alone(pipeline, seeds, **settings)
    report = {
        "device": str(pipeline.device),
        "threads": threads,
        "cores": os.cpu_count(),
        "after_others": compared(expected, alone(pipeline, seeds[:few][::-1], **settings)),
        "another_process": compared(
            expected, in_another_process(source, device, list(seeds[:few]), **settings)
        ),
        "in_a_batch_of_16": compared(expected, in_batches(pipeline, seeds, **settings)),
    }
    if pipeline.device.type == "cpu":
        torch.set_num_threads(1)
        report["on_one_thread"] = compared(expected, alone(pipeline, seeds, **settings))
        torch.set_num_threads(threads)
    else:
        processor = NestARPipeline.from_pretrained(source, device="cpu")
        report["on_the_cpu"] = compared(expected, alone(processor, seeds, **settings))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--few", type=int, default=32)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repo", help="weights; default: those embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "same_picture.json")
    arguments = parser.parse_args()
    report = measure(arguments.repo, arguments.device, arguments.seeds, arguments.few, k=arguments.k)
    report = {"k": arguments.k, **report}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
