"""Where weights come from: embedded in `assets/`, a local folder, or a Hugging Face Hub repository.

A checkpoint folder holds

    config.json            format version, classes, image size, names of the nestings; `defaults`, if there:
                           settings that pictures of these weights begin with ({"steps": 50,
                           "solver": "euler", "cfg": 2.3}), in place of the general ones
    tokenizer/             diffusers' AutoencoderKL, and tokenizer.json (fold, scale, and how unfinished
                           grids were trained on: "fills", "nested", see `Tokenizer`); or none, where the
                           config's `tokenizer` names another repository: {"repository": "user/repo",
                           "revision": …, "folder": …, "patch": 1, "scale": 0.2325}
    <nesting>/             config.json and module_<m>.safetensors, one folder a nesting
    <nesting>.<variant>/   the same nesting, trained in another way (k4-lattice.separate)

Only JSON and safetensors files are ever read. From the Hub they come when they are asked for.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from nestar.files import write_json
from nestar.hub import HubRepository, Progress
from nestar.limits import (
    MAX_CLASSES,
    MAX_PIXELS,
    check_folder_names,
    check_names,
    check_sizes,
    shortened,
    tail,
)
from nestar.model import (
    FORMAT_VERSION,
    NestAR,
    Outline,
    WeightsError,
    build_from,
    first_line,
    module_file,
    read_config,
    read_json,
)
from nestar.nesting import Nesting
from nestar.settings import SOLVING, SampleSettings, SettingsError, check_solving
from nestar.tokenizer import Tokenizer

EMBEDDED = Path(__file__).resolve().parent.parent / "assets"
TOKENIZER_FILES = ("config.json", SAFETENSORS_WEIGHTS_NAME)
"""What diffusers stores of an AutoencoderKL."""
TOGETHER = "together"
"""Variant of a nesting's weights that saw as many images as its family, see `alike`."""

MAX_PATCH = 64
MAX_AUTOENCODER = {
    "in_channels": 3 * MAX_PATCH**2,
    "out_channels": 3 * MAX_PATCH**2,
    "layers_per_block": 16,
    "latent_channels": 1024,
    "norm_num_groups": 1024,
}
MAX_AUTOENCODER_CHANNELS = 4096
"""Sizes of a stored AutoencoderKL, each several times the largest published one's."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights and how to name it to a reader: "embedded", a path, or `repo@commit`.

    Attributes:
        defaults: those of the settings SOLVING that are these weights' own.
        tokenizer_place: where the tokenizer lies if not in the folder, as the config says.
        repository: whose folder it is, if it is on the Hub: files may not have come yet.
    """

    folder: Path
    origin: str
    classes: tuple[str, ...]
    size: int
    nestings: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_place: Mapping[str, Any] | None = None
    repository: HubRepository | None = None

    @property
    def defaults_in_words(self) -> str:
        """Own defaults for a reader, "steps 50, cfg 2.0"; empty where there are none."""
        return ", ".join(f"{name} {value}" for name, value in self.defaults.items())

    def outline(self, name: str) -> Outline:
        """What a nesting's config says."""
        self._fetch([f"{name}/config.json"])
        outline = Outline.read(self.folder / name)
        if outline.config.classes != len(self.classes):
            raise WeightsError(
                f"{self.folder / name / 'config.json'} is for {outline.config.classes} classes; "
                f"the checkpoint has {len(self.classes)}.",
                self.folder / name / "config.json",
            )
        return outline

    def nesting(self, name: str, progress: Progress | None = None) -> NestAR:
        """The model of one nesting, float32, on the CPU."""
        modules = len(self.outline(name).config.nesting.scales)
        self._fetch([f"{name}/{module_file(number)}" for number in range(1, modules + 1)], progress)
        return NestAR.from_pretrained(self.folder / name)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, float32, on the CPU."""
        place = self.tokenizer_place
        if place is None:
            names = (*TOKENIZER_FILES, "tokenizer.json")
            self._fetch([f"tokenizer/{name}" for name in names])
            return load_tokenizer(self.folder / "tokenizer")
        config = self.folder / "config.json"
        try:
            within = str(place.get("folder") or "").strip("/")
            for each in within.split("/") if within else ():
                check_folder_names("folder", [each])
            name, (patch, scale) = str(place["repository"]), _fold_and_scale(place)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WeightsError(
                f"The tokenizer that {config} names lacks a valid {first_line(error)}.", config
            ) from None
        paths = [f"{within}/{name}" if within else name for name in TOKENIZER_FILES]
        repository = HubRepository.open(name, place.get("revision"), first=paths[0])
        repository.fetch(paths)
        return build_tokenizer(repository.folder / within, patch=patch, scale=scale)

    def _fetch(self, paths: Sequence[str], progress: Progress | None = None) -> None:
        if self.repository is not None:
            self.repository.fetch(paths, progress)


def open_checkpoint(source: str | Path | None = None, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and read its config; weights are read when asked for.

    Args:
        source: None for the embedded weights, a local folder, or a Hub repository id (`user/repo`, or
            `user/repo@revision` where `revision` is not given).

    Raises:
        WeightsError: one sentence that names the repository, folder or file at fault.
    """
    repository = None
    is_here = source is None or _is_folder(source)
    if is_here and revision is not None:
        here = "the embedded weights have" if source is None else f"the folder {source} has"
        raise WeightsError(f"A revision is of a repository on the Hub; {here} none.", *filter(None, [source]))
    if is_here:
        folder, origin = (EMBEDDED, "embedded") if source is None else (Path(source), str(source))
    else:
        name, _, named = str(source).partition("@")
        repository = HubRepository.open(name, revision or named or None)
        folder, origin = repository.folder, repository.origin
    config = read_config(folder / "config.json")
    try:
        classes = check_names("classes", config["classes"], MAX_CLASSES)
        nestings = check_folder_names("nestings", config["nestings"])
        place, size = config.get("tokenizer"), config["size"]
        if not (place is None or isinstance(place, dict)):
            raise ValueError("tokenizer")
        if not classes or type(size) is not int or size < 1 or size**2 > MAX_PIXELS:
            raise ValueError("size" if classes else "class")
        defaults = _defaults_of(config, folder / "config.json")
        return Checkpoint(folder, origin, classes, size, nestings, defaults, place, repository)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        file = folder / "config.json"
        raise WeightsError(f"{file} lacks a valid {first_line(error)}.", file) from None


