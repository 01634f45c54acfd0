"""The command line: `python -m nestar sample | samples | train | extrapolate | assemble | push | …`."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestar.files import whole, write_json
from nestar.nesting import ORDERS, ORDERS_OF_KIND, Nesting
from nestar.settings import RANGES, SCHEDULES, SOLVERS, SampleSettings, SettingsError, find_nesting, typed

if TYPE_CHECKING:
    import torch

    from nestar.data.image_folder import ImageFolder
    from nestar.model import NestAR
    from nestar.pipeline import NestARPipeline
    from nestar.processes import Group, Worker
    from nestar.tokenizer import Tokenizer
    from nestar.training.loop import Budget, Task
    from nestar.training.nesting import LatentPools, NestingTrainConfig

SAMPLING = {
    "k": "nesting factor",
    "order": ", ".join(ORDERS),
    "steps": "solver steps per patch",
    "solver": ", ".join(SOLVERS),
    "temperature": "factor on the noise",
    "cfg": "guidance (1 = off)",
    "schedule": f"guidance schedule: {', '.join(SCHEDULES)}",
    "seed": "seed of the noise",
    "nesting": "weights by name, in place of k and order",
}
"""Settings of a sample that are flags, and what `--help` says of them."""
RUNS = Path("runs")
FAMILY_IMAGES = 1_000_000
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a share of it or a file may grow no further."""
MANY_FLAGS = ("accumulate", "checkpoint_activations", "precision")
"""Flags of `train` for nestings alone, by their names here."""
SIZES = ("dim", "heads", "blocks")
SHAPE = (*SIZES, "variant")
"""Those that change a nesting's shape or name, but for its k and order."""
VARIANT = re.compile("[A-Za-z0-9_-]{1,40}")
"""What a variant may be called: folders are."""
GUIDED = ("autoguidance", "away_from")
"""Those of `train nesting` that guide it by earlier weights."""
ODD_SPREAD = 2.0
"""A standard deviation of latents this many times off 1 is likely another tokenizer's scale."""
MAX_TRAINING_SEED = 2**31 - 1
"""Steps' and modules' seeds are made of it by multiplication."""
MAX_POOL_FROM = 2**31 - 1
"""Far below the number at which the stream of held-out pictures begins."""
INTERRUPTED = 130
"""Exit status of what was stopped by hand: a shell's of a command that SIGINT ended."""
READER_LEFT = 141
"""Exit status where nobody reads the output any more: a shell's of a command that SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a refusal is one sentence on standard error and exit status 2."""
    arguments = _parser().parse_args(argv)
    from nestar.model import WeightsError

    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except (SettingsError, WeightsError) as error:
        print(f"nestar: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads standard output any more, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return READER_LEFT
    except Exception as error:
        if _no_memory(error):
            said = (
                "The GPU has no memory left. Fewer samples or pictures at once take less (--batch); in "
                "training so do a larger --accumulate and --checkpoint-activations. What was encoded stays."
            )
        elif _no_room(error):
            said = f"The disk is full ({error}). What was whole before still is: make room and call again."
        elif isinstance(error, OSError) and error.filename is not None:  # a file or folder that was given
            said = f"{error.filename} cannot be used ({error.strerror})."
        else:
            raise
        print(f"nestar: {said}", file=sys.stderr)
    return 2


def _no_memory(error: Exception) -> bool:
    """Whether a device's memory was too small."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _no_room(error: Exception) -> bool:
    """Whether a file could not be written for lack of room, which libraries say in ways of their own."""
    from safetensors import SafetensorError

    said = str(error)
    if isinstance(error, OSError):
        return error.errno in NO_ROOM or re.fullmatch(r"\d+ requested and \d+ written", said) is not None
    return isinstance(error, SafetensorError) and any(f"(os error {each})" in said for each in NO_ROOM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nestar", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_sample(commands.add_parser("sample", help="make one picture, or up to sixteen"))
    _add_samples(commands.add_parser("samples", help="many pictures as an npz, for outside evaluators"))
    _add_train(commands.add_parser("train", help="train a part, or the family of nestings"))
    _add_extrapolate(
        commands.add_parser("extrapolate", help="move a nesting's weights on beyond their training")
    )
    _add_assemble(commands.add_parser("assemble", help="put trained parts together into a checkpoint folder"))
    _add_push(commands.add_parser("push", help="publish a checkpoint folder on the Hugging Face Hub"))
    _add_evaluate(commands.add_parser("evaluate", help="measure a nesting's samples against Tiny Worlds"))
    _add_index(commands.add_parser("index", help="describe training pictures, so that copies would be found"))
    _add_experiment(commands.add_parser("experiment", help="one of the paper's questions, with a figure"))
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repo", help="Hub repository or local folder with weights (default: NESTAR_REPO, else embedded)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Defaults and ranges stand in `settings`; values arrive as typed and are checked there."""
    defaults = {field.name: field.default for field in fields(SampleSettings)}
    for name, text in SAMPLING.items():
        default = defaults[name]
        kind = typed if isinstance(default, int | float) else str
        low, high = RANGES.get(name, (None, None))
        span = "" if low is None else f", {low:g} to {high:g}"
        note = "" if default is None else f" (default: {default})"
        parser.add_argument(f"--{name}", type=kind, default=default, help=text + span + note)


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers, parted by commas."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"whole numbers parted by commas are wanted, such as 2,3, not {text!r}"
        ) from None


