"""Sampling settings and the one place where bad input is refused, by name and allowed range."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from numbers import Integral, Real
from typing import Any

from nestar.nesting import ORDERS, Nesting

# Lowest and highest allowed value; the page's number fields mark what lies outside.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 200),
    "temperature": (0.0, 2.0),
    "cfg": (0.0, 20.0),
    "count": (1, 16),
}
MAX_SEED = 2**63 - 1
MOST_LISTED = 24
"""Of allowed names in a refusal; a checkpoint may know a thousand classes."""
MAX_TEXT = 1000
"""Characters of a name or seed that are read; names have at most `limits.MAX_SHOWN`, a request millions."""

# Velocity calls per step of each solver.
SOLVER_CALLS = {"euler": 1, "midpoint": 2, "heun": 2}
SOLVERS = tuple(SOLVER_CALLS)
SCHEDULES = ("constant", "linear")
SOLVING = ("steps", "solver", "temperature", "cfg", "schedule")
"""How a picture is solved and guided: weights may have defaults of their own for these."""


class SettingsError(ValueError):
    """A setting was refused; the message is one sentence fit for the page."""


@dataclass(frozen=True)
class SampleSettings:
    """What one call of the sampler needs. Build it with `check_settings`.

    Defaults of temperature, cfg and schedule: the best recall of nine settings of the k = 4 of then, on 500
    samples of another seed than the README's figures. Of solver and steps: on as many of such a seed six
    steps of Heun had FID 14.8 and recall 0.716; 25 of Euler, at twice the calls, 16.9 and 0.651. Precision
    was alike (0.919, 0.925). `experiment sampler` tries them on the present weights.

    Attributes:
        class_name: one of the checkpoint's classes.
        k, order: which nesting; together they pick one of those with weights.
        steps: solver steps per patch.
        temperature: standard deviation of the initial noise.
        cfg: guidance scale s in v_u + s (v_c - v_u); 1 is no guidance.
        seed: of the noise, 0 ... MAX_SEED.
        count: pictures made at once.
        solver, schedule: one of SOLVERS, one of SCHEDULES (how guidance runs over the patches).
        nesting: the weights by name (`k4-lattice.separate`), or None: those that k and order pick. A name
            sets k and order, whatever was given for them.
    """

    class_name: str
    k: int = 4
    steps: int = 6
    temperature: float = 1.15
    cfg: float = 3.0
    seed: int = 0
    count: int = 1
    order: str = "lattice"
    solver: str = "heun"
    schedule: str = "linear"
    nesting: str | None = None


def check_settings(
    *,
    classes: Iterable[str],
    nestings: Mapping[str, Nesting],
    defaults: Mapping[str, object] | None = None,
    **values: object,
) -> SampleSettings:
    """Check `values`, fields of SampleSettings by name, and fill in defaults.

    Args:
        classes: names the checkpoint knows; case and surrounding whitespace of the given name do not matter.
        nestings: those with weights, by name.
        defaults: the checkpoint's own, before those of SampleSettings.

    Raises:
        SettingsError: a value is missing, unknown or out of range.
    """
    known = [field.name for field in fields(SampleSettings)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise SettingsError(f"Unknown setting {_show(unknown[0])}; the settings are {', '.join(known)}.")
    if "class_name" not in values:
        raise SettingsError("class_name is missing.")
    given = {field.name: field.default for field in fields(SampleSettings)} | dict(defaults or {}) | values
    name = given["nesting"]
    if name is None:
        order = check_choice("order", given["order"], ORDERS)
        k = _whole(given["k"])
        if k is None:
            raise SettingsError(f"k must be a whole number, got {_show(given['k'])}; {_available(nestings)}.")
        find_nesting(nestings, k, order)
    else:
        name = check_choice("nesting", name, tuple(nestings))
        k, order = nestings[name].k, nestings[name].order
    return SampleSettings(
        class_name=check_choice("class", given["class_name"], tuple(classes)),
        k=k,
        seed=check_seed(given["seed"]),
        count=check_integer("count", given["count"]),
        order=order,
        nesting=name,
        **check_solving({name: given[name] for name in SOLVING}),
    )


def check_solving(values: Mapping[str, object]) -> dict[str, Any]:
    """Check those of the settings SOLVING that are given, by name.

    Raises:
        SettingsError: one is unknown or out of range.
    """
    unknown = [name for name in values if name not in SOLVING]
    if unknown:
        raise SettingsError(f"Unknown setting {_show(unknown[0])}; allowed are {', '.join(SOLVING)}.")
    checks = {
        "steps": check_integer,
        "solver": partial(check_choice, choices=SOLVERS),
        "temperature": check_number,
        "cfg": check_number,
        "schedule": partial(check_choice, choices=SCHEDULES),
    }
    return {name: checks[name](name, value) for name, value in values.items()}


def typed(text: str) -> int | float | str:
    """What was typed as the number it is written as; anything else is left for the one check to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def by_name(given: object, names: Iterable[str]) -> dict[str, object]:
    """Of what a stranger sent, the values that have one of these names; they are still to be checked.

    Raises:
        SettingsError: it is no object of named values.
    """
    if not isinstance(given, Mapping):
        raise SettingsError(f"The settings must be given by name, got {_show(given)}.")
    return {name: given[name] for name in names if name in given}


