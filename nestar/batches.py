"""What a batch may hold besides seeds in a row: siblings, families, one seed at many temperatures.

All of it is a matter of which noise stands at which place (see `sampler.sequence_noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from nestar.nesting import Nesting
from nestar.sampler import Prefix
from nestar.settings import MAX_SEED, SampleSettings, SettingsError, check_seed

SWEEP = (0.0, 0.4, 0.7, 1.0, 1.2, 1.5)
"""Temperatures at which one seed is shown side by side."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch.

    Attributes:
        seeds: of each row.
        keep: what each row shares with another sample, or None: nothing.
        temperatures, cfgs, classes: of each row, or None: that of the settings.
    """

    seeds: tuple[int, ...]
    keep: tuple[Prefix, ...] | None = None
    temperatures: tuple[float, ...] | None = None
    cfgs: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None


def consecutive(settings: SampleSettings) -> Rows:
    """`count` samples with seeds from `seed` on."""
    return Rows(seeds_from(settings.seed, settings.count))


def siblings(settings: SampleSettings, nesting: Nesting, parent: object, modules: object) -> Rows:
    """The sample with seed `parent`, then `count` others that keep its modules 1 ... `modules` and make the
    rest from seeds `seed`, `seed + 1`, ...

    Raises:
        SettingsError: `parent` is no seed, or there is nothing to keep or nothing left to make.
    """
    parent, modules = check_seed(parent, "parent"), check_modules(modules, nesting)
    own = (parent, *seeds_from(settings.seed, settings.count))
    return Rows(own, (Prefix(parent, modules),) * len(own))


def family(parents: Sequence[int], first: int, modules: int) -> Rows:
    """One sibling of each parent, which keeps its modules 1 ... `modules`; own seeds from `first` on."""
    return Rows(seeds_from(first, len(parents)), tuple(Prefix(parent, modules) for parent in parents))


def temperature_row(settings: SampleSettings, temperatures: Sequence[float] = SWEEP) -> Rows:
    """One seed, a row a temperature."""
    return Rows((settings.seed,) * len(temperatures), temperatures=tuple(temperatures))


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """`count` seeds from `first` on; after the largest comes 0."""
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))


def check_modules(value: object, nesting: Nesting, least: int = 1) -> int:
    """`value` as a number of modules that can be kept: at least `least`, and one is left to make.

    Raises:
        SettingsError: it is not.
    """
    if nesting.modules == 1:
        raise SettingsError(f"{nesting.name} has one module: nothing is left to make when it is kept.")
    if isinstance(value, bool) or not isinstance(value, Real) or value not in range(least, nesting.modules):
        raise SettingsError(
            f"modules must be a whole number from {least} to {nesting.modules - 1} for {nesting.name}, "
            f"which has {nesting.modules}."
        )
    return int(value)
