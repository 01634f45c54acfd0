"""Where weights come from: embedded in `assets/`, a local folder, or a Hugging Face Hub repository.

A checkpoint folder holds

    config.json            format version, classes, image size, names of the nestings
    tokenizer/             diffusers' AutoencoderKL, and tokenizer.json (fold, scale)
    <nesting>/             config.json and module_<m>.safetensors, one folder a nesting
    <nesting>.<variant>/   the same nesting, trained in another way (k4-lattice.separate)

Only JSON and safetensors files are ever read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from nestar.model import (
    FORMAT_VERSION,
    NestAR,
    WeightsError,
    first_line,
    load_weights,
    read_config,
    read_json,
)
from nestar.nesting import Nesting
from nestar.tokenizer import Tokenizer

EMBEDDED = Path(__file__).resolve().parent.parent / "assets"
PROBE_SECONDS = 2.0
"""How long the Hub may take to answer before the cache is used; its client alone would try for minutes."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights and how to name it to a reader: "embedded", a path, or `repo@commit`."""

    folder: Path
    origin: str
    classes: tuple[str, ...]
    size: int
    nestings: tuple[str, ...]

    def nesting(self, name: str) -> NestAR:
        """The model of one nesting, float32, on the CPU."""
        model = NestAR.from_pretrained(self.folder / name)
        if model.config.classes != len(self.classes):
            raise WeightsError(
                f"{self.folder / name / 'config.json'} is for {model.config.classes} classes; "
                f"the checkpoint has {len(self.classes)}."
            )
        return model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, float32, on the CPU."""
        return load_tokenizer(self.folder / "tokenizer")


def open_checkpoint(source: str | Path | None = None, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and read its config; weights are read when asked for.

    Args:
        source: None for the embedded weights, a local folder, or a Hub repository id (`user/name`).

    Raises:
        WeightsError: one sentence that names the repository, folder or file at fault.
    """
    if source is None:
        folder, origin = EMBEDDED, "embedded"
    elif Path(source).is_dir():
        folder, origin = Path(source), str(source)
    else:
        folder, origin = _from_hub(str(source), revision)
    config = read_config(folder / "config.json")
    try:
        classes, nestings = tuple(map(str, config["classes"])), tuple(map(str, config["nestings"]))
        return Checkpoint(folder, origin, classes, int(config["size"]), nestings)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / 'config.json'} lacks a valid {error}.") from None


def weights_name(nesting: Nesting, variant: str = "") -> str:
    """Folder of a nesting's weights; a variant tells apart several trainings of one nesting."""
    return f"{nesting.name}.{variant}" if variant else nesting.name


def assemble(
    folder: Path, *, classes: Sequence[str], tokenizer: Path | None = None, nestings: Sequence[Path] = ()
) -> Checkpoint:
    """Copy trained parts into a checkpoint folder and write its config.

    Parts that stand there already and are not named stay, so that nestings can be added one by one. Each part
    is loaded first, so that a folder that cannot be served is never written. A nesting's folder gets the
    nesting's name, or keeps its own where that is a variant's (`<nesting>.<variant>`).

    Raises:
        WeightsError: a part does not load, or the tokenizer and a nesting do not fit together.
    """
    tokenizer = tokenizer or folder / "tokenizer"
    loaded = load_tokenizer(tokenizer)
    names = read_json(folder / "config.json").get("nestings", []) if (folder / "config.json").exists() else []
    parts = {name: folder / name for name in names}
    parts |= {_name_of(part): part for part in nestings}
    size = loaded.stride
    for part in parts.values():
        config = NestAR.from_pretrained(part).config
        if config.channels != loaded.channels or config.classes != len(classes):
            raise WeightsError(
                f"{part} has {config.channels} channels and {config.classes} classes; "
                f"the checkpoint has {loaded.channels} and {len(classes)}."
            )
        made_for = read_config(part / "config.json").get("training", {}).get("tokenizer")
        if made_for not in (None, loaded.fingerprint):
            raise WeightsError(
                f"{part} was trained on tokens of tokenizer {made_for}; {tokenizer} is {loaded.fingerprint}."
            )
        size = loaded.stride * config.nesting.height
    for name, part in {"tokenizer": tokenizer, **parts}.items():
        if part.resolve() != (folder / name).resolve():
            shutil.copytree(part, folder / name, dirs_exist_ok=True)
    stored = {
        "format_version": FORMAT_VERSION,
        "classes": list(classes),
        "size": size,
        "nestings": list(parts),
    }
    (folder / "config.json").write_text(json.dumps(stored, indent=1) + "\n")
    return open_checkpoint(folder)


def _name_of(part: Path) -> str:
    """A nesting's folder goes by its nesting's name, or by its own where that is a variant's."""
    plain, own = weights_name(NestAR.from_pretrained(part).config.nesting), part.resolve().name
    return own if own.startswith(plain + ".") else plain


def default_source() -> str | None:
    """The repository or folder named by NESTAR_REPO, or None: the embedded weights."""
    return os.environ.get("NESTAR_REPO") or None


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer's folder; damage is named as in `NestAR.from_pretrained`."""
    described = read_json(folder / "tokenizer.json")
    try:
        patch, scale = int(described["patch"]), float(described["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / 'tokenizer.json'} lacks a valid {error}.") from None
    config = folder / "config.json"
    network = read_json(config)
    try:
        autoencoder = AutoencoderKL.from_config(network)
    except Exception as error:  # diffusers raises many kinds
        raise WeightsError(f"{config} describes no AutoencoderKL ({first_line(error)}).") from None
    # Not diffusers' own loader: where tensors are missing it only warns, and goes on with random values.
    load_weights(autoencoder, folder / "diffusion_pytorch_model.safetensors")
    return Tokenizer(autoencoder, patch=patch, scale=scale).float().eval()


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:<n>`."""
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
    return device


def _from_hub(repository: str, revision: str | None) -> tuple[Path, str]:
    """Download, or take from the cache where the Hub does not answer; returns folder and origin."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    named = f"{repository}@{revision}" if revision else repository
    wanted = ["*.json", "*.safetensors"]
    try:
        validate_repo_id(repository)
        try:
            config_url = hf_hub_url(repository, "config.json", revision=revision)
            get_hf_file_metadata(config_url, timeout=PROBE_SECONDS)
            reached = True
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            raise
        except Exception:  # no network, a time-out, a server error: the cache may still serve
            reached = False
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=wanted, local_files_only=not reached
        )
    except GatedRepoError:
        raise WeightsError(f"Hub repository {named} is gated: ask for access and log in.") from None
    except RevisionNotFoundError:
        raise WeightsError(f"Hub repository {repository} has no revision {revision!r}.") from None
    except LocalEntryNotFoundError:  # a kind of EntryNotFoundError: it must come first
        raise WeightsError(f"The Hub does not answer and {named} is not in the cache.") from None
    except EntryNotFoundError:
        raise WeightsError(
            f"Hub repository {named} has no config.json: it holds no NestAR weights."
        ) from None
    except RepositoryNotFoundError:
        raise WeightsError(f"Hub repository {repository} was not found, or is private.") from None
    except HFValidationError:
        raise WeightsError(
            f"{repository!r} is neither a folder here nor a Hub repository id (user/name)."
        ) from None
    except Exception as error:
        raise WeightsError(f"{named} could not be downloaded ({type(error).__name__}).") from None
    return Path(folder), f"{repository}@{Path(folder).name[:7]}"
