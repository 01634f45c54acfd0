"""Velocity alignment: how far neighbouring modules agree where both have seen the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nestar.flow import grid_noise, interpolate
from nestar.model import NestAR
from nestar.nesting import Scale
from nestar.transformer import ScaledModule

TIMES = tuple(i / 10 for i in range(1, 10))
CHUNK = 256
NOISE_SEED = 7_000_000_000
"""Row b of the compared latents is noised with seed NOISE_SEED + b, whatever the arm, module and time."""


def velocity_alignment(
    model: NestAR, x_NnC: Tensor, class_ids_N: Tensor, times: Sequence[float] = TIMES
) -> list[dict[str, Any]]:
    """Alignment of every pair of neighbouring modules at every time, see `align`.

    Args:
        x_NnC: clean tokens in the nesting's order, on the model's device.

    Returns:
        One row a pair and time: `pair` (m for modules m and m + 1), `t`, and the figures of `align`.
    """
    return list(aligned_rows(model, x_NnC, class_ids_N, times))


def aligned_rows(
    model: NestAR, x_NnC: Tensor, class_ids_N: Tensor, times: Sequence[float] = TIMES
) -> Iterator[dict[str, Any]]:
    """The rows of `velocity_alignment`, each as it is measured."""
    noise_NnC = grid_noise([NOISE_SEED + row for row in range(len(x_NnC))], *x_NnC.shape[1:]).to(x_NnC.device)
    noise_NnC = noise_NnC[:, list(model.config.nesting.flat)]  # noise belongs to the place
    modules, scales = model.scaled_modules, model.config.nesting.scales
    for m in range(1, len(modules)):
        for t in times:
            figures = align(modules[m - 1], scales[m - 1], modules[m], x_NnC, noise_NnC, class_ids_N, t)
            yield {"pair": m, "t": t, **figures}


@torch.inference_mode()
def align(
    former: ScaledModule,
    former_scale: Scale,
    latter: ScaledModule,
    x_NnC: Tensor,
    noise_NnC: Tensor,
    class_ids_N: Tensor,
    t: float,
) -> dict[str, float]:
    """Velocities of two neighbouring modules at one time, on the former's last patch.

    Both see the same noised tokens: the former causally in its patches, the latter as its first patch.

    Returns:
        `difference`: mean squared difference of both velocities. `cosine`: of both as one vector a row, mean
        over rows. `error_former`, `error_latter`: mean squared difference of each from the true velocity;
        `error_former_before`, `error_latter_before`: the same on the tokens before that patch.
    """
    tokens, last = former_scale.tokens, former_scale.patches[-1]
    sizes = [patch.size for patch in former_scale.patches]
    sums: dict[str, float] = {}
    for rows in torch.arange(len(x_NnC), device=x_NnC.device).split(CHUNK):
        x_BNC, noise_BNC, ids_B = x_NnC[rows, :tokens], noise_NnC[rows, :tokens], class_ids_N[rows]
        t_B1 = torch.full((len(rows), 1), t, device=x_BNC.device)
        y_BNC = interpolate(x_BNC, noise_BNC, t_B1[..., None])
        one_BNC = former(y_BNC, t_B1.expand(-1, len(sizes)), ids_B, sizes)
        other_BNC = latter(y_BNC, t_B1, ids_B, [tokens])
        one, other = one_BNC[:, last.start :], other_BNC[:, last.start :]
        means_B = {
            "difference": (one - other).square().mean((1, 2)),
            "cosine": F.cosine_similarity(one.flatten(1), other.flatten(1)),
        }
        for name, velocity_BNC in (("error_former", one_BNC), ("error_latter", other_BNC)):
            error_BN = (velocity_BNC - (x_BNC - noise_BNC)).square().mean(2)
            means_B[name] = error_BN[:, last.start :].mean(1)
            if last.start:
                means_B[f"{name}_before"] = error_BN[:, : last.start].mean(1)
        for name, mean_B in means_B.items():
            sums[name] = sums.get(name, 0.0) + mean_B.sum().item()
    return {name: total / len(x_NnC) for name, total in sums.items()}
