"""NestAR: one velocity transformer per scaled module, and how it is stored.

A nesting's folder holds `config.json` and one `module_<m>.safetensors` per scaled module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nestar.nesting import Nesting
from nestar.transformer import ScaledModule

FORMAT_VERSION = 1


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, of another shape or of a format not known here."""


@dataclass(frozen=True)
class NestARConfig:
    """Everything that decides a NestAR's shape.

    Attributes:
        nesting: how tokens are split into modules and patches.
        blocks: transformer blocks over all modules, split evenly (earlier modules take a remainder).
        cond_dim: width of the time and class embedding that modulates the blocks.
    """

    nesting: Nesting
    channels: int = 16
    classes: int = 12
    dim: int = 192
    heads: int = 6
    blocks: int = 12
    cond_dim: int = 104

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each scaled module."""
        share, rest = divmod(self.blocks, len(self.nesting.scales))
        return tuple(share + (m < rest) for m in range(len(self.nesting.scales)))

    @cached_property
    def parameters(self) -> int:
        """Parameters of all modules together; none is allocated."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in NestAR(self).parameters())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "nesting": self.nesting.to_dict(), "format_version": FORMAT_VERSION}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> NestARConfig:
        known = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        return cls(**{**known, "nesting": Nesting.from_dict(stored["nesting"])})


@dataclass(frozen=True)
class Outline:
    """What a nesting's config says of its weights, before any of them is read.

    Attributes:
        record: how they were trained; empty where the config does not say.
    """

    config: NestARConfig
    record: Mapping[str, Any]

    @property
    def images_seen(self) -> int:
        """Training images, with those of the runs whose weights these began from; 0 if nothing says."""
        return int(summed_over_runs(self.record, "images_seen"))

    @classmethod
    def read(cls, folder: str | Path) -> Outline:
        """From a nesting's folder.

        Raises:
            WeightsError: its config is missing, damaged or describes no NestAR; it is named.
        """
        file = Path(folder) / "config.json"
        stored = read_config(file)
        record = stored.get("training")
        try:
            outline = cls(NestARConfig.from_dict(stored), record if isinstance(record, dict) else {})
            outline.config.parameters  # noqa: B018  (a shape that no module can have fails here)
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise WeightsError(f"{file} describes no NestAR ({first_line(error)}).") from None
        return outline


class NestAR(nn.Module):
    """The scaled modules of one nesting.

    Attributes:
        record: how the weights were trained, as the folder they came from says; empty without one.
    """

    def __init__(self, config: NestARConfig):
        super().__init__()
        self.config = config
        self.record: Mapping[str, Any] = {}
        self.scaled_modules = nn.ModuleList(
            ScaledModule(
                config.nesting.positions[: scale.tokens],
                channels=config.channels,
                classes=config.classes,
                dim=config.dim,
                depth=depth,
                heads=config.heads,
                cond_dim=config.cond_dim,
            )
            for scale, depth in zip(config.nesting.scales, config.depths, strict=True)
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def outline(self) -> Outline:
        """Its shape and record."""
        return Outline(self.config, self.record)

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.bfloat16, record: Mapping[str, Any] | None = None
    ) -> None:
        """Write the config, with `record` (default: the model's own) beside it, and each module's weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stored = {**self.config.to_dict(), "training": dict(self.record if record is None else record)}
        (folder / "config.json").write_text(json.dumps(stored, indent=1) + "\n")
        for number, module in enumerate(self.scaled_modules, 1):
            tensors = {name: value.to(dtype).contiguous() for name, value in module.state_dict().items()}
            save_file(tensors, folder / module_file(number))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> NestAR:
        """Load a nesting's folder, in float32.

        Raises:
            WeightsError: a file is missing, damaged, of the wrong shape, or no safetensors; it is named.
        """
        folder = Path(folder)
        outline = Outline.read(folder)
        model = cls(outline.config)
        model.record = outline.record
        for number, module in enumerate(model.scaled_modules, 1):
            load_weights(module, folder / module_file(number))
        return model.eval()


def module_file(number: int) -> str:
    """File name of scaled module `number` (from 1)."""
    return f"module_{number}.safetensors"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from `file`, or a WeightsError that names the file."""
    try:
        stored = json.loads(file.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}.") from None
    if not isinstance(stored, dict):
        raise WeightsError(f"{file} must hold a JSON object.")
    return stored


def read_config(file: Path) -> dict[str, Any]:
    """A JSON object of a format version that is known here."""
    config = read_json(file)
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise WeightsError(f"{file} has format version {version}; this NestAR reads up to {FORMAT_VERSION}.")
    return config


def summed_over_runs(record: object, key: str) -> float:
    """Sum of a count over a training's record and those of the runs it began from (`init`)."""
    total = 0
    while isinstance(record, Mapping):
        count = record.get(key)
        total += count if isinstance(count, int | float) else 0
        record = record.get("init")
    return total


def first_line(error: Exception) -> str:
    """One line about any error, for use inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def fingerprint_of(module: nn.Module, described: object = "") -> str:
    """Eight hex digits of a network's weights, as bf16 stores them, and of what else decides its answers."""
    digest = hashlib.sha256(repr(described).encode())
    for value in module.state_dict().values():
        digest.update(value.detach().to(torch.bfloat16).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def load_weights(module: nn.Module, file: Path) -> None:
    """Fill `module` from a safetensors file, refusing anything that does not fit exactly."""
    if not file.exists():
        raise WeightsError(f"{file} is missing.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} is no whole safetensors file ({error}).") from None
    expected = module.state_dict()
    for name in expected.keys() ^ tensors.keys():
        raise WeightsError(f"{file} {'lacks' if name in expected else 'has an unexpected'} tensor {name!r}.")
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise WeightsError(
                f"{file}: tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(value.shape)}."
            )
    module.load_state_dict(tensors)
