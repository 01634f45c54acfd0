"""The streaming sampler: events, counts, noise, cancel, and what a module may see when."""

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from nestar import engine
from nestar.engine import Engine
from nestar.flow import grid_noise
from nestar.model import NestAR
from nestar.nesting import Nesting
from nestar.sampler import Event, ModuleDone, PatchDone, SolverSettings, sample, sample_images
from nestar.settings import SCHEDULES, SOLVERS
from tests.small import small_model, small_tokenizer
from tests.test_model import CHANNELS, make_model

K2, K4, SHORT = Nesting.nested(4, 4, 2), Nesting.nested(4, 4, 4), Nesting.nested(3, 3, 2)
FEW = SolverSettings(steps=3, solver="euler", cfg=2.0, temperature=1.0, schedule="constant")


def run(
    model: NestAR, settings: SolverSettings = FEW, seeds: tuple[int, ...] = (0,), **given: object
) -> list[Event]:
    """All events, each with a copy of the sampler's buffer."""
    events = []
    for event in sample(model, torch.zeros(len(seeds), dtype=torch.long), seeds, settings, **given):
        if isinstance(event, PatchDone):
            event = PatchDone(**{**vars(event), "sequence_BNC": event.sequence_BNC.clone()})
        events.append(event)
    return events


def patches(events: list[Event]) -> list[PatchDone]:
    return [event for event in events if isinstance(event, PatchDone)]


@pytest.mark.parametrize(
    "nesting",
    [K2, K4, SHORT, Nesting.autoregressive(2, 3), Nesting.cells(4, 4, 4), Nesting.one_shot(3, 3)],
    ids=lambda n: f"{n.name}-{n.n}",
)
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_events_follow_the_nesting_and_counts_follow_the_formula(nesting: Nesting, solver: str) -> None:
    events = run(make_model(nesting), SolverSettings(steps=2, solver=solver, cfg=1.5))
    done = patches(events)
    assert [(e.module, e.patch, e.known) for e in done] == [
        (p.module, p.index, p.stop) for p in nesting.patches
    ]
    assert [place for e in done for place in e.tokens] == list(nesting.flat)
    assert [e.module for e in events if isinstance(e, ModuleDone)] == [s.number for s in nesting.scales]
    assert done[-1].evaluations == nesting.evaluations
    calls = {"euler": 1, "midpoint": 2, "heun": 2}[solver]
    assert done[-1].function_evaluations == nesting.function_evaluations(2, calls)
    assert all(a.elapsed < b.elapsed for a, b in itertools.pairwise(done))


def test_a_patch_tells_the_norms_of_its_velocities() -> None:
    """One step of Euler moves the noise by the velocity itself."""
    model, seeds = make_model(K4), (0, 1)
    done = patches(run(model, replace(FEW, steps=1), seeds))
    moved_BNC = done[-1].sequence_BNC - grid_noise(seeds, K4.n, CHANNELS)[:, list(K4.flat)]
    for patch in done:
        own_BSC = moved_BNC[:, patch.known - len(patch.tokens) : patch.known]
        assert patch.norms_BS.shape == (2, 1) and (patch.norms_BS[0] != patch.norms_BS[1]).all()
        torch.testing.assert_close(patch.norms_BS[:, 0], own_BSC.square().mean((1, 2)).sqrt())
    for solver in SOLVERS:  # every one begins at the same place
        first = patches(run(model, replace(FEW, solver=solver), seeds))[0]
        assert first.norms_BS.shape == (2, FEW.steps)
        torch.testing.assert_close(first.norms_BS[:, 0], done[0].norms_BS[:, 0])


def test_finished_tokens_stay_as_they_are() -> None:
    done = patches(run(make_model(K2)))
    for earlier, later in itertools.pairwise(done):
        torch.testing.assert_close(
            earlier.sequence_BNC[:, : earlier.known], later.sequence_BNC[:, : earlier.known], rtol=0, atol=0
        )


