"""The templates, scripts and styles beside this file, and how the page is launched with them."""

import html
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from nestar.ui.doors import Doors
from nestar.ui.leaving import Leaving

FOLDER = Path(__file__).parent
# The page's own, then those of tabs.
STYLES = ("page.css", "diversity.css", "how.css", "calls.css", "race.css", "failure.css")
# Plain strings name fonts the visitor already has; nothing is fetched.
SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
SESSIONS = 128
"""Visitors of whom Gradio keeps what stands on their page, 0.2 MB each; its own 10,000 would fill the memory
before the first is given up. Nothing of ours is lost with it: a page sends its values along."""
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<rect width='16' height='16' rx='3' fill='%231f4b5c'/>"
    "<g fill='%23f6efe2'><rect x='3' y='3' width='4' height='4'/><rect x='9' y='9' width='4' height='4'/></g>"
    "<g fill='%23e0a458'><rect x='9' y='3' width='4' height='4'/><rect x='3' y='9' width='4' height='4'/></g>"
    "</svg>"
)


@cache
def asset(name: str) -> str:
    """The text of a file in this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def scripts(*names: str) -> str:
    """These files of a panel's, one after another, behind what all panels' scripts share."""
    return "".join(map(asset, ("common.js", *names)))


def tells(event: str) -> str:
    """JavaScript that tells the page's scripts of an event."""
    return f"() => {{ document.dispatchEvent(new Event('nestar:{event}')); }}"


def template_text(text: str) -> str:
    """`text` as literal HTML in a `gr.HTML` template, which Handlebars and JavaScript evaluate.

    Class names come with the weights, so that a stranger's repository could otherwise bring code.
    """
    literal = html.escape(text, quote=True)
    return "".join(f"&#{ord(character)};" if character in "${}`\\" else character for character in literal)


def theme() -> gr.themes.Base:
    """Gradio's plainest theme on the page's own paper and ink; the colours' one source is page.css."""
    return gr.themes.Base(font=SANS, font_mono=MONO).set(
        body_background_fill="var(--paper)",
        body_background_fill_dark="var(--paper)",
        body_text_color="var(--ink)",
        body_text_color_dark="var(--ink)",
        button_primary_background_fill="var(--accent)",
        button_primary_background_fill_dark="var(--accent)",
        button_primary_background_fill_hover="var(--accent-strong)",
        button_primary_background_fill_hover_dark="var(--accent-strong)",
        button_primary_text_color="var(--on-accent)",
        button_primary_text_color_dark="var(--on-accent)",
        button_primary_border_color="var(--accent)",
        button_primary_border_color_dark="var(--accent)",
        button_primary_border_color_hover="var(--accent-strong)",
        button_primary_border_color_hover_dark="var(--accent-strong)",
        button_secondary_background_fill="var(--card)",
        button_secondary_background_fill_dark="var(--card)",
        button_secondary_background_fill_hover="var(--wash)",
        button_secondary_background_fill_hover_dark="var(--wash)",
        button_secondary_border_color="var(--edge)",
        button_secondary_border_color_dark="var(--edge)",
        button_secondary_text_color="var(--ink)",
        button_secondary_text_color_dark="var(--ink)",
        button_border_width="1px",
        button_large_radius="10px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        layout_gap="20px",
    )


def launch_options() -> dict[str, Any]:
    """Keyword arguments of `Blocks.launch` that belong to the page wherever it is served: its looks, which
    Gradio 6 takes there, and its doors."""
    styles = "".join(asset(name) for name in STYLES)
    head = (
        f"<style>{styles}</style>"
        f'<link rel="icon" href="data:image/svg+xml,{ICON}">'
        '<meta name="description" content="Watch nested autoregression draw a picture, coarse to fine.">'
    )
    return {
        "theme": theme(),
        "head": head,
        "footer_links": ["api"],
        "ssr_mode": False,
        # Gradio's own look at the page gives up after 3 s, or behind a proxy, and ends a server that works.
        "_frontend": False,
        "run_history": False,
        "enable_monitoring": False,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {"middleware": [Middleware(Doors), Middleware(Leaving)]},
    }
