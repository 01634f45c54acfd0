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
    y, room = y.clone(), flow.Room.like(y)
    for i in range(steps):
        flow.solver_step(lambda y, t, out: out.copy_(velocity(y, t)), y, i / steps, 1 / steps, solver, room)
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
        flow.solver_step(
            lambda y, t, out: out.copy_(y), torch.ones(1), 0.0, 1.0, "rk4", flow.Room.like(torch.ones(1))
        )
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


class Constant(torch.nn.Module):
    """Stands in for a scaled module: a velocity that is the same everywhere; records what it was given."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = value

    def forward(self, y: Tensor, t: Tensor, ids: Tensor, sizes: list[int], context=None) -> Tensor:
        self.y, self.t, self.sizes, self.context = y, t, list(sizes), context
        return torch.full_like(y, self.value)


def fm_loss(module: torch.nn.Module, number: int, x: Tensor, clean_share: float) -> Tensor:
    return flow.flow_matching_loss(
        module,
        Nesting.nested(4, 4, 4).scales[number - 1],
        x,
        torch.zeros(len(x), dtype=torch.long),
        clean_share=clean_share,
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize("number", [1, 2])
def test_loss_of_a_zero_velocity_is_the_targets_mean_square(number: int) -> None:
    """x = 2 everywhere and unit noise: E (x - eps)^2 = 5, whatever the context."""
    x = torch.full((4000, 16, 2), 2.0)
    for share in (0.0, 0.5, 1.0):
        assert fm_loss(Constant(), number, x, share).item() == pytest.approx(5, rel=0.02)


def test_a_module_trains_on_the_patches_it_generates_with_those_before_as_context() -> None:
    x, module = torch.randn(8, 16, 2), Constant()
    fm_loss(module, 1, x, 1.0)
    assert module.sizes == [1, 1, 1, 1]
    assert module.y.shape == (8, 4, 2) and module.t.shape == (8, 4)
    torch.testing.assert_close(module.context.x_BNC, x[:, :3])
    fm_loss(module, 2, x, 1.0)
    assert module.sizes == [4, 4, 4, 4]
    assert module.y.shape == (8, 12, 2) and module.t.shape == (8, 3)
    torch.testing.assert_close(module.context.x_BNC, x[:, :12])
    assert (module.context.t_BP == 1).all() and (module.t < 1).all()


def test_context_is_clean_in_the_given_share_of_rows_and_noised_patch_by_patch_in_the_others() -> None:
    x, module = torch.randn(4000, 16, 2), Constant()
    fm_loss(module, 2, x, 0.7)
    context = module.context
    clean = (context.t_BP == 1).all(1)
    assert clean.float().mean() == pytest.approx(0.7, abs=0.03)
    torch.testing.assert_close(context.x_BNC[clean], x[clean, :12])
    times = context.t_BP[~clean]
    assert (times < 1).all() and torch.corrcoef(times.T)[0, 1].abs() < 0.1
    error = (context.x_BNC[~clean] - x[~clean, :12]).square().mean((0, 2))
    assert (error > 0.1).all(), "every patch of the context is noised"


def test_one_shot_has_no_context() -> None:
    nesting, module = Nesting.one_shot(4, 4), Constant()
    flow.flow_matching_loss(module, nesting.scales[0], torch.randn(2, 16, 2), torch.zeros(2))
    assert module.context is None and module.y.shape == (2, 16, 2)


def test_coordination_compares_the_last_patch_only() -> None:
    nesting = Nesting.nested(4, 4, 4)
    former, latter = Constant(1.0), Constant(1.0)
    x, ids = torch.randn(3, 16, 2), torch.zeros(3, dtype=torch.long)

    def coordination(former: Constant) -> Tensor:
        return flow.shared_patch_losses(former, nesting.scales[0], latter, x, ids)[1]

    assert coordination(former) == 0
    assert former.sizes == [1, 1, 1, 1] and latter.sizes == [4]
    torch.testing.assert_close(former.y, latter.y)
    assert (former.t == former.t[:, :1]).all(), "one time a row"

    class OffBeforeTheLast(Constant):
        def forward(self, *given: object) -> Tensor:
            velocity = super().forward(*given)
            velocity[:, :3] += 7
            return velocity

    assert coordination(OffBeforeTheLast(1.0)) == 0
    assert coordination(Constant(3.0)) == pytest.approx(4)


def test_a_later_module_learns_its_own_first_patch_without_coordination_too() -> None:
    """Unit noise and x = 2: a zero velocity is off by E (x - eps)^2 = 5."""
    nesting, latter = Nesting.nested(4, 4, 4), Constant()
    x, ids = torch.full((4000, 16, 2), 2.0), torch.zeros(4000, dtype=torch.long)
    loss, coordination = flow.shared_patch_losses(None, nesting.scales[0], latter, x, ids)
    assert loss.item() == pytest.approx(5, rel=0.02)
    assert coordination is None and latter.y.shape == (4000, 4, 2)


def test_coordination_reaches_both_modules_and_flow_matching_one() -> None:
    nesting = Nesting.nested(4, 4, 4)
    model = make_model(nesting)
    x, ids = torch.randn(2, 16, CHANNELS), torch.tensor([0, CLASSES])
    first, second = model.scaled_modules
    flow.flow_matching_loss(second, nesting.scales[1], x, ids).backward()
    assert all(p.grad is None for p in first.parameters())
    assert second.head.weight.grad.abs().max() > 0
    model.zero_grad()
    flow.shared_patch_losses(first, nesting.scales[0], second, x, ids)[1].backward()
    assert first.head.weight.grad.abs().max() > 0 and second.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("tokens", ["all", "all-detached"])
def test_coordination_may_compare_every_shared_token(tokens: str) -> None:
    """A former module that is off by 7 on three of its four tokens."""

    class OffBeforeTheLast(Constant):
        def forward(self, *given: object) -> Tensor:
            velocity = super().forward(*given)
            velocity[:, :3] += 7
            return velocity

    nesting = Nesting.nested(4, 4, 4)
    x, ids = torch.randn(3, 16, 2), torch.zeros(3, dtype=torch.long)
    scale, former, latter = nesting.scales[0], OffBeforeTheLast(1.0), Constant(1.0)
    compared = flow.shared_patch_losses(former, scale, latter, x, ids, coordination_tokens=tokens)[1]
    assert compared.item() == pytest.approx(49 * 3 / 4)


@pytest.mark.parametrize(
    ("tokens", "latter_learns"), [("last", True), ("all", True), ("all-detached", False)]
)
def test_detached_coordination_teaches_the_former_module_alone(tokens: str, latter_learns: bool) -> None:
    nesting = Nesting.nested(4, 4, 4)
    model = make_model(nesting)
    x, ids = torch.randn(2, 16, CHANNELS), torch.tensor([0, CLASSES])
    former, latter = model.scaled_modules
    first, compared = flow.shared_patch_losses(
        former, nesting.scales[0], latter, x, ids, coordination_tokens=tokens
    )
    compared.backward(retain_graph=True)
    assert former.head.weight.grad.abs().max() > 0
    assert any(p.grad is not None for p in latter.parameters()) == latter_learns
    model.zero_grad()
    first.backward()  # the latter's own first patch is trained whatever is compared
    assert latter.head.weight.grad.abs().max() > 0


def test_unknown_coordination_tokens_are_refused_by_name() -> None:
    nesting, x = Nesting.nested(4, 4, 4), torch.randn(2, 16, 2)
    with pytest.raises(ValueError, match=r"'first'.*last, all, all-detached"):
        flow.shared_patch_losses(
            None, nesting.scales[0], Constant(), x, torch.zeros(2), coordination_tokens="first"
        )


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
