"""What a run was asked for: put down in its folder when it begins, compared when it is taken up again.

A state says nothing of the recipe that made it: without this, a run that is asked for with another lambda,
seed or tokenizer would go on with the old state and be exported as what it is not.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nestar.files import write_json
from nestar.model import read_json
from nestar.settings import SettingsError

RUN_FILE = "run.json"


def asked_for(config: Any, device: torch.device, **more: Any) -> dict[str, Any]:
    """What `run.json` holds: the recipe, the kind of device (others draw other noise), and `more`."""
    asked = {**more, "device": device.type, "config": asdict(config)}
    return json.loads(json.dumps(asked))  # as it is read back: lists for tuples


def check_run(folder: Path, asked: Mapping[str, Any], recipe: type, may_differ: Collection[str] = ()) -> None:
    """Refuse `folder` if the run in it was not made with what is asked for now.

    Args:
        recipe: the config's class; fields that it gained since the run began stand at their default in it.
        may_differ: fields that are not compared, whole ("nesting") or in part ("budget.steps").

    Raises:
        SettingsError: it names both values of each field that differs, or says that the run names none.
    """
    if not (folder / RUN_FILE).exists():
        raise SettingsError(f"{folder} holds a run that does not say what it was made with: no {RUN_FILE}.")
    defaults = {"config": json.loads(json.dumps(asdict(recipe())))}
    made, wanted = flat(defaults) | flat(read_json(folder / RUN_FILE)), flat(asked)
    different = [
        key
        for key in sorted(made.keys() | wanted.keys())
        if made.get(key) != wanted.get(key)
        and key not in may_differ
        and _name(key).split(".")[0] not in may_differ
    ]
    if different:
        made_with, now = (
            ", ".join(f"{_name(key)} {values.get(key)}" for key in different) for values in (made, wanted)
        )
        raise SettingsError(f"{folder} holds a run with {made_with}; now asked for: {now}.")


def write_run(folder: Path, asked: Mapping[str, Any]) -> None:
    """Put down what is asked for, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_FILE, asked)


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    entries: dict[str, Any] = {}
    for key, value in nested.items():
        entries |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return entries


def _name(key: str) -> str:
    """A field as a reader knows it."""
    return key.removeprefix("config.")
