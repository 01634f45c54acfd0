"""What of a NestAR's engines outlives a run: weights as they take them and, on a GPU, recorded passes.

A GPU is done with a small network's operation before the host has started the next. So the passes over each
patch are recorded once as CUDA graphs, each started as a whole then. That takes seconds, and a graph goes on
reading and writing the same memory: recording is for those who wait for no picture, and an engine with
recorded passes serves one run at a time.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nestar.engine import Engine, EngineWeights, Recorder, Work, compute_dtype, is_alone
from nestar.model import NestAR
from nestar.nesting import Scale

log = logging.getLogger(__name__)


@lru_cache
def _recording(device: int) -> tuple[torch.cuda.Stream, Any]:
    """The stream that a GPU's graphs are recorded on, and the memory that all of them share: what one leaves
    there is dead when the next begins, as they are replayed one after another on one stream."""
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()


def cuda_graph(work: Work) -> Work:
    """`work`, which has to run on a GPU without waiting for it, as one CUDA graph."""
    (stream, pool), current = _recording(torch.cuda.current_device()), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # what libraries choose and allocate at first must not be recorded
        for _ in range(3):
            work()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # cuBLAS keeps its workspaces. One that a graph uses has to lie in the graphs' own memory, and nothing
    # else may find it there: as in torch/_inductor/cudagraph_trees.py.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # A recording that fails would leave this thread on its stream.
        with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool, stream=stream):
            work()
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return graph.replay


class Engines:
    """Those of one NestAR, whose weights do not change any more."""

    def __init__(self, model: NestAR):
        self.model = model
        self._weights: dict[int, EngineWeights] = {}
        self._recorded: dict[tuple[int, int, int], list[Engine]] = defaultdict(list)
        self._lock = threading.RLock()  # a run that nobody wants any more may be collected inside

    def lend(self, number: int, class_ids_R: Tensor, t_RT: Tensor, copies: int) -> Engine:
        """An engine of scaled module `number` at the beginning of a run: a recorded one for so many rows if
        there is one that nobody has, else a fresh one."""
        with self._lock:
            free = self._recorded[number, len(class_ids_R), copies]
            engine = free.pop() if free else None
        if engine is None:
            return self._fresh(number, class_ids_R, t_RT, copies)
        try:
            engine.begin(class_ids_R, t_RT)
        except BaseException:
            self.take_back(number, engine)
            raise
        return engine

    def take_back(self, number: int, engine: Engine) -> None:
        """What `lend` gave; whoever had it does not use it any more."""
        if engine.is_recorded:
            with self._lock:
                self._recorded[number, engine.rows, engine.copies].append(engine)

    @torch.inference_mode()
    def record(self, samples: int, *, guided: bool, recorder: Recorder = cuda_graph) -> bool:
        """Record every pass of a run of so many samples; once more, and two such runs at a time have them.
        Whether that succeeded: otherwise such runs go on as before."""
        device, copies = self.model.device, 2 if guided else 1
        class_ids_R = torch.zeros(copies * samples, dtype=torch.long)
        t_1T = torch.tensor([[0.5, 1.0]], device=device)
        gc.collect()  # what is collected while a graph is recorded could spoil it
        ready: dict[int, Engine] = {}
        try:
            # Streams are the current GPU's, which need not be the model's.
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                for scale in self.model.config.nesting.scales:
                    engine = ready[scale.number] = self._fresh(scale.number, class_ids_R, t_1T, copies)
                    engine.store_L3RHNE.normal_()
                    for start, size, alone in passes_of(scale):
                        engine.record(start, size, alone, recorder)
        except RuntimeError as error:  # one of them is that no memory is left
            log.warning("Passes of %s are not recorded: %s", self.model.config.nesting.name, error)
            return False
        for number, engine in ready.items():
            self.take_back(number, engine)
        return True

    def _fresh(self, number: int, class_ids_R: Tensor, t_RT: Tensor, copies: int) -> Engine:
        module = self.model.scaled_modules[number - 1]
        if number not in self._weights:
            self._weights[number] = EngineWeights.of(module, compute_dtype(module))
        return Engine(module, class_ids_R, t_RT, copies=copies, weights=self._weights[number])


def passes_of(scale: Scale) -> Iterator[tuple[int, int, bool]]:
    """Context, tokens and whether a token is alone, of every kind of pass that a run asks of a module: each
    generated patch is solved for, and all patches but the last are remembered."""
    for patch in scale.patches:
        remembered, alone = patch is not scale.patches[-1], is_alone(patch.start, patch.size)
        if remembered or not alone:
            yield patch.start, patch.size, False
        if alone and patch in scale.generated:
            yield patch.start, patch.size, True
