"""A checkpoint that is built and sampled in a second: random weights, 64-pixel pictures, a 4 x 4 grid."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from nestar.model import FORMAT_VERSION, NestAR, NestARConfig
from nestar.nesting import Nesting
from nestar.tokenizer import Tokenizer, build_autoencoder

CLASSES = ("flower", "fish", "hot-air balloon")
CHANNELS = 4
SIZE = 64
K4, K2 = Nesting.nested(4, 4, 4), Nesting.nested(4, 4, 2)


def free_port() -> int:
    """A port of this machine that nothing listens on, and none of those that the system gives to others."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port


def small_tokenizer(channels: int = CHANNELS) -> Tokenizer:
    """An untrained tokenizer: 16 pixels a token, as the embedded one."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(patch=4, channels=(16, 16, 32), latent_channels=channels)
    return Tokenizer(autoencoder, patch=4, scale=0.5).eval()


def small_model(nesting: Nesting, classes: int = len(CLASSES)) -> NestAR:
    """A model whose zero-initialised layers have been filled, so that class, time and context matter."""
    torch.manual_seed(1)
    model = NestAR(NestARConfig(nesting, CHANNELS, classes, dim=32, heads=2, blocks=4, cond_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """A tokenizer's folder, as training exports it."""
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"patch": tokenizer.patch, "scale": tokenizer.scale}))


def save_config(folder: Path, nestings: Sequence[Nesting], classes: Sequence[str] = CLASSES) -> None:
    """The checkpoint's own config."""
    names = [nesting.name for nesting in nestings]
    stored = {"format_version": FORMAT_VERSION, "classes": list(classes), "size": SIZE, "nestings": names}
    (folder / "config.json").write_text(json.dumps(stored))


def save_checkpoint(
    folder: Path, nestings: Sequence[Nesting] = (K4, K2), classes: Sequence[str] = CLASSES
) -> Path:
    """A whole checkpoint of random weights in `folder`."""
    for nesting in nestings:
        small_model(nesting, len(classes)).save_pretrained(folder / nesting.name)
    save_tokenizer(small_tokenizer(), folder / "tokenizer")
    save_config(folder, nestings, classes)
    return folder