def reference(model: NestAR, settings: SolverSettings, noise_NC: Tensor) -> Tensor:
    """The same by definition: no cache, no batch of two, every context token at t = 1, solvers and guidance
    written out."""
    nesting, evaluation = model.config.nesting, 0
    x = noise_NC[None, list(nesting.flat)].clone()
    for module, scale in zip(model.scaled_modules, nesting.scales, strict=True):
        for patch in scale.generated:
            sizes = [p.size for p in scale.patches[: patch.index]]
            rising = settings.schedule == "linear" and nesting.evaluations > 1
            share = evaluation / (nesting.evaluations - 1) if rising else 1
            cfg = 1 + (settings.cfg - 1) * share
            evaluation += 1

            def velocity(y: Tensor, step: float, module=module, patch=patch, sizes=sizes, cfg=cfg) -> Tensor:
                t = torch.ones(1, len(sizes))
                t[:, -1] = step / settings.steps
                tokens = torch.cat([x[:, : patch.start], y], 1)
                v_c, v_u = (
                    module(tokens, t, torch.tensor([ids]), sizes)[:, patch.start :]
                    for ids in (0, model.config.classes)
                )
                return v_u + cfg * (v_c - v_u)

            y = x[:, patch.start : patch.stop].clone()
            for step in range(settings.steps):
                v = velocity(y, step)
                if settings.solver == "heun":
                    v = (v + velocity(y + v / settings.steps, step + 1)) / 2
                if settings.solver == "midpoint":
                    v = velocity(y + v / (2 * settings.steps), step + 0.5)
                y += v / settings.steps
            x[:, patch.start : patch.stop] = y
    return x


