"""Muon on the matrices, AdamW on the rest, and an exponential moving average with warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclass(frozen=True)
class OptimizerConfig:
    """Defaults: xAR's AdamW (betas, weight decay, clip); Muon's rate from DESIGN's 300-step comparison."""

    lr: float = 1e-3
    muon_lr: float | None = 3e-3  # None: AdamW throughout
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.9999


class MuonAdamW:
    """One optimiser interface over `torch.optim.Muon` and `torch.optim.AdamW`.

    Muon takes weights of two and more dimensions, convolution kernels as (out, in*h*w) views of the same
    storage, except those that have one of `exclude` as a part of their name (first and last layers,
    embeddings, modulation).
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, exclude: Sequence[str] = ()
    ):
        self.config = config
        self._matrices: list[tuple[nn.Parameter, nn.Parameter]] = []
        rest: list[nn.Parameter] = []
        self._all: list[nn.Parameter] = []
        for name, parameter in named:
            self._all.append(parameter)
            if config.muon_lr is None or parameter.ndim < 2 or _is_part(name, exclude):
                rest.append(parameter)
            else:
                self._matrices.append((parameter, nn.Parameter(parameter.data.view(parameter.shape[0], -1))))
        self._optimizers: list[torch.optim.Optimizer] = []
        if rest:
            self._optimizers.append(
                torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
            )
        if self._matrices:
            self._optimizers.append(
                torch.optim.Muon(
                    [view for _, view in self._matrices],
                    lr=config.muon_lr,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._base = [group["lr"] for o in self._optimizers for group in o.param_groups]

    def step(self, lr_factor: float) -> float:
        """Clip, step with every rate scaled by `lr_factor`, clear gradients; returns the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self._all, self.config.clip)
        for parameter, view in self._matrices:
            view.grad = None if parameter.grad is None else parameter.grad.reshape(view.shape)
        groups = [group for o in self._optimizers for group in o.param_groups]
        for group, base in zip(groups, self._base, strict=True):
            group["lr"] = base * lr_factor
        for optimizer in self._optimizers:
            optimizer.step()
        for parameter in self._all:
            parameter.grad = None
        return float(norm)

    def state_tensors(self) -> dict[str, Tensor]:
        """Every state tensor under a flat name, fit for safetensors."""
        return {
            f"{number}.{index}.{key}": value
            for number, optimizer in enumerate(self._optimizers)
            for index, entry in optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave."""
        for number, optimizer in enumerate(self._optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                owner, index, key = name.split(".", 2)
                if int(owner) == number:
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _is_part(name: str, parts: Sequence[str]) -> bool:
    """Whether one of `parts` is a run of whole components of the dotted `name`."""
    return any(f".{part}." in f".{name}." for part in parts)


def ema_of(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of `model` with decay min(decay, (1 + s) / (10 + s)) after s updates."""
    return AveragedModel(model, multi_avg_fn=_warmed_up(decay), use_buffers=False)


def _warmed_up(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        steps = float(count)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + steps) / (10 + steps)))

    return update