def _defaults_of(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The defaults that a config has for these weights, checked."""
    given = config.get("defaults")
    try:
        if given is None:
            return {}
        if not isinstance(given, dict):
            raise SettingsError('It must be an object, such as {"steps": 50, "solver": "euler"}.')
        return check_solving(given)
    except SettingsError as error:
        raise WeightsError(f"{file} lacks valid 'defaults'. {error}", file) from None


def open_checkpoints(source: str | Path | None = None, revision: str | None = None) -> list[Checkpoint]:
    """The checkpoints of one source, or of several parted by commas, see `open_checkpoint`.

    Raises:
        WeightsError: as there; or a revision is given for several.
    """
    if source is None:
        return [open_checkpoint(None, revision)]
    names = sources_of(str(source))
    if len(names) > 1 and revision is not None:
        raise WeightsError(f"A revision goes with one repository; of several, write {names[0]}@{revision}.")
    return [open_checkpoint(name, revision) for name in names]


def _is_folder(source: str | Path) -> bool:
    """Whether a source is a folder of this machine; what is too long for a path is none."""
    try:
        return Path(source).is_dir()
    except OSError:
        return False


def sources_of(source: str) -> list[str]:
    """The folders and repositories that `source` names, parted by commas; a folder's name may have some."""
    if _is_folder(source):
        return [source]
    return [name for part in source.split(",") if (name := part.strip())] or [source]


def check_beside(first: Checkpoint, tokenizer: Tokenizer, other: Checkpoint) -> None:
    """Whether nestings of `other` can be served with those of `first`, whose tokenizer is given.

    Raises:
        WeightsError: their classes or their tokenizers differ.
    """
    if other is first:
        return
    if other.classes != first.classes:
        has = "other classes"
    elif other.tokenizer().latents_fingerprint != tokenizer.latents_fingerprint:
        has = "another tokenizer"
    else:
        return
    raise WeightsError(
        f"{other.origin} cannot stand beside {first.origin}: it has {has}.", other.folder, first.folder
    )


def shown(source: str) -> str:
    """A source or origin for a reader elsewhere: of a folder of this machine only its name."""
    names = sources_of(source)
    return ", ".join(tail(Path(name).resolve()) if _is_folder(name) else name for name in names)


def free_name(name: str, origin: str, taken: Iterable[str]) -> str:
    """`name`, or where that is taken a variant of it that says where it comes from (`k4-lattice.repo`)."""
    if name not in taken:
        return name
    repository = shown(origin) if _is_folder(origin) else origin.partition("@")[0].rpartition("/")[2]
    plain = f"{name}.{repository}"
    names = chain([plain], (f"{plain}-{number}" for number in count(2)))
    return next(each for each in names if each not in taken)


def weights_name(nesting: Nesting, variant: str = "") -> str:
    """Folder of a nesting's weights; a variant tells apart several trainings of one nesting."""
    return f"{nesting.name}.{variant}" if variant else nesting.name


def alike(names: Container[str], name: str) -> str:
    """The weights that stand for nesting `name` where several are compared: its variant TOGETHER, if there is
    one, as weights that saw more images than the others would win for that alone."""
    variant = f"{name}.{TOGETHER}"
    return variant if variant in names else name


def assemble(
    folder: Path,
    *,
    classes: Sequence[str],
    tokenizer: Path | None = None,
    nestings: Sequence[Path] = (),
    defaults: Mapping[str, object] | None = None,
) -> Checkpoint:
    """Copy trained parts into a checkpoint folder and write its config.

    Parts that stand there already and are not named stay, so that nestings can be added one by one. Each part
    is loaded first, so that a folder that cannot be served is never written. A nesting's folder gets the
    nesting's name, or keeps its own where that is a variant's (`<nesting>.<variant>`).

    Args:
        defaults: settings of SOLVING that pictures of these weights are to begin with. With the first of them
            all are stored, the others as they are now, so that later general ones change no picture.

    Raises:
        WeightsError: a part does not load, or the parts do not fit together.
        SettingsError: a default is unknown or out of range.
        OSError: a part cannot be written; the one that stood there still does.
    """
    there = open_checkpoint(folder) if (folder / "config.json").exists() else None
    own = {**(there.defaults if there else {}), **check_solving(defaults or {})}
    if own:
        own = {name: getattr(SampleSettings, name) for name in SOLVING} | own
    place = there.tokenizer_place if there and tokenizer is None else None
    copied = {} if place else {"tokenizer": tokenizer or folder / "tokenizer"}
    loaded = there.tokenizer() if place else load_tokenizer(copied["tokenizer"])
    parts = {name: folder / name for name in (there.nestings if there else ())}
    given: dict[str, Path] = {}
    for part in nestings:
        name = _name_of(part)
        if given.setdefault(name, part) != part:
            raise WeightsError(f"{given[name]} and {part} are both called {name}: a checkpoint has one.")
    parts |= given
    makes, maker = loaded.latents_fingerprint, str(place["repository"] if place else copied["tokenizer"])
    sizes: dict[tuple[int, int], Path] = {}
    for part in parts.values():
        model = NestAR.from_pretrained(part)
        nesting = model.config.nesting
        check_fit(model.outline, part / "config.json", loaded, makes, maker)
        if model.config.classes != len(classes):
            raise WeightsError(
                f"{part} has {model.config.classes} classes; the checkpoint has {len(classes)}."
            )
        named = model.record.get("classes")
        if isinstance(named, list) and tuple(named) != tuple(classes):
            raise WeightsError(f"{part} was trained on other classes than the checkpoint's.")
        sizes.setdefault((loaded.stride * nesting.height, loaded.stride * nesting.width), part)
    if len(sizes) > 1:
        pictures = " and ".join(f"{part} of {height} x {width}" for (height, width), part in sizes.items())
        raise WeightsError(f"A checkpoint makes pictures of one size: {pictures} pixels do not go together.")
    try:  # what `open_checkpoint` would refuse
        check_folder_names("nestings", list(parts))
        check_names("classes", list(classes), MAX_CLASSES)
    except ValueError as error:
        raise WeightsError(f"The checkpoint would lack a valid {first_line(error)}.") from None
    for name, part in {**copied, **parts}.items():
        if part.resolve() != (folder / name).resolve():
            _copy_part(part, folder / name)
    stored = {
        "format_version": FORMAT_VERSION,
        "classes": list(classes),
        "size": next(iter(sizes), (loaded.stride,))[0],
        "nestings": list(parts),
        **({"defaults": own} if own else {}),
        **({"tokenizer": dict(place)} if place else {}),
    }
    write_json(folder / "config.json", stored)
    return open_checkpoint(folder)


def _copy_part(part: Path, target: Path) -> None:
    """The files of a part, as a whole: old and new modules in one folder would pass for one model."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file in part.iterdir():
            if file.is_file():
                shutil.copy(file, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _name_of(part: Path) -> str:
    """A nesting's folder goes by its nesting's name, or by its own where that is a variant's."""
    plain, own = weights_name(Outline.read(part).config.nesting), part.resolve().name
    return own if own.startswith(plain + ".") else plain


def default_source() -> str | None:
    """What NESTAR_REPO names, one repository or folder or several, or None: the embedded weights."""
    return os.environ.get("NESTAR_REPO") or None


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer's folder; damage is named as in `NestAR.from_pretrained`."""
    file = folder / "tokenizer.json"
    described = read_json(file)
    try:
        patch, scale = _fold_and_scale(described)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{file} lacks a valid {first_line(error)}.", file) from None
    fills, nested = (described.get(name) is True for name in ("fills", "nested"))
    return build_tokenizer(folder, patch=patch, scale=scale, fills=fills, nested=nested)


def _fold_and_scale(described: Mapping[str, Any]) -> tuple[int, float]:
    """A tokenizer's `patch` and `scale`, as a config has them.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: one is missing or out of range; it is named.
    """
    patch, scale = described["patch"], float(described["scale"])
    if type(patch) is not int or not 1 <= patch <= MAX_PATCH:
        raise ValueError(f"'patch', a whole number from 1 to {MAX_PATCH}")
    if not 0 < scale < math.inf:
        raise ValueError("'scale', a number above 0")
    return patch, scale


def build_tokenizer(
    folder: Path, *, patch: int, scale: float, fills: bool = False, nested: bool = False
) -> Tokenizer:
    """A tokenizer of an AutoencoderKL in diffusers format; the rest as for `Tokenizer`."""
    config, weights = (folder / name for name in TOKENIZER_FILES)
    network = read_json(config)

    def build() -> AutoencoderKL:
        try:
            check_sizes(network, MAX_AUTOENCODER)
            check_sizes(network, {"block_out_channels": MAX_AUTOENCODER_CHANNELS}, listed=True)
            autoencoder = AutoencoderKL.from_config(network)
            folded = (autoencoder.config.in_channels, autoencoder.config.out_channels)
            if folded != (3 * patch**2,) * 2:
                raise ValueError(f"its channels do not fit pictures folded by {patch}")
        except Exception as error:  # diffusers raises many kinds
            raise WeightsError(
                f"{config} describes no AutoencoderKL ({first_line(error)}).", config
            ) from None
        return autoencoder

    # Not diffusers' own loader: where tensors are missing it only warns, and goes on with random values.
    autoencoder = build_from(build, lambda built: {weights: built})
    tokenizer = Tokenizer(autoencoder, patch=patch, scale=scale, fills=fills, nested=nested)
    return tokenizer.float().eval()


def check_fit(outline: Outline, file: Path, tokenizer: Tokenizer, makes: str, origin: str) -> None:
    """Whether a nesting, of which `file` is the config, and a tokenizer from `origin` go together and make
    pictures of a sane size. Tokens of another tokenizer of this shape would be decoded to garbage.

    Args:
        makes: the tokenizer's `latents_fingerprint`, which takes a while.

    Raises:
        WeightsError: they do not.
    """
    config, pixels = outline.config, outline.config.nesting.n * tokenizer.stride**2
    if config.channels != tokenizer.channels:
        raise WeightsError(
            f"{file} is for tokens of {config.channels} channels; "
            f"the tokenizer of {origin} has {tokenizer.channels}.",
            file,
            file.parent.parent,
        )
    made_for = outline.record.get("latents")
    if made_for not in (None, makes):
        raise WeightsError(
            f"{file} is of a nesting trained on latents {shortened(made_for)}; the tokenizer of {origin} "
            f"makes {makes} (another encoder, patch or scale).",
            file,
            file.parent.parent,
        )
    if pixels > MAX_PIXELS:
        raise WeightsError(
            f"{file} is for pictures of {pixels:,} pixels; at most {MAX_PIXELS:,} are made.", file
        )


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:<n>`.

    Raises:
        WeightsError: it is none of these, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise WeightsError(f"Unknown device {name!r}: allowed are auto, cpu and cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise WeightsError("No CUDA device was found: use --device cpu or auto.")
    if device.index is not None and device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise WeightsError(
            f"There is no device {name!r}: CUDA devices found are {torch.cuda.device_count()}."
        )
    return device
