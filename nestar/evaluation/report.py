"""The evaluation of a nesting's samples against Tiny Worlds, with the ceilings that say what is reachable.

Four sets of equal size are described by the same features: reference pictures (held-out stream), another
set of references, that other set decoded from its own tokens, and samples. The last three are each compared
with the first: references against references is the ceiling of any sampler, decoded references that of any
sampler behind this tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED, held_out_tokens
from nestar.engines import Engines
from nestar.evaluation import metrics
from nestar.evaluation.previews import coarse_to_fine, preview_psnr, psnr_of_tokens
from nestar.evaluation.redrawing import redrawn_psnr
from nestar.model import NestAR, fingerprint_of
from nestar.nesting import Nesting
from nestar.sampler import SolverSettings, sample_images
from nestar.tokenizer import Tokenizer

BATCH = 64

PREVIEWED = 256
"""Samples of an evaluation whose previews are looked at, too."""

SEED_STRIDE = 1_000_000
"""Between the sample seeds of two evaluations, so that they share no picture."""


class PictureFeatures(Protocol):
    """What an evaluation needs of a network: the feature network, or another (`inception`)."""

    @property
    def size(self) -> int | None:
        """Side of the pictures it reads, in pixels; None: any."""

    def describe(
        self, images_B3HW: Tensor, class_ids_B: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features (B, D) of images in [-1, 1]; class logits (B, K) and factors (B, F) where it has any."""


@dataclass(frozen=True)
class Description:
    """A set of pictures as the metrics see it, on the CPU; the pictures themselves are not kept.

    Logits, factors and how near drawings of these are stand where the network that described it knows the
    classes of Tiny Worlds, else None.
    """

    class_ids_N: Tensor
    features_ND: Tensor
    logits_NK: Tensor | None
    factors_NF: Tensor | None
    redrawn_N: Tensor | None  # dB, see `redrawing`
    across_N: Tensor  # gradient across token borders
    inside_N: Tensor  # gradient elsewhere


def instruments(tokenizer: Tokenizer, features: PictureFeatures) -> dict[str, str]:
    """Fingerprints of what pictures are made and measured with, beside the nesting's weights."""
    kind = type(features).__name__
    library = getattr(features, "library", None)  # of Inception there are two, which give other numbers
    return {
        "tokenizer": tokenizer.fingerprint,
        "features": fingerprint_of(features, kind),
        **({"library": library} if library else {}),
    }


def check_samples(samples: int) -> None:
    """Raises ValueError where there are too few for an evaluation."""
    least = 2 * len(tiny_worlds.CLASSES)
    if samples < least:
        raise ValueError(f"An evaluation takes at least {least} samples (two a class), not {samples}.")


