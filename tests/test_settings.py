"""Every refusal and every acceptance of `check_settings`."""

from __future__ import annotations

import fractions
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestar.nesting import Nesting
from nestar.settings import (
    MAX_SEED,
    RANGES,
    SCHEDULES,
    SOLVERS,
    SampleSettings,
    SettingsError,
    check_choice,
    check_integer,
    check_number,
    check_settings,
    check_solving,
    find_nesting,
)

CLASSES = ("mountains", "fish", "hot-air balloon")
NESTINGS = {
    nesting.name: nesting
    for nesting in (
        Nesting.nested(8, 8, 2),
        Nesting.nested(8, 8, 4),
        Nesting.nested(8, 8, 8),
        Nesting.nested(8, 8, 4, "raster"),
        Nesting.autoregressive(8, 8),
        Nesting.cells(8, 8, 16),
        Nesting.one_shot(8, 8),
    )
}


def check(**values) -> SampleSettings:
    return check_settings(classes=CLASSES, nestings=NESTINGS, **({"class_name": "fish"} | values))


def refusal(**values) -> str:
    with pytest.raises(SettingsError) as error:
        check(**values)
    return str(error.value)


def test_defaults():
    assert check() == SampleSettings("fish")
    assert check() == SampleSettings("fish", 4, 6, 1.15, 3.0, 0, 1, "lattice", "heun", "linear")


def test_weights_own_defaults_come_before_the_general_ones_and_after_what_is_given():
    defaults = {"steps": 50, "temperature": 1.0, "solver": "euler"}
    settings = check(defaults=defaults, steps=9)
    assert settings == SampleSettings("fish", steps=9, temperature=1.0, solver="euler")


def test_weights_have_defaults_for_what_solves_and_guides_alone():
    defaults = {"steps": 50.0, "solver": " Euler", "temperature": 1, "cfg": 2.5, "schedule": "linear"}
    assert check_solving(defaults) == defaults | {"solver": "euler"}
    assert check_solving({}) == {}
    with pytest.raises(SettingsError, match=r"^Unknown setting 'seed'; allowed are steps, solver, "):
        check_solving({"seed": 1})
    with pytest.raises(SettingsError, match=r"^cfg must be a number from 0 to 20, got 21\.$"):
        check_solving({"cfg": 21})


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("class_name", "  Fish\n", "fish"),
        ("class_name", "MOUNTAINS", "mountains"),
        ("class_name", "hot-air\u00a0 balloon", "hot-air balloon"),
        ("class_name", "\uff26ish", "fish"),  # full-width F
        ("k", 2, 2),
        ("k", 8.0, 8),
        ("k", np.int64(8), 8),
        ("steps", 1, 1),
        ("steps", 200, 200),
        ("steps", 50.0, 50),
        ("steps", np.int32(7), 7),
        ("temperature", 0, 0.0),
        ("temperature", 2, 2.0),
        ("temperature", np.float32(0.5), 0.5),
        ("cfg", 0, 0.0),
        ("cfg", 20.0, 20.0),
        ("cfg", 2.7, 2.7),
        ("seed", 0, 0),
        ("seed", MAX_SEED, MAX_SEED),
        ("seed", 7.0, 7),
        ("seed", "7", 7),
        ("seed", " 007 ", 7),
        ("seed", "0", 0),
        ("seed", "0" * 900, 0),
        ("seed", str(MAX_SEED), MAX_SEED),
        ("seed", np.uint64(MAX_SEED), MAX_SEED),
        ("count", 1, 1),
        ("count", 16, 16),
        ("order", "Raster ", "raster"),
        ("solver", "heun", "heun"),
        ("solver", "midpoint", "midpoint"),
        ("schedule", "linear", "linear"),
    ],
)
def test_accepted(name, given, kept):
    value = getattr(check(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)


# What no number may be, whatever its range.
NO_NUMBERS = (
    True, False, None, "abc", "", [5], math.nan, math.inf, -math.inf, 1j,
    np.float64("nan"), 10**6000, -(10**6000),
)  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(type(value)))
@pytest.mark.parametrize("name", RANGES)
def test_no_numbers_are_refused(name, value):
    kind = "whole number" if name in ("steps", "count") else "number"
    lowest, highest = RANGES[name]
    message = refusal(**{name: value})
    assert message.startswith(f"{name} must be a {kind} from {lowest:g} to {highest:g}, got ")
    assert message.endswith(".")
    assert len(message) < 130


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 200, got 0."),
        ({"steps": 201}, "steps must be a whole number from 1 to 200, got 201."),
        ({"steps": 2.5}, "steps must be a whole number from 1 to 200, got 2.5."),
        ({"steps": "25"}, "steps must be a whole number from 1 to 200, got '25'."),
        ({"steps": fractions.Fraction(3, 2)}, "steps must be a whole number from 1 to 200, got 3/2."),
        ({"steps": [1]}, "steps must be a whole number from 1 to 200, got a list."),
        ({"temperature": -0.01}, "temperature must be a number from 0 to 2, got -0.01."),
        ({"temperature": 2.01}, "temperature must be a number from 0 to 2, got 2.01."),
        ({"temperature": "1"}, "temperature must be a number from 0 to 2, got '1'."),
        ({"cfg": -1}, "cfg must be a number from 0 to 20, got -1."),
        ({"cfg": 20.5}, "cfg must be a number from 0 to 20, got 20.5."),
        ({"count": 0}, "count must be a whole number from 1 to 16, got 0."),
        ({"count": 17}, "count must be a whole number from 1 to 16, got 17."),
        ({"count": 1.5}, "count must be a whole number from 1 to 16, got 1.5."),
        ({"count": 10**50}, "count must be a whole number from 1 to 16, got a number"),
        ({"class_name": "cat"}, "class must be one of mountains, fish, hot-air balloon; got 'cat'."),
        ({"class_name": ""}, "class must be one of mountains, fish, hot-air balloon; got nothing."),
        ({"class_name": None}, "class must be one of mountains, fish, hot-air balloon; got None."),
        ({"class_name": 1}, "class must be one of mountains, fish, hot-air balloon; got 1."),
        ({"class_name": ["fish"]}, "class must be one of mountains, fish, hot-air balloon; got a list."),
        ({"order": "spiral"}, "order must be one of lattice, raster, blocks; got 'spiral'."),
        ({"order": None}, "order must be one of lattice, raster, blocks; got None."),
        ({"solver": "rk4"}, "solver must be one of euler, midpoint, heun; got 'rk4'."),
        ({"solver": {}}, "solver must be one of euler, midpoint, heun; got a dict."),
        ({"schedule": "cosine"}, "schedule must be one of constant, linear; got 'cosine'."),
        ({"guidance": 3}, "Unknown setting 'guidance'; the settings are class_name, k, steps,"),
    ],
)
def test_refused_by_name_and_allowed_range(values, message):
    assert message in refusal(**values)


