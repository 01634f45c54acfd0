"""The evaluation of a nesting's samples against Tiny Worlds, with the ceilings that say what is reachable.

Four sets of equal size are described by the same features: reference pictures (held-out stream), another
set of references, that other set decoded from its own tokens, and samples. The last three are each compared
with the first: references against references is the ceiling of any sampler, decoded references that of any
sampler behind this tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED
from nestar.evaluation import metrics
from nestar.evaluation.features import FeatureNetwork
from nestar.model import NestAR
from nestar.sampler import SolverSettings
from nestar.tokenizer import Tokenizer
from nestar.training.nesting import sample_images

BATCH = 64
NEIGHBOURS = 3
"""k of precision and recall, as in Kynkaanniemi et al."""

SEED_STRIDE = 1_000_000
"""Between the sample seeds of two evaluations, so that they share no picture."""


@dataclass(frozen=True)
class Description:
    """A set of pictures as the metrics see it, on the CPU; the pictures themselves are not kept."""

    class_ids_N: Tensor
    features_ND: Tensor
    logits_NK: Tensor
    factors_NF: Tensor
    across_N: Tensor  # gradient across token borders
    inside_N: Tensor  # gradient elsewhere


@torch.inference_mode()
def evaluate(
    model: NestAR,
    tokenizer: Tokenizer,
    features: FeatureNetwork,
    *,
    samples: int = 5000,
    settings: SolverSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Sample, describe, compare; the report can be written as JSON.

    Model, tokenizer and feature network stand on one device. Classes take turns.

    Args:
        samples: pictures in each of the four sets.
        seed: of the samples; the references are the same in every evaluation.
        progress: show a bar on standard error.

    Returns:
        The figures of `compare` for the samples, and under `reference` and `reconstruction` for the two
        ceilings; `precision_of_reference` and `recall_of_reference`: shares of the first ceiling;
        `tokenizer_psnr` in dB; nesting, samples, seed, settings, seconds and sampling_seconds.

    Raises:
        ValueError: too few samples, or model, tokenizer and features that do not fit together.
    """
    settings = settings or SolverSettings()
    size = _check(model, tokenizer, features, samples)
    began = time.perf_counter()
    sampled = 0.0
    ids, seeds = tiny_worlds.draw_indices(0, 2 * samples, HELD_OUT_SEED)
    parts = [slice(start, min(start + BATCH, samples)) for start in range(0, samples, BATCH)]
    decibels: list[Tensor] = []

    def drawn(part: slice) -> Tensor:
        return tiny_worlds.draw(ids[part], seeds[part], size).images.to(model.device)

    def decoded(part: slice) -> Tensor:
        images = drawn(part)
        rebuilt = tokenizer.decode(tokenizer.encode(images))
        decibels.append(metrics.psnr(rebuilt, images).cpu())
        return rebuilt

    def made(part: slice) -> Tensor:
        nonlocal sampled
        start = time.perf_counter()
        own = [seed * SEED_STRIDE + i for i in range(part.start, part.stop)]
        images = sample_images(model, tokenizer, ids[part], own, settings)
        sampled += time.perf_counter() - start
        return images

    with tqdm(total=4 * samples, unit="image", disable=not progress) as bar:

        def described(name: str, source: Callable[[slice], Tensor], slices: list[slice]) -> Description:
            bar.set_description(name)
            own = torch.cat([ids[part] for part in slices])
            return describe(_counted(source, slices, bar), own, features, tokenizer.stride)

        others = [slice(part.start + samples, part.stop + samples) for part in parts]
        real = described("reference", drawn, parts)
        other = described("reference again", drawn, others)
        rebuilt = described("reconstruction", decoded, others)
        fake = described("samples", made, parts)
    report, ceiling = compare(real, fake), compare(real, other)
    return {
        "nesting": model.config.nesting.name,
        "samples": samples,
        "seed": seed,
        "settings": asdict(settings),
        **report,
        "precision_of_reference": _share(report["precision"], ceiling["precision"]),
        "recall_of_reference": _share(report["recall"], ceiling["recall"]),
        "tokenizer_psnr": torch.cat(decibels).mean().item(),
        "reference": ceiling,
        "reconstruction": compare(real, rebuilt),
        "sampling_seconds": round(sampled, 2),
        "seconds": round(time.perf_counter() - began, 2),
    }


def describe(
    batches: Iterator[Tensor], class_ids_N: Tensor, features: FeatureNetwork, stride: int
) -> Description:
    """Read batches of pictures (B, 3, H, W), which hold the classes `class_ids_N` in this order."""
    device = features.stem.weight.device
    parts: list[tuple[Tensor, ...]] = []
    start = 0
    for images in batches:
        ids = class_ids_N[start : start + len(images)].to(device)
        start += len(images)
        reading = features(images.to(device))
        read = (
            reading.features,
            reading.class_logits,
            features.read_factors(reading, ids),
            *metrics.seam_gradients(images, stride),
        )
        parts.append(tuple(value.cpu() for value in read))
    return Description(class_ids_N, *(torch.cat(column) for column in zip(*parts, strict=True)))


def compare(real: Description, fake: Description) -> dict[str, Any]:
    """Every figure of a set of pictures, those that need it against `real`."""
    precision, recall = metrics.precision_recall(real.features_ND, fake.features_ND, NEIGHBOURS)
    accuracy, by_class = metrics.class_accuracy(fake.logits_NK, fake.class_ids_N)
    coverage = metrics.factor_coverage(real.factors_NF, real.class_ids_N, fake.factors_NF, fake.class_ids_N)
    return {
        "fid": metrics.fid(real.features_ND, fake.features_ND),
        "inception_score": metrics.inception_style_score(fake.logits_NK),
        "precision": precision,
        "recall": recall,
        "class_accuracy": accuracy,
        "class_accuracy_by_class": by_class,
        "seams": metrics.seam_ratio(fake.across_N, fake.inside_N),
        "diversity": metrics.mean_pairwise_distance(fake.features_ND, fake.class_ids_N),
        "vendi": metrics.vendi_score(fake.features_ND),
        "coverage": coverage,
    }


def _check(model: NestAR, tokenizer: Tokenizer, features: FeatureNetwork, samples: int) -> int:
    """Side of the pictures in pixels, if everything fits."""
    nesting, classes = model.config.nesting, len(tiny_worlds.CLASSES)
    if samples < 2 * classes:
        raise ValueError(f"An evaluation takes at least {2 * classes} samples (two a class), not {samples}.")
    if model.config.classes != classes:
        raise ValueError(f"The model knows {model.config.classes} classes, Tiny Worlds has {classes}.")
    if model.config.channels != tokenizer.channels:
        raise ValueError(
            f"The model makes tokens of {model.config.channels} channels, the tokenizer takes "
            f"{tokenizer.channels}."
        )
    size = features.config.size
    if (nesting.height * tokenizer.stride, nesting.width * tokenizer.stride) != (size, size):
        raise ValueError(
            f"A grid of {nesting.height}x{nesting.width} tokens of {tokenizer.stride} pixels "
            f"does not make the {size}x{size} pictures that the feature network reads."
        )
    return size


def _counted(source: Callable[[slice], Tensor], slices: list[slice], bar: tqdm) -> Iterator[Tensor]:
    for part in slices:
        yield source(part)
        bar.update(part.stop - part.start)


def _share(value: float, ceiling: float) -> float | None:
    return value / ceiling if ceiling else None
