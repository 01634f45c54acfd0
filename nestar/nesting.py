"""The nesting: how n tokens are split into scaled modules and patches, and how the grid is ordered.

Definition after "Nested AutoRegressive Models" (Wu, Fan, Wu, Cao, arXiv 2510.23028, section on scaled
modules): a nesting with factor k has M = ceil(log_k n) scaled modules. Module 1 generates x_1 ... x_k one
token at a time; module m > 1 takes x_1 ... x_{p_m}, p_m = k^(m-1), as its first patch and generates patches
2 ... k of p_m tokens each. Where n is no power of k, the last module has fewer patches and its last patch may
be short.

Plain autoregression, cells (as in xAR) and one-shot flow are nestings of one module. Standard library only.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

KINDS = ("nested", "autoregressive", "cells", "one-shot")
# The token orders each kind may use.
ORDERS_OF_KIND = {
    "nested": ("lattice", "raster"),
    "autoregressive": ("lattice", "raster"),
    "cells": ("blocks",),
    "one-shot": ("raster",),
}
ORDERS = ("lattice", "raster", "blocks")

Position = tuple[int, int]  # (row, column)


@dataclass(frozen=True)
class Patch:
    """Tokens `start ... stop - 1` of the sequence; `module` and `index` count from 1."""

    module: int
    index: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class Scale:
    """One scaled module: all patches it is trained on. Beyond number 1, patch 1 is context taken over."""

    number: int
    patches: tuple[Patch, ...]

    @property
    def generated(self) -> tuple[Patch, ...]:
        """The patches this module samples."""
        return self.patches if self.number == 1 else self.patches[1:]

    @property
    def tokens(self) -> int:
        """Tokens that stand once this module is done."""
        return self.patches[-1].stop


@dataclass(frozen=True)
class Nesting:
    """A split of a height x width token grid into scaled modules; build it with one of the class methods.

    Attributes:
        height, width: the token grid, n = height * width.
        kind: "nested", "autoregressive", "cells" or "one-shot".
        k: nesting factor of a nested kind; of the one-module kinds, the number of patches.
        order: "lattice", "raster" or "blocks", see `token_order`.

    Raises:
        ValueError: a field is out of range or the fields do not go together.
    """

    height: int
    width: int
    kind: str
    k: int
    order: str

    def __post_init__(self) -> None:
        _check_integer("height", self.height, 1)
        _check_integer("width", self.width, 1)
        _check_choice("kind", self.kind, KINDS)
        _check_choice(f"order of a nesting of kind {self.kind}", self.order, ORDERS_OF_KIND[self.kind])
        if self.kind == "nested":
            _check_integer("k", self.k, 2)
        elif self.kind == "cells":
            _check_integer("count of cells", self.k, 1)
            _cell_grid(self.height, self.width, self.k)
        else:
            patches = self.n if self.kind == "autoregressive" else 1
            if type(self.k) is not int or self.k != patches:
                raise ValueError(
                    f"k of kind {self.kind} must be its number of patches {patches}, got {self.k!r}."
                )

    @classmethod
    def nested(cls, height: int, width: int, k: int, order: str = "lattice") -> Nesting:
        """The paper's nesting with factor k >= 2; k >= n gives one module."""
        return cls(height, width, "nested", k, order)

    @classmethod
    def autoregressive(cls, height: int, width: int, order: str = "raster") -> Nesting:
        """Plain autoregression: one module, n patches of one token."""
        _check_integer("height", height, 1)
        _check_integer("width", width, 1)
        return cls(height, width, "autoregressive", height * width, order)

    @classmethod
    def cells(cls, height: int, width: int, count: int) -> Nesting:
        """Cells as in xAR: one module, `count` contiguous rectangles of near-equal shape."""
        return cls(height, width, "cells", count, "blocks")

    @classmethod
    def one_shot(cls, height: int, width: int) -> Nesting:
        """One-shot flow (diffusion): one module, one patch of n tokens."""
        return cls(height, width, "one-shot", 1, "raster")

    @property
    def n(self) -> int:
        """Tokens in the grid."""
        return self.height * self.width

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """The scaled modules, first to last."""
        if self.kind == "cells":
            sizes = [len(cell) for cell in _cells(self.height, self.width, self.k)]
            return (_one_module(sizes),)
        if self.kind == "one-shot":
            return (_one_module([self.n]),)
        return _nested_scales(self.n, self.k) if self.k > 1 else (_one_module([1]),)

    @property
    def modules(self) -> int:
        """M, the number of scaled modules."""
        return len(self.scales)

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """Grid position (row, column) of each token, in sequence order."""
        if self.order == "blocks":
            return tuple(position for cell in _cells(self.height, self.width, self.k) for position in cell)
        return token_order(self.height, self.width, self.order)

    @cached_property
    def flat(self) -> tuple[int, ...]:
        """Row-major grid index of each token, in sequence order."""
        return tuple(row * self.width + column for row, column in self.positions)

    @cached_property
    def patches(self) -> tuple[Patch, ...]:
        """The generated patches in sampling order; they cover the sequence once."""
        return tuple(patch for scale in self.scales for patch in scale.generated)

    @property
    def evaluations(self) -> int:
        """E, patches made one after another: k + (M-1)(k-1) for n = k^M."""
        return len(self.patches)

    @property
    def context_passes(self) -> int:
        """Passes that enter clean tokens as context.

        Module 1: one after each patch but its last. Module m > 1: one for what it takes over, then one after
        each generated patch but its last.
        """
        return sum(len(scale.patches) - 1 for scale in self.scales)

    @property
    def tokens_processed(self) -> int:
        """Tokens entering a network when each generated patch is evaluated once and context enters once."""
        return self.n + sum(scale.patches[-1].start for scale in self.scales)

    @property
    def name(self) -> str:
        """Short identifier: "k4-lattice", "ar-raster", "cells16-blocks" or "one-shot"."""
        if self.kind == "one-shot":
            return self.kind
        prefix = {"nested": f"k{self.k}", "autoregressive": "ar", "cells": f"cells{self.k}"}[self.kind]
        return f"{prefix}-{self.order}"

    def function_evaluations(self, steps: int, calls_per_step: int = 1) -> int:
        """Sequential network calls at `steps` solver steps per patch; guidance doubles the batch alone."""
        _check_integer("steps", steps, 1)
        _check_integer("calls_per_step", calls_per_step, 1)
        return self.evaluations * steps * calls_per_step + self.context_passes

    def to_dict(self) -> dict[str, int | str]:
        """The five fields, ready for JSON."""
        return {field: getattr(self, field) for field in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, fields: Mapping[str, int | str]) -> Nesting:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        if not isinstance(fields, Mapping) or set(fields) != set(cls.__dataclass_fields__):
            got = ", ".join(map(str, fields)) if isinstance(fields, Mapping) else type(fields).__name__
            raise ValueError(f"A nesting has the fields {', '.join(cls.__dataclass_fields__)}; got {got}.")
        return cls(**fields)


