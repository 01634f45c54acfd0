"""`train` and `extrapolate`: what a run works on, and the run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestar.cli.common import INTERRUPTED, check_batch, numbers
from nestar.cli.recipes import (
    FAMILY_IMAGES,
    GUIDED,
    MANY_FLAGS,
    SHAPE,
    add_train_flags,
    budget_of,
    recipe_of,
    refuse_flags,
)
from nestar.files import RUNS, make_way
from nestar.settings import SettingsError

if TYPE_CHECKING:
    import torch

    from nestar.data.image_folder import ImageFolder
    from nestar.model import NestAR
    from nestar.processes import Group, Worker
    from nestar.tokenizer import Tokenizer
    from nestar.training.loop import Budget, Task
    from nestar.training.nesting import LatentPools, NestingTrainConfig

ODD_SPREAD = 2.0
"""A standard deviation of latents this many times off 1 is likely another tokenizer's scale."""


def add_train(parser: argparse.ArgumentParser) -> None:
    add_train_flags(parser)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    """Train one part; prints its closing record. Of a nesting's several processes each comes here."""
    from nestar.processes import Worker, joined

    worker = Worker.of_environment()
    if worker.world > 1 and arguments.what != "nesting":
        raise SettingsError(
            f"`train {arguments.what}` runs in one process; the launcher started {worker.world}."
        )
    if arguments.what == "family":
        return _train_family(arguments)
    refuse_flags(arguments, "images", "members")
    if arguments.what != "nesting":
        refuse_flags(arguments, "tokenizer", "compile", "data", "away_from", "k", "order", *MANY_FLAGS)
    if arguments.what == "features":
        refuse_flags(arguments, "init")
    from nestar.checkpoints import resolve_device

    name, config = recipe_of(arguments)
    if arguments.what == "nesting":
        from nestar.training.nesting import parts_of

        parts_of(config.batch, worker, arguments.accumulate or 1)  # refused before hours of encoding
    budget = budget_of(arguments, name)
    device = resolve_device(worker.device(arguments.device))
    with joined(worker, device) as group:
        record = _train_part(arguments, name, config, budget, device, group)
    if group.leads:
        print(json.dumps(record))
    # What follows in a shell's line needs the export; a launcher would call its process broken.
    return 0 if record["finished"] or worker.world > 1 else INTERRUPTED


def _train_part(
    arguments: argparse.Namespace,
    name: str,
    config: Any,
    budget: Budget,
    device: torch.device,
    group: Group,
) -> dict[str, Any]:
    """Train what the recipe says, together with the group's other processes; returns the closing record."""
    from nestar.training.loop import STATE_FILE, train
    from nestar.training.runs import RUN_FILE, asked_for, check_run, write_run

    folder = arguments.folder or RUNS / _run_name(arguments, name, config)
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--folder: {folder} is a file.")
    weights = _weights(arguments)
    more: dict[str, Any] = _fingerprints(weights)
    pictures = None
    if arguments.what == "nesting":
        config, pictures = _of_data(arguments, config, weights["tokenizer"], leads=group.leads)
        if pictures is not None:
            more["data"] = pictures[0].fingerprint
    asked = asked_for(config, device, **more)
    if (folder / STATE_FILE).exists():
        check_run(folder, asked, type(config))
    if group.leads:
        make_way(folder / RUN_FILE)
    if pictures is not None:
        weights["pools"] = _encoded(arguments, config, pictures, weights, device, group.worker)
    task = _task(arguments, config, device, weights, group)
    if group.leads:
        write_run(folder, asked)
    record = {"preset": name, "device": device.type}
    if arguments.init:
        record["init"] = _training_of(arguments.init)
    if arguments.away_from:
        record["away_from"] = _training_of(arguments.away_from)
    return train(task, budget, folder, record=record, group=group)


def _run_name(arguments: argparse.Namespace, preset: str, config: Any) -> str:
    """A run's folder where none is given: one for each nesting that flags make of a preset."""
    of_nesting = any(getattr(arguments, flag) is not None for flag in ("k", "order", "variant"))
    return f"{arguments.what}-{preset}" + (f"-{config.weights_name}" if of_nesting else "")


