"""Flow matching: the path, the losses, the solvers, guidance and noise.

Noise stands at t = 0 and data at t = 1: `y_t = (1 - t) eps + t x`, with target velocity `x - eps`
(arXiv 2510.23028; time law and noisy context after xAR). Suffixes as in `transformer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nestar.nesting import Scale
from nestar.settings import SCHEDULES, SOLVERS
from nestar.transformer import Context, ScaledModule, patch_of_token

COORDINATION_TOKENS = ("last", "all", "all-detached")
"""Which of the tokens that neighbours share coordination compares, and where its gradient goes."""


CLEAN_SHARE = 0.8
"""Share of training rows whose context is clean, as in sampling."""


@dataclass(frozen=True)
class Part:
    """Some rows of a batch that is run in parts. What they draw is cut from what the whole batch draws: a
    row's noise and times are the same however many parts there are, and whichever process runs them.

    Attributes:
        batch: rows of the whole; rows: which of them these are.
    """

    batch: int
    rows: slice

    def __len__(self) -> int:
        return len(range(self.batch)[self.rows])

    def of_first(self, rows: int) -> Part:
        """Those among the batch's first `rows`, which come first here, too."""
        return Part(rows, self.rows)


def interpolate(x_BNC: Tensor, noise_BNC: Tensor, t_BN1: Tensor) -> Tensor:
    """The straight path from noise (t = 0) to data (t = 1)."""
    return (1 - t_BN1) * noise_BNC + t_BN1 * x_BNC


def sample_times(
    rows: int,
    patches: int,
    generator: torch.Generator | None,
    device: torch.device,
    part: Part | None = None,
) -> Tensor:
    """t ~ sigmoid(N(0, 1)), one for every patch of every row, (B, P); xAR's law."""
    return _drawn(torch.randn, (rows, patches), generator, device, part).sigmoid()


def _drawn(
    law: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device,
    part: Part | None,
) -> Tensor:
    """Random numbers for the rows of `part`, each row once or as often in turn as `shape` has room for."""
    if part is None:
        return law(shape, generator=generator, device=device)
    times = shape[0] // len(part)
    whole = law((times * part.batch, *shape[1:]), generator=generator, device=device)
    return whole.unflatten(0, (times, part.batch))[:, part.rows].flatten(0, 1)


def flow_matching_loss(
    module: ScaledModule,
    scale: Scale,
    x_BNC: Tensor,
    class_ids_B: Tensor,
    *,
    clean_share: float = CLEAN_SHARE,
    teacher: Callable[..., Tensor] | None = None,
    generator: torch.Generator | None = None,
    part: Part | None = None,
) -> Tensor:
    """Mean squared velocity error of one scaled module over the patches it generates.

    One pass, in which every patch is noised at a time of its own and sees what sampling shows it: the
    patches before it as context. In `clean_share` of the rows that context is clean, as in sampling; in
    the others each of its patches is noised at a time of its own (xAR's noisy context learning, a guard
    against exposure bias).

    Args:
        x_BNC: clean tokens in sequence order, at least the scale's.
        teacher: whose velocities are the right ones, called as the module is; None: the path's own.
        part: of which batch these rows are a part, alone or all repeated in turn; None: they are one.
    """
    rows, device = len(x_BNC), x_BNC.device
    sizes = [patch.size for patch in scale.patches]
    x_BNC = x_BNC[:, : scale.tokens]
    before, start = scale.patches[-1].start, scale.generated[0].start

    context = None
    if before:
        t_BP = sample_times(rows, len(sizes) - 1, generator, device, part)
        clean_B = _drawn(torch.rand, (rows,), generator, device, part) < clean_share
        t_BP = torch.where(clean_B[:, None], 1.0, t_BP)
        context = Context(_noised(x_BNC[:, :before], t_BP, sizes[:-1], generator, part)[0], t_BP)
    noised = len(scale.generated)
    t_BQ = sample_times(rows, noised, generator, device, part)
    y_BNC, target_BNC = _noised(x_BNC[:, start:], t_BQ, sizes[-noised:], generator, part)
    seen = (y_BNC, t_BQ, class_ids_B, sizes, context)
    if teacher is not None:
        target_BNC = teacher(*seen)
    v_BNC = module(*seen)
    return (v_BNC - target_BNC).square().mean()


