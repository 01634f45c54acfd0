"""The README, the page of findings and their figures, written anew from the results."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import speed
from benchmarks.readme import places
from benchmarks.readme.experiments import findings_page, headline_parts, refreshed
from benchmarks.readme.family import family_parts, training_rows
from benchmarks.readme.imagenet import size_parts
from benchmarks.readme.page import crowd_rows, same_picture_rows, speed_rows
from benchmarks.readme.quality import factor_rows, fid_rows, quality_rows
from benchmarks.readme.speed import speed_parts
from benchmarks.readme.words import table
from nestar import plots
from nestar.evaluation.experiments import NAMES
from nestar.evaluation.experiments.command import load
from nestar.files import write_json


def result_parts() -> Iterator[str]:
    """All that was measured of pictures, of the page and of training, a table each."""
    yield (
        "Of the embedded *k* = 4; targets are our own. FID is on our own features and falls with the number "
        "of samples, so compare only those of equally many samples."
    )
    yield ""
    heads = ("pictures", "measured", "real pictures / through the tokenizer, or other", "target", "from")
    yield from table(heads, [*quality_rows(), *fid_rows(), *factor_rows()])
    yield ""
    heads = ("the page", "measured", "how", "target", "from")
    yield from table(heads, [*speed_rows(), *crowd_rows(), *same_picture_rows()])
    yield ""
    yield from table(("training of", "took", "saw", "stands in"), training_rows())


BY = "written by `python -m benchmarks.readme` -->\n"
SECTIONS = {name: f"<!-- {name}: {BY}" for name in ("results", "family", "speed", "findings", "sizes")}
"""Where the README's written parts begin; each ends with `<!-- end of NAME -->`."""


def rewritten(text: str, section: str, content: str) -> str:
    """`text` with what stands between the section's two marks replaced."""
    begin, end = SECTIONS[section], f"<!-- end of {section} -->"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end)[1]


NO_FAMILY = "Only one nesting has been measured so far.\n"
NO_SPEED = "Not measured yet.\n"


def written(text: str) -> str:
    """The README's text with its written parts as the results stand."""
    text = rewritten(text, "results", "".join(f"{line}\n" for line in result_parts()))
    text = rewritten(text, "family", "".join(f"{line}\n" for line in family_parts()) or NO_FAMILY)
    text = rewritten(text, "sizes", "".join(f"{line}\n" for line in size_parts()))
    text = rewritten(text, "speed", "".join(f"{line}\n" for line in speed_parts()) or NO_SPEED)
    return rewritten(text, "findings", "".join(f"{line}\n" for line in headline_parts()))


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
    readme = places.ROOT / "README.md"
    readme.write_text(written(readme.read_text()))
    places.FINDINGS.write_text(findings_page())
    redraw()
