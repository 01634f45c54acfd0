"""A scaled module's network: a velocity transformer with block-causal attention. This is the definition, and
what training differentiates through; `engine` computes the same patch after patch behind a KV cache.

Dimension suffixes: B rows, P patches, N tokens, C token channels, D width, H heads, E head channels, M hidden
channels; G groups of S tokens that share a modulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MLP_RATIO = 8 / 3  # SwiGLU's usual ratio: as many parameters as a plain MLP of ratio 4
ROPE_BASE = 100.0  # at heads of 32, wavelengths from about 6 to 350 tokens: grids are small
TIME_FREQUENCIES = 64
RMS_EPSILON = 1e-6


def mlp_width(dim: int) -> int:
    """Hidden channels of a SwiGLU at MLP_RATIO, a multiple of eight: rows that do not begin at sixteen bytes
    are slow for a GPU's matrix products."""
    return 8 * math.ceil(int(MLP_RATIO * dim) / 8)


@dataclass(frozen=True)
class Modulation:
    """What time and class do to a module (adaLN), for G groups of tokens; every tensor is (B, G, 1, D).

    Attributes:
        blocks: for each block: shift, 1 + scale and gate of attention, then of the MLP.
        head: shift and 1 + scale before the head.
    """

    blocks: tuple[tuple[Tensor, ...], ...]
    head: tuple[Tensor, ...]

    def at(self, groups: Tensor | slice) -> Modulation:
        """The modulation of the groups picked, one after another."""
        blocks = tuple(tuple(part[:, groups] for part in block) for block in self.blocks)
        return Modulation(blocks, tuple(part[:, groups] for part in self.head))


class Context(NamedTuple):
    """Tokens that later patches see as conditions, the sequence's first: clean (t = 1) or noised."""

    x_BNC: Tensor
    t_BP: Tensor


