"""Finished rows of experiments, kept in files so that none is measured twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nestar.files import append_line

Row = dict[str, Any]
SUFFIX = ".partial.jsonl"


class Rows:
    """Rows under the keys that decide them, appended to `<name>.partial.jsonl` as they are finished.

    A key says all that a row depends on (weights, settings, samples, seed), so that the rows of all
    experiments in one folder are shared: what one has measured the next one reads.
    """

    def __init__(self, folder: Path, name: str):
        self.file = folder / f"{name}{SUFFIX}"
        self._rows: dict[str, Row] = {}
        for file in sorted(folder.glob(f"*{SUFFIX}")):
            self._rows |= _read(file)

    def get(self, key: Mapping[str, Any]) -> Row | None:
        """The row of this key, if it is finished."""
        return self._rows.get(_canonical(key))

    def once(self, key: Mapping[str, Any], compute: Callable[[], Row]) -> Row:
        """The row of this key, computed and kept if there is none yet."""
        row = self.get(key)
        if row is None:
            row = rounded(compute())
            self._append(key, row)
        return row

    def _append(self, key: Mapping[str, Any], row: Row) -> None:
        append_line(self.file, {"key": key, "row": row}, allow_nan=False)
        self._rows[_canonical(key)] = row


def _read(file: Path) -> dict[str, Row]:
    """Whole lines of a file; a torn one is measured again."""
    rows: dict[str, Row] = {}
    for line in file.read_text().splitlines():
        try:
            stored = json.loads(line)
            rows[_canonical(stored["key"])] = stored["row"]
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def rounded(value: Any) -> Any:
    """JSON values with floats to six significant digits; infinities and NaN, which JSON has not, as None."""
    if isinstance(value, Mapping):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