def _split(text: str) -> tuple[int, ...]:
    """Numbers of blocks, parted by commas, in their order."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"numbers of blocks parted by commas are wanted, such as 2,4,6, not {text!r}"
        ) from None


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    """The sampling settings given on the command line, unchecked."""
    return {name: getattr(arguments, name) for name in SAMPLING}


def _pipeline(arguments: argparse.Namespace) -> NestARPipeline:
    """The pipeline that --repo, --revision and --device name; imported late, so that --help is quick."""
    from nestar.checkpoints import default_source
    from nestar.pipeline import NestARPipeline

    source = arguments.repo or default_source()
    return NestARPipeline.from_pretrained(source, revision=arguments.revision, device=arguments.device)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--class", dest="class_name", required=True, help="class by name, such as flower")
    _add_settings(parser)
    low, high = RANGES["count"]
    parser.add_argument(
        "--count",
        type=typed,
        default=SampleSettings.count,
        help=f"pictures of one seed after another, the seed in each file's name, {low} to {high}",
    )
    _add_source(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("nestar.png"), help="PNG to write (default: nestar.png)"
    )
    parser.add_argument("--stages", action="store_true", help="also write each module's frame beside --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_sample)


def _sample(arguments: argparse.Namespace) -> int:
    from nestar.batches import seeds_from
    from nestar.keepsakes import png_info

    pipeline = _pipeline(arguments)
    result = pipeline(arguments.class_name, count=arguments.count, **_settings(arguments))
    settings, out = result.settings, arguments.out
    seeds = seeds_from(settings.seed, settings.count)
    files = [out] if len(seeds) == 1 else [out.with_name(f"{out.stem}-{seed}{out.suffix}") for seed in seeds]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for number, (seed, file) in enumerate(zip(seeds, files, strict=True)):
            with whole(file) as partial:
                kept = pipeline.about(replace(settings, seed=seed, count=1))
                result.images[number].save(partial, format="PNG", pnginfo=png_info(kept))
            for frame in result.frames if arguments.stages else ():
                if frame.module_done:
                    stage = file.with_name(f"{file.stem}-module-{frame.module}.png")
                    with whole(stage) as partial:
                        frame.images[number].save(partial, format="PNG")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written ({error.strerror or error}).") from None
    names = [str(file) for file in files]
    if arguments.json:
        print(json.dumps({**result.summary(), "image": names[0], **({"images": names} if names[1:] else {})}))
    else:
        print(
            f"{', '.join(names)}: {settings.class_name}, {result.evaluations} sequential evaluations, "
            f"{result.seconds:.2f} s"
        )
    return 0


def _add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=50_000, help="pictures in all (default: 50000)")
    _add_settings(parser)
    _add_source(parser)
    parser.add_argument(
        "--batch", type=int, default=64, help="pictures made at once, up to 256 (default: 64)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samples.npz"),
        help="npz to write (default: samples.npz); the folder of its parts beside it may go afterwards",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="write pictures of this folder in place of samples, cut and scaled as for training, to compare "
        "with; at most --count, spread over the classes",
    )
    parser.set_defaults(run=_samples)


def _samples(arguments: argparse.Namespace) -> int:
    """One of the processes that a launcher (torchrun, accelerate) starts, or the only one."""
    from nestar.engine import products_in
    from nestar.evaluation.bulk import PART, Bulk
    from nestar.model import fingerprint_of
    from nestar.processes import Worker

    _check_batch(arguments)
    if arguments.batch > PART:  # samples lie in files of so many
        raise SettingsError(f"--batch must be at most {PART}, got {arguments.batch}.")
    worker = Worker.of_environment()
    if arguments.data is not None:
        return _pictures(arguments) if worker.rank == 0 else 0
    arguments.device = worker.device(arguments.device)
    pipeline = _pipeline(arguments)
    settings = pipeline.settings(class_name=pipeline.classes[0], **_settings(arguments))
    classes = len(pipeline.classes)
    if arguments.count < classes:
        raise SettingsError(f"--count must be at least one per class, {classes}, got {arguments.count}.")
    name = find_nesting(pipeline.nestings, settings.k, settings.order, settings.nesting)
    model, solver = pipeline.models[name], pipeline.solver_settings(settings)
    asked = {"count": arguments.count, "classes": classes, "seed": settings.seed, **vars(solver)}
    asked |= {"weights": fingerprint_of(model), "tokenizer": pipeline.tokenizer.fingerprint}
    # Rounding depends on the batch, too.
    asked |= {"device": pipeline.device.type, "products": products_in(pipeline.device)}
    asked |= {"batch": arguments.batch}
    if worker.rank == 0:
        _make_way(arguments.out)
    bulk = Bulk(arguments.out.with_suffix(".parts"), arguments.count, classes, settings.seed, asked)
    bulk.begin()
    bulk.make(model, pipeline.tokenizer, solver, worker, batch=arguments.batch)
    if worker.rank == 0:
        bulk.wait()
        bulk.join(arguments.out)
        print(arguments.out)
    return 0


def _pictures(arguments: argparse.Namespace) -> int:
    """The data in place of samples: its classes are the checkpoint's, its pictures as large."""
    from nestar.checkpoints import default_source, open_checkpoint
    from nestar.data.image_folder import open_pictures
    from nestar.evaluation.bulk import write_pictures

    checkpoint = open_checkpoint(arguments.repo or default_source(), arguments.revision)
    folder = open_pictures(arguments.data)
    if folder.classes != checkpoint.classes:
        raise SettingsError(f"{arguments.data} has other classes than {checkpoint.origin}.")
    if arguments.count < len(folder.classes):
        least = len(folder.classes)
        raise SettingsError(f"--count must be at least one per class, {least}, got {arguments.count}.")
    _make_way(arguments.out)
    write_pictures(arguments.out, folder.at_most(arguments.count), checkpoint.size)
    print(arguments.out)
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("tokenizer", "nesting", "features", "family"),
        help="family: nestings of one size and equal images, one after another",
    )
    parser.add_argument("--preset", help="a named recipe (default: tiny-worlds, tiny-worlds-k4)")
    parser.add_argument(
        "--minutes",
        type=float,
        help="wall-clock budget of training, which the learning rate follows; of a family: when the whole "
        "queue is interrupted (default: never)",
    )
    parser.add_argument(
        "--steps", type=int, help="budget in optimiser steps instead (default of imagenet256 presets: 250000)"
    )
    parser.add_argument(
        "--images", type=int, help=f"of a family: images each member sees (default: {FAMILY_IMAGES})"
    )
    parser.add_argument(
        "--members", help="of a family: presets in order of training, parted by commas (default: all)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="the run's folder; an unfinished run there is resumed (default: in runs/)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="for nestings: tokenizer folder (default: the embedded one)"
    )
    parser.add_argument(
        "--cache", type=Path, default=RUNS / "cache", help="where pools of images and latents lie"
    )
    parser.add_argument(
        "--init", type=Path, help="start a new run from these weights (a tokenizer's or nesting's folder)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="for nestings: a folder of pictures, a folder per class, with or without train/ and val/ above "
        "(default: Tiny Worlds)",
    )
    parser.add_argument(
        "--batch", type=int, help="rows per step, of all processes together, in place of the preset's"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        help="for nestings: parts that each process runs its rows of a step in, one after another, which "
        "takes as much less memory (default: 1)",
    )
    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        default=None,
        help="for nestings: run each block again in the backward pass, which takes far less memory",
    )
    parser.add_argument(
        "--precision",
        help="for nestings, of matrix products: auto, bf16 or float32 (default: auto, bf16 where the device "
        "multiplies it itself)",
    )
    parser.add_argument(
        "--pool",
        type=int,
        help="pictures drawn before the first step, in place of the preset's: fewer begin sooner",
    )
    parser.add_argument(
        "--pool-from",
        type=int,
        help="for nestings: number of the pool's first picture of Tiny Worlds; those that weights to begin "
        "with (--init) have seen lie before it (default: 0)",
    )
    parser.add_argument("--k", type=int, help="for nestings: nesting factor, on the preset's grid")
    orders = " or ".join(ORDERS_OF_KIND["nested"])
    parser.add_argument("--order", help=f"for nestings: order of tokens, {orders}")
    parser.add_argument("--dim", type=int, help="for nestings: width, in place of the preset's")
    parser.add_argument("--heads", type=int, help="for nestings: attention heads, which divide the width")
    parser.add_argument("--blocks", type=int, help="for nestings: blocks of all modules together")
    parser.add_argument(
        "--variant", help="for nestings: tells apart trainings of one nesting; its folder is NESTING.VARIANT"
    )
    parser.add_argument("--coordination", type=float, help="lambda, in place of the preset's")
    parser.add_argument(
        "--modules",
        type=_numbers,
        help="for nestings, with --init: numbers of the scaled modules to train, parted by commas; the "
        "others stay as they are (default: all)",
    )
    parser.add_argument(
        "--split",
        type=_split,
        help="for nestings: blocks of each scaled module, parted by commas, in place of an even split; with "
        "--init a trained module may have another number than there (default: the preset's)",
    )
    parser.add_argument(
        "--autoguidance",
        type=float,
        help="for nestings, with --init and --away-from: a; in place of the data's velocities modules learn "
        "v + a (v - v'), v being theirs at the start and v' theirs earlier",
    )
    parser.add_argument("--away-from", type=Path, help="the folder of the earlier, less trained weights")
    parser.add_argument("--seed", type=int, help="in place of the preset's")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the modules with torch.compile, which needs a C compiler (default: on CUDA, where "
        "small kernels would wait for their launch)",
    )
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
    _refuse_flags(arguments, "images", "members")
    if arguments.what != "nesting":
        _refuse_flags(arguments, "tokenizer", "compile", "data", "away_from", "k", "order", *MANY_FLAGS)
    if arguments.what == "features":
        _refuse_flags(arguments, "init")
    from nestar.checkpoints import resolve_device

    name, config = _recipe(arguments)
    if arguments.what == "nesting":
        from nestar.training.nesting import parts_of

        parts_of(config.batch, worker, arguments.accumulate or 1)  # refused before hours of encoding
    budget = _budget(arguments, name)
    device = resolve_device(worker.device(arguments.device))
    with joined(worker, device) as group:
        record = _train_part(arguments, name, config, budget, device, group)
    if group.leads:
        print(json.dumps(record))
    # What follows in a shell's line needs the export; a launcher would call its process broken.
    return 0 if record["finished"] or worker.world > 1 else INTERRUPTED


