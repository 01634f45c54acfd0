"""What a race is made of: who can run, lanes that share one worker, races that wait between two slices."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from nestar.checkpoints import alike
from nestar.frames import Frame
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import SOLVER_CALLS, SampleSettings
from nestar.ui.answers import run_id
from nestar.ui.frames import method_of, picture
from nestar.ui.generate import shown_order
from nestar.ui.runs import on_zero_gpu, streamer

LIMIT_SECONDS = 15.0
"""Compute of a race in all, decoding included; a lane that has not arrived by then is stopped."""

SLICE_SECONDS = 2.0
"""Compute after which a race gives the sampler up, so that calls that wait for it get their turn."""

WARM_UP_SECONDS = 0.5
"""What a lane's trial run may take; the first passes through a network are slower than all others."""

MAX_PAUSED = 16
"""Races kept between two slices, each with a few caches of keys and values; one more runs whole."""

# The kinds that can run, in the order of their lanes, and what each does in one line.
IDEAS = {
    "nested": "Module by module, patch by patch.",
    "autoregressive": "One token at a time.",
    "cells": "One square of the grid at a time.",
    "one-shot": "All at once: nothing shows before the end.",
}


@dataclass(frozen=True)
class Entrant:
    """Weights that can run: the name of their folder, their nesting, how many parameters they have, and how
    many images they were trained on (0: nothing says)."""

    weights: str
    nesting: Nesting
    parameters: int
    images: int = 0

    @property
    def label(self) -> str:
        """The method in plain words."""
        return method_of(self.nesting)


def entrants(pipeline: NestARPipeline) -> dict[str, list[Entrant]]:
    """Who can run, by kind in the order of IDEAS: every k in the page's order, and one of each other kind.

    Variants of the same nesting (`k4-lattice.separate`) stay out: they would take the same time. But one
    that saw as many images as the others' weights (`checkpoints.alike`) runs in place of one that saw more.
    """
    order = shown_order(pipeline)
    found: dict[str, list[Entrant]] = {kind: [] for kind in IDEAS}
    for name, nesting in pipeline.nestings.items():
        own = found[nesting.kind]
        if name == nesting.name and (nesting.order == order if nesting.kind == "nested" else not own):
            weights = alike(pipeline.nestings, name)
            outline = pipeline.models.outline(weights)
            own.append(Entrant(weights, nesting, outline.config.parameters, outline.images_seen))
    found["nested"].sort(key=lambda entrant: entrant.nesting.k)
    return {kind: own for kind, own in found.items() if own}


def can_race(pipeline: NestARPipeline) -> bool:
    """Whether there are weights for at least two of the lanes."""
    return len(entrants(pipeline)) > 1


def tokens_through(nesting: Nesting, patches: int, settings: SampleSettings) -> int:
    """Tokens that entered a network until the first `patches` patches stood: those of a patch once a
    velocity call, and every finished one once as context for each module that takes it. Guidance enters
    all of them twice, for every method."""
    calls = settings.steps * SOLVER_CALLS[settings.solver]
    tokens = module = context = 0
    for patch in nesting.patches[:patches]:
        if patch.module != module:
            module, context = patch.module, 0
        tokens += patch.start - context + patch.size * calls
        context = patch.start
    return tokens


class Allowance(threading.Event):
    """The cancel flag of streams that outlive a call: set by hand, with the flag of the call that works on
    them, or when the time lent to them is up."""

    def __init__(self) -> None:
        super().__init__()
        self.call: threading.Event | None = None
        self.until = math.inf  # on time.perf_counter()

    def is_set(self) -> bool:
        return (
            super().is_set()
            or (self.call is not None and self.call.is_set())
            or time.perf_counter() >= self.until
        )


class Lane:
    """One method on its way."""

    def __init__(
        self,
        entrant: Entrant,
        settings: SampleSettings,
        frames: Iterator[Frame],
        about: Callable[[SampleSettings], Mapping[str, Any] | None] = lambda settings: None,
    ):
        """`about`: what a finished picture of these settings remembers."""
        self.entrant, self.settings, self.frames, self._about = entrant, settings, frames, about
        self.state = "running"  # then "finished", "stopped" or "out of time"
        self.seconds = 0.0
        self.frame: Frame | None = None
        self.image = ""

    def take(self, frame: Frame) -> None:
        """Move on to `frame`. The clock is that of sampling: previews are decoded for the visitor alone, and
        a method with more patches has more of them."""
        self.frame, self.image = frame, picture(frame, self._about(self.settings) if frame.final else None)
        self.seconds = frame.seconds - frame.decoding
        if frame.final:
            self.state = "finished"

    def to_json(self) -> dict[str, Any]:
        """Where the lane stands; `of` is where it ends."""
        nesting, frame = self.entrant.nesting, self.frame
        calls = SOLVER_CALLS[self.settings.solver]
        evaluations = frame.evaluations if frame else 0
        return {
            "kind": nesting.kind,
            "label": self.entrant.label,
            "weights": self.entrant.weights,
            "parameters": self.entrant.parameters,
            "state": self.state,
            "image": self.image,
            "device": frame.device if frame else "",
            "seconds": round(self.seconds, 4),
            "known": frame.known if frame else 0,
            "evaluations": evaluations,
            "function_evaluations": frame.function_evaluations if frame else 0,
            "tokens_processed": tokens_through(nesting, evaluations, self.settings),
            "of": {
                "known": nesting.n,
                "evaluations": nesting.evaluations,
                "function_evaluations": nesting.function_evaluations(self.settings.steps, calls),
                "tokens_processed": tokens_through(nesting, nesting.evaluations, self.settings),
            },
        }