def _train_family(arguments: argparse.Namespace) -> int:
    """Train the family's members in turn; prints a list of one JSON object a member. As with a single one,
    the exit status says whether all of them are finished."""
    began = time.monotonic()
    refuse_flags(
        arguments,
        *("preset", "steps", "init", "pool", "pool_from", "coordination", "seed", "data", "modules", "split"),
        *("k", "order", *SHAPE),
        *GUIDED,
        *MANY_FLAGS,
    )
    check_batch(arguments)
    from nestar.checkpoints import EMBEDDED, load_tokenizer, resolve_device
    from nestar.training import presets
    from nestar.training.family import assemble_command, train_family
    from nestar.training.loop import Budget

    names = presets.FAMILY
    if arguments.members is not None:
        names = [name.strip() for name in arguments.members.split(",")]
    for name in names:
        if name not in presets.FAMILY:
            allowed = ", ".join(presets.FAMILY)
            raise SettingsError(f"Unknown member {name!r} of the family: allowed are {allowed}.")
    members = {name: presets.NESTINGS[name] for name in names}
    if arguments.batch is not None:
        members = {name: replace(config, batch=arguments.batch) for name, config in members.items()}
    deadline = None
    if arguments.minutes is not None:
        try:
            deadline = began + 60 * Budget(minutes=arguments.minutes).minutes
        except ValueError as error:
            raise SettingsError(str(error)) from None
    device = resolve_device(arguments.device)
    folder = arguments.folder or RUNS / "family"
    tokenizer_folder = arguments.tokenizer or EMBEDDED / "tokenizer"
    report = train_family(
        members,
        load_tokenizer(tokenizer_folder).to(device),
        folder,
        images=FAMILY_IMAGES if arguments.images is None else arguments.images,
        device=device,
        cache=arguments.cache,
        deadline=deadline,
        compile_modules=compiles(arguments, device),
    )
    print(json.dumps(report))
    command = assemble_command(report, folder / "checkpoint", tokenizer_folder)
    if command:
        print(command, file=sys.stderr)
    return 0 if all(row["finished"] for row in report) else INTERRUPTED


def _training_of(folder: Path) -> dict[str, object]:
    """How the weights that a run starts from were trained themselves: the whole effort stays on record."""
    from nestar.model import read_config, read_json

    described = folder / "tokenizer.json"
    stored = read_json(described) if described.exists() else read_config(folder / "config.json")
    training = stored.get("training")
    training = training if isinstance(training, dict) else {}
    kept = (
        "steps",
        "images_seen",
        "modules",
        "images_seen_by_modules",
        "train_seconds",
        "extrapolated",
        "autoguided",
        "init",
    )
    return {key: training[key] for key in kept if key in training}


def compiles(arguments: argparse.Namespace, device: torch.device) -> bool:
    """Whether blocks are compiled: as asked, else where a step is hundreds of small kernels to launch."""
    return device.type == "cuda" if arguments.compile is None else arguments.compile


def _weights(arguments: argparse.Namespace) -> dict[str, Tokenizer | NestAR | None]:
    """The finished weights that a run works on or starts from, by the flag that names them."""
    from nestar.checkpoints import EMBEDDED, load_tokenizer
    from nestar.model import NestAR

    if arguments.what == "features":
        return {}
    if arguments.what == "nesting" and arguments.data and not arguments.tokenizer:
        raise SettingsError(
            "--data needs --tokenizer, the folder of one that was trained on such pictures; the embedded "
            "one, assets/tokenizer, knows Tiny Worlds alone."
        )
    if arguments.what == "tokenizer":
        return {"init": load_tokenizer(arguments.init) if arguments.init else None}
    return {
        "tokenizer": load_tokenizer(arguments.tokenizer or EMBEDDED / "tokenizer"),
        "init": NestAR.from_pretrained(arguments.init) if arguments.init else None,
        **({"away_from": NestAR.from_pretrained(arguments.away_from)} if arguments.away_from else {}),
    }


def _fingerprints(weights: Mapping[str, Tokenizer | NestAR | None]) -> dict[str, str | None]:
    """What `run.json` says of them: weights that have changed are others, whatever folder they lie in. Of a
    tokenizer that nestings are trained behind only its latents count."""
    from nestar.model import fingerprint_of

    def of(name: str, part: Tokenizer | NestAR) -> str:
        if name == "tokenizer":
            return part.latents_fingerprint
        return getattr(part, "fingerprint", None) or fingerprint_of(part)

    return {name: of(name, part) if part else None for name, part in weights.items()}