def _recipe(arguments: argparse.Namespace) -> tuple[str, Any]:
    """The preset's name, and its recipe with what is given in place of the preset's own."""
    from nestar.training import presets

    registry = {"tokenizer": presets.TOKENIZERS, "nesting": presets.NESTINGS, "features": presets.FEATURES}[
        arguments.what
    ]
    name = arguments.preset or next(iter(registry))
    if name not in registry:
        raise SettingsError(f"Unknown preset {name!r}: allowed are {', '.join(registry)}.")
    given = {
        key: getattr(arguments, key)
        for key in (
            "batch",
            "pool",
            "pool_from",
            "coordination",
            "seed",
            "precision",
            "modules",
            "autoguidance",
            "split",
            *SHAPE,
        )
    }
    given = {key: value for key, value in given.items() if value is not None}
    if "split" in given and "split" in registry[name].__dataclass_fields__:
        if "blocks" in given:
            raise SettingsError("--split says how many blocks there are: leave out --blocks.")
        given["blocks"] = sum(given["split"])
    if arguments.what == "nesting" and (arguments.k is not None or arguments.order is not None):
        given["nesting"] = _nesting(registry[name].nesting, arguments.k, arguments.order)
    _check_batch(arguments)
    for key in SIZES:
        if given.get(key, 1) < 1:
            raise SettingsError(f"--{key} must be at least 1, got {given[key]}.")
    if not VARIANT.fullmatch(given.get("variant", "x")):
        raise SettingsError(f"--variant takes up to 40 letters, digits, - and _, not {given['variant']!r}.")
    if not 0 <= given.get("seed", 0) <= MAX_TRAINING_SEED:
        raise SettingsError(f"--seed must be from 0 to {MAX_TRAINING_SEED}, got {arguments.seed}.")
    if arguments.pool is not None and arguments.pool < 1:
        raise SettingsError(f"--pool must be at least 1, got {arguments.pool}.")
    if not 0 <= given.get("pool_from", 0) <= MAX_POOL_FROM:
        raise SettingsError(f"--pool-from must be from 0 to {MAX_POOL_FROM}, got {arguments.pool_from}.")
    for flag, value in (("--pool", arguments.pool), ("--pool-from", arguments.pool_from)):
        if value is not None and arguments.data is not None:
            raise SettingsError(f"{flag} is of Tiny Worlds; of a folder (--data) all pictures are used.")
    if arguments.accumulate is not None and arguments.accumulate < 1:
        raise SettingsError(f"--accumulate must be at least 1, got {arguments.accumulate}.")
    if not 0 <= given.get("coordination", 0) < math.inf:
        given_value = arguments.coordination
        raise SettingsError(f"--coordination must be a finite number of at least 0, got {given_value}.")
    for key in given:
        if key not in registry[name].__dataclass_fields__:
            raise SettingsError(f"--{key.replace('_', '-')} does not apply to {arguments.what}.")
    try:
        return name, replace(registry[name], **given)
    except ValueError as error:
        raise SettingsError(f"{str(error).removesuffix('.')}.") from None


