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

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestar.transformer import RMS_EPSILON, Block, Modulation, ScaledModule

Parts = tuple[Tensor, ...]
Work = Callable[[], None]
Recorder = Callable[[Work], Work]
"""Gives what does the same work again, on whatever then lies in the memory that it reads."""

PRECISIONS = ("auto", "bf16", "float32")
"""What matrix products are computed in; auto: bf16 where the device multiplies it itself. A CPU that does not
took 3 times as long over a tokenizer's step in bf16 as in float32."""

PRODUCTS_FROM = 64
"""From so many tokens of all rows together a CPU computes attention in bf16 as two products of many small
matrices: 1.5 to 3 times as fast as torch's kernel for it, which takes one head of one row at a time. Fewer
are not worth starting the products."""
GPU_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of attention on a GPU: not cuDNN's, which torch would take first on the newest. That one makes a
plan for every number of rows and tokens, some 30 ms each, and keeps all of them: here every patch has its own
shape."""
MOST_SCORES = 2**25
"""Numbers that these products may keep of scores and of their softmax each, 64 MiB; the kernel keeps none."""


@lru_cache
def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 numbers itself; CPUs that only emulate it are slower with it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
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


def gpu_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Attention by GPU_KERNELS on a GPU, as ever elsewhere."""
    return sdpa_kernel(GPU_KERNELS) if device.type == "cuda" else nullcontext()


def compute_dtype(module: ScaledModule) -> torch.dtype:
    """In what a module is best run on the device where it is."""
    weight = module.embed.weight
    return torch.bfloat16 if weight.dtype == torch.float32 and has_bf16(weight.device) else weight.dtype