@lru_cache(maxsize=32)
def token_order(height: int, width: int, order: str) -> tuple[Position, ...]:
    """Grid positions (row, column) in the order in which they are generated.

    "raster": row by row. "lattice": coarse to fine, by ordered dither (Bayer) on square grids whose side is a
    power of two, by farthest points on all others.

    Raises:
        ValueError: unknown order.
    """
    if order == "raster":
        return tuple((row, column) for row in range(height) for column in range(width))
    if order == "lattice":
        if height == width and height & (height - 1) == 0:
            return _bayer_order(height)
        return _farthest_point_order(height, width)
    raise ValueError(f"order of a token grid must be one of lattice, raster; got {order!r}.")


def _bayer_order(side: int) -> tuple[Position, ...]:
    """Ordered-dither order of a side x side grid, side a power of two.

    Base-4 digit j of a token's index moves it by side / 2^(j+1): diagonally (1), right (2) or down (3).
    So the first 4^j tokens are a lattice of spacing s = side / 2^j, centred where its offset modulo s is
    (s-1)/2. Each lattice contains the one before, so beyond 8 x 8 no shift is within half a token of that at
    every scale. The shift side // 3 (binary 0101...) is within s/4 at every scale, and within half a token at
    all of 4, 16 and 64 tokens on 8 x 8.
    """
    moves = ((0, 0), (1, 1), (0, 1), (1, 0))
    positions = []
    for index in range(side * side):
        row = column = side // 3
        step = side
        while index:
            step //= 2
            index, digit = divmod(index, 4)
            row += moves[digit][0] * step
            column += moves[digit][1] * step
        positions.append((row % side, column % side))
    return tuple(positions)