def _nesting(preset: Nesting, k: int | None, order: str | None) -> Nesting:
    """On the preset's grid, with this k and order in place of its own."""
    if order is not None and order not in ORDERS_OF_KIND["nested"]:
        allowed = ", ".join(ORDERS_OF_KIND["nested"])
        raise SettingsError(f"Unknown order {order!r} of a nesting: allowed are {allowed}.")
    if k is None and preset.kind != "nested":
        raise SettingsError(f"The preset's nesting is {preset.name}: --order goes with --k there.")
    if k is not None and not 2 <= k <= preset.n:
        raise SettingsError(f"--k must be from 2 to {preset.n}, the tokens of the preset's grid, got {k}.")
    of_preset = order or (preset.order if preset.kind == "nested" else ORDERS[0])
    return Nesting.nested(preset.height, preset.width, k or preset.k, order=of_preset)


def _budget(arguments: argparse.Namespace, preset: str) -> Budget:
    from nestar.training.loop import Budget
    from nestar.training.presets import STEPS

    minutes, steps = arguments.minutes, arguments.steps
    if minutes is None and steps is None:
        steps = STEPS.get(preset)
    if (minutes is None) == (steps is None):
        raise SettingsError("Give --minutes or --steps, one of the two.")
    try:
        return Budget(minutes=minutes, steps=steps)
    except ValueError as error:
        raise SettingsError(str(error)) from None


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
    from nestar.training.runs import asked_for, check_run, write_run

    folder = arguments.folder or RUNS / f"{arguments.what}-{name}"
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


