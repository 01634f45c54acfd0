"""The training picture nearest to any picture, so that copying would be seen.

Pictures are compared by their features (`evaluation.features`). The index holds the features of the first
pictures of the training stream, reduced to a few dozen bytes each: enough to find candidates. These are drawn
again, as every Tiny World can be from its number, and compared by their whole features.

How near is too near? Two yardsticks are measured with the index, by the same search: real pictures that
training has never seen, and training pictures that have merely gone through the tokenizer, which is what a
copy would look like.

Suffixes: N training pictures, D features, R reduced features, K classes, H pictures of a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from nestar.checkpoints import EMBEDDED
from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED, TRAIN_SEED, ImagePool
from nestar.evaluation.diversity import FeatureSpace
from nestar.files import together, write_json, write_tensors
from nestar.images import from_bytes, to_bytes, to_pil
from nestar.model import FORMAT_VERSION, WeightsError, read_config, read_header
from nestar.tokenizer import Tokenizer

FOLDER = EMBEDDED / "neighbours"
WEIGHTS_FILE = "neighbours.safetensors"
IMAGES = 60_000
REDUCED = 32
"""Bytes a picture: principal components kept of its features."""

CANDIDATES = 32
"""Pictures drawn again and compared by their whole features, a fifth of a second's work on a CPU."""

HELD_OUT = 100
"""Pictures of a class that each yardstick is measured on."""

BATCH = 256
TENSORS = ("codes", "mean", "basis", "scale", "unseen", "copied")


@dataclass(frozen=True)
class Neighbour:
    """A training picture: its number in the training stream, class, picture and distance in features."""

    number: int
    class_name: str
    image: Image.Image
    distance: float


@dataclass(frozen=True)
class NeighbourIndex:
    """The reduced training pictures and both yardsticks.

    Attributes:
        codes: (N, R) int8; `codes * scale` are the principal components `(features - mean) @ basis`.
        unseen: distance to the nearest training picture of H held-out pictures per class, (K, H), ascending.
        copied: the same of training pictures decoded from their own tokens.
        features, tokenizer: fingerprints of the networks behind both.
        size: side of the pictures in pixels.
    """

    codes: Tensor
    mean: Tensor
    basis: Tensor
    scale: Tensor
    unseen: Tensor
    copied: Tensor
    features: str
    tokenizer: str
    size: int

    @cached_property
    def _components_NR(self) -> Tensor:
        return self.codes.float() * self.scale

    def candidates(self, features_BD: Tensor) -> Tensor:
        """Numbers of the training pictures that are nearest as far as the index can tell, (B, CANDIDATES)."""
        components_BR = (features_BD - self.mean) @ self.basis
        count = min(CANDIDATES, len(self.codes))
        return torch.cdist(components_BR, self._components_NR).topk(count, largest=False).indices

    def nearest(self, features_D: Tensor, space: FeatureSpace) -> Neighbour:
        """The nearest training picture to one with these features; `space` is the one of the index."""
        numbers = self.candidates(features_D[None])[0]
        class_ids, seeds = _training_pictures(numbers)
        images = _as_stored(tiny_worlds.draw(class_ids, seeds, self.size).images)
        distance_C = (space.describe_images(images) - features_D).norm(dim=1)
        best = int(distance_C.argmin())
        return Neighbour(
            int(numbers[best]),
            tiny_worlds.CLASSES[class_ids[best]],
            to_pil(images[best : best + 1])[0],
            distance_C[best].item(),
        )

    def yardstick(self, class_name: str, tokenizer: str) -> dict[str, Any]:
        """What a distance compares with, as JSON values: of pictures of that class, or of all classes where
        Tiny Worlds has no such class.

        Returns:
            `unseen`: 5th, 50th and 95th percentile for real pictures that training has not seen; `copied`:
            the same for copies, None where the index was built with another tokenizer than `tokenizer` (a
            fingerprint).
        """
        known = class_name in tiny_worlds.CLASSES
        rows = [tiny_worlds.CLASSES.index(class_name)] if known else range(len(tiny_worlds.CLASSES))
        unseen, copied = self.unseen[list(rows)].flatten(), self.copied[list(rows)].flatten()
        return {
            "unseen": _percentiles(unseen),
            "copied": _percentiles(copied) if tokenizer == self.tokenizer else None,
        }

    def save(self, folder: Path) -> None:
        """Write the index, and the config that names it."""
        stored = {
            "format_version": FORMAT_VERSION,
            "images": len(self.codes),
            "size": self.size,
            "stream": TRAIN_SEED,
            "drawing": tiny_worlds.DRAWING,
            "features": self.features,
            "tokenizer": self.tokenizer,
        }
        with together(folder, last="config.json") as place:
            write_tensors(place / WEIGHTS_FILE, {name: getattr(self, name) for name in TENSORS})
            write_json(place / "config.json", stored)