class Engine:
    """One scaled module that makes its patches one after another, for a fixed number of rows.

    Whoever runs it holds `torch.inference_mode()`. It reads the module's weights once, at the beginning.

    Args:
        class_ids_R: class of each row; on the CPU, so that a GPU need not be waited for.
        t_RT: (R, T) or (1, T), every time that will be asked for.
        copies: how many rows share their tokens: with guidance 2, the first half conditional, the second not.
        weights: the module's, as `EngineWeights.of` reads them; by default in the module's own dtype.
    """

    def __init__(
        self,
        module: ScaledModule,
        class_ids_R: Tensor,
        t_RT: Tensor,
        *,
        copies: int = 1,
        weights: EngineWeights | None = None,
    ):
        self.module = module
        self.weights = weights or EngineWeights.of(module)
        self.dtype, self.device = self.weights.embed_CD.dtype, self.weights.embed_CD.device
        self.rows, self.copies = len(class_ids_R), copies
        self.heads, self.head_dim = module.heads, module.head_dim
        self.tokens, dim = module.position.shape
        # Queries lie beside keys and values, so that one operation writes queries and keys.
        shape = (len(self.weights.blocks), 3, self.rows, self.heads, self.tokens, self.head_dim)
        self.store_L3RHNE = torch.empty(shape, device=self.device, dtype=self.dtype)
        # Filled on the device: a number that is copied there would be waited for.
        like = {"device": self.device, "dtype": self.dtype}
        self.epsilon = torch.full((), RMS_EPSILON * dim**0.5, **like)
        self.epsilon_qk = torch.full((), RMS_EPSILON * self.head_dim**0.5, **like)
        self._buffers: dict[int, _Buffers] = {}
        self._packed_L2Y: Tensor | None = None
        self._recorded: dict[tuple[int, int, bool], _Recorded] = {}
        self.begin(class_ids_R, t_RT)

    def begin(self, class_ids_R: Tensor, t_RT: Tensor) -> None:
        """Forget the context and condition all times for as many rows as ever. Where these share their times
        each class is conditioned once and copied to its rows: half of a guided batch's have none."""
        self.length = 0  # tokens of the context
        rows_R = None
        if len(t_RT) == 1:
            class_ids_R, rows_R = class_ids_R.unique(return_inverse=True)
            rows_R = rows_R.to(self.device, non_blocking=True)
        given = self.module.condition(t_RT, class_ids_R.to(self.device, non_blocking=True))
        self.modulations = _by_time(given, rows_R, self.dtype)
        self._views: tuple[int, int, list[_Views] | list[_PackedViews], Tensor] | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether passes have been recorded."""
        return bool(self._recorded)

    def velocity(self, y_BSC: Tensor, time: int) -> Tensor:
        """Velocity of the patch that follows the context, at the grid's time number `time`.

        Args:
            y_BSC: tokens of the B = R / copies samples.

        Returns:
            (R, S, C) in the engine's dtype, in a buffer that the next call overwrites.
        """
        return self._pass(y_BSC, time, alone=is_alone(self.length, y_BSC.shape[1]))

    def remember(self, x_BSC: Tensor, time: int = -1) -> None:
        """Enter finished tokens as context; the grid's time number `time` is that of clean tokens, t = 1."""
        self._pass(x_BSC, time)
        size = x_BSC.shape[1]
        if self._room(size).as_products:
            for at in self._around(size)[0]:
                at.stored_2RHSE.copy_(at.made_2RHSE)
        self.length += size

    def record(self, start: int, size: int, alone: bool, recorder: Recorder) -> None:
        """Record the pass over a patch of `size` tokens behind a context of `start`, and hold it against the
        pass itself.

        Raises:
            RuntimeError: it does not answer as the pass does.
        """
        self.length = start
        b, (views, place_SD) = self._room(size), self._around(size)
        b.y_BSC.normal_()
        held = _Conditioned.of(self.modulations[0].all_FR1D.clone())

        def work() -> None:
            with gpu_kernels(self.device):
                self._compute(b, held, views, place_SD, alone)

        again = _Recorded(held, recorder(work))
        b.y_BSC.normal_()
        held.all_FR1D.copy_(self.modulations[-1].all_FR1D)
        b.v_XC.zero_()
        again.work()
        answer = b.v_XC.clone()
        work()
        if not torch.allclose(answer, b.v_XC, rtol=1e-2, atol=1e-2 * b.v_XC.abs().max().item()):
            raise RuntimeError(f"A recorded pass over {size} tokens behind {start} answers otherwise.")
        self._recorded[start, size, alone] = again

    def _pass(self, y_BSC: Tensor, time: int, alone: bool = False) -> Tensor:
        """`alone`: a token that sees nothing but itself, whose attention is its own value."""
        size = y_BSC.shape[1]
        b = self._room(size)
        b.y_BSC.copy_(y_BSC)
        given = self.modulations[time]
        recorded = self._recorded.get((self.length, size, alone))
        if recorded is None:
            with gpu_kernels(self.device):
                self._compute(b, given, *self._around(size), alone)
        else:
            recorded.given.all_FR1D.copy_(given.all_FR1D)
            recorded.work()
        return b.v_RSC

    def _compute(
        self,
        b: _Buffers,
        given: _Conditioned,
        views: list[_Views] | list[_PackedViews],
        place_SD: Tensor,
        alone: bool,
    ) -> None:
        """All operations of a pass; none waits for the device or depends on a value that lies there."""
        x, h, own = b.x_RSD, b.h_RSD, self.weights
        torch.mm(b.y_ZC, own.embed_CD, out=b.e_ZD)
        torch.add(b.e_ABSD, place_SD, out=b.x_ABSD)
        for block, parts, at in zip(own.blocks, given.blocks, views, strict=True):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
            self._modulated(b, shift_a, scale_a)
            torch.mm(b.h_XD, block.qkv_DF, out=b.qkv_XF)
            a_XD = b.v_XD if alone else self._attention(b, at)
            torch.mm(a_XD, block.out_DD, out=b.h_XD)
            x.addcmul_(gate_a, h)
            self._modulated(b, shift_m, scale_m)
            torch.mm(b.h_XD, block.up_DF, out=b.up_XF)
            F.silu(b.gate_XM, inplace=True)
            torch.mul(b.gate_XM, b.value_XM, out=b.hidden_XM)
            torch.mm(b.hidden_XM, block.down_MD, out=b.h_XD)
            x.addcmul_(gate_m, h)
        self._modulated(b, *given.head)
        torch.addmm(own.head_bias_C, b.h_XD, own.head_DC, out=b.v_XC)

    def _attention(self, b: _Buffers, at: _Views | _PackedViews) -> Tensor:
        """What the patch's tokens see of themselves and of the context, (X, D); its keys and values are
        written behind the context's."""
        torch.linalg.vector_norm(b.qk_RS2HE, dim=-1, keepdim=True, out=b.qk_norm_RS2H1)
        b.qk_norm_RS2H1.add_(self.epsilon_qk)
        # The halves of each head change places in a buffer: operations on halves are slow in bf16.
        b.swapped_low.copy_(b.qk_high)
        b.swapped_high.copy_(b.qk_low)
        torch.mul(b.qk_RS2HE, at.cos_S2HE, out=b.turned_RS2HE)
        b.turned_RS2HE.addcmul_(b.swapped_RS2HE, at.sin_S2HE)
        if isinstance(at, _PackedViews):
            return self._as_products(b, at)
        torch.div(b.turned_RS2HE, b.qk_norm_RS2H1, out=at.qk_RS2HE)
        at.v_RSHE.copy_(b.v_RSHE)
        a_RHSE = F.scaled_dot_product_attention(at.q_RHSE, at.keys_RHNE, at.values_RHNE, scale=1.0)
        b.attended_RHSE.copy_(a_RHSE)
        return b.attended_XD

    def _as_products(self, b: _Buffers, at: _PackedViews) -> Tensor:
        """Attention as products of G = R * H matrices, (X, D)."""
        for part, made_RSHE in enumerate((b.q_RSHE, at.k_RSHE)):
            torch.div(b.turned_RS2HE[:, :, part], b.qk_norm_RS2H1[:, :, part], out=made_RSHE)
        at.v_RSHE.copy_(b.v_RSHE)
        torch.bmm(b.q_GSE, at.keys_GEN, out=at.scores_GSN)
        torch.softmax(at.scores_GSN, -1, out=at.shares_GSN)
        torch.bmm(at.shares_GSN, at.values_GNE, out=b.mixed_GSE)
        b.attended_RHSE.copy_(b.mixed_RHSE)
        return b.attended_XD

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

    def _around(self, size: int) -> tuple[list[_Views] | list[_PackedViews], Tensor]:
        """Where the patch that follows the context is written and what it sees; kept while it is solved."""
        if self._views is None or self._views[:2] != (self.length, size):
            start, stop = self.length, self.length + size
            b = self._room(size)
            if b.as_products and self._packed_L2Y is None:
                self._packed_L2Y = torch.empty_like(self.store_L3RHNE[:, 1:]).flatten(2)
            views = [
                _PackedViews.of(b, store, self._packed_L2Y[layer], turns, start, stop)
                if b.as_products
                else _Views.of(store, turns, start, stop)
                for layer, (store, turns) in enumerate(
                    zip(self.store_L3RHNE, self.weights.turns, strict=True)
                )
            ]
            self._views = (start, size, views, self.weights.place_ND[start:stop])
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