def find_nesting(nestings: Mapping[str, Nesting], k: int, order: str, name: str | None = None) -> str:
    """Name of the nesting with weights that has this k and order; a nested one before a baseline, then one
    that goes by its nesting's own name before a variant of it (`k4-lattice.separate`). With `name`, the one
    of that name, whatever k and order.

    Raises:
        SettingsError: there is none.
    """
    if name is not None:
        return check_choice("nesting", name, tuple(nestings))
    matches = [name for name, nesting in nestings.items() if (nesting.k, nesting.order) == (k, order)]
    if not matches:
        raise SettingsError(f"k = {_show(k)} with order {order} has no weights; {_available(nestings)}.")
    return min(matches, key=lambda name: (nestings[name].kind != "nested", name != nestings[name].name))


def _available(nestings: Mapping[str, Nesting]) -> str:
    ordered = sorted(nestings.values(), key=lambda nesting: (ORDERS.index(nesting.order), nesting.k))
    pairs = dict.fromkeys(f"k = {nesting.k} ({nesting.order})" for nesting in ordered)
    return f"there are weights for {', '.join(pairs) or 'no nesting'}"


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """The one of `choices` that `value` names, whatever its case and surrounding whitespace."""
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        if value in choices:  # of names that differ in case alone the one that was written
            return value
        plain = _plain(value)
        for choice in choices:
            if _plain(choice) == plain:
                return choice
    raise SettingsError(f"{name} must be one of {_listed(choices)}; got {_show(value)}.")


def _listed(choices: tuple[str, ...]) -> str:
    """Choices for a sentence; of very many the first."""
    if len(choices) <= MOST_LISTED:
        return ", ".join(choices)
    return f"{', '.join(choices[:MOST_LISTED])} and {len(choices) - MOST_LISTED:,} others"


def check_integer(name: str, value: object) -> int:
    """`value` as an int: whole numbers inside RANGES[name], also as floats such as 7.0 from a slider."""
    whole = _whole(value)
    if whole is None or not _inside(name, whole):
        raise SettingsError(f"{name} must be a whole number {_range_text(name)}, got {_show(value)}.")
    return whole


def check_number(name: str, value: object) -> float:
    """`value` as a float: any finite number inside RANGES[name]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not _inside(name, value):
        raise SettingsError(f"{name} must be a number {_range_text(name)}, got {_show(value)}.")
    return float(value)


def check_seed(value: object, name: str = "seed") -> int:
    """`value` as a seed: a whole number from 0 to MAX_SEED, as int, integral float or string of digits."""
    seed = _whole(value)
    if isinstance(value, str) and len(value) <= MAX_TEXT and re.fullmatch("[0-9]+", value.strip()):
        seed = int(value)
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise SettingsError(f"{name} must be a whole number from 0 to {MAX_SEED}, got {_show(value)}.")
    return seed


def _whole(value: object) -> int | None:
    """`value` as an int if it is a whole number and no bool, else None."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        whole = int(value)
    except (OverflowError, ValueError):  # infinity, NaN
        return None
    return whole if whole == value else None


def _inside(name: str, value: Real) -> bool:
    """Whether `value` is in RANGES[name]. NaN is not."""
    lowest, highest = RANGES[name]
    return bool(lowest <= value <= highest)


def _range_text(name: str) -> str:
    lowest, highest = RANGES[name]
    return f"from {lowest:g} to {highest:g}"


def _plain(text: str) -> str:
    """Comparable form: compatibility characters unified, lower case, single spaces, none around."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def _show(value: object, longest: int = 40) -> str:
    """Short printable form of any value."""
    if isinstance(value, Integral) and int(value).bit_length() > 128:  # Python refuses to print huge ones
        return "a number of more than 38 digits"
    if isinstance(value, str):
        text = repr(value[: longest + 1]) if value else "nothing"
        return text if len(text) <= longest else text[: longest - 3] + "..."
    return str(value) if value is None or isinstance(value, Real) else f"a {type(value).__name__}"
