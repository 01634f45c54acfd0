"""The family: nestings of one width and size that see equal images, trained one after another.

A member lives in `folder/<member>/`: a run of `training.loop`, and `run.json`, what was asked for. A queue
stopped at any moment goes on where it stood: members whose export loads are skipped, and the interrupted one
is resumed, on the kind of device it began on. On a CPU the weights are then, bit for bit, those of a queue
that was never stopped. A GPU adds in no fixed order: there they are those of one more run of the same recipe.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nestar.files import make_way
from nestar.model import NestAR, WeightsError
from nestar.settings import SettingsError
from nestar.tokenizer import Tokenizer
from nestar.training.loop import STATE_FILE, Budget, Cadence, Stop, has_passed, let_go, progress, train
from nestar.training.nesting import LatentPools, NestingTask, NestingTrainConfig
from nestar.training.runs import RUN_FILE, asked_for, check_run, flat, write_run

OWN_FIELDS = ("nesting", "coordination", "variant")
"""What members of a family may differ in; all else is shared."""


@dataclass(frozen=True)
class _Run:
    """One member's run: what is asked for, and where it lies."""

    member: str
    config: NestingTrainConfig
    folder: Path
    images: int
    made_by: str  # fingerprint of what makes the latents
    device: torch.device

    @property
    def budget(self) -> Budget:
        return Budget(steps=self.images // self.config.batch)

    @property
    def weights(self) -> Path:
        return self.folder / self.config.weights_name

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What `run.json` holds."""
        more = {"images": self.images, "tokenizer": self.made_by, "budget": asdict(self.budget)}
        return asked_for(self.config, self.device, **more)

    def record(self) -> dict[str, Any] | None:
        """How the member was trained, if it is finished: its export says so, and all of it loads."""
        try:
            training = NestAR.from_pretrained(self.weights).record
        except WeightsError:  # nothing there, or stopped while it was written
            return None
        whole = training.get("finished") and training.get("steps") == self.budget.steps
        return training if whole else None


def train_family(
    members: Mapping[str, NestingTrainConfig],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    images: int,
    device: torch.device,
    cache: Path,
    deadline: float | None = None,
    compile_modules: bool = False,
    cadence: Cadence | None = None,
) -> list[dict[str, Any]]:
    """Train members one after another, each for `images` // batch steps, until `deadline`.

    SIGTERM and SIGINT stop the queue after the step, as the deadline does; before the first member, while
    pools are drawn and encoded, they end the process as usual.

    Args:
        members: recipes by name, in the order of training; they may differ in OWN_FIELDS only.
        tokenizer: on `device`.
        folder: holds a folder for each member; every run in it belongs to the same family.
        deadline: a `time.monotonic()` value; None: until all are finished.

    Returns:
        For each member: `member`, `nesting` (name of its weights' folder), `steps`, `images_seen`,
        `train_seconds`, `images_per_second` (None before the first step), `finished`, `parameters`,
        `held_out` losses (empty until finished), and `weights`, the export's path (None until finished).

    Raises:
        SettingsError: members that are no family, fewer images than a batch, or a run in `folder` that was
            made with another recipe or image count, or begun on another kind of device and not finished.
            Nothing has been trained or written then.
    """
    _check_family(members, images)
    made_by = tokenizer.latents_fingerprint
    runs = [_Run(name, config, folder / name, images, made_by, device) for name, config in members.items()]
    records = {run.member: run.record() for run in runs}
    _check_runs(runs, records, folder)
    waiting = [run for run in runs if records[run.member] is None]
    if waiting and not has_passed(deadline):
        make_way(waiting[0].folder / RUN_FILE)
        pools = LatentPools.load(waiting[0].config, tokenizer, cache)
        with Stop() as stop:
            for run in waiting:
                if stop.asked or has_passed(deadline):
                    break
                write_run(run.folder, run.asked)
                task = NestingTask(
                    run.config, tokenizer, device, cache, compile_modules=compile_modules, pools=pools
                )
                record = {"preset": run.member, "device": device.type}
                train(
                    task, run.budget, run.folder, cadence=cadence, record=record, deadline=deadline, stop=stop
                )
                records[run.member] = run.record()
                del task
                let_go(device, compile_modules)
    return [_report(run, records[run.member], tokenizer.channels) for run in runs]


def assemble_command(report: Iterable[Mapping[str, Any]], folder: Path, tokenizer: Path) -> str | None:
    """The command that puts a report's finished members into a checkpoint at `folder`; None without any."""
    weights = [row["weights"] for row in report if row["finished"]]
    if not weights:
        return None
    nestings = [word for path in weights for word in ("--nesting", path)]
    words = ["python", "-m", "nestar", "assemble", str(folder), "--tokenizer", str(tokenizer), *nestings]
    return shlex.join(words)


def _check_family(members: Mapping[str, NestingTrainConfig], images: int) -> None:
    """Equal images only compare members that share batch, pool, optimiser, size and all else."""
    shared: dict[str, Any] = {}
    for name, config in members.items():
        if images < config.batch:
            raise SettingsError(f"images must be at least a batch of {config.batch}, got {images}.")
        own = flat({key: value for key, value in asdict(config).items() if key not in OWN_FIELDS})
        shared = shared or own
        for key in own:
            if own[key] != shared[key]:
                first = next(iter(members))
                raise SettingsError(
                    f"{name} has {key} {own[key]} and {first} {shared[key]}: "
                    f"members of a family differ in {', '.join(OWN_FIELDS)} only."
                )


def _check_runs(runs: Sequence[_Run], records: Mapping[str, Mapping[str, Any] | None], folder: Path) -> None:
    """Refuse `folder` if a run in it, of one of these members or of another, is not what is asked for."""
    follows = "budget.steps"  # from images and batch
    for run in runs:
        if any((run.folder / file).exists() for file in (RUN_FILE, STATE_FILE, run.config.weights_name)):
            finished = records[run.member] is not None
            check_run(run.folder, run.asked, NestingTrainConfig, (follows, *["device"] * finished))
    for file in sorted(folder.glob(f"*/{RUN_FILE}")) if runs else ():
        if file.parent not in [run.folder for run in runs]:
            check_run(file.parent, runs[0].asked, NestingTrainConfig, (follows, "device", *OWN_FIELDS))


def _report(run: _Run, record: Mapping[str, Any] | None, channels: int) -> dict[str, Any]:
    """A member's row: from its export if it is finished, else from its state."""
    steps, seconds = (record["steps"], record["train_seconds"]) if record else progress(run.folder)
    seen = steps * run.config.batch
    return {
        "member": run.member,
        "nesting": run.config.weights_name,
        "steps": steps,
        "images_seen": seen,
        "train_seconds": round(seconds, 1),
        "images_per_second": round(seen / seconds, 1) if seconds else None,
        "finished": record is not None,
        "parameters": run.config.model_config(channels).parameters,
        "held_out": {key: value for key, value in (record or {}).items() if key.startswith("held_")},
        "weights": str(run.weights) if record else None,
    }
