"""Weights to begin with, in modules of another number of blocks.

A new block is a copy of the one before it whose two last layers are zero: it adds nothing until it has
learned to, and knows what to look at (LLaMA Pro, arXiv 2401.02415).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from nestar.model import NestAR, WeightsError
from nestar.transformer import Block


def at_depths(model: NestAR, depths: Sequence[int]) -> NestAR:
    """The same weights with `depths` blocks in the scaled modules. A module that gets more answers as before,
    one that gets fewer has to learn again.

    Raises:
        ValueError: they are not a number of blocks, of at least 1, for each module.
    """
    if tuple(depths) == model.config.depths:
        return model
    other = NestAR(replace(model.config, blocks=sum(depths), split=tuple(depths)))
    other.record = model.record
    for old, new, depth in zip(model.scaled_modules, other.scaled_modules, depths, strict=True):
        stay = nn.ModuleList(_of_depth(old.blocks, depth))
        new.load_state_dict(
            {name: value for name, value in old.state_dict().items() if not name.startswith("blocks.")}
            | {f"blocks.{name}": value for name, value in stay.state_dict().items()}
        )
    return other.to(model.device).eval()


def as_deep(earlier: NestAR, model: NestAR, numbers: Sequence[int]) -> NestAR:
    """Weights that `model` came from, with blocks in its modules of these numbers that were added since.

    Raises:
        WeightsError: such a module has fewer blocks than it had.
    """
    depths = model.config.depths
    for number in numbers:
        if earlier.config.depths[number - 1] > depths[number - 1]:
            raise WeightsError(
                f"Module {number} of the earlier weights has more blocks: no way leads on from there."
            )
    return at_depths(earlier, depths)


def _of_depth(blocks: Sequence[Block], depth: int) -> list[Block]:
    """Blocks for a module of this depth: silent copies behind some, evenly spread, or as evenly spread ones
    left out, but never the first, which knows the tokens as they come."""
    more, fewer = max(0, depth - len(blocks)), max(0, len(blocks) - depth)
    copied = [-(-(number + 1) * len(blocks) // more) - 1 for number in range(more)]
    left_out = {1 + number * (len(blocks) - 1) // fewer for number in range(fewer)}
    made: list[Block] = []
    for place, block in enumerate(blocks):
        if place not in left_out:
            made += [block, *(_silent(block) for _ in range(copied.count(place)))]
    return made


@torch.no_grad()
def _silent(block: Block) -> Block:
    """A copy that adds nothing to what passes through it."""
    copy = deepcopy(block)
    copy.out.weight.zero_()
    copy.down.weight.zero_()
    return copy
