"""ImageNet's scale: the sizes, their peers' arithmetic, and what training takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.peers import FEWER_BLOCKS
from benchmarks.readme.words import between, table
from nestar.registry import FACTORS, SIZES, XAR_MILLIONS, imagenet_config


def size_parts() -> Iterator[str]:
    """The ImageNet sizes beside xAR's."""
    heads = ("", "width", "heads", "blocks", *(f"k = {k}" for k in FACTORS), "xAR")
    rows = [
        (
            f"NestAR-{name.upper()}",
            str(size.dim),
            str(size.heads),
            str(size.blocks),
            *(f"{imagenet_config(name, k).parameters / 1e6:,.0f}" for k in FACTORS),
            f"{XAR_MILLIONS[name]:,}" if name in XAR_MILLIONS else "",
        )
        for name, size in SIZES.items()
    ]
    yield from table(heads, rows)
    yield ""
    yield "Parameters in millions, of all modules together; *xAR*: those of the xAR of the same letter."


OURS = {"B": "NestAR-B", "L": f"NestAR-L of {FEWER_BLOCKS} blocks"}
WHOLE_L = "NestAR-L"


def peer_lines(report: dict[str, Any]) -> Iterator[str]:
    """NestAR beside its peers at ImageNet's shape."""
    timed = "" if report["device"] else " Nothing was timed: there was no GPU."
    yield (
        "`python -m benchmarks.peers`: arithmetic at ImageNet's shape (256 x 256, guided, decoder left out); "
        f"peers as timing models written from their papers.{timed} Nobody has trained NestAR-B or -L, so "
        "nothing here says which quality they reach, and 50 steps of Euler a patch are our choice. The last "
        f"columns divide a peer's operations by those of {OURS['B']} (for B) or of {OURS['L']} (for L and "
        "DiT-XL/2), each no larger than the MAR of its letter. In brackets they are divided by those of the "
        f"whole {WHOLE_L} where it is nearer in size to the peer, and so the fairer measure:"
    )
    yield ""
    heads = ("", "shape", "parameters, 10⁶", "operations, 10¹²", "times NestAR, k = 4", "times NestAR, k = 2")
    yield from table(heads, peer_rows(report))
    for batch in report["rows"][0].get("batches", ()):
        yield ""
        heads = (f"{batch} at a time", "s per picture", "share of peak", "times k = 4", "times k = 2")
        yield from table(heads, timed_peer_rows(report, batch))


def peer_rows(report: dict[str, Any]) -> Iterator[list[str]]:
    for row in report["rows"]:
        yield [
            row["name"],
            row["shape"],
            f"{row['parameters'] / 1e6:.0f}",
            f"{row['operations'] / 1e12:.3g}",
            *operations_ratios(report, row),
        ]


def operations_ratios(report: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    """A peer's operations over NestAR's, at k = 4 and 2."""
    whole = {other["name"]: other["parameters"] for other in report["rows"]}
    for k, found in zip((4, 2), peer_ratios(report, row), strict=True):
        if found is None:
            yield ""
            continue
        ours, larger = (f"{name}, k = {k}" for name in (OURS["L"], WHOLE_L))
        nearer = abs(whole[larger] - row["parameters"]) < abs(whole[ours] - row["parameters"])
        more = report["ratios"][larger].get(row["name"]) if nearer and "-B" not in row["name"] else None
        yield f"{found['operations']:.3g}" + (f" ({more['operations']:.3g})" if more else "")


def timed_peer_rows(report: dict[str, Any], batch: str) -> Iterator[list[str]]:
    """Seconds beside those that the arithmetic allows; marked as in `speed.ratio`."""
    for row in report["rows"]:
        own = row["batches"][batch]
        yield [
            row["name"],
            between({name: seconds / int(batch) for name, seconds in own["seconds"].items()}, ""),
            f"{own['share_of_matrix_rate']:.0%}",
            *("" if each is None else timed_ratio(each, batch) for each in peer_ratios(report, row)),
        ]


def timed_ratio(found: dict[str, Any], batch: str) -> str:
    mark = "" if found[f"fair_at_batch_{batch}"] else " °"
    return f"{found[f'seconds_at_batch_{batch}']:.3g} x{mark}"


def peer_ratios(report: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any] | None]:
    """A peer over NestAR of its letter, at k = 4 and 2; None for NestAR itself."""
    ours = OURS["B" if "-B" in row["name"] else "L"]
    return [report["ratios"][f"{ours}, k = {k}"].get(row["name"]) for k in (4, 2)]


NO_STEPS = (
    "`python -m benchmarks.imagenet_step` takes optimiser steps of the ImageNet sizes at their whole batch, "
    "and projects the hours of a run from them; it has not been run, as there was no GPU."
)


def training_lines(report: dict[str, Any]) -> Iterator[str]:
    """What an optimiser step takes at ImageNet's scale, and what a whole run would."""
    yield (
        f"`python -m benchmarks.imagenet_step`: optimiser steps on one {report['device']}, in "
        f"{report['precision']}, blocks run twice for less memory; the hours are projected:"
    )
    yield ""
    heads = ("", "parameters, 10⁶", "batch", "images a second", "memory, GiB", "steps of the recipe", "hours")
    yield from table(heads, (training_row(row) for row in report["rows"]))


def training_row(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['parameters'] / 1e6:.0f}",
        f"{row['batch']:,}",
        f"{row['images_per_second']:.3g}",
        f"{row['memory_gib']:.3g}",
        f"{row['recipe_steps']:,}",
        f"{row['projected_hours']:,.0f}",
    ]
