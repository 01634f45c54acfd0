"""Training the feature network of the evaluation: the class and every factor, from one pool of pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED, TRAIN_SEED, ImagePool
from nestar.engine import autocast
from nestar.evaluation.features import FeatureNetwork, FeatureNetworkConfig, factor_scores, summarise
from nestar.images import from_bytes, to_bytes
from nestar.training.loop import prefixed, step_generator, unprefixed
from nestar.training.optim import MovingAverage, MuonAdamW, OptimizerConfig
from nestar.training.tokenizer import save_grid


@dataclass(frozen=True)
class FeaturesConfig:
    """How the feature network is trained.

    Attributes:
        pool: pictures drawn once and read at random (the tokenizer's own pool by default).
        changed_share: of each batch gets noise, and as much gets blurred, so that decoded pictures are
            read as well as drawn ones; no change touches a factor, which is why nothing is mirrored.
    """

    network: FeatureNetworkConfig = field(default_factory=FeatureNetworkConfig)
    batch: int = 96
    pool: int = 60_000
    held_out: int = 1200
    changed_share: float = 0.25
    noise: float = 0.05  # largest standard deviation, in [-1, 1] units
    brightness: float = 0.02
    seed: int = 0
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1.5e-3, muon_lr=4e-3, ema=0.998)
    )


class FeaturesTask:
    """What `training.loop.train` needs to train the feature network on Tiny Worlds."""

    def __init__(self, config: FeaturesConfig, device: torch.device, cache: Path):
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.network = FeatureNetwork(config.network).to(device)
        self.ema = MovingAverage(self.network, config.optimizer.ema)
        self.optimizer = MuonAdamW(
            self.network.named_parameters(), config.optimizer, exclude=("stem", "class_head", "factor_head")
        )
        self.pool = ImagePool(cache, config.pool, config.network.size, device=device)
        class_ids, seeds = tiny_worlds.draw_indices(0, config.pool, TRAIN_SEED)
        self.class_ids = class_ids.to(device)
        self.factors = tiny_worlds.known_factors(class_ids, seeds).to(device)
        self.held_ids, held_seeds = tiny_worlds.draw_indices(0, config.held_out, HELD_OUT_SEED)
        scene = tiny_worlds.draw(self.held_ids, held_seeds, config.network.size)
        self.held_images, self.held_factors = to_bytes(scene.images), scene.factors

    def train_step(self, step: int, lr_factor: float) -> dict[str, Tensor]:
        """One optimiser step; returns its losses. Data and randomness are drawn on the device."""
        generator = step_generator(self.config.seed, step, self.device)
        size = (self.config.batch,)
        index = torch.randint(len(self.pool), size, generator=generator, device=self.device)
        images = augment(self.pool.batch(index), self.config, generator)
        class_ids, factors = self.class_ids[index], self.factors[index]
        with autocast(self.device):
            reading = self.network(images)
        losses = self.network.loss(reading, class_ids, factors)
        sum(losses.values()).backward()
        self.optimizer.step(lr_factor)
        self.ema.update_parameters(self.network)
        return {name: value.detach() for name, value in losses.items()}

    def validate(self) -> dict[str, float]:
        """Class accuracy, worst and mean R2, worst and mean accuracy on held-out pictures."""
        accuracy, table = self._scores()
        return {"class_accuracy": accuracy, **summarise(table)}

    def _scores(self) -> tuple[float, dict[str, dict[str, float]]]:
        return factor_scores(self.ema.module, from_bytes(self.held_images), self.held_ids, self.held_factors)

    @torch.inference_mode()
    def picture(self, path: Path) -> None:
        """The held-out pictures that are read worst, worst first: what the network still cannot see."""
        errors = []
        for images, ids, factors in zip(
            self.held_images.split(64), self.held_ids.split(64), self.held_factors.split(64), strict=True
        ):
            read = self.ema.module.read_factors(
                self.ema.module(from_bytes(images).to(self.device)), ids.to(self.device)
            ).cpu()
            errors.append((read - factors).abs().nan_to_num(0).amax(1))
        worst = torch.cat(errors).argsort(descending=True)[:24]
        save_grid(from_bytes(self.held_images[worst]), min(8, len(worst)), path)

    def state_tensors(self) -> dict[str, Tensor]:
        return {
            **prefixed("model", self.network.state_dict()),
            **prefixed("ema", self.ema.state_dict()),
            **prefixed("optimizer", self.optimizer.state_tensors()),
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(unprefixed("model", tensors))
        self.ema.load_state_dict(unprefixed("ema", tensors))
        self.optimizer.load_state_tensors(unprefixed("optimizer", tensors))

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the averaged network to `folder/features`, with its score on every factor."""
        accuracy, table = self._scores()
        described = {
            **record,
            "images_seen": record["steps"] * self.config.batch,
            "class_accuracy": round(accuracy, 4),
            "held_out": table,
            "config": asdict(self.config),
        }
        self.ema.module.save_pretrained(folder / "features", record=described)


def augment(images_B3HW: Tensor, config: FeaturesConfig, generator: torch.Generator) -> Tensor:
    """Noise on some rows, blur on others, a slightly different brightness on all; changes `images_B3HW`.

    Args:
        generator: on the images' device.
    """
    device, rows = images_B3HW.device, len(images_B3HW)
    shuffled = torch.randperm(rows, generator=generator, device=device)
    count = round(config.changed_share * rows)
    noisy, blurred = shuffled[:count], shuffled[count : 2 * count]

    def strengths(number: int) -> Tensor:
        return torch.rand(number, 1, 1, 1, generator=generator, device=device)

    noise = torch.randn(count, *images_B3HW.shape[1:], generator=generator, device=device)
    images_B3HW[noisy] += config.noise * strengths(count) * noise
    sharp = images_B3HW[blurred]
    soft = F.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
    images_B3HW[blurred] = torch.lerp(sharp, soft, strengths(len(sharp)))
    gain = 1 + config.brightness * (2 * strengths(rows) - 1)
    return images_B3HW.add_(1).mul_(gain).sub_(1).clamp_(-1, 1)
