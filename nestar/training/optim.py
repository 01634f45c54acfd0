"""Muon on the matrices, AdamW on the rest, and an exponential moving average with warm-up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nestar.engine import has_bf16
from nestar.model import WeightsError


@dataclass(frozen=True)
class OptimizerConfig:
    """Defaults: xAR's AdamW (betas, weight decay, clip); Muon's rate from a comparison over 300 steps."""

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
    embeddings, modulation, gains).
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, exclude: Sequence[str] = ()
    ):
        self.config = config
        self._matrices: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._all: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        names: dict[str, list[str]] = {"adamw": [], "muon": []}
        for name, parameter in named:
            self._all.append(parameter)
            if config.muon_lr is None or parameter.ndim < 2 or _is_part(name, exclude):
                names["adamw"].append(name)
                rest.append(parameter)
            else:
                names["muon"].append(name)
                self._matrices.append((parameter, nn.Parameter(parameter.data.view(parameter.shape[0], -1))))
        self.names = {kind: tuple(own) for kind, own in names.items()}  # of what each optimiser trains
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        if rest:
            self._optimizers["adamw"] = torch.optim.AdamW(
                rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
            )
        if self._matrices:
            muon = torch.optim.Muon if has_bf16(self._all[0].device) else Float32Muon
            self._optimizers["muon"] = muon(
                [view for _, view in self._matrices],
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        self._base = [group["lr"] for o in self._optimizers.values() for group in o.param_groups]

    def step(self, lr_factor: float) -> None:
        """Clip, step with every rate scaled by `lr_factor`, clear gradients."""
        nn.utils.clip_grad_norm_(self._all, self.config.clip)
        for parameter, view in self._matrices:
            view.grad = None if parameter.grad is None else parameter.grad.reshape(view.shape)
        groups = [group for o in self._optimizers.values() for group in o.param_groups]
        for group, base in zip(groups, self._base, strict=True):
            group["lr"] = base * lr_factor
        for optimizer in self._optimizers.values():
            optimizer.step()
        for parameter in self._all:
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Every state tensor under `<optimiser>.<parameter>.<key>`, fit for safetensors."""
        return {
            f"{kind}.{self.names[kind][index]}.{key}": value
            for kind, optimizer in self._optimizers.items()
            for index, entry in optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` gave.

        Raises:
            WeightsError: the state of a parameter that is trained otherwise here, or not at all; it is named.
        """
        index = {f"{kind}.{name}": i for kind, own in self.names.items() for i, name in enumerate(own)}
        states: dict[str, dict[int, dict[str, Tensor]]] = {kind: {} for kind in self._optimizers}
        for filed, value in tensors.items():
            name, _, key = filed.rpartition(".")
            if name not in index:
                raise WeightsError(f"The optimiser's state holds {filed!r}, which has no place here.")
            states[name.split(".")[0]].setdefault(index[name], {})[key] = value
        for kind, optimizer in self._optimizers.items():
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states[kind]})


class Float32Muon(torch.optim.Muon):
    """torch's Muon with its Newton-Schulz iteration in float32. torch's own computes in bf16 whatever the
    device has: on a CPU that only emulates it, one step of a network of 45 million weights took minutes."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)  # match_rms_adamw


def orthogonalised(
    matrix_MN: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """A matrix with its singular values moved to about 1, by the Newton-Schulz iteration of Muon."""
    a, b, c = coefficients
    is_tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = matrix_MN.T if is_tall else matrix_MN
    x = x / x.norm().clamp(min=epsilon)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _is_part(name: str, parts: Sequence[str]) -> bool:
    """Whether one of `parts` is a run of whole components of the dotted `name`."""
    return any(f".{part}." in f".{name}." for part in parts)


class MovingAverage(AveragedModel):
    """A moving average that begins at a model, on its device. Its first update takes the model as it is, the
    one after s others keeps min(decay, (1 + s) / (10 + s)) of the average.

    `n_averaged` stays on the CPU, and the update reads it there: torch's own carries it to the parameters'
    device at each step, and whoever reads it there waits for the device. Buffers are constants in all
    networks here; they are copied once.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        steps = int(self.n_averaged)
        decay = min(self.decay, (1 + steps) / (10 + steps)) if steps else 0.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - decay)
        self.n_averaged += 1