class Evaluator:
    """Compares sets of samples with reference pictures that are drawn and described once.

    Tokenizer, features and the models to be measured stand on one device. Classes take turns.

    Args:
        samples: pictures in every set.
        size: side of the pictures in pixels.
        first: number of the first held-out picture that is used; a multiple of the number of classes, so that
            all have the same classes.
        bar: is moved on by every picture, if given.

    Raises:
        ValueError: fewer than two samples a class.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        features: PictureFeatures,
        *,
        samples: int,
        size: int,
        first: int = 0,
        bar: tqdm | None = None,
    ):
        check_samples(samples)
        self.tokenizer, self.features, self.samples, self.size = tokenizer, features, samples, size
        self.bar = tqdm(disable=True) if bar is None else bar
        self.device = next(tokenizer.parameters()).device
        self._first = first
        self._ids, self._seeds = tiny_worlds.draw_indices(first, 2 * samples, HELD_OUT_SEED)

    @cached_property
    @torch.inference_mode()
    def real(self) -> Description:
        """The references that everything is compared with."""
        return self._described("reference", self._drawn, 0, redrawn=False)  # which no figure asks of it

    @property
    def has_references(self) -> bool:
        """Whether `real` has been drawn and described already."""
        return "real" in vars(self)

    @cached_property
    @torch.inference_mode()
    def ceilings(self) -> dict[str, Any]:
        """Figures of other references (`reference`), of these decoded from their own tokens
        (`reconstruction`), and `tokenizer_psnr` in dB."""
        decibels: list[Tensor] = []

        def decoded(part: slice) -> Tensor:
            images = self._drawn(part)
            rebuilt = self.tokenizer.decode(self.tokenizer.encode(images))
            decibels.append(metrics.psnr(rebuilt, images).cpu())
            return rebuilt

        other = self._described("reference again", self._drawn, self.samples)
        rebuilt = self._described("reconstruction", decoded, self.samples)
        return {
            "tokenizer_psnr": torch.cat(decibels).mean().item(),
            "reference": compare(self.real, other),
            "reconstruction": compare(self.real, rebuilt),
        }

    @cached_property
    def _given(self) -> Tensor:
        """Tokens (N, n, C), row by row, of pictures of the samples' classes that are no references."""
        classes, side = len(tiny_worlds.CLASSES), self.size // self.tokenizer.stride
        first = self._first + -(-2 * self.samples // classes) * classes  # classes take turns from there, too
        rows = Nesting.one_shot(side, side)
        return held_out_tokens(self.tokenizer, rows, self.samples, BATCH, first)[0]

    @torch.inference_mode()
    def measure(
        self, model: NestAR, settings: SolverSettings, seed: int, *, given: int = 0
    ) -> dict[str, Any]:
        """Sample, describe, compare: nesting, samples, seed, settings, the figures of `compare`, and
        sampling_seconds.

        Args:
            given: modules, from the first on, whose tokens are those of other drawn pictures of the same
                classes; the rest is sampled.

        Raises:
            ValueError: the model does not fit the tokenizer and the features, or no module is left to sample.
        """
        if picture_size(model, self.tokenizer, self.features) != self.size:
            raise ValueError(
                f"The model does not make the {self.size}x{self.size} pictures of the references."
            )
        real = self.real  # before the clock starts
        given_NKC = self._given_tokens(model.config.nesting, given) if given else None
        sampled, engines = 0.0, Engines(model)

        def made(part: slice) -> Tensor:
            nonlocal sampled
            began = time.perf_counter()
            own = self._sample_seeds(seed, part)
            taken = None if given_NKC is None else given_NKC[part]
            images = sample_images(model, self.tokenizer, self._ids[part], own, settings, taken, engines)
            sampled += time.perf_counter() - began
            return images

        figures = compare(real, self._described("samples", made, 0))
        return {
            "nesting": model.config.nesting.name,
            "samples": self.samples,
            "seed": seed,
            "settings": asdict(settings),
            **figures,
            "sampling_seconds": round(sampled, 2),
        }

    def previews(self, model: NestAR, settings: SolverSettings, seed: int) -> dict[str, Any] | None:
        """Whether the first PREVIEWED of these samples grow coarse to fine, see `previews.coarse_to_fine`;
        under `of_real`: whether as many drawn pictures' own tokens do, which the decoder alone decides."""
        nesting, count = model.config.nesting, min(PREVIEWED, self.samples)
        parts = _parts(count)
        rows = [
            preview_psnr(model, self.tokenizer, self._ids[part], self._sample_seeds(seed, part), settings)
            for part in parts
        ]
        growth = coarse_to_fine(torch.cat(rows))
        if growth is None:
            return None
        tokens_NnC = held_out_tokens(self.tokenizer, nesting, count, BATCH)[0]
        real = [psnr_of_tokens(tokens_NnC[part], self.tokenizer, nesting) for part in parts]
        return growth | {"of_real": coarse_to_fine(torch.cat(real))}

    def _given_tokens(self, nesting: Nesting, modules: int) -> Tensor:
        """What the first modules know of the given pictures, (N, K, C) in the nesting's order."""
        if not 0 < modules < nesting.modules:
            raise ValueError(f"{nesting.name} has {nesting.modules} modules: {modules} cannot be given.")
        known = list(nesting.flat[: nesting.scales[modules - 1].tokens])
        return self._given[:, known]

    @staticmethod
    def _sample_seeds(seed: int, part: slice) -> list[int]:
        return [seed * SEED_STRIDE + i for i in range(part.start, part.stop)]

    def _drawn(self, part: slice) -> Tensor:
        return tiny_worlds.draw(self._ids[part], self._seeds[part], self.size).images.to(self.device)

    def _described(
        self, name: str, source: Callable[[slice], Tensor], first: int, redrawn: bool = True
    ) -> Description:
        """The pictures that `source` gives for the held-out indices from `first` on."""
        self.bar.set_description(name)
        stop = first + self.samples
        batches = _counted(source, _parts(stop, first), self.bar)
        ids, stride = self._ids[first:stop], self.tokenizer.stride
        return describe(batches, ids, self.features, stride, self.device, redrawn)


def evaluate(
    model: NestAR,
    tokenizer: Tokenizer,
    features: PictureFeatures,
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
        `coarse_to_fine`: see `previews.coarse_to_fine`, of the first PREVIEWED samples; `tokenizer_psnr`
        in dB; nesting, samples, seed, settings, seconds and sampling_seconds.

    Raises:
        ValueError: too few samples, or model, tokenizer and features that do not fit together.
    """
    size = picture_size(model, tokenizer, features)
    began = time.perf_counter()
    with tqdm(total=4 * samples, unit="image", disable=not progress) as bar:
        evaluator = Evaluator(tokenizer, features, samples=samples, size=size, bar=bar)
        ceilings = evaluator.ceilings
        report = evaluator.measure(model, settings or SolverSettings(), seed)
        bar.set_description("previews")
        growth = evaluator.previews(model, settings or SolverSettings(), seed)
    return {
        **report,
        "coarse_to_fine": growth,
        **shares_of(ceilings["reference"], report),
        **ceilings,
        "seconds": round(time.perf_counter() - began, 2),
    }


def shares_of(ceiling: dict[str, Any], figures: dict[str, Any]) -> dict[str, float | None]:
    """`precision_of_reference` and `recall_of_reference`: shares of what references reach themselves."""
    return {
        f"{name}_of_reference": figures[name] / ceiling[name] if ceiling[name] else None
        for name in ("precision", "recall")
    }


def describe(
    batches: Iterator[Tensor],
    class_ids_N: Tensor,
    features: PictureFeatures,
    stride: int,
    device: torch.device,
    redrawn: bool = True,
) -> Description:
    """Read batches of pictures (B, 3, H, W), which hold the classes `class_ids_N` in this order, with
    features that stand on `device`; `redrawn`: draw again what they show, too."""
    parts: list[tuple[Tensor | None, ...]] = []
    start = 0
    for images in batches:
        ids = class_ids_N[start : start + len(images)].to(device)
        start += len(images)
        images = images.to(device)
        *read, factors = features.describe(images, ids)
        again = redrawn_psnr(images, ids, factors) if redrawn and factors is not None else None
        values = (*read, factors, again, *metrics.seam_gradients(images, stride))
        parts.append(tuple(None if value is None else value.cpu() for value in values))
    columns = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
    return Description(class_ids_N, *columns)


def compare(real: Description, fake: Description) -> dict[str, Any]:
    """Every figure of a set of pictures, those that need it against `real`; without class logits and factors
    those that need them are left out."""
    fakes_N, reals_N = metrics.within_manifolds(real.features_ND, fake.features_ND)
    figures = {
        "fid": metrics.fid(real.features_ND, fake.features_ND),
        "precision": fakes_N.double().mean().item(),
        "recall": reals_N.double().mean().item(),
        "seams": metrics.seam_ratio(fake.across_N, fake.inside_N),
        "diversity": metrics.mean_pairwise_distance(fake.features_ND, fake.class_ids_N),
        "vendi": metrics.vendi_score(fake.features_ND),
    }
    if fake.logits_NK is not None:
        figures["inception_score"] = metrics.inception_style_score(fake.logits_NK)
        accuracy, by_class = metrics.class_accuracy(fake.logits_NK, fake.class_ids_N)
        figures |= {
            "class_accuracy": accuracy,
            "class_accuracy_by_class": by_class,
            "precision_by_class": metrics.means_by_class(fakes_N, fake.class_ids_N),
            "recall_by_class": metrics.means_by_class(reals_N, real.class_ids_N),
        }
    if fake.redrawn_N is not None:
        redrawn_N = fake.redrawn_N.double()
        figures["redrawn"] = redrawn_N.mean().item()
        figures["redrawn_error"] = redrawn_N.std().item() / len(redrawn_N) ** 0.5  # of that mean
        figures["redrawn_by_class"] = metrics.means_by_class(fake.redrawn_N, fake.class_ids_N)
    if real.factors_NF is not None and fake.factors_NF is not None:
        figures["coverage"] = metrics.factor_coverage(
            real.factors_NF, real.class_ids_N, fake.factors_NF, fake.class_ids_N
        )
    return figures


def check_classes(classes: Sequence[str]) -> None:
    """Raises ValueError if weights with these classes cannot be compared with Tiny Worlds, class by class."""
    if tuple(classes) != tiny_worlds.CLASSES:
        raise ValueError("These weights know other classes than Tiny Worlds, or in another order.")


def picture_size(model: NestAR, tokenizer: Tokenizer, features: PictureFeatures) -> int:
    """Side of the pictures in pixels, if everything fits.

    Raises:
        ValueError: the model's classes, its channels or the size of its pictures do not fit.
    """
    nesting, classes = model.config.nesting, len(tiny_worlds.CLASSES)
    if model.config.classes != classes:
        raise ValueError(f"The model knows {model.config.classes} classes, Tiny Worlds has {classes}.")
    if model.config.channels != tokenizer.channels:
        raise ValueError(
            f"The model makes tokens of {model.config.channels} channels, the tokenizer takes "
            f"{tokenizer.channels}."
        )
    size = features.size or nesting.height * tokenizer.stride
    if (nesting.height * tokenizer.stride, nesting.width * tokenizer.stride) != (size, size):
        raise ValueError(
            f"A grid of {nesting.height}x{nesting.width} tokens of {tokenizer.stride} pixels "
            f"does not make the {size}x{size} pictures that the feature network reads."
        )
    return size


def _parts(stop: int, first: int = 0) -> list[slice]:
    """first ... stop - 1 in batches."""
    return [slice(start, min(start + BATCH, stop)) for start in range(first, stop, BATCH)]


def _counted(source: Callable[[slice], Tensor], slices: list[slice], bar: tqdm) -> Iterator[Tensor]:
    for part in slices:
        yield source(part)
        bar.update(part.stop - part.start)
