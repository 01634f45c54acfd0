"""Pools drawn once and read often, so that training never waits for data.

Drawing a scene costs about as much as a training step on it, so a pool of images is drawn before tokenizer
training, and one of latents is drawn and encoded before a nesting is trained. Files are taken up where a
stopped process left them, and several processes share the encoding.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from nestar.data import tiny_worlds
from nestar.data.image_folder import ImageFolder
from nestar.engine import autocast
from nestar.files import whole, write_tensors
from nestar.images import from_bytes, to_bytes
from nestar.nesting import Nesting
from nestar.processes import Worker, wait_for
from nestar.tokenizer import Tokenizer, tokens_of

TRAIN_SEED = 0
HELD_OUT_SEED = 1
"""Streams of `tiny_worlds.draw_indices`: training data and held-out data never share a scene."""
CPU = torch.device("cpu")
CPU_BATCH = 128
DEVICE_BATCH = 4096
"""Pictures drawn at once. On two cores 128 at a time were drawn and encoded in 0.5 to 0.9 of the time that 64
at a time took; more were no faster. On a GPU each of the painters queues hundreds of small kernels, with a
few waits between them, however many pictures it paints."""
ENCODED_AT_ONCE = 256
"""Pictures that a tokenizer takes at once on a GPU at most, and that are read at once where they lie in
files: of 256 pixels these are 0.2 GB of memory, several times over, in each process."""
PLACES_AT_ONCE = 2**20
"""Places of its finest level that a tokenizer takes at once at most: those of 256 pictures of 256 pixels
where 4 x 4 pixels are folded, and of 16 where none are, as in KL-16. Its 128 channels are half a gigabyte
there, in float32, and there are several such tensors at a time."""
SHARD = 8192
"""Latents encoded between two writes: what a kill loses at most, and what lies in one file of a folder's."""
Pictures = Callable[[slice, torch.device], Tensor]
"""Gives the pictures (B, 3, H, W) in [-1, 1] of a slice of a pool, on a device."""


class ImagePool:
    """Tiny Worlds images as uint8 (N, 3, H, W), with class ids (N,) on the CPU.

    On a CPU they lie in a memory-mapped file in `folder`, and a pool that was being drawn when its process
    stopped is taken up where it stood. On another `device` they are drawn into its memory (2.9 GB for 60 000
    pictures of 128 pixels) and no file is used.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        size: int,
        seed: int = TRAIN_SEED,
        *,
        device: torch.device = CPU,
        batch: int | None = None,
    ):
        self.class_ids, seeds = tiny_worlds.draw_indices(0, count, seed)
        self.device = device
        batch = batch or (256 if device.type == "cpu" else DEVICE_BATCH)
        if device.type == "cpu":
            self.images = _drawn_to_disk(folder, self.class_ids, seeds, size, seed, batch)
            return
        self.images = torch.empty(count, 3, size, size, dtype=torch.uint8, device=device)
        for start in tqdm(range(0, count, batch), desc="drawing"):
            part = slice(start, start + batch)
            scene = tiny_worlds.draw(self.class_ids[part], seeds[part], size, device)
            self.images[part] = to_bytes(scene.images)

    @classmethod
    def drawn(cls, folder: Path, count: int, size: int, seed: int = TRAIN_SEED) -> ImagePool | None:
        """The pool, if it stands already in `folder`, drawn to the end."""
        is_whole = _pictures_in(_pool_file(folder, count, size, seed), count, size) == count
        return cls(folder, count, size, seed) if is_whole else None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index_B: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [-1, 1], on the pool's device, in the order asked for."""
        if isinstance(self.images, Tensor):
            return from_bytes(self.images[index_B])
        ascending_B = index_B.argsort()  # the order in which a disk reads best
        images = torch.from_numpy(self.images[index_B[ascending_B].numpy()])
        return from_bytes(torch.empty_like(images).index_copy_(0, ascending_B, images))


