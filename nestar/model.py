"""NestAR: one velocity transformer per scaled module, and how it is stored.

A nesting's folder holds `config.json` and one `module_<m>.safetensors` per scaled module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from nestar.files import together, write_json, write_tensors
from nestar.limits import MAX_CLASSES, MAX_JSON, MAX_PARAMETERS, MAX_TOKENS, check_sizes, shortened, tail
from nestar.nesting import Nesting
from nestar.transformer import ScaledModule

FORMAT_VERSION = 1
MAX_COUNT = 2**53
"""Of a training's record: beyond, a float counts no longer. Not-a-number is not below it, either."""

WEIGHT_DTYPES = ("BF16", "F16", "F32")
"""Of stored weights, in safetensors' words."""

MAX_SIZES = {
    "channels": 1024,
    "classes": MAX_CLASSES,
    "dim": 8192,
    "heads": 256,
    "blocks": 256,
    "cond_dim": 8192,
}
"""Of a stored NestAR, each several times that of the paper's largest."""

Network = TypeVar("Network", bound=nn.Module)


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, of another shape or of a format not known here.

    Args:
        sentence: what is wrong and where.
        paths: files and folders of this machine that the sentence names.
    """

    def __init__(self, sentence: str, *paths: str | Path):
        super().__init__(sentence, *map(str, paths))

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def public(self) -> str:
        """The sentence for a reader elsewhere, who need not know where on this machine a file lies."""
        sentence = str(self)
        for path in sorted(self.args[1:], key=len, reverse=True):
            sentence = sentence.replace(path, tail(path))
        return sentence


@dataclass(frozen=True)
class NestARConfig:
    """Everything that decides a NestAR's shape.

    Attributes:
        nesting: how tokens are split into modules and patches.
        blocks: transformer blocks over all modules, split evenly (earlier modules take a remainder).
        split: blocks of each scaled module, where they are split otherwise; empty: evenly.
        cond_dim: width of the time and class embedding that modulates the blocks.

    Raises:
        ValueError: a module would have no block, the split is none of `blocks` over the modules, or heads
            have no whole width of four channels and more.
    """

    nesting: Nesting
    channels: int = 16
    classes: int = 12
    dim: int = 192
    heads: int = 6
    blocks: int = 12
    cond_dim: int = 104
    split: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        modules = len(self.nesting.scales)
        if self.blocks < modules:
            raise ValueError(f"blocks must be at least {modules}, one per module, not {self.blocks}")
        if self.split == self._even:  # one shape is one config
            object.__setattr__(self, "split", ())
        fits = len(self.split) == modules and min(self.split) > 0 and sum(self.split) == self.blocks
        if self.split and not fits:
            raise ValueError(
                f"a split of {self.blocks} blocks names a number of at least 1 for each of {modules} "
                f"modules, not {shortened(list(self.split))}"
            )
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim must be a multiple of 4 times {self.heads} heads, not {self.dim}")

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each scaled module."""
        return self.split or self._even

    @property
    def _even(self) -> tuple[int, ...]:
        share, rest = divmod(self.blocks, len(self.nesting.scales))
        return tuple(share + (m < rest) for m in range(len(self.nesting.scales)))

    @cached_property
    def parameters(self) -> int:
        """Parameters of all modules together; none is allocated."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in NestAR(self).parameters())

    def to_dict(self) -> dict[str, Any]:
        stored = {**asdict(self), "nesting": self.nesting.to_dict(), "format_version": FORMAT_VERSION}
        if not self.split:
            del stored["split"]
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> NestARConfig:
        """Inverse of `to_dict`, within the bounds of what is ever built.

        Raises:
            KeyError, TypeError, ValueError: a field is missing, of another kind or out of range.
        """
        known = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        nesting = stored["nesting"]
        check_sizes(known, MAX_SIZES)
        check_sizes(known, {"split": MAX_SIZES["blocks"]}, listed=True)
        known["split"] = tuple(known.get("split", ()))
        if isinstance(nesting, Mapping):  # its plans are made in Python, so that sizes come first
            check_sizes(nesting, dict.fromkeys(("height", "width", "k"), MAX_TOKENS))
            if nesting.get("height", 0) * nesting.get("width", 0) > MAX_TOKENS:
                raise ValueError(f"a grid has at most {MAX_TOKENS} tokens")
        config = cls(**{**known, "nesting": Nesting.from_dict(nesting)})
        if config.parameters > MAX_PARAMETERS:
            raise ValueError(f"{config.parameters:,} parameters, more than {MAX_PARAMETERS:,}")
        return config


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

    @property
    def images_said(self) -> str:
        """The same in words, with what single modules saw beyond it; "unknown" if nothing says."""
        return trained_on(self.record)

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
            return cls(NestARConfig.from_dict(stored), record if isinstance(record, dict) else {})
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise WeightsError(f"{file} describes no NestAR ({first_line(error)}).", file) from None


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
        """Write each module's weights, and the config with `record` (default: the model's own)."""
        training = dict(self.record if record is None else record)
        with together(Path(folder), last="config.json") as place:
            for number, module in enumerate(self.scaled_modules, 1):
                tensors = {name: value.to(dtype) for name, value in module.state_dict().items()}
                write_tensors(place / module_file(number), tensors)
            write_json(place / "config.json", {**self.config.to_dict(), "training": training})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> NestAR:
        """Load a nesting's folder, in float32.

        Raises:
            WeightsError: a file is missing, damaged, of the wrong shape, or no safetensors; it is named.
        """
        folder = Path(folder)
        outline = Outline.read(folder)
        model = build_from(
            lambda: cls(outline.config),
            lambda model: {
                folder / module_file(number): module for number, module in enumerate(model.scaled_modules, 1)
            },
        )
        model.record = outline.record
        return model


def module_file(number: int) -> str:
    """File name of scaled module `number` (from 1)."""
    return f"module_{number}.safetensors"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from `file`, or a WeightsError that names the file."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise WeightsError(f"{file} has more than {MAX_JSON:,} bytes.", file)
        stored = json.loads(file.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing.", file) from None
    except (OSError, ValueError, RecursionError) as error:  # wrong bytes, JSON or numbers; too deep
        raise WeightsError(f"{file} cannot be read as JSON: {first_line(error)}.", file) from None
    if not isinstance(stored, dict):
        raise WeightsError(f"{file} must hold a JSON object.", file)
    return stored


def read_config(file: Path) -> dict[str, Any]:
    """A JSON object of a format version that is known here."""
    config = read_json(file)
    version = config.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise WeightsError(
            f"{file} has format version {shortened(version)}; this NestAR reads up to {FORMAT_VERSION}.", file
        )
    return config


def summed_over_runs(record: object, key: str) -> float:
    """Sum of a count over a training's record and those of the runs it began from (`init`)."""
    total = 0
    while isinstance(record, Mapping):
        count = record.get(key)
        total += count if isinstance(count, int | float) and 0 <= count < MAX_COUNT else 0
        record = record.get("init")
    return total


