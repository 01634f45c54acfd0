"""The page: `python app.py` loads the weights, builds the page and serves it."""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from html import escape
from typing import Any

# Before gradio is imported: the page calls nobody.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from nestar.checkpoints import default_source, shown, sources_of
from nestar.model import WeightsError
from nestar.pipeline import NestARPipeline
from nestar.ui import diversity, failure, generate, how, race
from nestar.ui.assets import asset, launch_options
from nestar.ui.doors import said
from nestar.ui.lanes import can_race
from nestar.ui.lasting import outlast
from nestar.ui.runs import Runs, compute_on_one_thread, on_zero_gpu, waiting_calls
from nestar.ui.weights import header

log = logging.getLogger("nestar.app")
# Samples of the runs that a GPU is made ready for beforehand: of Generate, of a race beside it, of Diversity.
RECORDED = (1, 1, 16)
# Calls that may wait for the one sampler; more are refused with a message.
QUEUE_LENGTH = 64
MAX_PORT = 65535
# When the page closes: seconds for the runs to end, and for what they ended with to reach their visitors.
# Gradio then takes five at most, and a platform that asks with SIGTERM waits for ten.
ENDING_SECONDS, TELLING_SECONDS = 3.0, 0.5


class Page(gr.Blocks):
    """The page. When it closes, every run ends with the picture it has: no visitor is left waiting."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.runs = Runs(lambda: bool(waiting_calls(self)))

    async def preprocess_data(self, *arguments: Any, **options: Any) -> list[Any]:
        """Gradio's own, in whose words a caller would learn nothing of values that no component takes."""
        try:
            return await super().preprocess_data(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            log.warning("A call was not understood (%r).", error)
            raise gr.Error(
                "This call takes other values: as many as it has parameters, and no files.",
                print_exception=False,
            ) from error

    def close(self, verbose: bool = True) -> None:
        if self.is_running and self.runs.end(ENDING_SECONDS):
            time.sleep(TELLING_SECONDS)
        super().close(verbose)


def build_page(pipeline: NestARPipeline, notice: str = "") -> gr.Blocks:
    """The whole page on one pipeline; `notice` is a sentence for the visitor, shown above the chooser."""
    with Page(title="NestAR: watch a picture grow", delete_cache=(3600, 3600)) as demo:
        gr.HTML(header(pipeline), js_on_load=asset("header.js"), apply_default_css=False)
        if notice:
            gr.HTML(f'<p class="notice" role="status">{escape(notice)}</p>', apply_default_css=False)
        runs = demo.runs
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Generate", id="generate", elem_id="panel-generate"):
                generate.build(pipeline, runs)
            with gr.Tab("Diversity", id="diversity", elem_id="panel-diversity"):
                diversity.build(pipeline, runs)
            if can_race(pipeline):
                with gr.Tab("Race", id="race", elem_id="panel-race"):
                    race.build(pipeline, runs, demo)
            with gr.Tab("When it fails", id="failure", elem_id="panel-failure"):
                failure.build(pipeline, runs, demo)
            with gr.Tab("How it works", id="how", elem_id="panel-how"):
                how.build()
        demo.unload(runs.leave)
    if on_zero_gpu():  # there every call has a process of its own, and only this thread may load
        pipeline.models.load_all()
    else:
        pipeline.record(RECORDED)
    compute_on_one_thread(demo, runs)
    # Closed to calls that would pass by the queue and compute beside it.
    demo.queue(max_size=QUEUE_LENGTH, api_open=False)
    outlast(demo._queue)
    return demo


def open_page(source: str | None, revision: str | None, device: str) -> gr.Blocks:
    """The page on the weights of `source`; of several sources, on those that can stand together, in order;
    and on the embedded ones if there are none. Sentences on the page say why others were left out.

    Weights are loaded and tried on a thread that ends, and that no exit waits for. Each thread that has run
    torch keeps OpenMP workers, and with those of two threads there are more than cores: GNU's OpenMP then
    lets all of them sleep at every step, and a picture takes 2.4 times as long. On ZeroGPU calls compute in
    processes of their own, and what stands for its GPU meanwhile does so on the main thread alone.

    Raises:
        WeightsError: the embedded weights cannot be used either, a revision of them was asked for, or there
            is no such device.
    """
    if on_zero_gpu():
        return _opened(source, revision, device)
    page: Future[gr.Blocks] = Future()

    def open_it() -> None:
        try:
            page.set_result(_opened(source, revision, device))
        except BaseException as error:
            page.set_exception(error)

    threading.Thread(target=open_it, name="opener", daemon=True).start()
    return page.result()


def _opened(source: str | None, revision: str | None, device: str) -> gr.Blocks:
    """See `open_page`."""
    notice = ""
    if source:
        names = sources_of(source)
        page = _page_on(names, revision, device)
        if isinstance(page, gr.Blocks):
            return page
        kept, reasons = _that_work(names, device) if len(names) > 1 and revision is None else ([], [])
        if kept:  # opened once more: the Hub may be gone by now
            page = _page_on(kept, None, device, " ".join(reasons))
            if isinstance(page, gr.Blocks):
                return page
        notice = f"{page} The page runs on the embedded weights instead."
    of_none = None if source else revision  # refused: what is embedded has no revisions
    return build_page(NestARPipeline.from_pretrained(revision=of_none, device=device), notice)


def _page_on(names: Sequence[str], revision: str | None, device: str, notice: str = "") -> gr.Blocks | str:
    """The page on the weights of these sources, or the sentence that says why there is none. Building it
    samples once, so weights that load but cannot be sampled are found out here as well."""
    source = ",".join(names)
    try:
        return build_page(NestARPipeline.from_pretrained(source, revision=revision, device=device), notice)
    except WeightsError as error:
        log.warning("%s", error)
        return said(error)
    except Exception:  # a stranger's files may fail in any way; the server must come up all the same
        log.exception("The weights of %s fail.", source)
        return f"The weights of {shown(source)} do not work here; the server's log says why."


def _that_work(names: Sequence[str], device: str) -> tuple[list[str], list[str]]:
    """The sources that can stand together, taken in order, and a sentence on each of the others."""
    kept: list[str] = []
    reasons: list[str] = []
    for name in names:
        page = _page_on([*kept, name], None, device)
        if isinstance(page, str):
            reasons.append(f"{page} {shown(name)} is left out.")
        else:
            kept.append(name)
            page.close(verbose=False)
    return kept, reasons


def port(text: str) -> int:
    """A port's number, as a type for argparse.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: allowed are 1 to {MAX_PORT}")
    return int(text)


def check_host(host: str) -> None:
    """See that this machine can listen there. Gradio looks at ports of 127.0.0.1 alone, and would then try
    a hundred of them at `host`, five seconds each.

    Raises:
        SystemExit: it cannot.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except (OSError, UnicodeError):
        raise SystemExit(
            f"nestar: The page cannot listen at {host!r}; give an address of this machine by --host, such as "
            "127.0.0.1, or 0.0.0.0 for all it has."
        ) from None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--repo",
        default=default_source(),
        help="Hub repository (user/repo) or folder with weights, or several parted by commas; "
        "default: $NESTAR_REPO, else those embedded",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--host", help="address to listen on; default: $GRADIO_SERVER_NAME, else 127.0.0.1")
    parser.add_argument("--port", type=port, help="default: $GRADIO_SERVER_PORT, else a free one from 7860")
    parser.add_argument("--share", action="store_true", help="also open a public gradio.live address")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for client in ("httpx", "httpx2"):  # the Hub's client tells every request; which of them it uses varies
        logging.getLogger(client).setLevel(logging.WARNING)
    arguments = parse_arguments()
    if host := arguments.host or os.environ.get("GRADIO_SERVER_NAME"):
        check_host(host)
    # As the first process of a container Python would not hear it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        page = open_page(arguments.repo, arguments.revision, arguments.device)
    except WeightsError as error:
        raise SystemExit(f"nestar: {error}") from None
    except (SystemExit, KeyboardInterrupt):  # weights may be on their way for minutes, and torch at work
        os._exit(0)
    try:
        page.launch(
            server_name=arguments.host, server_port=arguments.port, share=arguments.share, **launch_options()
        )
    except OSError as error:  # of which Gradio says more than concerns this page
        wanted = f"port {arguments.port}" if arguments.port else "a port"
        log.debug("The page is not served.", exc_info=error)
        raise SystemExit(f"nestar: The page cannot have {wanted} here; give another by --port.") from None
    finally:
        page.close()


if __name__ == "__main__":
    main()
