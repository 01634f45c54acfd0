"""What "When it fails" runs and measures: failures beside healthy runs, and whether neighbours agree."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nestar.data import tiny_worlds
from nestar.data.pools import held_out_tokens
from nestar.evaluation import metrics
from nestar.evaluation.experiments.alignment import TIMES, aligned_rows
from nestar.evaluation.experiments.command import RESULTS
from nestar.evaluation.experiments.findings import pick
from nestar.frames import Frame
from nestar.images import from_pil
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, SettingsError, check_choice
from nestar.ui.answers import run_id
from nestar.ui.frames import picture
from nestar.ui.runs import hosted, streamer
from nestar.ui.signatures import Failure, compared, signatures, unhealthy, why_not

log = logging.getLogger(__name__)

NO_SEAMS = 1.0
"""Of `metrics.seams`: the picture changes no more across token borders than inside tokens."""
KEPT = 32 * 4 * 128 * 128
"""Pixels of the healthy runs that are kept, three bytes each; a run has up to four pictures."""

PICTURES = 16
"""Held-out pictures on which velocities are compared, and how many of them are encoded at once."""
CHUNK = 4
BRIEF_PICTURES, BRIEF_TIMES = 8, (0.25, 0.5, 0.75)
"""The same for the one figure beside two pictures."""

ALIGNMENT_SECONDS = 10.0

EXPERIMENT = Path(__file__).resolve().parents[2] / RESULTS / "coordination.json"


@dataclass(frozen=True)
class Meter:
    """A figure of both sides: its name on the tab, what it means, and how many digits of it are shown."""

    name: str
    label: str
    hint: str
    digits: int

    def reading(self, values: list[float]) -> dict[str, Any]:
        """The figure of both sides, as numbers and in the words that the tab shows."""
        return {
            "name": self.name,
            "label": self.label,
            "values": [float(f"{value:.6g}") for value in values],
            "texts": [f"{value:.{self.digits}f}" for value in values],
        }


def detail(images_N3HW: Tensor, stride: int) -> float:
    """Mean difference of neighbouring pixels inside tokens, where the whole range is 255."""
    return 127.5 * metrics.seam_gradients(images_N3HW, stride)[1].mean().item()


def contrast(images_N3HW: Tensor, stride: int) -> float:
    """Standard deviation of a picture's values, mean over pictures, where the whole range is 255."""
    return 127.5 * images_N3HW.std((1, 2, 3)).mean().item()


def spread(images_N3HW: Tensor, stride: int) -> float:
    """Root mean square of two pictures' difference, mean over pairs, where the whole range is 255."""
    rows_NP = images_N3HW.flatten(1).double()
    return 127.5 * torch.pdist(rows_NP).mean().item() / rows_NP.shape[1] ** 0.5


# What is measured of pictures (N, 3, H, W) in [-1, 1] whose tokens are `stride` pixels wide.
MEASURES: dict[str, Callable[[Tensor, int], float]] = {
    "seams": metrics.seams,
    "detail": detail,
    "contrast": contrast,
    "spread": spread,
}
VELOCITY_GAP = Meter(
    "velocity_gap",
    "Velocity gap",
    "Mean squared difference of neighbouring modules' velocities on the earlier one's last patch.",
    3,
)
METERS = {
    meter.name: meter
    for meter in (
        Meter("seams", "Seams", "Change across token borders over change inside tokens; 1 is none.", 2),
        Meter("detail", "Detail", "Mean difference of neighbouring pixels inside tokens, of 255.", 1),
        Meter("contrast", "Contrast", "Standard deviation of a picture's values, of 255.", 1),
        Meter("spread", "Spread of seeds", "Root mean square of two pictures' difference, of 255.", 1),
        VELOCITY_GAP,
    )
}


def consequence(figures: list[dict[str, Any]], labels: list[str], versus: bool) -> str:
    """What the figures say of the right side against the left one; `versus`: also which has more seams."""
    said = []
    for each in figures:
        before, after = each["values"]
        label = each["label"].lower()
        change = round(100 * (after / before - 1)) if before else None
        if change == 0 or each["texts"][0] == each["texts"][1]:
            said.append(f"{label} alike")
        elif change is not None:
            said.append(f"{label} {abs(change)} % {'up' if change > 0 else 'down'}")
        else:
            said.append(f"{label} {each['texts'][1]} in place of none")
    seams = next((each for each in figures if each["name"] == "seams"), None)
    more = ""
    if versus and seams and max(map(float, seams["texts"])) <= NO_SEAMS:
        more = " No seams on either side."
    elif versus and seams and seams["texts"][0] != seams["texts"][1]:
        more = f" Stronger seams here: {labels[seams['values'].index(max(seams['values']))]}."
    return f"Measured, left to right: {', '.join(said)}.{more}" if said else ""