def _farthest_point_order(height: int, width: int) -> tuple[Position, ...]:
    """Greedy order from the centre: next is the position farthest (Euclidean) from all chosen ones.

    Ties go to the first in raster order. Each prefix covers the grid with at most twice the best radius for
    its number of points (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985).
    """
    unreached = height * height + width * width  # more than any squared distance
    distance2 = [unreached] * (height * width)  # to the nearest chosen position
    distance2[(height - 1) // 2 * width + (width - 1) // 2] += 1  # the centre goes first
    # Distances only shrink, so refreshing stale entries at the top of a heap always yields the farthest.
    heap = [(-squared, index) for index, squared in enumerate(distance2)]
    heapq.heapify(heap)
    positions = []
    while heap:
        negative, index = heap[0]
        if -negative != distance2[index]:
            heapq.heapreplace(heap, (-distance2[index], index))
            continue
        heapq.heappop(heap)
        row, column = divmod(index, width)
        positions.append((row, column))
        # No position is farther than this one was, so only those within its distance can come closer.
        reach = math.isqrt(-negative)
        for r in range(max(0, row - reach), min(height, row + reach + 1)):
            for c in range(max(0, column - reach), min(width, column + reach + 1)):
                squared = (r - row) ** 2 + (c - column) ** 2
                if squared < distance2[r * width + c]:
                    distance2[r * width + c] = squared
    return tuple(positions)


def _nested_scales(n: int, k: int) -> tuple[Scale, ...]:
    """Scaled modules by integer arithmetic: floating-point logarithms err, for example on log_5 125."""
    scales = []
    patch_size = 1
    while not scales or patch_size < n:
        number = len(scales) + 1
        count = min(k, -(-n // patch_size))
        patches = tuple(
            Patch(number, i + 1, i * patch_size, min((i + 1) * patch_size, n)) for i in range(count)
        )
        scales.append(Scale(number, patches))
        patch_size *= k
    return tuple(scales)


def _one_module(sizes: list[int]) -> Scale:
    """A single module whose patches have the given sizes."""
    patches = []
    start = 0
    for index, size in enumerate(sizes, start=1):
        patches.append(Patch(1, index, start, start + size))
        start += size
    return Scale(1, tuple(patches))


def _cell_grid(height: int, width: int, count: int) -> tuple[int, int]:
    """Rows and columns of cells, rows * columns = count, whose cells are nearest to squares."""
    fits = [rows for rows in range(1, height + 1) if count % rows == 0 and count // rows <= width]
    if not fits:
        raise ValueError(
            f"count of cells on a {height}x{width} grid must be rows * columns with at most {height} rows "
            f"and {width} columns; {count} is not."
        )

    def elongation(rows: int) -> tuple[float, int]:
        cell_height, cell_width = height / rows, width * rows / count
        return max(cell_height / cell_width, cell_width / cell_height), -rows

    rows = min(fits, key=elongation)
    return rows, count // rows


def _cells(height: int, width: int, count: int) -> list[list[Position]]:
    """Positions of each cell; cells and positions inside run row by row. The first cell is the largest."""
    rows, columns = _cell_grid(height, width, count)
    return [
        [(row, column) for row in band for column in stripe]
        for band in _split(height, rows)
        for stripe in _split(width, columns)
    ]


def _split(length: int, parts: int) -> list[range]:
    """`length` indices in `parts` contiguous runs that differ by one at most, longer ones first."""
    short, longer = divmod(length, parts)
    starts = [part * short + min(part, longer) for part in range(parts + 1)]
    return [range(starts[part], starts[part + 1]) for part in range(parts)]


def _check_integer(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