class EngineWeights(NamedTuple):
    """A scaled module's weights as its engines take them. They are copies where the dtype is another."""

    blocks: tuple[_BlockWeights, ...]
    turns: tuple[_Turns, ...]
    embed_CD: Tensor
    place_ND: Tensor
    head_DC: Tensor
    head_bias_C: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, module: ScaledModule, dtype: torch.dtype | None = None) -> EngineWeights:
        """In `dtype`, in which products are then computed; the module's own without."""
        dtype = dtype or module.embed.weight.dtype
        return cls(
            tuple(_BlockWeights.of(block, dtype) for block in module.blocks),
            tuple(_turns(module, block, dtype) for block in module.blocks),
            _matrix(module.embed, dtype),
            (module.position + module.embed.bias).to(dtype),
            _matrix(module.head, dtype),
            module.head.bias.to(dtype),
        )


class _Conditioned(NamedTuple):
    """What time and class do to a pass: each block's six and the head's two parts, (R, 1, D), scales times
    the root of D, all in one tensor."""

    all_FR1D: Tensor
    blocks: list[Parts]
    head: Parts

    @classmethod
    def of(cls, all_FR1D: Tensor) -> _Conditioned:
        parts = all_FR1D.unbind()
        of_blocks, of_head = parts[:-2], parts[-2:]
        blocks = [of_blocks[start : start + 6] for start in range(0, len(of_blocks), 6)]
        return cls(all_FR1D, blocks, of_head)


class _Recorded(NamedTuple):
    """A pass over one patch that is started as a whole, and what it reads beside the patch's buffers."""

    given: _Conditioned
    work: Work


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
    def of(cls, store_3RHNE: Tensor, turns: _Turns, start: int, stop: int) -> _Views:
        here_3RHSE, so_far_3RHNE = store_3RHNE[..., start:stop, :], store_3RHNE[..., :stop, :]
        return cls(
            here_3RHSE[:2].permute(1, 3, 0, 2, 4),
            here_3RHSE[2].transpose(1, 2),
            here_3RHSE[0],
            so_far_3RHNE[1],
            so_far_3RHNE[2],
            *(part[start:stop] for part in turns),
        )