def _train_family(arguments: argparse.Namespace) -> int:
    """Train the family's members in turn; prints a list of one JSON object a member."""
    began = time.monotonic()
    _refuse_flags(
        arguments,
        *("preset", "steps", "init", "pool", "pool_from", "coordination", "seed", "data", "modules", "split"),
        *("k", "order", *SHAPE),
        *GUIDED,
        *MANY_FLAGS,
    )
    _check_batch(arguments)
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
        compile_modules=_compiles(arguments, device),
    )
    print(json.dumps(report))
    command = assemble_command(report, folder / "checkpoint", tokenizer_folder)
    if command:
        print(command, file=sys.stderr)
    return 0


def _refuse_flags(arguments: argparse.Namespace, *names: str) -> None:
    """Refuse flags that were given and do not apply to what is trained."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} does not apply to {arguments.what}.")


def _check_batch(arguments: argparse.Namespace) -> None:
    if arguments.batch is not None and arguments.batch < 1:
        raise SettingsError(f"--batch must be at least 1, got {arguments.batch}.")


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


def _compiles(arguments: argparse.Namespace, device: torch.device) -> bool:
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
        from nestar.training.tokenizer import TokenizerTask

        return TokenizerTask(config, device, arguments.cache, **weights)
    if arguments.what == "features":
        from nestar.training.features import FeaturesTask

        return FeaturesTask(config, device, arguments.cache)
    from nestar.training.nesting import NestingTask

    return NestingTask(
        config,
        weights["tokenizer"].to(device),
        device,
        arguments.cache,
        compile_modules=_compiles(arguments, device),
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
    from nestar.training.nesting import LatentPools, check_weights

    tokenizer = weights["tokenizer"]
    check_weights(config, tokenizer, weights["init"], weights.get("away_from"))
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


def _add_extrapolate(parser: argparse.ArgumentParser) -> None:
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
        "--modules", type=_numbers, default=(), help="numbers of scaled modules, parted by commas (all)"
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


def _add_assemble(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="the checkpoint's folder; parts that it has and are not named stay"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer's folder, as `train tokenizer` exports it"
    )
    parser.add_argument(
        "--nesting", type=Path, action="append", default=[], help="a nesting's folder; may be repeated"
    )
    parser.set_defaults(run=_assemble)


def _assemble(arguments: argparse.Namespace) -> int:
    from nestar.checkpoints import assemble
    from nestar.model import Outline

    classes = _classes_of([Outline.read(part).record for part in arguments.nesting], arguments.folder)
    checkpoint = assemble(
        arguments.folder, classes=classes, tokenizer=arguments.tokenizer, nestings=arguments.nesting
    )
    print(f"{checkpoint.folder}: {', '.join(checkpoint.nestings) or 'no nesting yet'}")
    return 0


def _classes_of(records: Sequence[Mapping[str, Any]], folder: Path) -> tuple[str, ...]:
    """Class names that the parts' records agree on; of records without any, those of the checkpoint that
    stands in `folder`, else Tiny Worlds'."""
    from nestar.data.tiny_worlds import CLASSES
    from nestar.model import read_json

    named = {names for record in records if (names := _names_in(record))}
    if len(named) > 1:
        raise SettingsError("The nestings were trained on different classes: they make no checkpoint.")
    if named:
        return named.pop()
    stored = folder / "config.json"
    return (_names_in(read_json(stored)) if stored.exists() else ()) or CLASSES


