"""What leaves the device when a patch stands: pictures and norms, on their way while the sampler goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor

from nestar.images import from_pixels, to_bytes


class Readout:
    """Pictures and norms of a patch that has just been made, or queued. On a GPU they are made and copied
    beside what is queued there next; elsewhere they are finished at once.

    Args:
        norms_BS: is read, and has to stay as it is until `norms` has answered.
        decode: gives images (B, 3, H, W) in [-1, 1] of what stands; None: no pictures.
        beside: the stream of a GPU that this happens on.
    """

    def __init__(
        self, norms_BS: Tensor, decode: Callable[[], Tensor] | None, beside: torch.cuda.Stream | None = None
    ):
        self._source = norms_BS  # so that its memory is not handed on before it has been read
        self._pixels_BHW3: Tensor | None = None
        self._stands = self._done = None
        with _on(beside), torch.inference_mode():
            self._norms_BS = _on_its_way(norms_BS)
            if beside is not None:
                self._stands = beside.record_event()
            if decode is not None:
                self._pixels_BHW3 = _on_its_way(to_bytes(decode()).permute(0, 2, 3, 1))
            if beside is not None:
                self._done = beside.record_event()

    def norms(self) -> tuple[tuple[float, ...], ...]:
        """Of each sample, a number a solver step. Waits for the patch, not for its pictures."""
        if self._stands is not None:
            self._stands.synchronize()
        return tuple(map(tuple, self._norms_BS.tolist()))

    def images(self) -> tuple[Image.Image, ...]:
        """One a sample, or none."""
        if self._done is not None:
            self._done.synchronize()
        return () if self._pixels_BHW3 is None else from_pixels(self._pixels_BHW3)


@contextmanager
def _on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """What is queued inside goes to `stream`, behind what has been queued so far."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def _on_its_way(there: Tensor) -> Tensor:
    """A tensor on the CPU; one from a GPU is whole once its stream has come so far."""
    if there.device.type == "cpu":
        return there
    here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
    return here.copy_(there, non_blocking=True)
