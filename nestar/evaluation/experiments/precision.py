"""Precision: what moves it, and what closes the gap to drawn pictures that the paper leaves on ImageNet.

One thing at a time around the defaults: guidance, its schedule, temperature, k, and, in arms trained for it,
how often a module's context is noised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from matplotlib.figure import Figure

from nestar import plots
from nestar.evaluation.experiments.arms import Arm, check, trained
from nestar.evaluation.experiments.findings import (
    CLOSE,
    SHARES,
    clearly_more,
    known,
    lowest,
    minus,
    pick,
    share_noise,
)
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.sampler import guidance_axis, temperature_axis
from nestar.evaluation.experiments.study import Experiment, Study, arms_note, label_of
from nestar.sampler import SolverSettings
from nestar.settings import SettingsError
from nestar.training.nesting import NestingTrainConfig

FAMILY = ("k2-lattice", "k4-lattice", "k8-lattice", "ar-raster", "one-shot")
NOISED_SHARES = (0.0, 0.2, 0.5, 1.0)
"""Shares of training rows whose context is noised; the recipe's own is 0.2."""

OTHER_MODELS = ("noise", "k")
"""Axes whose rows are other weights, arms or nestings: what precision moves along them is not a setting's."""

AXES = {
    "constant": "guidance, constant schedule",
    "linear": "guidance, linear schedule",
    "temperature": "temperature of the noise",
    "k": "nesting",
    "noise": "noised context",
}


def measure(study: Study) -> None:
    options, centre = study.options, study.options.settings
    study.design |= {
        "design": "one thing at a time around the defaults; arms of context noise only with each other",
        "member": options.nesting,
        "defaults": asdict(centre),
    }
    if options.base.nesting.evaluations == 1:
        raise SettingsError("The recipe's nesting is one patch: there is no context to be noised.")
    check(study, noise_arms(options.base))
    model = study.members([options.nesting])[options.nesting]
    family = study.members(FAMILY)
    points = sampling_points(centre)
    study.expect(len(points) + len(family) + 3)
    for axis, value, settings in points:
        study.probe("grid", options.nesting, model, settings, axis=axis, value=value)
    for name, other in family.items():
        study.probe("grid", name, other, centre, axis="k", value=label_of(name, other.config.nesting))
    study.finals(options.nesting, model, finalists(study))
    arms = trained(study, noise_arms(options.base))
    study.expect(len(arms))
    for (name, done), noised in zip(arms.items(), NOISED_SHARES, strict=True):
        study.probe("grid", name, done.model, centre, axis="noise", value=noised)


def sampling_points(centre: SolverSettings) -> list[tuple[str, float, SolverSettings]]:
    """Axis, value and settings of everything that needs no other weights."""
    guided = [(one.schedule, one.cfg, one) for one in guidance_axis(centre)]
    unguided = replace(centre, cfg=1.0)
    hot = [("temperature", one.temperature, one) for one in temperature_axis(centre)]
    return [*guided, ("linear", 1.0, unguided), *hot]


def noise_arms(base: NestingTrainConfig) -> list[Arm]:
    return [
        Arm(f"noised-{share:g}", f"{share:.0%} noised", replace(base, clean_share=1 - share))
        for share in NOISED_SHARES
    ]


def finalists(study: Study) -> dict[str, SolverSettings]:
    """The defaults, the most precise settings, and those nearest to the references in both figures."""
    grid = [row for row in pick(study.rows, part="grid") if row["axis"] != "k"]
    reference = study.ceilings(study.options.samples)["reference"]
    most = max(grid, key=lambda row: row["precision"])
    even = max(grid, key=lambda row: _balance(row, reference))
    return {
        "defaults": study.options.settings,
        "most precise": SolverSettings(**most["settings"]),
        "balanced": SolverSettings(**even["settings"]),
    }