def load_index(folder: Path, space: FeatureSpace) -> NeighbourIndex:
    """The index in `folder`, for use with these features.

    Raises:
        WeightsError: there is none, it is damaged, or it was built with other features or other drawings.
    """
    if not (folder / "config.json").exists():
        raise WeightsError("There is no index of training pictures yet: `python -m nestar index` builds it.")
    stored = read_config(folder / "config.json")

    def unfit(why: str) -> WeightsError:
        return WeightsError(
            f"The index in {folder} {why}: build it again with `python -m nestar index`.", folder
        )

    if (stored.get("stream"), stored.get("drawing")) != (TRAIN_SEED, tiny_worlds.DRAWING):
        raise unfit("is of other pictures than Tiny Worlds draws")
    if stored.get("features") != space.fingerprint:
        raise unfit("was built with another feature network")
    try:
        _check_index(folder / WEIGHTS_FILE, stored, space)
        tensors = load_file(folder / WEIGHTS_FILE)
        if not all(tensors[name].isfinite().all() for name in TENSORS):
            raise ValueError
    except (WeightsError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise unfit(f"is damaged ({type(error).__name__})") from None
    return NeighbourIndex(
        **{name: tensors[name] for name in TENSORS},
        features=stored["features"],
        tokenizer=stored["tokenizer"],
        size=stored["size"],
    )


def _check_index(file: Path, stored: Mapping[str, Any], space: FeatureSpace) -> None:
    """Whether the header of an index's tensors says what its config does; none of them is read.

    Raises:
        WeightsError, KeyError, TypeError, ValueError: it does not.
    """
    header, classes, features = read_header(file), len(tiny_worlds.CLASSES), space.network.config.features
    (images, reduced), (_, held_out) = header["codes"][0], header["unseen"][0]
    expected = {
        "codes": ((stored["images"], reduced), "I8"),
        "mean": ((features,), "F32"),
        "basis": ((features, reduced), "F32"),
        "scale": ((reduced,), "F32"),
        "unseen": ((classes, held_out), "F32"),
        "copied": ((classes, held_out), "F32"),
    }
    sizes = (images, reduced, held_out) if stored["size"] == space.network.size else ()
    if header != expected or not sizes or min(sizes) < 1 or not isinstance(stored["tokenizer"], str):
        raise ValueError


def build_index(
    space: FeatureSpace,
    tokenizer: Tokenizer,
    *,
    images: int = IMAGES,
    held_out: int = HELD_OUT,
    cache: Path | None = None,
) -> NeighbourIndex:
    """Describe the first `images` training pictures and measure both yardsticks.

    Args:
        held_out: pictures per class that each yardstick is measured on.
        cache: where a pool of these pictures may lie already drawn; nothing is written there.

    Raises:
        ValueError: fewer pictures than are compared for one answer, or than a yardstick takes.
    """
    classes = len(tiny_worlds.CLASSES)
    least = max(CANDIDATES, classes * held_out)
    if images < least or held_out < 1:
        raise ValueError(f"An index takes at least {least} pictures and one held-out a class.")
    size = space.network.size
    pool = ImagePool.drawn(cache, images, size) if cache else None
    features_ND = torch.cat(
        [space.describe_images(batch) for batch in _drawn(images, size, TRAIN_SEED, "describing", pool)]
    )
    mean, basis = principal_directions(features_ND)
    components_NR = (features_ND - mean) @ basis
    scale = components_NR.abs().amax(0).clamp_min(1e-12) / 127
    codes = (components_NR / scale).round().to(torch.int8)
    unmeasured = torch.empty(classes, 0)
    bare = NeighbourIndex(
        codes, mean, basis, scale, unmeasured, unmeasured, space.fingerprint, tokenizer.fingerprint, size
    )

    def by_class(batches: Iterator[Tensor]) -> Tensor:
        """Distance of each picture to the nearest training picture that a search finds, (K, H) ascending."""
        found = []
        for batch in batches:
            described_BD = space.describe_images(batch)
            nearby_BCD = features_ND[bare.candidates(described_BD)]
            found.append((nearby_BCD - described_BD[:, None]).norm(dim=2).amin(1))
        return torch.cat(found).view(held_out, classes).T.sort(dim=1).values.contiguous()

    count = classes * held_out
    unseen = by_class(_drawn(count, size, HELD_OUT_SEED, "unseen pictures"))
    copied = by_class(_rebuilt(tokenizer, _drawn(count, size, TRAIN_SEED, "copies", pool)))
    return replace(bare, unseen=unseen, copied=copied)


def principal_directions(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) of features and the directions (D, R) in which they vary most, float32."""
    mean = features_ND.double().mean(0)
    _, vectors_DD = torch.linalg.eigh(torch.cov(features_ND.double().T))  # ascending
    return mean.float(), vectors_DD[:, -REDUCED:].flip(1).float()


def _drawn(count: int, size: int, stream: int, doing: str, pool: ImagePool | None = None) -> Iterator[Tensor]:
    """The first `count` pictures of a stream, batch by batch, (B, 3, H, W), from `pool` where given."""
    class_ids, seeds = tiny_worlds.draw_indices(0, count, stream)
    for start in tqdm(range(0, count, BATCH), desc=doing):
        part = slice(start, min(start + BATCH, count))
        if pool is not None:
            yield pool.batch(torch.arange(part.start, part.stop))
        else:
            yield _as_stored(tiny_worlds.draw(class_ids[part], seeds[part], size).images)


def _as_stored(images_B3HW: Tensor) -> Tensor:
    """Rounded to bytes, as pools and files hold pictures: their features are the same everywhere."""
    return from_bytes(to_bytes(images_B3HW))


@torch.inference_mode()
def _rebuilt(tokenizer: Tokenizer, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The pictures as the tokenizer gives them back, on the CPU."""
    device = next(tokenizer.parameters()).device
    for batch in batches:
        yield tokenizer.decode(tokenizer.encode(batch.to(device))).float().cpu()


def _training_pictures(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Class ids and seeds of training pictures by number, whichever they are."""
    pairs = [tiny_worlds.draw_indices(int(number), 1, TRAIN_SEED) for number in numbers]
    class_ids, seeds = zip(*pairs, strict=True)
    return torch.cat(class_ids), torch.cat(seeds)


def _percentiles(values: Tensor) -> list[float]:
    """5th, 50th and 95th percentile."""
    return [round(value, 3) for value in values.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()]
