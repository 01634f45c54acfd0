"""How pictures are best sampled: steps and solver, guidance and its schedule, temperature.

A star: one axis at a time around the defaults, on few samples; then, on many, the best of each axis alone and
together, and what reached the most recall. The best is of least FID among what keeps precision and recall.
`least_fid` is the least of up to nine finalists on one set of samples: by chance alone it lies below what its
settings reach on others, and "clearly" reckons with two rows, not with nine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from matplotlib.figure import Figure

from nestar import plots
from nestar.evaluation.experiments.findings import clearly_less, fid_falls, known, lowest, minus, pick
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.search import CFGS, SLACK, as_good, effective
from nestar.evaluation.experiments.study import Experiment, Study
from nestar.sampler import SolverSettings
from nestar.settings import SCHEDULES, SOLVER_CALLS

CALLS = (5, 10, 25, 50)
"""Velocity calls per patch, which is what a solver costs; second-order solvers take half as many steps."""

TEMPERATURES = (0.8, 1.0, 1.1, 1.2, 1.3, 1.4)
TOLERANCE = 0.02
"""The quick finalist's calls are the fewest of a FID within this share of the best solver's."""

COSTS = ("precision", "recall", "class_accuracy", "inception_score", "seams", "function_evaluations")


def solver_axis(centre: SolverSettings) -> list[SolverSettings]:
    """Every solver at every number of calls, the centre's among them, never more of them than asked for."""
    return [
        replace(centre, solver=solver, steps=max(1, calls // SOLVER_CALLS[solver]))
        for solver in SOLVER_CALLS
        for calls in sorted({*CALLS, centre.calls})
    ]


def guidance_axis(centre: SolverSettings) -> list[SolverSettings]:
    """Every strength with every schedule; without guidance there is but one."""
    return [
        replace(centre, cfg=cfg, schedule=schedule)
        for schedule in SCHEDULES
        for cfg in sorted({*CFGS, centre.cfg})
        if cfg != 1 or schedule == SCHEDULES[0]
    ]


def temperature_axis(centre: SolverSettings) -> list[SolverSettings]:
    return [
        replace(centre, temperature=temperature)
        for temperature in sorted({*TEMPERATURES, centre.temperature})
    ]


AXES = {"solver": solver_axis, "guidance": guidance_axis, "temperature": temperature_axis}
FIELDS = {"solver": ("solver", "steps"), "guidance": ("cfg", "schedule"), "temperature": ("temperature",)}
"""The settings that each axis moves."""


def measure(study: Study) -> None:
    member = study.options.nesting
    model = study.members([member])[member]
    patches = model.config.nesting.evaluations
    centre = effective(study.options.settings, patches)
    axes = {
        axis: list(dict.fromkeys(effective(point, patches) for point in points(centre)))
        for axis, points in AXES.items()
    }
    study.design |= {
        "design": "star: one axis at a time around the defaults, then the best of each alone and together",
        "member": member,
        "defaults": asdict(centre),
        "axes": {axis: [_moved(axis, point) for point in points] for axis, points in axes.items()},
        "quick_within": TOLERANCE,
        "precision_and_recall_kept_within": SLACK,
    }
    study.expect(sum(map(len, axes.values())) + len(AXES) + 6)
    for axis, points in axes.items():
        for settings in points:
            study.probe("star", member, model, settings, axis=axis, calls=settings.calls)
    study.finals(member, model, finalists(study.rows, centre))


def finalists(rows: list[Row], centre: SolverSettings) -> dict[str, SolverSettings]:
    """The defaults; the best of each axis, all of them together, and the same with few calls; what has the
    least FID of all, whatever that costs; what has the most recall; and the most precision at no less recall.
    """
    star = pick(rows, part="star")
    best = {axis: lowest(kept(rows, axis, centre)) for axis in AXES}
    varied = max(star, key=lambda row: row["recall"])
    start = next(row for row in star if row["settings"] == asdict(centre))
    precise = max((row for row in star if as_good(row, start)), key=lambda row: row["precision"])
    return {
        "defaults": centre,
        **{f"best {axis}": SolverSettings(**row["settings"]) for axis, row in best.items() if row},
        "least FID": SolverSettings(**lowest(star)["settings"]),
        "most recall": SolverSettings(**varied["settings"]),
        "most precision, recall kept": SolverSettings(**precise["settings"]),
        "best of all axes": _take(centre, best),
        "the same, quick": _take(centre, best | {"solver": quick(rows, centre)}),
    }


def kept(rows: list[Row], axis: str, centre: SolverSettings) -> list[Row]:
    """Rows of an axis that are `as_good` as the centre, which is one of them."""
    own = pick(rows, part="star", axis=axis)
    start = next(row for row in own if row["settings"] == asdict(centre))
    return [row for row in own if as_good(row, start)]


def quick(rows: list[Row], centre: SolverSettings) -> Row | None:
    """The fewest calls whose FID is that of the best solver within TOLERANCE."""
    solver = kept(rows, "solver", centre)
    bound = lowest(solver)["fid"] * (1 + TOLERANCE)
    return lowest([row for row in solver if row["fid"] <= bound], "calls")


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    star, finals = pick(rows, part="star"), pick(rows, part="final")
    least = {axis: lowest(pick(star, axis=axis)) for axis in AXES}
    solver = pick(star, axis="solver")
    by_solver = {
        name: sorted((row for row in solver if _is(row, solver=name)), key=lambda row: row["calls"])
        for name in SOLVER_CALLS
    }
    found = {
        "least_fid_of_axis": {
            axis: {name: row["settings"][name] for name in FIELDS[axis]} for axis, row in least.items() if row
        },
        "fid_falls_with_steps": known({name: fid_falls(own) for name, own in by_solver.items()}),
        "less_fid_than_euler_at_equal_calls": {
            name: _against_euler(own, by_solver["euler"])
            for name, own in by_solver.items()
            if name != "euler"
        },
    }
    default, winner = lowest(pick(finals, which="defaults")), lowest(finals)
    if default:
        guidance = pick(star, axis="guidance")
        found["linear_schedule_better_than_constant"] = _linear(guidance, default["settings"])
    if default and winner and len(finals) > 1:
        level = [row for row in finals if as_good(row, default)]
        best = lowest(level)
        cheapest = lowest(
            (row for row in level if clearly_less(best, row) is not True), "function_evaluations"
        )
        found |= {
            "least_fid_at": winner["settings"],
            "fid_of_defaults": default["fid"],
            "least_fid": winner["fid"],
            "least_fid_minus_defaults": minus(winner, default, COSTS),
            "least_fid_with_precision_and_recall_kept_at": best["settings"],
            "defaults_clearly_bettered": clearly_less(best, default),
            "cheapest_that_is_not_clearly_worse": cheapest["settings"],
        }
    return known(found)


def draw(report: Mapping[str, Any]) -> Figure | None:
    star = pick(report["rows"], part="star")
    if not star:
        return None
    panels = plots.new_figure("What each sampler setting does to FID, one at a time", 3)
    solver, guidance = pick(star, axis="solver"), pick(star, axis="guidance")
    plots.lines(
        panels[0],
        [_series(name, [row for row in solver if _is(row, solver=name)], "calls") for name in SOLVER_CALLS],
        x_label="network calls per patch",
        y_label="FID (lower is better)",
        title="solver",
        log_x=True,
    )
    without = [row for row in guidance if _is(row, cfg=1.0)]
    plots.lines(
        panels[1],
        [
            _series(
                name, without + [row for row in guidance if _is(row, schedule=name) and row not in without]
            )
            for name in SCHEDULES
        ],
        x_label="guidance (CFG)",
        y_label="",
        title="guidance and its schedule",
    )
    plots.lines(
        panels[2],
        [_series("", pick(star, axis="temperature"), "temperature")],
        x_label="temperature",
        y_label="",
        title="temperature of the noise",
        named=False,
    )
    return panels[0].figure


def _series(label: str, rows: list[Row], x: str = "cfg") -> plots.Series:
    xs = [row.get(x, row["settings"].get(x)) for row in rows]
    return plots.Series(label, xs, [row["fid"] for row in rows])


def _is(row: Row, **settings: Any) -> bool:
    return all(row["settings"][name] == value for name, value in settings.items())


def _moved(axis: str, settings: SolverSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in FIELDS[axis]}


def _take(centre: SolverSettings, best: Mapping[str, Row | None]) -> SolverSettings:
    """The centre with each axis where its best row has it."""
    moved = {
        name: row["settings"][name] for axis, row in best.items() if row is not None for name in FIELDS[axis]
    }
    return replace(centre, **moved)


def _against_euler(rows: list[Row], euler: list[Row]) -> dict[str, bool | str]:
    """By calls per patch: whether a solver beats Euler there; only where the calls are the same."""
    at = {row["calls"]: row for row in euler}
    return {str(row["calls"]): clearly_less(row, at[row["calls"]]) for row in rows if row["calls"] in at}


def _linear(guidance: list[Row], centre: Mapping[str, Any]) -> bool | str | None:
    """Whether the best strength of the linear schedule beats the best of the constant one, of those as good
    as the centre; a schedule that has none such is beaten by one that has. None where but one was tried."""
    start = next((row for row in guidance if row["settings"] == centre), None)
    tried = [
        [row for row in guidance if _is(row, schedule=name) and not _is(row, cfg=1.0)]
        for name in ("linear", "constant")
    ]
    if start is None or not all(tried):
        return None
    linear, constant = (lowest(row for row in rows if as_good(row, start)) for rows in tried)
    if linear and constant:
        return clearly_less(linear, constant)
    return linear is not None if linear or constant else None


EXPERIMENT = Experiment(
    name="sampler",
    measure=measure,
    find=find,
    draw=draw,
    single=True,
)