def _balance(row: Row, reference: Mapping[str, float]) -> float:
    """The lesser of both shares of what references reach."""
    return min(row[name] / reference[name] if reference[name] else 0.0 for name in ("precision", "recall"))


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    grid, finals = pick(rows, part="grid"), pick(rows, part="final")
    axes = {axis: pick(grid, axis=axis) for axis in AXES}
    spans = {
        name: {axis: span(own, name) for axis, own in axes.items() if len(own) > 1}
        for name in ("precision", "recall")
    }
    default = lowest(pick(finals, which="defaults"))
    precise = lowest(pick(finals, which="most precise")) or default
    found = {
        "precision_span_of_axis": spans["precision"],
        "recall_span_of_axis": spans["recall"],
        "precision_moved_most_by": moved_most(axes),
        **{f"{share}_over_the_references": _over_the_references(finals, share) for share in SHARES},
    }
    if default and default.get("precision_of_reference") is not None:
        found |= {
            "precision_at_defaults": default["precision"],
            **{f"gap_in_{name}_at_defaults": _gap(default, name) for name in SHARES},
            "most_precise_settings": precise["settings"],
            "most_precise_minus_defaults": minus(precise, default, ("precision", "recall", "fid")),
        }
    return known(found)


def span(rows: list[Row], figure: str) -> float:
    """Between the least and the most that an axis has of a figure."""
    values = [row[figure] for row in rows]
    return max(values) - min(values)


def moved_most(axes: Mapping[str, list[Row]]) -> str | None:
    """The setting along which precision changes most, if by clearly more than along the next; other models
    stay out."""
    own = {axis: rows for axis, rows in axes.items() if len(rows) > 1 and axis not in OTHER_MODELS}
    if len(own) < 2:
        return None
    most, next_ = sorted(own, key=lambda axis: -span(own[axis], "precision"))[:2]
    least = min(own[most], key=lambda row: row["precision"])
    ahead = span(own[most], "precision") - span(own[next_], "precision")
    chance = share_noise(least["precision"], least["samples"], factors=(1, -1, -1, 1))
    return most if ahead > chance else CLOSE


def _over_the_references(finals: list[Row], share: str) -> dict[str, float]:
    """What each finalist has of the references' precision or recall."""
    key = f"{share}_of_reference"
    return {row["which"]: row[key] for row in finals if row.get(key) is not None}


def _gap(row: Row, share: str) -> bool | str:
    """Whether drawn pictures have clearly more of a share than a row has."""
    of_reference = row[f"{share}_of_reference"]
    if not of_reference:
        return True
    return clearly_more(row | {share: row[share] / of_reference}, row, share)


def draw(report: Mapping[str, Any]) -> Figure | None:
    axes = {axis: pick(report["rows"], part="grid", axis=axis) for axis in AXES}
    axes = {axis: sorted(rows, key=_place) for axis, rows in axes.items() if rows}
    if not axes:
        return None
    ceiling = report["ceilings"].get(str(report["samples"]), {}).get("reference")
    title = "What moves precision and recall"
    if "noise" in axes:
        title += f"; {AXES['noise']}{arms_note(report)}"
    panels = plots.new_figure(title, len(axes))
    for number, (panel, (axis, rows)) in enumerate(zip(panels, axes.items(), strict=True)):
        names = [row["value"] for row in rows] if axis == "k" else []
        xs = list(range(len(rows))) if names else [row["value"] for row in rows]
        plots.lines(
            panel,
            [plots.Series(name, xs, [row[name] for row in rows]) for name in ("precision", "recall")],
            x_label="share of training rows noised" if axis == "noise" else "",
            y_label="share of pictures" if number % 3 == 0 else "",
            title=AXES[axis],
            ticks=[name.replace("plain autoregression", "AR").replace(" flow", "") for name in names],
            named=number % 3 == min(len(axes), 3) - 1,  # elsewhere they part the panels
            level=plots.Point("drawn pictures", 0, ceiling["precision"]) if ceiling else None,
            y_range=(0, 1.05),
        )
    return panels[0].figure


def _place(row: Row) -> float:
    """Order along an axis; nestings stay as they are."""
    return 0.0 if row["axis"] == "k" else row["value"]


EXPERIMENT = Experiment(
    name="precision",
    measure=measure,
    find=find,
    draw=draw,
    trains=True,
    single=True,
)
