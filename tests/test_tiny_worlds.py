"""Tiny Worlds: deterministic, independent of the batch, varied, and not given away by colour."""

import hashlib

import pytest
import torch
from torch import Tensor

from benchmarks import thumbnails
from nestar.data.tiny_worlds import (
    CLASSES,
    DRAWING,
    FACTORS,
    MAX_FACTORS,
    draw,
    draw_factors,
    draw_indices,
    uniform,
)
from nestar.images import to_bytes

pytestmark = pytest.mark.usefixtures("one_thread")


def of_class(class_id: int, count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    return torch.full((count,), class_id), torch.arange(start, start + count)


def test_uniform_is_uniform_and_streams_are_unrelated():
    a, b = uniform(torch.arange(20_000), 0), uniform(torch.arange(20_000), 1)
    for u in (a, b):
        assert u.min() >= 0 and u.max() < 1
        assert torch.histc(u, 10, 0, 1).sub(2000).abs().max() < 250
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.03
    assert torch.corrcoef(torch.stack([a[1:], a[:-1]]))[0, 1].abs() < 0.03


def test_indices_are_balanced_and_streams_share_no_seed():
    ids, seeds = draw_indices(0, 24, seed=3)
    assert torch.bincount(ids, minlength=len(CLASSES)).tolist() == [2] * len(CLASSES)
    later_ids, later_seeds = draw_indices(10, 14, seed=3)
    assert torch.equal(ids[10:], later_ids) and torch.equal(seeds[10:], later_seeds)
    _, other = draw_indices(0, 24, seed=4)
    assert not set(seeds.tolist()) & set(other.tolist())


def test_ten_classes_with_eight_factors():
    assert len(CLASSES) == len(set(CLASSES)) >= 10
    for factors in FACTORS.values():
        assert len({factor.name for factor in factors}) == len(factors) >= 8
        for factor in factors:
            assert (factor.levels >= 2) == (factor.kind == "discrete")


@pytest.mark.parametrize("size", [64, 96, 128])
def test_shape_range_and_finite_at_any_size(size):
    scene = draw(*draw_indices(0, 24, seed=1), size=size)
    assert scene.images.shape == (24, 3, size, size) and scene.images.dtype == torch.float32
    assert scene.factors.shape == (24, MAX_FACTORS)
    assert scene.images.isfinite().all() and scene.images.abs().max() <= 1
    assert (scene.images.flatten(1).std(1) > 0.1).all()


@pytest.mark.parametrize("size", [64, 50])
def test_a_picture_does_not_depend_on_its_batch(size):
    ids, seeds = draw_indices(0, 60, seed=2)
    together = draw(ids, seeds, size=size)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = draw(ids[order], seeds[order], size=size)
    assert torch.equal(shuffled.images, together.images[order])
    for i in range(0, 60, 5):
        alone = draw(ids[i : i + 1], seeds[i : i + 1], size=size)
        assert torch.equal(alone.images[0], together.images[i]), CLASSES[int(ids[i])]
        assert torch.equal(alone.factors[0].nan_to_num(-1), together.factors[i].nan_to_num(-1))


def test_drawing_has_a_number_of_its_own():
    """Cached pools are filed under DRAWING: whoever changes a picture raises it and pins the new digest."""
    pictures = to_bytes(draw(*draw_indices(0, 24, seed=7), size=64).images)
    digest = hashlib.sha256(pictures.numpy().tobytes()).hexdigest()[:16]
    assert (DRAWING, digest) == (1, "989cf4a8c4c73143")


def test_one_seed_changes_one_picture():
    ids, seeds = draw_indices(0, 12, seed=5)
    before = draw(ids, seeds, size=64).images
    seeds[7] += 12
    change = (draw(ids, seeds, size=64).images - before).abs().flatten(1).mean(1)
    assert change[7] > 0.03
    assert change[torch.arange(12) != 7].max() == 0


def test_size_changes_resolution_only():
    ids, seeds = draw_indices(0, 24, seed=6)
    large, small = draw(ids, seeds, size=128), draw(ids, seeds, size=64)
    assert torch.equal(large.factors.nan_to_num(-1), small.factors.nan_to_num(-1))
    halved = torch.nn.functional.avg_pool2d(large.images, 2)
    assert (halved - small.images).abs().mean() < 0.02


@pytest.mark.parametrize("class_id", range(len(CLASSES)), ids=CLASSES)
def test_factors_cover_their_range(class_id):
    values = draw(*of_class(class_id, 300), size=8).factors
    factors = FACTORS[CLASSES[class_id]]
    assert values[:, len(factors) :].isnan().all()
    for i, factor in enumerate(factors):
        column = values[:, i]
        if factor.levels:
            assert sorted(column.unique().tolist()) == list(range(factor.levels)), factor.name
        else:
            assert 0 <= column.min() < 0.05 and 0.95 < column.max() <= 1, factor.name
    spread = torch.corrcoef(values[:, : len(factors)].T) - torch.eye(len(factors))
    assert spread.abs().max() < 0.25


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="class_ids"):
        draw(torch.tensor([len(CLASSES)]), torch.tensor([0]))
    with pytest.raises(ValueError, match="shape"):
        draw(torch.tensor([0, 1]), torch.tensor([0]))


def test_no_class_is_given_away_by_colour_alone():
    """A multinomial logistic classifier on 4x4 thumbnails is above chance but below 80 %."""
    assert 2 / len(CLASSES) < thumbnails.accuracy() < 0.80


def test_factors_are_drawn_again_and_seeds_decide_the_rest() -> None:
    ids, seeds = draw_indices(0, 2 * len(CLASSES), 3)
    scene = draw(ids, seeds, 32)
    assert torch.equal(draw_factors(ids, scene.factors, seeds, 32), scene.images)
    others = draw_factors(ids, scene.factors, seeds + 1, 32)
    apart = (others - scene.images).square().mean((1, 2, 3))
    unlike = (draw(ids, seeds + 1, 32).images - scene.images).square().mean((1, 2, 3))
    assert 0 < apart.mean() < 0.3 * unlike.mean(), "decoration is less than factors are"
    with pytest.raises(ValueError, match="of one shape"):
        draw_factors(ids, scene.factors, seeds[1:], 32)
