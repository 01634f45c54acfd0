"""How far figures of so many samples scatter by chance: `python -m benchmarks.noise` writes
`results/noise.json`.

Samples of the embedded k = 4 are split at random into two disjoint sets of N, each class alike, and both are
compared with the same references; what their figures differ by is chance. The experiments' findings take the
size of it from here (`nestar.evaluation.experiments.findings`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import RESULTS, positive, sentences, write_report
from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED
from nestar.engines import Engines
from nestar.evaluation import metrics
from nestar.evaluation.inception import features_named
from nestar.evaluation.report import BATCH, SEED_STRIDE
from nestar.pipeline import NestARPipeline
from nestar.sampler import sample_images

NESTING = "k4-lattice"
SEED = 77
"""Of the samples; no evaluation takes it."""
SIZES = (204, 504, 804, 1200)
"""Samples of a set: whole turns of the classes, the last one half of all."""
SPLITS = 24


@torch.inference_mode()
def described(pipeline: NestARPipeline, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, D) of references and of samples, and the classes (N,) of both."""
    features, model = features_named(None, pipeline.device), pipeline.models[NESTING]
    ids_N, seeds_N = tiny_worlds.draw_indices(0, count, HELD_OUT_SEED)
    size = model.config.nesting.height * pipeline.tokenizer.stride
    engines, real, fake = Engines(model), [], []
    for start in tqdm(range(0, count, BATCH), desc="samples", unit="batch"):
        ids_B = ids_N[start : start + BATCH]
        drawn = tiny_worlds.draw(ids_B, seeds_N[start : start + BATCH], size).images
        own = [SEED * SEED_STRIDE + start + row for row in range(len(ids_B))]
        made = sample_images(model, pipeline.tokenizer, ids_B, own, engines=engines)
        for images, taken in ((drawn, real), (made, fake)):
            taken.append(features.describe(images.to(pipeline.device), ids_B.to(pipeline.device))[0].cpu())
    return torch.cat(real), torch.cat(fake), ids_N


def halves(ids_N: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of two disjoint sets of `size`, with as many of every class."""
    sets: tuple[list[Tensor], list[Tensor]] = ([], [])
    each = size // len(tiny_worlds.CLASSES)
    for class_id in range(len(tiny_worlds.CLASSES)):
        own = (ids_N == class_id).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        for place, taken in enumerate(sets):
            taken.append(own[place * each : (place + 1) * each])
    return torch.cat(sets[0]), torch.cat(sets[1])


def row(real_ND: Tensor, fake_ND: Tensor, ids_N: Tensor, size: int, splits: int) -> dict[str, Any]:
    """Means and standard errors of sets of `size`, and these errors as `findings` states them."""
    generator = torch.Generator().manual_seed(size)
    figures: dict[str, list[tuple[float, float]]] = {"fid": [], "precision": [], "recall": []}
    for _ in tqdm(range(splits), desc=f"{size} samples", unit="split"):
        sets = [fake_ND[index] for index in halves(ids_N, size, generator)]
        figures["fid"].append(tuple(metrics.fid(real_ND[:size], each) for each in sets))
        shares = [metrics.precision_recall(real_ND[:size], each) for each in sets]
        for name, pair in zip(("precision", "recall"), zip(*shares, strict=True), strict=True):
            figures[name].append(pair)
    found: dict[str, Any] = {"samples": size, "splits": splits}
    for name, pairs in figures.items():
        mean = statistics.fmean(value for pair in pairs for value in pair)
        error = (statistics.fmean((one - other) ** 2 for one, other in pairs) / 2) ** 0.5
        found |= {name: round(mean, 4), f"{name}_error": round(error, 4)}
        if name == "fid":
            found["fid_error_times_fourth_root"] = round(error / mean * size**0.25, 3)
        else:
            independent = (mean * (1 - mean) / size) ** 0.5
            found[f"{name}_error_over_independent"] = round(error / independent, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", type=positive, default=SPLITS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "noise.json")
    arguments = parser.parse_args()
    with sentences(parser):
        pipeline = NestARPipeline.from_pretrained(device=arguments.device)
    described_sets = described(pipeline, 2 * SIZES[-1])
    report = {
        "nesting": NESTING,
        "fingerprint": pipeline.models.fingerprint(NESTING),
        "device": str(pipeline.device),
        "rows": [row(*described_sets, size, arguments.splits) for size in SIZES],
    }
    write_report(arguments.out, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
