"""Where measurements lie, and where what is written of them goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

ROOT = Path(__file__).parents[2]
EXPERIMENTS = RESULTS / "experiments"
FINDINGS = EXPERIMENTS / "README.md"


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def result(name: str) -> dict[str, Any]:
    """A benchmark's report; empty where it has not run."""
    return read(RESULTS / f"{name}.json")


def experiment(name: str) -> dict[str, Any]:
    """An experiment's report; empty where it has not run."""
    return read(EXPERIMENTS / f"{name}.json")
