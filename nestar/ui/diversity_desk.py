"""What the Diversity tab's events work with: batches as JSON, features of what was made, measurements."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from nestar import batches, neighbours
from nestar.batches import Rows
from nestar.evaluation.diversity import (
    FeatureSpace,
    Progress,
    check_measurable,
    distances,
    measure,
    summary,
)
from nestar.model import WeightsError
from nestar.pipeline import NestARPipeline
from nestar.sampler import Prefix
from nestar.settings import SampleSettings, SettingsError, check_seed
from nestar.ui.answers import refused, run_id
from nestar.ui.frames import PREVIEW_SIDE, at_most, data_uri
from nestar.ui.runs import hosted

if TYPE_CHECKING:
    from nestar.frames import Frame

log = logging.getLogger(__name__)

About = Callable[[SampleSettings], dict[str, Any]]
"""What a picture of these settings remembers (`NestARPipeline.about`)."""

# Unrelated samples of one measurement; each has one sibling for every number of modules kept.
PARENTS = 16
# Half-made pictures of a sheet are small on screen and soft.
SHEET_SIDE = 160
# A sheet's pictures together stay below this; lossless ones give way to JPEG.
MAX_SHEET_CHARACTERS = 3_000_000
# Features of this many pictures that visitors have made lately are kept, 1 KB each.
REMEMBERED = 512
DIGITS = 3
# What the shares that modules decide are measured with, beside class and nesting.
MEASURED_AT = ("steps", "temperature", "cfg")
# What a picture is asked for by.
ASKED = tuple(field.name for field in fields(SampleSettings) if field.name != "count")


@dataclass(frozen=True)
class Sample:
    """One picture, as it can be asked for again.

    Attributes:
        settings: its own seed and temperature among them.
        prefix: what it keeps of another sample, or None.
    """

    settings: SampleSettings
    prefix: Prefix | None = None

    @property
    def kept(self) -> dict[str, Any]:
        """The prefix as JSON. Seeds as text: JavaScript's numbers end at 2^53."""
        return {"parent": str(self.prefix.seed), "modules": self.prefix.modules} if self.prefix else {}

    def to_json(self) -> dict[str, Any]:
        """What tells it from the others of its sheet."""
        return {"seed": str(self.settings.seed), "temperature": self.settings.temperature, **self.kept}


def samples_of(settings: SampleSettings, rows: Rows) -> list[Sample]:
    """The samples of a batch; a parent among its siblings is a sample like any other."""
    count = len(rows.seeds)
    temperatures = rows.temperatures or (settings.temperature,) * count
    return [
        Sample(
            replace(settings, count=1, seed=seed, temperature=temperature),
            prefix if prefix and prefix.seed != seed else None,
        )
        for seed, temperature, prefix in zip(
            rows.seeds, temperatures, rows.keep or (None,) * count, strict=True
        )
    ]


def rows_of(sample: Sample) -> Rows:
    """The batch that makes one sample again."""
    return Rows((sample.settings.seed,), (sample.prefix,) if sample.prefix else None)


def sheet(samples: Sequence[Sample], frame: Frame, about: About) -> dict[str, Any]:
    """A frame of a batch as JSON: every picture as a data URI, and where the batch stands."""
    return {
        "images": _pictures(samples, frame, about),
        "module": frame.module,
        "patch": frame.patch,
        "known": frame.known,
        "n": frame.n,
        "evaluations": frame.evaluations,
        "seconds": round(frame.seconds, DIGITS),
        "module_done": frame.module_done,
        "final": frame.final,
    }


def _pictures(samples: Sequence[Sample], frame: Frame, about: About) -> list[str]:
    """The pictures of a batch: small JPEGs until the end, then PNGs that remember how they were made, as long
    as all together are below MAX_SHEET_CHARACTERS."""
    if not frame.final:
        return [data_uri(at_most(image, SHEET_SIDE)) for image in frame.images]
    kept = [about(sample.settings) | sample.kept for sample in samples]
    lossless = [data_uri(image, "PNG", each) for image, each in zip(frame.images, kept, strict=True)]
    if sum(map(len, lossless)) <= MAX_SHEET_CHARACTERS:
        return lossless
    return [data_uri(at_most(image, PREVIEW_SIDE)) for image in frame.images]


def distances_to_json(class_name: str, features_ND: Tensor, real_ND: Tensor | None) -> dict[str, Any]:
    """Distances among samples, and among as many real pictures of the class where there are any."""
    samples = summary(distances(features_ND))
    real = None if real_ND is None else summary(distances(real_ND))
    return {"class_name": class_name, "samples": samples, "real": real}


