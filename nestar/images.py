"""Pictures as tensors in [-1, 1], as bytes and as PIL images."""

from __future__ import annotations

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
    return tuple(Image.fromarray(image.numpy()) for image in to_bytes(images_B3HW).permute(0, 2, 3, 1).cpu())
