"""Training the tokenizer: reconstruction, a light KL term, and previews of unfinished grids."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestar.data import tiny_worlds
from nestar.data.pools import CPU, HELD_OUT_SEED, ImagePool
from nestar.engine import autocast, products_in
from nestar.evaluation import metrics
from nestar.files import together, whole, write_json
from nestar.images import to_bytes
from nestar.nesting import Nesting
from nestar.settings import SettingsError
from nestar.tokenizer import Tokenizer, as_coarse, build_autoencoder, filled, tokens_of
from nestar.training.loop import prefixed, start_from, step_generator, unprefixed
from nestar.training.optim import MovingAverage, MuonAdamW, OptimizerConfig


@dataclass(frozen=True)
class TokenizerConfig:
    """The embedded tokenizer: 128x128 images to an 8x8 grid of 16 channels (f16, the paper's ratio).

    Attributes:
        nested: the encoder learns from what the first tokens in lattice order show, too (nested dropout,
            arXiv 1402.0915): they then tell of the whole picture, and the later ones of its details.
        noise: on half of the whole grids, of a strength even up to this share of the latents' deviation:
            tokens that a sampler misses by a little decode to the same picture (after arXiv 2507.15856).
        decoder_only: leave the encoder as it is, so that nestings trained on its latents go on fitting. They
            stay nested, or not, whatever `nested` says.
    """

    size: int = 128
    patch: int = 4
    channels: tuple[int, ...] = (32, 64, 160)
    latent_channels: int = 16
    batch: int = 32
    pool: int = 60_000  # images drawn once
    mse_weight: float = 4.0  # beside L1: brings the squared error, and so PSNR, level with it
    kl_weight: float = 1e-4
    fill_share: float = 0.2  # of each batch, decoded from an unfinished grid
    nested: bool = False
    noise: float = 0.0
    held_out: int = 256
    decoder_only: bool = False
    seed: int = 0
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1.5e-3, muon_lr=4e-3, weight_decay=0.0)
    )


class TokenizerTask:
    """What `training.loop.train` needs to train a tokenizer on Tiny Worlds; `init` gives it first weights.

    Args:
        steps_before: those that `init` has been trained for, whose draws are not drawn again.

    Raises:
        SettingsError: only the decoder is to be trained, and there is no `init`.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        device: torch.device,
        cache: Path,
        *,
        init: Tokenizer | None = None,
        steps_before: int = 0,
    ):
        if config.decoder_only and init is None:
            raise SettingsError("A decoder alone is trained for an encoder: --init names its tokenizer.")
        torch.manual_seed(config.seed)
        self.config, self.device, self.steps_before = config, device, steps_before
        autoencoder = build_autoencoder(
            patch=config.patch, channels=config.channels, latent_channels=config.latent_channels
        )
        if init is not None:
            start_from(autoencoder, init.autoencoder)
        autoencoder.encoder.requires_grad_(not config.decoder_only)
        kept = init if config.decoder_only else None  # its latents stay
        self.scale = kept.scale if kept else None  # else measured in the end
        self.tokenizer = Tokenizer(
            autoencoder.to(device),
            patch=config.patch,
            fills=config.fill_share > 0,
            nested=kept.nested if kept else config.nested,
        )
        self.ema = MovingAverage(self.tokenizer, config.optimizer.ema)
        self.optimizer = MuonAdamW(
            [item for item in self.tokenizer.autoencoder.named_parameters() if item[1].requires_grad],
            config.optimizer,
            exclude=("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"),
        )
        side = config.size // self.tokenizer.stride
        self.fills = [Nesting.nested(side, side, k=4, order=order) for order in ("lattice", "raster")]
        self.pool = ImagePool(cache, config.pool, config.size, device=device)
        held = tiny_worlds.draw_indices(0, config.held_out, HELD_OUT_SEED)
        self.held_out = torch.cat(
            [
                tiny_worlds.draw(ids, seeds, config.size).images
                for ids, seeds in zip(held[0].split(64), held[1].split(64), strict=True)
            ]
        )

    def _images(self, generator: torch.Generator) -> Tensor:
        batch, device = self.config.batch, self.device
        index = torch.randint(len(self.pool), (batch,), generator=generator, device=device)
        images = self.pool.batch(index)
        flipped = torch.rand(batch, generator=generator, device=device) < 0.5
        return torch.where(flipped[:, None, None, None], images.flip(3), images)

    def train_step(self, step: int, lr_factor: float) -> dict[str, Tensor]:
        """One optimiser step; returns its losses, on the device, where all but a step's fill is drawn."""
        drawn = self.steps_before + step
        host = step_generator(self.config.seed, drawn, CPU)
        on_cpu = self.device.type == "cpu"
        generator = host if on_cpu else step_generator(self.config.seed, drawn, self.device)
        images = self._images(generator)
        with autocast(self.device):
            mean, logvar = self.tokenizer.moments(images)
            mean, logvar = mean.float(), logvar.float()
            noise = torch.randn(mean.shape, generator=generator, device=self.device)
            sampled = mean + (0.5 * logvar).exp() * noise
            latents, target = self._with_fills(self._noised(sampled, generator), images, step, host)
            rebuilt = self.tokenizer.decode_raw(latents).float()
        error = rebuilt - target
        l1, mse = error.abs().mean(), error.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        (l1 + self.config.mse_weight * mse + self.config.kl_weight * kl).backward()
        self.optimizer.step(lr_factor)
        self.ema.update_parameters(self.tokenizer)
        whole = error[self._filled(len(images)) :].detach().square().mean()
        return {"l1": l1.detach(), "kl": kl.detach(), "train_psnr": metrics.decibels(whole)}

    def _filled(self, rows: int) -> int:
        """How many of a batch's rows show unfinished grids; they come first."""
        return round(self.config.fill_share * rows)

    def _noised(self, latents_BChw: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise to half of the rows that show whole grids. It is measured in the latents' deviation, with
        its gradient, so that no growth of theirs outruns it."""
        if not self.config.noise:
            return latents_BChw
        first = self._filled(len(latents_BChw))
        whole_BChw = latents_BChw[first:]
        drawn_B111 = torch.rand(len(whole_BChw), 1, 1, 1, generator=generator, device=self.device)
        strength_B111 = self.config.noise * (2 * drawn_B111 - 1).relu() * whole_BChw.std()
        noise_BChw = torch.randn(whole_BChw.shape, generator=generator, device=self.device)
        return torch.cat([latents_BChw[:first], whole_BChw + strength_B111 * noise_BChw])

    def _fill(self, step: int, generator: torch.Generator) -> tuple[Nesting, int]:
        """The order of a step's unfinished grids, and how many of their tokens are known: every other time
        so many as when a module closes. Nested tokens are so for every power of two, and in three steps of
        four in lattice order."""
        nested = self.tokenizer.nested
        nesting = self.fills[step % 4 == 3 if nested else step % 2]
        known = int(torch.randint(1, nesting.n, (), generator=generator))
        if step % 4 < 2:
            closing = (replace(nesting, k=2) if nested else nesting).scales[:-1]
            known = closing[step // 4 % len(closing)].tokens
        return nesting, known

    def _with_fills(
        self, latents_BChw: Tensor, images: Tensor, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Replace the first rows by unfinished grids and their targets by what such a grid can show.

        Known places keep the picture's own detail where they are contiguous (raster); everything else is
        the picture at the resolution that the known tokens amount to. Through these rows' pictures the
        encoder is not trained, but for those in lattice order where tokens are nested.

        Args:
            generator: on the CPU: how much is known decides shapes.
        """
        rows = self._filled(len(images))
        if rows == 0:
            return latents_BChw, images
        nesting, known = self._fill(step, generator)
        shown_BChw = latents_BChw[:rows]
        if not (self.tokenizer.nested and nesting.order == "lattice"):
            shown_BChw = shown_BChw.detach()
        grid = filled(tokens_of(shown_BChw, nesting), nesting, known)
        target = as_coarse(images[:rows], nesting, known)
        return torch.cat([grid, latents_BChw[rows:]]), torch.cat([target, images[rows:]])

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Held-out PSNR in dB of whole grids and of previews at each module's end (against the picture)."""
        errors: dict[str, list[Tensor]] = {}
        nesting = self.fills[0]
        for images in self.held_out.split(64):
            with autocast(self.device):
                tokens = tokens_of(self.ema.module.encode(images.to(self.device)), nesting)
                for scale in nesting.scales:
                    name = "psnr" if scale.tokens == nesting.n else f"psnr_{scale.tokens}"
                    error = self.ema.module.preview(tokens, nesting, scale.tokens).cpu() - images
                    errors.setdefault(name, []).append(error.square().mean((1, 2, 3)))
        return {name: metrics.decibels(torch.cat(parts)).mean().item() for name, parts in errors.items()}

    @torch.inference_mode()
    def picture(self, path: Path) -> None:
        """Columns: picture, previews at each module's end, whole reconstruction; lattice, then raster."""
        images = self.held_out[:: max(1, len(self.held_out) // 12)][:12].to(self.device)
        columns = [images]
        with autocast(self.device):
            latents = self.ema.module.encode(images)
            for nesting in self.fills:
                tokens = tokens_of(latents, nesting)
                columns += [self.ema.module.preview(tokens, nesting, s.tokens) for s in nesting.scales]
        save_grid(torch.stack(columns, 1).flatten(0, 1), len(columns), path)

    def state_tensors(self) -> dict[str, Tensor]:
        return {
            **prefixed("model", self.tokenizer.state_dict()),
            **prefixed("ema", self.ema.state_dict()),
            **prefixed("optimizer", self.optimizer.state_tensors()),
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.tokenizer.load_state_dict(unprefixed("model", tensors))
        self.ema.load_state_dict(unprefixed("ema", tensors))
        self.optimizer.load_state_tensors(unprefixed("optimizer", tensors))

    @torch.inference_mode()
    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the averaged network, with the scale that brings its latents to unit variance."""
        tokenizer, scale = self.ema.module, self.scale
        if scale is None:
            with autocast(self.device):
                latents = torch.cat([tokenizer.encode(x.to(self.device)) for x in self.held_out.split(64)])
            scale = round(1 / latents.std().item(), 6)
        described = {
            "patch": self.config.patch,
            "scale": scale,
            "fills": tokenizer.fills,
            "nested": tokenizer.nested,
            "training": {**record, "products": products_in(self.device), "config": asdict(self.config)},
        }
        with together(folder / "tokenizer", last="tokenizer.json") as place:
            tokenizer.save_pretrained(place)
            write_json(place / "tokenizer.json", described)


def save_grid(images_B3HW: Tensor, columns: int, path: Path) -> None:
    """Write a contact sheet as PNG, row by row, without borders."""
    from PIL import Image

    rows = len(images_B3HW) // columns
    sheet = to_bytes(images_B3HW[: rows * columns].float().cpu()).unflatten(0, (rows, columns))
    with whole(path) as partial:
        Image.fromarray(sheet.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()).save(partial)
