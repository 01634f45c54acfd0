"""How different samples of one class are, and which scaled module decides how much of it.

Pictures are compared by their features: the penultimate layer of the feature network (`features`).

Suffixes: N pictures, D features, P parents, S siblings with their parent, M modules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nestar import batches
from nestar.checkpoints import EMBEDDED
from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED
from nestar.evaluation.features import FeatureNetwork, load_features
from nestar.images import from_pil
from nestar.model import NestAR, fingerprint_of, read_json
from nestar.nesting import Nesting
from nestar.settings import SampleSettings, SettingsError
from nestar.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nestar.frames import Frame

RowStream = Callable[[SampleSettings, batches.Rows, threading.Event | None], Iterator["Frame"]]

DIGITS = 4
"""Digits of a share that are worth keeping."""

RESULTS = EMBEDDED.parent / "benchmarks" / "results"


def results_file(nesting: str) -> Path:
    """Where `python -m benchmarks.diversity` leaves what it measured on weights of this name."""
    return RESULTS / f"diversity_{nesting}.json"


def stored_results(
    nesting: str, model: NestAR, tokenizer: Tokenizer, space: FeatureSpace
) -> dict[str, Any] | None:
    """What was measured on exactly these weights, behind this tokenizer and with these features, or None if
    nothing was."""
    file = results_file(nesting)
    if not file.exists():
        return None
    stored = read_json(file)
    own = fingerprints(model, tokenizer, space)
    return stored if {name: stored.get(name) for name in own} == own else None


def fingerprints(model: NestAR, tokenizer: Tokenizer, space: FeatureSpace) -> dict[str, str]:
    """Fingerprints of what results depend on, by their names in a stored file."""
    return {
        "weights": fingerprint_of(model),
        "tokenizer": tokenizer.fingerprint,
        "features": space.fingerprint,
    }


class FeatureSpace:
    """The feature network, loaded when it is first asked for, and real pictures as it sees them.

    It stays on the CPU, where a batch of 16 takes a few dozen milliseconds: what is asked is a visitor's
    sixteen pictures, and on ZeroGPU this process has no GPU.
    """

    def __init__(self, folder: Path = EMBEDDED / "features"):
        self.folder = folder
        self._real = lru_cache(maxsize=64)(self._draw_real)

    @cached_property
    def network(self) -> FeatureNetwork:
        """Raises WeightsError if the folder holds no whole feature network."""
        return load_features(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Of the network's weights: distances of two networks do not compare."""
        return fingerprint_of(self.network)

    @torch.inference_mode()
    def describe_images(self, images_N3HW: Tensor) -> Tensor:
        """Features (N, D) of images in [-1, 1]; those of another size than the network reads are scaled."""
        size = self.network.size
        if images_N3HW.shape[-2:] != (size, size):
            images_N3HW = F.interpolate(images_N3HW, size=(size, size), mode="bilinear", antialias=True)
        return self.network(images_N3HW).features

    def describe(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (N, D) of pictures of one size."""
        return self.describe_images(from_pil(pictures))

    def real(self, class_name: str, count: int) -> Tensor | None:
        """Features (count, D) of held-out Tiny Worlds, or None for a class that Tiny Worlds has not."""
        return self._real(class_name, count) if class_name in tiny_worlds.CLASSES else None

    def _draw_real(self, class_name: str, count: int) -> Tensor:
        class_ids, seeds = tiny_worlds.draw_indices(0, count * len(tiny_worlds.CLASSES), HELD_OUT_SEED)
        own = class_ids == tiny_worlds.CLASSES.index(class_name)
        return self.describe_images(tiny_worlds.draw(class_ids[own], seeds[own], self.network.size).images)


def distances(features_ND: Tensor) -> Tensor:
    """Euclidean distance of every two pictures, (N, N) float64."""
    features_ND = features_ND.double()
    return (features_ND[:, None] - features_ND[None]).square().sum(-1).sqrt()


def summary(distances_NN: Tensor) -> dict[str, Any]:
    """The matrix, and mean, least and most over pairs of two different pictures, as JSON values.

    Raises:
        ValueError: fewer than two pictures.
    """
    count = len(distances_NN)
    if count < 2:
        raise ValueError("Distances take at least two pictures.")
    pairs = distances_NN[*torch.triu_indices(count, count, offset=1)]
    return {
        "matrix": [[round(value, 3) for value in row] for row in distances_NN.tolist()],
        "mean": round(pairs.mean().item(), 3),
        "least": round(pairs.min().item(), 3),
        "most": round(pairs.max().item(), 3),
    }


@dataclass(frozen=True)
class Explained:
    """How much of the differences among samples of one class each module decides.

    Attributes:
        shares: after modules 0 ... M, 1 - (mean squared distance of samples that share modules 1 ... m) /
            (that of unrelated samples): 0 where nothing is shared, 1 where all is.
        increments: what each module 1 ... M adds.
        share_errors, increment_errors: standard errors, by the jackknife over parents.
        parents, siblings: how many of each; every parent has so many siblings for each m.
        ends: the shares after no module and after all as they were measured, or None: they were not. They
            are 0 and 1 by definition; what is found says how far noise and rounding reach.
    """

    shares: tuple[float, ...]
    share_errors: tuple[float, ...]
    increments: tuple[float, ...]
    increment_errors: tuple[float, ...]
    parents: int
    siblings: int
    ends: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, rounded."""
        rounded = {
            name: [round(value, DIGITS) for value in getattr(self, name)]
            for name in ("shares", "share_errors", "increments", "increment_errors")
        }
        ends = {"ends": [round(value, DIGITS) for value in self.ends]} if self.ends else {}
        return {**rounded, **ends, "parents": self.parents, "siblings": self.siblings}


def explained(unrelated_PD: Tensor, families_MPSD: Tensor, *, ends: bool = False) -> Explained:
    """Which share of the squared distance among samples the modules up to m decide.

    Args:
        unrelated_PD: features of the parents, which share nothing.
        families_MPSD: for each number of modules kept, 1 ... M-1, features of each parent and its siblings.
        ends: the families are for 0 ... M modules kept, so that both ends are measured too.

    Raises:
        SettingsError: fewer than three parents, or all samples are equal.
    """
    parents = len(unrelated_PD)
    if parents < 3:
        raise SettingsError(f"At least three unrelated samples are needed, not {parents}.")
    total_PP = distances(unrelated_PD).square()
    within_MP = torch.stack([_pair_means(family_PSD) for family_PSD in families_MPSD.double()])
    total = total_PP.sum() / (parents * (parents - 1))
    if total <= 1e-6 * unrelated_PD.double().square().sum(1).mean():
        raise SettingsError("All samples are equal here, so there is no difference to explain.")

    measured_ends = None
    if ends:
        first, last = (1 - within_MP[[0, -1]].mean(1) / total).tolist()
        measured_ends, within_MP = (first, last), within_MP[1:-1]

    def shares(within_M: Tensor, total: Tensor) -> Tensor:
        inner = 1 - within_M / total
        return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])

    shares_M = shares(within_MP.mean(1), total)
    without_PM = torch.stack(
        [  # each with one parent left out
            shares(
                (within_MP.sum(1) - within_MP[:, i]) / (parents - 1),
                (total_PP.sum() - 2 * total_PP[i].sum()) / ((parents - 1) * (parents - 2)),
            )
            for i in range(parents)
        ]
    )
    return Explained(
        tuple(shares_M.tolist()),
        tuple(_jackknife_error(without_PM).tolist()),
        tuple(shares_M.diff().tolist()),
        tuple(_jackknife_error(without_PM.diff(dim=1)).tolist()),
        parents,
        families_MPSD.shape[2] - 1,
        measured_ends,
    )