def _drawn_to_disk(
    folder: Path, class_ids: Tensor, seeds: Tensor, size: int, seed: int, batch: int
) -> np.memmap:
    """The images of a pool in its file, drawn as far as they are not there yet."""
    count = len(seeds)
    folder.mkdir(parents=True, exist_ok=True)
    file = _pool_file(folder, count, size, seed)
    progress, drawn = _progress_file(file), _pictures_in(file, count, size)
    # What a run beside this one has drawn meanwhile is not wiped away.
    mode = "r+" if _is_whole_file(file, count, size) else "w+"
    if mode == "w+":
        progress.unlink(missing_ok=True)  # of a file that is gone: this one's pictures would pass for drawn
    images = np.lib.format.open_memmap(file, mode=mode, dtype=np.uint8, shape=(count, 3, size, size))
    _take_room(file)
    for start in tqdm(range(drawn, count, batch), desc="drawing", disable=drawn >= count):
        part = slice(start, min(start + batch, count))
        images[part] = to_bytes(tiny_worlds.draw(class_ids[part], seeds[part], size).images).numpy()
        with whole(progress, shared=True) as partial:
            partial.write_text(str(part.stop))
    return images


def _is_whole_file(file: Path, count: int, size: int) -> bool:
    """Whether a pool's file is there in its full length, drawn or not."""
    return file.exists() and file.stat().st_size > 3 * count * size**2


def _pictures_in(file: Path, count: int, size: int) -> int:
    """How many of a pool's pictures have been drawn into its file."""
    progress = _progress_file(file)
    return int(progress.read_text()) if _is_whole_file(file, count, size) and progress.exists() else 0


def _take_room(file: Path) -> None:
    """Ask for a file's whole room on the disk: a disk that fills up under mapped memory ends the process.

    Raises:
        OSError: there is not as much.
    """
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _progress_file(pool: Path) -> Path:
    """Says how many pictures of a pool have been drawn."""
    return pool.with_suffix(".progress")


def _pool_file(folder: Path, count: int, size: int, seed: int) -> Path:
    return folder / f"tiny_worlds_v{tiny_worlds.DRAWING}_{size}_{seed}_{count}.npy"


def latents_file(folder: Path, count: int, size: int, seed: int, made_by: str, first: int = 0) -> Path:
    """Where `latent_pool` keeps the latents that a tokenizer with `latents_fingerprint` `made_by` makes."""
    which = f"{count}_from_{first}" if first else f"{count}"
    return folder / f"latents_v{tiny_worlds.DRAWING}_{size}_{seed}_{which}_{made_by}.safetensors"


