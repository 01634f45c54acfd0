"""Does a picture show one scene? Tiny Worlds draws again what the feature network reads from it.

A picture whose parts belong together is near what is drawn of its own factors; a fish with two heads is near
no fish. It is pixels that are compared, where FID, precision and recall compare features of whole pictures.
A picture whose factors are misread is far, too: what drawn pictures reach is the ceiling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nestar.data import tiny_worlds
from nestar.evaluation.metrics import decibels

SIZE = 64
"""Side of the drawings in pixels: half of Tiny Worlds' own, where edges a pixel off cost less."""

DECORATIONS = 4
"""Drawings of the same factors, which differ in what no factor decides: clouds, stars, grass."""

AGREEMENT = 0.05
"""Deviation of these drawings, of a range of 2, at which a pixel counts half."""


def redrawn_psnr(images_B3HW: Tensor, class_ids_B: Tensor, factors_BF: Tensor) -> Tensor:
    """How near pictures are to the mean drawing of their classes and factors, where drawings agree.

    Args:
        images_B3HW: in [-1, 1]; larger ones are averaged down to SIZE.
        factors_BF: as `tiny_worlds.draw` gives them, or as they are read.

    Returns:
        PSNR in dB, (B,), each pixel weighted by agreement.
    """
    size = min(SIZE, images_B3HW.shape[-1])
    # All in one call, where few pictures of a class would cost as much as many.
    repeated = class_ids_B.repeat(DECORATIONS), factors_BF.repeat(DECORATIONS, 1)
    seeds = torch.arange(DECORATIONS, device=class_ids_B.device).repeat_interleave(len(class_ids_B))
    drawings_DB3HW = tiny_worlds.draw_factors(*repeated, seeds, size).unflatten(0, (DECORATIONS, -1))
    variance_B1HW = drawings_DB3HW.var(0).mean(1, keepdim=True)
    weight_B1HW = 1 / (1 + variance_B1HW / AGREEMENT**2)
    small_B3HW = F.adaptive_avg_pool2d(images_B3HW, size)
    error_B3HW = (small_B3HW - drawings_DB3HW.mean(0)).square() * weight_B1HW
    return decibels(error_B3HW.mean((1, 2, 3)) / weight_B1HW.mean((1, 2, 3)))
