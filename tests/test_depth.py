"""Weights brought to another number of blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestar.model import NestAR
from nestar.training.depth import at_depths
from tests.small import CHANNELS, K4, small_model


def velocities(model: NestAR, number: int) -> Tensor:
    scale, module = model.config.nesting.scales[number], model.scaled_modules[number]
    y_BNC = torch.randn(3, scale.tokens, CHANNELS, generator=torch.Generator().manual_seed(2))
    sizes = [patch.size for patch in scale.patches]
    t_BP = torch.linspace(0.1, 0.9, 3 * len(sizes)).view(3, -1)
    with torch.no_grad():
        return module(y_BNC, t_BP, torch.tensor([0, 1, 2]), sizes)


@pytest.mark.parametrize("depths", [(2, 3), (3, 2), (5, 7)])
def test_a_deeper_module_answers_as_before(depths: tuple[int, int]) -> None:
    model = small_model(K4)
    deeper = at_depths(model, depths)
    assert deeper.config.depths == depths
    for number in range(2):
        torch.testing.assert_close(velocities(deeper, number), velocities(model, number))


def test_a_new_block_learns() -> None:
    """Its silent layers have gradients, though nothing passes through them yet."""
    new = at_depths(small_model(K4), (2, 3)).train().scaled_modules[1]
    v_BNC = new(torch.randn(2, 4, CHANNELS), torch.full((2, 1), 0.5), torch.tensor([0, 1]), [4])
    v_BNC.square().sum().backward()
    assert new.blocks[2].out.weight.grad.any() and new.blocks[2].down.weight.grad.any()


def test_a_shallower_module_keeps_its_first_block_and_the_other_modules_stay() -> None:
    model = at_depths(small_model(K4), (4, 2))
    with torch.no_grad():
        for number, block in enumerate(model.scaled_modules[0].blocks):
            block.out.weight.fill_(number)
    fewer = at_depths(model, (3, 2))
    assert [block.out.weight[0, 0].item() for block in fewer.scaled_modules[0].blocks] == [0, 2, 3]
    assert torch.equal(velocities(fewer, 1), velocities(model, 1))
    single = at_depths(model, (1, 2))
    assert [block.out.weight[0, 0].item() for block in single.scaled_modules[0].blocks] == [0]


def test_the_same_depths_are_the_same_weights() -> None:
    model = small_model(K4)
    assert at_depths(model, model.config.depths) is model
