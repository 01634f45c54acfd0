"""Token order: does coarse to fine (lattice) or row by row (raster) make better pictures?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nestar import plots
from nestar.evaluation.experiments.findings import (
    SHARES,
    clearly_less,
    clearly_more,
    kept_the_start,
    known,
    lowest,
    minus,
    pick,
    refused,
)
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.study import Experiment, Study

LATTICE, RASTER = "k4-lattice", "k4-raster"
COMPARED = ("fid", "precision", "recall", "class_accuracy", "seams", "diversity", "vendi")
DRAWN = {"fid": "FID (lower is better)", "precision": "precision", "recall": "recall"}


def measure(study: Study) -> None:
    study.compare_at_best(study.members([LATTICE, RASTER]))


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    finals = pick(rows, part="final")
    lattice, raster = (lowest(pick(finals, member=name)) for name in (LATTICE, RASTER))
    if lattice is None or raster is None:
        return {}
    return known(
        {
            "lattice_has_less_fid": clearly_less(lattice, raster),
            **{
                f"lattice_has_more_{share}": clearly_more(lattice, raster, share)
                for share in SHARES
                if share in lattice
            },
            "lattice_minus_raster": minus(lattice, raster, COMPARED),
            "search_found_none_better": kept_the_start(rows),
            "found_and_refused": refused(rows),
            "best_settings": {row["member"]: row["settings"] for row in finals},
        }
    )


def draw(report: Mapping[str, Any]) -> Figure | None:
    finals = pick(report["rows"], part="final")
    if not finals:
        return None
    names = {LATTICE: "lattice", RASTER: "raster"}
    panels = plots.new_figure("Order of tokens at k = 4, each at the settings its search kept", len(DRAWN))
    ceiling = report["ceilings"].get(str(report["final_samples"]), {}).get("reference")
    for number, (panel, (figure, words)) in enumerate(zip(panels, DRAWN.items(), strict=True)):
        plots.bars(
            panel,
            [names[row["member"]] for row in finals],
            [row[figure] for row in finals],
            x_label=words,
            level=plots.Point("drawn pictures", ceiling[figure], 0) if ceiling else None,
            named=number == 0,
        )
    return panels[0].figure


EXPERIMENT = Experiment(
    name="order",
    measure=measure,
    find=find,
    draw=draw,
)
