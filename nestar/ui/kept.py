"""The last finished run of each visitor, kept for its animation."""

import io
import threading
from collections import OrderedDict
from typing import Any

from PIL import Image

from nestar import keepsakes
from nestar.ui.frames import from_uri

# Visitors whose last run is kept; a run is 0.1 MB as a rule and 2 MB at most (see `frames.thin`).
LIMIT = 32


class KeptRuns:
    """Finished runs by visitor, the oldest given up first, and the run that every visitor sees on load.

    A run is the stage's value: what the browser got. Its id is a secret of the visitor who made it.
    """

    def __init__(self, on_load: dict[str, Any], limit: int = LIMIT):
        self._on_load, self._limit = on_load, limit
        self._runs: OrderedDict[str | None, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._encoding = threading.Lock()

    def keep(self, session: str | None, run: dict[str, Any]) -> None:
        """Keep a visitor's finished run in place of the one before."""
        with self._lock:
            self._runs.pop(session, None)
            self._runs[session] = run
            while len(self._runs) > self._limit:
                self._runs.popitem(last=False)

    def find(self, run_id: object) -> dict[str, Any] | None:
        """The run of that id, if it is still kept."""
        with self._lock:
            runs = [self._on_load, *self._runs.values()]
        return next((run for run in runs if run["run"] == run_id), None)

    def animation(self, run_id: object) -> tuple[bytes, str] | None:
        """The growth of a run as WebP and its file name, or None if it is no longer kept. One at a time, so
        that many clicks cannot take all cores from the sampler."""
        run = self.find(run_id)
        if run is None:
            return None
        with self._encoding:
            return encode(run), f"{run['name']}.webp"


def encode(run: dict[str, Any]) -> bytes:
    """The pictures of a run as WebP; a frame that gave its picture up leaves its time to the one before."""
    patches = {module["number"]: len(module["patches"]) for module in run["nesting"]["modules"]}
    holds = keepsakes.holds([patches[frame["module"]] for frame in run["frames"]])
    images: list[Image.Image] = []
    milliseconds: list[int] = []
    for frame, hold in zip(run["frames"], holds, strict=True):
        if frame["image"]:
            images.append(Image.open(io.BytesIO(from_uri(frame["image"]))))
            milliseconds.append(hold)
        else:
            milliseconds[-1] += hold
    return keepsakes.animation(images, milliseconds)
