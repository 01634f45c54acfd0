"""Several processes at one piece of work, as launchers (torchrun, accelerate) start them: which of them this
is, and what they tell each other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed

from nestar.settings import SettingsError

Item = TypeVar("Item")

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others without a sign of life; longer than a contact sheet, a checkpoint
or a shard of latents takes."""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Worker:
    """Which of how many processes this is, and its number on its own machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Worker:
        """As launchers say it: RANK, WORLD_SIZE and LOCAL_RANK; the only process without them."""
        environment = os.environ if environment is None else environment
        rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
        return cls(rank, world, int(environment.get("LOCAL_RANK", 0)))

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process' own of items that all of them see in the same order."""
        return items[self.rank :: self.world]

    def device(self, asked: str) -> str:
        """`asked`, or, of several processes where there are GPUs, the own one for `auto` and `cuda`.

        Raises:
            SettingsError: there are more processes on this machine than GPUs.
        """
        if self.world == 1 or asked not in ("auto", "cuda") or not torch.cuda.is_available():
            return asked
        if self.local >= torch.cuda.device_count():
            raise SettingsError(
                f"Process {self.local + 1} of this machine has no GPU: there are {torch.cuda.device_count()}."
            )
        return f"cuda:{self.local}"


@dataclass(frozen=True)
class Group:
    """The processes that train together; alone by default. Every one must make the same calls in turn."""

    worker: Worker = Worker()

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes what all would write alike."""
        return self.worker.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes."""
        if self.worker.world > 1:
            pending = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for one in pending:
                one.wait()

    def agree(self, leave: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process wants to leave, and the first one's clock: what must be the same for all."""
        if self.worker.world == 1:
            return leave, seconds
        said = torch.tensor([float(leave), seconds if self.leads else 0.0], dtype=torch.float64)
        self.add([said])
        return bool(said[0] > 0), said[1].item()


ALONE = Group()


@contextmanager
def joined(worker: Worker, device: torch.device) -> Iterator[Group]:
    """The group of all processes that the launcher started, for training on this kind of device.

    A process that fails or dies ends the others with an error: at once where its connections break, after
    PATIENCE in any case.

    Raises:
        SettingsError: there are several, and nothing says where they meet.
    """
    if worker.world == 1:
        yield ALONE
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(
            f"There are {worker.world} processes, but {missing[0]} is not set: start them by torchrun or "
            "accelerate launch."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        rank=worker.rank,
        world_size=worker.world,
        timeout=PATIENCE,
    )
    try:
        yield Group(worker)
    finally:
        distributed.destroy_process_group()


def wait_for(files: Sequence[Path], unless: Path | None = None) -> None:
    """Until files that other processes write are there, or `unless` is.

    Raises:
        RuntimeError: none of them has come for PATIENCE.
    """
    since, before = time.monotonic(), len(files)
    while (missing := [file for file in files if not file.exists()]) and not (unless and unless.exists()):
        if len(missing) < before:
            since, before = time.monotonic(), len(missing)
        if time.monotonic() - since > PATIENCE.total_seconds():
            raise RuntimeError(f"Other processes have not written {missing[0]} for {PATIENCE}.")
        time.sleep(POLL_SECONDS)
