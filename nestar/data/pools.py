"""Pools drawn once and read often, so that training never waits for data.

Drawing a scene costs about as much as a training step on it, so a pool of images is drawn to disk before
tokenizer training, and encoded once into a pool of latents before a nesting is trained.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from nestar.data import tiny_worlds
from nestar.images import from_bytes, to_bytes
from nestar.tokenizer import Tokenizer

TRAIN_SEED = 0
HELD_OUT_SEED = 1
"""Streams of `tiny_worlds.draw_indices`: training data and held-out data never share a scene."""


class ImagePool:
    """Tiny Worlds images as uint8 (N, 3, H, W) in a memory-mapped file, with class ids (N,).

    A pool that was being drawn when its process stopped is taken up where it stood.
    """

    def __init__(self, folder: Path, count: int, size: int, seed: int = TRAIN_SEED, batch: int = 256):
        folder.mkdir(parents=True, exist_ok=True)
        file = _pool_file(folder, count, size, seed)
        progress, partial = file.with_suffix(".progress"), file.with_suffix(".partial")
        self.class_ids, seeds = tiny_worlds.draw_indices(0, count, seed)
        drawn = int(progress.read_text()) if file.exists() and progress.exists() else 0
        mode = "r+" if drawn else "w+"
        images = np.lib.format.open_memmap(file, mode=mode, dtype=np.uint8, shape=(count, 3, size, size))
        for start in tqdm(range(drawn, count, batch), desc="drawing", disable=drawn >= count):
            part = slice(start, min(start + batch, count))
            scene = tiny_worlds.draw(self.class_ids[part], seeds[part], size)
            images[part] = to_bytes(scene.images).numpy()
            partial.write_text(str(part.stop))
            os.replace(partial, progress)
        self.images = images

    @classmethod
    def drawn(cls, folder: Path, count: int, size: int, seed: int = TRAIN_SEED) -> ImagePool | None:
        """The pool, if it stands already in `folder`."""
        exists = _pool_file(folder, count, size, seed).exists()
        return cls(folder, count, size, seed) if exists else None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index_B: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [-1, 1]."""
        return from_bytes(torch.from_numpy(self.images[np.sort(index_B.numpy())]))


def _pool_file(folder: Path, count: int, size: int, seed: int) -> Path:
    return folder / f"tiny_worlds_{size}_{seed}_{count}.npy"


@torch.inference_mode()
def latent_pool(
    file: Path,
    tokenizer: Tokenizer,
    count: int,
    size: int,
    *,
    seed: int = TRAIN_SEED,
    images: ImagePool | None = None,
    batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, C, h, w) float16 and class ids (N,) of Tiny Worlds, from `file` if it is there.

    Images come from `images` where a pool has been drawn, and are drawn batch by batch otherwise.
    """
    if file.exists():
        stored = load_file(file)
        return stored["latents"], stored["class_ids"]
    class_ids, seeds = tiny_worlds.draw_indices(0, count, seed)
    device = next(tokenizer.parameters()).device
    parts = []
    for start in tqdm(range(0, count, batch), desc="encoding"):
        part = slice(start, min(start + batch, count))
        if images is not None:
            pictures = images.batch(torch.arange(part.start, part.stop)).to(device)
        else:
            pictures = tiny_worlds.draw(class_ids[part], seeds[part], size, device).images
        with torch.autocast(device.type, torch.bfloat16):  # as the tokenizer was trained
            parts.append(tokenizer.encode(pictures).half().cpu())
    latents = torch.cat(parts).contiguous()  # a network may answer in channels-last order
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({"latents": latents, "class_ids": class_ids}, partial)
    os.replace(partial, file)  # a kill at any moment leaves a whole file or none
    return latents, class_ids
