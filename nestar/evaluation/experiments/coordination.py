"""Coordination: what lambda does to the velocities of neighbouring modules and to the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from nestar import plots
from nestar.data.pools import held_out_tokens
from nestar.evaluation.experiments.alignment import TIMES, velocity_alignment
from nestar.evaluation.experiments.arms import Arm, Trained, trained
from nestar.evaluation.experiments.findings import (
    SHARES,
    by_member,
    clearly_least,
    clearly_less,
    clearly_more,
    falls,
    fid_falls,
    known,
    pick,
)
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.study import Experiment, Study, arms_note
from nestar.settings import SettingsError
from nestar.training.nesting import NestingTrainConfig

LAMBDAS = (0.0, 0.01, 0.1, 1.0)
OTHER_LAMBDA = 0.1
OTHER_TOKENS = {
    "all-detached": "all, detached",
    "all": "all (biased)",
}
"""Two further readings of the paper, at OTHER_LAMBDA: all shared tokens are compared."""

HELD_OUT = 512
"""Pictures on which alignment is measured."""


def measure(study: Study) -> None:
    check_neighbours(study)
    arms = trained(study, coordination_arms(study.options.base))
    study.design |= {
        "alignment": "mean squared difference and cosine of neighbouring modules' velocities on the former's "
        "last patch, same held-out latents and noise for all",
        "held_out": HELD_OUT,
        "times": list(TIMES),
        "biased": "all: modules that saw different tokens are pulled together, off their true velocities; "
        "measured on the tokens before the former's last patch, where they saw different ones",
    }
    study.expect(len(arms))
    align(study, arms)
    study.compare_at_best({name: done.model for name, done in arms.items()})


def coordination_arms(base: NestingTrainConfig) -> list[Arm]:
    """Lambda in our reading, and two more readings."""
    ours = [
        Arm(f"lambda-{weight:g}", f"λ = {weight:g}", replace(base, coordination=weight)) for weight in LAMBDAS
    ]
    others = [
        Arm(
            f"{tokens}-{OTHER_LAMBDA:g}",
            f"λ = {OTHER_LAMBDA:g}, {label}",
            replace(base, coordination=OTHER_LAMBDA, coordination_tokens=tokens),
        )
        for tokens, label in OTHER_TOKENS.items()
    ]
    return [*ours, *others]


def check_neighbours(study: Study) -> None:
    """Raises SettingsError if the recipe's nesting is one module."""
    nesting = study.options.base.nesting
    if nesting.modules < 2:
        raise SettingsError(f"The recipe's nesting {nesting.name} is one module: there are no neighbours.")


def align(study: Study, arms: Mapping[str, Trained]) -> None:
    """Alignment rows of every arm, on the same pictures and noise."""
    tokens = None
    for name, done in arms.items():
        key = {"alignment": study.print_of(done.model), "held_out": HELD_OUT, "times": list(TIMES)}

        def aligned(done: Trained = done) -> Row:
            nonlocal tokens
            if tokens is None:
                tokens = held_out_tokens(study.pipeline.tokenizer, done.arm.config.nesting, HELD_OUT)
            return {"rows": velocity_alignment(done.model, *tokens)}

        rows = study.once(f"the velocities of {name} were compared", key, aligned)["rows"]
        study.rows += [{"part": "alignment", "member": name, **row} for row in rows]
        study.bar.update()


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    finals, aligned = pick(rows, part="final"), pick(rows, part="alignment")
    ours = [f"lambda-{weight:g}" for weight in LAMBDAS]
    final = {row["member"]: row for row in finals}
    fid = by_member(finals, "fid")
    whole = set(ours) <= fid.keys()
    pairs = sorted({row["pair"] for row in aligned})
    apart = {
        arm["arm"]: {
            str(pair): _mean(pick(aligned, member=arm["arm"], pair=pair), "difference") for pair in pairs
        }
        for arm in arms
        if pick(aligned, member=arm["arm"])
    }
    found = {
        "fid": fid,
        "coordination_lowers_fid": {name: clearly_less(final[name], final[ours[0]]) for name in ours[1:]}
        if whole
        else None,
        **{
            f"coordination_costs_{share}": {
                name: clearly_more(final[ours[0]], final[name], share) for name in ours[1:]
            }
            for share in ("class_accuracy", *SHARES)
            if whole and all(share in final[name] for name in ours)
        },
        "fid_falls_with_lambda": fid_falls([final[name] for name in ours]) if whole else None,
        "mean_difference_of_pair": apart,
        "difference_falls_with_lambda": {
            str(pair): falls([apart[name][str(pair)] for name in ours])
            for pair in pairs
            if set(ours) <= apart.keys()
        },
        "best_arm_by_fid": clearly_least(finals),
    }
    last = f"lambda-{OTHER_LAMBDA:g}"
    for tokens in OTHER_TOKENS:
        name = f"{tokens}-{OTHER_LAMBDA:g}"
        if {name, last} <= fid.keys():
            found[f"fid_of_{name}_minus_{last}"] = fid[name] - fid[last]
        if {name, last} <= apart.keys():
            found[f"error_of_{name}_minus_{last}"] = {
                module: _mean(pick(aligned, member=name), module) - _mean(pick(aligned, member=last), module)
                for module in ("error_former_before", "error_latter_before")
            }
    return known(found)


def draw(report: Mapping[str, Any]) -> Figure | None:
    aligned = pick(report["rows"], part="alignment")
    if not aligned:
        return None
    fid = {row["member"]: row["fid"] for row in pick(report["rows"], part="final")}
    pairs = sorted({row["pair"] for row in aligned})
    labels = {
        arm["arm"]: arm["label"] + (f", FID {fid[arm['arm']]:.1f}" if arm["arm"] in fid else "")
        for arm in report["arms"]
    }
    title = "Neighbours' velocities on the patch both know" + arms_note(report)
    panels = plots.new_figure(title, len(pairs))
    for number, (panel, pair) in enumerate(zip(panels, pairs, strict=True)):
        series = [
            plots.Series(label, [row["t"] for row in own], [row["difference"] for row in own])
            for name, label in labels.items()
            if (own := pick(aligned, member=name, pair=pair))
        ]
        plots.lines(
            panel,
            series,
            x_label="time t (0 noise, 1 data)",
            y_label="mean squared difference" if number % 3 == 0 else "",
            title=f"modules {pair} and {pair + 1}",
            named=pair == pairs[-1],
        )
    return panels[0].figure


def _mean(rows: list[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


EXPERIMENT = Experiment(
    name="coordination",
    measure=measure,
    find=find,
    draw=draw,
    trains=True,
)
