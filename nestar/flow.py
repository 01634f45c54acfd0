"""Flow matching: the path, the losses, the solvers, guidance and noise.

Noise stands at t = 0 and data at t = 1: `y_t = (1 - t) eps + t x`, with target velocity `x - eps`
(arXiv 2510.23028; time law and noisy context after xAR). Suffixes as in `transformer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nestar.nesting import Scale
from nestar.settings import SCHEDULES, SOLVERS
from nestar.transformer import ScaledModule, patch_of_token


def interpolate(x_BNC: Tensor, noise_BNC: Tensor, t_BN1: Tensor) -> Tensor:
    """The straight path from noise (t = 0) to data (t = 1)."""
    return (1 - t_BN1) * noise_BNC + t_BN1 * x_BNC


def sample_times(rows: int, patches: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """t ~ sigmoid(N(0, 1)), one for every patch of every row, (B, P); xAR's law."""
    return torch.randn(rows, patches, generator=generator, device=device).sigmoid()


def clean_prefixes(
    rows: int, patches: int, share: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Which patches enter training clean, (B, P) bool.

    Sampling feeds clean context, and t = 1 never occurs under the time law. So in `share` of the rows a
    random prefix of 1 ... P-1 patches stands at t = 1 exactly; it carries no loss.
    """
    if patches == 1:
        return torch.zeros(rows, 1, dtype=torch.bool, device=device)
    length_B = torch.randint(1, patches, (rows,), generator=generator, device=device)
    chosen_B = torch.rand(rows, generator=generator, device=device) < share
    return (torch.arange(patches, device=device) < length_B[:, None]) & chosen_B[:, None]


def flow_matching_loss(
    module: ScaledModule,
    scale: Scale,
    x_BNC: Tensor,
    class_ids_B: Tensor,
    *,
    clean_share: float | Tensor = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared velocity error of one scaled module over all its noised tokens.

    One block-causal pass over the scale's patches, patch 1 of later modules included: no sampling uses
    it, but coordination compares it, so it must be trained.

    Args:
        x_BNC: clean tokens in sequence order, at least the scale's.
        clean_share: share of rows with a clean prefix, or the (B, P) mask itself.
    """
    rows, patches, device = len(x_BNC), len(scale.patches), x_BNC.device
    sizes = [patch.size for patch in scale.patches]
    x_BNC = x_BNC[:, : scale.tokens]
    t_BP = sample_times(rows, patches, generator, device)
    clean_BP = (
        clean_share
        if isinstance(clean_share, Tensor)
        else clean_prefixes(rows, patches, clean_share, generator, device)
    )
    t_BP = torch.where(clean_BP, 1.0, t_BP)
    noise_BNC = torch.randn(x_BNC.shape, generator=generator, device=device)
    patch_N = patch_of_token(tuple(sizes)).to(device)
    velocity_BNC = module(interpolate(x_BNC, noise_BNC, t_BP[:, patch_N, None]), t_BP, class_ids_B, sizes)
    error_BN = (velocity_BNC - (x_BNC - noise_BNC)).square().mean(-1)
    noised_BN = ~clean_BP[:, patch_N]
    return (error_BN * noised_BN).sum() / noised_BN.sum()


def coordination_loss(
    former: ScaledModule,
    former_scale: Scale,
    latter: ScaledModule,
    x_BNC: Tensor,
    class_ids_B: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared difference of the velocities of modules m-1 and m on the same noised tokens.

    Our reading of the paper's coordination: both see x_1 ... x_{p_m} at one t and one noise a row. They
    are compared on module m-1's last patch, the only one where both have seen the same tokens; on the
    others m-1 sees causally what m sees in both directions, and their true velocities differ.
    """
    tokens = former_scale.tokens
    sizes = [patch.size for patch in former_scale.patches]
    x_BNC = x_BNC[:, :tokens]
    t_B1 = sample_times(len(x_BNC), 1, generator, x_BNC.device)
    noise_BNC = torch.randn(x_BNC.shape, generator=generator, device=x_BNC.device)
    y_BNC = interpolate(x_BNC, noise_BNC, t_B1[..., None])
    causal_BNC = former(y_BNC, t_B1.expand(-1, len(sizes)), class_ids_B, sizes)
    whole_BNC = latter(y_BNC, t_B1, class_ids_B, [tokens])
    last = former_scale.patches[-1]
    return (whole_BNC - causal_BNC)[:, last.start : last.stop].square().mean()


def solver_step(
    velocity: Callable[[Tensor, float], Tensor], y: Tensor, t: float, dt: float, solver: str
) -> tuple[Tensor, Tensor]:
    """One step of an explicit solver from t to t + dt; returns the new state and the velocity at t.

    euler is of order 1; midpoint and heun of order 2. diffusers' flow-match schedulers were not used:
    their time grids end in a tail of their own, and Heun there takes 2N - 1 calls.
    """
    v = velocity(y, t)
    if solver == "euler":
        return y + dt * v, v
    if solver == "midpoint":
        return y + dt * velocity(y + 0.5 * dt * v, t + 0.5 * dt), v
    if solver == "heun":
        return y + 0.5 * dt * (v + velocity(y + dt * v, t + dt)), v
    raise ValueError(f"Unknown solver {solver!r}: allowed are {', '.join(SOLVERS)}.")


def guidance_scale(cfg: float, schedule: str, evaluation: int, evaluations: int) -> float:
    """Guidance of patch `evaluation` (0 ... E-1): `constant`, or `linear` from 1 up to `cfg`."""
    if schedule == "constant" or evaluations == 1:
        return cfg
    if schedule == "linear":
        return 1 + (cfg - 1) * evaluation / (evaluations - 1)
    raise ValueError(f"Unknown guidance schedule {schedule!r}: allowed are {', '.join(SCHEDULES)}.")


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, `v = v_u + s (v_c - v_u)`."""
    return unconditional + scale * (conditional - unconditional)


def grid_noise(seeds: Sequence[int], grid_tokens: int, channels: int) -> Tensor:
    """Unit noise of every grid place, (B, grid_tokens, channels), float32 on the CPU.

    A row is a function of (seed, place) alone: the same whatever the nesting, batch, device or steps.
    Philox takes all bits of a seed as its key; torch's CPU generator would read the low 32 alone.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=seed)).standard_normal(
            (grid_tokens, channels), dtype=np.float32
        )
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows))