def _pair_means(family_PSD: Tensor) -> Tensor:
    """Mean squared distance of the pairs in each family, (P,)."""
    size = family_PSD.shape[1]
    centred_PSD = family_PSD - family_PSD.mean(1, keepdim=True)
    # The sum over ordered pairs is 2 S times the sum of squares around the mean.
    return 2 * centred_PSD.square().sum((1, 2)) / (size - 1)


def _jackknife_error(without_PM: Tensor) -> Tensor:
    """Standard error of a statistic from its values with one of P left out."""
    count = len(without_PM)
    return ((count - 1) * without_PM.var(0, correction=0)).sqrt()


@dataclass(frozen=True)
class Progress:
    """How far a measurement is, in patches made one after another."""

    done: int
    of: int


def measure(
    stream: RowStream,
    nesting: Nesting,
    space: FeatureSpace,
    settings: SampleSettings,
    *,
    parents: int,
    siblings: int = 1,
    ends: bool = False,
    cancel: threading.Event | None = None,
) -> Iterator[Progress | Explained]:
    """Measure what each module decides: `Progress` after every patch, `Explained` at the end.

    `stream` is the pipeline's `stream_rows`; of every batch only the last frame's pictures are looked at.
    Parents have the seeds from `settings.seed` on, siblings those after them. Cancelled, it ends without a
    result.

    Raises:
        SettingsError: at the first step: one module decides all, or all samples are equal.
    """
    check_measurable(settings, nesting)
    kept = range(nesting.modules + 1) if ends else range(1, nesting.modules)
    own = batches.seeds_from(settings.seed, parents)
    plans = [batches.Rows(own)]
    for modules in kept:
        for _ in range(siblings):
            (first,) = batches.seeds_from(settings.seed + parents * len(plans), 1)
            plans.append(batches.family(own, first, modules))
    features: list[Tensor] = []
    for number, rows in enumerate(plans):
        last: Frame | None = None
        for frame in stream(settings, rows, cancel):
            last = frame
            yield Progress(number * nesting.evaluations + frame.evaluations, len(plans) * nesting.evaluations)
        if last is None or not last.final:
            return
        features.append(space.describe(last.images))
    unrelated_PD, *others = features
    by_module = [others[i : i + siblings] for i in range(0, len(others), siblings)]
    families_MPSD = torch.stack([torch.stack([unrelated_PD, *group], 1) for group in by_module])
    yield explained(unrelated_PD, families_MPSD, ends=ends)


def check_measurable(settings: SampleSettings, nesting: Nesting) -> None:
    """Raise SettingsError where it is plain beforehand which module decides what."""
    if nesting.modules == 1:
        raise SettingsError(f"{nesting.name} has one module, so that one decides all.")
    if settings.temperature == 0:
        raise SettingsError("At temperature 0 all seeds give one picture: there is no difference to explain.")
