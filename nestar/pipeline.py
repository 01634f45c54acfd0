"""From a class and settings to a stream of frames: what the page, the command line and Python all call."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nestar.checkpoints import Checkpoint, open_checkpoint, resolve_device
from nestar.images import to_pil
from nestar.model import NestAR, WeightsError
from nestar.nesting import Nesting
from nestar.sampler import PatchDone, SolverSettings, sample
from nestar.settings import MAX_SEED, SampleSettings, SettingsError, check_settings, find_nesting
from nestar.tokenizer import Tokenizer


@dataclass(frozen=True)
class Frame:
    """What stands after a patch, as pictures.

    Attributes:
        images: one preview a sample; `image` is the first. Until `final` they are guesses from a part of
            the tokens.
        module, patch: which patch has just been made, both from 1; tokens: the grid places it filled.
        known: tokens that stand, of n.
        evaluations: patches made one after another; function_evaluations: network passes.
        seconds: the pipeline's own work since the call, decoding included, the consumer's time left out.
    """

    images: tuple[Image.Image, ...]
    module: int
    modules: int
    patch: int
    tokens: tuple[int, ...]
    known: int
    n: int
    evaluations: int
    function_evaluations: int
    seconds: float
    module_done: bool
    final: bool

    @property
    def image(self) -> Image.Image:
        return self.images[0]


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
        """Settings and figures as plain JSON values; `stages` holds each module's end, `nesting` is there if
        weights were named."""
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


class NestARPipeline:
    """Loaded weights, ready to sample. Build it with `from_pretrained`.

    Attributes:
        classes: class names, in the order of their ids.
        nestings: those with weights, by name.
        origin: "embedded", a folder, or `user/repo@commit`.
    """

    def __init__(
        self,
        models: dict[str, NestAR],
        tokenizer: Tokenizer,
        *,
        classes: tuple[str, ...],
        origin: str,
        device: torch.device,
    ):
        self.models = {name: model.to(device).eval() for name, model in models.items()}
        self.tokenizer = tokenizer.to(device).eval()
        self.classes, self.origin, self.device = classes, origin, device
        self.nestings: dict[str, Nesting] = {name: model.config.nesting for name, model in models.items()}

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, *, revision: str | None = None, device: str = "auto"
    ) -> NestARPipeline:
        """Load weights.

        Args:
            source: None for the embedded weights, a local folder, or a Hub repository id.
            device: `auto` (CUDA where there is one), `cpu` or `cuda`.

        Raises:
            WeightsError: one sentence that names the repository, folder or file at fault.
        """
        checkpoint: Checkpoint = open_checkpoint(source, revision)
        models = {name: checkpoint.nesting(name) for name in checkpoint.nestings}
        tokenizer = checkpoint.tokenizer()
        for name, model in models.items():
            if model.config.channels != tokenizer.channels:
                raise WeightsError(
                    f"{checkpoint.folder / name / 'config.json'} is for tokens of {model.config.channels} "
                    f"channels; the tokenizer in {checkpoint.folder / 'tokenizer'} has {tokenizer.channels}."
                )
        return cls(
            models,
            tokenizer,
            classes=checkpoint.classes,
            origin=checkpoint.origin,
            device=resolve_device(device),
        )

    def settings(self, **values: object) -> SampleSettings:
        """Check settings by name; SettingsError says in one sentence what is wrong and what is allowed."""
        return check_settings(classes=self.classes, nestings=self.nestings, **values)

    def plan(self, k: int = 4, order: str = "lattice", nesting: str | None = None) -> Nesting:
        """The nesting with weights that has this k and order, or the one that `nesting` names."""
        return self.nestings[find_nesting(self.nestings, k, order, nesting)]

    def stream(
        self, class_name: str, *, cancel: threading.Event | None = None, **values: object
    ) -> Iterator[Frame]:
        """Sample, yielding a frame as each patch is made.

        Args:
            values: any field of `SampleSettings` by name: k, steps, temperature, cfg, seed, count, order,
                solver, schedule, and nesting, which names weights (`k4-lattice.separate`) in place of k and
                order. Sample b of a batch has seed `seed + b`.
            cancel: once set, the stream ends within one solver step on a CPU, one patch on a GPU.

        Raises:
            SettingsError: at the call, before anything is computed.
        """
        return self._frames(self.settings(class_name=class_name, **values), cancel)

    def __call__(self, class_name: str, *, cancel: threading.Event | None = None, **values: object) -> Result:
        """Sample to the end. A cancelled call raises SettingsError if not even one patch was made."""
        settings = self.settings(class_name=class_name, **values)
        frames = tuple(self._frames(settings, cancel))
        if not frames:
            raise SettingsError("The call was cancelled before its first patch.")
        return Result(settings, frames)

    def _frames(self, settings: SampleSettings, cancel: threading.Event | None) -> Iterator[Frame]:
        model = self.models[find_nesting(self.nestings, settings.k, settings.order, settings.nesting)]
        nesting = model.config.nesting
        ids = torch.full((settings.count,), self.classes.index(settings.class_name))
        seeds = [(settings.seed + b) % (MAX_SEED + 1) for b in range(settings.count)]
        solver = self.solver_settings(settings)
        decoding = 0.0
        for event in sample(model, ids, seeds, solver, cancel=cancel):
            if not isinstance(event, PatchDone):
                continue
            began = time.perf_counter()
            images = self._decode(event.sequence_BNC, nesting, event.known)
            decoding += time.perf_counter() - began
            yield Frame(
                images=images,
                module=event.module,
                modules=len(nesting.scales),
                patch=event.patch,
                tokens=event.tokens,
                known=event.known,
                n=nesting.n,
                evaluations=event.evaluations,
                function_evaluations=event.function_evaluations,
                seconds=event.elapsed + decoding,
                module_done=event.known == nesting.scales[event.module - 1].tokens,
                final=event.known == nesting.n,
            )

    @staticmethod
    def solver_settings(settings: SampleSettings) -> SolverSettings:
        """The part of checked settings that the sampler takes."""
        return SolverSettings(
            **{name: getattr(settings, name) for name in SolverSettings.__dataclass_fields__}
        )

    @torch.inference_mode()
    def _decode(self, sequence_BNC: Tensor, nesting: Nesting, known: int) -> tuple[Image.Image, ...]:
        images_B3HW = self.tokenizer.preview(sequence_BNC, nesting, known)
        return to_pil(images_B3HW)