@pytest.mark.parametrize(
    "seed",
    (True, False, None, 1.5, "abc", "", " ", "1.5", "-1", "1 2", "7\x00", "\u00b2", "\u0667", [7], -1, -1.0,
     MAX_SEED + 1, float(2**63), str(MAX_SEED + 1), "9" * 6000, 10**6000, math.nan, math.inf,
     np.float32("inf")),
    ids=lambda seed: type(seed).__name__,
)  # fmt: skip
def test_refused_seeds(seed):
    message = refusal(seed=seed)
    assert message.startswith(f"seed must be a whole number from 0 to {MAX_SEED}, got ")
    assert len(message) < 130


def test_long_text_is_cut_in_the_message():
    assert refusal(class_name="x" * 100_000).endswith("xxx....")
    assert len(refusal(class_name="x" * 100_000)) < 130


def test_text_of_any_length_is_not_read_through():
    """Each character would be compared with every class, and others wait for that."""
    assert check(class_name="fish" + " " * 900).class_name == "fish"
    assert "class must be one of" in refusal(class_name="fish" + " " * 10_000)
    assert "seed must be" in refusal(seed="0" * 10_000)


HUGE = "a number of more than 38 digits"
AVAILABLE = (
    "there are weights for k = 2 (lattice), k = 4 (lattice), k = 8 (lattice), k = 1 (raster), "
    "k = 4 (raster), k = 64 (raster), k = 16 (blocks)."
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 3}, f"k = 3 with order lattice has no weights; {AVAILABLE}"),
        ({"k": 8, "order": "raster"}, f"k = 8 with order raster has no weights; {AVAILABLE}"),
        ({"k": -4}, f"k = -4 with order lattice has no weights; {AVAILABLE}"),
        ({"k": 10**6000}, f"k = {HUGE} with order lattice has no weights; {AVAILABLE}"),
        ({"k": 4.5}, f"k must be a whole number, got 4.5; {AVAILABLE}"),
        ({"k": True}, f"k must be a whole number, got True; {AVAILABLE}"),
        ({"k": "4"}, f"k must be a whole number, got '4'; {AVAILABLE}"),
        ({"k": None}, f"k must be a whole number, got None; {AVAILABLE}"),
        ({"k": math.inf}, f"k must be a whole number, got inf; {AVAILABLE}"),
    ],
)
def test_k_without_weights_is_refused_and_those_with_weights_are_listed(values, message):
    assert refusal(**values) == message