class Desk:
    """What the tab's events work with: hosted streams, the feature space, and features seen lately."""

    def __init__(self, pipeline: NestARPipeline, index: Path):
        self.pipeline, self.index_folder = pipeline, index
        self.space = FeatureSpace()
        self._index: neighbours.NeighbourIndex | None = None
        self._seen: OrderedDict[Sample, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.stream = hosted(self._with_previews)
        self.quick_stream = hosted(self._without_previews)

    def _with_previews(
        self, settings: SampleSettings, rows: Rows, cancel: threading.Event | None = None
    ) -> Iterator[Frame]:
        yield from self.pipeline.stream_rows(settings, rows, cancel=cancel)

    def _without_previews(
        self, settings: SampleSettings, rows: Rows, cancel: threading.Event | None = None
    ) -> Iterator[Frame]:
        yield from self.pipeline.stream_rows(settings, rows, cancel=cancel, previews=False)

    def sheets(
        self, settings: SampleSettings, rows: Rows, cancel: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """A batch as the page sees it grow: first its plan, then a value a patch. The last one is "finished",
        or "stopped" where the cancel flag ended it."""
        nesting = self.pipeline.plan_of(settings)
        samples = samples_of(settings, rows)
        value: dict[str, Any] = {
            "run": run_id(),
            "settings": {name: getattr(settings, name) for name in ASKED if name != "seed"},
            "nesting": nesting.name,
            "modules": [scale.tokens for scale in nesting.scales],
            "turns": nesting.evaluations,
            "samples": [sample.to_json() for sample in samples],
        }
        yield value | {"state": "running", "images": []}
        last: dict[str, Any] = {"images": [], "final": False}
        for frame in self.stream(settings, rows, cancel):
            if frame.final:
                self._remember(samples, frame.images)
            last = sheet(samples, frame, self.pipeline.about)
            yield value | last | {"state": "finished" if frame.final else "running"}
        if not last["final"]:
            yield value | last | {"state": "stopped"}

    def _remember(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> None:
        """Keep the features of finished pictures for what will be asked about them next."""
        try:
            features_ND = self.space.describe(images)
        except WeightsError:
            return  # who asks for them is told
        with self._lock:
            for sample, features_D in zip(samples, features_ND, strict=True):
                self._seen[sample] = features_D
                self._seen.move_to_end(sample)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    def features(self, sample: Sample, cancel: threading.Event) -> Tensor | None:
        """Features (D,) of a sample, which is made again if it was not seen lately; None if cancelled."""
        self.space.network  # noqa: B018  where there is none, say so before sampling
        with self._lock:
            seen = self._seen.get(sample)
        if seen is not None:
            return seen
        last = None
        for frame in self.quick_stream(sample.settings, rows_of(sample), cancel):
            last = frame
        if last is None or not last.final:
            return None
        self._remember([sample], last.images)
        return self.space.describe(last.images)[0]

    def distances(self, settings: SampleSettings, rows: Rows, cancel: threading.Event) -> dict[str, Any]:
        """Distances among the samples of a finished batch, or a `reason`, in a sentence, for having none."""
        try:
            found = [self.features(sample, cancel) for sample in samples_of(settings, rows)]
            features_ND = _stacked(found)
            real_ND = self.space.real(settings.class_name, len(found))
            return {
                "run": run_id(),
                "state": "finished",
                "seeds": [str(seed) for seed in rows.seeds],
                **distances_to_json(settings.class_name, features_ND, real_ND),
            }
        except Exception as error:
            return {"run": run_id(), "state": "finished", "reason": refused(error)["message"]}

    def sample(self, settings: SampleSettings, parent: object, modules: object) -> Sample:
        """A sample by itself (`modules` is 0), or one that keeps modules 1 ... `modules` of the one with seed
        `parent`.

        Raises:
            SettingsError: `parent` is no seed, or that many modules cannot be kept.
        """
        if modules == 0 and not isinstance(modules, bool):
            return Sample(settings)
        kept = batches.check_modules(modules, self.pipeline.plan_of(settings), least=0)
        return Sample(settings, Prefix(check_seed(parent, "parent"), kept))

    def nearest(self, sample: Sample, cancel: threading.Event) -> dict[str, Any]:
        """The training picture nearest to a sample, with the yardsticks of what is near.

        Raises:
            WeightsError: there is no index, or it does not fit; SettingsError: the run was stopped.
        """
        if self._index is None:
            self._index = neighbours.load_index(self.index_folder, self.space)
        features_D = self.features(sample, cancel)
        if features_D is None:
            raise SettingsError("Stopped before the sample was made again.")
        found = self._index.nearest(features_D, self.space)
        class_name, tokenizer = sample.settings.class_name, self.pipeline.tokenizer_fingerprint
        return {
            "image": data_uri(found.image, "PNG"),
            "class_name": found.class_name,
            "number": found.number,
            "of": len(self._index.codes),
            "distance": round(found.distance, DIGITS),
            **self._index.yardstick(class_name, tokenizer),
        }

    def explained(self, settings: SampleSettings, cancel: threading.Event) -> Iterator[dict[str, Any]]:
        """What each module decides, measured: how far it is after every patch, then the result."""
        nesting = self.pipeline.plan_of(settings)
        value = {
            "run": run_id(),
            "class_name": settings.class_name,
            "nesting": nesting.name,
            "modules": [scale.tokens for scale in nesting.scales],
            "settings": {key: getattr(settings, key) for key in MEASURED_AT},
        }
        check_measurable(settings, nesting)
        self.space.network  # noqa: B018  where there is none, say so before sampling
        done: dict[str, Any] = {"done": 0, "of": 0}
        result: dict[str, Any] | None = None
        for step in measure(self.quick_stream, nesting, self.space, settings, parents=PARENTS, cancel=cancel):
            if isinstance(step, Progress):
                done = {"done": step.done, "of": step.of}
                yield value | done | {"state": "running"}
            else:
                result = step.to_json()
        state = "stopped" if result is None else "finished"
        yield value | done | {"state": state, "explained": result}


def _stacked(features: Sequence[Tensor | None]) -> Tensor:
    """Features (N, D) of pictures all of which were made."""
    made = [each for each in features if each is not None]
    if len(made) < len(features):
        raise SettingsError("Stopped before the distances were measured.")
    return torch.stack(made)