def shared_patch_losses(
    former: ScaledModule | None,
    former_scale: Scale,
    latter: ScaledModule,
    x_BNC: Tensor,
    class_ids_B: Tensor,
    *,
    coordination_tokens: str = "last",
    generator: torch.Generator | None = None,
    part: Part | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What modules m-1 and m say of the tokens both know, x_1 ... x_{p_m}, at one t and one noise a row.

    Args:
        coordination_tokens: `last` is our reading, below. `all` compares every shared token with gradient
            into both modules, which pulls each away from its own true velocity (biased: an experiment's
            arm); `all-detached` compares them too and teaches module m-1 alone.
        part: as in `flow_matching_loss`.

    Returns:
        Module m's flow-matching loss on these tokens, its first patch: no sampling uses it, but
        coordination compares it, so it must be trained. And the coordination loss, our reading of the
        paper's: the mean squared difference of both velocities on module m-1's last patch, the only one
        where both have seen the same tokens; on the others m-1 sees causally what m sees in both
        directions, and their true velocities differ. None without `former`.

    Raises:
        ValueError: `coordination_tokens` is none of COORDINATION_TOKENS.
    """
    check_coordination_tokens(coordination_tokens)
    sizes = [patch.size for patch in former_scale.patches]
    x_BNC = x_BNC[:, : former_scale.tokens]
    t_B1 = sample_times(len(x_BNC), 1, generator, x_BNC.device, part)
    y_BNC, target_BNC = _noised(x_BNC, t_B1, [former_scale.tokens], generator, part)
    whole_BNC = latter(y_BNC, t_B1, class_ids_B, [former_scale.tokens])
    first_loss = (whole_BNC - target_BNC).square().mean()
    if former is None:
        return first_loss, None
    causal_BNC = former(y_BNC, t_B1.expand(-1, len(sizes)), class_ids_B, sizes)
    if coordination_tokens == "all-detached":
        whole_BNC = whole_BNC.detach()
    start = former_scale.patches[-1].start if coordination_tokens == "last" else 0
    return first_loss, (whole_BNC - causal_BNC)[:, start:].square().mean()


def check_coordination_tokens(name: str) -> None:
    """Raises ValueError unless `name` is one of COORDINATION_TOKENS."""
    if name not in COORDINATION_TOKENS:
        allowed = ", ".join(COORDINATION_TOKENS)
        raise ValueError(f"Unknown coordination tokens {name!r}: allowed are {allowed}.")


def _noised(
    x_BNC: Tensor,
    t_BP: Tensor,
    sizes: Sequence[int],
    generator: torch.Generator | None,
    part: Part | None,
) -> tuple[Tensor, Tensor]:
    """Points on the path from noise to patches of these sizes, each at its own time, and their velocities."""
    noise_BNC = _drawn(torch.randn, x_BNC.shape, generator, x_BNC.device, part)
    t_BN1 = t_BP[:, patch_of_token(tuple(sizes), x_BNC.device), None]
    return interpolate(x_BNC, noise_BNC, t_BN1), x_BNC - noise_BNC


class Room(NamedTuple):
    """What solver steps write into, each of the state's shape: two velocities, and the state between."""

    first: Tensor
    second: Tensor
    between: Tensor

    @classmethod
    def like(cls, y: Tensor) -> Room:
        """For states like y."""
        return cls(*(torch.empty_like(y) for _ in cls._fields))


def solver_step(
    velocity: Callable[[Tensor, float, Tensor], object],
    y: Tensor,
    t: float,
    dt: float,
    solver: str,
    room: Room,
) -> None:
    """One step of an explicit solver: moves y from t to t + dt, in place, and leaves the velocity at t in
    `room.first`.

    euler is of order 1; midpoint and heun of order 2. diffusers' flow-match schedulers were not used:
    their time grids end in a tail of their own, and Heun there takes 2N - 1 calls.

    Args:
        velocity: writes the velocity of a state, at a time, into its third argument.
    """
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}: allowed are {', '.join(SOLVERS)}.")
    first, second, between = room
    velocity(y, t, first)
    if solver == "euler":
        y.add_(first, alpha=dt)
        return
    ahead = 0.5 * dt if solver == "midpoint" else dt
    velocity(torch.add(y, first, alpha=ahead, out=between), t + ahead, second)
    if solver == "midpoint":
        y.add_(second, alpha=dt)
    else:
        y.add_(second.add_(first), alpha=0.5 * dt)


def guidance_scale(cfg: float, schedule: str, evaluation: int, evaluations: int) -> float:
    """Guidance of patch `evaluation` (0 ... E-1): `constant`, or `linear` from 1 up to `cfg`."""
    if schedule == "constant" or evaluations == 1:
        return cfg
    if schedule == "linear":
        return 1 + (cfg - 1) * evaluation / (evaluations - 1)
    raise ValueError(f"Unknown guidance schedule {schedule!r}: allowed are {', '.join(SCHEDULES)}.")


def guide(
    conditional: Tensor, unconditional: Tensor, scale: float | Tensor, out: Tensor | None = None
) -> Tensor:
    """Classifier-free guidance, `v = v_u + s (v_c - v_u)`; a tensor's scales are those of rows."""
    return torch.lerp(unconditional, conditional, scale, out=out)


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
