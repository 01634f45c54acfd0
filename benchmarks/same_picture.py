"""Whether a seed's picture is always the same: `python -m benchmarks.same_picture` writes
`results/same_picture.json`.

Each picture is made alone, and then again: after others, in another process, on one thread, inside a batch of
16, and as the page makes the pictures of visitors who wait: eight together of different classes, temperatures
and guidance. Of each arrangement: how many pictures are equal bit for bit, and the PSNR of the others.
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

from benchmarks.common import RESULTS, positive, sentences, write_report
from nestar.batches import Rows
from nestar.pipeline import NestARPipeline
from nestar.settings import RANGES, find_nesting
from nestar.ui.together import MOST

Pictures = dict[int, np.ndarray]

BATCH = int(RANGES["count"][1])
BOUND = 35.0
"""PSNR in dB that a picture is to keep wherever it is made."""


TEMPERATURES, CFGS = (0.8, 1.0, 1.15, 1.3, 1.5), (1.5, 3.0, 6.0)
"""Of visitors who do not agree."""


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


def wish(pipeline: NestARPipeline, seed: int) -> dict[str, Any]:
    """What the visitor with this seed asks for."""
    return {
        "class_name": pipeline.classes[seed % len(pipeline.classes)],
        "temperature": TEMPERATURES[seed % len(TEMPERATURES)],
        "cfg": CFGS[seed % len(CFGS)],
        "seed": seed,
    }


def among_visitors(pipeline: NestARPipeline, seeds: Sequence[int], **settings: Any) -> dict[str, Any]:
    """Visitors' pictures made as `nestar.ui.together` makes them, against each alone."""
    alone, made = {}, {}
    for first in range(0, len(seeds), MOST):
        own = [wish(pipeline, seed) for seed in seeds[first : first + MOST]]
        for each in own:
            alone[each["seed"]] = np.asarray(pipeline(**each, **settings).image)
        rows = Rows(
            seeds=tuple(each["seed"] for each in own),
            temperatures=tuple(each["temperature"] for each in own),
            cfgs=tuple(each["cfg"] for each in own),
            classes=tuple(each["class_name"] for each in own),
        )
        checked = pipeline.settings(**own[0], **settings)
        for frame in pipeline.stream_rows(checked, rows, previews=False):
            if frame.final:
                finished = zip(own, frame.images, strict=True)
                made |= {each["seed"]: np.asarray(image) for each, image in finished}
    return compared(alone, made)


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
        "fingerprint": pipeline.models.fingerprint(find_nesting(pipeline.nestings, settings["k"], "lattice")),
        "device": str(pipeline.device),
        "threads": threads,
        "cores": os.cpu_count(),
        "after_others": compared(expected, alone(pipeline, seeds[:few][::-1], **settings)),
        "another_process": compared(
            expected, in_another_process(source, device, list(seeds[:few]), **settings)
        ),
        "in_a_batch_of_16": compared(expected, in_batches(pipeline, seeds, **settings)),
        "among_visitors": among_visitors(pipeline, seeds, **settings),
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
    parser.add_argument("--seeds", type=positive, default=200)
    parser.add_argument("--few", type=positive, default=32)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repo", help="weights; default: those embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "same_picture.json")
    arguments = parser.parse_args()
    with sentences(parser):
        report = measure(arguments.repo, arguments.device, arguments.seeds, arguments.few, k=arguments.k)
    report = {"k": arguments.k, **report}
    write_report(arguments.out, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
