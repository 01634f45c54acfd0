"""The feature network: names the class and reads every factor of a Tiny Worlds picture.

Its penultimate layer is the space in which samples are compared with Tiny Worlds (FID, precision, recall,
diversity), its heads tell whether the asked class was drawn and which factors vary. One network, stored
as `config.json` and `features.safetensors`.

Suffixes: B batch, D features, K classes, F factors of a class (padded), L outputs of a factor (padded).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestar.data.tiny_worlds import CLASSES, FACTORS, MAX_FACTORS
from nestar.files import together, write_json, write_tensors
from nestar.limits import check_sizes
from nestar.model import WeightsError, build_from, first_line, read_json

WEIGHTS_FILE = "features.safetensors"
MAX_LEVELS = max(factor.levels for factors in FACTORS.values() for factor in factors)
MAX_SIZES = {"size": 2048, "fold": 64, "place_channels": 4096, "hidden": 8192, "features": 8192}
MAX_CHANNELS = 4096
MAX_BLOCKS = 64
"""Of a stored network, many times those of any trained here."""

ABSENT = -1
"""Level count that marks the padding behind a class's own factors."""


@dataclass(frozen=True)
class FeatureNetworkConfig:
    """Shape of the network; the defaults take 58 million multiply-adds and 1.7 million parameters.

    Attributes:
        size: side of the pictures in pixels, a multiple of 16.
        fold: side of the pixel square folded into channels first: full-resolution convolutions are the
            cost on a CPU.
        channels: of the grids at size/4, size/8 and size/16.
        blocks: residual blocks on each of these grids.
        place_channels: kept per place when the last grid is flattened, so that positions survive.
    """

    size: int = 128
    fold: int = 4
    channels: tuple[int, ...] = (32, 80, 128)
    blocks: tuple[int, ...] = (0, 1, 2)
    place_channels: int = 32
    hidden: int = 448
    features: int = 256

    @property
    def side(self) -> int:
        """Places along a side of the last grid."""
        return self.size // (self.fold * 2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class Reading:
    """What the network says of a batch: features (B, D), class logits (B, K), factor outputs (B, K, F, L)."""

    features: Tensor
    class_logits: Tensor
    factor_outputs: Tensor

    def of_class(self, class_ids_B: Tensor) -> Tensor:
        """Factor outputs (B, F, L) of the given classes."""
        return self.factor_outputs[torch.arange(len(class_ids_B), device=class_ids_B.device), class_ids_B]


