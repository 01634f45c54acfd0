"""The tokenizer: images to continuous tokens and back, and soft previews of unfinished token grids.

One path loads both the tokenizer trained here and a published one (MAR's KL-16 in diffusers format): a
`diffusers.AutoencoderKL` behind an optional fold of `patch`x`patch` pixels into channels. The fold keeps
full-resolution convolutions, the cost on a CPU, out of the network; `patch=1` leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from nestar.files import write_tensors
from nestar.model import fingerprint_of
from nestar.nesting import Nesting

CPU = torch.device("cpu")
KEPT_WEIGHTS = 2**16
"""Entries of the largest `fill_weights` that are kept: all of a grid of 16 x 16 tokens, and 64 MiB in all."""


def build_autoencoder(*, patch: int, channels: Sequence[int], latent_channels: int) -> AutoencoderKL:
    """A fresh AutoencoderKL for images folded by `patch`; each level after the first halves the side."""
    folded = 3 * patch * patch
    return AutoencoderKL(
        in_channels=folded,
        out_channels=folded,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


class Tokenizer(nn.Module):
    """Images in [-1, 1] to a grid of continuous tokens and back.

    Args:
        autoencoder: the network; it sees images folded by `patch`.
        patch: side of the pixel square folded into channels before the network (1: none).
        scale: one factor for all channels that brings latents to unit variance. One per channel would
            turn near-dead channels into amplified noise.
        fills: whether the decoder has been trained on grids whose unknown places were filled; others answer
            with bands and ghosts, so that their previews are softened afterwards.
        nested: whether the encoder has been trained to have the first tokens in lattice order tell of the
            whole picture, see `training.tokenizer.TokenizerConfig`.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        patch: int,
        scale: float = 1.0,
        fills: bool = False,
        nested: bool = False,
    ):
        super().__init__()
        self.fills, self.nested = fills, nested
        self.autoencoder = autoencoder
        self.patch = patch
        self.scale = scale

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of weights, fold and scale: what pictures depend on."""
        return fingerprint_of(self, (self.patch, self.scale))

    @property
    def latents_fingerprint(self) -> str:
        """Eight hex digits of what latents depend on, and so of what a nesting fits: all but the decoder."""
        encoder = nn.ModuleList([self.autoencoder.encoder, self.autoencoder.quant_conv or nn.Identity()])
        return fingerprint_of(encoder, (self.patch, self.scale))

    @property
    def channels(self) -> int:
        """Channels of one token."""
        return self.autoencoder.config.latent_channels

    @property
    def stride(self) -> int:
        """Pixels along a side of the square that one token stands for."""
        return self.patch * 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    def moments(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the unscaled posterior, each (B, C, H/stride, W/stride)."""
        folded = F.pixel_unshuffle(images_B3HW, self.patch) if self.patch > 1 else images_B3HW
        posterior = self.autoencoder.encode(folded.to(self.autoencoder.dtype)).latent_dist
        return posterior.mean, posterior.logvar

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w), float32: the posterior's mean."""
        return self.moments(images_B3HW)[0].float() * self.scale

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to images (B, 3, H, W), float32, clamped to [-1, 1]."""
        return self.decode_raw(latents_BChw / self.scale).float().clamp(-1, 1)

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Unscaled latents to unclamped images; what training differentiates through."""
        folded = self.autoencoder.decode(latents_BChw.to(self.autoencoder.dtype)).sample
        return F.pixel_shuffle(folded, self.patch) if self.patch > 1 else folded

    def preview(self, tokens_BNC: Tensor, nesting: Nesting, known: int) -> Tensor:
        """Decode a grid of which only the first `known` tokens (sequence order) stand.

        Unknown places are filled, see `filled`. A decoder that has been trained on such fills answers
        with a soft guess of the picture; another's answer is made as soft. With all tokens known this is the
        plain decode.

        Args:
            tokens_BNC: scaled tokens in sequence order; those from `known` on are ignored.

        Returns:
            Images (B, 3, H, W) in [-1, 1].
        """
        images = self.decode(filled(tokens_BNC, nesting, known))
        return images if self.fills or known == nesting.n else as_coarse(images, nesting, known)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the network in diffusers' format, in `dtype`. Its own `save_pretrained` makes files that no
        other user may read."""
        self.autoencoder.save_config(str(folder))
        tensors = {name: value.to(dtype) for name, value in self.autoencoder.state_dict().items()}
        write_tensors(Path(folder) / SAFETENSORS_WEIGHTS_NAME, tensors, {"format": "pt"})


def tokens_of(latents_BChw: Tensor, nesting: Nesting) -> Tensor:
    """A grid's tokens in the nesting's sequence order, (B, n, C)."""
    order_n = torch.tensor(nesting.flat).to(latents_BChw.device, non_blocking=True)
    return latents_BChw.flatten(2).transpose(1, 2)[:, order_n]


def filled(tokens_BNC: Tensor, nesting: Nesting, known: int) -> Tensor:
    """The grid (B, C, h, w) of which only the first `known` tokens (sequence order) stand; every other place
    takes the nearest of them, or the mean of those that are equally near."""
    grid_BnC = fill_weights(nesting, known, tokens_BNC.device) @ tokens_BNC[:, :known].float()
    return grid_BnC.transpose(1, 2).unflatten(2, (nesting.height, nesting.width))


def fill_weights(nesting: Nesting, known: int, device: torch.device = CPU) -> Tensor:
    """What each grid place (row-major) takes of each of the first `known` tokens: (n, known), float32, rows
    that add up to 1. Kept on the device, so that no preview waits for a copy, unless they are many."""
    weigh = _kept_weights if nesting.n * known <= KEPT_WEIGHTS else _kept_weights.__wrapped__
    return weigh(nesting, known, device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _kept_weights(nesting: Nesting, known: int, device: torch.device) -> Tensor:
    places_n2 = torch.tensor([(i // nesting.width, i % nesting.width) for i in range(nesting.n)])
    made_k2 = torch.tensor(nesting.positions[:known])
    squared_nk = (places_n2[:, None] - made_k2[None]).square().sum(-1)
    nearest_nk = (squared_nk == squared_nk.amin(1, keepdim=True)).float()
    return (nearest_nk / nearest_nk.sum(1, keepdim=True)).to(device)


def low_pass(images_B3HW: Tensor, side: int) -> Tensor:
    """Average down to `side` pixels and interpolate back: what a coarse view of the picture can show."""
    height, width = images_B3HW.shape[-2:]
    small = F.interpolate(images_B3HW, size=(min(side, height), min(side, width)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


def as_coarse(images_B3HW: Tensor, nesting: Nesting, known: int) -> Tensor:
    """A picture as coarse as the first `known` tokens can tell, (B, 3, H, W): what an unfinished grid should
    decode to. In raster order the finished part stays sharp."""
    size = images_B3HW.shape[-1]
    soft = low_pass(images_B3HW, max(8, round(size * math.sqrt(known / nesting.n))))
    if nesting.order == "lattice":
        return soft
    mask = torch.zeros(nesting.n)
    mask[list(nesting.flat[:known])] = 1
    mask = mask.view(1, 1, nesting.height, nesting.width).to(images_B3HW.device, non_blocking=True)
    mask = F.interpolate(mask, size=images_B3HW.shape[-2:], mode="nearest")
    return mask * images_B3HW + (1 - mask) * low_pass(images_B3HW, 16)
