"""How much stored weights may ask for: what a stranger's config describes is refused before memory is taken.

The bounds are far beyond what is trained for pictures, and below what would stall a machine that only looks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

MAX_JSON = 2**24
"""Bytes of a JSON file; a config with a thousand class names has 30,000."""

MAX_TOKENS = 64 * 64
"""Tokens of a grid; orders and previews compare every token with every other one."""

MAX_PIXELS = 2048 * 2048
"""Pixels of a picture; a decoder takes about a kilobyte for each."""

MAX_PARAMETERS = 2 * 10**10
"""Parameters of a nesting, 80 GB in float32; the paper's largest has fewer than two billion."""

MAX_CLASSES = 100_000
"""Classes of a checkpoint; ImageNet's whole hierarchy has 21,841."""

MAX_NESTINGS = 64
"""Nestings of a checkpoint; each is described when it is opened, and loaded if it lies in a folder."""

MAX_LEVELS = 12
"""Sizes in a list: of MAX_TOKENS tokens' modules at k = 2, or of grids, each half of the one before."""

MAX_SHOWN = 200
"""Characters of a stranger's file that a sentence repeats."""

FOLDER_NAME = re.compile(r"\w[\w .+=@-]{0,99}")
"""A folder inside a checkpoint, and none outside of it."""

FILES = (".json", ".safetensors")


def check_sizes(
    stored: Mapping[str, object], most: Mapping[str, int], *, least: int = 1, listed: bool = False
) -> None:
    """Whether sizes by name are within bounds; absent ones are. `listed`: each is a list, one a level.

    Raises:
        ValueError: one is not; the sentence says what is allowed.
    """
    for name in (name for name in most if name in stored):
        value = stored[name]
        several = value if listed else [value]
        if not isinstance(several, list | tuple) or not 1 <= len(several) <= MAX_LEVELS:
            raise ValueError(f"{name} must be a list of 1 to {MAX_LEVELS} whole numbers")
        if not all(type(each) is int and least <= each <= most[name] for each in several):
            what = "whole numbers" if listed else "a whole number"
            raise ValueError(f"{name} must be {what} from {least} to {most[name]}, not {shortened(value)}")


def check_names(field: str, names: object, most: int) -> tuple[str, ...]:
    """A field's `names` as a list of names that can be printed.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(names, list) or len(names) > most:
        raise ValueError(f"{field!r}, a list of at most {most} names")
    for name in names:
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_SHOWN:
            raise ValueError(
                f"{field!r}: {shortened(name)!r} is no name of 1 to {MAX_SHOWN} printable characters"
            )
    return tuple(names)


def check_folder_names(field: str, names: object) -> tuple[str, ...]:
    """A field's `names` as those of folders inside a checkpoint: never a path that leads elsewhere.

    Raises:
        ValueError: they are none.
    """
    checked = check_names(field, names, MAX_NESTINGS)
    for name in checked:
        if not FOLDER_NAME.fullmatch(name):
            raise ValueError(
                f"{field!r}: {name!r} is no folder of up to 100 letters, digits, spaces and . + = @ - _"
            )
    return checked


def shortened(text: object) -> str:
    """One line of at most MAX_SHOWN characters, whatever it is made of."""
    try:
        line = (str(text).strip().splitlines() or [""])[0]
    except (RecursionError, ValueError):  # lists in lists in lists; a number too long to be written
        return type(text).__name__
    line = line.encode("utf-8", "replace").decode()  # half a character cannot be printed
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}…"


def tail(path: str | Path) -> str:
    """What a reader elsewhere may know of a path here: a folder's name, or a file's and its folder's."""
    parts = [part for part in re.split(r"[\\/]", str(path)) if part]
    return "/".join(parts[-2:] if str(path).endswith(FILES) else parts[-1:])
