"""`evaluate`, `index` and `experiment`: what is measured on weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nestar.cli.common import add_settings, add_source, pipeline_of, settings_of
from nestar.files import CACHE, make_way, write_json
from nestar.settings import SettingsError, find_nesting


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=5000, help="samples and references (default: 5000)")
    add_settings(parser)
    add_source(parser)
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

    pipeline = pipeline_of(arguments)
    settings = pipeline.settings(class_name=pipeline.classes[0], **settings_of(arguments))
    features = features_named(arguments.features, pipeline.device)
    make_way(arguments.out)
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
    # The weights' name: two variants are of one nesting.
    report |= {"nesting": name, "weights": pipeline.origin, "fingerprint": fingerprint_of(model)}
    report["instruments"] = instruments(pipeline.tokenizer, features)
    report["images_seen"] = pipeline.models.outline(name).images_seen
    if arguments.out:
        write_json(arguments.out, report)
    if arguments.json:
        print(json.dumps(report))
    else:
        for figure, value in report.items():
            if not isinstance(value, dict | list):
                print(f"{figure:24} {value}")
    return 0


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, help="training pictures, 32 bytes each (default: 60000)")
    parser.add_argument("--held-out", type=int, help="pictures per class for each yardstick (default: 100)")
    parser.add_argument("--features", type=Path, help="feature network's folder (default: the embedded one)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer's folder (default: the embedded one)")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where these pictures may lie already drawn"
    )
    parser.add_argument("--out", type=Path, help="folder to write (default: assets/neighbours)")
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> int:
    from nestar import neighbours
    from nestar.checkpoints import EMBEDDED, load_tokenizer
    from nestar.evaluation.diversity import FeatureSpace

    folder = arguments.out or neighbours.FOLDER
    make_way(folder / neighbours.WEIGHTS_FILE)
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


def add_experiment(parser: argparse.ArgumentParser) -> None:
    from nestar.evaluation.experiments import command

    command.add_arguments(parser)
    add_source(parser)
    parser.set_defaults(run=command.run)
