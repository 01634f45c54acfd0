"""A scaled module at inference: what `ScaledModule.forward` computes, patch after patch behind a KV cache.

A picture is some hundred network passes, one after another, over a handful of tokens. What counts there is
how many operations are started, and what they allocate. So all that does not change is taken out of the
loop: time and class are conditioned for all steps at once, gains and roots are folded into each other,
buffers and views of them are made once, and every operation but attention writes into one.

Dimension suffixes: B samples, R rows (samples, or samples with and without class), S tokens of a patch, N
tokens so far, T times of the grid, C token channels, D width, H heads, E head channels, M hidden channels;
X rows times tokens of a patch, Z samples times tokens of a patch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nestar.transformer import RMS_EPSILON, Block, Modulation, ScaledModule

Parts = tuple[Tensor, ...]

PRECISIONS = ("auto", "bf16", "float32")
"""What matrix products are computed in; auto: bf16 where the device multiplies it itself. A CPU that does not
took 3 times as long over a tokenizer's step in bf16 as in float32."""

BF16_FROM = 8
"""Tokens of a patch from which on bf16 products pay on a CPU: smaller ones wait for memory and are not faster
in it. By the patch alone, so that a picture does not depend on its batch."""


@lru_cache
def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 numbers itself; CPUs that only emulate it are slower with it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return any(there for name, there in torch.cpu.get_capabilities().items() if str(name).endswith("bf16"))


def products_in(device: torch.device, precision: str = "auto") -> str:
    """What one of PRECISIONS comes to on a device: bf16 or float32."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) else "float32"


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Matrix products of a training or of an encoding, by one of PRECISIONS."""
    in_bf16 = products_in(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16)


def compute_dtype(module: ScaledModule, patch_size: int) -> torch.dtype:
    """In what a module is best run over patches of this size, on the device where it is."""
    weight = module.embed.weight
    large = weight.device.type != "cpu" or patch_size >= BF16_FROM
    return (
        torch.bfloat16
        if weight.dtype == torch.float32 and large and has_bf16(weight.device)
        else weight.dtype
    )


