"""Pictures of one's own, a folder per class, as ImageNet is laid out, with `train/` and `val/` or without."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from nestar.data.imagenet import named
from nestar.images import from_bytes
from nestar.limits import MAX_CLASSES, check_names
from nestar.settings import SettingsError

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")
LEFT_OUT = (".heic", ".heif", ".jxl", ".gif", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw")
"""Endings of pictures that are not read: what of them lies there is told."""
UNPACKED = (".bmp", ".tif", ".tiff")
"""Endings of files that have one size for all pictures of so many pixels."""
PIECE = 2**14
"""Bytes from the middle of such a file, some rows of it, that tell one picture from another."""
PREPARED = 2
"""Version of how `_square` prepares a picture: what was encoded by another is not taken up."""
HELD_OUT_EVERY = 50
"""Without a `val/`, one picture of a class in so many is held out, and one at least."""
NAMED = 5
"""Files that cannot be read, of which so many are named."""
DECODERS = 8
"""Threads that read pictures at once: Pillow lets others run while it decodes and resamples."""

UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)
"""What Pillow says of files that are no pictures, or damaged ones: of some PNGs that their syntax is wrong,
with Python's own error for it."""

BOUNDLESS = ("I", "F")
"""Pillow's modes of 32 bits a channel, whose numbers may lie anywhere."""

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
        left_out: how many pictures lie beside them that cannot be read, by their ending.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    class_ids_N: Tensor
    left_out: Mapping[str, int] = field(default_factory=dict)

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

    def check(self) -> None:
        """Open every file, so that all that are no pictures are named before any is encoded.

        Raises:
            SettingsError: some are none, as far as their beginnings tell.
        """
        with ThreadPoolExecutor(DECODERS) as pool:
            opens = list(pool.map(_opens, self.files))
        broken = [str(file) for file, does in zip(self.files, opens, strict=True) if not does]
        if broken:
            others = f" and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
            raise SettingsError(
                f"{', '.join(broken[:NAMED])}{others} cannot be read as pictures of 8 or 16 bits a channel."
            )

    def at_most(self, count: int) -> ImageFolder:
        """So many of the pictures, or all there are, spread evenly over the files and so over the classes."""
        if len(self) <= count:
            return self
        kept = [number * len(self) // count for number in range(count)]
        return replace(self, files=tuple(self.files[i] for i in kept), class_ids_N=self.class_ids_N[kept])

    @cached_property
    def fingerprint(self) -> str:
        """Eight hex digits of what lies there: class, name and size of the files, in order, and a piece of
        those whose size says nothing of what they show; and of how they are prepared."""
        digest = hashlib.sha256(f"{PREPARED}\n".encode())
        for file, class_id in zip(self.files, self.class_ids_N.tolist(), strict=True):
            size = file.stat().st_size
            digest.update(f"{class_id} {file.parent.name}/{file.name} {size}\n".encode())
            if file.suffix.lower() in UNPACKED:
                with file.open("rb") as opened:
                    opened.seek(size // 2)
                    digest.update(opened.read(PIECE))
        return digest.hexdigest()[:8]


def open_folder(root: Path) -> tuple[ImageFolder, ImageFolder]:
    """The pictures for training and those held out: `train/` and `val/`, where `root` has them.

    Raises:
        SettingsError: there is no such folder, no class in it, a class without two pictures or with none that
            can be read, or a name that no checkpoint may have.
    """
    pictures = _trained_on(root)
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
    left_out = Counter(_unread(root))
    names = list(train)
    return _folder(names, train, left_out), _folder(names, held)


def open_pictures(root: Path) -> ImageFolder:
    """All pictures for training, or where `root` has no `train/` all that it has, none held out.

    Raises:
        SettingsError: as `open_folder`.
    """
    found = _classes(_trained_on(root))
    return _folder(list(found), found)


def described(train: ImageFolder, held: ImageFolder, size: int) -> str:
    """What a training takes of a folder, in one sentence."""
    others = ", ".join(f"{count:,} {ending}" for ending, count in sorted(train.left_out.items()))
    return (
        f"{len(train):,} pictures of {len(train.classes):,} classes at {size} x {size} pixels, and as many "
        f"mirrored; {len(held):,} held out" + (f"; not read: {others}." if others else ".")
    )


def _trained_on(root: Path) -> Path:
    """Where the classes for training lie: in `train/`, where that is no class itself, or in `root`."""
    if not root.is_dir():
        raise SettingsError(f"--data: there is no folder {root}.")
    return root / "train" if _has_folders(root / "train") else root


def _has_folders(folder: Path) -> bool:
    """Whether a folder is one of classes: `train` may be a class itself."""
    return folder.is_dir() and any(each.is_dir() for each in folder.iterdir())


def _classes(root: Path) -> dict[str, list[Path]]:
    """Files of each class, in order; folders without pictures are no classes."""
    folders = [each for each in sorted(root.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    found = {folder.name: sorted(_of_kind(folder, ENDINGS)) for folder in folders}
    endings = ", ".join(ENDINGS)
    for folder in folders:
        if not found[folder.name] and (unread := set(_unread(folder))):
            kinds = ", ".join(sorted(unread))
            raise SettingsError(
                f"{folder} has no pictures but {kinds}, which are not read: allowed are {endings}."
            )
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise SettingsError(f"{root} has no folder of pictures: it takes one per class ({endings}).")
    return found


def _of_kind(folder: Path, endings: Sequence[str]) -> Iterable[Path]:
    """Files below a folder that end so; what systems keep beside others (._picture.jpg, .thumbnails/) is
    hidden."""
    return (
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in endings
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _unread(folder: Path) -> Iterable[str]:
    """The ending of each picture below a folder that is of no kind that is read."""
    return (file.suffix.lower() for file in _of_kind(folder, LEFT_OUT))


def _folder(
    names: Sequence[str], files: dict[str, list[Path]], left_out: Mapping[str, int] | None = None
) -> ImageFolder:
    rows = [(class_id, file) for class_id, name in enumerate(names) for file in files.get(name, ())]
    ids = torch.tensor([class_id for class_id, _ in rows], dtype=torch.long)
    try:
        classes = check_names("classes", list(named(names)), MAX_CLASSES)
    except ValueError as error:
        raise SettingsError(f"The folders make no classes: {error}.") from None
    return ImageFolder(classes, tuple(file for _, file in rows), ids, left_out or {})


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its file says, where that can be read. Not `ImageOps.exif_transpose`: that writes all that a
    camera noted anew, and fails where some of it is odd."""
    picture.load()  # turns a TIFF, and forgets that it was to be turned
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image) -> Image.Image:
    """In RGB of 8 bits: 16 are scaled down, which Pillow would clip, and what is transparent lies on white.

    Raises:
        ValueError: the picture has numbers of no known range.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in BOUNDLESS:
        raise ValueError("neither 8 nor 16 bits a channel")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")


def _opens(file: Path) -> bool:
    """Whether a file is a picture, as far as its beginning tells."""
    try:
        with Image.open(file) as opened:
            return opened.mode not in BOUNDLESS
    except UNREADABLE:
        return False


def _square(file: Path, size: int, flip: bool) -> np.ndarray:
    """The picture as uint8 (size, size, 3): halved while that is exact enough, then resampled, then cut to
    the middle, as ADM (arXiv 2105.05233) and all that compare with it prepare ImageNet; but turned upright
    where the file says how, as telephones' do."""
    try:
        with Image.open(file) as opened:
            picture = _plain(_upright(opened))
    except UNREADABLE as error:
        why = str(error) if type(error) is ValueError else type(error).__name__
        raise SettingsError(f"{file} cannot be read as a picture ({why}).") from None
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    array = np.asarray(picture.crop((left, top, left + size, top + size)))
    return array[:, ::-1] if flip else array
