"""Frames of a run as the JSON that the browser and `/generate` get, with pictures as data URIs."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from nestar.keepsakes import png_info
from nestar.nesting import Nesting
from nestar.settings import SOLVER_CALLS, SampleSettings

if TYPE_CHECKING:
    from nestar.frames import Frame

# Half-made pictures are soft, so that JPEG at this quality shows no blocks; about 4 KB at 128 x 128.
PREVIEW_QUALITY = 88
# Longest side of a preview; the final picture is sent whole and lossless.
PREVIEW_SIDE = 256
# A run's previews together stay below this; with more, every second one gives its picture up (see `thin`).
MAX_PREVIEW_CHARACTERS = 1_500_000
NORM_DIGITS = 3
# The browser merges what comes faster, and growth would not be seen.
LEAST_GAP = 0.05

T = TypeVar("T")


def data_uri(image: Image.Image, kind: str = "JPEG", kept: Mapping[str, Any] | None = None) -> str:
    """`image` as a data URI of kind "JPEG" or "PNG"; a PNG remembers `kept` (see `keepsakes.about`)."""
    buffer = io.BytesIO()
    pnginfo = png_info(kept) if kept else None
    options = {"quality": PREVIEW_QUALITY} if kind == "JPEG" else {"pnginfo": pnginfo}
    image.convert("RGB").save(buffer, kind, **options)
    return to_uri(buffer.getvalue(), kind)


def to_uri(data: bytes, kind: str) -> str:
    """An encoded picture of kind "JPEG", "PNG" or "WEBP" as a data URI."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode('ascii')}"


def from_uri(uri: str) -> bytes:
    """The bytes of a base64 data URI, or of bare base64.

    Raises:
        ValueError: it is neither.
    """
    return base64.b64decode(uri.rpartition(",")[2], validate=True)


def picture(frame: Frame, kept: Mapping[str, Any] | None = None) -> str:
    """The frame's picture as a data URI: PNG if final, with `kept` inside, so that however it is saved the
    file says how it was made; else JPEG of at most PREVIEW_SIDE pixels a side."""
    if frame.final:
        return data_uri(frame.image, "PNG", kept)
    return data_uri(at_most(frame.image, PREVIEW_SIDE))


def at_most(image: Image.Image, side: int) -> Image.Image:
    """The picture, or a smaller one where it is larger than `side`."""
    if max(image.size) <= side:
        return image
    smaller = image.copy()
    smaller.thumbnail((side, side))
    return smaller


def frame_to_json(frame: Frame, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One frame: its picture and where the run stood then. `seconds` is compute since the call, `norms` the
    length of the patch's velocity at each solver step, `device` what made it, `batch` how many pictures
    were made at once; a final picture remembers `kept`."""
    return {
        "image": picture(frame, kept),
        "module": frame.module,
        "patch": frame.patch,
        "known": frame.known,
        "evaluations": frame.evaluations,
        "function_evaluations": frame.function_evaluations,
        "seconds": round(frame.seconds, 4),
        "module_done": frame.module_done,
        "final": frame.final,
        "norms": [round(norm, NORM_DIGITS) for norm in frame.norms[0]],
        "batch": frame.batch,
        "device": frame.device,
    }


def thin(frames: list[dict[str, Any]], limit: int = MAX_PREVIEW_CHARACTERS) -> None:
    """Take the picture from every second patch, in place, until all previews are below `limit` characters.

    Those that end a module stay, and so do all counts; the page shows a frame without a picture with the
    picture before it.
    """
    while sum(len(frame["image"]) for frame in frames if not frame["final"]) > limit:
        dispensable = [frame for frame in frames[1:] if frame["image"] and not frame["module_done"]]
        if not dispensable:
            return
        for frame in dispensable[::2]:
            frame["image"] = ""


# The kinds of nestings, as a reader knows them.
METHODS = {
    "nested": "NestAR",
    "autoregressive": "Plain autoregression",
    "cells": "Cells",
    "one-shot": "One-shot flow",
}


def method_of(nesting: Nesting) -> str:
    """The method in plain words."""
    more = {"nested": f", k = {nesting.k}", "cells": f" ({nesting.k})"}
    return METHODS[nesting.kind] + more.get(nesting.kind, "")


def nesting_to_json(nesting: Nesting, settings: SampleSettings) -> dict[str, Any]:
    """What the token map and the counters need: the modules' patches as flat grid indices, as sampled."""
    calls = SOLVER_CALLS[settings.solver]
    return {
        "name": nesting.name,
        "kind": nesting.kind,
        "label": method_of(nesting),
        "k": nesting.k,
        "height": nesting.height,
        "width": nesting.width,
        "n": nesting.n,
        "evaluations": nesting.evaluations,
        "function_evaluations": nesting.function_evaluations(settings.steps, calls),
        "context_passes": nesting.context_passes,
        "modules": [
            {
                "number": scale.number,
                "tokens": scale.tokens,
                "patches": [
                    {"index": patch.index, "cells": list(nesting.flat[patch.start : patch.stop])}
                    for patch in scale.generated
                ],
            }
            for scale in nesting.scales
        ],
    }


def plans_to_json(
    plans: Iterable[tuple[Nesting, bool]], others: Iterable[Nesting], images: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What the order and k controls say of each position, and whether there are weights for it; and of
    `others`, which have weights but no position: a link or a picture may ask for one. `images`: what
    is said of how many images weights were trained on, by name."""
    every = [(nesting, has_weights, True) for nesting, has_weights in plans]
    every += [(nesting, True, False) for nesting in others]
    return [
        {
            "kind": nesting.kind,
            "method": METHODS[nesting.kind],
            "order": nesting.order,
            "k": nesting.k,
            "n": nesting.n,
            "modules": len(nesting.scales),
            "evaluations": nesting.evaluations,
            "has_weights": has_weights,
            "has_position": has_position,
            "images": images.get(nesting.name, ""),
        }
        for nesting, has_weights, has_position in every
    ]


def paced(values: Iterator[T]) -> Iterator[T]:
    """The same values, at least LEAST_GAP seconds apart."""
    before = -LEAST_GAP
    for value in values:
        time.sleep(max(0.0, before + LEAST_GAP - time.monotonic()))
        before = time.monotonic()
        yield value


def spaced(values: Iterator[T]) -> Iterator[T]:
    """Those that come at least LEAST_GAP seconds after the one before; the others are left out."""
    before = -math.inf
    for value in values:
        if time.monotonic() >= before + LEAST_GAP:
            before = time.monotonic()
            yield value
