"""The class chooser of more classes than one sees at a glance: a checkpoint of ImageNet's 1,000."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

import app
from nestar.data.imagenet import imagenet_classes
from nestar.ui.generate import AT_A_GLANCE, class_cards
from tests.conftest import served, visitors
from tests.small import K4, save_checkpoint
from tests.test_page import PHONE


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    names = [row.name for row in imagenet_classes()]
    folder = save_checkpoint(tmp_path_factory.mktemp("imagenet"), [K4], names)
    with served(app.open_page(str(folder), None, "cpu")) as address:
        yield address


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    with visitors(browser, url) as opened:
        yield opened


def shown(page: Any) -> Locator:
    return page.locator(".card:visible span")


def find(page: Any, text: str) -> None:
    page.get_by_label("Search 1,000 classes").fill(text)


def test_classes_seen_at_a_glance_need_no_search() -> None:
    names = tuple(f"class {number}" for number in range(AT_A_GLANCE + 1))
    assert 'type="search"' in class_cards(names)
    assert 'type="search"' not in class_cards(names[:-1])


def test_a_class_is_found_by_a_part_of_its_name_and_painted(open_page: Callable[..., Any]) -> None:
    visit = open_page()
    page = visit.page
    expect(shown(page)).to_have_count(12)
    find(page, "golden  RETR")
    expect(shown(page)).to_have_text(["tench", "golden retriever"])  # the one chosen stays in sight
    page.get_by_role("radio", name="golden retriever").check()
    visit.generate()
    visit.wait_until_rested()
    expect(page.locator(".picture img.over")).to_have_attribute("alt", re.compile("golden retriever"))


def test_other_names_find_a_class_and_beginnings_come_first(open_page: Callable[..., Any]) -> None:
    page = open_page().page
    find(page, "puma")
    expect(shown(page)).to_have_text(["tench", "cougar"])
    find(page, "tiger")
    expect(shown(page).nth(1)).to_have_text(re.compile("^tiger"))


def test_enter_takes_the_first_found_and_an_empty_search_shows_classes_again(
    open_page: Callable[..., Any],
) -> None:
    page = open_page().page
    find(page, "goldfish")
    page.keyboard.press("Enter")
    expect(page.get_by_role("radio", name="goldfish")).to_be_checked()
    expect(page.locator(".stage")).to_have_attribute("data-state", "finished")  # and nothing was started
    find(page, "")
    expect(shown(page)).to_have_count(12)
    expect(shown(page).first).to_have_text("goldfish")


def test_a_search_says_when_nothing_or_too_much_is_found(open_page: Callable[..., Any]) -> None:
    page = open_page().page
    find(page, "zzz")
    expect(page.locator(".matches")).to_have_text("No class goes by this name.")
    expect(shown(page)).to_have_text(["tench"])
    find(page, "e")
    expect(page.locator(".matches")).to_have_text(re.compile(r"^\d+ more: type on\.$"))


def test_arrow_keys_go_on_from_class_to_class(open_page: Callable[..., Any]) -> None:
    """The card that is chosen moves to the front, and the focus with it."""
    page = open_page().page
    second, third = (shown(page).nth(place).inner_text() for place in (1, 2))
    page.get_by_role("radio", name="tench").focus()
    for name in (second, third):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("radio", name=name, exact=True)).to_be_checked()
        expect(page.get_by_role("radio", name=name, exact=True)).to_be_focused()


def test_the_search_fits_a_phone(open_page: Callable[..., Any]) -> None:
    page = open_page(**PHONE).page
    find(page, "spaniel")
    expect(shown(page).nth(1)).to_be_visible()
    edges = shown(page).evaluate_all(  # of the names, which may run out of their cards
        "names => names.map(name => [name.getBoundingClientRect().left, name.getBoundingClientRect().right])"
    )
    assert all(right <= left for (_, right), (left, _) in itertools.pairwise(edges)), "one beside the other"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
