"""What a visitor sees of a run: a frame for every patch, with pictures of what stands.

On a GPU pictures are made and copied beside the sampler's own queue, while it goes on with the next patch.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from nestar.engine import has_bf16
from nestar.images import from_pixels, to_bytes
from nestar.nesting import Nesting
from nestar.sampler import PatchDone
from nestar.tokenizer import Tokenizer


@dataclass(frozen=True)
class Frame:
    """What stands after a patch, as pictures.

    Attributes:
        images: one preview a sample; `image` is the first. Until `final` they are guesses from a part of
            the tokens, or none at all where no previews were asked for.
        module, patch: which patch has just been made, both from 1; tokens: the grid places it filled.
        known: tokens that stand, of n.
        evaluations: patches made one after another; function_evaluations: network passes.
        seconds: the pipeline's own work since the call, decoding included, the consumer's time left out;
            decoding: the seconds of them that went into previews and the finished picture, or into waiting
            for these.
        norms: of each sample, root mean square of the patch's velocity at the beginning of each solver step,
            from noise on.
        batch: samples made at once, which may be more than there are pictures of here, see `row`.
        device: what made it: the pipeline's, or "cpu" once a GPU had no memory left.
    """

    images: tuple[Image.Image, ...]
    module: int
    modules: int
    patch: int
    tokens: tuple[int, ...]
    known: int
    n: int
    evaluations: int
    function_evaluations: int
    seconds: float
    decoding: float
    module_done: bool
    final: bool
    norms: tuple[tuple[float, ...], ...]
    batch: int
    device: str

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @property
    def pixels(self) -> int:
        """Of all its pictures: what keeping it costs, three bytes each."""
        return sum(image.width * image.height for image in self.images)

    def row(self, number: int) -> Frame:
        """The same of one sample alone, counted from 0."""
        return replace(self, images=self.images[number : number + 1], norms=self.norms[number : number + 1])


class Decoders(NamedTuple):
    """What turns tokens into pictures."""

    unfinished: Tokenizer
    finished: Tokenizer

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Decoders:
        """Unfinished grids in bf16 where the device has it: it takes a third less time, and a guess from a
        part of the tokens is not worse for it."""
        weight = next(tokenizer.parameters())
        if weight.dtype != torch.float32 or not has_bf16(weight.device):
            return cls(tokenizer, tokenizer)
        return cls(copy.deepcopy(tokenizer).to(torch.bfloat16), tokenizer)


class Reel:
    """The frames of one run: a patch is added when it stands, or is queued on a GPU, and its frame taken at
    any time after that, in order.

    Args:
        device: what makes them, in a word.
        previews: whether unfinished grids get pictures, too.
        beside: see `Readout`.
    """

    def __init__(
        self,
        nesting: Nesting,
        decoders: Decoders,
        device: str,
        *,
        previews: bool,
        beside: torch.cuda.Stream | None,
    ):
        self.nesting, self.decoders, self.device = nesting, decoders, device
        self.previews, self.beside = previews, beside
        self._added: deque[tuple[PatchDone, Readout]] = deque()
        self._sampling = self._reading = self._decoding = 0.0  # seconds

    def __len__(self) -> int:
        """Frames that have not been taken."""
        return len(self._added)

    def add(self, event: PatchDone) -> None:
        """Begin to make a patch's pictures."""
        began = time.perf_counter()
        final = event.known == self.nesting.n
        tokenizer = self.decoders.finished if final else self.decoders.unfinished
        decode = partial(tokenizer.preview, event.sequence_BNC, self.nesting, event.known)
        readout = Readout(event.norms_BS, decode if self.previews or final else None, self.beside)
        self._added.append((event, readout))
        self._sampling = event.elapsed
        self._decoding += time.perf_counter() - began

    def next(self) -> Frame:
        """The frame of the oldest patch of which it has not been taken."""
        event, readout = self._added.popleft()
        began = time.perf_counter()
        norms = readout.norms()  # waits for a GPU's queued steps: sampling, not decoding
        stands = time.perf_counter()
        images = readout.images()
        self._reading += stands - began
        self._decoding += time.perf_counter() - stands
        return Frame(
            images=images,
            module=event.module,
            modules=self.nesting.modules,
            patch=event.patch,
            tokens=event.tokens,
            known=event.known,
            n=self.nesting.n,
            evaluations=event.evaluations,
            function_evaluations=event.function_evaluations,
            seconds=self._sampling + self._reading + self._decoding,
            decoding=self._decoding,
            module_done=event.known == self.nesting.scales[event.module - 1].tokens,
            final=event.known == self.nesting.n,
            norms=norms,
            batch=len(norms),
            device=self.device,
        )


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
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield


def _on_its_way(there: Tensor) -> Tensor:
    """A tensor on the CPU; one from a GPU is whole once its stream has come so far."""
    if there.device.type == "cpu":
        return there
    here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
    return here.copy_(there, non_blocking=True)
