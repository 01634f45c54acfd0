"""From a class and settings to a stream of frames: what the page, the command line and Python all call."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nestar import batches, keepsakes
from nestar.batches import Rows
from nestar.checkpoints import check_beside, check_fit, free_name, open_checkpoints, resolve_device, shown
from nestar.engines import Engines
from nestar.frames import Decoders, Frame, Reel
from nestar.hub import Progress
from nestar.model import NestAR, Outline, fingerprint_of
from nestar.nesting import Nesting
from nestar.sampler import PatchDone, SolverSettings, sample
from nestar.settings import (
    RANGES,
    SampleSettings,
    SettingsError,
    check_number,
    check_settings,
    find_nesting,
)
from nestar.tokenizer import Tokenizer, fill_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished call: its last frame's pictures and all frames on the way."""

    settings: SampleSettings
    frames: tuple[Frame, ...]

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return self.frames[-1].images

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @property
    def evaluations(self) -> int:
        return self.frames[-1].evaluations

    @property
    def function_evaluations(self) -> int:
        return self.frames[-1].function_evaluations

    @property
    def seconds(self) -> float:
        return self.frames[-1].seconds

    def summary(self) -> dict[str, Any]:
        """Settings and figures as plain JSON values; `stages` holds each module's end (`seconds` since the
        call), `nesting` is there if weights were named."""
        s = self.settings
        return {
            "class": s.class_name,
            **({"nesting": s.nesting} if s.nesting else {}),
            "k": s.k,
            "order": s.order,
            "steps": s.steps,
            "solver": s.solver,
            "cfg": s.cfg,
            "schedule": s.schedule,
            "temperature": s.temperature,
            "seed": s.seed,
            "modules": self.frames[-1].modules,
            "evaluations": self.evaluations,
            "function_evaluations": self.function_evaluations,
            "seconds": round(self.seconds, 4),
            "stages": [
                {"module": f.module, "tokens": f.known, "seconds": round(f.seconds, 4)}
                for f in self.frames
                if f.module_done
            ],
        }


FETCH_PACE = 0.2
"""Seconds between two words on a download."""
FETCH_SILENCE = 2.0
"""Seconds after which whoever waits hears that there is nothing to tell yet, and can leave."""


class _Loader(threading.Thread):
    """Loads weights beside whoever waits for them; `told` is what was last heard of a download."""

    def __init__(self, load: Callable[[Progress], object], name: str):
        super().__init__(name=f"load {name}", daemon=True)
        self._load = load
        self.told: tuple[str, int, int] | None = None
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._load(self._tell)
        except torch.OutOfMemoryError as error:
            self.failure = error.with_traceback(None)  # whose frames hold what had come to the device
        except Exception as error:
            self.failure = error

    def _tell(self, path: str, here: int, in_all: int) -> None:
        self.told = (path, here, in_all)


