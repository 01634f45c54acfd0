"""The training loop shared by every trained part: budget, schedule, log, checkpoints, resume.

A run lives in one folder: `state.safetensors` (everything needed to go on, replaced atomically),
`log.jsonl` (losses, held-out losses), `samples/*.png`, and, at the end, what the task exports.
Randomness is a function of (seed, step), so a resumed run goes on as if it had not been stopped: bit for bit
on a CPU, up to the order of additions on a GPU; the losses that are shown, smoothed over steps, begin anew.
Other kinds of devices draw other numbers; `runs.check_run` keeps a run on the kind it began on.

Of several processes the first alone logs, checks, draws and writes, and its clock counts; all stop after the
same step, whichever of them was asked to.
"""

from __future__ import annotations

import gc
import json
import math
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from nestar.files import append_line, write_tensors
from nestar.model import WeightsError
from nestar.processes import ALONE, Group

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"
READ_EVERY = 20
"""Steps between two readings of the losses on a device that has to be waited for."""
SHARE = 0.05
"""Largest share of the time that contact sheets may take, and that held-out losses and checkpoints may."""


class Task(Protocol):
    """What the loop trains. Losses of a step are scalars on its device: reading one would wait for it."""

    def train_step(self, step: int, lr_factor: float) -> dict[str, Tensor]: ...
    def validate(self) -> dict[str, float]: ...
    def picture(self, path: Path) -> None: ...
    def state_tensors(self) -> dict[str, Tensor]: ...
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None: ...
    def export(self, folder: Path, record: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Budget:
    """How long a run lasts, in steps or in minutes of training; the learning rate follows the share used."""

    minutes: float | None = None
    steps: int | None = None
    warmup_steps: int = 100
    decay_from: float = 0.5

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("Give exactly one budget: minutes or steps.")
        given = self.steps if self.minutes is None else self.minutes
        if not 0 < given < math.inf:
            raise ValueError(f"The budget must be a finite number above 0, got {given}.")

    def share(self, step: int, seconds: float) -> float:
        """Share of the budget that has been used, 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return min(1.0, seconds / (60 * self.minutes))

    def lr_factor(self, step: int, seconds: float) -> float:
        """Linear warm-up, a plateau, then linear decay to zero from `decay_from` of the budget on."""
        left = (1 - self.share(step, seconds)) / (1 - self.decay_from)
        return min(1.0, (step + 1) / self.warmup_steps, max(left, 0.0))


@dataclass(frozen=True)
class Cadence:
    """Seconds between the loop's side jobs; slow ones come less often, see SHARE, but for checkpoints after
    each step (0)."""

    checkpoint: float = 120.0
    validate: float = 120.0
    picture: float = 300.0


class Stop:
    """Turns SIGTERM and SIGINT, inside its block, into a request to checkpoint and leave after this step."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, lambda *_: setattr(self, "asked", True))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def train(
    task: Task,
    budget: Budget,
    folder: Path,
    *,
    cadence: Cadence | None = None,
    record: dict[str, Any] | None = None,
    deadline: float | None = None,
    stop: Stop | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Train `task` until the budget is used, resuming from `folder` if a state lies there.

    Args:
        record: what is written into the export beside the measured figures (preset, data, seed).
        deadline: a `time.monotonic()` value; once it has passed, the run leaves as if asked to stop.
        stop: a caller's request to stop, entered by the caller; the loop's own otherwise.
        group: the processes that train `task` together, all of them by this call; they read `folder`.

    Returns:
        The closing record: steps, seconds, last losses and (the first process) held-out figures. A run
        that was asked to stop returns with `finished` false and exports nothing.
    """
    cadence = cadence or Cadence()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples").mkdir(exist_ok=True)
    state_file = folder / STATE_FILE
    step, trained = _resume(task, folder)
    last = {"checkpoint": time.monotonic(), "validate": 0.0, "picture": time.monotonic()}
    took = {"checkpoint": 0.0, "validate": 0.0, "picture": 0.0}
    losses: dict[str, Tensor] = {}
    bar = tqdm(
        total=100,
        initial=int(100 * budget.share(step, trained)),
        unit="%",
        desc=folder.name,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} {postfix}",
        disable=not group.leads,
    )
    with Stop() if stop is None else nullcontext(stop) as request:
        while True:
            leave, trained = group.agree(request.asked or has_passed(deadline), trained)
            if leave or budget.share(step, trained) >= 1:
                break
            began = time.monotonic()
            fresh = task.train_step(step, budget.lr_factor(step, trained))
            losses = {name: losses.get(name, value).lerp(value, 0.02) for name, value in fresh.items()}
            step += 1
            if not group.leads:
                continue
            # Inside the time that counts: who waits for the losses waits for the steps.
            if step % READ_EVERY == 0 or all(value.device.type == "cpu" for value in losses.values()):
                read = {name: f"{value:.4f}" for name, value in _read(losses).items()}
                bar.set_postfix(step=step, **read, refresh=False)
            trained += time.monotonic() - began
            bar.n = int(100 * budget.share(step, trained))
            bar.update(0)
            now = time.monotonic()
            if now - last["validate"] > max(cadence.validate, took["validate"] / SHARE):
                append_line(
                    folder / LOG_FILE,
                    {
                        "step": step,
                        "seconds": round(trained, 1),
                        **_rounded(_read(losses)),
                        **_rounded(task.validate()),
                    },
                )
                last["validate"] = time.monotonic()
                took["validate"] = last["validate"] - now
            due = max(cadence.picture, took["picture"] / SHARE)
            if now - last["picture"] > due and not has_passed(deadline):
                began = time.monotonic()
                task.picture(folder / "samples" / f"{step:07d}.png")
                last["picture"] = time.monotonic()
                took["picture"] = last["picture"] - began
            due = max(cadence.checkpoint, took["checkpoint"] / SHARE) if cadence.checkpoint > 0 else 0.0
            if now - last["checkpoint"] >= due:
                began = time.monotonic()
                _save(task, state_file, step, trained)
                last["checkpoint"] = time.monotonic()
                took["checkpoint"] = last["checkpoint"] - began
        bar.close()
        if group.leads:
            _save(task, state_file, step, trained)
    finished = budget.share(step, trained) >= 1
    closing = {
        **(record or {}),
        "steps": step,
        "train_seconds": round(trained, 1),
        "finished": finished,
        **_rounded(_read(losses)),
    }
    if finished and group.leads:
        final, logged = folder / "samples" / "final.png", _logged_closing(folder, step)
        if logged is None:
            closing |= _rounded(task.validate())
            append_line(folder / LOG_FILE, closing)
        else:  # a call after the last step has no losses to tell
            closing = logged
        if logged is None or not final.exists():
            task.picture(final)
        task.export(folder, closing)
    return closing


def has_passed(deadline: float | None) -> bool:
    """Whether this `time.monotonic()` value lies behind; None never does."""
    return deadline is not None and time.monotonic() >= deadline


def progress(folder: Path) -> tuple[int, float]:
    """Steps and seconds that the run in `folder` has been trained for, as its state says; 0 without one."""
    if not (folder / STATE_FILE).exists():
        return 0, 0.0
    with safe_open(folder / STATE_FILE, framework="pt") as stored:
        meta = stored.metadata()
    return int(meta["step"]), float(meta["seconds"])


def _resume(task: Task, folder: Path) -> tuple[int, float]:
    """Load the state in `folder`, if there is one; returns its steps and seconds.

    Raises:
        WeightsError: it is of another shape or format than the task's; a tensor that does not fit is named.
    """
    state_file = folder / STATE_FILE
    if state_file.exists():
        stored, fresh = load_file(state_file), task.state_tensors()
        for name in sorted(stored.keys() | fresh.keys()):
            fits = name in stored and name in fresh and stored[name].shape == fresh[name].shape
            if not fits and not name.startswith("optimizer"):  # which begins empty and looks for itself
                raise WeightsError(f"{state_file} is a state of another shape or format: see {name!r}.")
        task.load_state_tensors(stored)
    return progress(folder)


def _save(task: Task, state_file: Path, step: int, seconds: float) -> None:
    # Copies, as two names may share their storage, which safetensors refuses.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in task.state_tensors().items()}
    write_tensors(state_file, tensors, {"step": str(step), "seconds": repr(seconds)})


def _logged_closing(folder: Path, step: int) -> dict[str, Any] | None:
    """The closing record of a run that ended at this step, as the last line of its log; None without one."""
    log = folder / LOG_FILE
    lines = log.read_text().splitlines() if log.exists() else []
    try:
        entry = json.loads(lines[-1]) if lines else {}
    except ValueError:  # a kill in the middle of the line
        return None
    return entry if entry.get("finished") and entry["steps"] == step else None


def _read(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """All losses in one reading, which waits for the device once."""
    values = torch.stack([value.float() for value in losses.values()]).tolist() if losses else []
    return dict(zip(losses, values, strict=True))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under `prefix.`, so that several parts share one state file."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors filed under `prefix.`, with their own names back."""
    return {
        name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")
    }


def start_from(model: nn.Module, other: nn.Module) -> None:
    """Copy another model's weights.

    Raises:
        WeightsError: its shape is another; both shapes' sizes are named.
    """
    mine, theirs = model.state_dict(), other.state_dict()
    if {n: v.shape for n, v in mine.items()} != {n: v.shape for n, v in theirs.items()}:
        sizes = [sum(value.numel() for value in state.values()) for state in (theirs, mine)]
        raise WeightsError(
            f"--init has another shape: {sizes[0]:,} values where the preset has {sizes[1]:,}."
        )
    model.load_state_dict(theirs)


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A generator whose draws are a function of (seed, step) and the kind of device."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) % 2**63)


def let_go(device: torch.device, compiled: bool) -> None:
    """Free what was trained before the next is built; compiled blocks hold on to it in caches and cycles."""
    if compiled:
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
