"""Quality against latency over the nesting factor, with the two ends of the scale as baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from nestar import plots
from nestar.evaluation.experiments.findings import (
    CLOSE,
    SHARES,
    by_member,
    clearly_least,
    clearly_less,
    clearly_most,
    fid_falls,
    kept_the_start,
    known,
    lowest,
    pick,
    refused,
    rises,
)
from nestar.evaluation.experiments.latency import BATCH
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.study import Experiment, Study, label_of
from nestar.sampler import SolverSettings

NESTED = ("k2-lattice", "k4-lattice", "k8-lattice")
TOKEN_BY_TOKEN, ONE_SHOT, CELLS = "ar-raster", "one-shot", "cells4-blocks"
MEMBERS = (*NESTED, TOKEN_BY_TOKEN, ONE_SHOT, CELLS)
"""k = 2, 4, 8; k = n, which is plain autoregression, in the raster order that it is known in; no
autoregression at all; and xAR's cells, which are that of four patches by one module."""


SPOKEN = {TOKEN_BY_TOKEN: "autoregression", ONE_SHOT: "one_shot", CELLS: "cells"}
"""What findings call the baselines."""


def measure(study: Study) -> None:
    models = study.members(MEMBERS)
    best = study.compare_at_best(models)
    contenders = {name: (model, best[name]) for name, model in models.items()}
    labels = {name: label_of(name, model.config.nesting) for name, model in models.items()}
    if TOKEN_BY_TOKEN in models:
        labels[TOKEN_BY_TOKEN] += f" (k = {models[TOKEN_BY_TOKEN].config.nesting.n}, raster)"
    if ONE_SHOT in models:
        for settings in other_calls(best[ONE_SHOT], study.options.settings):
            calls = f", {settings.calls} calls"
            name = f"{ONE_SHOT}{calls}"
            study.expect(1)
            study.final(name, models[ONE_SHOT], settings)
            contenders[name] = (models[ONE_SHOT], settings)
            labels[name] = f"{labels[ONE_SHOT]}{calls}"
        labels[ONE_SHOT] += f", {best[ONE_SHOT].calls} calls"
    study.design["latency"] = (
        f"medians, pictures made one at a time and {BATCH} at a time, decoded, members in turns in one run, "
        "at each one's own best settings: without guidance (cfg 1) a network pass has half the rows"
    )
    study.design["labels"] = labels
    study.time(contenders)


def other_calls(best: SolverSettings, start: SolverSettings) -> list[SolverSettings]:
    """One-shot flow has a single patch and a single time, which the search for the least FID does not see:
    its best settings with the start's solver and steps, and with twice these, where they are others."""
    usual = replace(best, solver=start.solver, steps=start.steps)
    return [each for each in (usual, replace(usual, steps=2 * usual.steps)) if each.calls != best.calls]


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    finals, timed = pick(rows, part="final"), pick(rows, part="latency")
    fid, single = by_member(finals, "fid"), by_member(timed, "seconds_per_picture")
    many = by_member(timed, "pictures_per_second")
    nested = [name for name in NESTED if name in fid]  # in the order of k, as their rows
    ours, baselines = ([row for row in finals if (row["member"] in nested) is own] for own in (True, False))
    members = [row for row in finals if row["member"] in MEMBERS]
    best = lowest(ours)
    found = {
        "fid": fid,
        "best_fid": clearly_least(members),
        "best_nested": clearly_least(ours),
        **{f"most_{share}": clearly_most(members, share) for share in SHARES},
        "fid_of_best_nested_minus": (
            {row["member"]: best["fid"] - row["fid"] for row in baselines} if best else None
        ),
        "best_nested_no_worse_than_baselines": _no_worse(best, baselines) if best and baselines else None,
        "fid_falls_with_k": fid_falls(ours),
        "search_found_none_better": kept_the_start(rows),
        "found_and_refused": refused(rows),
        "seconds_rise_with_k": rises([single[name] for name in nested if name in single]),
        "fastest_one_at_a_time": _first(single),
        "fastest_at_a_batch": _first({name: 1 / rate for name, rate in many.items()}),
    }
    for other in single:
        if other in nested:
            continue
        words = other.replace(", ", "_at_").replace(" ", "_")
        for name, spoken in SPOKEN.items():
            words = words.replace(name, spoken)
        found[f"speed_up_over_{words}_one_at_a_time"] = {
            name: single[other] / single[name] for name in nested if name in single
        }
        found[f"speed_up_over_{words}_at_a_batch"] = {
            name: many[name] / many[other] for name in nested if name in many
        }
    return known(found)


def _no_worse(row: Row, others: Sequence[Row]) -> bool | str:
    """Whether none of the others has less FID than a row, as far as chance lets one say."""
    less = [clearly_less(other, row) for other in others if other["fid"] < row["fid"]]
    return not less or (False if True in less else CLOSE)


def _first(values: Mapping[str, float]) -> str | None:
    """The member of least value; none where there is nothing to compare with."""
    return min(values, key=values.__getitem__) if len(values) > 1 else None


def draw(report: Mapping[str, Any]) -> Figure | None:
    finals, timed = pick(report["rows"], part="final"), pick(report["rows"], part="latency")
    labels = report["settings"].get("labels", {})
    figures = [name for name in ("fid", "inception_score") if by_member(finals, name)]
    if not timed or not figures:
        return None
    single = by_member(timed, "seconds_per_picture")
    together = {name: 1 / rate for name, rate in by_member(timed, "pictures_per_second").items()}
    words = {"fid": "FID (lower is better)", "inception_score": "inception score (higher is better)"}
    panels = plots.new_figure(
        "Quality against time, each member at the settings its search kept", 2 * len(figures), columns=2
    )
    places = iter(panels)
    for figure in figures:
        values = by_member(finals, figure)
        for title, seconds in (("one picture at a time", single), (f"{BATCH} at a time", together)):
            plots.points(
                next(places),
                [plots.Point(labels.get(name, name), seconds[name], values[name]) for name in seconds],
                x_label="seconds per picture",
                y_label=words[figure],
                title=title,
                log_x=True,
            )
    return panels[0].figure


EXPERIMENT = Experiment(
    name="scaling",
    measure=measure,
    find=find,
    draw=draw,
)
