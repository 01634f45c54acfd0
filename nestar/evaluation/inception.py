"""ImageNet's Inception v3 in place of the feature network, where a user has it: for comparisons with others.

Two libraries bring it, neither of which NestAR depends on. torch-fidelity has the network of the FID that
papers report; torchvision has a later one, whose distances are of the same kind but not the same numbers.
Nothing is downloaded here: the weights' file must lie in torch's hub cache, or be named. Both publish it as a
pickle, the only one that NestAR opens, and never for the page: torch reads of it tensors alone. Neither knows
the classes and factors of Tiny Worlds: class accuracy, inception score and coverage are left out of a report.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestar.checkpoints import EMBEDDED
from nestar.evaluation.features import load_features
from nestar.evaluation.report import PictureFeatures
from nestar.images import to_bytes
from nestar.model import WeightsError, first_line
from nestar.settings import SettingsError

NAME = "inception"
SIDE = 299
WEIGHTS = {
    "torch_fidelity": "weights-inception-2015-12-05-6726825d.pth",
    "torchvision": "inception_v3_google-0cc3c7bd.pth",
}
"""File of each library's weights in torch's hub cache, as the library names it; the first is preferred."""

CLASSES = {1008: "torch_fidelity", 1000: "torchvision"}
"""Classes of the last layer tell whose weights a file holds."""


class InceptionFeatures(nn.Module):
    """Inception v3 as an evaluation needs it: 2048 features of pictures of any size.

    Args:
        network: the library's network.
        read: images (B, 3, H, W) in [-1, 1] to the network's features (B, 2048).
        library: where it is from, for the record.
    """

    size = None

    def __init__(self, network: nn.Module, read: Callable[[nn.Module, Tensor], Tensor], library: str):
        super().__init__()
        self.network, self.library = network.eval().requires_grad_(False), library
        self._read = read

    def describe(self, images_B3HW: Tensor, class_ids_B: Tensor) -> tuple[Tensor, None, None]:
        """Features (B, 2048); no class logits and no factors."""
        return self._read(self.network, images_B3HW).float(), None, None


def features_named(name: Path | None, device: torch.device) -> PictureFeatures:
    """What `--features` names: None for the embedded network, a feature network's folder, `inception`, or
    `inception:FILE` with a file of weights.

    Raises:
        WeightsError: a folder's or file's weights are missing or damaged.
        SettingsError: Inception is asked for and cannot be had; the message says how to get it.
    """
    text = str(name) if name is not None else ""
    if text.split(":")[0] == NAME and not (Path(text) / "config.json").exists():
        file = text.partition(":")[2]
        return load_inception(Path(file) if file else None).to(device)
    return load_features(name or EMBEDDED / "features").to(device)


def load_inception(file: Path | None = None) -> InceptionFeatures:
    """Inception v3 from an installed library, on the CPU; `file` names its weights.

    Raises:
        SettingsError: no library, or no weights in the hub cache; the message says how to get them.
        WeightsError: the file is missing, damaged or no Inception v3.
    """
    if file is None:
        file = _cached()
    if not file.exists():
        raise WeightsError(f"{file} is missing.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        library = CLASSES[len(state["fc.bias"])]
    except Exception as error:  # unpickling raises many kinds
        raise WeightsError(f"{file} holds no weights of an Inception v3 ({first_line(error)}).") from None
    if find_spec(library) is None:
        raise SettingsError(f"{file} takes {library}, which is not installed: {_install(library)}.")
    try:
        return _BUILDERS[library](file, state)
    except (RuntimeError, TypeError, KeyError) as error:
        raise WeightsError(f"{file} does not fit {library}'s Inception v3 ({first_line(error)}).") from None


def _cached() -> Path:
    """The weights' file of the first library that is installed and has one."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    installed = [library for library in WEIGHTS if find_spec(library) is not None]
    if not installed:
        library = next(iter(WEIGHTS))
        raise SettingsError(
            f"--features inception takes torch-fidelity or torchvision, and neither is installed: "
            f"{_install(library)}, and put {WEIGHTS[library]} into {folder} or name it (inception:FILE)."
        )
    for library in installed:
        if (folder / WEIGHTS[library]).exists():
            return folder / WEIGHTS[library]
    wanted = " or ".join(WEIGHTS[library] for library in installed)
    raise SettingsError(
        f"Inception's weights are not here: put {wanted} into {folder} or name them (inception:FILE)."
    )


def _install(library: str) -> str:
    return f"pip install {library.replace('_', '-')}"


def _from_torch_fidelity(file: Path, state: dict[str, Any]) -> InceptionFeatures:
    module = import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3(NAME, ["2048"], feature_extractor_weights_path=str(file))

    def read(network: nn.Module, images_B3HW: Tensor) -> Tensor:
        return network(to_bytes(images_B3HW))[0]  # resizes and normalises by itself

    return InceptionFeatures(network, read, "torch_fidelity")


def _from_torchvision(file: Path, state: dict[str, Any]) -> InceptionFeatures:
    models = import_module("torchvision.models")
    network = models.inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=False)
    network.load_state_dict(state)
    network.fc = nn.Identity()  # what it would read is the features

    def read(network: nn.Module, images_B3HW: Tensor) -> Tensor:
        # These weights take [-1, 1]; torchvision's `transform_input` undoes ImageNet's normalisation to it.
        return network(F.interpolate(images_B3HW, size=(SIDE, SIDE), mode="bilinear", antialias=True))

    return InceptionFeatures(network, read, "torchvision")


_BUILDERS = {"torch_fidelity": _from_torch_fidelity, "torchvision": _from_torchvision}
