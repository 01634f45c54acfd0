"""Write the README's figures from `results/*.json` and the embedded configs: `python -m benchmarks.readme`.

No figure in the README's results is typed by hand; run this after the commands that the table names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results: written by `python -m benchmarks.readme` -->\n", "<!-- end of results -->"

Row = tuple[str, str, str, str]


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def training_rows() -> list[Row]:
    """How long each embedded part was trained."""
    rows = []
    for part, file in (
        ("tokenizer", "tokenizer/tokenizer.json"),
        ("nesting k = 4", "k4-lattice/config.json"),
        ("feature network", "features/config.json"),
    ):
        record = read(ROOT / "assets" / file).get("training", {})
        if record:
            minutes = f"{record['train_seconds'] / 60:.0f} minutes on {record.get('device', '?')}"
            rows.append((f"{part}: training", minutes, f"{record['steps']:,} steps", f"`assets/{file}`"))
    return rows


def quality_rows() -> list[Row]:
    """Quality of the embedded k = 4 nesting against the references' own values."""
    report = read(RESULTS / "evaluate_k4.json")
    if not report:
        return []
    settings, command = report["settings"], f"`python -m nestar evaluate --k 4 --samples {report['samples']}`"
    note = f"{report['samples']} samples, {settings['steps']} steps, CFG {settings['cfg']:g}"
    reference, rebuilt = report["reference"], report["reconstruction"]

    def row(name: str, key: str, form: str = ".3f") -> Row:
        beside = f"references {reference[key]:{form}}, references through the tokenizer {rebuilt[key]:{form}}"
        return (name, f"{report[key]:{form}}", beside, command)

    return [
        (
            "asked class named by the feature network",
            f"{report['class_accuracy']:.1%}",
            f"references {reference['class_accuracy']:.1%}; {note}",
            command,
        ),
        row("precision", "precision"),
        row("recall", "recall"),
        row("FID (own features)", "fid", ".2f"),
        row("seams across token borders", "seams"),
        ("tokenizer PSNR, held out", f"{report['tokenizer_psnr']:.1f} dB", "", command),
    ]


def speed_rows() -> list[Row]:
    """Speed on the machine that ran the benchmark."""
    report, page = read(RESULTS / "first_picture.json"), read(RESULTS / "click_to_paint.json")
    rows = []
    if report:
        note = f"{report['cores']} cores, {report['device']}, k = {report['k']}, {report['steps']} steps, "
        note += f"CFG {report['cfg']:g}"
        command = "`python -m benchmarks.first_picture`"
        rows += [
            ("first frame (one patch)", f"{report['first_frame_seconds']:.3f} s", note, command),
            ("first module's frame", f"{report['first_module_seconds']:.3f} s", note, command),
            (
                "whole picture",
                f"{report['whole_picture_seconds']:.3f} s",
                "a frame a patch encoded on the way",
                command,
            ),
        ]
    if page:
        command = "`python benchmarks/click_to_paint.py`"
        rows += [
            (
                "click to first paint",
                f"{page['as_it_comes']['first_s']:.2f} s",
                "in Chromium, beside the sampler",
                command,
            ),
            (
                "click to finished picture",
                f"{page['as_it_comes']['finished_s']:.2f} s",
                "as it comes",
                command,
            ),
            ("page's memory", f"{page['memory_mib']:.0f} MiB", "", command),
        ]
    return rows


def table(rows: list[Row]) -> str:
    lines = ["| what | measured | beside it | from |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def main() -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    rows = quality_rows() + speed_rows() + training_rows()
    readme.write_text(before + BEGIN + table(rows) + END + after)


if __name__ == "__main__":
    main()
