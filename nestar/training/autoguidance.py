"""Guidance by less trained weights, taught: a module learns v + a (v - v'), v' its own velocity earlier.

Autoguidance (Karras et al., arXiv 2406.02507) samples with it at the cost of a second network; taught once,
it costs nothing. `extrapolate` does the same to first order in the weights, which reaches less far: it takes
weights that lie close together, and close ones differ little. Like any guidance it leaves the true velocity:
the held-out loss, which is measured on data, rises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from nestar.model import NestAR, WeightsError
from nestar.settings import SettingsError
from nestar.transformer import Context, ScaledModule

MOST = 4.0
"""Largest a: sampled with 4, module 3 of the embedded k = 4 had lost much of its precision for little FID."""


class Teacher:
    """The velocity v + a (v - v') of a frozen module and of what it was earlier.

    Args:
        by: a.
    """

    def __init__(self, module: ScaledModule, earlier: ScaledModule, by: float):
        self.module, self.earlier = (frozen(each) for each in (module, earlier))
        self.by = by

    @torch.no_grad()
    def __call__(
        self, y_BNC: Tensor, t_BP: Tensor, class_ids_B: Tensor, sizes: Sequence[int], context: Context | None
    ) -> Tensor:
        """As `ScaledModule.forward`."""
        v_BNC, v_earlier_BNC = (
            module(y_BNC, t_BP, class_ids_B, sizes, context) for module in (self.module, self.earlier)
        )
        return v_BNC.add(v_BNC - v_earlier_BNC, alpha=self.by)


def frozen(module: ScaledModule) -> ScaledModule:
    """A copy that no training moves."""
    return deepcopy(module).requires_grad_(False)


def check_guidance(by: float) -> None:
    """Raises SettingsError unless 0 <= by <= MOST."""
    if not (math.isfinite(by) and 0 <= by <= MOST):
        raise SettingsError(f"--autoguidance must be a number from 0 to {MOST:g}, got {by:g}.")


def check_earlier(model: NestAR, earlier: NestAR, numbers: Sequence[int]) -> None:
    """Whether the way from the earlier weights to the model's is one that training took in these modules.

    Raises:
        WeightsError: the two have other shapes or other latents, or the earlier ones were guided themselves:
            training leads back from there, and going on along that way undoes what it mended.
    """
    if model.config != earlier.config:
        raise WeightsError("The earlier weights are of another shape or nesting: there is no way between.")
    if len({own.record["latents"] for own in (model, earlier) if "latents" in own.record}) > 1:
        raise WeightsError("The earlier weights were trained behind another tokenizer.")
    guided = guided_modules(earlier.record) & set(numbers)
    if guided:
        raise WeightsError(
            f"Module {min(guided)} of the earlier weights was moved on or guided itself: training leads back "
            "from there, not on."
        )


def guided_modules(record: object) -> set[int]:
    """Numbers of the modules that a model's record tells of having been moved on or taught guidance; also
    before the training recorded, if that left them as they were."""
    guided: set[int] = set()
    retrained: set[int] = set()
    while isinstance(record, Mapping):
        steps = [step for name in ("extrapolated", "autoguided") for step in listed(record, name)]
        named = [_numbers(step) for step in steps if isinstance(step, Mapping)]
        guided |= set().union(*named) - retrained
        if not (trained := _numbers(record)):  # none named: all were
            break
        retrained |= trained
        record = record.get("init")
    return guided


def _numbers(record: Mapping[str, Any]) -> set[int]:
    """The modules that a record names."""
    return {number for number in listed(record, "modules") if type(number) is int}


def listed(record: Mapping[str, Any], name: str) -> list[Any]:
    """A list in a record, which may be a stranger's and hold anything."""
    return record[name] if isinstance(record.get(name), list) else []
