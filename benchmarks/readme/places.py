"""Where measurements lie, and where what is written of them goes."""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

ROOT = Path(__file__).parents[2]
EXPERIMENTS = RESULTS / "experiments"
FINDINGS = EXPERIMENTS / "README.md"
MEASURED = RESULTS / "README.md"
README = ROOT / "README.md"
TRAINING = ROOT / "nestar/training/README.md"


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def result(name: str) -> dict[str, Any]:
    """A benchmark's report; empty where it has not run."""
    return read(RESULTS / f"{name}.json")


def other_seeds() -> list[dict[str, Any]]:
    """Reports of the page's nesting with other seeds than the tables', in the order of these."""
    return sorted(map(read, RESULTS.glob("seed*_k4-lattice.json")), key=itemgetter("seed"))


def experiment(name: str) -> dict[str, Any]:
    """An experiment's report; empty where it has not run."""
    return read(EXPERIMENTS / f"{name}.json")
