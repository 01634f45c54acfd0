"""The README, the pages of figures and findings, and their pictures, written anew from the results."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import speed
from benchmarks.readme import places
from benchmarks.readme.aims import MISSED
from benchmarks.readme.experiments import findings_page, headline_parts, refreshed
from benchmarks.readme.family import family_parts, training_on, training_rows
from benchmarks.readme.imagenet import size_parts
from benchmarks.readme.page import crowd_rows, same_picture_rows, speed_rows
from benchmarks.readme.quality import deciding_rows, factor_rows, fid_rows, quality_rows
from benchmarks.readme.speed import in_short_parts, speed_aims, speed_parts
from benchmarks.readme.words import Row, table
from nestar import plots
from nestar.evaluation.experiments import NAMES
from nestar.evaluation.experiments.command import load
from nestar.files import write_json

OF_PICTURES = ("pictures", "measured", "real pictures / through the tokenizer, or other", "target", "from")
OF_PAGE = ("the page", "measured", "how", "target", "from")
NO_FAMILY = "Only one nesting has been measured so far.\n"
NO_SPEED = "Not measured yet.\n"


def picture_rows() -> Iterator[Row]:
    yield from (*quality_rows(), *deciding_rows(), *fid_rows(), *factor_rows())


def page_rows() -> Iterator[Row]:
    yield from (*speed_rows(), *crowd_rows(), *same_picture_rows())


def results_page() -> str:
    """All that was measured of pictures, page, training and speed, for the folder of the reports."""
    return "".join(f"{line}\n" for line in results_lines())


def results_lines() -> Iterator[str]:
    yield from (
        "# What was measured",
        "",
        "Written by `python -m benchmarks.readme` from the reports here.",
        "",
    )
    yield (
        "Of the embedded *k* = 4 where a row names no others; targets are our own. FID is on our own "
        "features and falls with the number of samples, so compare only those of equally many samples. "
        "Commands are called in the repository's folder, with `.venv/bin/python`. What the experiments found "
        "stands in [`experiments`](experiments/README.md); how far chance moves figures, in `noise.json`."
    )
    yield from ("", "## Pictures", "", *table(OF_PICTURES, picture_rows()))
    yield from ("", "## The page", "", *table(OF_PAGE, page_rows()))
    yield from ("", "## Training", "", *table(("training of", "took", "saw", "stands in"), training_rows()))
    yield from ("", "## Speed", "", *(list(speed_parts()) or [NO_SPEED.rstrip()]))


def result_parts() -> Iterator[str]:
    """How many aims are reached, and each that is not."""
    aims = [row for row in (*picture_rows(), *page_rows(), *speed_aims()) if row[3]]
    missed = [row for row in aims if MISSED in row[3]]
    page = places.MEASURED.relative_to(places.ROOT)
    yield (
        f"[`{page}`]({page}) has what was measured of pictures, page and speed, with the commands, and what "
        f"training took. Of {len(aims)} figures that we set ourselves aims for {len(aims) - len(missed)} "
        "reach them." + (" These do not:" if missed else "")
    )
    if missed:
        heads = ("what", "measured", "real pictures / through the tokenizer, or how", "target")
        yield from ("", *table(heads, (row[:4] for row in missed)))


BY = "written by `python -m benchmarks.readme` -->\n"
SECTIONS = {name: f"<!-- {name}: {BY}" for name in ("results", "family", "speed", "findings", "on", "sizes")}
"""Where written parts begin, the last two in `places.TRAINING`, the others in the README; each ends with
`<!-- end of NAME -->`."""


def rewritten(text: str, section: str, content: str) -> str:
    """`text` with what stands between the section's two marks replaced."""
    begin, end = SECTIONS[section], f"<!-- end of {section} -->"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end)[1]


def written(text: str) -> str:
    """The README's text with its written parts as the results stand."""
    text = rewritten(text, "results", "".join(f"{line}\n" for line in result_parts()))
    text = rewritten(text, "family", "".join(f"{line}\n" for line in family_parts()) or NO_FAMILY)
    text = rewritten(text, "speed", "".join(f"{line}\n" for line in in_short_parts()) or NO_SPEED)
    return rewritten(text, "findings", "".join(f"{line}\n" for line in headline_parts()))


def written_training(text: str) -> str:
    """The text of `places.TRAINING` with its written parts."""
    text = rewritten(text, "on", "".join(f"{line}\n" for line in training_on()))
    return rewritten(text, "sizes", "".join(f"{line}\n" for line in size_parts()))


def redraw() -> None:
    """Draw the experiments' figures and that of `speed` from their reports, as their commands would today."""
    draws = {places.EXPERIMENTS / f"{name}.json": load(name).draw for name in NAMES}
    for file, draw in {**draws, places.RESULTS / "speed.json": speed.draw}.items():
        report = places.read(file)
        figure = draw(report) if report else None
        if figure is not None:
            plots.save(figure, file.with_suffix(".png"))


def main() -> None:
    for name in NAMES:
        file = places.EXPERIMENTS / f"{name}.json"
        report = places.read(file)
        if report and refreshed(name, report) != report:
            write_json(file, refreshed(name, report), allow_nan=False)
    for file, write in ((places.README, written), (places.TRAINING, written_training)):
        file.write_text(write(file.read_text()))
    places.MEASURED.write_text(results_page())
    places.FINDINGS.write_text(findings_page())
    redraw()
