"""The page's head: what it is, which weights and device it runs on, and the nestings there are."""

from __future__ import annotations

from html import escape

from nestar.data.tiny_worlds import CLASSES
from nestar.pipeline import NestARPipeline
from nestar.ui.assets import asset

DATA = f", trained on {len(CLASSES)} kinds of drawn scenes, Tiny Worlds"


def header(pipeline: NestARPipeline) -> str:
    """HTML of the head."""
    rows = "".join(_row(pipeline, name) for name in pipeline.nestings)
    count = len(pipeline.nestings)
    parts = {
        "weights": escape(pipeline.shown_origin),
        "data": DATA if pipeline.classes == CLASSES else "",
        "device": escape(str(pipeline.device)),
        "count": f"{count} nesting{'' if count == 1 else 's'}",
        "nestings": rows,
    }
    html = asset("header.html")
    for name, text in parts.items():
        html = html.replace(f"<!-- {name} -->", text)
    return html


def _row(pipeline: NestARPipeline, name: str) -> str:
    """A nesting's line: name, modules, turns, size, and how long it was trained."""
    outline, nesting = pipeline.models.outline(name), pipeline.nestings[name]
    size = f"{outline.config.parameters / 1e6:.1f} M"
    cells = (nesting.modules, nesting.evaluations, size, outline.images_said)
    heading = escape(name).replace(".", "<wbr>.")  # on a phone a long name breaks here, not inside a word
    return f'<tr><th scope="row">{heading}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
