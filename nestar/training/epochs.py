"""The order in which a folder's pictures are shown."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from nestar.training.loop import step_generator

SHOWN_AT_ONCE = 2
"""Epochs whose order is kept: a batch may begin in one and end in the next."""


class Epochs:
    """Every picture once an epoch, in an order of the epoch's own, as it is or mirrored, with even chances.

    What stands at place i of the run is a function of (seed, i) alone: a run goes on in the middle of an
    epoch, and any number of processes takes its rows from one order.

    Args:
        pictures: P; the index of a picture's mirror image is P more than its own.
    """

    def __init__(self, pictures: int, seed: int):
        self.pictures, self.seed = pictures, seed
        self._epoch = lru_cache(SHOWN_AT_ONCE)(self._drawn)

    def index(self, first: int, count: int) -> Tensor:
        """What stands at places `first` to `first + count` - 1 of the run, (count,)."""
        shown = []
        while count > 0:
            epoch, place = divmod(first, self.pictures)
            some = self._epoch(epoch)[place : place + count]
            shown.append(some)
            first, count = first + len(some), count - len(some)
        return torch.cat(shown)

    def _drawn(self, epoch: int) -> Tensor:
        """An epoch's order, (P,)."""
        generator = step_generator(self.seed, epoch, torch.device("cpu"))
        mirrored_P = torch.rand(self.pictures, generator=generator) < 0.5
        order_P = torch.randperm(self.pictures, generator=generator)
        return order_P + self.pictures * mirrored_P
