"""`assemble` and `push`: trained parts as a checkpoint folder, and that on the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestar.cli.common import add_defaults, settings_of
from nestar.settings import SOLVING, SettingsError


def add_assemble(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="the checkpoint's folder; parts that it has and are not named stay"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer's folder, as `train tokenizer` exports it"
    )
    parser.add_argument(
        "--nesting", type=Path, action="append", default=[], help="a nesting's folder; may be repeated"
    )
    add_defaults(parser)
    parser.set_defaults(run=_assemble)


def _assemble(arguments: argparse.Namespace) -> int:
    from nestar.checkpoints import assemble
    from nestar.model import Outline

    classes = _classes_of([Outline.read(part).record for part in arguments.nesting], arguments.folder)
    checkpoint = assemble(
        arguments.folder,
        classes=classes,
        tokenizer=arguments.tokenizer,
        nestings=arguments.nesting,
        defaults=settings_of(arguments, SOLVING),
    )
    print(f"{checkpoint.folder}: {', '.join(checkpoint.nestings) or 'no nesting yet'}")
    if checkpoint.defaults:
        print(f"Pictures begin with {checkpoint.defaults_in_words}.")
    return 0


def _classes_of(records: Sequence[Mapping[str, Any]], folder: Path) -> tuple[str, ...]:
    """Class names that the parts' records agree on; of records without any, those of the checkpoint that
    stands in `folder`, else Tiny Worlds'."""
    from nestar.data.tiny_worlds import CLASSES
    from nestar.model import read_json

    named = {names for record in records if (names := _names_in(record))}
    if len(named) > 1:
        raise SettingsError("The nestings were trained on different classes: they make no checkpoint.")
    if named:
        return named.pop()
    stored = folder / "config.json"
    return (_names_in(read_json(stored)) if stored.exists() else ()) or CLASSES


def _names_in(described: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a record or config names; none where they are no names."""
    names = described.get("classes")
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the checkpoint's folder, as `assemble` makes it")
    parser.add_argument("repository", help="Hub repository (user/name); made if it does not exist")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would go, and the card; send nothing"
    )
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder with reports, evaluate_<nesting>.json, for the card (default: FOLDER/results)",
    )
    parser.add_argument("--licence", default="mit", help="the Hub's identifier of a licence (default: mit)")
    parser.add_argument("--data", help="a sentence on the training data (known for Tiny Worlds)")
    parser.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> int:
    from nestar.publish import prepare, push

    publication = prepare(
        arguments.folder,
        arguments.repository,
        results=arguments.results or arguments.folder / "results",
        licence=arguments.licence,
        data=arguments.data,
    )
    if not arguments.dry_run:
        print(push(publication, arguments.repository, private=arguments.private))
        return 0
    listing = list(publication.listing())
    for path, size in listing:
        print(f"{size:>12,}  {path}")
    print(f"{sum(size for _, size in listing):>12,}  bytes would go to {arguments.repository}\n")
    print(publication.card)
    return 0
