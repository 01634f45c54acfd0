"""Path, losses, solvers, guidance and noise, against analytic solutions where there are any."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from nestar import flow
from nestar.nesting import Nesting
from tests.test_model import CHANNELS, CLASSES, make_model


def solve(velocity, y: Tensor, steps: int, solver: str) -> Tensor:
    for i in range(steps):
        y, _ = flow.solver_step(velocity, y, i / steps, 1 / steps, solver)
    return y


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
@pytest.mark.parametrize("problem", ["linear", "time"])
def test_solvers_converge_with_their_order(solver: str, order: int, problem: str) -> None:
    """Halving the step divides the error by 2^order."""
    y0 = torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64)
    velocity, exact = {
        "linear": (lambda y, t: -2 * y, y0 * math.exp(-2)),
        "time": (lambda y, t: y * math.cos(3 * t), y0 * math.exp(math.sin(3) / 3)),
    }[problem]
    errors = [(solve(velocity, y0, steps, solver) - exact).abs().max().item() for steps in (128, 256, 512)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_carry_noise_to_gaussian_data(solver: str, order: int) -> None:
    """Data ~ N(0, s^2): the straight path's marginal velocity is known and carries y(0) to s y(0).

    Midpoint happens to gain an order here, so only "at least" is asked.
    """
    s, y0 = 0.3, torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64)

    def velocity(y: Tensor, t: float) -> Tensor:
        return y * (s * s * t - (1 - t)) / (s * s * t * t + (1 - t) ** 2)

    errors = [(solve(velocity, y0, steps, solver) - s * y0).abs().max().item() for steps in (128, 256)]
    assert math.log2(errors[0] / errors[1]) > order - 0.25
    assert errors[1] < 0.01


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_a_straight_path_needs_one_step(solver: str) -> None:
    x, noise = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(solve(lambda y, t: x - noise, noise, 1, solver), x)


def test_unknown_solver_and_schedule_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'rk4'.*euler"):
        flow.solver_step(lambda y, t: y, torch.ones(1), 0.0, 1.0, "rk4")
    with pytest.raises(ValueError, match=r"'cosine'.*linear"):
        flow.guidance_scale(2.0, "cosine", 0, 4)


def test_path_runs_from_noise_to_data_with_constant_velocity() -> None:
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    at = lambda t: flow.interpolate(x, noise, torch.full((2, 3, 1), t))  # noqa: E731
    torch.testing.assert_close(at(0.0), noise)
    torch.testing.assert_close(at(1.0), x)
    torch.testing.assert_close((at(0.75) - at(0.25)) / 0.5, x - noise)


def test_times_follow_the_logit_normal_law() -> None:
    t = flow.sample_times(20_000, 3, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert t.shape == (20_000, 3)
    assert t.min() > 0 and t.max() < 1
    assert t.logit().mean().abs() < 0.02
    assert t.logit().std() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(t.T)[0, 1].abs() < 0.02, "each patch has a time of its own"


def test_clean_prefixes_are_prefixes_in_the_given_share_of_rows() -> None:
    mask = flow.clean_prefixes(8000, 4, 0.5, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert (mask[:, 1:] <= mask[:, :-1]).all(), "clean patches come first"
    assert not mask[:, -1].any(), "the last patch is always noised"
    lengths = mask.sum(1)
    assert (lengths > 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert all((lengths == n).float().mean() == pytest.approx(1 / 6, abs=0.02) for n in (1, 2, 3))
    assert not flow.clean_prefixes(10, 1, 1.0, None, torch.device("cpu")).any()


class Constant(torch.nn.Module):
    """Stands in for a scaled module: a velocity that is the same everywhere; records what it was given."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = value

    def forward(self, y: Tensor, t: Tensor, ids: Tensor, sizes: list[int]) -> Tensor:
        self.y, self.t, self.sizes = y, t, sizes
        return torch.full_like(y, self.value)


def test_loss_of_a_zero_velocity_is_the_targets_mean_square() -> None:
    """x = 2 everywhere and unit noise: E (x - eps)^2 = 5, whichever patches are clean."""
    scale = Nesting.nested(4, 4, 4).scales[1]
    x = torch.full((4000, 16, 2), 2.0)
    for share in (0.0, 0.5, 1.0):
        loss = flow.flow_matching_loss(
            Constant(),
            scale,
            x,
            torch.zeros(4000, dtype=torch.long),
            clean_share=share,
            generator=torch.Generator().manual_seed(1),
        )
        assert loss.item() == pytest.approx(5, rel=0.02)


