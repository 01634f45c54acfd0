"""What is embedded now: its names, shapes, training and fingerprints."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.readme import places
from nestar.checkpoints import EMBEDDED, load_tokenizer
from nestar.evaluation import report
from nestar.evaluation.inception import features_named
from nestar.model import NestAR, Outline, fingerprint_of
from nestar.sampler import SolverSettings

FAIR_K4 = "k4-lattice.together"
"""The weights of k = 4 that saw as many images as the family's other members."""


def folder_of(name: str) -> Path:
    return places.ROOT / "assets" / name


def stored(file: str) -> dict[str, Any]:
    """A file in assets/; empty where there is none."""
    return places.read(places.ROOT / "assets" / file)


def nestings() -> list[str]:
    """Names of the nestings with embedded weights."""
    return stored("config.json").get("nestings", [])


def training_of(file: str) -> dict[str, Any]:
    """How an embedded part was trained, by its file in assets/."""
    return stored(file).get("training", {})


def parameters(name: str) -> int:
    return Outline.read(folder_of(name)).config.parameters


def solving() -> dict[str, Any]:
    """How pictures of the embedded weights are sampled where nothing is asked for."""
    return asdict(replace(SolverSettings(), **stored("config.json").get("defaults", {})))


@cache
def instruments() -> dict[str, str]:
    """Fingerprints of the embedded tokenizer and feature network."""
    return report.instruments(
        load_tokenizer(EMBEDDED / "tokenizer"), features_named(None, torch.device("cpu"))
    )


@cache
def fingerprint(name: str) -> str | None:
    """Of the embedded weights of this name; None without."""
    folder = folder_of(name)
    return fingerprint_of(NestAR.from_pretrained(folder)) if folder.exists() else None
