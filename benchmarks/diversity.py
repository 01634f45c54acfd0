"""Which module decides how much: `python -m benchmarks.diversity` writes `results/diversity_<weights>.json`.

For every class, parents are sampled, and siblings of each that keep its modules 1 ... m; see
`nestar.evaluation.diversity.Explained`. Both ends, no module kept and all kept, are measured too: they are 0
and 1 by definition, and what is found there says how far noise and rounding reach. The page shows the result
for the weights it was measured on, which the file names by their fingerprint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import positive, sentences, write_report
from nestar.batches import Rows
from nestar.evaluation.diversity import (
    DIGITS,
    RESULTS,
    Explained,
    FeatureSpace,
    fingerprints,
    measure,
    results_file,
)
from nestar.evaluation.report import SEED_STRIDE
from nestar.frames import Frame
from nestar.pipeline import NestARPipeline
from nestar.settings import SOLVING, SampleSettings, check_choice, typed


def mean_of(measured: Sequence[Explained]) -> dict[str, list[float]]:
    """Mean over classes, with the standard error of that mean; no two classes share a seed."""
    averaged: dict[str, list[float]] = {}
    for name in ("shares", "increments"):
        averaged[name] = [
            round(statistics.fmean(values), DIGITS)
            for values in zip(*(getattr(each, name) for each in measured), strict=True)
        ]
        error = name.removesuffix("s") + "_errors"
        averaged[error] = [
            round(sum(value**2 for value in values) ** 0.5 / len(measured), DIGITS)
            for values in zip(*(getattr(each, error) for each in measured), strict=True)
        ]
    return averaged


def measure_class(
    pipeline: NestARPipeline, space: FeatureSpace, settings: SampleSettings, parents: int, siblings: int
) -> Explained:
    """One class to the end, with both ends measured."""

    def stream(settings: SampleSettings, rows: Rows, cancel: threading.Event | None) -> Iterator[Frame]:
        return pipeline.stream_rows(settings, rows, cancel=cancel, previews=False)

    result, nesting = None, pipeline.plan_of(settings)
    for step in measure(stream, nesting, space, settings, parents=parents, siblings=siblings, ends=True):
        if isinstance(step, Explained):
            result = step
    assert result is not None  # nothing cancels it
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nesting", default="k4-lattice", help="weights by name (default: k4-lattice)")
    parser.add_argument("--repo", help="folder or Hub repository of the weights (default: embedded)")
    parser.add_argument("--classes", nargs="+", help="(default: all)")
    parser.add_argument("--parents", type=positive, default=32, help="a class (default: 32)")
    parser.add_argument(
        "--siblings", type=positive, default=2, help="of each parent, for each m (default: 2)"
    )
    for name in SOLVING:
        parser.add_argument(f"--{name}", type=typed, help="(default: what the weights begin with)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help=f"file to write (default: in {RESULTS})")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    with sentences(parser):
        pipeline = NestARPipeline.from_pretrained(arguments.repo, device=arguments.device)
        space = FeatureSpace()
        nesting = check_choice("nesting", arguments.nesting, tuple(pipeline.nestings))
        given = {name: value for name in SOLVING if (value := getattr(arguments, name)) is not None}
        given |= {"nesting": nesting, "seed": arguments.seed}
        first = pipeline.settings(class_name=pipeline.classes[0], **given)
        chosen = {name: getattr(first, name) for name in ("nesting", *SOLVING, "seed")}
        measured: dict[str, Explained] = {}
        for class_name in tqdm(arguments.classes or pipeline.classes):
            seed = arguments.seed + SEED_STRIDE * len(measured)
            settings = pipeline.settings(class_name=class_name, **chosen | {"seed": seed})
            measured[settings.class_name] = measure_class(
                pipeline, space, settings, arguments.parents, arguments.siblings
            )
    report = {
        **chosen,
        **fingerprints(pipeline.models[nesting], pipeline.tokenizer, space),
        "parents": arguments.parents,
        "siblings": arguments.siblings,
        "device": str(pipeline.device),
        "seconds": round(time.monotonic() - began, 1),
        "mean": mean_of(list(measured.values())),
        "classes": {name: each.to_json() for name, each in measured.items()},
    }
    write_report(arguments.out or results_file(nesting), report)
    print(json.dumps(report["mean"]))


if __name__ == "__main__":
    main()
