"""Pictures as tensors in [-1, 1], as bytes and as PIL images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_bytes(images_B3HW: Tensor) -> Tensor:
    """[-1, 1] to uint8; values outside are clipped."""
    return ((images_B3HW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(images_B3HW: Tensor) -> Tensor:
    """uint8 to [-1, 1], float32."""
    return images_B3HW.float() / 127.5 - 1


def to_pil(images_B3HW: Tensor) -> tuple[Image.Image, ...]:
    """Images in [-1, 1] as RGB pictures."""
    return from_pixels(to_bytes(images_B3HW).permute(0, 2, 3, 1).cpu())


def from_pixels(pixels_BHW3: Tensor) -> tuple[Image.Image, ...]:
    """uint8 on the CPU as RGB pictures."""
    return tuple(Image.fromarray(pixels_HW3.numpy()) for pixels_HW3 in pixels_BHW3)


def from_pil(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as images (B, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    return from_bytes(pixels.permute(0, 3, 1, 2))