class Engine:
    """One scaled module that makes its patches one after another, for fixed rows and a fixed grid of times.

    Whoever runs it holds `torch.inference_mode()`. It reads the module's weights once, at the beginning.

    Args:
        class_ids_R: class of each row.
        t_RT: (R, T) or (1, T), every time that will be asked for.
        copies: how many rows share their tokens: with guidance 2, the first half conditional, the second not.
        dtype: of the products; the module's own without.
    """

    def __init__(
        self,
        module: ScaledModule,
        class_ids_R: Tensor,
        t_RT: Tensor,
        *,
        copies: int = 1,
        dtype: torch.dtype | None = None,
    ):
        weight = module.embed.weight
        self.module = module
        self.dtype, self.device = dtype or weight.dtype, weight.device
        self.rows, self.copies = len(class_ids_R), copies
        self.heads, self.head_dim = module.heads, module.head_dim
        self.length = 0  # tokens of the context
        self.tokens = len(module.position)
        self.blocks = [_BlockWeights.of(block, self.dtype) for block in module.blocks]
        self.embed_CD, self.head_DC = _matrix(module.embed, self.dtype), _matrix(module.head, self.dtype)
        self.place_ND = (module.position + module.embed.bias).to(self.dtype)
        self.head_bias_C = module.head.bias.to(self.dtype)
        self.turns = [_turns(module, block, self.dtype) for block in module.blocks]
        self.modulations = _by_time(module.condition(t_RT, class_ids_R), self.dtype)
        # Queries lie beside keys and values, so that one operation writes queries and keys.
        shape = (len(self.blocks), 3, self.rows, self.tokens, self.heads, self.head_dim)
        self.store_L3RNHE = torch.empty(shape, device=self.device, dtype=self.dtype)
        self.epsilon = torch.tensor(RMS_EPSILON * len(weight) ** 0.5, device=self.device, dtype=self.dtype)
        self.epsilon_qk = torch.tensor(RMS_EPSILON * self.head_dim**0.5, device=self.device, dtype=self.dtype)
        self._buffers: dict[int, _Buffers] = {}
        self._views: tuple[int, int, list[_Views], Tensor] | None = None

    def velocity(self, y_BSC: Tensor, time: int) -> Tensor:
        """Velocity of the patch that follows the context, at the grid's time number `time`.

        Args:
            y_BSC: tokens of the B = R / copies samples.

        Returns:
            (R, S, C) in the engine's dtype, in a buffer that the next call overwrites.
        """
        return self._pass(y_BSC, time, alone=self.length == 0 and y_BSC.shape[1] == 1)

    def remember(self, x_BSC: Tensor, time: int = -1) -> None:
        """Enter finished tokens as context; the grid's time number `time` is that of clean tokens, t = 1."""
        self._pass(x_BSC, time)
        self.length += x_BSC.shape[1]

    def _pass(self, y_BSC: Tensor, time: int, alone: bool = False) -> Tensor:
        """`alone`: a token that sees nothing but itself, whose attention is its own value."""
        size = y_BSC.shape[1]
        b = self._room(size)
        views, place_SD = self._around(size)
        x, h = b.x_RSD, b.h_RSD
        torch.mm(y_BSC.reshape(-1, y_BSC.shape[2]).to(self.dtype), self.embed_CD, out=b.e_ZD)
        torch.add(b.e_ABSD, place_SD, out=b.x_ABSD)
        modulations, head = self.modulations[time]
        for weights, own, at in zip(self.blocks, modulations, views, strict=True):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = own
            self._modulated(b, shift_a, scale_a)
            torch.mm(b.h_XD, weights.qkv_DF, out=b.qkv_XF)
            a_XD = b.v_XD if alone else self._attention(b, at)
            torch.mm(a_XD, weights.out_DD, out=b.h_XD)
            x.addcmul_(gate_a, h)
            self._modulated(b, shift_m, scale_m)
            torch.mm(b.h_XD, weights.up_DF, out=b.up_XF)
            F.silu(b.gate_XM, inplace=True)
            torch.mul(b.gate_XM, b.value_XM, out=b.hidden_XM)
            torch.mm(b.hidden_XM, weights.down_MD, out=b.h_XD)
            x.addcmul_(gate_m, h)
        self._modulated(b, *head)
        torch.addmm(self.head_bias_C, b.h_XD, self.head_DC, out=b.v_XC)
        return b.v_RSC

    def _attention(self, b: _Buffers, at: _Views) -> Tensor:
        """What the patch's tokens see of themselves and of the context, (X, D); its keys and values are
        written behind the context's."""
        torch.linalg.vector_norm(b.qk_RS2HE, dim=-1, keepdim=True, out=b.qk_norm_RS2H1)
        b.qk_norm_RS2H1.add_(self.epsilon_qk)
        # The halves of each head change places in a buffer: operations on halves are slow in bf16.
        b.swapped_low.copy_(b.qk_high)
        b.swapped_high.copy_(b.qk_low)
        torch.mul(b.qk_RS2HE, at.cos_S2HE, out=b.turned_RS2HE)
        b.turned_RS2HE.addcmul_(b.swapped_RS2HE, at.sin_S2HE)
        torch.div(b.turned_RS2HE, b.qk_norm_RS2H1, out=at.qk_RS2HE)
        at.v_RSHE.copy_(b.v_RSHE)
        a_RHSE = F.scaled_dot_product_attention(at.q_RHSE, at.keys_RHNE, at.values_RHNE)
        return a_RHSE.transpose(1, 2).reshape(b.h_XD.shape)

    def _modulated(self, b: _Buffers, shift_R1D: Tensor, scale_R1D: Tensor) -> None:
        """h = shift + scale * x / rms(x); the scale holds the root of D already."""
        torch.linalg.vector_norm(b.x_RSD, dim=-1, keepdim=True, out=b.norm_RS1)
        b.norm_RS1.add_(self.epsilon)
        torch.mul(b.x_RSD, scale_R1D, out=b.h_RSD)
        torch.addcdiv(shift_R1D, b.h_RSD, b.norm_RS1, out=b.h_RSD)

    def _room(self, size: int) -> _Buffers:
        if size not in self._buffers:
            self._buffers[size] = _Buffers(self, size)
        return self._buffers[size]

    def _around(self, size: int) -> tuple[list[_Views], Tensor]:
        """Where the patch that follows the context is written and what it sees; kept while it is solved."""
        if self._views is None or self._views[:2] != (self.length, size):
            start, stop = self.length, self.length + size
            views = [
                _Views.of(store, turns, start, stop)
                for store, turns in zip(self.store_L3RNHE, self.turns, strict=True)
            ]
            self._views = (start, size, views, self.place_ND[start:stop])
        return self._views[2:]


class _BlockWeights(NamedTuple):
    """A block's matrices, as products from the left take them."""

    qkv_DF: Tensor
    out_DD: Tensor
    up_DF: Tensor
    down_MD: Tensor

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype) -> _BlockWeights:
        return cls(*(_matrix(layer, dtype) for layer in (block.qkv, block.out, block.up, block.down)))


class _Turns(NamedTuple):
    """The rotary embedding with the gains of queries and keys in it, written out for every head."""

    cos_N2HE: Tensor
    sin_N2HE: Tensor


