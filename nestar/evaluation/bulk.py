"""Many samples for outside evaluators: made by several processes, taken up again after a stop, and written as
the npz that ADM's evaluation suite (arXiv 2105.05233) and those after it read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nestar.data.image_folder import ImageFolder
from nestar.engines import Engines
from nestar.evaluation.report import SEED_STRIDE
from nestar.files import whole, write_json
from nestar.images import to_bytes
from nestar.model import NestAR, read_json
from nestar.processes import Worker, wait_for
from nestar.sampler import SolverSettings, sample_images
from nestar.settings import SettingsError
from nestar.tokenizer import Tokenizer

PART = 256
"""Samples in a file of their own until all are there: what a stop loses at most."""
ASKED_FILE = "asked.json"


@dataclass(frozen=True)
class Bulk:
    """What is made: sample i is of class i mod `classes` and has seed `seed` x SEED_STRIDE + i, whoever makes
    it, so that every class has its share and no number of processes changes a picture's noise.

    Attributes:
        asked: all that decides the pictures, but for rounding on another number of a CPU's threads, as JSON
            values; parts of another call are not taken up.
    """

    folder: Path
    count: int
    classes: int
    seed: int
    asked: Mapping[str, Any]

    @property
    def parts(self) -> list[range]:
        return [range(start, min(start + PART, self.count)) for start in range(0, self.count, PART)]

    def file(self, part: range) -> Path:
        return self.folder / f"{part.start:08}.npy"

    def begin(self) -> None:
        """Make the folder, or find in it what was asked for before.

        Raises:
            SettingsError: parts of other samples lie there; what differs is named.
            WeightsError: what lies there cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / ASKED_FILE
        asked = json.loads(json.dumps(dict(self.asked)))
        if file.exists():
            before = read_json(file)
            different = [key for key in asked.keys() | before.keys() if asked.get(key) != before.get(key)]
            if different:
                key = min(different)
                made, now = before.get(key), asked.get(key)
                raise SettingsError(f"{self.folder} holds samples with {key} {made}; now asked for: {now}.")
            return
        write_json(file, asked, shared=True)

    def make(
        self,
        model: NestAR,
        tokenizer: Tokenizer,
        settings: SolverSettings,
        worker: Worker,
        *,
        batch: int,
    ) -> None:
        """Make this worker's parts, as far as they are not there yet."""
        own = [part for part in worker.share(self.parts) if not self.file(part).exists()]
        bar = tqdm(total=sum(map(len, own)), desc=f"samples {worker.rank + 1}/{worker.world}")
        engines = Engines(model)
        for part in own:
            pictures = []
            for start in range(part.start, part.stop, batch):
                index = range(start, min(start + batch, part.stop))
                ids = torch.tensor([i % self.classes for i in index])
                seeds = [self.seed * SEED_STRIDE + i for i in index]
                images = sample_images(model, tokenizer, ids, seeds, settings, engines=engines)
                pictures.append(bytes_of(images))
                bar.update(len(index))
            with whole(self.file(part)) as partial, partial.open("wb") as opened:
                np.save(opened, np.concatenate(pictures))
        bar.close()

    def wait(self) -> None:
        """Until the other workers' parts are there."""
        wait_for([self.file(part) for part in self.parts])

    def join(self, out: Path) -> None:
        """Write all parts as one npz, see `write_npz`."""
        parts = (np.load(self.file(part)) for part in self.parts)
        write_npz(out, parts, np.arange(self.count) % self.classes)


def write_pictures(out: Path, folder: ImageFolder, size: int) -> None:
    """Write a folder's pictures, prepared as for training, as what samples are to be compared with.

    Raises:
        SettingsError: a file is no picture; it is named.
    """
    starts = tqdm(range(0, len(folder), PART), desc="pictures", unit_scale=PART)
    parts = (folder.batch(range(start, min(start + PART, len(folder))), size) for start in starts)
    write_npz(out, (bytes_of(part_B3HW) for part_B3HW in parts), folder.class_ids_N.numpy())


def bytes_of(images_B3HW: Tensor) -> np.ndarray:
    """Pictures in [-1, 1] as uint8 (B, H, W, 3)."""
    return to_bytes(images_B3HW).permute(0, 2, 3, 1).cpu().numpy()


def write_npz(out: Path, parts_BHW3: Iterable[np.ndarray], class_ids_N: np.ndarray) -> None:
    """`arr_0`, pictures as uint8 (N, H, W, 3), and `arr_1`, class ids. Part after part, so that no memory
    holds all of them."""
    with whole(out) as partial, zipfile.ZipFile(partial, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as opened:
            for number, part_BHW3 in enumerate(parts_BHW3):
                if number == 0:
                    _header(opened, (len(class_ids_N), *part_BHW3.shape[1:]), np.dtype(np.uint8))
                opened.write(part_BHW3.tobytes())
        with archive.open("arr_1.npy", "w") as opened:
            np.save(opened, class_ids_N)


def _header(opened: Any, shape: Sequence[int], dtype: np.dtype) -> None:
    """The beginning of an array's file in numpy's format."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(opened, described)