class Race:
    """Lanes that share one worker.

    `together`, they advance patch by patch, always the one whose clock shows least, as if each had the
    worker to itself; else one after another.
    """

    def __init__(self, lanes: list[Lane], allowance: Allowance, device: str, together: bool = True):
        self.lanes, self.allowance, self.device, self.together = lanes, allowance, device, together
        self.run, self.spent, self.stopped = run_id(), 0.0, False

    @property
    def running(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.state == "running"]

    def go(self, call: threading.Event, seconds: float) -> Iterator[None]:
        """Compute for at least `seconds` or to the end, yielding after every patch; `call` stops it."""
        self.allowance.call = call
        enough = min(LIMIT_SECONDS, self.spent + seconds)
        while self.running and self.spent < enough:
            running = self.running
            lane = min(running, key=lambda each: each.seconds) if self.together else running[0]
            began = time.perf_counter()
            self.allowance.until = began + LIMIT_SECONDS - self.spent
            frame = next(lane.frames, None)
            self.spent += time.perf_counter() - began
            if frame is not None:
                lane.take(frame)
            else:  # a stream ends early only when it is told to
                self.stopped = call.is_set()
                self._end("stopped" if self.stopped else "out of time")
            yield
        if self.spent >= LIMIT_SECONDS:
            self._end("out of time")

    def _end(self, state: str) -> None:
        for lane in self.running:
            lane.state = state

    def close(self) -> None:
        """Let go of what the lanes hold."""
        self.allowance.set()
        for lane in self.lanes:
            lane.frames.close()

    def to_json(self) -> dict[str, Any]:
        """The tab's value. "paused": the race waits for its next slice."""
        settings = self.lanes[0].settings
        state = "stopped" if self.stopped else "running" if self.running else "finished"
        return {
            "run": self.run,
            "state": state,
            "settings": {name: getattr(settings, name) for name in ("class_name", "steps", "cfg")}
            | {"seed": str(settings.seed)},
            "device": self.device,
            "lanes": [lane.to_json() for lane in self.lanes],
        }


class PausedRaces:
    """Races between two slices, one a visitor; beyond `limit` the oldest is given up."""

    def __init__(self, limit: int = MAX_PAUSED):
        self._limit, self._lock = limit, threading.Lock()
        self._races: OrderedDict[str | None, Race] = OrderedDict()

    @property
    def full(self) -> bool:
        """Whether one more would have the oldest given up."""
        with self._lock:
            return len(self._races) >= self._limit

    def put(self, session: str | None, race: Race) -> None:
        with self._lock:
            given_up = [self._races.pop(session, None)]
            self._races[session] = race
            while len(self._races) > self._limit:
                given_up.append(self._races.popitem(last=False)[1])
        for other in filter(None, given_up):
            other.close()

    def take(self, session: str | None, run: object) -> Race | None:
        """The visitor's race of that id, no longer kept here."""
        with self._lock:
            race = self._races.get(session)
            return self._races.pop(session) if race is not None and race.run == run else None

    def drop(self, request: gr.Request) -> None:
        """Give the visitor's race up, if there is one."""
        with self._lock:
            race = self._races.pop(request.session_hash, None)
        if race is not None:
            race.close()


class Starter:
    """Puts races together; each lane's weights have run once before they run against the clock."""

    def __init__(self, pipeline: NestARPipeline):
        self.pipeline, self.stream = pipeline, streamer(pipeline, timed=True)
        self.entrants = entrants(pipeline)
        # On ZeroGPU every stream asks for the GPU for itself: lanes in turns would wait for each other.
        self.together = not on_zero_gpu()
        self._warm: set[str] = set()

    def race(self, k: object, **values: object) -> Race:
        """A race at its start.

        Raises:
            SettingsError: a value is refused.
        """
        lanes, allowance = [], Allowance()
        for entrant in self.field(k):
            settings = self.pipeline.settings(**values, nesting=entrant.weights)
            lanes.append(Lane(entrant, settings, self.stream(settings, allowance), self.pipeline.about))
        return Race(lanes, allowance, str(self.pipeline.device), self.together)

    def field(self, k: object) -> list[Entrant]:
        """Who runs when NestAR runs with that k.

        Raises:
            SettingsError: there are no weights for it.
        """
        nested = self.entrants.get("nested", [])
        if nested:
            order = nested[0].nesting.order
            settings = self.pipeline.settings(class_name=self.pipeline.classes[0], k=k, order=order)
            nested = [entrant for entrant in nested if entrant.nesting.k == settings.k]
        return [*nested, *(own[0] for kind, own in self.entrants.items() if kind != "nested")]

    def warm_up(self, race: Race, cancel: threading.Event) -> None:
        """Run those lanes' weights that have never run here, a step a patch, off every clock."""
        for lane in race.lanes:
            if lane.entrant.weights in self._warm:
                continue
            trial = self.pipeline.settings(**vars(lane.settings) | {"steps": 1})
            for frame in self.stream(trial, cancel):
                if frame.seconds > WARM_UP_SECONDS:
                    break
            if cancel.is_set():
                return
            self._warm.add(lane.entrant.weights)
