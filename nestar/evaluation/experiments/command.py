"""`python -m nestar experiment NAME`: its arguments and its run, which imports all that is heavy."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nestar.evaluation.experiments import NAMES, QUESTIONS
from nestar.evaluation.experiments.defaults import (
    FINAL_SAMPLES,
    IMAGES,
    MEMBER,
    PRESET,
    RESULTS,
    RUNS,
    SAMPLES,
)
from nestar.files import CACHE
from nestar.settings import SampleSettings, SettingsError, check_integer, check_seed

if TYPE_CHECKING:
    from nestar.evaluation.experiments.study import Experiment
    from nestar.training.nesting import NestingTrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; the caller adds those of the weights' source, and sets `run`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "\n".join(f"{name:14}{question}" for name, question in QUESTIONS.items())
    parser.add_argument("name", choices=NAMES, metavar="NAME", help="one of those above")
    parser.add_argument(
        "--features",
        type=Path,
        help="folder of the feature network, or inception (default: the embedded one)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        help=f"samples of a grid's or search's rows (default: {SAMPLES})",
    )
    parser.add_argument(
        "--final-samples",
        type=int,
        help=f"of the finalists (default: {FINAL_SAMPLES})",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the finalists; searches take the next one (default: 0)"
    )
    steps = SampleSettings.steps
    parser.add_argument("--steps", type=int, default=steps, help=f"solver steps per patch (default: {steps})")
    parser.add_argument(
        "--nesting", help=f"for sampler and precision: the member to sample (default: {MEMBER})"
    )
    parser.add_argument(
        "--minutes", type=float, help="wall-clock budget of this call; the next one goes on (default: none)"
    )
    parser.add_argument("--images", type=int, help=f"images that each training arm sees (default: {IMAGES})")
    parser.add_argument("--preset", help=f"recipe that training arms are made from (default: {PRESET})")
    parser.add_argument("--batch", type=int, help="rows a training step, in place of the preset's")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the arms' modules with torch.compile, which needs a C compiler (default: on CUDA)",
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"where arms are trained (default: {RUNS})")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where pools of images and latents lie")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help=f"folder of NAME.json and NAME.png (default: {RESULTS})"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Conduct the experiment that the arguments name.

    Raises:
        SettingsError: an argument is out of range, or weights and arguments do not fit together.
        WeightsError: weights are missing or damaged.
    """
    began = time.monotonic()
    samples = SAMPLES if arguments.samples is None else arguments.samples
    final_samples = FINAL_SAMPLES if arguments.final_samples is None else arguments.final_samples
    _check(arguments)
    from nestar.checkpoints import default_source
    from nestar.evaluation.experiments.study import Options, Study, conduct, tell
    from nestar.evaluation.inception import features_named
    from nestar.evaluation.report import check_samples
    from nestar.pipeline import NestARPipeline

    experiment = load(arguments.name)
    _check_applies(arguments, experiment)
    if experiment.searches and experiment.finals and final_samples <= samples:
        raise SettingsError(
            f"--final-samples must be more than --samples ({samples}): finalists are measured on more than "
            f"searches and grids are, got {final_samples}."
        )
    base = _recipe(arguments)
    pipeline = NestARPipeline.from_pretrained(
        arguments.repo or default_source(), revision=arguments.revision, device=arguments.device
    )
    features = features_named(arguments.features, pipeline.device)
    options = Options(
        samples=samples,
        final_samples=final_samples,
        seed=arguments.seed,
        steps=arguments.steps,
        nesting=arguments.nesting or MEMBER,
        images=arguments.images or IMAGES,
        base=base,
        folder=arguments.out,
        runs=arguments.runs,
        cache=arguments.cache,
        compile_modules=pipeline.device.type == "cuda" if arguments.compile is None else arguments.compile,
        deadline=None if arguments.minutes is None else began + 60 * arguments.minutes,
        command=_typed(arguments),
    )
    try:
        for count in (samples, final_samples):  # before arms are trained for nothing
            check_samples(count)
        report = conduct(experiment, Study(experiment.name, pipeline, features, options))
    except SettingsError:
        raise
    except ValueError as error:  # what the evaluation refuses
        raise SettingsError(str(error)) from None
    tell(report, arguments.out, as_json=arguments.json)
    return 0


def _typed(arguments: argparse.Namespace) -> str:
    """The command with all that decides what is measured, without what says where and for how long."""
    usual = {
        "samples": SAMPLES,
        "final_samples": FINAL_SAMPLES,
        "seed": 0,
        "steps": SampleSettings.steps,
        "nesting": MEMBER,
        "images": IMAGES,
        "preset": PRESET,
        "batch": None,
        "features": None,
        "repo": None,
        "revision": None,
    }
    given = {name: getattr(arguments, name) for name in usual}
    flags = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in given.items()
        if value is not None and value != usual[name]
    ]
    return " ".join([f"python -m nestar experiment {arguments.name}", *flags])


def load(name: str) -> Experiment:
    """The experiment of one of NAMES."""
    from importlib import import_module

    return import_module(f"nestar.evaluation.experiments.{name}").EXPERIMENT


def _check(arguments: argparse.Namespace) -> None:
    check_seed(arguments.seed)
    check_integer("steps", arguments.steps)
    for flag in ("samples", "final_samples", "images", "batch"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise SettingsError(f"--{flag.replace('_', '-')} must be at least 1, got {value}.")
    if arguments.minutes is not None and not 0 < arguments.minutes < math.inf:
        raise SettingsError(f"--minutes must be a finite number above 0, got {arguments.minutes:g}.")


def _check_applies(arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Refuse flags that would do nothing."""
    flags = {"images": experiment.trains, "preset": experiment.trains, "batch": experiment.trains}
    flags |= {"compile": experiment.trains, "nesting": experiment.single}
    flags |= {"samples": experiment.searches, "final_samples": experiment.finals}
    for flag, applies in flags.items():
        if getattr(arguments, flag) is not None and not applies:
            raise SettingsError(f"--{flag.replace('_', '-')} does not apply to {experiment.name}.")


def _recipe(arguments: argparse.Namespace) -> NestingTrainConfig:
    from nestar.data.tiny_worlds import CLASSES
    from nestar.training.presets import NESTINGS

    name = arguments.preset or PRESET
    drawn = [each for each, config in NESTINGS.items() if config.classes == len(CLASSES)]
    if name not in drawn:
        raise SettingsError(f"Unknown preset {name!r}: allowed are {', '.join(drawn)}.")
    base = NESTINGS[name]
    pool = min(base.pool, arguments.images or IMAGES)  # an arm that sees few images needs no more
    return replace(base, pool=pool, batch=arguments.batch or base.batch)