class ResidualBlock(nn.Module):
    """x + conv1x1(silu(conv3x3(norm(x)))); the last layer starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.mix(F.silu(self.wide(self.norm(x_BCHW))))


class FeatureNetwork(nn.Module):
    """A residual convolutional network.

    Its last grid is flattened, so that positions survive, and the totals of every grid stand beside it, so
    that small things can be counted wherever they are.
    """

    levels_KF: Tensor

    def __init__(self, config: FeatureNetworkConfig | None = None):
        super().__init__()
        self.config = config = config or FeatureNetworkConfig()
        if config.size % (config.fold * 2 ** (len(config.channels) - 1)):
            raise ValueError(f"A feature network cannot halve pictures of {config.size} pixels evenly.")
        first, *rest = config.channels
        self.stem = nn.Conv2d(3 * config.fold**2, first, 3, padding=1)
        self.stages = nn.ModuleList([nn.Sequential(*(ResidualBlock(first) for _ in range(config.blocks[0])))])
        for before, channels, blocks in zip(config.channels[:-1], rest, config.blocks[1:], strict=True):
            halve = nn.Conv2d(before, channels, 2, stride=2)
            self.stages.append(nn.Sequential(halve, *(ResidualBlock(channels) for _ in range(blocks))))
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for channels in config.channels)
        self.place = nn.Conv2d(config.channels[-1], config.place_channels, 1)
        totals = sum(config.channels)
        self.total_norm = nn.LayerNorm(totals)
        self.hidden = nn.Linear(config.place_channels * config.side**2 + totals, config.hidden)
        self.features = nn.Linear(config.hidden, config.features)
        self.class_head = nn.Linear(config.features, len(CLASSES))
        self.factor_head = nn.Linear(config.features, len(CLASSES) * MAX_FACTORS * MAX_LEVELS)
        nn.init.zeros_(self.factor_head.bias)
        self.register_buffer("levels_KF", factor_levels(), persistent=False)

    def forward(self, images_B3HW: Tensor) -> Reading:
        """Read images (B, 3, size, size) in [-1, 1].

        Raises:
            ValueError: images of another size: the flattened grid would not fit.
        """
        if images_B3HW.shape[-2:] != (self.config.size, self.config.size):
            raise ValueError(
                f"This feature network reads {self.config.size}x{self.config.size} images, "
                f"not {tuple(images_B3HW.shape[-2:])}."
            )
        folded = F.pixel_unshuffle(images_B3HW, self.config.fold)  # (B, 48, H/4, W/4)
        x_BCHW = self.stem(folded.contiguous(memory_format=torch.channels_last))
        totals: list[Tensor] = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x_BCHW = F.silu(norm(stage(x_BCHW)))
            totals.append(x_BCHW.mean((2, 3)))
        places_BCHW = self.place(x_BCHW)  # (B, 32, H/16, W/16)
        summed_BT = self.total_norm(torch.cat(totals, 1))
        hidden = F.silu(self.hidden(torch.cat([places_BCHW.flatten(1), summed_BT], 1)))
        features_BD = F.silu(self.features(hidden))
        outputs = self.factor_head(features_BD).unflatten(1, (len(CLASSES), MAX_FACTORS, MAX_LEVELS))
        return Reading(features_BD.float(), self.class_head(features_BD).float(), outputs.float())

    @property
    def size(self) -> int:
        """Side of the pictures it reads, in pixels."""
        return self.config.size

    def describe(self, images_B3HW: Tensor, class_ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What an evaluation keeps of pictures of these classes: features (B, D), class logits (B, K) and
        factors (B, F)."""
        reading = self(images_B3HW)
        return reading.features, reading.class_logits, self.read_factors(reading, class_ids_B)

    def loss(self, reading: Reading, class_ids_B: Tensor, factors_BF: Tensor) -> dict[str, Tensor]:
        """Three losses, each near 1 when nothing is known and 0 when all is.

        `class`: cross-entropy over log K. `continuous`: squared error over the variance of a factor that is
        uniform on [0, 1], which is 1 - R2. `discrete`: cross-entropy over log(levels).
        """
        outputs_BFL = reading.of_class(class_ids_B)
        levels_BF = self.levels_KF[class_ids_B]
        continuous, discrete = levels_BF == 0, levels_BF > 0
        error_N = outputs_BFL[..., 0][continuous] + 0.5 - factors_BF[continuous]
        levels_N = levels_BF[discrete]
        named_N = F.cross_entropy(
            _levels_only(outputs_BFL[discrete], levels_N), factors_BF[discrete].long(), reduction="none"
        )
        return {
            "class": F.cross_entropy(reading.class_logits, class_ids_B) / torch.tensor(len(CLASSES)).log(),
            "continuous": 12 * error_N.square().mean(),
            "discrete": (named_N / levels_N.log()).mean(),
        }

    def read_factors(self, reading: Reading, class_ids_B: Tensor) -> Tensor:
        """Factor values (B, F) as `tiny_worlds.draw` gives them: [0, 1], or 0 … levels-1; NaN for padding."""
        outputs_BFL = reading.of_class(class_ids_B)
        levels_BF = self.levels_KF[class_ids_B]
        named_BF = _levels_only(outputs_BFL, levels_BF).argmax(-1).float()
        values_BF = torch.where(levels_BF == 0, (outputs_BFL[..., 0] + 0.5).clamp(0, 1), named_BF)
        return values_BF.masked_fill(levels_BF == ABSENT, float("nan"))

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.bfloat16, record: Mapping[str, Any] | None = None
    ) -> None:
        """Write the weights, and the config with `record` (how it was trained, what it reaches)."""
        stored = {**asdict(self.config), "factors": factor_names(), "training": dict(record or {})}
        tensors = {name: value.to(dtype) for name, value in self.state_dict().items()}
        with together(Path(folder), last="config.json") as place:
            write_tensors(place / WEIGHTS_FILE, tensors)
            write_json(place / "config.json", stored)


