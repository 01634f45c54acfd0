"""A scaled module's network: a velocity transformer with block-causal attention and an explicit KV cache.

Dimension suffixes: B rows, P patches, N tokens, C token channels, D width, H heads, E head channels, M hidden
channels; G groups of S tokens that share a modulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 8 / 3  # SwiGLU's usual ratio: as many parameters as a plain MLP of ratio 4
ROPE_BASE = 100.0  # wavelengths from about 6 to 600 tokens: grids are small
TIME_FREQUENCIES = 64


class KVCache:
    """Keys and values of the tokens a module has already seen as clean context.

    Everything is allocated once. A patch being solved writes its keys and values behind the context at
    each evaluation without moving `length`; only `keep` makes them part of the context.
    """

    def __init__(self, depth: int, rows: int, heads: int, tokens: int, head_dim: int, *,
                 device: torch.device | str, dtype: torch.dtype):
        self.store = torch.zeros(depth, 2, rows, heads, tokens, head_dim, device=device, dtype=dtype)
        self.length = 0

    def write(self, block: int, k_BHNE: Tensor, v_BHNE: Tensor) -> tuple[Tensor, Tensor]:
        """Put a patch's keys and values behind the context; returns those of context and patch together."""
        stop = self.length + k_BHNE.shape[2]
        store = self.store[block]
        store[0, :, :, self.length : stop] = k_BHNE
        store[1, :, :, self.length : stop] = v_BHNE
        return store[0, :, :, :stop], store[1, :, :, :stop]

    def keep(self, tokens: int) -> None:
        """Make the last written `tokens` part of the context."""
        self.length += tokens


