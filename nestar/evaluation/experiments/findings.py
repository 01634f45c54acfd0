"""Small steps from rows to statements; what is not measured yet gives None."""

from __future__ import annotations

import math
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


FID_ERROR = 0.4
"""Standard error of a FID, as a share of it, times the fourth root of the samples, at most; measured by
`python -m benchmarks.noise`, as the next. The error falls with their square root; but FID falls, too."""

SHARE_ERROR = 1.5
"""How many times as much as independent draws recall scatters: a sample covers several real pictures."""

SHARES = ("precision", "recall")
"""Figures that are shares of pictures."""

STANDARD_ERRORS = 2.0
"""So many of a difference are put down to chance."""

CLOSE = "too close to say"


def fid_noise(samples: int) -> float:
    """Share by which two FIDs of so many samples each may differ by chance."""
    return STANDARD_ERRORS * FID_ERROR * 2**0.5 / samples**0.25


DIFFERENCE = (1, -1)
"""What a difference takes each of its shares times."""


def share_error(share: float, samples: int, factors: Sequence[float] = DIFFERENCE) -> float:
    """Standard error of shares of so many pictures each, all near `share`, taken times these factors and
    added up, if they were independent draws."""
    return (sum(factor**2 for factor in factors) * share * (1 - share) / samples) ** 0.5


def share_noise(share: float, samples: int, factors: Sequence[float] = DIFFERENCE) -> float:
    """By how much precisions or recalls of so many samples each, near `share`, taken times these factors and
    added up, may stray from 0 by chance."""
    return STANDARD_ERRORS * SHARE_ERROR * share_error(share, samples, factors)


def clearly_less(one: Row, other: Row) -> bool | str:
    """Whether a row's FID is less than another's, where chance does not forbid to say so. Rows that were
    measured on as many samples can be compared."""
    fids = one["fid"], other["fid"]
    usual = math.hypot(*fids) / 2**0.5  # each has an error in proportion to itself
    if abs(fids[0] - fids[1]) <= fid_noise(min(one["samples"], other["samples"])) * usual:
        return CLOSE
    return fids[0] < fids[1]


def clearly_more(one: Row, other: Row, share: str) -> bool | str:
    """Whether a row's precision, recall or class accuracy is more than another's, where chance lets one say
    so."""
    shares = one[share], other[share]
    chance = share_noise(sum(shares) / 2, min(one["samples"], other["samples"]))
    if share == "class_accuracy":  # of samples that are recognised or not, each by itself
        chance /= SHARE_ERROR
    if abs(shares[0] - shares[1]) <= chance:
        return CLOSE
    return shares[0] > shares[1]


def clearly_most(rows: Sequence[Row], share: str) -> str | None:
    """The member of the row of most precision or recall, where chance does not forbid to say so; None of
    fewer than two that were measured."""
    rows = [row for row in rows if share in row]
    if len(rows) < 2:
        return None
    best, second = sorted(rows, key=lambda row: row[share], reverse=True)[:2]
    return best["member"] if clearly_more(best, second, share) is True else CLOSE


def clearly_least(rows: Sequence[Row]) -> str | None:
    """The member of the row of least FID, where chance does not forbid to say so; None of fewer than two."""
    if len(rows) < 2:
        return None
    best, second = sorted(rows, key=lambda row: row["fid"])[:2]
    return best["member"] if clearly_less(best, second) is True else CLOSE


def falls(values: Sequence[float]) -> bool | None:
    """Whether values go down and never up; None of fewer than two."""
    if len(values) < 2:
        return None
    return values[-1] < values[0] and all(after <= before for before, after in pairwise(values))


def fid_falls(rows: Sequence[Row]) -> bool | str | None:
    """Whether FID goes down from the first row to the last, which has the least of all, and from none to the
    next clearly up; None of fewer than two."""
    if len(rows) < 2:
        return None
    if any(clearly_less(before, after) is True for before, after in pairwise(rows)):
        return False
    if lowest(rows) is not rows[-1]:
        return CLOSE
    return clearly_less(rows[-1], rows[0])


def rises(values: Sequence[float]) -> bool | None:
    """Whether values go up and never down; None of fewer than two."""
    return falls([-value for value in values])


def kept_the_start(rows: Iterable[Row]) -> list[str]:
    """Members of whose settings a search found none better than those that it began with."""
    rows = list(rows)
    searched, left, refused = (
        {row["member"] for row in pick(rows, part=part)} for part in ("search", "start", "refused")
    )
    return [row["member"] for row in pick(rows, part="final") if row["member"] in searched - left - refused]


def refused(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """What settings that a search found, and the finalists' samples refused, would change, by member."""
    rows = list(rows)
    final = {row["member"]: row for row in pick(rows, part="final")}
    return {
        row["member"]: minus(row, final[row["member"]], ("fid", *SHARES))
        for row in pick(rows, part="refused")
        if row["member"] in final
    }


def by_member(rows: Iterable[Row], figure: str) -> dict[str, float]:
    """A figure of each member's row."""
    return {row["member"]: row[figure] for row in rows if row.get(figure) is not None}


def known(statements: Mapping[str, Any]) -> dict[str, Any]:
    """The statements that have an answer."""
    return {name: value for name, value in statements.items() if value is not None and value != {}}
