"""Module independence: modules trained alone, together from the start, or alone and then together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from nestar import plots
from nestar.evaluation.experiments.arms import Arm, steps_of, trained
from nestar.evaluation.experiments.coordination import align, check_neighbours
from nestar.evaluation.experiments.findings import clearly_less, known, minus, pick
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.study import Experiment, Study, arms_note
from nestar.settings import SettingsError

COMPARED = ("fid", "precision", "recall", "class_accuracy", "seams")
ALONE, TOGETHER, LATER = "alone", "together", "alone-then-together"


def measure(study: Study) -> None:
    check_neighbours(study)
    if not study.options.base.coordination:
        raise SettingsError("The recipe has lambda = 0: there is no training together to compare with.")
    arms = trained(study, independence_arms(study))
    study.design |= {
        "alone": "lambda = 0, at which every module trains exactly as if the others were not there",
        "alone-then-together": f"lambda = 0 for {steps_of(study) // 2} of {steps_of(study)} steps: it then "
        "acts while the learning rate falls",
        "lambda": study.options.base.coordination,
    }
    study.expect(len(arms))
    align(study, arms)
    study.compare_at_best({name: done.model for name, done in arms.items()})


def independence_arms(study: Study) -> list[Arm]:
    base = study.options.base
    return [
        Arm(ALONE, "alone", replace(base, coordination=0.0)),
        Arm(TOGETHER, "together", base),
        Arm(LATER, "alone, then together", replace(base, coordination_from=steps_of(study) // 2)),
    ]


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    finals = {row["member"]: row for row in pick(rows, part="final")}
    aligned = pick(rows, part="alignment")
    found: dict[str, Any] = {
        "fid": {name: row["fid"] for name, row in finals.items()},
        "mean_difference_of_neighbours": {
            arm["arm"]: sum(row["difference"] for row in own) / len(own)
            for arm in arms
            if (own := pick(aligned, member=arm["arm"]))
        },
        "held_out": {arm["arm"]: arm["held_out"] for arm in arms},
    }
    for name in (TOGETHER, LATER):
        if {name, ALONE} <= finals.keys():
            words = name.replace("-", "_")
            found[f"{words}_better_than_alone"] = clearly_less(finals[name], finals[ALONE])
            found[f"{words}_minus_alone"] = minus(finals[name], finals[ALONE], COMPARED)
    return known(found)


def draw(report: Mapping[str, Any]) -> Figure | None:
    finals = {row["member"]: row for row in pick(report["rows"], part="final")}
    labels = {arm["arm"]: arm["label"] for arm in report["arms"]}
    if not finals:
        return None
    title = "Modules alone, together, alone and then together" + arms_note(report)
    panels = plots.new_figure(title, 2, columns=2)
    ceiling = report["ceilings"].get(str(report["final_samples"]), {}).get("reference")
    plots.bars(
        panels[0],
        [labels[name] for name in finals],
        [row["fid"] for row in finals.values()],
        x_label="FID (lower is better)",
        level=plots.Point("drawn pictures", ceiling["fid"], 0) if ceiling else None,
    )
    losses = {
        arm["label"]: [arm["held_out"][name] for name in sorted(arm["held_out"]) if "clean" in name]
        for arm in report["arms"]
    }
    modules = max(map(len, losses.values()))
    plots.lines(
        panels[1],
        [plots.Series(label, range(len(values)), values) for label, values in losses.items()],
        x_label="",
        y_label="held-out loss, clean context",
        ticks=[f"module {m + 1}" for m in range(modules)],
    )
    return panels[0].figure


EXPERIMENT = Experiment(
    name="independence",
    measure=measure,
    find=find,
    draw=draw,
    trains=True,
)
