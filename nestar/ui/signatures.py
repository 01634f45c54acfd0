"""How a nesting fails: each failure's signature, why it comes about, and the settings that provoke it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nestar.checkpoints import alike
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, find_nesting
from nestar.ui.generate import first_settings

FEW_STEPS = (1, 2, 3)
COLD, HOT = 0.0, 1.5
STRONG = 6.0
SMALL_K, LARGE_K = 2, 8
SEEDS = 4
"""Pictures a side where it is about how seeds differ."""

SEPARATE = "separate"
"""Variant of weights whose modules were trained without coordination."""


@dataclass(frozen=True)
class Side:
    """One of two runs: how it is called, with settings by name in braces, and those that are its own."""

    label: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """A way to provoke a failure.

    Attributes:
        count: pictures a side, with seeds in a row.
        meters: names in `laboratory.MEASURES`, what is measured of both sides.
        needs: weights without which it cannot be shown.
        velocities: whether the sides differ in weights, so that their modules' agreement is measured too.
        versus: whether neither side is the healthy one by itself.
    """

    name: str
    button: str
    healthy: Side
    broken: Side
    meters: tuple[str, ...]
    count: int = 1
    needs: tuple[str, ...] = ()
    velocities: bool = False
    versus: bool = False

    def labels(self, sides: Sequence[SampleSettings]) -> list[str]:
        """How both sides are called, given their settings."""
        pair = zip((self.healthy, self.broken), sides, strict=True)
        return [side.label.format(**vars(settings)) for side, settings in pair]


@dataclass(frozen=True)
class Signature:
    """A kind of failure as one sees it, why it comes about in one line, and the ways to provoke it."""

    name: str
    title: str
    why: str
    failures: tuple[Failure, ...]


def signatures(pipeline: NestARPipeline) -> tuple[Signature, ...]:
    """All failures that the tab shows, in its order."""
    first = first_settings(pipeline)
    own = find_nesting(pipeline.nestings, first.k, first.order)
    together, apart = compared(pipeline)
    nesting = pipeline.nestings[own]
    order = first.order if nesting.kind == "nested" else SampleSettings.order
    small, large = (Nesting.nested(nesting.height, nesting.width, k, order) for k in (SMALL_K, LARGE_K))
    steps, temperature = Side("Steps: {steps}", {}), Side("Temperature {temperature:g}", {})
    return (
        Signature(
            "steps",
            "Too few steps",
            "A patch leaps from noise to data in a few straight lines, where its path is curved.",
            tuple(
                Failure(
                    f"steps-{count}",
                    "1 step" if count == 1 else f"{count} steps",
                    steps,
                    Side(steps.label, {"steps": count}),
                    ("seams", "detail"),
                )
                for count in FEW_STEPS
            ),
        ),
        Signature(
            "cold",
            "Temperature too low",
            "Without noise there is nothing left in which seeds could differ.",
            (
                Failure(
                    "cold",
                    f"Temperature {COLD:g}",
                    temperature,
                    Side(temperature.label, {"temperature": COLD}),
                    ("spread",),
                    count=SEEDS,
                ),
            ),
        ),
        Signature(
            "hot",
            "Temperature too high",
            f"Noise {HOT:g} times that of training: patches begin where no path was learnt.",
            (
                Failure(
                    "hot",
                    f"Temperature {HOT:g}",
                    temperature,
                    Side(temperature.label, {"temperature": HOT}),
                    ("seams", "detail"),
                ),
            ),
        ),
        Signature(
            "guidance",
            "Guidance too strong",
            "What the class changes about a velocity is multiplied, and overshoots.",
            (
                Failure(
                    "guidance",
                    f"Guidance {STRONG:g}",
                    Side("Guidance {cfg:g}", {}),
                    Side("Guidance {cfg:g}", {"cfg": STRONG}),
                    ("contrast", "seams"),
                ),
            ),
        ),
        Signature(
            "separate",
            "No coordination",
            "Nothing made neighbouring modules agree (λ = 0): see the velocities, as pictures hardly differ."
            + ("" if together == own else " Both saw equally many images, fewer than Generate’s weights."),
            (
                Failure(
                    "separate",
                    "λ = 0",
                    Side("Coordinated", {"nesting": together}),
                    Side("λ = 0", {"nesting": apart}),
                    ("seams",),
                    needs=(together, apart),
                    velocities=True,
                ),
            ),
        ),
        Signature(
            "k",
            f"k = {SMALL_K} against k = {LARGE_K}",
            f"As many blocks, trained as {small.modules} small modules or as {large.modules} large ones.",
            (
                Failure(
                    "k",
                    f"k = {SMALL_K} and k = {LARGE_K}",
                    Side(f"k = {SMALL_K}", {"nesting": small.name}),
                    Side(f"k = {LARGE_K}", {"nesting": large.name}),
                    ("seams", "detail"),
                    needs=(small.name, large.name),
                    velocities=True,
                    versus=True,
                ),
            ),
        ),
    )


def compared(pipeline: NestARPipeline) -> tuple[str, str]:
    """Names of the weights with and without coordination; not whether they are there."""
    first = first_settings(pipeline)
    own = find_nesting(pipeline.nestings, first.k, first.order)
    return alike(pipeline.nestings, own), f"{own}.{SEPARATE}"


def unequal(failure: Failure, pipeline: NestARPipeline) -> str:
    """A sentence where the weights that a failure compares saw different numbers of images, or ""."""
    if why_not(failure, pipeline) or not failure.needs:
        return ""
    images = [pipeline.models.outline(name).images_seen for name in failure.needs]
    if len(set(images)) == 1:
        return ""
    seen = " and ".join(f"{count:,}" for count in images)
    return f"They saw different numbers of training images, {seen}: part of the difference is due to that."


def unhealthy(failure: Failure, healthy: SampleSettings) -> str:
    """A sentence where the settings of the healthy side are no better than those that fail, or ""."""
    for name in ("steps", "temperature", "cfg"):
        if name not in failure.broken.values:
            continue
        bad, given = failure.broken.values[name], getattr(healthy, name)
        above = getattr(SampleSettings, name) > bad
        if given == bad or (given > bad) != above:
            where = "above" if above else "below"
            return f"{name} must be {where} {bad:g}, with which it fails, got {given:g}."
    return ""


def why_not(failure: Failure, pipeline: NestARPipeline) -> str:
    """Why the failure cannot be shown with these weights, or ""."""
    missing = [name for name in failure.needs if name not in pipeline.nestings]
    return f"There are no weights for {' and '.join(missing)} here." if missing else ""