class _Views(NamedTuple):
    """A block's part of the store and of the rotary embedding for one patch."""

    qk_RS2HE: Tensor
    v_RSHE: Tensor
    q_RHSE: Tensor
    keys_RHNE: Tensor
    values_RHNE: Tensor
    cos_S2HE: Tensor
    sin_S2HE: Tensor

    @classmethod
    def of(cls, store_3RNHE: Tensor, turns: _Turns, start: int, stop: int) -> _Views:
        here_3RSHE, so_far_3RNHE = store_3RNHE[:, :, start:stop], store_3RNHE[:, :, :stop]
        return cls(
            here_3RSHE[:2].permute(1, 2, 0, 3, 4),
            here_3RSHE[2],
            here_3RSHE[0].transpose(1, 2),
            so_far_3RNHE[1].transpose(1, 2),
            so_far_3RNHE[2].transpose(1, 2),
            *(part[start:stop] for part in turns),
        )


class _Buffers:
    """What a pass over patches of one size writes into, and views of it."""

    def __init__(self, engine: Engine, size: int):
        rows, copies, heads, width = engine.rows, engine.copies, engine.heads, engine.head_dim
        channels, dim = engine.embed_CD.shape
        hidden = engine.blocks[0].down_MD.shape[0]
        tokens = rows * size

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=engine.device, dtype=engine.dtype)

        self.e_ZD = empty(tokens // copies, dim)  # of the samples
        self.e_ABSD = self.e_ZD.view(1, -1, size, dim).expand(copies, -1, -1, -1)
        self.x_RSD, self.h_RSD, self.norm_RS1 = (empty(rows, size, last) for last in (dim, dim, 1))
        self.x_ABSD, self.h_XD = self.x_RSD.view(copies, -1, size, dim), self.h_RSD.view(tokens, dim)
        self.qkv_XF = empty(tokens, 3 * dim)
        qkv_RS3HE = self.qkv_XF.view(rows, size, 3, heads, width)
        self.qk_RS2HE, self.v_RSHE = qkv_RS3HE[:, :, :2], qkv_RS3HE[:, :, 2]
        self.v_XD = self.qkv_XF[:, 2 * dim :]
        self.turned_RS2HE, self.swapped_RS2HE, self.qk_norm_RS2H1 = (
            empty(rows, size, 2, heads, last) for last in (width, width, 1)
        )
        self.qk_low, self.qk_high = self.qk_RS2HE.chunk(2, -1)
        self.swapped_low, self.swapped_high = self.swapped_RS2HE.chunk(2, -1)
        self.up_XF, self.hidden_XM = empty(tokens, 2 * hidden), empty(tokens, hidden)
        self.gate_XM, self.value_XM = self.up_XF.chunk(2, -1)
        self.v_XC = empty(tokens, channels)
        self.v_RSC = self.v_XC.view(rows, size, channels)


def _matrix(layer: torch.nn.Linear, dtype: torch.dtype) -> Tensor:
    """A linear layer's matrix, (inputs, outputs), in memory in this order."""
    return layer.weight.to(dtype).t()


def _turns(module: ScaledModule, block: Block, dtype: torch.dtype) -> _Turns:
    """`transformer.rotate` after the gains is turning with the gains in cosines and sines. Queries and keys
    are divided by their norms afterwards, to which turning does nothing; the root of E is in here, too."""
    gain_21E = block.qk_scale * module.head_dim**0.5
    cos_N21E = module.rope_cos * gain_21E
    sin_N21E = module.rope_sin * gain_21E.roll(module.head_dim // 2, -1)
    cos, sin = (each.expand(-1, -1, module.heads, -1).to(dtype).contiguous() for each in (cos_N21E, sin_N21E))
    return _Turns(cos, sin)


def _by_time(grid: Modulation, dtype: torch.dtype) -> list[tuple[list[Parts], Parts]]:
    """For each time: each block's six and the head's two parts, (R, 1, D), scales times the root of D."""
    root = grid.head[0].shape[-1] ** 0.5

    def split(parts: Parts, scales: tuple[int, ...]) -> list[Parts]:
        scaled = [part * root if number in scales else part for number, part in enumerate(parts)]
        by_time_TFR1D = torch.stack(scaled).permute(2, 0, 1, 3, 4).to(dtype).contiguous()
        return list(zip(*[iter(by_time_TFR1D.flatten(0, 1).unbind())] * len(parts), strict=True))

    blocks = [split(block, (1, 4)) for block in grid.blocks]
    return list(zip(map(list, zip(*blocks, strict=True)), split(grid.head, (1,)), strict=True))