def test_named_weights_set_k_and_order():
    variant = {"k4-lattice.separate": NESTINGS["k4-lattice"], **NESTINGS}
    given = {"classes": CLASSES, "nestings": variant, "class_name": "fish"}
    checked = check_settings(**given, nesting=" K4-Lattice.Separate", k=8, order="raster")
    assert (checked.nesting, checked.k, checked.order) == ("k4-lattice.separate", 4, "lattice")
    assert check(nesting="one-shot") == SampleSettings("fish", k=1, order="raster", nesting="one-shot")
    assert check(nesting=None) == SampleSettings("fish")
    assert find_nesting(variant, 4, "lattice") == "k4-lattice"
    assert find_nesting(variant, 4, "lattice", "k4-lattice.separate") == "k4-lattice.separate"


@pytest.mark.parametrize("name", ["k4-lattice.separate", "", 4, True, [], "k4"])
def test_an_unknown_name_of_weights_is_refused_and_the_names_are_listed(name):
    assert refusal(nesting=name).startswith(
        "nesting must be one of k2-lattice, k4-lattice, k8-lattice, k4-raster, ar-raster, cells16-blocks, "
        "one-shot; got "
    )
    with pytest.raises(SettingsError, match=r"^nesting must be one of k2-lattice, "):
        find_nesting(NESTINGS, 4, "lattice", name)


def test_no_weights_at_all():
    with pytest.raises(SettingsError, match=r"no weights; there are weights for no nesting\.$"):
        check_settings(classes=CLASSES, nestings={}, class_name="fish")


def test_missing_class():
    with pytest.raises(SettingsError, match=r"^class_name is missing\.$"):
        check_settings(classes=CLASSES, nestings=NESTINGS)


def test_classes_may_be_any_iterable_and_keep_their_spelling():
    kept = check_settings(classes=iter(["Tabby Cat"]), nestings=NESTINGS, class_name="tabby cat")
    assert kept.class_name == "Tabby Cat"


@pytest.mark.parametrize(
    ("k", "order", "name"),
    [(4, "lattice", "k4-lattice"), (4, "raster", "k4-raster"), (64, "raster", "ar-raster"),
     (16, "blocks", "cells16-blocks"), (1, "raster", "one-shot")],
)  # fmt: skip
def test_k_and_order_pick_one_nesting(k, order, name):
    assert find_nesting(NESTINGS, k, order) == name
    assert check(k=k, order=order).k == k


def test_a_nested_kind_goes_before_a_baseline():
    nested = Nesting.nested(8, 8, 64, "raster")
    both = {"ar-raster": Nesting.autoregressive(8, 8), nested.name: nested}
    assert find_nesting(both, 64, "raster") == "k64-raster"


@settings(deadline=None)  # the machine may be shared with a training run
@given(st.integers(1, 200), st.floats(0, 2), st.floats(0, 20), st.integers(0, MAX_SEED), st.integers(1, 16),
       st.sampled_from(SOLVERS), st.sampled_from(SCHEDULES))  # fmt: skip
def test_everything_in_range_is_kept_as_given(steps, temperature, cfg, seed, count, solver, schedule):
    values = {
        "steps": steps, "temperature": temperature, "cfg": cfg, "seed": seed, "count": count,
        "solver": solver, "schedule": schedule,
    }  # fmt: skip
    assert check(**values) == SampleSettings("fish", **values)


@settings(deadline=None)  # the machine may be shared with a training run
@given(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.none())
)
def test_any_value_is_accepted_or_refused_with_one_sentence(value):
    for name in SampleSettings.__dataclass_fields__:
        try:
            check(**{name: value})
        except SettingsError as error:
            assert str(error).endswith(".")
            assert "\n" not in str(error)


def test_single_checks_serve_the_page():
    assert check_integer("steps", 5.0) == 5
    assert check_number("cfg", 5) == 5.0
    with pytest.raises(SettingsError, match="steps must be a whole number from 1 to 200"):
        check_integer("steps", 500)
    assert issubclass(SettingsError, ValueError)


def test_of_names_that_differ_in_case_alone_the_one_that_was_written_is_taken():
    assert check_choice("class", "cat", ("Cat", "cat")) == "cat"
    assert check_choice("class", "CAT", ("Cat", "cat")) == "Cat"


def test_of_a_thousand_classes_a_refusal_names_the_first():
    names = tuple(f"class {number}" for number in range(1000))
    with pytest.raises(SettingsError) as refused:
        check_choice("class", "dragon", names)
    sentence = str(refused.value)
    assert sentence.startswith("class must be one of class 0, class 1,") and len(sentence) < 400
    assert sentence.endswith("class 23 and 976 others; got 'dragon'.")
    assert check_choice("class", "Class 999", names) == "class 999"