@pytest.mark.parametrize("nesting", [K2, K4, SHORT, Nesting.one_shot(4, 4)], ids=lambda n: f"{n.name}-{n.n}")
@pytest.mark.parametrize(
    ("bf16", "products_from", "atol"),
    [(False, 1, 2e-5), (True, math.inf, 0.05), (True, 1, 0.05), (True, 4, 0.05)],
    ids=["float32", "bf16", "bf16-attention-as-products", "bf16-and-both-kinds-of-attention"],
)
@pytest.mark.parametrize(
    ("solver", "schedule"), [("euler", "constant"), ("heun", "linear"), ("midpoint", "linear")]
)
@torch.inference_mode()
def test_sampling_equals_its_definition(
    nesting: Nesting,
    bf16: bool,
    products_from: float,
    atol: float,
    solver: str,
    schedule: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float64; a token's channels are of size 1 or so."""
    monkeypatch.setattr(engine, "has_bf16", lambda device: bf16)
    monkeypatch.setattr(engine, "PRODUCTS_FROM", products_from)
    model = make_model(nesting)
    noise = grid_noise([7], nesting.n, CHANNELS)[0]
    settings = replace(FEW, solver=solver, schedule=schedule)
    got = patches(run(model, settings, seeds=(7,)))[-1].sequence_BNC
    expected = reference(model.double(), settings, noise.double()).float()
    torch.testing.assert_close(got, expected, atol=atol, rtol=1e-4)
    assert bf16 == ((got - expected).abs().max() > 1e-4), "it is not computed in what it should be"


@torch.inference_mode()
def test_attention_too_large_for_products_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_bf16", lambda device: True)
    model, made = make_model(K4), {}
    for products_from, most in ((math.inf, math.inf), (1, 0)):
        monkeypatch.setattr(engine, "PRODUCTS_FROM", products_from)
        monkeypatch.setattr(engine, "MOST_SCORES", most)
        made[most] = patches(run(model, seeds=(3,)))[-1].sequence_BNC
    assert torch.equal(*made.values())


def test_images_of_more_rows_than_are_decoded_at_once_keep_their_order() -> None:
    nesting, tokenizer = Nesting.one_shot(4, 4), small_tokenizer()
    model, ids_B, seeds = small_model(nesting), torch.arange(65) % 3, range(65)
    once = SolverSettings(steps=1)
    whole = sample_images(model, tokenizer, ids_B, seeds, once)
    last = sample_images(model, tokenizer, ids_B[64:], seeds[64:], once)
    apart = (whole - last).abs().mean((1, 2, 3))
    assert len(whole) == 65 and apart[64] < 0.01 and apart[:64].min() > 0.05


def test_same_seed_gives_the_same_tokens_bit_for_bit() -> None:
    model = make_model(K4)
    first, second, other = (patches(run(model, seeds=(s,)))[-1].sequence_BNC for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert (first - other).abs().mean() > 0.1


def test_rows_of_a_batch_are_their_own_seeds() -> None:
    model = make_model(K4)
    batch = patches(run(model, seeds=(3, 9)))[-1].sequence_BNC
    alone = torch.cat([patches(run(model, seeds=(s,)))[-1].sequence_BNC for s in (3, 9)])
    torch.testing.assert_close(batch, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_of_a_batch_have_their_own_guidance(schedule: str) -> None:
    model, ids = make_model(K4), torch.tensor([0, 1, 1])
    settings = SolverSettings(steps=2, cfg=3.0, schedule=schedule)
    events = sample(model, ids, (3, 9, 9), settings, cfgs=(1.0, 2.0, 4.0))
    batch = patches(list(events))[-1].sequence_BNC
    for row, cfg in enumerate((1.0, 2.0, 4.0)):
        own = replace(settings, cfg=cfg)
        alone = patches(list(sample(model, ids[row : row + 1], ((3, 9, 9)[row],), own)))[-1].sequence_BNC
        torch.testing.assert_close(batch[row : row + 1], alone, atol=1e-4, rtol=1e-3)
    assert (batch[1] - batch[2]).abs().mean() > 0.01
    with pytest.raises(ValueError, match="as many guidance strengths"):
        next(sample(model, ids, (3, 9, 9), settings, cfgs=(1.0,)))


def test_at_temperature_zero_all_seeds_agree() -> None:
    model = make_model(K4)
    cold = SolverSettings(steps=3, temperature=0.0)
    first, second = (patches(run(model, cold, (seed,)))[-1].sequence_BNC for seed in (1, 2))
    assert torch.equal(first, second)


def zero_velocity(nesting: Nesting) -> NestAR:
    model = make_model(nesting)
    for module in model.scaled_modules:
        torch.nn.init.zeros_(module.head.weight)
        torch.nn.init.zeros_(module.head.bias)
    return model


def test_noise_belongs_to_the_place_whatever_the_nesting_or_steps() -> None:
    """With a velocity of zero the samples are the noise itself."""
    grids = []
    for nesting in (
        K2,
        K4,
        Nesting.nested(4, 4, 4, "raster"),
        Nesting.one_shot(4, 4),
        Nesting.cells(4, 4, 4),
    ):
        for steps in (1, 4):
            sequence = patches(run(zero_velocity(nesting), SolverSettings(steps=steps), (5,)))[
                -1
            ].sequence_BNC
            grid = torch.empty_like(sequence)
            grid[:, list(nesting.flat)] = sequence
            grids.append(grid)
    assert all(torch.equal(grids[0], grid) for grid in grids)
    hot = patches(run(zero_velocity(K4), SolverSettings(steps=1, temperature=1.5), (5,)))[-1].sequence_BNC
    cold = patches(run(zero_velocity(K4), SolverSettings(steps=1, temperature=0.5), (5,)))[-1].sequence_BNC
    torch.testing.assert_close(hot, 3 * cold)


def test_without_guidance_half_the_rows_are_evaluated(watch) -> None:
    def rows(settings: SolverSettings) -> set[int]:
        model, seen = make_model(K4), set()
        watch(model, lambda engine, y: seen.add(engine.rows))
        run(model, settings, seeds=(0, 1))
        return seen

    assert rows(SolverSettings(steps=1, cfg=1.0)) == {2}
    assert rows(SolverSettings(steps=1, cfg=3.0)) == {4}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[NestAR, Callable[[Engine, Tensor], object]], None]:
    """Has every velocity call of a model reported: the engine and the patch it was given."""

    def begin(model: NestAR, seen: Callable[[Engine, Tensor], object]) -> None:
        inner = Engine.velocity

        def velocity(engine: Engine, y: Tensor, time: int) -> Tensor:
            if engine.module in list(model.scaled_modules):
                seen(engine, y)
            return inner(engine, y, time)

        monkeypatch.setattr(Engine, "velocity", velocity)

    return begin


def number_of(model: NestAR, engine: Engine) -> int:
    return list(model.scaled_modules).index(engine.module) + 1


def test_the_first_frame_has_left_before_module_2_begins(watch) -> None:
    model, called = make_model(K4), []
    watch(model, lambda engine, y: called.append(number_of(model, engine)))
    for event in sample(model, torch.zeros(1, dtype=torch.long), (0,), FEW):
        if isinstance(event, PatchDone) and event.module == 1:
            assert set(called) == {1}, "module 2 has been at work before module 1's patches left"
    assert set(called) == {1, 2}


@pytest.mark.parametrize("after", [1, 4, 14])
def test_cancel_stops_within_one_solver_step(after: int, watch) -> None:
    model, cancel, calls = make_model(K4), threading.Event(), []

    def count(engine: Engine, y: Tensor) -> None:
        calls.append(number_of(model, engine))
        if len(calls) == after:
            cancel.set()

    watch(model, count)
    events = run(model, cancel=cancel)
    assert len(calls) == after, "a solver step was begun after the cancel"
    assert len(patches(events)) == (after - 1) // FEW.steps


def test_cancel_between_two_events_ends_the_run_there() -> None:
    model, cancel, seen = make_model(K4), threading.Event(), []
    for event in sample(model, torch.zeros(1, dtype=torch.long), (0,), FEW, cancel=cancel):
        seen.append(event)
        if isinstance(event, PatchDone) and event.known == K4.scales[0].tokens:
            cancel.set()
    assert isinstance(seen[-1], PatchDone) and seen[-1].module == 1, "module 1 is not announced as done"


def test_gradients_are_off_inside_and_untouched_outside(watch) -> None:
    model, inside = make_model(K4), []
    watch(model, lambda engine, y: inside.append(torch.is_grad_enabled()))
    for _ in sample(model, torch.zeros(1, dtype=torch.long), (0,), FEW):
        assert torch.is_grad_enabled(), "inference mode must not be held across a yield"
    assert inside and not any(inside)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_given_tokens_stand_and_the_rest_follows_as_in_a_whole_sample(schedule: str) -> None:
    nesting, settings = Nesting.nested(4, 4, 2), replace(FEW, schedule=schedule)
    model = make_model(nesting)
    whole = run(model, settings, (3, 5))
    for scale in nesting.scales[:-1]:
        given_BKC = patches(whole)[-1].sequence_BNC[:, : scale.tokens]
        events = run(model, settings, (3, 5), given_BKC=given_BKC)
        assert [event.module for event in events if isinstance(event, ModuleDone)] == [
            each.number for each in nesting.scales[scale.number :]
        ]
        assert torch.equal(patches(events)[-1].sequence_BNC, patches(whole)[-1].sequence_BNC)
        made = sum(len(each.generated) for each in nesting.scales[scale.number :])
        assert patches(events)[-1].evaluations == made, "what is given was not evaluated"
    others = run(model, settings, (3, 5), given_BKC=given_BKC + 1)
    assert torch.equal(patches(others)[-1].sequence_BNC[:, : scale.tokens], given_BKC + 1)
    assert not torch.equal(patches(others)[-1].sequence_BNC, patches(whole)[-1].sequence_BNC)


@pytest.mark.parametrize("shape", [(1, 3, CHANNELS), (1, 16, CHANNELS), (2, 4, CHANNELS), (1, 4, 1)])
def test_given_tokens_are_all_that_some_modules_know(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"k4-lattice takes 1 rows of .* channels and of 4 tokens"):
        run(make_model(K4), given_BKC=torch.zeros(shape))
    with pytest.raises(ValueError, match="of no tokens"):
        run(make_model(Nesting.one_shot(4, 4)), given_BKC=torch.zeros(1, 4, CHANNELS))


def test_seeds_and_classes_must_match() -> None:
    with pytest.raises(ValueError, match="2 classes and 1 seeds"):
        next(sample(make_model(K4), torch.zeros(2, dtype=torch.long), (0,), FEW))


def allocations(model: NestAR, settings: SolverSettings, rows: int) -> Counter[str]:
    """How often each operation that a run calls allocates memory."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        run(model, settings, tuple(range(rows)))
    counted: Counter[str] = Counter()
    for event in profile.events():
        if event.self_cpu_memory_usage > 0 and event.name.startswith("aten::"):
            while event.cpu_parent is not None:
                event = event.cpu_parent
            counted[event.name] += 1
    return counted


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_a_solver_step_allocates_nothing_but_what_attention_answers(solver: str, cfg: float) -> None:
    """More steps, no more of other allocations: all else is written into what a patch made at its start."""
    model = make_model(K4)
    few, more = (
        allocations(model, SolverSettings(steps=steps, solver=solver, cfg=cfg), 3) for steps in (3, 6)
    )
    assert set(more - few) == {"aten::scaled_dot_product_attention"}