def load_features(folder: str | Path) -> FeatureNetwork:
    """Load a feature network's folder, in float32, ready to read.

    Raises:
        WeightsError: a file is missing, damaged, of the wrong shape, or trained on other factors than
            Tiny Worlds has now; it is named.
    """
    file = Path(folder) / "config.json"
    stored = read_json(file)
    if stored.get("factors") != factor_names():
        raise WeightsError(f"{file}: other classes or factors than Tiny Worlds has.", file)
    values = {
        name: tuple(stored[name]) if isinstance(stored[name], list) else stored[name]
        for name in FeatureNetworkConfig.__dataclass_fields__
        if name in stored
    }

    def build() -> FeatureNetwork:
        try:
            check_sizes(values, MAX_SIZES)
            check_sizes(values, {"channels": MAX_CHANNELS}, listed=True)
            check_sizes(values, {"blocks": MAX_BLOCKS}, least=0, listed=True)
            return FeatureNetwork(FeatureNetworkConfig(**values))
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise WeightsError(f"{file} describes no feature network ({first_line(error)}).", file) from None

    return build_from(build, lambda network: {file.parent / WEIGHTS_FILE: network})


@torch.inference_mode()
def factor_scores(
    network: FeatureNetwork, images_B3HW: Tensor, class_ids_B: Tensor, factors_BF: Tensor, *, batch: int = 64
) -> tuple[float, dict[str, dict[str, float]]]:
    """How well the network reads pictures of known factors.

    Returns:
        Class accuracy, and by class and factor R2 (continuous) or accuracy (discrete).
    """
    device = network.stem.weight.device
    named, read = [], []
    for images, ids in zip(images_B3HW.split(batch), class_ids_B.split(batch), strict=True):
        reading = network(images.to(device))
        named.append(reading.class_logits.argmax(1).cpu())
        read.append(network.read_factors(reading, ids.to(device)).cpu())
    read_BF = torch.cat(read)
    table: dict[str, dict[str, float]] = {}
    for class_id, name in enumerate(CLASSES):
        rows = class_ids_B == class_id
        if not rows.any():
            continue
        table[name] = {}
        for i, factor in enumerate(FACTORS[name]):
            truth, guess = factors_BF[rows, i], read_BF[rows, i]
            score = (truth == guess).float().mean() if factor.levels else r_squared(truth, guess)
            table[name][factor.name] = round(score.item(), 4)
    return (torch.cat(named) == class_ids_B).float().mean().item(), table


def summarise(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Worst and mean R2 over continuous factors, worst and mean accuracy over discrete ones."""
    continuous = torch.tensor([score for factor, score in _scores(table) if not factor])
    discrete = torch.tensor([score for factor, score in _scores(table) if factor])
    return {
        "worst_r2": continuous.min().item(),
        "mean_r2": continuous.mean().item(),
        "worst_accuracy": discrete.min().item(),
        "mean_accuracy": discrete.mean().item(),
    }


def _scores(table: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[int, float]]:
    """(levels, score) of every factor in the table."""
    for name, scores in table.items():
        for factor in FACTORS[name]:
            yield factor.levels, scores[factor.name]


def r_squared(truth_N: Tensor, guess_N: Tensor) -> Tensor:
    """Share of the truth's variance that the guess explains; 0 is the mean's own score."""
    return 1 - (truth_N - guess_N).square().sum() / (truth_N - truth_N.mean()).square().sum()


def factor_levels() -> Tensor:
    """Levels of every factor, (K, F) int64: 0 where it is continuous, ABSENT for padding."""
    return torch.tensor(
        [
            [factor.levels for factor in FACTORS[name]] + [ABSENT] * (MAX_FACTORS - len(FACTORS[name]))
            for name in CLASSES
        ]
    )


def factor_names() -> dict[str, list[str]]:
    """Classes, their factors and levels: what a stored network must agree with."""
    return {name: [f"{factor.name}:{factor.levels}" for factor in FACTORS[name]] for name in CLASSES}


def _levels_only(outputs: Tensor, levels: Tensor) -> Tensor:
    """Outputs (…, L) with those beyond a factor's own levels (…) made impossible."""
    beyond = torch.arange(outputs.shape[-1], device=outputs.device) >= levels[..., None]
    return outputs.masked_fill(beyond, torch.finfo(outputs.dtype).min)
