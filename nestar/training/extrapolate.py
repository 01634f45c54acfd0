"""Weights beyond where training ended, away from where it stood earlier: guidance that costs nothing.

Autoguidance (Karras et al., arXiv 2406.02507) samples with v + a (v - v'), v' being the velocity of a less
trained model: what training mended, it mends further. Where both lie close enough, that is to first order in
the weights the velocity of w + a (w - w'), which takes one network pass and not two. Like any guidance it
leaves the true velocity: the held-out loss rises.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from nestar.model import NestAR
from nestar.settings import SettingsError
from nestar.training.autoguidance import check_earlier, listed
from nestar.training.depth import as_deep

MOST = 2.0
"""Largest share of the way that weights are moved on by: what is above is a slip of the hand."""


@torch.no_grad()
def extrapolate(
    model: NestAR,
    earlier: NestAR,
    by: float,
    modules: Collection[int] = (),
    note: Mapping[str, Any] | None = None,
) -> NestAR:
    """Move scaled modules on, in place, to w + by (w - w'), and say so in the model's record.

    Args:
        earlier: the same nesting, less trained, at best on the way that `model` came, and of as many blocks
            or fewer: w'. Not moved on itself: training leads back from there, and going on along that way
            undoes what it mended.
        modules: their numbers; all of them if empty.
        note: what the record shall say of `earlier`.

    Raises:
        SettingsError: `by` is out of range, or a module is not there.
        WeightsError: see `autoguidance.check_earlier`.
    """
    if not (math.isfinite(by) and 0 <= by <= MOST):
        raise SettingsError(f"Weights are moved on by 0 to {MOST:g} of their way, not by {by:g}.")
    nesting = model.config.nesting
    strangers = sorted(set(modules) - {scale.number for scale in nesting.scales})
    if strangers:
        raise SettingsError(f"{nesting.name} has modules 1 to {nesting.modules}, no module {strangers[0]}.")
    numbers = sorted(modules) or [scale.number for scale in nesting.scales]
    if earlier.config.nesting == nesting:
        earlier = as_deep(earlier, model, numbers)
    check_earlier(model, earlier, numbers)
    for number in numbers:
        mine, theirs = (each.scaled_modules[number - 1].parameters() for each in (model, earlier))
        for own, before in zip(mine, theirs, strict=True):
            own.add_(own - before, alpha=by)
    step = {"modules": numbers, "by": by, "away_from": dict(note or {})}
    model.record = {**model.record, "extrapolated": [*listed(model.record, "extrapolated"), step]}
    return model
