"""Training a nesting on cached latents: flow matching in every module, coordination between neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED, TRAIN_SEED, ImagePool, latent_pool
from nestar.flow import coordination_loss, flow_matching_loss
from nestar.model import NestAR, NestARConfig
from nestar.nesting import Nesting
from nestar.sampler import PatchDone, SolverSettings, sample
from nestar.tokenizer import Tokenizer
from nestar.training.loop import prefixed, start_from, step_generator, unprefixed
from nestar.training.optim import MuonAdamW, OptimizerConfig, ema_of
from nestar.training.tokenizer import save_grid

NOT_MUON = ("embed", "position", "time", "label", "modulation", "final_modulation", "head")
"""Parts that AdamW trains: first and last layers, embeddings and adaLN."""


@dataclass(frozen=True)
class NestingTrainConfig:
    """How a nesting is trained; defaults from DESIGN sections 1 and 2.

    Attributes:
        coordination: weight lambda of the coordination loss; coordination_rows: share of the batch it sees.
        clean_share: share of rows whose context is clean up to a random patch, as in sampling.
        pool: latents encoded beforehand, read at random.
    """

    nesting: Nesting = field(default_factory=lambda: Nesting.nested(8, 8, 4))
    size: int = 128
    dim: int = 192
    heads: int = 6
    blocks: int = 12
    cond_dim: int = 104
    batch: int = 128
    pool: int = 60_000
    held_out: int = 1024
    label_drop: float = 0.1
    clean_share: float = 0.5
    coordination: float = 0.1
    coordination_rows: float = 0.25
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


class NestingTask:
    """What `training.loop.train` needs to train a nesting on Tiny Worlds' latents; `init` gives it its first
    weights."""

    def __init__(
        self,
        config: NestingTrainConfig,
        tokenizer: Tokenizer,
        device: torch.device,
        cache: Path,
        *,
        compile_modules: bool = False,
        init: NestAR | None = None,
    ):
        torch.manual_seed(config.seed)
        self.config, self.device, self.tokenizer = config, device, tokenizer
        self.classes = len(tiny_worlds.CLASSES)
        self.latents, self.class_ids = self._pool(cache, config.pool, TRAIN_SEED)
        self.held_latents, self.held_ids = self._pool(cache, config.held_out, HELD_OUT_SEED)
        self.model = NestAR(
            NestARConfig(
                config.nesting,
                channels=tokenizer.channels,
                classes=self.classes,
                dim=config.dim,
                heads=config.heads,
                blocks=config.blocks,
                cond_dim=config.cond_dim,
            )
        ).to(device)
        if init is not None:
            start_from(self.model, init)
        self.ema = ema_of(self.model, config.optimizer.ema)
        self.optimizers = [
            MuonAdamW(module.named_parameters(), config.optimizer, exclude=NOT_MUON)
            for module in self.model.scaled_modules
        ]
        if compile_modules:
            torch._dynamo.config.recompile_limit = 64  # one graph a shape: patches, rows, coordination
            for module in self.model.scaled_modules:
                for block in module.blocks:  # blocks share their graphs; whole modules would not
                    block.compile(dynamic=False)

    def _pool(self, cache: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Tokens (N, n, C) in sequence order, on the device, and class ids."""
        made_by = _fingerprint(self.tokenizer)
        file = cache / f"latents_{self.config.size}_{seed}_{count}_{made_by}.safetensors"
        images = ImagePool.drawn(cache, count, self.config.size, seed)
        latents, class_ids = latent_pool(
            file, self.tokenizer, count, self.config.size, seed=seed, images=images
        )
        order = list(self.config.nesting.flat)
        return latents.flatten(2).transpose(1, 2)[:, order].contiguous().to(self.device), class_ids.to(
            self.device
        )

    def train_step(self, step: int, lr_factor: float) -> dict[str, float]:
        """One optimiser step of every module. Gradients are clipped per module, and each module draws its
        noise by (seed, step, module): with lambda = 0 the modules train exactly as if alone."""
        rows = step_generator(self.config.seed, step, torch.device("cpu"))
        index = torch.randint(len(self.latents), (self.config.batch,), generator=rows)
        dropped = torch.rand(self.config.batch, generator=rows) < self.config.label_drop
        x_BNC = self.latents[index].float()
        class_ids_B = self.class_ids[index].masked_fill(dropped.to(self.device), self.classes)
        losses: dict[str, float] = {}
        modules, scales = self.model.scaled_modules, self.config.nesting.scales
        with torch.autocast(self.device.type, torch.bfloat16), quick_attention(self.device):
            for module, scale in zip(modules, scales, strict=True):
                loss = flow_matching_loss(
                    module,
                    scale,
                    x_BNC,
                    class_ids_B,
                    clean_share=self.config.clean_share,
                    generator=self._generator(step, scale.number),
                )
                loss.backward()
                losses[f"m{scale.number}"] = loss.detach()
            part = slice(0, round(self.config.coordination_rows * self.config.batch))
            for m in range(1, len(modules) if self.config.coordination and part.stop else 0):
                loss = coordination_loss(
                    modules[m - 1],
                    scales[m - 1],
                    modules[m],
                    x_BNC[part],
                    class_ids_B[part],
                    generator=self._generator(step, 1000 + m),
                )
                (self.config.coordination * loss).backward()
                losses[f"c{m}"] = loss.detach()
        for optimizer in self.optimizers:
            optimizer.step(lr_factor)
        self.ema.update_parameters(self.model)
        return {name: value.item() for name, value in losses.items()}

    def _generator(self, step: int, part: int) -> torch.Generator:
        return step_generator(self.config.seed * 2003 + part, step, self.device)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Held-out loss of each averaged module: with noisy context (`held_m`) as xAR trains, and with all
        but the last patch clean (`held_clean_m`), as sampling runs."""
        result: dict[str, float] = {}
        model: NestAR = self.ema.module
        for module, scale in zip(model.scaled_modules, self.config.nesting.scales, strict=True):
            patches = len(scale.patches)
            for name, clean in (("held", 0.0), ("held_clean", None)):
                total = 0.0
                parts = self.held_latents.split(256)
                for number, x_BNC in enumerate(parts):
                    ids = self.held_ids.split(256)[number]
                    mask = clean if clean is not None else self._all_prefixes(len(x_BNC), patches)
                    with torch.autocast(self.device.type, torch.bfloat16):
                        total += flow_matching_loss(
                            module,
                            scale,
                            x_BNC.float(),
                            ids,
                            clean_share=mask,
                            generator=self._generator(number, -1),
                        ).item()
                result[f"{name}_{scale.number}"] = total / len(parts)
        return result

    def _all_prefixes(self, rows: int, patches: int) -> Tensor:
        """Row b has its first 1 + b mod (P-1) patches clean: every prefix equally often."""
        length_B = 1 + torch.arange(rows, device=self.device) % max(1, patches - 1)
        return (torch.arange(patches, device=self.device) < length_B[:, None]) & (patches > 1)

    def picture(self, path: Path) -> None:
        """Samples of the averaged model: a row a class, eight seeds."""
        ids = torch.arange(self.classes).repeat_interleave(8)
        images = sample_images(self.ema.module.eval(), self.tokenizer, ids, list(range(len(ids))))
        save_grid(images, 8, path)
        self.ema.module.train()

    def state_tensors(self) -> dict[str, Tensor]:
        tensors = {**prefixed("model", self.model.state_dict()), **prefixed("ema", self.ema.state_dict())}
        for number, optimizer in enumerate(self.optimizers):
            tensors |= prefixed(f"optimizer{number}", optimizer.state_tensors())
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.model.load_state_dict(unprefixed("model", tensors))
        self.ema.load_state_dict(unprefixed("ema", tensors))
        for number, optimizer in enumerate(self.optimizers):
            optimizer.load_state_tensors(unprefixed(f"optimizer{number}", tensors))

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the averaged model as a nesting's folder."""
        described = {
            **record,
            "images_seen": record["steps"] * self.config.batch,
            "config": {**asdict(self.config), "nesting": self.config.nesting.name},
        }
        self.ema.module.save_pretrained(folder / self.config.nesting.name, record=described)


def _fingerprint(tokenizer: Tokenizer) -> str:
    """Eight hex digits of a tokenizer's weights and scale: latents of another one must not be reused."""
    digest = hashlib.sha256(repr((tokenizer.patch, tokenizer.scale)).encode())
    for value in tokenizer.state_dict().values():
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def quick_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU, attention by plain matrix products: in a profile of the embedded k = 4 the fused kernel's
    backward pass alone took 29 % of a training step, with heads as small as these."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@torch.inference_mode()
def sample_images(
    model: NestAR,
    tokenizer: Tokenizer,
    class_ids_B: Tensor,
    seeds: Sequence[int],
    settings: SolverSettings | None = None,
) -> Tensor:
    """Finished images (B, 3, H, W) in [-1, 1] on the CPU; not streamed."""
    nesting = model.config.nesting
    for event in sample(model, class_ids_B, seeds, settings or SolverSettings()):
        if isinstance(event, PatchDone) and event.known == nesting.n:
            parts = event.sequence_BNC.split(64)
    return torch.cat([tokenizer.preview(part, nesting, nesting.n).cpu() for part in parts])
