"""NestAR beside its peers on ImageNet at 256 x 256: `python -m benchmarks.peers` writes `results/peers.json`.

The peers are timing models written from their papers: the right shapes in the right order, random weights, no
tokenizer. All make 256 tokens per picture with guidance: two rows per picture, also through MAR's head.
Operations are always counted (a test holds the counts to torch's); seconds are taken with `--device cuda`.

- MAR (arXiv 2406.11838): an encoder and a decoder over 64 class tokens and 256 image tokens, 64 or 256
  rounds; in each the encoder sees the known tokens, the decoder all, and an MLP makes the round's new tokens
  in 100 diffusion steps.
- DiT-XL/2 (arXiv 2212.09748): 28 blocks of width 1152 over 256 tokens, 250 or 50 steps.
- xAR (arXiv 2502.20388): 4 cells of 64 tokens one after another, 40 (B) or 50 (L) steps each, earlier cells
  from a cache. The paper gives total sizes; widths 768 and 1024 with 16 and 32 blocks of DiT's parts reach
  them (173 and 608 million).
- NestAR-B and -L (`nestar.registry`), k = 4 and 2, 50 steps of Euler per patch as xAR takes them, through
  the project's own sampler, its passes recorded on a GPU as on the page; L also with 36 of its 48 blocks,
  which is no larger than MAR-L.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import RESULTS, positive, sentences, write_report
from benchmarks.machine import matrix_rate, significant, spread, wait_for
from benchmarks.operations import picture_operations
from benchmarks.speed import FAIR, record
from nestar.checkpoints import resolve_device
from nestar.engines import Engines
from nestar.model import NestAR, NestARConfig
from nestar.registry import imagenet_config
from nestar.sampler import SolverSettings, sample

TOKENS, CHANNELS, CLASSES = 256, 16, 1000
STEPS = 50
"""NestAR's and xAR-L's solver steps per patch."""
SETTINGS = SolverSettings(steps=STEPS, solver="euler", temperature=1.0)
"""NestAR's: one call a step, as its peers' steps are."""
FEWER_BLOCKS = 36
"""Of NestAR-L, for a total size of at most MAR-L's."""
GUIDED = 2
"""Rows of a guided picture."""
BATCHES = (1, 64)


