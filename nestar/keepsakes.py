"""Pictures that remember how they were made, and a run's growth as one moving picture."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nestar.settings import SampleSettings, SettingsError

# The PNG text chunk that holds the settings as JSON, and the version of what is in it.
KEYWORD = "nestar"
VERSION = 1
# A chunk of ours has some 300 characters; more than this is somebody's joke.
MAX_TEXT = 65_536
MAX_CHUNKS = 256
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# How long a patch stands on screen, on the page and in an animation: its share of its module's time, or
# at least a frame's.
MODULE_MS = 350
FRAME_MS = 90
LAST_MS = 2000
ANIMATION_SIDE = 384
ANIMATION_QUALITY = 82

# What is kept of the settings; one file holds one picture, so `count` says nothing.
KEPT = tuple(field.name for field in fields(SampleSettings) if field.name != "count")


def about(settings: SampleSettings, weights: str, fingerprint: str = "") -> dict[str, Any]:
    """What a picture of these settings remembers. `weights` is the pipeline's `shown_origin`, which does not
    say whether they have been trained on since; the `fingerprint` of the nesting's does."""
    kept = {name: getattr(settings, name) for name in KEPT} | {"weights": weights, "version": VERSION}
    return kept | ({"fingerprint": fingerprint} if fingerprint else {})


def png_info(kept: Mapping[str, Any]) -> PngInfo:
    """`kept` as the text chunk that PIL's `save(..., pnginfo=...)` takes."""
    info = PngInfo()
    info.add_text(KEYWORD, json.dumps(dict(kept)))
    return info


def parse(text: str) -> dict[str, Any]:
    """The JSON of a text chunk as a dictionary; its values are still to be checked.

    Raises:
        SettingsError: it is too long, no JSON object, or of a version that is not known here.
    """
    try:
        kept = json.loads(text) if len(text) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        kept = None
    if not isinstance(kept, dict):
        raise SettingsError("The settings in this picture are damaged: they are no short JSON object.")
    version = kept.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise SettingsError(f"The settings in this picture are not of version {VERSION}, the one known here.")
    return kept


def values(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings among what a picture remembers, by name, unchecked."""
    return {name: kept[name] for name in KEPT if name in kept}


def shared(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture shares with another one, if it does: that one's seed, `parent`, and the number of its
    first `modules`; unchecked."""
    return {name: kept[name] for name in ("parent", "modules") if name in kept}


def read_png(data: bytes) -> dict[str, Any]:
    """What a PNG file remembers; its values are still to be checked.

    Raises:
        SettingsError: it is no PNG, or holds no settings that can be read.
    """
    for kind, content in _chunks(data):
        keyword, _, rest = content.partition(b"\0")
        if kind not in (b"tEXt", b"iTXt") or keyword != KEYWORD.encode():
            continue
        if kind == b"iTXt":  # compression flag, method, language and translated keyword come first
            compressed, rest = rest[:1] != b"\0", rest[2:]
            rest = b"" if compressed else rest.split(b"\0", 2)[-1]
        return parse(rest.decode("utf-8", "replace"))
    raise SettingsError("This PNG holds no NestAR settings: it was made by another program, or saved by one.")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of a PNG's chunks up to its pixels; a long one's content is cut."""
    if not data.startswith(PNG_SIGNATURE):
        raise SettingsError("This file is no PNG picture.")
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            return
        yield kind, data[at + 8 : at + 8 + min(length, 2 * MAX_TEXT)]
        at += length + 12


def file_stem(settings: SampleSettings) -> str:
    """A file name without its ending: `nestar-lighthouse-k4-seed0`."""
    name = re.sub(r"[^a-z0-9]+", "-", settings.class_name.lower()).strip("-") or "picture"
    order = "" if settings.order == SampleSettings.order else f"-{settings.order}"
    return f"nestar-{name}-k{settings.k}{order}-seed{settings.seed}"


def holds(patches: Sequence[int]) -> list[int]:
    """How long each frame of a run stands, in milliseconds.

    Args:
        patches: how many patches the frame's module makes, one number a frame.
    """
    return [*(max(FRAME_MS, MODULE_MS // each) for each in patches[:-1]), LAST_MS]


def animation(images: Sequence[Image.Image], milliseconds: Sequence[int]) -> bytes:
    """Pictures as an endless WebP of the last one's shape, ANIMATION_SIDE pixels at its longest side."""
    width, height = images[-1].size
    scale = ANIMATION_SIDE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    first, *others = (image.convert("RGB").resize(size, Image.Resampling.LANCZOS) for image in images)
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=list(milliseconds),
        loop=0,
        quality=ANIMATION_QUALITY,
        method=2,
    )
    return buffer.getvalue()