class Block(nn.Module):
    """Attention and SwiGLU behind RMSNorm, each modulated and gated by time and class (adaLN)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        hidden = mlp_width(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.qk_scale = nn.Parameter(torch.ones(2, 1, dim // heads))
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.modulation = nn.Parameter(torch.zeros(6, dim))  # this block's offset to the module's adaLN

    def forward(
        self,
        x_BGSD: Tensor,
        modulation: tuple[Tensor, ...],
        rope: tuple[Tensor, Tensor],
        mask_NN: Tensor | None,
    ) -> Tensor:
        # addcmul(a, b, c) is a + b c in one operation.
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        h_BGSD = torch.addcmul(shift_a, rms_norm(x_BGSD), scale_a)
        qkv_BN3HE = self.qkv(h_BGSD).flatten(1, 2).unflatten(2, (3, self.heads, -1))
        qk_BN2HE = rotate(rms_norm(qkv_BN3HE[:, :, :2]) * self.qk_scale, rope).to(qkv_BN3HE.dtype)
        q_BHNE, k_BHNE = qk_BN2HE.permute(2, 0, 3, 1, 4)
        v_BHNE = qkv_BN3HE[:, :, 2].transpose(1, 2)
        y_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=mask_NN)
        y_BGSD = y_BHNE.transpose(1, 2).reshape(x_BGSD.shape)
        x_BGSD = torch.addcmul(x_BGSD, gate_a, self.out(y_BGSD))
        h_BGSD = torch.addcmul(shift_m, rms_norm(x_BGSD), scale_m)
        gate_BGSM, value_BGSM = self.up(h_BGSD).chunk(2, dim=-1)
        return torch.addcmul(x_BGSD, gate_m, self.down(F.silu(gate_BGSM) * value_BGSM))


class ScaledModule(nn.Module):
    """The velocity network of one scale (paper section 3; block design after DiT and xAR).

    adaLN from time and class is one projection shared by the module's blocks, each with an offset of its
    own (PixArt-alpha's adaLN-single): of the parameters that one per block would take, a part as small as
    the module has blocks.

    Args:
        positions: (row, col) of every token this module can see, in sequence order.
        channels: channels of a token.
        classes: number of classes; index `classes` stands for "no class" (guidance).
    """

    def __init__(
        self,
        positions: Sequence[tuple[int, int]],
        *,
        channels: int,
        classes: int,
        dim: int,
        depth: int,
        heads: int,
        cond_dim: int,
    ):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.checkpoints = False  # True: a backward pass runs each block again and keeps its input alone
        self.embed = nn.Linear(channels, dim)
        self.position = nn.Parameter(torch.randn(len(positions), dim) * 0.02)
        self.time = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )
        self.label = nn.Embedding(classes + 1, cond_dim)
        self.modulation = nn.Linear(cond_dim, 6 * dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.final_modulation = nn.Linear(cond_dim, 2 * dim)
        self.head = nn.Linear(dim, channels)
        cos_NE, sin_NE = axial_rope(positions, self.head_dim)
        self.register_buffer("rope_cos", cos_NE, persistent=False)
        self.register_buffer("rope_sin", sin_NE, persistent=False)
        nn.init.normal_(self.label.weight, std=0.02)
        for layer in (self.modulation, self.final_modulation, self.head):  # adaLN-zero: starts as identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def condition(self, t: Tensor, class_ids_B: Tensor) -> Modulation:
        """Modulation from time and class.

        Args:
            t: (B, P) or (1, P), a time for each group of tokens; sampling conditions its whole time grid at
                once, a time for each group.
        """
        half = TIME_FREQUENCIES // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(1000) / (half - 1)))
        angles_BPF = 1000 * t.float()[..., None] * frequencies
        waves_BPF = torch.cat([angles_BPF.cos(), angles_BPF.sin()], -1).to(self.embed.weight.dtype)
        c_BPD = F.silu(self.time(waves_BPF) + self.label(class_ids_B)[:, None])
        shared_BP16D = self.modulation(c_BPD).unflatten(-1, (1, 6, -1))
        head_BP12D = self.final_modulation(c_BPD).unflatten(-1, (1, 2, -1))
        one = torch.ones_like(self.position[0])
        zero = torch.zeros_like(one)
        rest_6D, rest_2D = torch.stack([zero, one, zero] * 2), torch.stack([zero, one])  # scales rest at 1
        blocks = tuple((shared_BP16D + (block.modulation + rest_6D)).unbind(3) for block in self.blocks)
        return Modulation(blocks, (head_BP12D + rest_2D).unbind(3))

    def forward(
        self,
        y_BNC: Tensor,
        t_BP: Tensor,
        class_ids_B: Tensor,
        sizes: Sequence[int],
        context: Context | None = None,
    ) -> Tensor:
        """Velocities of several patches in one pass: what training uses.

        Without `context` the patches stand in one stream, block-causal: each sees itself and the noised
        patches before it. With it each sees itself and the context patches before it, which is what
        sampling shows it; noised patches do not see each other.

        Args:
            y_BNC: noised tokens of the last P of the patches in `sizes`; t_BP: each of these patches' time.
            sizes: tokens of each patch, from the first on; without context there are P.
            context: all patches but the last, as conditions.
        """
        if context is None:
            index_N, group_N, mask_NN = _causal_layout(tuple(sizes), y_BNC.device)
            modulation = self.condition(t_BP, class_ids_B)
        else:
            index_N, group_N, mask_NN = _context_layout(tuple(sizes), t_BP.shape[1], y_BNC.device)
            modulation = self.condition(torch.cat([context.t_BP, t_BP], 1), class_ids_B)
            y_BNC = torch.cat([context.x_BNC, y_BNC], 1)
        if len(set(sizes)) > 1:  # a short last patch: every token becomes a group of its own
            modulation = modulation.at(group_N)
        v_BNC = self._run(y_BNC, index_N, modulation, mask_NN)
        return v_BNC if context is None else v_BNC[:, context.x_BNC.shape[1] :]

    def _run(self, y_BNC: Tensor, index_N: Tensor, modulation: Modulation, mask_NN: Tensor | None) -> Tensor:
        """Tokens run as G groups of S, so that a group's modulation is broadcast and never copied.
        `index_N` are the tokens' places in the sequence."""
        x_BND = self.embed(y_BNC.to(self.embed.weight.dtype)) + self.position[index_N]
        shift_BG1D, scale_BG1D = modulation.head
        x_BGSD = x_BND.unflatten(1, (shift_BG1D.shape[1], -1))
        rope = (self.rope_cos[index_N], self.rope_sin[index_N])
        for block, own in zip(self.blocks, modulation.blocks, strict=True):
            run = block
            if self.checkpoints and torch.is_grad_enabled():
                run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            x_BGSD = run(x_BGSD, own, rope, mask_NN)
        return self.head(torch.addcmul(shift_BG1D, rms_norm(x_BGSD), scale_BG1D)).flatten(1, 2).float()


def rms_norm(x: Tensor) -> Tensor:
    """x over its root mean square along the last dimension. Three operations, where torch's own RMSNorm
    takes nine on a CPU: one picture is some thousand small network passes."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.rsub(norm, RMS_EPSILON, alpha=-(x.shape[-1] ** -0.5))  # eps + norm / sqrt(D)


# Layouts are made on the CPU and kept on the device that asks, so that no pass waits for a copy; outside of
# inference mode, whoever asks first: its tensors could not be saved for a later backward pass.
_CPU = torch.device("cpu")


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def patch_of_token(sizes: tuple[int, ...], device: torch.device = _CPU) -> Tensor:
    """The number (from 0) of the patch that each token belongs to, (N,), on `device`."""
    return torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)]).to(device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _causal_layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Place in the sequence (N,), group (N,) and attention mask (N, N) of patches in one stream."""
    patch_N = patch_of_token(sizes)
    mask_NN = (patch_N[:, None] >= patch_N[None, :]).to(device) if len(sizes) > 1 else None
    return torch.arange(len(patch_N)).to(device), patch_N.to(device), mask_NN


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _context_layout(
    sizes: tuple[int, ...], noised: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same for all patches but the last as context, followed by the last `noised` patches.

    Of three patches A, B, C with two noised the tokens are A B | b c: B stands there twice, as C sees it and
    as it is learned. b sees A and itself, c sees A, B and itself; context sees what came before it and its
    own patch. Groups are A B b c: each has a time of its own.
    """
    patch_N = patch_of_token(sizes)
    last, first = len(sizes) - 1, len(sizes) - noised
    context_N, noised_N = patch_N < last, patch_N >= first
    patch_N = torch.cat([patch_N[context_N], patch_N[noised_N]])
    is_context_N = torch.arange(len(patch_N)) < context_N.sum()
    index_N = torch.cat([context_N.nonzero()[:, 0], noised_N.nonzero()[:, 0]])
    group_N = torch.where(is_context_N, patch_N, patch_N - first + last)
    query_N1, key_1N = patch_N[:, None], patch_N[None, :]
    sees_context_NN = (key_1N < query_N1) | ((key_1N == query_N1) & is_context_N[:, None])
    sees_itself_NN = (key_1N == query_N1) & ~is_context_N[:, None]
    mask_NN = torch.where(is_context_N[None, :], sees_context_NN, sees_itself_NN)
    return index_N.to(device), group_N.to(device), None if mask_NN.all() else mask_NN.to(device)


def axial_rope(positions: Sequence[tuple[int, int]], head_dim: int) -> tuple[Tensor, Tensor]:
    """A 2-D rotary embedding: half of the channels turn with the row, half with the column of each token's
    true grid position. Returns cosines and signed sines for `rotate`, each (N, 1, 1, head_dim)."""
    quarter = head_dim // 4
    frequencies_Q = ROPE_BASE ** (-torch.arange(quarter) / quarter)
    places_N2 = torch.tensor(positions, dtype=torch.float32).view(-1, 2)
    angles_NF = (places_N2[:, :, None] * frequencies_Q).flatten(1)
    cos_NE = torch.cat([angles_NF.cos(), angles_NF.cos()], 1)
    sin_NE = torch.cat([-angles_NF.sin(), angles_NF.sin()], 1)
    return cos_NE[:, None, None], sin_NE[:, None, None]


def rotate(x_BN2HE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (e, e + E/2) of queries and keys by the angles of `rope`."""
    cos_N11E, sin_N11E = rope
    return torch.addcmul(x_BN2HE * cos_N11E, x_BN2HE.roll(x_BN2HE.shape[-1] // 2, -1), sin_N11E)