class Models(Mapping[str, NestAR]):
    """Models by name, on one device, each loaded when it is first asked for.

    Args:
        outlines: what is known of each beforehand.
        load: gives a model by name, on the CPU, and tells the progress of a download; it may raise
            WeightsError, and is then asked again.
    """

    def __init__(
        self,
        outlines: Mapping[str, Outline],
        load: Callable[[str, Progress | None], NestAR],
        device: torch.device,
    ) -> None:
        self._outlines, self._load, self._device = dict(outlines), load, device
        self._locks = {name: threading.Lock() for name in outlines}
        self.loaded: dict[str, NestAR] = {}
        self._spares: dict[str, NestAR] = {}
        self._fingerprints: dict[str, str] = {}
        self._loaders: dict[str, _Loader] = {}
        self._starting = threading.Lock()

    def __getitem__(self, name: str) -> NestAR:
        return self._get(name, None)

    def _get(self, name: str, progress: Progress | None) -> NestAR:
        if name not in self.loaded:
            with self._locks[name]:  # two visitors may ask at once
                if name not in self.loaded:
                    model = self._load(name, progress)
                    # Now, on the CPU: what stands on ZeroGPU's device can be read inside a call alone.
                    self._fingerprints[name] = fingerprint_of(model)
                    self.loaded[name] = model.to(self._device).eval()
        return self.loaded[name]

    def fetch(self, name: str) -> Iterator[tuple[str, int, int]]:
        """Load a model; while its files come from elsewhere, tell a few times a second of the one on its way:
        its path, bytes that are here, bytes in all; no path while nothing is known yet. Whoever stops
        listening does not stop the download, and whoever asks for it later hears of the same one.

        Raises:
            WeightsError: as loading does.
        """
        if name in self.loaded:
            return
        with self._starting:  # whoever comes while one loads waits for that one, however many come
            loader = self._loaders.get(name)
            if loader is None or not loader.is_alive():
                loader = self._loaders[name] = _Loader(partial(self._get, name), name)
                loader.start()
        began = time.monotonic()
        while loader.is_alive():
            loader.join(FETCH_PACE)
            if loader.told:
                yield loader.told
            elif time.monotonic() - began > FETCH_SILENCE:
                yield "", 0, 0
        if loader.failure and not isinstance(loader.failure, torch.OutOfMemoryError):  # then a spare will do
            raise loader.failure

    def spare(self, name: str) -> NestAR:
        """The same model on the CPU, for when the device has no memory left."""
        if name not in self._spares:
            if name in self.loaded:
                model = self.loaded[name]
                spare = NestAR(model.config)
                spare.load_state_dict(model.state_dict())
            else:
                spare = self._load(name, None)
            self._spares[name] = spare.eval()
        return self._spares[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name; Mapping's own would load it."""
        return name in self._outlines

    def __iter__(self) -> Iterator[str]:
        return iter(self._outlines)

    def __len__(self) -> int:
        return len(self._outlines)

    def load_all(self) -> None:
        """Load every one now."""
        for name in self:
            self[name]

    def fingerprint(self, name: str) -> str:
        """Of a model's weights, as `evaluate` reports it; loads them."""
        if name not in self._fingerprints:
            self._fingerprints[name] = fingerprint_of(self[name])
        return self._fingerprints[name]

    def outline(self, name: str) -> Outline:
        """Shape and record of a model, which need not be loaded for it."""
        return self.loaded[name].outline if name in self.loaded else self._outlines[name]


class NestARPipeline:
    """Weights, ready to sample. Build it with `from_pretrained`.

    Attributes:
        models: by name; those from the Hub are fetched when they are first used.
        classes: class names, in the order of their ids.
        nestings: those with weights, by name.
        ahead: patches that are queued before a frame is waited for: on a GPU the next one, so that pictures
            are made beside it.
        origin: "embedded", a folder, or `user/repo@commit`; `shown_origin` is the same for readers elsewhere,
            in pages and pictures: of a folder only its name.
        defaults: those of settings that are these weights' own; of several repositories' the first one's.
    """

    def __init__(
        self,
        models: Mapping[str, NestAR],
        tokenizer: Tokenizer,
        *,
        classes: tuple[str, ...],
        origin: str,
        device: torch.device,
        defaults: Mapping[str, Any] | None = None,
    ):
        if not isinstance(models, Models):
            given = dict(models)
            outlines = {name: model.outline for name, model in given.items()}
            models = Models(outlines, lambda name, _: given[name], device)
            models.load_all()
        self.models = models
        # Now, as models' (see `Models._get`), and not at every question.
        self.tokenizer_fingerprint = tokenizer.fingerprint
        # Beside one on a GPU, a spare for when that has no memory left.
        self._spare_tokenizer = tokenizer.eval() if device.type == "cpu" else copy.deepcopy(tokenizer).eval()
        self.tokenizer = tokenizer.to(device).eval()
        self.classes, self.origin, self.device = classes, origin, device
        self.defaults = dict(defaults or {})
        self.shown_origin = shown(origin)
        self.nestings: dict[str, Nesting] = {name: models.outline(name).config.nesting for name in models}
        self.ahead = 1 if device.type == "cuda" else 0
        self._engines: dict[NestAR, Engines] = {}

    def _engines_of(self, model: NestAR) -> Engines:
        return self._engines.setdefault(model, Engines(model))

    def record(self, samples: Sequence[int] = (1,)) -> None:
        """On a GPU, make runs of so many samples ready to be started a pass at a time, see `Engines.record`,
        for all weights that are loaded; guided ones, unless these weights begin without. Takes some seconds
        a nesting."""
        if self.device.type != "cuda":
            return
        guided = self.defaults.get("cfg", SampleSettings.cfg) != 1
        for model in self.models.loaded.values():
            for patch in model.config.nesting.patches:
                fill_weights(model.config.nesting, patch.stop, model.device)
            for count in samples:
                if not self._engines_of(model).record(count, guided=guided):
                    with suppress(RuntimeError):  # some versions of torch believe that it still goes on
                        torch.cuda.empty_cache()
                    return

    @cached_property
    def _beside(self) -> torch.cuda.Stream:
        """Where a GPU makes pictures while it goes on sampling."""
        return torch.cuda.Stream(self.device)

    @cached_property
    def _decoders(self) -> Decoders:
        return Decoders.of(self.tokenizer)

    @cached_property
    def _spare_decoders(self) -> Decoders:
        return Decoders.of(self._spare_tokenizer)

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, *, revision: str | None = None, device: str = "auto"
    ) -> NestARPipeline:
        """Load weights.

        Args:
            source: None for the embedded weights, a local folder, or a Hub repository id (`user/repo` or
                `user/repo@revision`); or several of these, parted by commas, if they share classes and
                tokenizer. Of a repository only what is needed is fetched, when it is first used.
            revision: of a single repository.
            device: `auto` (CUDA where there is one), `cpu` or `cuda`.

        Raises:
            WeightsError: one sentence that names the repository, folder or file at fault.
        """
        on = resolve_device(device)
        checkpoints = open_checkpoints(source, revision)
        tokenizer = checkpoints[0].tokenizer()
        makes = tokenizer.latents_fingerprint
        outlines: dict[str, Outline] = {}
        loaders: dict[str, Callable[[Progress | None], NestAR]] = {}
        for checkpoint in checkpoints:
            check_beside(checkpoints[0], tokenizer, checkpoint)
            for stored in checkpoint.nestings:
                outline = checkpoint.outline(stored)
                file = checkpoint.folder / stored / "config.json"
                check_fit(outline, file, tokenizer, makes, checkpoint.origin)
                name = free_name(stored, checkpoint.origin, outlines)
                outlines[name], loaders[name] = outline, partial(checkpoint.nesting, stored)
        models = Models(outlines, lambda name, progress: loaders[name](progress), on)
        if all(checkpoint.repository is None for checkpoint in checkpoints):
            models.load_all()  # what is damaged is found out now
        return cls(
            models,
            tokenizer,
            classes=checkpoints[0].classes,
            origin=", ".join(checkpoint.origin for checkpoint in checkpoints),
            device=on,
            defaults=checkpoints[0].defaults,
        )

    def settings(self, **values: object) -> SampleSettings:
        """Check settings by name; SettingsError says in one sentence what is wrong and what is allowed."""
        return check_settings(classes=self.classes, nestings=self.nestings, defaults=self.defaults, **values)

    def plan(self, k: int = 4, order: str = "lattice", nesting: str | None = None) -> Nesting:
        """The nesting with weights that has this k and order, or the one that `nesting` names."""
        return self.nestings[find_nesting(self.nestings, k, order, nesting)]

    def fetch(self, settings: SampleSettings) -> Iterator[tuple[str, int, int]]:
        """Load the weights that checked settings name, see `Models.fetch`."""
        return self.models.fetch(find_nesting(self.nestings, settings.k, settings.order, settings.nesting))

    def plan_of(self, settings: SampleSettings) -> Nesting:
        """The nesting that checked settings name."""
        return self.plan(settings.k, settings.order, settings.nesting)

    def stream(
        self,
        class_name: str,
        *,
        cancel: threading.Event | None = None,
        timed: bool = False,
        **values: object,
    ) -> Iterator[Frame]:
        """Sample, yielding a frame as each patch is made.

        Args:
            values: any field of `SampleSettings` by name: k, steps, temperature, cfg, seed, count, order,
                solver, schedule, and nesting, which names weights (`k4-lattice.separate`) in place of k and
                order. Sample b of a batch has seed `seed + b`.
            cancel: once set, the stream ends within one solver step on a CPU, two patches on a GPU.
            timed: queue no patch before the last has been read, so that each frame's seconds are its own
                where streams take turns.

        A GPU that has no memory left hands the run to the CPU, where it goes on with the next patch.

        Raises:
            SettingsError: at the call, before anything is computed.
        """
        return self._frames(self.settings(class_name=class_name, **values), cancel, timed=timed)

    def siblings(
        self,
        class_name: str,
        *,
        parent: int,
        modules: int,
        cancel: threading.Event | None = None,
        **values: object,
    ) -> Iterator[Frame]:
        """As `stream`, of the sample with seed `parent`, first, and `count` siblings: they keep its modules
        1 ... `modules` and make the rest from seeds `seed`, `seed + 1`, ...

        Raises:
            SettingsError: at the call, also for a number of modules that leaves nothing to keep or to make.
        """
        settings = self.settings(class_name=class_name, **values)
        rows = batches.siblings(settings, self.plan_of(settings), parent, modules)
        return self.stream_rows(settings, rows, cancel=cancel)

    def temperatures(
        self,
        class_name: str,
        *,
        temperatures: Sequence[float] = batches.SWEEP,
        cancel: threading.Event | None = None,
        **values: object,
    ) -> Iterator[Frame]:
        """As `stream`, of one seed at each of `temperatures`, as one batch."""
        low, high = RANGES["count"]
        if not low <= len(temperatures) <= high:
            raise SettingsError(f"temperatures must be {low} to {high} numbers, got {len(temperatures)}.")
        for temperature in temperatures:
            check_number("temperature", temperature)
        settings = self.settings(class_name=class_name, **values)
        return self.stream_rows(settings, batches.temperature_row(settings, temperatures), cancel=cancel)

    def stream_rows(
        self,
        settings: SampleSettings,
        rows: Rows,
        *,
        cancel: threading.Event | None = None,
        previews: bool = True,
    ) -> Iterator[Frame]:
        """As `stream`, of checked settings and of any rows; without `previews` only the last frame has
        pictures, and the time of decoding all others is saved."""
        return self._frames(settings, cancel, rows, previews)

    def __call__(self, class_name: str, *, cancel: threading.Event | None = None, **values: object) -> Result:
        """Sample to the end. A cancelled call raises SettingsError if not even one patch was made."""
        settings = self.settings(class_name=class_name, **values)
        frames = tuple(self._frames(settings, cancel))
        if not frames:
            raise SettingsError("The call was cancelled before its first patch.")
        return Result(settings, frames)

    def _frames(
        self,
        settings: SampleSettings,
        cancel: threading.Event | None,
        rows: Rows | None = None,
        previews: bool = True,
        timed: bool = False,
    ) -> Iterator[Frame]:
        rows, ahead = rows or batches.consecutive(settings), 0 if timed else self.ahead
        name = find_nesting(self.nestings, settings.k, settings.order, settings.nesting)
        made, spent, decoding = 0, 0.0, 0.0
        try:
            model, decoders = self.models[name], self._decoders
            for frame in self._frames_of(model, decoders, settings, rows, cancel, previews, ahead):
                made, spent, decoding = frame.evaluations, frame.seconds, frame.decoding
                yield frame
            return
        except torch.OutOfMemoryError as error:
            if self.device.type == "cpu":
                raise
            log.warning("%s has no memory left (%s): the run goes on on the CPU.", self.device, error)
        torch.cuda.empty_cache()
        spare = self.models.spare(name)
        for frame in self._frames_of(spare, self._spare_decoders, settings, rows, cancel, previews, 0):
            if frame.evaluations > made:  # the patches before it were made again, and shown already
                yield replace(frame, seconds=spent + frame.seconds, decoding=decoding + frame.decoding)

    def _frames_of(
        self,
        model: NestAR,
        decoders: Decoders,
        settings: SampleSettings,
        rows: Rows,
        cancel: threading.Event | None,
        previews: bool,
        ahead: int,
    ) -> Iterator[Frame]:
        classes = rows.classes or (settings.class_name,) * len(rows.seeds)
        events = sample(
            model,
            torch.tensor([self.classes.index(name) for name in classes]),
            rows.seeds,
            self.solver_settings(settings),
            keep=rows.keep,
            temperatures=rows.temperatures,
            cfgs=rows.cfgs,
            engines=self._engines_of(model),
            cancel=cancel,
        )
        beside = self._beside if model.device.type == "cuda" else None
        reel = Reel(model.config.nesting, decoders, model.device.type, previews=previews, beside=beside)
        for event in events:
            if isinstance(event, PatchDone):
                reel.add(event)
                while len(reel) > ahead:
                    yield reel.next()
        while len(reel):
            yield reel.next()

    def about(self, settings: SampleSettings) -> dict[str, Any]:
        """What a picture made here with these settings remembers; loads the nesting's weights."""
        name = find_nesting(self.nestings, settings.k, settings.order, settings.nesting)
        return keepsakes.about(settings, self.shown_origin, self.models.fingerprint(name))

    @staticmethod
    def solver_settings(settings: SampleSettings) -> SolverSettings:
        """The part of checked settings that the sampler takes."""
        return SolverSettings(
            **{name: getattr(settings, name) for name in SolverSettings.__dataclass_fields__}
        )
