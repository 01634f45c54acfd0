"""The embedded nestings side by side, and how long each embedded part was trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.readme import embedded, places
from benchmarks.readme.words import table
from nestar.evaluation.experiments.findings import STANDARD_ERRORS, fid_noise
from nestar.model import summed_over_runs, trained_on
from nestar.nesting import Nesting

FAMILY_COLUMNS = {
    "class_accuracy": ("asked class recognised", ".1%"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "fid": ("FID", ".1f"),
    "redrawn": ("drawn again, dB", ".1f"),
    "seams": ("seams", ".2f"),
}
"""What the README shows of every embedded nesting, and how."""


def family_parts() -> Iterator[str]:
    """A table of all embedded nestings on the same settings, seeds and samples, once there are several."""
    reports = {}
    for name in embedded.nestings():
        report = places.result(f"evaluate_{name}")
        if report:
            reports[name] = report
    if len(reports) < 2:
        return
    heads = ("nesting", "images seen", "turns", *(words for words, _ in FAMILY_COLUMNS.values()))
    yield from table(heads, [*family_rows(reports), *ceiling_rows(next(iter(reports.values())))])
    measured = [(report["samples"], report["seed"], report.get("settings")) for report in reports.values()]
    if any(each != measured[0] for each in measured):
        raise ValueError(
            "The family's reports are not of equal samples, seeds and settings: measure them alike."
        )
    samples, seed, _ = measured[0]
    yield ""
    yield (
        "*Precision*: the share of samples that look like real pictures; *recall*: the share of real "
        "pictures that look like samples, hence variety; *FID*: distance from real pictures, less is better; "
        "*drawn again*: how near a picture is to what Tiny Worlds draws of the factors read from it (PSNR), "
        "low where it is no such scene or is misread; *seams*: how much sharper edges are between tokens "
        "than inside them, 1 = no more. All but seams are taken by our own network, which reads the classes "
        "and factors of Tiny Worlds: no other paper's figures compare with them. "
        f"FIDs of so many samples that are less than {fid_noise(samples):.0%} apart may differ by chance"
        f"{redrawn_chance(reports.values())}. "
        f"Each by `python -m nestar evaluate --nesting NAME --samples {samples}` (seed {seed}, the "
        "default settings, chosen for k = 4). *Images seen* counts repeats. Weights that have seen fewer "
        "images draw worse for that alone."
    )
    yield from other_seeds()


def redrawn_chance(reports: Iterable[dict[str, Any]]) -> str:
    """What chance may make of pictures drawn again: as many errors of a difference as of FIDs."""
    errors = [report["redrawn_error"] for report in reports if "redrawn_error" in report]
    if not errors:
        return ""
    return f", and so may pictures drawn again within {STANDARD_ERRORS * 2**0.5 * max(errors):.1f} dB"


def other_seeds() -> Iterator[str]:
    """How the figures of the page's nesting come out with other seeds than the table's."""
    reports = places.other_seeds()
    if reports:
        seeds = " and ".join(str(report["seed"]) for report in reports)
        figures = (
            f"{words} {' and '.join(f'{report[key]:{form}}' for report in reports)}"
            for key, (words, form) in FAMILY_COLUMNS.items()
            if key in ("precision", "recall", "fid")
        )
        samples = " or ".join(f"{count:,}" for count in sorted({report["samples"] for report in reports}))
        yield ""
        yield f"`k4-lattice` with seeds {seeds}, {samples} samples each: {', '.join(figures)}."


def family_rows(reports: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    for name, report in reports.items():
        config = embedded.stored(f"{name}/config.json")
        turns = Nesting.from_dict(config["nesting"]).evaluations
        yield [f"`{name}`", trained_on(config.get("training")), str(turns), *family_figures(report)]


CEILINGS = {"reference": "real pictures", "reconstruction": "real ones through the tokenizer"}
"""What the family is held against, by its key in a report."""


def ceiling_rows(report: dict[str, Any]) -> Iterator[list[str]]:
    """What real pictures reach themselves; the same in every report of equal samples."""
    for key, words in CEILINGS.items():
        if key in report:
            yield [words, "", "", *family_figures(report[key])]


def family_figures(report: dict[str, Any]) -> list[str]:
    return [f"{report[key]:{form}}" for key, (_, form) in FAMILY_COLUMNS.items()]


def training_on() -> Iterator[str]:
    """How a module of the page's nesting is trained on, with pictures that it has not seen."""
    config = embedded.stored("k4-lattice/config.json")
    yield "```sh"
    yield (
        ".venv/bin/python -m nestar train nesting --preset tiny-worlds-k4-on --init assets/k4-lattice "
        f"--split {','.join(map(str, config['split']))} --modules 2 --batch 256 "
        f"--pool-from {config['training']['pictures_before']} --folder runs/on-module-2 --minutes 50"
    )
    yield "```"


def training_rows() -> Iterator[tuple[str, str, str, str]]:
    """How long each embedded part was trained."""
    parts = {
        "tokenizer": "tokenizer/tokenizer.json",
        **{f"nesting {name}": f"{name}/config.json" for name in embedded.nestings()},
        "feature network": "features/config.json",
    }
    for part, file in parts.items():
        record = embedded.training_of(file)
        if record:
            total = {key: summed_over_runs(record, key) for key in ("train_seconds", "steps", "images_seen")}
            minutes = f"{total['train_seconds'] / 60:.0f} min, {record.get('device', 'cpu')}"
            seen = f", {total['images_seen']:,} images seen" if total["images_seen"] else ""
            more = summed_over_runs(record, "images_seen_by_modules")
            seen += f", {more:,} more by some of its modules" if more else ""
            before = record.get("pictures_before")
            seen += f" (pictures numbered below {before:,})" if before else ""
            for moved in record.get("extrapolated", []):
                modules = " and ".join(map(str, moved["modules"]))
                seen += f"; module {modules} moved on by {moved['by']:g}"
            yield part, minutes, f"{total['steps']:,} steps{seen}", f"`assets/{file}`"
