"""Small steps from rows to statements; what is not measured yet gives None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from nestar.evaluation.experiments.rows import Row


def pick(rows: Iterable[Row], **labels: Any) -> list[Row]:
    """Rows that carry these labels."""
    return [row for row in rows if all(row.get(name) == value for name, value in labels.items())]


def lowest(rows: Iterable[Row], figure: str = "fid") -> Row | None:
    """The row of least `figure`; the first of equal ones."""
    return min((row for row in rows if row.get(figure) is not None), key=lambda r: r[figure], default=None)


def minus(one: Mapping[str, Any], other: Mapping[str, Any], figures: Sequence[str]) -> dict[str, float]:
    """How much more `one` has of each figure that both have."""
    return {
        name: one[name] - other[name]
        for name in figures
        if one.get(name) is not None and other.get(name) is not None
    }


SEEDS_APART = 0.2
"""Share by which FIDs may differ and mean nothing: 504 pictures of k = 4 had 13.5 to 16.1 on three seeds."""


def clearly_less(one: float, other: float) -> bool | str:
    """Whether a FID is less than another, where the noise of seeds does not forbid to say so."""
    if abs(one - other) <= SEEDS_APART * min(one, other):
        return "too close to say"
    return one < other


def clearly_least(fids: Mapping[str, float]) -> str | None:
    """The name of the least of several FIDs, where the noise of seeds does not forbid to say so."""
    if len(fids) < 2:
        return None
    (best, least), (_, second) = sorted(fids.items(), key=lambda pair: pair[1])[:2]
    return best if clearly_less(least, second) is True else "too close to say"


def falls(values: Sequence[float]) -> bool | None:
    """Whether values go down and never up; None of fewer than two."""
    if len(values) < 2:
        return None
    return values[-1] < values[0] and all(after <= before for before, after in pairwise(values))


def rises(values: Sequence[float]) -> bool | None:
    """Whether values go up and never down; None of fewer than two."""
    return falls([-value for value in values])


def by_member(rows: Iterable[Row], figure: str) -> dict[str, float]:
    """A figure of each member's row."""
    return {row["member"]: row[figure] for row in rows if row.get(figure) is not None}


def known(statements: Mapping[str, Any]) -> dict[str, Any]:
    """The statements that have an answer."""
    return {name: value for name, value in statements.items() if value is not None and value != {}}