def _names_in(described: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a record or config names; none where they are no names."""
    names = described.get("classes")
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the checkpoint's folder, as `assemble` makes it")
    parser.add_argument("repository", help="Hub repository (user/name); made if it does not exist")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would go, and the card; send nothing"
    )
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder with reports, evaluate_<nesting>.json, for the card (default: FOLDER/results)",
    )
    parser.add_argument("--licence", default="mit", help="the Hub's identifier of a licence (default: mit)")
    parser.add_argument("--data", help="a sentence on the training data (known for Tiny Worlds)")
    parser.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> int:
    from nestar.publish import prepare, push

    publication = prepare(
        arguments.folder,
        arguments.repository,
        results=arguments.results or arguments.folder / "results",
        licence=arguments.licence,
        data=arguments.data,
    )
    if not arguments.dry_run:
        print(push(publication, arguments.repository, private=arguments.private))
        return 0
    listing = list(publication.listing())
    for path, size in listing:
        print(f"{size:>12,}  {path}")
    print(f"{sum(size for _, size in listing):>12,}  bytes would go to {arguments.repository}\n")
    print(publication.card)
    return 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5000, help="samples and references (default: 5000)")
    _add_settings(parser)
    _add_source(parser)
    parser.add_argument(
        "--features",
        type=Path,
        help="folder of a feature network, inception, or inception:FILE (default: the embedded one)",
    )
    parser.add_argument("--out", type=Path, help="also write the report here, as JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from nestar.evaluation.inception import features_named
    from nestar.evaluation.report import check_classes, evaluate, instruments
    from nestar.model import fingerprint_of
    from nestar.pipeline import NestARPipeline

    pipeline = _pipeline(arguments)
    settings = pipeline.settings(class_name=pipeline.classes[0], **_settings(arguments))
    features = features_named(arguments.features, pipeline.device)
    _make_way(arguments.out)
    name = find_nesting(pipeline.nestings, settings.k, settings.order, settings.nesting)
    model = pipeline.models[name]
    try:
        check_classes(pipeline.classes)
        report = evaluate(
            model,
            pipeline.tokenizer,
            features,
            samples=arguments.samples,
            settings=NestARPipeline.solver_settings(settings),
            seed=settings.seed,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None
    report |= {"weights": pipeline.origin, "fingerprint": fingerprint_of(model)}
    report["instruments"] = instruments(pipeline.tokenizer, features)
    report["images_seen"] = pipeline.models.outline(name).images_seen
    if arguments.out:
        write_json(arguments.out, report)
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            if not isinstance(value, dict | list):
                print(f"{name:24} {value}")
    return 0


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, help="training pictures, 32 bytes each (default: 60000)")
    parser.add_argument("--held-out", type=int, help="pictures per class for each yardstick (default: 100)")
    parser.add_argument("--features", type=Path, help="feature network's folder (default: the embedded one)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer's folder (default: the embedded one)")
    parser.add_argument(
        "--cache", type=Path, default=RUNS / "cache", help="where these pictures may lie already drawn"
    )
    parser.add_argument("--out", type=Path, help="folder to write (default: assets/neighbours)")
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> int:
    from nestar import neighbours
    from nestar.checkpoints import EMBEDDED, load_tokenizer
    from nestar.evaluation.diversity import FeatureSpace

    folder = arguments.out or neighbours.FOLDER
    _make_way(folder / neighbours.WEIGHTS_FILE)
    try:
        index = neighbours.build_index(
            FeatureSpace(arguments.features or EMBEDDED / "features"),
            load_tokenizer(arguments.tokenizer or EMBEDDED / "tokenizer"),
            images=neighbours.IMAGES if arguments.images is None else arguments.images,
            held_out=neighbours.HELD_OUT if arguments.held_out is None else arguments.held_out,
            cache=arguments.cache,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None
    index.save(folder)
    print(f"{folder}: {len(index.codes)} training pictures")
    return 0


def _make_way(file: Path | None) -> None:
    """Refuse a file that cannot be written before minutes of work, not after them."""
    if file is None:
        return
    try:
        file = file.resolve()  # of a link to nowhere, what would be made
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        with file.open("a"):
            pass
        if new:
            file.unlink()
    except OSError as error:
        raise SettingsError(f"{file} cannot be written ({error.strerror}).") from None


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    from nestar.evaluation.experiments import command

    command.add_arguments(parser)
    _add_source(parser)
    parser.set_defaults(run=command.run)
