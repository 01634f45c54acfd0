"""Tables, and values in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = tuple[str, str, str, str, str]
"""Of a table of results: what, its value, beside what or how, its target, the command that measured it."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def between(found: dict[str, float], unit: str) -> str:
    """A median and its spread, where there were several runs."""
    spread = (
        f" ({found['lowest']:.3g} to {found['highest']:.3g})" if found["lowest"] < found["highest"] else ""
    )
    return f"{found['median']:.3g}{unit}{spread}"


def spoken(dtypes: Sequence[str]) -> str:
    """float32, float32 and bf16."""
    words = [name.replace("bfloat16", "bf16") for name in dtypes]
    return words[0] if len(set(words)) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def said(value: Any) -> str:
    """A finding's value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        said_each = {key.replace("_", " "): said(each) for key, each in value.items()}
        if len(said_each) > 1 and len(set(said_each.values())) == 1:
            return f"{next(iter(said_each.values()))} (all)"
        return ", ".join(
            f"{key} ({words})" if isinstance(each, dict) else f"{key} {words}"
            for (key, words), each in zip(said_each.items(), value.values(), strict=True)
        )
    if isinstance(value, list):
        return ", ".join(said(each) for each in value)
    return str(value)
