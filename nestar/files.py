"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RUNS = Path("runs")
"""Where trainings write, unless told otherwise; git ignores it."""
CACHE = RUNS / "cache"
"""Where pictures and latents lie that were drawn beforehand."""


@contextmanager
def whole(file: Path, shared: bool = False) -> Iterator[Path]:
    """Where to write what becomes `file` when the block ends. A kill at any moment, a full disk or a failure
    leaves what stood there before.

    Links are followed, and what is no file (a device, a pipe) is written to as it is.

    Args:
        shared: other processes may be writing the same file, of other machines, too. What a kill leaves half
            written then stays there, where it otherwise is in the next one's way, and written over.
    """
    file = file.resolve()
    if file.exists() and not file.is_file():
        yield file
        return
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial" if shared else f"{file.name}.partial")
    try:
        yield partial
        # safetensors makes files that nobody else may read, and who serves them may be another user.
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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


def _umask() -> int:
    """What the process takes away from the rights of new files; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
