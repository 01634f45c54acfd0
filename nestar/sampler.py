"""The streaming sampler: a generator of typed events; every way of sampling is built on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nestar.engine import Engine
from nestar.engines import Engines
from nestar.flow import Room, grid_noise, guidance_scale, guide, solver_step
from nestar.model import NestAR, NestARConfig
from nestar.nesting import Patch, Scale
from nestar.settings import SOLVER_CALLS, SampleSettings
from nestar.tokenizer import Tokenizer


@dataclass(frozen=True)
class PatchDone:
    """A patch stands.

    Attributes:
        patch: counted from 1 within its module.
        tokens: grid places (row * width + column) that the patch filled.
        known: tokens that stand by now.
        evaluations: patches made so far, one after another; function_evaluations: network passes so far.
        elapsed: seconds of the sampler's own work, without the time its consumer took.
        sequence_BNC: all tokens in sequence order, float32; those from `known` on are not made yet. The
            buffer is the sampler's own: copy what must outlive the next event.
        norms_BS: root mean square of each row's velocity at the beginning of each solver step. On the model's
            device: reading it waits for the patch.
    """

    module: int
    patch: int
    tokens: tuple[int, ...]
    known: int
    evaluations: int
    function_evaluations: int
    elapsed: float
    sequence_BNC: Tensor
    norms_BS: Tensor


@dataclass(frozen=True)
class ModuleDone:
    """A scaled module has made all its patches."""

    module: int
    known: int
    elapsed: float


Event = PatchDone | ModuleDone


@dataclass(frozen=True)
class SolverSettings:
    """How every patch's differential equation is solved and guided.

    Attributes:
        temperature: factor on the initial noise, `eps ~ N(0, temperature^2)`.
        cfg: guidance strength; 1 leaves the unconditional rows out.
    """

    steps: int = SampleSettings.steps
    solver: str = SampleSettings.solver
    temperature: float = SampleSettings.temperature
    cfg: float = SampleSettings.cfg
    schedule: str = SampleSettings.schedule

    @property
    def guided(self) -> bool:
        return self.cfg != 1

    @property
    def calls_per_step(self) -> int:
        return SOLVER_CALLS[self.solver]

    @property
    def calls(self) -> int:
        """Network passes a patch."""
        return self.steps * self.calls_per_step

    @property
    def times(self) -> list[float]:
        """Every time at which a velocity is asked for, in order, then 1 (clean context)."""
        halves = 2 if self.solver == "midpoint" else 1
        return [i / (halves * self.steps) for i in range(halves * self.steps)] + [1.0]


@dataclass(frozen=True)
class Prefix:
    """What a row shares with another sample: the tokens of modules 1 ... `modules` of the one with `seed`."""

    seed: int
    modules: int


def sample(
    model: NestAR,
    class_ids_B: Tensor,
    seeds: Sequence[int],
    settings: SolverSettings,
    *,
    keep: Sequence[Prefix] | None = None,
    given_BKC: Tensor | None = None,
    temperatures: Sequence[float] | None = None,
    cfgs: Sequence[float] | None = None,
    engines: Engines | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Event]:
    """Sample a batch, patch by patch.

    Args:
        class_ids_B: class of each row; seeds: seed of each row. A row's noise depends on its own seed and
            the grid place alone.
        keep: what each row shares with another sample of its class; its own seed is that of the rest.
        given_BKC: clean tokens that stand already, such as a drawn picture's: the first K of the sequence,
            all that modules 1 ... m know. These modules are not run and yield no events; the later ones are
            guided as in a whole sample.
        temperatures, cfgs: of each row, in place of that of the settings.
        engines: the model's, where they outlive this call.
        cancel: read before every solver step; once set, the generator ends without another event, but for a
            patch whose last step has been taken. On a GPU steps are queued without waiting, so that the last
            of them may still be running.

    Raises:
        ValueError: a sequence has not one entry a row, a prefix keeps more modules than there are, or the
            given tokens are not what some of the modules know.
    """
    engines = engines or Engines(model)
    run = _Run(model, class_ids_B, seeds, settings, keep, temperatures, cfgs, engines, cancel)
    left = model.config.nesting.scales
    if given_BKC is not None:
        left = left[run.take(given_BKC) :]
    for scale in left:
        with run.engine_of(scale):
            for patch in scale.generated:
                if not run.solve(patch):
                    return
                yield run.patch_done(patch)
                if patch.stop < model.config.nesting.n and run.cancelled:
                    return
                if patch is not scale.patches[-1]:
                    run.remember(patch)
        yield ModuleDone(scale.number, scale.tokens, run.elapsed)


@torch.inference_mode()
def sample_images(
    model: NestAR,
    tokenizer: Tokenizer,
    class_ids_B: Tensor,
    seeds: Sequence[int],
    settings: SolverSettings | None = None,
    given_BKC: Tensor | None = None,
    engines: Engines | None = None,
) -> Tensor:
    """Finished images (B, 3, H, W) in [-1, 1] on the CPU; not streamed. The last two as in `sample`."""
    nesting, settings = model.config.nesting, settings or SolverSettings()
    for event in sample(model, class_ids_B, seeds, settings, given_BKC=given_BKC, engines=engines):
        if isinstance(event, PatchDone) and event.known == nesting.n:
            parts = event.sequence_BNC.split(64)
    return torch.cat([tokenizer.preview(part, nesting, nesting.n).cpu() for part in parts])


def sequence_noise(
    config: NestARConfig,
    seeds: Sequence[int],
    temperatures: Sequence[float],
    keep: Sequence[Prefix] | None = None,
) -> Tensor:
    """What the tokens start from, in sequence order, (B, N, C) float32 on the CPU.

    A token is a function of the noise of its own place and of those made before it. So a row shares modules
    1 ... m with another sample exactly if their places have the other's noise: nothing needs to be stored or
    sent to take a sample up again, at the price of making the shared tokens once more.
    """
    nesting = config.nesting
    if len(temperatures) != len(seeds) or (keep is not None and len(keep) != len(seeds)):
        raise ValueError(f"{len(seeds)} seeds need as many temperatures and prefixes: one a row.")
    noise_BGC = grid_noise(seeds, nesting.n, config.channels)
    if keep is not None:
        shared_BGC = grid_noise([prefix.seed for prefix in keep], nesting.n, config.channels)
        for row, prefix in enumerate(keep):
            if not 0 <= prefix.modules <= nesting.modules:
                raise ValueError(
                    f"{nesting.name} has {nesting.modules} modules: {prefix.modules} cannot be kept."
                )
            tokens = nesting.scales[prefix.modules - 1].tokens if prefix.modules else 0
            places = list(nesting.flat[:tokens])
            noise_BGC[row, places] = shared_BGC[row, places]
    noise_BGC *= torch.tensor(temperatures, dtype=torch.float32)[:, None, None]
    return noise_BGC[:, list(nesting.flat)]


class _Run:
    """State of one call of `sample`. Gradients are off inside each method, never across a yield: a
    generator may be taken up again by another thread."""

    def __init__(
        self,
        model: NestAR,
        class_ids_B: Tensor,
        seeds: Sequence[int],
        settings: SolverSettings,
        keep: Sequence[Prefix] | None,
        temperatures: Sequence[float] | None,
        cfgs: Sequence[float] | None,
        engines: Engines,
        cancel: threading.Event | None,
    ):
        if len(seeds) != len(class_ids_B):
            raise ValueError(f"{len(class_ids_B)} classes and {len(seeds)} seeds: one seed a row is needed.")
        if cfgs is not None and len(cfgs) != len(seeds):
            raise ValueError(f"{len(seeds)} seeds need as many guidance strengths: one a row.")
        self.began = time.perf_counter()
        self.elapsed = 0.0
        self.settings, self.cancel = settings, cancel
        self.model, self.nesting, device = model, model.config.nesting, model.device
        self.cfgs = tuple(cfgs or [settings.cfg] * len(seeds))
        self.guided = any(cfg != 1 for cfg in self.cfgs)
        temperatures = temperatures or [settings.temperature] * len(seeds)
        noise_BNC = sequence_noise(model.config, seeds, temperatures, keep)
        self.sequence_BNC = noise_BNC.to(device)  # solved in place, patch by patch
        self.class_ids_R = class_ids_B  # on the caller's device: an engine looks at them
        if self.guided:  # conditional rows, then unconditional ones
            self.class_ids_R = torch.cat([class_ids_B, torch.full_like(class_ids_B, model.config.classes)])
        self.engines, self.times = engines, settings.times
        self.t_1T = torch.tensor([self.times], device=device)
        self.guidance = dict(zip(self.nesting.patches, self._guidance(), strict=True))
        self.evaluations = self.function_evaluations = 0
        self.elapsed = time.perf_counter() - self.began

    @torch.inference_mode()
    def take(self, given_BKC: Tensor) -> int:
        """Let tokens stand that are given; returns how many modules they are all of."""
        rows, tokens, channels = given_BKC.shape
        known = {scale.tokens: scale.number for scale in self.nesting.scales[:-1]}
        expected = len(self.sequence_BNC), self.sequence_BNC.shape[-1]
        if tokens not in known or (rows, channels) != expected:
            raise ValueError(
                f"Given tokens are of shape {tuple(given_BKC.shape)}; {self.nesting.name} takes "
                f"{expected[0]} rows of {expected[1]} channels and of "
                f"{' or '.join(map(str, known)) or 'no'} tokens."
            )
        self.sequence_BNC[:, :tokens] = given_BKC
        return known[tokens]

    @property
    def cancelled(self) -> bool:
        return self.cancel is not None and self.cancel.is_set()

    @contextmanager
    def engine_of(self, scale: Scale) -> Iterator[None]:
        """Have a scaled module's engine inside the block, with the tokens so far as its context."""
        self._borrow(scale.number)
        try:
            if scale.number > 1:
                self.remember(scale.patches[0])
            yield
        finally:
            self.engines.take_back(scale.number, self.engine)

    @torch.inference_mode()
    def _borrow(self, number: int) -> None:
        """Condition all times of a scaled module at once."""
        began = time.perf_counter()
        copies = 2 if self.guided else 1
        self.engine: Engine = self.engines.lend(number, self.class_ids_R, self.t_1T, copies)
        self.elapsed += time.perf_counter() - began

    @torch.inference_mode()
    def remember(self, patch: Patch) -> None:
        """Enter finished tokens once as clean context."""
        began = time.perf_counter()
        self.engine.remember(self.sequence_BNC[:, patch.start : patch.stop])
        self.function_evaluations += 1
        self.elapsed += time.perf_counter() - began

    @torch.inference_mode()
    def solve(self, patch: Patch) -> bool:
        """Solve dy/dt = v from noise to data for one patch, in place; the state stays in float32. Returns
        whether it came to the end, and was not cancelled before."""
        began = time.perf_counter()
        self._make_room(patch)
        for step in range(self.settings.steps):
            if self.cancelled:
                return False
            self._step(step, self.guidance[patch])
        self.evaluations += 1
        self.elapsed += time.perf_counter() - began
        return True

    def _guidance(self) -> list[float | Tensor]:
        """Of each patch: a number, or (B, 1, 1) where rows differ. All at once, as a GPU has to be waited for
        with the copy."""
        schedule, whole = self.settings.schedule, self.nesting.evaluations
        rows_EB = [
            [guidance_scale(cfg, schedule, before, whole) for cfg in self.cfgs] for before in range(whole)
        ]
        if len(set(self.cfgs)) == 1:
            return [scales[0] for scales in rows_EB]
        return list(torch.tensor(rows_EB, device=self.model.device)[:, :, None, None])

    def _make_room(self, patch: Patch) -> None:
        """What the steps of a patch write into."""
        self.state_BSC = self.sequence_BNC[:, patch.start : patch.stop]
        self.room = Room.like(self.state_BSC)
        rows, *token = self.state_BSC.shape
        self.v_RSC = self.state_BSC.new_empty(2 * rows, *token) if self.guided else None
        self.root = self.state_BSC[0].numel() ** 0.5
        self.norms_BS = self.state_BSC.new_empty(rows, self.settings.steps)

    def _step(self, step: int, cfg: float | Tensor) -> None:
        """Move the patch on by one solver step and note its velocity, without waiting for the device."""
        steps = self.settings.steps

        def velocity(y_BSC: Tensor, at: float, out_BSC: Tensor) -> None:
            self.function_evaluations += 1
            v_RSC = self.engine.velocity(y_BSC, self._place(at))
            if self.v_RSC is None:
                out_BSC.copy_(v_RSC)
            else:
                guide(*self.v_RSC.copy_(v_RSC).chunk(2), cfg, out=out_BSC)

        solver_step(velocity, self.state_BSC, step / steps, 1 / steps, self.settings.solver, self.room)
        torch.linalg.vector_norm(self.room.first, dim=(1, 2), out=self.norms_BS[:, step])

    @torch.inference_mode()
    def patch_done(self, patch: Patch) -> PatchDone:
        places = self.nesting.flat[patch.start : patch.stop]
        return PatchDone(
            patch.module,
            patch.index,
            places,
            patch.stop,
            self.evaluations,
            self.function_evaluations,
            self.elapsed,
            self.sequence_BNC,
            self.norms_BS / self.root,
        )

    def _place(self, at: float) -> int:
        """Index of a time in the grid that was conditioned beforehand."""
        return round(at * (len(self.times) - 1))
