"""What the benchmarks have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nestar.files import write_json
from nestar.model import WeightsError
from nestar.settings import SettingsError

RESULTS = Path(__file__).parent / "results"


def positive(text: str) -> int:
    """A whole number from 1 on, as a type for argparse.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


@contextmanager
def sentences(parser: argparse.ArgumentParser) -> Iterator[None]:
    """What weights and settings refuse, as the command's own refusal."""
    try:
        yield
    except (SettingsError, WeightsError) as error:
        parser.error(str(error))


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, report)