class _PackedViews(NamedTuple):
    """The same for attention as products, of G = R * H matrices. These take no matrices with gaps between
    them and would copy those out of the store at every step: here the context is copied once a patch.

    Attributes:
        made_2RHSE, stored_2RHSE: the patch's own keys and values, and their place in the store.
    """

    k_RSHE: Tensor
    v_RSHE: Tensor
    keys_GEN: Tensor
    values_GNE: Tensor
    scores_GSN: Tensor
    shares_GSN: Tensor
    made_2RHSE: Tensor
    stored_2RHSE: Tensor
    cos_S2HE: Tensor
    sin_S2HE: Tensor

    @classmethod
    def of(
        cls, b: _Buffers, store_3RHNE: Tensor, packed_2Y: Tensor, turns: _Turns, start: int, stop: int
    ) -> _PackedViews:
        stored_2RHNE = store_3RHNE[1:]
        rows, heads, width = (stored_2RHNE.shape[axis] for axis in (1, 2, 4))
        packed_2RHNE = packed_2Y[:, : rows * heads * stop * width].view(2, rows, heads, stop, width)
        packed_2RHNE[..., :start, :].copy_(stored_2RHNE[..., :start, :])
        made_2RHSE = packed_2RHNE[..., start:, :]
        keys_GNE, values_GNE = packed_2RHNE.flatten(1, 2)
        shape = rows * heads, stop - start, stop
        return cls(
            *made_2RHSE.transpose(2, 3),
            keys_GNE.transpose(1, 2),
            values_GNE,
            *(room[: math.prod(shape)].view(shape) for room in (b.scores, b.shares)),
            made_2RHSE,
            stored_2RHNE[..., start:stop, :],
            *(part[start:stop] for part in turns),
        )


class _Buffers:
    """What a pass over patches of one size writes into, and views of it."""

    def __init__(self, engine: Engine, size: int):
        rows, copies, heads, width = engine.rows, engine.copies, engine.heads, engine.head_dim
        channels, dim = engine.weights.embed_CD.shape
        hidden = engine.weights.blocks[0].down_MD.shape[0]
        tokens = rows * size

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=engine.device, dtype=engine.dtype)

        self.y_ZC = empty(tokens // copies, channels)  # of the samples
        self.y_BSC = self.y_ZC.view(-1, size, channels)
        self.e_ZD = empty(tokens // copies, dim)
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
        self.attended_XD = empty(tokens, dim)
        self.attended_RHSE = self.attended_XD.view(rows, size, heads, width).transpose(1, 2)
        on_cpu, scores = engine.device.type == "cpu", tokens * heads * engine.tokens
        self.as_products = (
            engine.dtype == torch.bfloat16 and on_cpu and tokens >= PRODUCTS_FROM and scores <= MOST_SCORES
        )
        if self.as_products:
            self.scores, self.shares = empty(scores), empty(scores)
            self.q_GSE, self.mixed_GSE = (empty(rows * heads, size, width) for _ in range(2))
            self.q_RSHE = self.q_GSE.view(rows, heads, size, width).transpose(1, 2)
            self.mixed_RHSE = self.mixed_GSE.view(rows, heads, size, width)
        self.up_XF, self.hidden_XM = empty(tokens, 2 * hidden), empty(tokens, hidden)
        self.gate_XM, self.value_XM = self.up_XF.chunk(2, -1)
        self.v_XC = empty(tokens, channels)
        self.v_RSC = self.v_XC.view(rows, size, channels)


def _matrix(layer: torch.nn.Linear, dtype: torch.dtype) -> Tensor:
    """A linear layer's matrix as (inputs, outputs): a view, which in memory stays (outputs, inputs)."""
    return layer.weight.to(dtype).t()


def _turns(module: ScaledModule, block: Block, dtype: torch.dtype) -> _Turns:
    """`transformer.rotate` after the gains is turning with the gains in cosines and sines. Queries and keys
    are divided by their norms afterwards, to which turning does nothing. The root of E is in the keys' gain;
    in the queries' the root by which attention divides undoes it."""
    gain_q_1E, gain_k_1E = block.qk_scale
    gain_21E = torch.stack([gain_q_1E, gain_k_1E * module.head_dim**0.5])
    cos_N21E = module.rope_cos * gain_21E
    sin_N21E = module.rope_sin * gain_21E.roll(module.head_dim // 2, -1)
    cos, sin = (each.expand(-1, -1, module.heads, -1).to(dtype).contiguous() for each in (cos_N21E, sin_N21E))
    return _Turns(cos, sin)


def _by_time(grid: Modulation, rows_R: Tensor | None, dtype: torch.dtype) -> list[_Conditioned]:
    """One for each time; `rows_R`: which row of the grid each row takes, None: its own."""
    root = grid.head[0].shape[-1] ** 0.5
    parts = [
        part * root if number in scales else part
        for group, scales in (*((block, (1, 4)) for block in grid.blocks), (grid.head, (1,)))
        for number, part in enumerate(group)
    ]
    by_time_TFR1D = torch.stack(parts).permute(2, 0, 1, 3, 4).to(dtype)
    by_time_TFR1D = by_time_TFR1D.contiguous() if rows_R is None else by_time_TFR1D.index_select(2, rows_R)
    return [_Conditioned.of(one_FR1D) for one_FR1D in by_time_TFR1D]


def is_alone(start: int, size: int) -> bool:
    """Whether a patch is a single token that sees nothing but itself."""
    return start == 0 and size == 1
