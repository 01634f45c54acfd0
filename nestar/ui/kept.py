"""The last finished run of each visitor, kept for its animation."""

import io
import threading
from collections import OrderedDict
from typing import Any

from PIL import Image

from nestar import keepsakes
from nestar.ui.frames import from_uri

ROOM = 64 * 2**20
"""Characters of pictures that are kept in all: a run has 0.1 million as a rule, 2 million at most (see
`frames.thin`). Of six hundred visitors who make the usual ones each finds the last one here."""

ANIMATIONS = 32
"""Animations that are kept as they were encoded: whoever asks again for one takes no time of the others."""

TURN_SECONDS = 5.0
"""How long an animation waits for the one before it; a thread that waits serves nobody."""


class KeptRuns:
    """Finished runs by visitor, the oldest given up first, and the run that every visitor sees on load.

    A run is the stage's value: what the browser got. Its id is a secret of the visitor who made it.
    """

    def __init__(self, on_load: dict[str, Any], room: int = ROOM):
        self._on_load, self._room = on_load, room
        self._runs: OrderedDict[str | None, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._encoding = threading.Lock()
        self._encoded: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, session: str | None, run: dict[str, Any]) -> None:
        """Keep a visitor's finished run in place of the one before."""
        with self._lock:
            self._runs.pop(session, None)
            self._runs[session] = run
            taken = sum(map(_characters, self._runs.values()))
            while taken > self._room:
                taken -= _characters(self._runs.popitem(last=False)[1])

    def find(self, run_id: object) -> dict[str, Any] | None:
        """The run of that id, if it is still kept."""
        with self._lock:
            runs = [self._on_load, *self._runs.values()]
        return next((run for run in runs if run["run"] == run_id), None)

    def animation(self, run_id: object) -> tuple[bytes, str] | None:
        """The growth of a run as WebP and its file name, or None if it is no longer kept. One at a time, so
        that many clicks cannot take all cores from the sampler.

        Raises:
            TimeoutError: others are encoded, too many to wait for.
        """
        run = self.find(run_id)
        if run is None:
            return None
        if not self._encoding.acquire(timeout=TURN_SECONDS):
            raise TimeoutError("Other animations are being made.")
        try:
            if run["run"] not in self._encoded:
                self._encoded[run["run"]] = encode(run)
            self._encoded.move_to_end(run["run"])
            if len(self._encoded) > ANIMATIONS:
                self._encoded.popitem(last=False)
            return self._encoded[run["run"]], f"{run['name']}.webp"
        finally:
            self._encoding.release()


def _characters(run: dict[str, Any]) -> int:
    """Of a run's pictures, which are nearly all of it."""
    return sum(len(frame["image"]) for frame in run["frames"])


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
