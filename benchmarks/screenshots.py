"""Pictures of the page: `python -m benchmarks.screenshots FOLDER` serves it and photographs it in Chromium.

Desktop and phone, light and dark. The Generate tab as it stands on load, in the middle of a run, when
finished, with a token looked at, and with a refused setting; every other tab after its main action. Look at
each after a change to the page.
"""

import argparse
from pathlib import Path

from playwright.sync_api import Browser, Page

from benchmarks.browser import add_page_arguments, page_in_browser

SCREENS = {
    "desktop": {"viewport": {"width": 1440, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True},
}
# Slow enough that a patch in the middle is still running when the picture is taken.
MID_RUN_STEPS = 100
PATIENCE_MS = 90_000


def photograph(browser: Browser, url: str, folder: Path, screen: str, scheme: str) -> None:
    """All states of the page on one screen in one colour scheme, as PNG files in `folder`."""
    context = browser.new_context(**SCREENS[screen], color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.locator(".film .ready").first.wait_for()

    def shoot(state: str, full_page: bool = False) -> None:
        path = folder / f"{screen}-{scheme}-{state}.png"
        page.screenshot(path=path, full_page=full_page)
        print(path)

    page.wait_for_timeout(300)
    shoot("on-load")
    shoot("whole", full_page=True)
    steps = page.get_by_label("Steps per patch, as a number")
    steps.fill(str(MID_RUN_STEPS))
    to_top(page)
    page.locator("#generate").click()
    page.locator(".film li:nth-child(2).active").wait_for()
    shoot("mid-run")
    page.locator('.stage[data-state="finished"]:not(.playing)').wait_for()
    page.wait_for_timeout(300)
    shoot("finished")
    page.locator('.map .token[data-turn="5"]').first.hover()
    shoot("token")
    steps.fill("999")
    to_top(page)
    page.locator("#generate").click()
    page.locator(".message:not([hidden])").scroll_into_view_if_needed()
    shoot("refused")
    for tab, act in TABS.items():
        if page.get_by_role("tab", name=tab).count():
            to_top(page)
            open_tab(page, tab)
            act(page)
            to_top(page)
            page.wait_for_timeout(300)
            shoot(tab.lower().replace(" ", "-"), full_page=True)
    context.close()


def open_tab(page: Page, name: str) -> None:
    """Press a tab; on a narrow screen it may stand in the menu of those that found no place."""
    tab = page.get_by_role("tab", name=name).first
    if not tab.is_visible():
        page.get_by_label("More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name)
    tab.click()


def show_diversity(page: Page) -> None:
    page.locator("#diversity-generate").click()
    page.locator('#diversity-nearest [data-state="finished"]').wait_for(timeout=PATIENCE_MS)
    for button, panel in (("resample", "siblings"), ("warm", "sweep"), ("measure", "explained")):
        page.locator(f"#diversity-{button}").click()
        page.locator(f'#diversity-{panel} [data-state="finished"]').wait_for(timeout=PATIENCE_MS)


def show_race(page: Page) -> None:
    page.locator(".contest .first").click()
    page.locator('.contest[data-state="finished"]').wait_for(timeout=PATIENCE_MS)


def show_failures(page: Page) -> None:
    for failure in ("steps-2", "cold", "hot", "guidance"):
        page.locator(f'[data-failure="{failure}"]').click()
        page.locator('.failing[data-state="finished"]').wait_for(timeout=PATIENCE_MS)
    page.locator(".measure").click()
    page.locator('.aligning[data-state="finished"]').wait_for(timeout=PATIENCE_MS)


def show_how(page: Page) -> None:
    page.locator("#how canvas").first.wait_for()


TABS = {
    "Diversity": show_diversity,
    "Race": show_race,
    "When it fails": show_failures,
    "How it works": show_how,
}


def to_top(page: Page) -> None:
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    add_page_arguments(parser)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with page_in_browser(parser, arguments) as (browser, url):
        for screen in SCREENS:
            for scheme in ("light", "dark"):
                photograph(browser, url, arguments.folder, screen, scheme)


if __name__ == "__main__":
    main()
