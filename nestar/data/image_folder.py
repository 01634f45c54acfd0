"""Pictures of one's own, a folder per class, as ImageNet is laid out, with `train/` and `val/` or without."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from nestar.data.imagenet import named
from nestar.images import from_bytes
from nestar.settings import SettingsError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
HELD_OUT_EVERY = 50
"""Without a `val/`, one picture of a class in so many is held out, and one at least."""
DECODERS = 8
"""Threads that read pictures at once: Pillow lets others run while it decodes and resamples."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by EXIF's number for how it lies."""


@dataclass(frozen=True)
class ImageFolder:
    """Pictures and their classes; none is opened before it is asked for.

    Attributes:
        classes: names; those of ImageNet's synsets where all folders go by them.
        files: in a fixed order, class by class; class_ids_N: the class of each.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    class_ids_N: Tensor

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, index: Sequence[int], size: int, *, flipped: Sequence[bool] | None = None) -> Tensor:
        """Pictures (B, 3, size, size) float32 in [-1, 1], the largest square in the middle of each.

        Raises:
            SettingsError: a file is no picture; it is named.
        """
        flipped = [False] * len(index) if flipped is None else flipped
        with ThreadPoolExecutor(DECODERS) as pool:
            pictures = list(pool.map(_square, [self.files[i] for i in index], repeat(size), flipped))
        pictures_BHW3 = torch.from_numpy(np.stack(pictures))
        return from_bytes(pictures_BHW3.permute(0, 3, 1, 2).contiguous())

    def at_most(self, count: int) -> ImageFolder:
        """So many of the pictures, or all there are, spread evenly over the files and so over the classes."""
        if len(self) <= count:
            return self
        kept = [number * len(self) // count for number in range(count)]
        return replace(self, files=tuple(self.files[i] for i in kept), class_ids_N=self.class_ids_N[kept])

    @cached_property
    def fingerprint(self) -> str:
        """Eight hex digits of what lies there: class, name and size of the files, in order."""
        digest = hashlib.sha256()
        for file, class_id in zip(self.files, self.class_ids_N.tolist(), strict=True):
            digest.update(f"{class_id} {file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
        return digest.hexdigest()[:8]


def open_folder(root: Path) -> tuple[ImageFolder, ImageFolder]:
    """The pictures for training and those held out: `train/` and `val/`, where `root` has them.

    Raises:
        SettingsError: there is no such folder, no class in it, or a class without two pictures.
    """
    if not root.is_dir():
        raise SettingsError(f"--data: there is no folder {root}.")
    pictures = root / "train" if _has_folders(root / "train") else root
    every = _classes(pictures)
    if pictures != root and (root / "val").is_dir():
        train, held = every, _classes(root / "val")
        strange = [name for name in held if name not in train]
        if strange:
            raise SettingsError(f"{root / 'val'} has class {strange[0]!r}, which {pictures} has not.")
    else:
        held = {
            name: files[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or files[-1:] for name, files in every.items()
        }
        train = {
            name: [file for file in files if file not in kept]
            for (name, files), kept in zip(every.items(), map(set, held.values()), strict=True)
        }
        alone = [name for name, files in train.items() if not files]
        if alone:
            raise SettingsError(
                f"Class {alone[0]!r} in {pictures} has one picture; it takes two, one to be held out."
            )
    names = list(train)
    return _folder(names, train), _folder(names, held)


def _has_folders(folder: Path) -> bool:
    """Whether a folder is one of classes: `train` may be a class itself."""
    return folder.is_dir() and any(each.is_dir() for each in folder.iterdir())


def _classes(root: Path) -> dict[str, list[Path]]:
    """Files of each class, in order; folders without pictures are no classes."""
    found = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        endings = ", ".join(ENDINGS)
        raise SettingsError(f"{root} has no folder of pictures: it takes one per class ({endings}).")
    return found


def _folder(names: Sequence[str], files: dict[str, list[Path]]) -> ImageFolder:
    rows = [(class_id, file) for class_id, name in enumerate(names) for file in files.get(name, ())]
    ids = torch.tensor([class_id for class_id, _ in rows], dtype=torch.long)
    return ImageFolder(named(names), tuple(file for _, file in rows), ids)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its file says, where that can be read. Not `ImageOps.exif_transpose`: that writes all that a
    camera noted anew, and fails where some of it is odd."""
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _square(file: Path, size: int, flip: bool) -> np.ndarray:
    """The picture as uint8 (size, size, 3): halved while that is exact enough, then resampled, then cut to
    the middle, as ADM (arXiv 2105.05233) and all that compare with it prepare ImageNet; but turned upright
    where the file says how, as telephones' do."""
    try:
        with Image.open(file) as opened:
            picture = _upright(opened).convert("RGB")
    # Pillow says of some damaged PNGs that their syntax is wrong, with Python's own error for it.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SettingsError(f"{file} cannot be read as a picture ({type(error).__name__}).") from None
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    array = np.asarray(picture.crop((left, top, left + size, top + size)))
    return array[:, ::-1] if flip else array