def latent_pool(
    file: Path,
    tokenizer: Tokenizer,
    count: int,
    size: int,
    *,
    seed: int = TRAIN_SEED,
    first: int = 0,
    images: ImagePool | None = None,
    worker: Worker | None = None,
    shard: int = SHARD,
) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, C, h, w) float16 and class ids (N,) of Tiny Worlds, on the CPU, from `file`: of
    pictures `first` ... `first + count - 1` of the stream `seed`.

    Images come from `images` where a pool has been drawn, and are drawn batch by batch otherwise. Where the
    file does not exist yet it is encoded in shards, which the first process joins in the end.
    """
    class_ids, seeds = tiny_worlds.draw_indices(first, count, seed)
    worker = worker or Worker()

    def pictures(part: slice, device: torch.device) -> Tensor:
        if images is not None:
            return images.batch(torch.arange(part.start, part.stop)).to(device)
        drawn = tiny_worlds.draw(class_ids[part], seeds[part], size, device).images
        return from_bytes(to_bytes(drawn))  # as they would lie in a pool

    parts = file.with_suffix(".parts")
    if not file.exists():
        on_cpu = next(tokenizer.parameters()).device.type == "cpu"
        batch = CPU_BATCH if on_cpu else DEVICE_BATCH
        shards = encode_share(parts, tokenizer, count, pictures, worker=worker, shard=shard, batch=batch)
        if worker.rank == 0:
            _join(shards, file, class_ids)
        wait_for(shards, unless=file)  # each that comes renews the patience
        wait_for([file])
    if worker.rank == 0:
        shutil.rmtree(parts, ignore_errors=True)
    stored = load_file(file)
    return stored["latents"], stored["class_ids"]


def _join(shards: Sequence[Path], file: Path, class_ids: Tensor) -> None:
    """Write `file` from its shards, unless another run that shares the cache has done so and cleared up."""
    wait_for(shards, unless=file)
    if file.exists():
        return
    try:
        latents = torch.cat([load_file(kept)["latents"] for kept in shards])
    except FileNotFoundError:
        if file.exists():
            return
        raise
    write_tensors(file, {"latents": latents, "class_ids": class_ids}, shared=True)


class LatentShards:
    """Scaled latents (N, C, h, w) float16 in files of equally many, the last of them of the rest, mapped into
    memory: what is not read takes none, and the processes of a machine share what is."""

    def __init__(self, files: Sequence[Path]):
        self._shards = [load_file(file)["latents"] for file in files]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __getitem__(self, index_B: Tensor) -> Tensor:
        """Latents (B, C, h, w), on the CPU, in the order asked for."""
        places = (divmod(row, len(self._shards[0])) for row in index_B.tolist())
        return torch.stack([self._shards[shard][row] for shard, row in places])


def folder_latents(
    shards: Path,
    tokenizer: Tokenizer,
    folder: ImageFolder,
    size: int,
    *,
    flips: bool,
    worker: Worker | None = None,
    shard: int = SHARD,
) -> LatentShards:
    """Those of a folder's pictures, kept in the folder `shards`; with `flips` every one also in its mirror
    image, all these behind. What is not there yet is encoded first."""
    own = len(folder)

    def pictures(part: slice, device: torch.device) -> Tensor:
        index = range(part.start, part.stop)
        return folder.batch([i % own for i in index], size, flipped=[i >= own for i in index]).to(device)

    count = 2 * own if flips else own
    files = encode_share(
        shards, tokenizer, count, pictures, worker=worker or Worker(), shard=shard, batch=ENCODED_AT_ONCE
    )
    wait_for(files)
    return LatentShards(files)


def shard_files(folder: Path, count: int, shard: int = SHARD) -> list[Path]:
    """The files of a pool of `count` latents, there or not."""
    starts = range(0, count, shard)
    return [folder / f"{start}-{min(start + shard, count)}.safetensors" for start in starts]


def encode_share(
    folder: Path,
    tokenizer: Tokenizer,
    count: int,
    pictures: Pictures,
    *,
    worker: Worker,
    shard: int,
    batch: int,
) -> list[Path]:
    """Encode this process' share of a pool, `shard` pictures per file, so that a stopped process loses at
    most one; files that are there are kept. `pictures` is asked for `batch` at a time. Returns all files,
    those of other processes, too."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(start, min(start + shard, count)) for start in range(0, count, shard)]
    files = shard_files(folder, count, shard)
    own = worker.share(list(zip(files, parts, strict=True)))
    for file, (start, stop) in tqdm(own, desc="encoding", disable=worker.rank > 0):
        if not file.exists():
            latents = _encoded(tokenizer, pictures, start, stop, batch)
            folder.mkdir(parents=True, exist_ok=True)  # a run beside this one may have cleared up
            write_tensors(file, {"latents": latents}, shared=True)
    return files


@torch.inference_mode()
def _encoded(tokenizer: Tokenizer, pictures: Pictures, first: int, last: int, batch: int) -> Tensor:
    """Latents (N, C, h, w) float16, on the CPU, of pictures `first` to `last` - 1."""
    device = next(tokenizer.parameters()).device
    latents = []
    for start in tqdm(range(first, last, batch), desc="shard", leave=False, disable=last - first <= batch):
        given = pictures(slice(start, min(start + batch, last)), device)
        places = given.shape[2] * given.shape[3] // tokenizer.patch**2
        at_once = max(1, min(ENCODED_AT_ONCE, PLACES_AT_ONCE // places))
        with autocast(device):  # as the tokenizer was trained
            latents += [tokenizer.encode(some).half() for some in given.split(at_once)]
    return torch.cat(latents).cpu().contiguous()  # a network may answer in channels-last order


@torch.inference_mode()
def held_out_tokens(
    tokenizer: Tokenizer, nesting: Nesting, count: int, batch: int = 64, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Tokens (N, n, C) of held-out pictures `first` ... `first + count - 1` in the nesting's order, and class
    ids (N,), on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    ids, seeds = tiny_worlds.draw_indices(first, count, HELD_OUT_SEED)
    size = nesting.height * tokenizer.stride
    parts = [
        tokens_of(tokenizer.encode(tiny_worlds.draw(part, own, size).images.to(device)), nesting)
        for part, own in zip(ids.split(batch), seeds.split(batch), strict=True)
    ]
    return torch.cat(parts), ids.to(device)