class PlainBlock(nn.Module):
    """A pre-norm transformer block with a GELU MLP of ratio 4; `modulated` adds DiT's adaLN of six parts."""

    def __init__(self, dim: int, heads: int, modulated: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.modulation = nn.Linear(dim, 6 * dim) if modulated else None

    def operations(self, tokens: int, context: int = 0) -> int:
        """One row's pass, as `operations.pass_operations` counts."""
        dim = self.out.in_features
        modulation = 0 if self.modulation is None else 2 * 6 * dim * dim
        return 2 * tokens * 12 * dim * dim + 4 * tokens * (context + tokens) * dim + modulation

    def forward(self, x_BND: Tensor, c_B1D: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        parts = None if self.modulation is None else self.modulation(F.silu(c_B1D)).chunk(6, -1)
        h_BND = self.norms[0](x_BND)
        h_BND = h_BND if parts is None else torch.addcmul(parts[0], h_BND, 1 + parts[1])
        q, k, v = self.qkv(h_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.with_context(self, k, v)
        y_BND = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x_BND = x_BND + y_BND if parts is None else torch.addcmul(x_BND, parts[2], y_BND)
        h_BND = self.norms[1](x_BND)
        h_BND = h_BND if parts is None else torch.addcmul(parts[3], h_BND, 1 + parts[4])
        y_BND = self.down(F.gelu(self.up(h_BND)))
        return x_BND + y_BND if parts is None else torch.addcmul(x_BND, parts[5], y_BND)


class Cache:
    """Keys and values of earlier cells, by block; `keep` says whether a pass adds to them."""

    def __init__(self) -> None:
        self.kept: dict[PlainBlock, tuple[Tensor, Tensor]] = {}
        self.keep = False

    def with_context(self, block: PlainBlock, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if block in self.kept:
            k, v = (torch.cat(pair, 2) for pair in zip(self.kept[block], (k, v), strict=True))
        if self.keep:
            self.kept[block] = (k, v)
        return k, v


class TimeAndClass(nn.Module):
    """DiT's condition: an MLP of 256 sinusoids of the time, and a class vector."""

    def __init__(self, dim: int):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(CLASSES + 1, dim)

    def forward(self, rows: int) -> Tensor:
        device = self.label.weight.device
        waves = torch.ones(rows, 256, device=device, dtype=self.label.weight.dtype)
        return (self.time(waves) + self.label(torch.zeros(rows, dtype=torch.long, device=device)))[:, None]


class Transformer(nn.Module):
    """Blocks between a projection from `channels_in` and one to `channels_out`, conditioned as DiT is."""

    def __init__(self, dim: int, depth: int, heads: int, channels_in: int, channels_out: int):
        super().__init__()
        self.embed, self.head = nn.Linear(channels_in, dim), nn.Linear(dim, channels_out)
        self.condition = TimeAndClass(dim)
        self.position = nn.Parameter(torch.zeros(TOKENS, dim))
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, modulated=True) for _ in range(depth))
        self.norm, self.modulation = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim)

    def pass_operations(self, tokens: int, context: int = 0) -> int:
        dim, channels = self.embed.out_features, self.embed.in_features + self.head.out_features
        condition = 2 * (256 * dim + dim * dim + 2 * dim * dim)
        blocks = sum(block.operations(tokens, context) for block in self.blocks)
        return condition + blocks + 2 * tokens * dim * channels

    def forward(self, x_BNC: Tensor, start: int = 0, cache: Cache | None = None) -> Tensor:
        c_B1D = self.condition(len(x_BNC))
        x_BND = self.embed(x_BNC) + self.position[start : start + x_BNC.shape[1]]
        for block in self.blocks:
            x_BND = block(x_BND, c_B1D, cache)
        shift, scale = self.modulation(F.silu(c_B1D)).chunk(2, -1)
        return self.head(torch.addcmul(shift, self.norm(x_BND), 1 + scale))


class DiffusionHead(nn.Module):
    """MAR's MLP, which makes a token: residual blocks of width `dim` under adaLN of three parts."""

    def __init__(self, dim: int, depth: int, condition: int):
        super().__init__()
        self.embed, self.condition = nn.Linear(CHANNELS, dim), nn.Linear(condition, dim)
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth + 1))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(depth)
        )
        self.modulations = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(depth))
        self.modulation, self.head = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * CHANNELS)

    def operations(self) -> int:
        """One row's diffusion step."""
        dim, condition = self.condition.out_features, self.condition.in_features
        squares = 1 + 5 * len(self.mlps) + 2
        return 2 * dim * (3 * CHANNELS + condition + 256 + squares * dim)

    def forward(self, x_RC: Tensor, z_RD: Tensor) -> Tensor:
        c = F.silu(self.time(z_RD.new_ones(len(z_RD), 256)) + self.condition(z_RD))
        x = self.embed(x_RC)
        for norm, mlp, modulation in zip(self.norms[:-1], self.mlps, self.modulations, strict=True):
            shift, scale, gate = modulation(c).chunk(3, -1)
            x = torch.addcmul(x, gate, mlp(torch.addcmul(shift, norm(x), 1 + scale)))
        shift, scale = self.modulation(c).chunk(2, -1)
        return self.head(torch.addcmul(shift, self.norms[-1](x), 1 + scale))

    def sample(self, z_RD: Tensor, steps: int) -> Tensor:
        x_RC = torch.randn(len(z_RD), CHANNELS, device=z_RD.device, dtype=z_RD.dtype)
        for _ in range(steps):
            x_RC = x_RC + 0.01 * self(x_RC, z_RD)[:, :CHANNELS]  # a step's own arithmetic is next to nothing
        return x_RC


