"""ImageNet's classes by name: what the page offers in place of ids from 0 to 999."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("imagenet_classes.txt")


class ImageNetClass(NamedTuple):
    """A class: WordNet synset (the name of its folder in the data), name, and other names."""

    synset: str
    name: str
    others: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000 classes of ILSVRC 2012 in the order of their ids, which is that of their synsets."""
    rows = []
    for line in FILE.read_text().splitlines():
        if not line.startswith("#"):
            synset, name, *others = line.split("\t")
            rows.append(ImageNetClass(synset, name, tuple(others[0].split(", ")) if others else ()))
    return tuple(rows)


def other_names(classes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Other names of those of `classes` that are ImageNet's: who asks for a puma is shown the cougar."""
    known = {row.name: row.others for row in imagenet_classes()}
    return {name: known[name] for name in classes if known.get(name)}


def named(folders: Iterable[str]) -> tuple[str, ...]:
    """Class names for the folders of a data set: a synset's name where all are ImageNet's, else their own."""
    folders = tuple(folders)
    known = {row.synset: row.name for row in imagenet_classes()}
    return tuple(known[folder] for folder in folders) if set(folders) <= known.keys() else folders
