"""`sample` and `samples`: a few pictures with all that is known of them, or many for outside evaluators."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from nestar.cli.common import add_settings, add_source, check_batch, pipeline_of, settings_of
from nestar.files import make_way, whole
from nestar.settings import RANGES, SampleSettings, SettingsError, find_nesting, typed


def add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--class", dest="class_name", required=True, help="class by name, such as flower")
    add_settings(parser)
    low, high = RANGES["count"]
    parser.add_argument(
        "--count",
        type=typed,
        default=SampleSettings.count,
        help=f"pictures of one seed after another, the seed in each file's name, {low} to {high}",
    )
    add_source(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("nestar.png"), help="PNG to write (default: nestar.png)"
    )
    parser.add_argument("--stages", action="store_true", help="also write each module's frame beside --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_sample)


def _sample(arguments: argparse.Namespace) -> int:
    from nestar.batches import seeds_from
    from nestar.keepsakes import png_info

    pipeline = pipeline_of(arguments)
    result = pipeline(arguments.class_name, count=arguments.count, **settings_of(arguments))
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


def add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=50_000, help="pictures in all (default: 50000)")
    add_settings(parser)
    add_source(parser)
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
        "with: of train/ where there is one, at most --count of them, spread over all",
    )
    parser.set_defaults(run=_samples)


def _samples(arguments: argparse.Namespace) -> int:
    """One of the processes that a launcher (torchrun, accelerate) starts, or the only one."""
    from nestar.engine import products_in
    from nestar.evaluation.bulk import PART, Bulk
    from nestar.model import fingerprint_of
    from nestar.processes import Worker

    check_batch(arguments)
    if arguments.batch > PART:  # samples lie in files of so many
        raise SettingsError(f"--batch must be at most {PART}, got {arguments.batch}.")
    worker = Worker.of_environment()
    if arguments.data is not None:
        return _pictures(arguments) if worker.rank == 0 else 0
    arguments.device = worker.device(arguments.device)
    pipeline = pipeline_of(arguments)
    settings = pipeline.settings(class_name=pipeline.classes[0], **settings_of(arguments))
    classes = len(pipeline.classes)
    if arguments.count < classes:
        raise SettingsError(f"--count must be at least one per class, {classes}, got {arguments.count}.")
    name = find_nesting(pipeline.nestings, settings.k, settings.order, settings.nesting)
    model, solver = pipeline.models[name], pipeline.solver_settings(settings)
    asked = {"count": arguments.count, "classes": classes, "seed": settings.seed, **vars(solver)}
    asked |= {"weights": fingerprint_of(model), "tokenizer": pipeline.tokenizer_fingerprint}
    # Rounding depends on the batch, too.
    asked |= {"device": pipeline.device.type, "products": products_in(pipeline.device)}
    asked |= {"batch": arguments.batch}
    if worker.rank == 0:
        make_way(arguments.out)
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
    from nestar.checkpoints import default_source, open_checkpoints
    from nestar.data.image_folder import open_pictures
    from nestar.evaluation.bulk import write_pictures

    if given := ", ".join(f"--{name}" for name in settings_of(arguments)):
        raise SettingsError(
            f"Of samples, not of data: {given}; with --data pictures are written as they are."
        )
    if arguments.count < 1:
        raise SettingsError(f"--count must be at least 1, got {arguments.count}.")
    checkpoint = open_checkpoints(arguments.repo or default_source(), arguments.revision)[0]
    folder = open_pictures(arguments.data)
    if folder.classes != checkpoint.classes:
        raise SettingsError(f"{arguments.data} has other classes than {checkpoint.origin}.")
    folder = folder.at_most(arguments.count)
    folder.check()
    make_way(arguments.out)
    write_pictures(arguments.out, folder, checkpoint.size)
    print(arguments.out)
    return 0
