"""Runs as the stage shows them: one JSON value after every patch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nestar import keepsakes
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings
from nestar.ui.answers import run_id
from nestar.ui.frames import frame_to_json, nesting_to_json, thin
from nestar.ui.runs import on_zero_gpu, streamer
from nestar.ui.together import Together

NO_MEMORY = "The GPU has no memory left: this picture is made on the CPU, which takes longer."


class Grown:
    """Runs of single pictures, made along with those of others who wait.

    Args:
        waiting: gives the settings of the calls that wait for the sampler, in their order.
    """

    def __init__(self, pipeline: NestARPipeline, waiting: Callable[[], Sequence[SampleSettings]]):
        self._pipeline, self._along = pipeline, Together(pipeline, waiting)
        # A GPU that is lent to one call makes one call's picture.
        self._stream = streamer(pipeline) if on_zero_gpu() else self._along.stream

    def frames(self, settings: SampleSettings, cancel: threading.Event) -> Iterator[dict[str, Any]]:
        """A run's frames, each as JSON."""
        kept = self._pipeline.about(settings)
        for frame in self._stream(settings, cancel):
            yield frame_to_json(frame, kept)

    def values(self, settings: SampleSettings, cancel: threading.Event) -> Iterator[dict[str, Any]]:
        """The stage's value after every patch: all frames so far, so that merged updates lose nothing. Of a
        picture that is there already only the last value, of which the browser shows the growth all the same.
        """
        plan = self._pipeline.plan(settings.k, settings.order, settings.nesting)
        value = {
            "run": run_id(),
            "state": "running",
            "settings": vars(settings) | {"seed": str(settings.seed)},
            "name": keepsakes.file_stem(settings),
            "nesting": nesting_to_json(plan, settings),
            "device": str(self._pipeline.device),
        }
        frames: list[dict[str, Any]] = []
        at_once = settings in self._along
        yield value | {"frames": []}
        for frame in self.frames(settings, cancel):
            frames.append(frame)
            thin(frames)
            if frame["device"] != self._pipeline.device.type:
                value |= {"device": frame["device"], "message": NO_MEMORY}
            if frame["final"] or not at_once:
                yield value | {"state": "finished" if frame["final"] else "running", "frames": list(frames)}
        if not frames or not frames[-1]["final"]:
            yield value | {"state": "stopped", "frames": list(frames)}
