"""Pictures of visitors who wait, made along with the one whose turn it is.

A batch of eight takes a few times as long as one picture, not eight times. Turns stay as they are: when a
visitor's turn comes and the picture was made along, it is there.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence

from nestar.batches import Rows
from nestar.frames import Frame
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings
from nestar.ui.runs import Turn

MOST = 8
"""Pictures made at once at most: the visitor whose turn it is waits for all of them."""

KEPT = 640 * 128 * 128
"""Pixels of frames that wait for their visitors, three bytes each; a picture has a frame a patch."""

ALIKE = ("k", "order", "nesting", "steps", "solver", "schedule")
"""What pictures of one batch have in common, and whether they are guided; they may differ in class, seed,
temperature and strength of guidance."""


class Together:
    """Streams of single pictures.

    Args:
        waiting: gives the settings of the calls that wait for the sampler, in their order.
    """

    def __init__(self, pipeline: NestARPipeline, waiting: Callable[[], Sequence[SampleSettings]]):
        self._pipeline, self._waiting = pipeline, waiting
        self._made: OrderedDict[SampleSettings, list[tuple[Frame, ...]]] = OrderedDict()
        self._lock = threading.Lock()
        self._most = MOST

    def __contains__(self, settings: SampleSettings) -> bool:
        """Whether the picture is there already."""
        with self._lock:
            return settings in self._made

    def stream(self, settings: SampleSettings, cancel: threading.Event) -> Iterator[Frame]:
        """As `NestARPipeline.stream`, of checked settings for one picture."""
        waiting = list(self._waiting())
        frames = self._take(settings)
        self._give_up(waiting)
        if frames is not None:
            yield from frames
            return
        others = self._others(settings, waiting)
        if not others:
            yield from self._pipeline.stream(**vars(settings), cancel=cancel)
            return
        batch = [settings, *others]
        rows = Rows(
            seeds=tuple(each.seed for each in batch),
            temperatures=tuple(each.temperature for each in batch),
            cfgs=tuple(each.cfg for each in batch),
            classes=tuple(each.class_name for each in batch),
        )
        if isinstance(cancel, Turn):
            cancel.is_for(len(batch))
        made: list[Frame] = []
        for frame in self._pipeline.stream_rows(settings, rows, cancel=cancel):
            made.append(frame)
            if frame.final:
                for row, other in enumerate(others, 1):
                    self._keep(other, tuple(each.row(row) for each in made))
            yield frame.row(0)
        if made and made[-1].device != self._pipeline.device.type:
            self._most = 1  # the device had no memory for so many, and the CPU took them over

    def _others(self, settings: SampleSettings, waiting: Sequence[SampleSettings]) -> list[SampleSettings]:
        """Of those who wait, the first that fit into one batch and whose picture is not there yet."""
        kind = _kind(settings)
        with self._lock:
            there = {each: len(found) for each, found in self._made.items()}
        others: list[SampleSettings] = []
        for each in waiting:
            if there.get(each):
                there[each] -= 1
            elif _kind(each) == kind and len(others) < self._most - 1:
                others.append(each)
        return others

    def _take(self, settings: SampleSettings) -> tuple[Frame, ...] | None:
        with self._lock:
            found = self._made.get(settings)
            if not found:
                return None
            frames = found.pop()
            if not found:
                del self._made[settings]
            return frames

    def _keep(self, settings: SampleSettings, frames: tuple[Frame, ...]) -> None:
        with self._lock:
            self._made.setdefault(settings, []).append(frames)
            self._made.move_to_end(settings)
            while self._pixels > KEPT:
                self._made.popitem(last=False)

    @property
    def _pixels(self) -> int:
        return sum(frame.pixels for found in self._made.values() for frames in found for frame in frames)

    def _give_up(self, waiting: Sequence[SampleSettings]) -> None:
        """Drop the pictures of visitors who have left."""
        wanted = Counter(waiting)
        with self._lock:
            for settings in list(self._made):
                del self._made[settings][wanted[settings] :]
                if not self._made[settings]:
                    del self._made[settings]


def _kind(settings: SampleSettings) -> tuple[object, ...]:
    return (settings.cfg != 1, *(getattr(settings, name) for name in ALIKE))
