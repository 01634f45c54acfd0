"""The page: `python app.py` loads the weights, builds the tabs and serves them."""

import argparse
import logging
import os
from html import escape

# Before gradio is imported: the page calls nobody.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from nestar.pipeline import NestARPipeline
from nestar.ui import generate
from nestar.ui.assets import asset, launch_options

log = logging.getLogger("nestar.app")
# Calls that may wait for the one sampler; more are refused with a message.
QUEUE_LENGTH = 32


def build_page(pipeline: NestARPipeline, notice: str = "") -> gr.Blocks:
    """The whole page on one pipeline; `notice` is a sentence for the visitor, shown above the tabs."""
    with gr.Blocks(title="NestAR: watch a picture grow", delete_cache=(3600, 3600)) as demo:
        header = asset("header.html").replace("<!-- weights -->", escape(pipeline.origin))
        gr.HTML(header.replace("<!-- device -->", escape(str(pipeline.device))), apply_default_css=False)
        if notice:
            gr.HTML(f'<p class="notice" role="status">{escape(notice)}</p>', apply_default_css=False)
        generate.build(pipeline, demo)
    return demo.queue(max_size=QUEUE_LENGTH)


def load_pipeline(source: str | None, revision: str | None, device: str) -> tuple[NestARPipeline, str]:
    """The pipeline from `source`, or from the embedded weights and a sentence that says why it is those."""
    if not source:
        return NestARPipeline.from_pretrained(device=device), ""
    try:
        return NestARPipeline.from_pretrained(source, revision=revision, device=device), ""
    # Whatever is wrong with foreign weights (missing, truncated, gated, another shape), the page still opens.
    except Exception as error:
        log.exception("%s could not be loaded.", source)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        notice = f"{source} could not be loaded, so these are the embedded weights. {reason}."
        return NestARPipeline.from_pretrained(device=device), notice


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--repo",
        default=os.environ.get("NESTAR_REPO"),
        help="Hub repository (user/name) or local folder with weights; default: $NESTAR_REPO, else the embedded ones",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--host", help="address to listen on; default: $GRADIO_SERVER_NAME, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: $GRADIO_SERVER_PORT, else the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="also open a public gradio.live address")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = parse_arguments()
    pipeline, notice = load_pipeline(arguments.repo, arguments.revision, arguments.device)
    build_page(pipeline, notice).launch(
        server_name=arguments.host, server_port=arguments.port, share=arguments.share, **launch_options()
    )


if __name__ == "__main__":
    main()