class Block(nn.Module):
    """Attention and SwiGLU behind RMSNorm, each modulated and gated by time and class (adaLN)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        hidden = int(MLP_RATIO * dim)
        self.norm_attention = nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q = nn.RMSNorm(dim // heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(dim // heads, eps=1e-6)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm_mlp = nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.modulation = nn.Parameter(torch.zeros(6, dim))  # this block's offset to the module's adaLN

    def forward(self, x_BGSD: Tensor, shared_BG16D: Tensor, rope: tuple[Tensor, Tensor],
                mask_NN: Tensor | None, cache: KVCache | None, number: int) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (shared_BG16D + self.modulation).unbind(3)
        h_BGSD = self.norm_attention(x_BGSD) * (1 + scale_a) + shift_a
        qkv_BN3HE = self.qkv(h_BGSD).flatten(1, 2).unflatten(2, (3, self.heads, -1))
        q_BHNE, k_BHNE, v_BHNE = qkv_BN3HE.permute(2, 0, 3, 1, 4)
        q_BHNE, k_BHNE = rotate(self.norm_q(q_BHNE), rope), rotate(self.norm_k(k_BHNE), rope)
        if cache is not None:
            k_BHNE, v_BHNE = cache.write(number, k_BHNE, v_BHNE)
        y_BHNE = F.scaled_dot_product_attention(q_BHNE.to(v_BHNE.dtype), k_BHNE.to(v_BHNE.dtype), v_BHNE,
                                                attn_mask=mask_NN)
        y_BGSD = y_BHNE.transpose(1, 2).reshape(x_BGSD.shape)
        x_BGSD = x_BGSD + gate_a * self.out(y_BGSD)
        h_BGSD = self.norm_mlp(x_BGSD) * (1 + scale_m) + shift_m
        gate_BGSM, value_BGSM = self.up(h_BGSD).chunk(2, dim=-1)
        return x_BGSD + gate_m * self.down(F.silu(gate_BGSM) * value_BGSM)


class ScaledModule(nn.Module):
    """The velocity network of one scale (paper section 3; block design after DiT and xAR).

    adaLN from time and class is one projection shared by the module's blocks, each with an offset of its
    own (PixArt-alpha's adaLN-single): six-fold fewer parameters than one per block, so that members of a
    family with one and with six modules stay within the same total size.

    Args:
        positions: (row, col) of every token this module can see, in sequence order.
        channels: channels of a token.
        classes: number of classes; index `classes` stands for "no class" (guidance).
    """

    def __init__(self, positions: Sequence[tuple[int, int]], *, channels: int, classes: int, dim: int,
                 depth: int, heads: int, cond_dim: int):
        super().__init__()
        self.depth, self.heads, self.head_dim = depth, heads, dim // heads
        self.classes = classes
        self.embed = nn.Linear(channels, dim)
        self.position = nn.Parameter(torch.randn(len(positions), dim) * 0.02)
        self.time = nn.Sequential(nn.Linear(TIME_FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))
        self.label = nn.Embedding(classes + 1, cond_dim)
        self.modulation = nn.Linear(cond_dim, 6 * dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(cond_dim, 2 * dim)
        self.head = nn.Linear(dim, channels)
        cos_NE, sin_NE = axial_rope(positions, self.head_dim)
        self.register_buffer("rope_cos", cos_NE, persistent=False)
        self.register_buffer("rope_sin", sin_NE, persistent=False)
        nn.init.normal_(self.label.weight, std=0.02)
        for layer in (self.modulation, self.final_modulation, self.head):  # adaLN-zero: starts as identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def condition(self, t: Tensor, class_ids_B: Tensor) -> tuple[Tensor, Tensor]:
        """Modulation from time and class, (B, P, 6, D) for the blocks and (B, P, 2, D) for the head.

        Args:
            t: (B, P), the time of every patch of every row.
        """
        half = TIME_FREQUENCIES // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(1000) / (half - 1)))
        angles_BPF = 1000 * t.float()[..., None] * frequencies
        waves_BPF = torch.cat([angles_BPF.cos(), angles_BPF.sin()], -1).to(self.embed.weight.dtype)
        c_BPD = F.silu(self.time(waves_BPF) + self.label(class_ids_B)[:, None])
        return (self.modulation(c_BPD).unflatten(-1, (6, -1)),
                self.final_modulation(c_BPD).unflatten(-1, (2, -1)))

    def forward(self, y_BNC: Tensor, t_BP: Tensor, class_ids_B: Tensor, sizes: Sequence[int]) -> Tensor:
        """Velocities of all tokens in one pass, block-causal: what training uses.

        Args:
            y_BNC: the first N tokens in sequence order, noised; t_BP: each patch's time.
            sizes: tokens of each of the P patches; they add up to N.
        """
        blocks_BP6D, final_BP2D = self.condition(t_BP, class_ids_B)
        patch_N = patch_of_token(tuple(sizes)).to(y_BNC.device)
        if len(set(sizes)) > 1:  # a short last patch: every token becomes a group of its own
            blocks_BP6D, final_BP2D = blocks_BP6D[:, patch_N], final_BP2D[:, patch_N]
        mask_NN = patch_N[:, None] >= patch_N[None, :] if len(sizes) > 1 else None
        return self._run(y_BNC, 0, blocks_BP6D, final_BP2D, mask_NN, None)

    def velocity(self, y_BNC: Tensor, condition: tuple[Tensor, Tensor], cache: KVCache) -> Tensor:
        """Velocity of the patch that follows the cached context; `condition` has P = 1."""
        return self._run(y_BNC, cache.length, *condition, None, cache)

    def remember(self, x_BNC: Tensor, condition: tuple[Tensor, Tensor], cache: KVCache) -> None:
        """Enter finished tokens once as context; `condition` is that of t = 1."""
        self._run(x_BNC, cache.length, *condition, None, cache)
        cache.keep(x_BNC.shape[1])

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for `rows` rows, on this module's device and in its dtype."""
        weight = self.embed.weight
        return KVCache(self.depth, rows, self.heads, len(self.position), self.head_dim,
                       device=weight.device, dtype=weight.dtype)

    def _run(self, y_BNC: Tensor, start: int, shared_BG6D: Tensor, final_BG2D: Tensor,
             mask_NN: Tensor | None, cache: KVCache | None) -> Tensor:
        """Tokens run as G groups of S, so that a group's modulation is broadcast and never copied."""
        stop = start + y_BNC.shape[1]
        x_BND = self.embed(y_BNC.to(self.embed.weight.dtype)) + self.position[start:stop]
        x_BGSD = x_BND.unflatten(1, (shared_BG6D.shape[1], -1))
        rope = (self.rope_cos[start:stop], self.rope_sin[start:stop])
        for number, block in enumerate(self.blocks):
            x_BGSD = block(x_BGSD, shared_BG6D[:, :, None], rope, mask_NN, cache, number)
        shift_BG1D, scale_BG1D = final_BG2D[:, :, None].unbind(3)
        return self.head(self.norm(x_BGSD) * (1 + scale_BG1D) + shift_BG1D).flatten(1, 2).float()


@lru_cache(maxsize=256)
def patch_of_token(sizes: tuple[int, ...]) -> Tensor:
    """The number (from 0) of the patch that each token belongs to, (N,)."""
    return torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])


def axial_rope(positions: Sequence[tuple[int, int]], head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, head_dim) of a 2-D rotary embedding: half of the channels turn with the row,
    half with the column of each token's true grid position."""
    quarter = head_dim // 4
    frequencies_Q = ROPE_BASE ** (-torch.arange(quarter) / quarter)
    places_N2 = torch.tensor(positions, dtype=torch.float32).view(-1, 2)
    angles_NE = (places_N2[:, :, None] * frequencies_Q).flatten(1).repeat(1, 2)  # (N, 2Q) twice: halves pair up
    return angles_NE.cos(), angles_NE.sin()


def rotate(x_BHNE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (e, e + E/2) by the angles of `rope`."""
    cos_NE, sin_NE = rope
    first, second = x_BHNE.chunk(2, dim=-1)
    return x_BHNE * cos_NE + torch.cat([-second, first], dim=-1) * sin_NE
