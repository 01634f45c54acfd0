"""What a machine can do, and figures of it that look no more exact than they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from nestar.engine import compute_dtype, has_bf16
from nestar.model import NestAR

MATRIX_SIDE = {"cpu": 2048, "cuda": 4096}
"""Side of the square matrices whose product gives a device's rate."""


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate_dtype(device: torch.device) -> torch.dtype:
    """The fastest products that modules may compute in there."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Operations a second of a large square product in `dtype`, the median of all that fit into `seconds`. On
    a GPU ten are started before they are waited for: one takes little longer than the wait."""
    side = MATRIX_SIDE[device.type]
    products = 10 if device.type == "cuda" else 1
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    taken: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(taken) < 5:
        start = time.perf_counter()
        for _ in range(products):
            a @ b
        wait_for(device)
        taken.append(time.perf_counter() - start)
    return products * 2 * side**3 / statistics.median(taken[1:])


def products_of(model: NestAR) -> dict[str, Any]:
    """What each module's products are computed in, and what the rate of its device is given of."""
    return {
        "rate_dtype": named(rate_dtype(model.device)),
        "dtypes": [named(compute_dtype(module)) for module in model.scaled_modules],
        "matrix_side": MATRIX_SIDE[model.device.type],
    }


def named(dtype: torch.dtype) -> str:
    """float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": significant(statistics.median(values)),
        "lowest": significant(min(values)),
        "highest": significant(max(values)),
    }


def significant(value: float, digits: int = 4) -> float:
    """Rounded to some significant digits: a file of sixteen would look more exact than any timing is."""
    return float(f"{value:.{digits}g}")
