"""Named configurations at the paper's own shape: ImageNet at 256 x 256, as 16 x 16 tokens of 16 channels.

The paper gives no widths. Ours put the total size, which the modules share evenly, beside that of xAR, its
closest relative (XAR_MILLIONS; S is in DiT-S's range). Depths are multiples of 24,
so that the blocks split evenly over 8, 4, 3 and 2 modules (k = 2, 4, 8, 16).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nestar.model import NestARConfig
from nestar.nesting import Nesting

SIDE = 16
"""Tokens along a side: 256 pixels through a tokenizer of stride 16."""
CHANNELS = 16
"""Channels of a token of MAR's KL-16."""
CLASSES = 1000
FACTORS = (2, 4, 8, 16)
DEFAULT_FACTOR = 4
XAR_MILLIONS: Mapping[str, int] = {"b": 172, "l": 608, "h": 1190}
"""Parameters of xAR's sizes of the same letters, in millions (arXiv 2502.20388)."""


@dataclass(frozen=True)
class Size:
    """Width, heads, blocks over all modules, and width of the time and class embedding."""

    dim: int
    heads: int
    blocks: int
    cond_dim: int


SIZES: Mapping[str, Size] = {
    "s": Size(dim=384, heads=6, blocks=24, cond_dim=128),
    "b": Size(dim=768, heads=12, blocks=24, cond_dim=192),
    "l": Size(dim=1024, heads=16, blocks=48, cond_dim=256),
    "h": Size(dim=1440, heads=20, blocks=48, cond_dim=256),
}


def imagenet_config(size: str, k: int = DEFAULT_FACTOR) -> NestARConfig:
    """NestAR-S, -B, -L or -H at 16 x 16 x 16, with nesting factor k.

    Raises:
        ValueError: no such size, or k is none of FACTORS.
    """
    if size not in SIZES:
        raise ValueError(f"Unknown size {size!r}: allowed are {', '.join(SIZES)}.")
    if k not in FACTORS:
        raise ValueError(f"k must be one of {', '.join(map(str, FACTORS))}, got {k!r}.")
    shape = SIZES[size]
    return NestARConfig(
        Nesting.nested(SIDE, SIDE, k),
        channels=CHANNELS,
        classes=CLASSES,
        dim=shape.dim,
        heads=shape.heads,
        blocks=shape.blocks,
        cond_dim=shape.cond_dim,
    )


CONFIGURATIONS: Mapping[str, NestARConfig] = {
    **{f"imagenet256-{size}": imagenet_config(size) for size in SIZES},
    **{f"imagenet256-{size}-k{k}": imagenet_config(size, k) for size in SIZES for k in FACTORS},
}
"""Every size and factor by name, such as `imagenet256-l-k2`; `imagenet256-l` has the default factor."""
