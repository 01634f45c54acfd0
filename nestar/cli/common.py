"""What the commands share: where weights come from, sampling settings, numbers given on the line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

from nestar.nesting import ORDERS
from nestar.settings import RANGES, SCHEDULES, SOLVERS, SOLVING, SampleSettings, SettingsError, typed

if TYPE_CHECKING:
    from nestar.pipeline import NestARPipeline

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
DEFAULTS = {field.name: field.default for field in fields(SampleSettings)}
INTERRUPTED = 130
"""Exit status of what was stopped by hand: a shell's of a command that SIGINT ended."""


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repo", help="Hub repository or local folder with weights (default: NESTAR_REPO, else embedded)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Defaults and ranges stand in `settings`; values arrive as typed and are checked there."""
    for name in SAMPLING:
        default = DEFAULTS[name]
        own = ", unless the weights have their own" if name in SOLVING else ""
        _add_setting(parser, name, "" if default is None else f" (default: {default}{own})")


def add_defaults(parser: argparse.ArgumentParser) -> None:
    """Flags for those settings that weights may have defaults of their own for."""
    for name in SOLVING:
        _add_setting(parser, name, "; what pictures of these weights begin with")


def _add_setting(parser: argparse.ArgumentParser, name: str, note: str) -> None:
    low, high = RANGES.get(name, (None, None))
    span = "" if low is None else f", {low:g} to {high:g}"
    kind = typed if isinstance(DEFAULTS[name], int | float) else str
    parser.add_argument(f"--{name}", type=kind, help=SAMPLING[name] + span + note)


def settings_of(arguments: argparse.Namespace, names: Iterable[str] = SAMPLING) -> dict[str, object]:
    """The sampling settings given on the command line, unchecked."""
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def pipeline_of(arguments: argparse.Namespace) -> NestARPipeline:
    """The pipeline that --repo, --revision and --device name; imported late, so that --help is quick."""
    from nestar.checkpoints import default_source
    from nestar.pipeline import NestARPipeline

    source = arguments.repo or default_source()
    return NestARPipeline.from_pretrained(source, revision=arguments.revision, device=arguments.device)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers, parted by commas."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"whole numbers parted by commas are wanted, such as 2,3, not {text!r}"
        ) from None


def check_batch(arguments: argparse.Namespace) -> None:
    if arguments.batch is not None and arguments.batch < 1:
        raise SettingsError(f"--batch must be at least 1, got {arguments.batch}.")