def _task(
    arguments: argparse.Namespace,
    config: Any,
    device: torch.device,
    weights: Mapping[str, Any],
    group: Group,
) -> Task:
    """The training task of `arguments.what`; imported late, so that sampling loads no training code."""
    if arguments.what == "tokenizer":
        from nestar.model import summed_over_runs
        from nestar.training.tokenizer import TokenizerTask

        before = summed_over_runs(_training_of(arguments.init), "steps") if arguments.init else 0
        return TokenizerTask(config, device, arguments.cache, steps_before=int(before), **weights)
    if arguments.what == "features":
        from nestar.training.features import FeaturesTask

        return FeaturesTask(config, device, arguments.cache)
    from nestar.training.nesting import NestingTask

    return NestingTask(
        config,
        weights["tokenizer"].to(device),
        device,
        arguments.cache,
        compile_modules=compiles(arguments, device),
        init=weights["init"],
        away_from=weights.get("away_from"),
        pools=weights.get("pools"),
        group=group,
        accumulate=arguments.accumulate or 1,
        checkpoint_activations=bool(arguments.checkpoint_activations),
    )


def _of_data(
    arguments: argparse.Namespace, config: NestingTrainConfig, tokenizer: Tokenizer, *, leads: bool
) -> tuple[NestingTrainConfig, tuple[ImageFolder, ImageFolder] | None]:
    """The recipe for as many pictures as --data has, and for their classes; and these, for training and held
    out. None for Tiny Worlds, which the task draws itself. `leads`: this process tells of it."""
    from nestar.data import tiny_worlds
    from nestar.data.image_folder import described, open_folder

    if arguments.data is None:
        if config.classes != len(tiny_worlds.CLASSES):
            raise SettingsError(f"This preset is for {config.classes:,} classes of pictures: give --data.")
        return config, None
    train, held = open_folder(arguments.data)
    held = held.at_most(config.held_out)
    size = config.nesting.height * tokenizer.stride
    if leads:
        print(described(train, held, size), file=sys.stderr)
    counts = {"pool": 2 * len(train), "held_out": len(held), "classes": len(train.classes)}  # and mirrored
    return replace(config, size=size, **counts), (train, held)


def _encoded(
    arguments: argparse.Namespace,
    config: NestingTrainConfig,
    pictures: tuple[ImageFolder, ImageFolder],
    weights: Mapping[str, Any],
    device: torch.device,
    worker: Worker,
) -> LatentPools:
    """The latents of --data, once nothing is left to refuse for which they need not be there."""
    from nestar.training.nesting import LatentPools, check_classes, check_weights

    tokenizer = weights["tokenizer"]
    check_weights(config, tokenizer, weights["init"], weights.get("away_from"))
    check_classes(config, weights["init"], pictures[0].classes)
    pools = LatentPools.of_folder(
        *pictures, config.size, tokenizer.to(device), arguments.cache, worker=worker
    )
    spread = pools.held_latents_NChw.float().std().item()
    if worker.rank == 0 and not 1 / ODD_SPREAD < spread < ODD_SPREAD:
        scale = tokenizer.scale / spread
        print(
            f"The latents' standard deviation is {spread:.3g}, not about 1, and noise will not mix with them "
            f"as it should: a `scale` of {scale:.4g} in tokenizer.json would make it 1.",
            file=sys.stderr,
        )
    return pools


def add_extrapolate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Weights beyond where training ended, away from where it stood earlier. Works like guidance by the "
        "earlier weights (autoguidance), at no cost in sampling."
    )
    parser.add_argument("folder", type=Path, help="a nesting's folder, as `train nesting` exports it")
    parser.add_argument(
        "--away-from", type=Path, required=True, help="the folder of weights that this training began from"
    )
    parser.add_argument("--by", type=float, required=True, help="share of the way between them to go on by")
    parser.add_argument(
        "--modules", type=numbers, default=(), help="numbers of scaled modules, parted by commas (all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the nesting that is written")
    parser.set_defaults(run=_extrapolate)


def _extrapolate(arguments: argparse.Namespace) -> int:
    from nestar.model import NestAR
    from nestar.training.extrapolate import extrapolate

    model, earlier = (NestAR.from_pretrained(each) for each in (arguments.folder, arguments.away_from))
    note = _training_of(arguments.away_from)
    extrapolate(model, earlier, arguments.by, arguments.modules, note).save_pretrained(arguments.out)
    print(arguments.out)
    return 0
