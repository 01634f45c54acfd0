"""What the experiments found: what the README shows of it, and the page of all findings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from benchmarks.readme import embedded, places
from benchmarks.readme.words import said, table
from nestar.evaluation.experiments import NAMES
from nestar.evaluation.experiments.command import load
from nestar.evaluation.experiments.rows import rounded
from nestar.evaluation.experiments.study import arms_said
from nestar.training.presets import NESTINGS

SHOWN = "scaling"
"""The experiment whose figure the README shows."""


def headline_parts() -> Iterator[str]:
    """One figure, where all findings stand, and which of them do not belong to the embedded weights."""
    reports = {name: places.experiment(name) for name in NAMES}
    if reports[SHOWN]:
        figure = (places.EXPERIMENTS / f"{SHOWN}.png").relative_to(places.ROOT)
        yield f"![{reports[SHOWN]['question']}]({figure})"
        yield ""
    page = places.FINDINGS.relative_to(places.ROOT)
    yield f"All findings, their figures and the commands that measured them: [`{page}`]({page})."
    for name, report in reports.items():
        if report:
            yield from (f"`{name}` was {words}." for words in weights_said(report))
    missing = [f"`{name}`" for name, report in reports.items() if not report]
    if missing:
        yield f"Not run yet: {', '.join(missing)}."


def refreshed(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """A report with what its rows say in the statements of today: those that it was written with may have
    been found wanting since."""
    return report | {"finding": rounded(load(name).find(report["rows"], report["arms"]))}


def findings_page() -> str:
    """All that the experiments found, one after another, for the folder of their results."""
    reports = {name: places.experiment(name) for name in NAMES}
    parts = ["# What the experiments found\n", "Written by `python -m benchmarks.readme`.\n"]
    parts += ["\n".join(finding_lines(name, report)) + "\n" for name, report in reports.items() if report]
    return "\n".join(parts)


def finding_lines(name: str, report: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield report["question"]
    yield ""
    for statement, value in report["finding"].items():
        yield f"- {statement.replace('_', ' ')}: {said(value)}"
    finals = [row for row in report["rows"] if row["part"] == "final"]
    if finals:
        yield from ("", *final_table(finals))
    yield ""
    yield f"`{command_of(name, report)}`. {' '.join(conditions(report))}"
    if (places.EXPERIMENTS / f"{name}.png").exists():
        yield ""
        yield f"![{report['question']}]({name}.png)"


def command_of(name: str, report: dict[str, Any]) -> str:
    """What measured it; from its numbers, where an older report does not say."""
    if report.get("command"):
        return report["command"]
    parts = ["python -m nestar experiment", name]
    parts += ["--samples", f"{report['samples']}", "--final-samples", f"{report['final_samples']}"]
    parts += ["--seed", f"{report['seed']}"] if report["seed"] else []
    for arm in report.get("arms", [])[:1]:
        parts += ["--images", f"{report['images_per_arm']}"]
        parts += [f"--preset {preset}" for preset in NESTINGS if parameters_of(preset) == arm["parameters"]][
            :1
        ]
    return " ".join(parts)


@cache
def parameters_of(preset: str) -> int:
    """Of the nesting that a recipe trains behind the embedded tokenizer."""
    channels = embedded.stored(f"{embedded.FAIR_K4}/config.json")["channels"]
    return NESTINGS[preset].model_config(channels).parameters


FINAL_FIGURES = ("fid", "inception_score", "precision", "recall", "class_accuracy", "seams", "diversity")
"""What the README shows of an experiment's finalists."""


def final_table(finals: list[dict[str, Any]]) -> Iterator[str]:
    """Finalists as a table, with the figures that all of them have."""
    figures = [name for name in FINAL_FIGURES if all(name in row for row in finals)]
    settings = [", ".join(f"{key} {said(value)}" for key, value in row["settings"].items()) for row in finals]
    differ = len(set(settings)) > 1
    if not differ:
        yield from (f"Settings: {settings[0]}.", "")
    heads = ["finalist", *(["settings"] if differ else []), *(name.replace("_", " ") for name in figures)]
    rows = (
        [
            " ".join(str(row[label]) for label in ("member", "which") if label in row),
            *([own] if differ else []),
            *(said(row[name]) for name in figures),
        ]
        for row, own in zip(finals, settings, strict=True)
    )
    yield from table(heads, rows)


def conditions(report: dict[str, Any]) -> Iterator[str]:
    """On what the findings rest."""
    counts = {row["samples"] for row in report["rows"] if "samples" in row}
    if counts:
        yield f"Samples per row: {', '.join(map(str, sorted(counts)))}; device {report['device']}."
    timed = {(row["threads"], row["bf16"]) for row in report["rows"] if "threads" in row}
    for threads, bf16 in sorted(timed):
        yield f"Times on {threads} threads, {'with' if bf16 else 'without'} products in bf16."
    if report.get("arms"):
        yield arms_said(report)
    yield from (f"{words[0].upper()}{words[1:]}." for words in weights_said(report))
    yield from (f"Where nestings are compared, {words}." for words in stand_ins_said(report))
    yield from images_said(report)
    if report["missing"]:
        yield f"Without weights, left out: {', '.join(report['missing'])}."
    if not report["finished"]:
        yield "Not finished."


def stand_ins_said(report: dict[str, Any]) -> Iterator[str]:
    """Which weights are compared under a nesting's name."""
    for name, weights in report.get("settings", {}).get("weights_that_stand_for", {}).items():
        yield f"for {name} the weights of {weights}"


def images_said(report: dict[str, Any]) -> Iterator[str]:
    """How much its weights were trained."""
    seen = report.get("settings", {}).get("images_seen", {})
    if len(set(seen.values())) > 1:
        each = ", ".join(f"{name} {count:,}" for name, count in seen.items())
        yield f"Images seen: {each}; weights that have seen fewer draw worse for that alone."
    elif len(seen) > 1:
        yield f"Each of the weights saw {next(iter(seen.values())):,} images."


def weights_said(report: dict[str, Any]) -> Iterator[str]:
    """Which of its weights are not those that are embedded now."""
    settings = report.get("settings", {})
    prints = settings.get("fingerprints", {})
    others = [name for name, fingerprint in prints.items() if fingerprint != embedded.fingerprint(name)]
    if "images_seen" in settings and not prints:
        yield "measured on weights that the report does not name"
    if others:
        yield f"measured on other weights than the embedded: {', '.join(others)}"
    if report.get("instruments") not in (None, embedded.instruments()):
        yield "measured with another tokenizer or feature network than the embedded"