def test_clean_patches_enter_as_data_and_carry_no_loss() -> None:
    scale = Nesting.nested(4, 4, 4).scales[1]
    x = torch.randn(8, 16, 2)
    clean = torch.tensor([[True, True, False, False]]).expand(8, 4)
    module = Constant(100.0)
    first = flow.flow_matching_loss(
        module,
        scale,
        x,
        torch.zeros(8, dtype=torch.long),
        clean_share=clean,
        generator=torch.Generator().manual_seed(2),
    )
    torch.testing.assert_close(module.y[:, :8], x[:, :8])
    assert (module.t[:, :2] == 1).all() and (module.t[:, 2:] < 1).all()
    x_other = x.clone()
    x_other[:, :8] += 5  # what the clean patches hold changes nothing in the loss of a constant velocity
    second = flow.flow_matching_loss(
        module,
        scale,
        x_other,
        torch.zeros(8, dtype=torch.long),
        clean_share=clean,
        generator=torch.Generator().manual_seed(2),
    )
    torch.testing.assert_close(first, second)


def test_coordination_compares_the_last_patch_only() -> None:
    nesting = Nesting.nested(4, 4, 4)
    former, latter = Constant(1.0), Constant(1.0)
    x, ids = torch.randn(3, 16, 2), torch.zeros(3, dtype=torch.long)
    loss = flow.coordination_loss(former, nesting.scales[0], latter, x, ids)
    assert loss == 0
    assert former.sizes == [1, 1, 1, 1] and latter.sizes == [4]
    torch.testing.assert_close(former.y, latter.y)
    assert (former.t == former.t[:, :1]).all(), "one time a row"

    class OffBeforeTheLast(Constant):
        def forward(self, *given: object) -> Tensor:
            velocity = super().forward(*given)
            velocity[:, :3] += 7
            return velocity

    assert flow.coordination_loss(OffBeforeTheLast(1.0), nesting.scales[0], latter, x, ids) == 0
    assert flow.coordination_loss(Constant(3.0), nesting.scales[0], latter, x, ids) == pytest.approx(4)


def test_coordination_reaches_both_modules_and_flow_matching_one() -> None:
    nesting = Nesting.nested(4, 4, 4)
    model = make_model(nesting)
    x, ids = torch.randn(2, 16, CHANNELS), torch.tensor([0, CLASSES])
    first, second = model.scaled_modules
    flow.flow_matching_loss(second, nesting.scales[1], x, ids).backward()
    assert all(p.grad is None for p in first.parameters())
    assert second.head.weight.grad.abs().max() > 0
    model.zero_grad()
    flow.coordination_loss(first, nesting.scales[0], second, x, ids).backward()
    assert first.head.weight.grad.abs().max() > 0 and second.head.weight.grad.abs().max() > 0


def test_guidance() -> None:
    conditional, unconditional = torch.tensor(3.0), torch.tensor(1.0)
    assert flow.guide(conditional, unconditional, 0.0) == 1
    assert flow.guide(conditional, unconditional, 1.0) == 3
    assert flow.guide(conditional, unconditional, 2.5) == 6
    assert [flow.guidance_scale(3.0, "constant", e, 3) for e in range(3)] == [3, 3, 3]
    assert [flow.guidance_scale(3.0, "linear", e, 3) for e in range(3)] == [1, 2, 3]
    assert flow.guidance_scale(3.0, "linear", 0, 1) == 3


def test_noise_belongs_to_seed_and_place() -> None:
    noise = flow.grid_noise([5, 6, 5], 64, 16)
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise[0], noise[2], rtol=0, atol=0)
    assert (noise[0] - noise[1]).abs().mean() > 0.5
    torch.testing.assert_close(flow.grid_noise([6], 64, 16)[0], noise[1], rtol=0, atol=0)
    high = flow.grid_noise([5 + 2**32], 64, 16)[0]
    assert (high - noise[0]).abs().mean() > 0.5, "all bits of a seed count"
    assert noise.mean().abs() < 0.05 and noise.std() == pytest.approx(1, abs=0.05)
