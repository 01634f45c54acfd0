"""Modules: which of them loses what separates samples from drawn pictures.

The first modules' tokens are taken from drawn pictures, those of one module more each time, and the rest is
sampled. What is missing then, the sampled modules have lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from operator import itemgetter
from typing import Any

from matplotlib.figure import Figure

from nestar import plots
from nestar.evaluation.experiments.findings import CLOSE, pick, share_noise
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.study import Experiment, Study, label_of

NAMES = ("k4-lattice", "k2-lattice", "k8-lattice")
FIGURES = {"fid": "FID (lower is better)", "precision": "precision", "recall": "recall"}


def measure(study: Study) -> None:
    """A row a member and number of given modules, none to all; with all given only the tokenizer is left."""
    names = [name for name in NAMES if name in study.pipeline.models] or NAMES
    # Of each the best weights there are: no member is held against another.
    models = {name: study.members([name])[name] for name in names}
    study.missing = [name for name in NAMES if name not in models]
    study.design["given"] = (
        "modules, from the first on, whose tokens are those of drawn pictures that are no reference; with "
        "all given, what decoded references reach"
    )
    study.expect(sum(model.config.nesting.modules + 1 for model in models.values()))
    for name, model in models.items():
        nesting = model.config.nesting
        for given in range(nesting.modules):
            tokens = nesting.scales[given - 1].tokens if given else 0
            study.final(
                name,
                model,
                study.options.settings,
                given=given,
                which=f"with {given} of {nesting.modules} modules given",
                modules_given=given,
                tokens_given=tokens,
                label=label_of(name, nesting),
            )
        rebuilt = study.ceilings(study.options.final_samples)["reconstruction"]
        labels = {"modules_given": nesting.modules, "tokens_given": nesting.n}
        study.rows.append({"part": "all given", "member": name, **labels, **rebuilt})
        study.bar.update()


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in NAMES:
        own = pick(rows, member=name)
        if not own or own[-1]["part"] != "all given":
            continue
        lost = {
            f"module_{after['modules_given']}": after["recall"] - before["recall"]
            for before, after in pairwise(own)
        }
        found |= {
            f"{name}_fid_by_modules_given": {str(row["modules_given"]): row["fid"] for row in own},
            f"{name}_recall_lost_by": lost,
            f"{name}_recall_is_lost_most_by": _clearly_most(lost, own),
        }
    return found


def _clearly_most(lost: Mapping[str, float], rows: list[Row]) -> str:
    """The module that loses most, if by clearly more than the next. What a module loses is a difference of
    two recalls, one of which a neighbour's loss has, too, the other way round."""
    most, next_ = sorted(lost, key=lambda name: -lost[name])[:2]
    names = list(lost)
    neighbours = abs(names.index(most) - names.index(next_)) == 1
    factors = (1, -2, 1) if neighbours else (1, -1, -1, 1)
    chance = max(share_noise(row["recall"], row["samples"], factors) for row in rows if "samples" in row)
    return most if lost[most] - lost[next_] > chance else CLOSE


def draw(report: Mapping[str, Any]) -> Figure | None:
    finals = pick(report["rows"], part="final")
    if not finals:
        return None
    rows = [*finals, *pick(report["rows"], part="all given")]
    places = sorted({row["tokens_given"] for row in rows})
    labels = {row["member"]: row["label"] for row in sorted(finals, key=itemgetter("label"))}
    panels = plots.new_figure("Tokens of the first modules taken from drawn pictures, the rest sampled", 3)
    for panel, (figure, words) in zip(panels, FIGURES.items(), strict=True):
        plots.lines(
            panel,
            [
                plots.Series(
                    label,
                    [places.index(row["tokens_given"]) for row in pick(rows, member=name)],
                    [row[figure] for row in pick(rows, member=name)],
                )
                for name, label in labels.items()
            ],
            x_label="tokens given",
            y_label="",
            title=words,
            ticks=[str(place) if place else "none" for place in places],
            named=panel is panels[-1],
        )
    return panels[0].figure


EXPERIMENT = Experiment(
    name="modules",
    measure=measure,
    find=find,
    draw=draw,
    searches=False,
)