def trained_on(record: object) -> str:
    """Training images by a training's record, such as `956,800 (single modules 6,307,712 more)`: what runs of
    some modules saw is added up beside what all saw. "unknown" if nothing says."""
    seen, more = (int(summed_over_runs(record, key)) for key in ("images_seen", "images_seen_by_modules"))
    return (f"{seen:,}" if seen else "unknown") + (f" (single modules {more:,} more)" if more else "")


def first_line(error: Exception) -> str:
    """One short line about any error, for use inside a sentence."""
    return shortened(str(error).strip() or type(error).__name__).rstrip(".")


def fingerprint_of(module: nn.Module, described: object = "") -> str:
    """Eight hex digits of a network's weights, as bf16 stores them, and of what else decides its answers."""
    digest = hashlib.sha256(repr(described).encode())
    for value in module.state_dict().values():
        digest.update(value.detach().to(torch.bfloat16).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def build_from(build: Callable[[], Network], parts: Callable[[Network], Mapping[Path, nn.Module]]) -> Network:
    """What `build` makes, filled from files and ready to use. All files are first held against a copy that
    has shapes but no memory.

    Args:
        parts: which file holds what of it.
    """
    with torch.device("meta"):
        for file, part in parts(build()).items():
            check_weights(part, file)
    network = build()
    for file, part in parts(network).items():
        load_weights(part, file)
    return network.eval()


def check_weights(module: nn.Module, file: Path) -> None:
    """Whether the header of a safetensors file says exactly what `module` takes; no tensor is read."""
    stored = read_header(file)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(expected.keys() ^ stored.keys()):
        kind = "lacks" if name in expected else "has an unexpected"
        raise WeightsError(f"{file} {kind} tensor {shortened(name)!r}.", file)
    for name, shape in expected.items():
        found, dtype = stored[name]
        if found != shape:
            raise WeightsError(
                f"{file}: tensor {name!r} has shape {shortened(found)}, expected {shape}.", file
            )
        if dtype not in WEIGHT_DTYPES:
            raise WeightsError(
                f"{file}: tensor {name!r} is of type {dtype}; weights are {', '.join(WEIGHT_DTYPES)}.", file
            )


def read_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type (BF16, F32, I8, …) of each tensor in a safetensors file, by name.

    Raises:
        WeightsError: it is missing, or no whole safetensors file.
    """
    if not file.exists():
        raise WeightsError(f"{file} is missing.", file)
    try:
        with safe_open(file, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118  (no dict)
            return {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} is no whole safetensors file ({first_line(error)}).", file) from None


def load_weights(module: nn.Module, file: Path) -> None:
    """Fill `module` from a safetensors file, refusing anything that does not fit exactly."""
    check_weights(module, file)
    module.load_state_dict(load_file(file))
    for name, value in module.state_dict().items():
        if not value.isfinite().all():
            raise WeightsError(f"{file}: tensor {name!r} holds infinite values, or none (NaN).", file)
