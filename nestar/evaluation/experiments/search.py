"""A member's own best settings: a small search, one axis after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nestar.evaluation.experiments.findings import clearly_more, share_error
from nestar.sampler import SolverSettings
from nestar.settings import SCHEDULES

CFGS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TEMPERATURES = (1.0, 1.15, 1.3)

Axes = Mapping[str, Sequence[Mapping[str, Any]]]
"""By name what an axis tries: the fields that each of its points sets."""


SLACK = 0.02
"""How much lower precision and recall may be than where a search began, in what it finds, or a standard error
of the difference: FID alone also rewards a solver that leaves noise, and hot noise without guidance."""

KEPT = ("precision", "recall")
"""Figures that settings of less FID may not pay with, see `as_good`."""


def as_good(row: Mapping[str, Any], start: Mapping[str, Any]) -> bool:
    """Whether a row's precision and recall are no lower than the start's, see SLACK."""
    return all(
        row[name] >= start[name] - max(SLACK, share_error(start[name], start["samples"])) for name in KEPT
    )


def pays(row: Mapping[str, Any], start: Mapping[str, Any]) -> bool:
    """Whether a row has less precision or recall than the start by more than chance may make: what a finalist
    must not, however low its FID."""
    return any(clearly_more(start, row, name) is True for name in KEPT)


def search_axes(start: SolverSettings) -> Axes:
    """What the search tries, in this order. The solver last: Euler's method with as many network passes as
    the start, and with twice as many."""
    calls = start.calls
    return {
        "cfg": [{"cfg": cfg} for cfg in CFGS],
        "temperature": [{"temperature": temperature} for temperature in TEMPERATURES],
        "schedule": [{"schedule": schedule} for schedule in SCHEDULES],
        "solver": [
            {"solver": start.solver, "steps": start.steps},
            {"solver": "euler", "steps": calls},
            {"solver": "euler", "steps": 2 * calls},
        ],
    }


def search_rows(axes: Axes) -> int:
    """Settings that a search scores at most: the best of an axis is one of the next."""
    return 1 + sum(len(values) - 1 for values in axes.values())


def coordinate_search(
    score: Callable[[SolverSettings], float],
    start: SolverSettings,
    axes: Axes,
    same: Callable[[SolverSettings], SolverSettings] = lambda settings: settings,
) -> SolverSettings:
    """The settings of least score found when each axis in turn is tried with the others at their best so far.

    Args:
        score: asked once for any settings; ties go to the ones tried first.
        start: where the search begins; its values should be among those of `axes`.
        same: settings that sample alike, as one of them (`effective`).
    """
    scores: dict[SolverSettings, float] = {}
    best = same(start)
    for points in axes.values():
        tried = dict.fromkeys([best, *(same(replace(best, **point)) for point in points)])
        for settings in tried:
            if settings not in scores:
                scores[settings] = score(settings)
        best = min(tried, key=scores.__getitem__)
    return best


def effective(settings: SolverSettings, evaluations: int) -> SolverSettings:
    """The same sampler under one name: without guidance, or with a single patch, a schedule does nothing."""
    idle = not settings.guided or evaluations == 1
    return replace(settings, schedule="constant") if idle else settings
