"""Write the README's figures from `results/*.json` and the embedded configs: `python -m benchmarks.readme`.

No figure in the README's results is typed by hand; run this after the commands that the table names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results: written by `python -m benchmarks.readme` -->\n", "<!-- end of results -->"
RECALL_SHARE = 0.8  # of the references' own recall

Row = tuple[str, str, str, str, str]


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def goal(text: str, reached: bool) -> str:
    """A target and whether the measured value reaches it."""
    return f"{text}: {'reached' if reached else '**not reached**'}"


def quality_rows() -> Iterator[Row]:
    """Quality of the embedded k = 4 nesting beside the references' own values."""
    report = read(RESULTS / "evaluate_k4.json")
    if not report:
        return
    s, reference, rebuilt = report["settings"], report["reference"], report["reconstruction"]
    command = f"`nestar evaluate --k 4 --samples {report['samples']} --cfg {s['cfg']:g}`"

    def beside(key: str, form: str) -> str:
        return f"{reference[key]:{form}} / {rebuilt[key]:{form}}"

    accuracy, share, psnr = report["class_accuracy"], report["recall_of_reference"], report["tokenizer_psnr"]
    yield (
        "asked class recognised",
        f"{accuracy:.1%}",
        beside("class_accuracy", ".1%"),
        goal("≥ 90 %", accuracy >= 0.9),
        command,
    )
    yield "precision", f"{report['precision']:.3f}", beside("precision", ".3f"), "", command
    yield (
        "recall",
        f"{report['recall']:.3f}",
        beside("recall", ".3f"),
        goal(f"≥ {RECALL_SHARE:g} of the references'", share >= RECALL_SHARE),
        command,
    )
    yield "FID, own features", f"{report['fid']:.2f}", beside("fid", ".2f"), "", command
    yield (
        "seams across token borders (1 = none)",
        f"{report['seams']:.3f}",
        beside("seams", ".3f"),
        "",
        command,
    )
    yield "tokenizer PSNR, held out", f"{psnr:.1f} dB", "", goal("≥ 28 dB", psnr >= 28), command


def factor_rows() -> Iterator[Row]:
    """Whether every factor of Tiny Worlds can be read from the picture."""
    record = read(ROOT / "assets" / "features" / "config.json").get("training", {})
    if not record:
        return
    command = "`nestar train features`"
    scores = [
        (f"{name} of {owner}", score)
        for owner, own in record["held_out"].items()
        for name, score in own.items()
    ]
    worst = ", ".join(f"{name} {score:.2f}" for name, score in sorted(scores, key=lambda pair: pair[1])[:3])
    r2, accuracy = record["worst_r2"], record["worst_accuracy"]
    yield (
        "worst continuous factor, R²",
        f"{r2:.2f}",
        f"mean {record['mean_r2']:.2f}",
        goal("≥ 0.8", r2 >= 0.8),
        command,
    )
    yield (
        "worst discrete factor, accuracy",
        f"{accuracy:.0%}",
        f"mean {record['mean_accuracy']:.0%}; lowest: {worst}",
        goal("≥ 90 %", accuracy >= 0.9),
        command,
    )


def speed_rows() -> Iterator[Row]:
    """Speed on the machine that ran the benchmarks."""
    report, page = read(RESULTS / "first_picture.json"), read(RESULTS / "click_to_paint.json")
    if report:
        note = f"{report['cores']} cores, k = {report['k']}, {report['steps']} steps, CFG {report['cfg']:g}"
        command = "`benchmarks.first_picture`"
        first, whole = report["first_module_seconds"], report["whole_picture_seconds"]
        yield "first frame (one patch)", f"{report['first_frame_seconds']:.2f} s", note, "", command
        yield "first module's frame", f"{first:.2f} s", note, goal("≤ 0.4 s", first <= 0.4), command
        yield "whole picture, a frame a patch", f"{whole:.2f} s", note, goal("≤ 1.5 s", whole <= 1.5), command
    if page:
        command, live, memory = "`benchmarks/click_to_paint.py`", page["as_it_comes"], page["memory_mib"]
        yield "click to first paint", f"{live['first_s']:.2f} s", "Chromium beside the sampler", "", command
        yield "click to finished picture", f"{live['finished_s']:.2f} s", "as it comes", "", command
        yield "memory of the page", f"{memory} MiB", "", goal("≤ 1536 MiB", memory <= 1536), command


def training_rows() -> Iterator[Row]:
    """How long each embedded part was trained."""
    parts = {
        "tokenizer": "tokenizer/tokenizer.json",
        "nesting, k = 4": "k4-lattice/config.json",
        "feature network": "features/config.json",
    }
    for part, file in parts.items():
        record = read(ROOT / "assets" / file).get("training", {})
        if record:
            runs = [record]
            while runs[-1].get("init"):  # a run that began from the weights of another
                runs.append(runs[-1]["init"])
            total = {
                key: sum(run.get(key, 0) for run in runs) for key in ("train_seconds", "steps", "images_seen")
            }
            minutes = f"{total['train_seconds'] / 60:.0f} min, {record.get('device', 'cpu')}"
            seen = f", {total['images_seen']:,} images seen" if total["images_seen"] else ""
            yield (
                f"training of the {part}",
                minutes,
                f"{total['steps']:,} steps{seen}",
                "",
                f"`assets/{file}`",
            )


def table(rows: list[Row]) -> str:
    lines = [
        "| what | measured | beside it (references / through the tokenizer) | target | from |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def main() -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    rows = [*quality_rows(), *factor_rows(), *speed_rows(), *training_rows()]
    readme.write_text(before + BEGIN + table(rows) + END + after)


if __name__ == "__main__":
    main()
