"""Pictures beside what Tiny Worlds draws of their factors: whole ones are near, torn and misread ones far."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nestar.data import tiny_worlds
from nestar.data.tiny_worlds import CLASSES, draw_factors, draw_indices
from nestar.evaluation.redrawing import DECORATIONS, redrawn_psnr

COUNT = 4 * len(CLASSES)


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, classes and factors."""
    ids, seeds = draw_indices(0, COUNT, 5)
    scene = tiny_worlds.draw(ids, seeds, 128)
    return scene.images, ids, scene.factors


def test_a_picture_is_near_the_drawing_of_its_own_factors_and_far_from_others(drawn) -> None:
    images, ids, factors = drawn
    own = redrawn_psnr(images, ids, factors)
    others = redrawn_psnr(images, ids, factors.roll(len(CLASSES), 0))
    assert own.shape == (COUNT,) and own.mean() > 25
    assert (own > others + 3).double().mean() > 0.9


def test_what_is_torn_is_no_scene(drawn) -> None:
    """Half of another picture of the class: its features may be right, its lines do not meet."""
    images, ids, factors = drawn
    torn = torch.where(torch.arange(128) < 64, images, images.roll(len(CLASSES), 0))
    assert (redrawn_psnr(images, ids, factors) - redrawn_psnr(torn, ids, factors)).min() > 1


def test_what_no_factor_decides_counts_little(drawn) -> None:
    """Where drawings of the same factors differ, the mean drawing is as good as one of them."""
    _, ids, factors = drawn
    drawings = [draw_factors(ids, factors, torch.full_like(ids, seed), 64) for seed in range(DECORATIONS)]
    mean = torch.stack(drawings).mean(0)
    assert redrawn_psnr(mean, ids, factors).min() > 80
    plain = 10 * torch.log10(4 / (drawings[0] - mean).square().mean((1, 2, 3)).clamp_min(4e-10))
    assert (redrawn_psnr(drawings[0], ids, factors) - plain).mean() > 3


def test_a_picture_of_another_size_is_the_same_picture(drawn) -> None:
    images, ids, factors = drawn
    half, doubled = F.avg_pool2d(images, 2), F.interpolate(images, scale_factor=2)
    whole = redrawn_psnr(images, ids, factors)
    torch.testing.assert_close(redrawn_psnr(half, ids, factors), whole, atol=0.01, rtol=0)
    torch.testing.assert_close(redrawn_psnr(doubled, ids, factors), whole, atol=0.01, rtol=0)
