"""Files that are written whole or not at all, and where runs put theirs."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestar.settings import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

RUNS = Path("runs")
"""Where trainings write, unless told otherwise; git has of it what was added by name."""
CACHE = RUNS / "cache"
"""Where pictures and latents lie that were drawn beforehand."""


@contextmanager
def whole(file: Path, shared: bool = False) -> Iterator[Path]:
    """Where to write what becomes `file` when the block ends. A kill at any moment, a full disk or a failure
    leaves what stood there before.

    It is written in a folder of its own: safetensors writes files of other names first, and leaves them there
    when it is killed. Links are followed, and what is no file (a device, a pipe) is written to as it is.

    Args:
        shared: other processes may be writing the same file, of other machines, too. What a kill leaves half
            written then stays there, where the next one clears it away otherwise.
    """
    file = file.resolve()
    if file.exists() and not file.is_file():
        yield file
        return
    own = f".{uuid.uuid4().hex}" if shared else ""
    with _scratch(file.with_name(f"{file.name}{own}.partial")) as folder:
        partial = folder / file.name
        yield partial
        # safetensors makes files that nobody else may read, and who serves them may be another user.
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, file)


@contextmanager
def together(folder: Path, last: str) -> Iterator[Path]:
    """Where to write files that take their places in `folder` when the block ends: `last`, without which the
    others are not read, is away from before the first of them comes until all have. Nothing is touched before
    all are written, and a kill while they move leaves no old and new ones that would pass for one."""
    folder.mkdir(parents=True, exist_ok=True)
    with _scratch(folder / "new.partial") as scratch:
        yield scratch
        (folder / last).unlink(missing_ok=True)
        for file in sorted(scratch.iterdir(), key=lambda file: file.name == last):
            os.replace(file, folder / file.name)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, gone when the block ends; one that a kill has left there is cleared first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(file: Path, value: Mapping[str, Any], allow_nan: bool = True, *, shared: bool = False) -> None:
    """A JSON object, whole or not at all; `shared` as in `whole`."""
    text = json.dumps(value, indent=1, allow_nan=allow_nan) + "\n"
    with whole(file, shared) as partial:
        partial.write_text(text)


def append_line(file: Path, value: Mapping[str, Any], allow_nan: bool = True) -> None:
    """A JSON object as a line of its own, also behind one that a kill has torn."""
    line = json.dumps(value, allow_nan=allow_nan).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as out:
        torn = out.seek(0, os.SEEK_END) and out.seek(-1, os.SEEK_END) >= 0 and out.read(1) != b"\n"
        out.write(b"\n" + line if torn else line)


def write_tensors(
    file: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    *,
    shared: bool = False,
) -> None:
    """safetensors, whole or not at all; `shared` as in `whole`."""
    from safetensors.torch import save_file

    with whole(file, shared) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)


def make_way(file: Path | None) -> None:
    """Refuse a file that cannot be written before minutes of work, not after them."""
    if file is None:
        return
    try:
        file = file.resolve()  # of a link to nowhere, what would be made
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        with file.open("a"):
            pass
        if new:
            file.unlink()
    except OSError as error:
        raise SettingsError(f"{file} cannot be written ({error.strerror}).") from None


def _umask() -> int:
    """What the process takes away from the rights of new files; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