class HealthyRuns:
    """Pictures of finished healthy runs by their settings, so that each is made once; the oldest go first."""

    def __init__(self, pixels: int = KEPT):
        self._most, self._lock = pixels, threading.Lock()
        self._frames: OrderedDict[SampleSettings, Frame] = OrderedDict()

    def get(self, settings: SampleSettings) -> Frame | None:
        with self._lock:
            if settings in self._frames:
                self._frames.move_to_end(settings)
            return self._frames.get(settings)

    def put(self, settings: SampleSettings, frame: Frame) -> None:
        with self._lock:
            self._frames[settings] = frame
            while len(self._frames) > 1 and sum(each.pixels for each in self._frames.values()) > self._most:
                self._frames.popitem(last=False)


class Laboratory:
    """Runs both sides of a failure and measures them."""

    def __init__(self, pipeline: NestARPipeline):
        self.pipeline, self.stream = pipeline, streamer(pipeline)
        self.signatures = signatures(pipeline)
        self.failures = {each.name: each for one in self.signatures for each in one.failures}
        self.velocities = hosted(self._velocities)
        self.kept = HealthyRuns()

    def find(self, name: object) -> Failure:
        """The failure of that name.

        Raises:
            SettingsError: there is none, or weights for it are missing.
        """
        failure = self.failures[check_choice("failure", name, tuple(self.failures))]
        reason = why_not(failure, self.pipeline)
        if reason:
            raise SettingsError(reason)
        return failure

    def sides(self, failure: Failure, **values: object) -> list[SampleSettings]:
        """Checked settings of both sides; `values` are those of a healthy run.

        Raises:
            SettingsError: a value is refused.
        """
        count = {"count": failure.count}
        healthy, broken = (
            self.pipeline.settings(**{**values, **side.values, **count})
            for side in (failure.healthy, failure.broken)
        )
        reason = unhealthy(failure, healthy)
        if reason:
            raise SettingsError(reason)
        return [healthy, broken]

    def provoke(
        self, failure: Failure, sides: list[SampleSettings], cancel: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """The tab's value after every patch: first the healthy side's, which may be known, then the other's,
        then what is measured."""
        shown = [
            {"label": label, "images": [], "known": 0, "n": self.pipeline.plan_of(settings).n}
            for label, settings in zip(failure.labels(sides), sides, strict=True)
        ]
        value = {
            "run": run_id(),
            "state": "running",
            "failure": failure.name,
            "settings": {"class_name": sides[0].class_name, "seed": str(sides[0].seed)},
            "sides": shown,
            "figures": [],
            "consequence": "",
        }
        yield value
        finals = []
        for place, settings in enumerate(sides):
            last = None
            for frame in self._frames(settings, cancel, keep=place == 0):
                last, shown = frame, list(shown)
                images = self._pictures(frame, settings)
                shown[place] = {**shown[place], "images": images, "known": frame.known}
                value = {**value, "sides": shown}
                yield value
            if last is None or not last.final:
                yield {**value, "state": "stopped"}
                return
            finals.append(last.images)
        figures = self._measured(failure, sides, finals, cancel)
        if cancel.is_set():
            yield {**value, "state": "stopped"}
            return
        yield {
            **value,
            "state": "finished",
            "figures": figures,
            "consequence": consequence(figures, failure.labels(sides), failure.versus),
        }

    def _pictures(self, frame: Frame, settings: SampleSettings) -> list[str]:
        """A frame's pictures as data URIs; each finished one remembers how it alone is made again."""
        found = []
        for place, image in enumerate(frame.images):
            alone = replace(settings, count=1, seed=settings.seed + place)
            kept = self.pipeline.about(alone) if frame.final else None
            found.append(picture(replace(frame, images=(image,)), kept))
        return found

    def _frames(self, settings: SampleSettings, cancel: threading.Event, keep: bool) -> Iterator[Frame]:
        known = self.kept.get(settings)
        if known is not None:
            yield known
            return
        for frame in self.stream(settings, cancel):
            if frame.final and keep:
                self.kept.put(settings, frame)
            yield frame

    def _measured(
        self,
        failure: Failure,
        sides: list[SampleSettings],
        finals: list[tuple[Image.Image, ...]],
        cancel: threading.Event,
    ) -> list[dict[str, Any]]:
        stride = self.pipeline.tokenizer.stride
        figures = []
        for name in failure.meters:
            values = [MEASURES[name](from_pil(images), stride) for images in finals]
            figures.append(METERS[name].reading(values))
        neighbours = all(self.pipeline.plan_of(settings).modules > 1 for settings in sides)
        if failure.velocities and neighbours and not self.why_no_velocities():
            values = []
            for settings in sides:
                rows = list(self.velocities(settings.nesting, BRIEF_PICTURES, BRIEF_TIMES, cancel))
                if cancel.is_set():
                    return figures
                values.append(sum(row["difference"] for row in rows) / len(rows))
            figures.append(VELOCITY_GAP.reading(values))
        return figures

    def comparable(self) -> list[str]:
        """Weights whose modules' velocities are compared on the tab: those of the page's nesting that saw as
        many images as the family, and those trained alike without coordination."""
        return [name for name in compared(self.pipeline) if self._modules(name) > 1]

    def _modules(self, name: str) -> int:
        return self.pipeline.nestings[name].modules if name in self.pipeline.nestings else 0

    def why_no_velocities(self) -> str:
        """Why velocities cannot be compared with these weights, or ""."""
        if self.pipeline.classes != tiny_worlds.CLASSES:
            return "Velocities are compared on Tiny Worlds, and these weights know other classes."
        return "" if self.comparable() else "These weights have one module: there are no neighbours."

    def _velocities(
        self, name: str, pictures: int, times: tuple[float, ...], cancel: threading.Event | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of `aligned_rows` for these weights on held-out pictures; ends early on `cancel`."""

        def stopped() -> bool:
            return cancel is not None and cancel.is_set()

        model, parts = self.pipeline.models[name], []
        for start in range(0, pictures, CHUNK):
            if stopped():
                return
            count = min(CHUNK, pictures - start)
            parts.append(
                held_out_tokens(self.pipeline.tokenizer, model.config.nesting, count, count, first=start)
            )
        x_NnC, class_ids_N = (torch.cat(each) for each in zip(*parts, strict=True))
        for row in aligned_rows(model, x_NnC, class_ids_N, times):
            if stopped():
                return
            yield row

    def alignment(
        self, names: list[str], pictures: int, cancel: threading.Event, seconds: float = ALIGNMENT_SECONDS
    ) -> Iterator[dict[str, Any]]:
        """The panel's value after every comparison of two modules: a line a pair and weights. Drawing and
        encoding the pictures, once for each weights, is not counted in `seconds`."""
        spent = 0.0
        lines: dict[tuple[str, int], dict[str, Any]] = {}
        value = {"run": run_id(), "state": "running", "pictures": pictures, "lines": []}
        yield value
        for name in names:
            began = None
            for row in self.velocities(name, pictures, TIMES, cancel):
                now = time.perf_counter()
                spent += 0.0 if began is None else now - began
                began = now
                line = lines.setdefault(
                    (name, row["pair"]), {"weights": name, "pair": row["pair"], "points": []}
                )
                line["points"].append({key: float(f"{row[key]:.5g}") for key in row if key != "pair"})
                value = {**value, "lines": [{**each, "points": [*each["points"]]} for each in lines.values()]}
                yield value
                if spent >= seconds:
                    yield {**value, "state": "out of time"}
                    return
        yield {**value, "state": "stopped" if cancel.is_set() else "finished"}


def experiment_panels(file: Path = EXPERIMENT) -> dict[str, Any] | None:
    """The velocity alignment that the experiment `coordination` has written, a panel a pair of modules with
    a line an arm, which names its FID where it has one; None if there is no such file, or nothing to draw."""
    try:
        report = json.loads(file.read_text())
        fid = {row["member"]: f", FID {row['fid']:.1f}" for row in pick(report["rows"], part="final")}
        labels = {arm["arm"]: arm["label"] + fid.get(arm["arm"], "") for arm in report["arms"]}
        rows = pick(report["rows"], part="alignment")
        panels = [
            {
                "title": f"Modules {pair} and {pair + 1}",
                "lines": [
                    {"label": label, "points": [[row["t"], row["difference"]] for row in own]}
                    for arm, label in labels.items()
                    if (own := pick(rows, member=arm, pair=pair))
                ],
            }
            for pair in sorted({row["pair"] for row in rows})
        ]
        trained = {"images": report["images_per_arm"], "parameters": report["arms"][0]["parameters"]}
        return {**trained, "panels": panels} if panels else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        log.exception("%s cannot be shown.", file)
        return None
