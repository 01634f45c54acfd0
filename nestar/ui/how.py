"""The tab "How it works": the idea in six panels that follow the visitor's hands, all in the browser.

No model is touched, no event bound, and nothing asked of the server once the page is there.
"""

import gradio as gr
import torch

from nestar.data import tiny_worlds
from nestar.images import to_pil
from nestar.ui.assets import asset, scripts
from nestar.ui.frames import data_uri

# In the order of the page; `how.js` starts what the others define. token_map.js has the colours of modules.
SCRIPTS = (
    "token_map.js",
    "how_nesting.js",
    "how_draw.js",
    "how_nest.js",
    "how_factors.js",
    "how_turns.js",
    "how_flow.js",
    "how_order.js",
    "how_checks.js",
    "how_context.js",
    "how.js",
)
# The picture that noise is mixed into and that two orders uncover: any Tiny World will do that is bold
# enough to show through noise, and whose sky and ground differ.
PICTURE_CLASS = "balloon"
PICTURE_SEED = 11
PICTURE_SIDE = 128
PLAY_ICONS = (
    '<svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true">'
    '<path class="icon-play" d="M7 4.5v15l12-7.5z" fill="currentColor"></path>'
    '<path class="icon-pause" d="M6.5 5h4v14h-4zM13.5 5h4v14h-4z" fill="currentColor"></path></svg>'
)


def picture() -> str:
    """A Tiny World of PICTURE_SIDE pixels a side as a data URI."""
    class_ids_B = torch.tensor([tiny_worlds.CLASSES.index(PICTURE_CLASS)])
    scene = tiny_worlds.draw(class_ids_B, torch.tensor([PICTURE_SEED]), size=PICTURE_SIDE)
    return data_uri(to_pil(scene.images)[0])


def build() -> None:
    """Lay out the tab."""
    gr.HTML(
        html_template=asset("how.html").replace("<!-- icons -->", PLAY_ICONS),
        js_on_load=scripts(*SCRIPTS),
        apply_default_css=False,
        elem_id="how",
        picture=picture(),
        picture_name=PICTURE_CLASS,
    )
