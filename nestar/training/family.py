"""The family: nestings of one width and size that see equal images, trained one after another.

A member lives in `folder/<member>/`: a run of `training.loop`, and `run.json`, what was asked for. A queue
stopped at any moment goes on where it stood: members whose export loads are skipped, the interrupted one is
resumed, and the weights are those of a queue that was never stopped.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nestar.model import NestAR, NestARConfig, WeightsError, read_config, read_json
from nestar.settings import SettingsError
from nestar.tokenizer import Tokenizer
from nestar.training.loop import STATE_FILE, Budget, Cadence, Stop, has_passed, progress, train
from nestar.training.nesting import LatentPools, NestingTask, NestingTrainConfig, fingerprint

RUN_FILE = "run.json"
OWN_FIELDS = ("nesting", "coordination", "variant")
"""What members of a family may differ in; all else is shared."""


@dataclass(frozen=True)
class _Run:
    """One member's run: what is asked for, and where it lies."""

    member: str
    config: NestingTrainConfig
    folder: Path
    images: int
    made_by: str  # the tokenizer's fingerprint

    @property
    def budget(self) -> Budget:
        return Budget(steps=self.images // self.config.batch)

    @property
    def weights(self) -> Path:
        return self.folder / self.config.weights_name

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What `run.json` holds."""
        asked = {
            "images": self.images,
            "tokenizer": self.made_by,
            "budget": asdict(self.budget),
            "config": asdict(self.config),
        }
        return json.loads(json.dumps(asked))  # as it is read back: lists for tuples

    def record(self) -> dict[str, Any] | None:
        """How the member was trained, if it is finished: its export says so, and all of it loads."""
        try:
            NestAR.from_pretrained(self.weights)
            training = read_config(self.weights / "config.json").get("training", {})
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
            made with another recipe or image count. Nothing has been trained or written then.
    """
    _check_family(members, images)
    made_by = fingerprint(tokenizer)
    runs = [_Run(name, config, folder / name, images, made_by) for name, config in members.items()]
    _check_runs(runs, folder)
    records = {run.member: run.record() for run in runs}
    waiting = [run for run in runs if records[run.member] is None]
    if waiting and not has_passed(deadline):
        pools = LatentPools.load(waiting[0].config, tokenizer, cache)
        with Stop() as stop:
            for run in waiting:
                if stop.asked or has_passed(deadline):
                    break
                _write(run)
                task = NestingTask(
                    run.config, tokenizer, device, cache, compile_modules=compile_modules, pools=pools
                )
                record = {"preset": run.member, "device": device.type}
                train(
                    task, run.budget, run.folder, cadence=cadence, record=record, deadline=deadline, stop=stop
                )
                records[run.member] = run.record()
                del task
                _let_go(device, compile_modules)
    return [_report(run, records[run.member], tokenizer.channels) for run in runs]


def assemble_command(report: Iterable[Mapping[str, Any]], folder: Path, tokenizer: Path) -> str | None:
    """The command that puts a report's finished members into a checkpoint at `folder`; None without any."""
    weights = [row["weights"] for row in report if row["finished"]]
    if not weights:
        return None
    nestings = [word for path in weights for word in ("--nesting", path)]
    words = ["python", "-m", "nestar", "assemble", str(folder), "--tokenizer", str(tokenizer), *nestings]
    return shlex.join(words)


def parameters_of(config: NestARConfig) -> int:
    """Number of parameters of a model of this shape; none is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in NestAR(config).parameters())


def _check_family(members: Mapping[str, NestingTrainConfig], images: int) -> None:
    """Equal images only compare members that share batch, pool, optimiser, size and all else."""
    shared: dict[str, Any] = {}
    for name, config in members.items():
        if images < config.batch:
            raise SettingsError(f"images must be at least a batch of {config.batch}, got {images}.")
        own = _flat({key: value for key, value in asdict(config).items() if key not in OWN_FIELDS})
        shared = shared or own
        for key in own:
            if own[key] != shared[key]:
                first = next(iter(members))
                raise SettingsError(
                    f"{name} has {key} {own[key]} and {first} {shared[key]}: "
                    f"members of a family differ in {', '.join(OWN_FIELDS)} only."
                )


def _check_runs(runs: Sequence[_Run], folder: Path) -> None:
    """Refuse `folder` if a run in it, of one of these members or of another, is not what is asked for."""
    for run in runs:
        if (run.folder / RUN_FILE).exists():
            _refuse_other(run.folder, run.asked, own=True)
        elif (run.folder / STATE_FILE).exists() or run.weights.exists():
            raise SettingsError(f"{run.folder} holds a run of another command: it has no {RUN_FILE}.")
    for file in sorted(folder.glob(f"*/{RUN_FILE}")) if runs else ():
        if file.parent not in [run.folder for run in runs]:
            _refuse_other(file.parent, runs[0].asked, own=False)


def _refuse_other(folder: Path, asked: Mapping[str, Any], *, own: bool) -> None:
    """Compare what `folder` was made with and what is asked for, with OWN_FIELDS if `own`, and name both.

    Fields that recipes gained since the run began stand at their default in it.
    """
    defaults = {"config": json.loads(json.dumps(asdict(NestingTrainConfig())))}
    made, wanted = _flat(defaults) | _flat(read_json(folder / RUN_FILE)), _flat(asked)
    different = [
        key
        for key in sorted(made.keys() | wanted.keys())
        if made.get(key) != wanted.get(key)
        and (own or key.removeprefix("config.").split(".")[0] not in OWN_FIELDS)
        and key != "budget.steps"  # follows from images and batch
    ]
    if different:
        made_with, asked_for = (
            ", ".join(f"{key.removeprefix('config.')} {values.get(key)}" for key in different)
            for values in (made, wanted)
        )
        raise SettingsError(f"{folder} holds a run with {made_with}; now asked for: {asked_for}.")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _write(run: _Run) -> None:
    """Put down what is asked for, whole or not at all."""
    run.folder.mkdir(parents=True, exist_ok=True)
    partial = run.folder / f"{RUN_FILE}.partial"
    partial.write_text(json.dumps(run.asked, indent=1) + "\n")
    os.replace(partial, run.folder / RUN_FILE)


def _let_go(device: torch.device, compiled: bool) -> None:
    """Free a member before the next is built; compiled blocks hold on to it in caches and in cycles."""
    if compiled:
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
        "parameters": parameters_of(run.config.model_config(channels)),
        "held_out": {key: value for key, value in (record or {}).items() if key.startswith("held_")},
        "weights": str(run.weights) if record else None,
    }