class Mar(nn.Module):
    """Masked autoregression: an encoder of the known tokens, a decoder of all, and a diffusion head."""

    BUFFER = 64

    def __init__(self, dim: int, depth: int, heads: int, head_dim: int, head_depth: int, rounds: int):
        super().__init__()
        self.rounds, self.steps = rounds, 100
        self.embed, self.between = nn.Linear(CHANNELS, dim), nn.Linear(dim, dim)
        self.label = nn.Embedding(CLASSES + 1, dim)
        self.mask = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(2, self.BUFFER + TOKENS, dim))
        self.encoder = nn.ModuleList(PlainBlock(dim, heads, modulated=False) for _ in range(depth))
        self.decoder = nn.ModuleList(PlainBlock(dim, heads, modulated=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.head = DiffusionHead(head_dim, head_depth, dim)

    def known(self) -> list[int]:
        """Tokens that are known before each round, and all at the end: a cosine schedule, one a round at
        least."""
        masked = [TOKENS]
        for step in range(1, self.rounds):
            aim = math.floor(TOKENS * math.cos(math.pi / 2 * step / self.rounds))
            masked.append(max(1, min(masked[-1] - 1, aim)))
        return [TOKENS - value for value in [*masked, 0]]

    def operations(self) -> int:
        """Of a picture."""
        dim, total = self.between.in_features, 0
        for before, after in pairwise(self.known()):
            seen = self.BUFFER + before
            total += 2 * before * CHANNELS * dim + 2 * seen * dim * dim
            total += sum(block.operations(seen) for block in self.encoder)
            total += sum(block.operations(self.BUFFER + TOKENS) for block in self.decoder)
            total += (after - before) * self.steps * self.head.operations()
        return GUIDED * total

    def generate(self, pictures: int) -> None:
        rows, weight = GUIDED * pictures, self.embed.weight
        ids = torch.zeros(rows, dtype=torch.long, device=weight.device)
        tokens = torch.randn(rows, TOKENS, CHANNELS, device=weight.device, dtype=weight.dtype)
        known = self.known()
        for before, after in pairwise(known):
            class_B1D = self.label(ids)[:, None].expand(-1, self.BUFFER, -1)
            x = torch.cat([class_B1D, self.embed(tokens[:, :before])], 1)
            x = self.norms[0](x + self.positions[0, : x.shape[1]])
            for block in self.encoder:
                x = block(x)
            x = self.between(self.norms[1](x))
            x = torch.cat([x, self.mask.expand(rows, TOKENS - before, -1)], 1) + self.positions[1]
            for block in self.decoder:
                x = block(x)
            z = self.norms[2](x)[:, self.BUFFER + before : self.BUFFER + after]
            made = self.head.sample(z.flatten(0, 1), self.steps).unflatten(0, (rows, -1))
            tokens = torch.cat([tokens[:, :before], made, tokens[:, after:]], 1)


class Diffusion(Transformer):
    """A diffusion transformer: all tokens at once, `steps` times."""

    def __init__(self, dim: int, depth: int, heads: int, steps: int):
        super().__init__(
            dim, depth, heads, channels_in=16, channels_out=32
        )  # 2 x 2 patches of 4; and variances
        self.steps = steps

    def operations(self) -> int:
        """Of a picture."""
        return GUIDED * self.steps * self.pass_operations(TOKENS)

    def generate(self, pictures: int) -> None:
        weight = self.embed.weight
        x = torch.randn(GUIDED * pictures, TOKENS, 16, device=weight.device, dtype=weight.dtype)
        for _ in range(self.steps):
            x = x + 0.01 * self(x)[..., :16]


class Cells(Transformer):
    """xAR: cells one after another, each solved in `steps`, earlier ones from a cache."""

    CELLS = 4

    def __init__(self, dim: int, depth: int, heads: int, steps: int):
        super().__init__(dim, depth, heads, CHANNELS, CHANNELS)
        self.steps = steps

    def operations(self) -> int:
        """Of a picture: a cell is solved, and all but the last entered once more for the cache."""
        size = TOKENS // self.CELLS
        passes = [self.steps + (start + size < TOKENS) for start in range(0, TOKENS, size)]
        each = [self.pass_operations(size, start) for start in range(0, TOKENS, size)]
        return GUIDED * sum(times * one for times, one in zip(passes, each, strict=True))

    def generate(self, pictures: int) -> None:
        weight, cache, size = self.embed.weight, Cache(), TOKENS // self.CELLS
        for start in range(0, TOKENS, size):
            x = torch.randn(GUIDED * pictures, size, CHANNELS, device=weight.device, dtype=weight.dtype)
            for _ in range(self.steps):
                x = x + self(x, start, cache) / self.steps
            if start + size < TOKENS:
                cache.keep = True
                self(x, start, cache)
                cache.keep = False


@dataclass(frozen=True)
class Peer:
    """A model to be built and timed. `shape`: what its paper says, in words."""

    name: str
    shape: str
    build: Callable[[], nn.Module]


class Nested(nn.Module):
    """NestAR behind the same call."""

    def __init__(self, config: NestARConfig):
        super().__init__()
        self.model = NestAR(config)
        self.engines: dict[int, Engines] = {}  # by batch

    def operations(self) -> int:
        """Of a picture."""
        return picture_operations(self.model.config, SETTINGS)

    def generate(self, pictures: int) -> None:
        if pictures not in self.engines:  # the run that no clock counts
            self.engines = {pictures: Engines(self.model)}
            record(self.engines[pictures], SETTINGS, pictures)
        ids = torch.zeros(pictures, dtype=torch.long)
        for _ in sample(self.model, ids, range(pictures), SETTINGS, engines=self.engines[pictures]):
            pass


def peers() -> Iterator[Peer]:
    """NestAR first, then MAR, DiT and xAR."""
    for size, blocks in (("b", None), ("l", None), ("l", FEWER_BLOCKS)):
        for k in (4, 2):
            config = imagenet_config(size, k)
            config = replace(config, blocks=blocks or config.blocks)
            name = f"NestAR-{size.upper()}" + (f" of {blocks} blocks" if blocks else "")
            patches = f"{config.nesting.evaluations} patches of {STEPS} steps"
            depths = "/".join(map(str, config.depths))
            shape = f"{config.blocks} blocks of {config.dim} ({depths}), {patches}"
            yield Peer(f"{name}, k = {k}", shape, lambda config=config: Nested(config))
    for name, sizes in (("B", (768, 12, 12, 1024, 6)), ("L", (1024, 16, 16, 1280, 8))):
        for rounds in (64, 256):
            shape = f"2 x {sizes[1]} blocks of {sizes[0]}, {rounds} rounds, head of {sizes[4]} x {sizes[3]}"
            yield Peer(
                f"MAR-{name}, {rounds} rounds", shape, lambda sizes=sizes, rounds=rounds: Mar(*sizes, rounds)
            )
    for steps in (250, 50):
        yield Peer(
            f"DiT-XL/2, {steps} steps",
            f"28 blocks of 1152, {steps} steps",
            lambda steps=steps: Diffusion(1152, 28, 16, steps),
        )
    for name, (dim, depth, heads, steps) in (("B", (768, 16, 12, 40)), ("L", (1024, 32, 16, 50))):
        yield Peer(
            f"xAR-{name}",
            f"{depth} blocks of {dim}, 4 cells of {steps} steps",
            lambda dim=dim, depth=depth, heads=heads, steps=steps: Cells(dim, depth, heads, steps),
        )


def seconds(model: nn.Module, pictures: int, device: torch.device, runs: int) -> list[float]:
    taken = []
    for _ in range(runs + 1):
        wait_for(device)
        began = time.perf_counter()
        with torch.inference_mode() if not isinstance(model, Nested) else nullcontext():
            model.generate(pictures)
        wait_for(device)
        taken.append(time.perf_counter() - began)
    return taken[1:]


def measure(device: torch.device | None, runs: int) -> dict[str, Any]:
    """A row a peer: parameters, operations, and with a device its seconds in bf16."""
    rows: list[dict[str, Any]] = []
    rate = matrix_rate(device, torch.bfloat16) if device else None
    for peer in peers():
        print(f"\r\033[K{peer.name}", end="", file=sys.stderr, flush=True)
        with torch.device("meta"):
            model = peer.build()
        row: dict[str, Any] = {
            "name": peer.name,
            "shape": peer.shape,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "operations": model.operations(),
        }
        if device is not None and rate is not None:
            with torch.device(device):
                model = peer.build().to(torch.bfloat16).eval()
            row["batches"] = {}
            for pictures in BATCHES:
                found = spread(seconds(model, pictures, device, runs))
                share = pictures * row["operations"] / found["median"] / rate
                row["batches"][str(pictures)] = {
                    "seconds": found,
                    "share_of_matrix_rate": significant(share, 3),
                }
            del model
        rows.append(row)
    print("\r\033[K", end="", file=sys.stderr)
    return {
        "device": str(device) if device else None,
        "runs": runs if device else None,
        "matrix_teraoperations_per_second": significant(rate / 1e12) if rate else None,
        "rows": rows,
        "ratios": ratios(rows),
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many times NestAR's operations, and seconds at each batch, every peer takes. A peer that reaches
    less than FAIR of NestAR's own share of the matrix rate is marked: it may be built badly."""
    found: dict[str, dict[str, Any]] = {}
    for own in rows:
        if not own["name"].startswith("NestAR"):
            continue
        for other in rows:
            if other["name"].startswith("NestAR"):
                continue
            each: dict[str, Any] = {"operations": significant(other["operations"] / own["operations"], 3)}
            for batch, theirs in other.get("batches", {}).items():
                mine = own["batches"][batch]
                fair = theirs["share_of_matrix_rate"] >= FAIR * mine["share_of_matrix_rate"]
                times = theirs["seconds"]["median"] / mine["seconds"]["median"]
                each[f"seconds_at_batch_{batch}"] = significant(times, 3)
                each[f"fair_at_batch_{batch}"] = fair
            found.setdefault(own["name"], {})[other["name"]] = each
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("none", "cuda", "cpu"), default="none", help="none: count only")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    arguments = parser.parse_args()
    with sentences(parser):
        device = None if arguments.device == "none" else resolve_device(arguments.device)
    report = measure(device, arguments.runs)
    write_report(arguments.out, report)
    for row in report["rows"]:
        print(
            f"{row['name']:22} {row['parameters'] / 1e6:7.0f} M {row['operations'] / 1e12:8.2f} T operations"
        )
        for batch, own in row.get("batches", {}).items():
            share = own["share_of_matrix_rate"]
            print(f"    {batch} at a time: {own['seconds']['median']:.4g} s, {share:.0%} of the matrix rate")


if __name__ == "__main__":
    main()
