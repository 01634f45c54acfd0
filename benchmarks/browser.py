"""The page in a real browser, for what looks at it as a visitor does."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before torch and gradio are imported: browser and sampler share the cores, and the page calls nobody.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
"""Names that Chromium goes by."""


def find_browser() -> str | None:
    """Path of the system's Chromium, if it has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def add_page_arguments(parser: argparse.ArgumentParser) -> None:
    """Which page to open."""
    parser.add_argument("--repo", help="weights, as for app.py; default: the embedded ones")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


@contextmanager
def page_in_browser(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> Iterator[tuple[Browser, str]]:
    """Chromium and the address of the page, served while the block lasts; without Chromium a refusal of
    `parser`."""
    chromium = find_browser()
    if chromium is None:
        parser.error("no Chromium was found; get it with `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    from app import open_page
    from nestar.ui.assets import launch_options

    demo = open_page(arguments.repo, None, arguments.device)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            yield browser, url
            browser.close()
    finally:
        demo.close(verbose=False)
