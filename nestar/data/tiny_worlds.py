"""Tiny Worlds: flat illustrated scenes drawn by signed-distance functions in batched torch.

A scene is a pure function of (class, seed, size): every factor and every decorative detail is a counter hash
of the seed, and full-resolution arithmetic uses only operations that IEEE 754 rounds exactly (+ - * / sqrt
min max), so that a picture is bit-equal whether drawn alone or in a batch. The picture is the unit square, x
to the right, y downwards.

Shapes: parameters (B,1,1), colours (B,3,1,1) in [0,1], fields (distances, alphas) broadcast to (B,H,W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWING = 1  # raise it with every change to what is drawn: pools of pictures and latents are filed under it
EDGE_PIXELS = 1.5  # width of an anti-aliased edge
CPU_CHUNK = 4  # pictures painted at once: a chunk's planes stay in the cache
DEVICE_CHUNK = 512
STREAM_BITS = 40  # a data stream holds up to 2**40 pictures
DECOR_STREAM = 1000  # hash streams below are factors, from here on decoration

Param = Tensor | float


@dataclass(frozen=True)
class Factor:
    """A generative factor: continuous in [0,1] (levels 0), or discrete with values 0 … levels-1."""

    name: str
    kind: str
    levels: int = 0


def _factors(continuous: str, **discrete: int) -> tuple[Factor, ...]:
    return (
        *(Factor(name, "continuous") for name in continuous.split()),
        *(Factor(name, "discrete", levels) for name, levels in discrete.items()),
    )


FACTORS: dict[str, tuple[Factor, ...]] = {
    "mountains": _factors("sun_x sun_y peak_x peak_height slope snow rock_hue", sky=4, pines=4),
    "sailboat": _factors("sun_x sun_y boat_x size lean sail_hue hull_hue horizon", sky=4),
    "flower": _factors(
        "flower_x flower_y size petal_width petal_hue heart_hue ground_hue", sky=4, petals=4, leaves=3
    ),
    "fish": _factors(
        "fish_x fish_y size tilt body_hue fin_hue floor_hue", sky=4, facing=2, stripes=4, bubbles=4
    ),
    "planet": _factors("planet_x planet_y size tilt hue ring_hue light ground_hue", sky=4, bands=3, moons=3),
    "city": _factors("sun_x sun_y height wall_hue lit window_hue horizon", sky=4, towers=4),
    "butterfly": _factors(
        "butterfly_x butterfly_y size tilt spread upper_hue lower_hue ground_hue", sky=4, spots=3
    ),
    "balloon": _factors(
        "balloon_x balloon_y size hue trim_hue horizon ground_hue", sky=4, panels=3, clouds=3
    ),
    "lighthouse": _factors("tower_x height hue beam horizon ground_hue", sky=4, bands=4, side=2),
    "cactus": _factors("sun_x sun_y cactus_x height girth cactus_hue bloom_hue ground_hue", sky=4, arms=3),
    "mushroom": _factors(
        "mushroom_x cap_width cap_height stem lean cap_hue ground_hue", sky=4, spots=4, friends=3
    ),
    "forest": _factors(
        "sun_x sun_y tree_height tree_hue ground_hue tent_x tent_hue", sky=4, trees=4, tiers=3
    ),
}
CLASSES: tuple[str, ...] = tuple(FACTORS)
MAX_FACTORS = max(len(factors) for factors in FACTORS.values())


@dataclass(frozen=True)
class Scene:
    """Pictures with their ground truth.

    images: (B,3,H,W) float32 in [-1,1].
    factors: (B, MAX_FACTORS) float32 in the order of FACTORS[class], padded with NaN.
    """

    images: Tensor
    factors: Tensor


# ---------------------------------------------------------------------------------------------- randomness


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def uniform(seeds: Tensor, stream: int) -> Tensor:
    """Splitmix64 of (seed, stream) as float32 in [0,1), in the shape of the int64 tensor `seeds`."""
    x = seeds
    for salt in (0, stream):
        x = x + _signed((salt + 1) * 0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
        x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return ((x >> 40) & 0xFFFFFF).to(torch.float32) / 2**24


def draw_indices(start: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures start … start+count-1 of data stream `seed` as (class_ids, seeds), both (count,) int64.

    Classes take turns; streams share no seed.
    """
    index = torch.arange(start, start + count)
    return index % len(CLASSES), index + (seed << STREAM_BITS)


# ---------------------------------------------------------------------------------------------- colour


def _rgb(*codes: str) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)) for code in codes)


# By time of day: dawn, day, dusk, night.
SKY_TOP = _rgb("7f8fd6", "2f83d8", "3a2a70", "0c1433")
SKY_MIDDLE = _rgb("eeb0c8", "74bfee", "c14f86", "22316b")
SKY_LOW = _rgb("ffe2bd", "d9f2ee", "ffab66", "5566ad")
SUN = _rgb("fff6dc", "fff1a0", "ffd678", "f8f0d6")
LIGHT = ((1.0, 0.95, 0.95), (1.0, 1.0, 1.0), (0.96, 0.80, 0.86), (0.74, 0.77, 0.98))
# Ramps without a way back, so that a place on a ramp is one colour only.
ACCENT = _rgb("ffc93c", "f97b3d", "e63b60", "b04bc0", "4f62dc", "16a8a0")
GROUND = _rgb("79b35c", "c3b24f", "e0a050", "c4654a", "8b5388", "4f6fa6")
PLANT = _rgb("a8c23a", "4fa34a", "1f8f7a", "2f6f9f", "7257a8")
CREAM = _rgb("fff3de")
INK = _rgb("2a2147")
LAMP = _rgb("ffe38a")


def span(t: Param, low: float, high: float) -> Param:
    """Map t in [0,1] to low … high."""
    return low + (high - low) * t


def mix(a: Tensor, b: Tensor, t: Param) -> Tensor:
    """Blend from a (t = 0) to b (t = 1)."""
    return a + (b - a) * t


def sin(x: Tensor) -> Tensor:
    """Sine through float64: equal bits wherever x lies in a vectorised loop. For small tensors."""
    return torch.sin(x.double()).float()


def cos(x: Tensor) -> Tensor:
    return torch.cos(x.double()).float()


class Canvas:
    """A batch of square pictures painted back to front, with the light of its time of day.

    image: (B,3,size,size); x: (1,1,size) and y: (1,size,1) pixel centres;
    top, middle, low, sun, light, ink, cream, lamp: colours (B,3,1,1); night: (B,1,1), 1 at night.
    """

    def __init__(self, sky: Tensor, dice: Callable[[], Tensor], size: int) -> None:
        self.dice = dice
        self.soft = EDGE_PIXELS / size
        centres = (torch.arange(size, device=sky.device, dtype=torch.float32) + 0.5) / size
        self.x, self.y = centres.view(1, 1, -1), centres.view(1, -1, 1)
        self.night = (sky == 3).float()
        level = sky.flatten().long()
        self.top, self.middle, self.low, self.sun, self.light = (
            torch.tensor(table, device=sky.device)[level][:, :, None, None]
            for table in (SKY_TOP, SKY_MIDDLE, SKY_LOW, SUN, LIGHT)
        )
        zero = torch.zeros_like(sky)
        self.cream, self.ink, self.lamp = (self.ramp(table, zero) for table in (CREAM, INK, LAMP))
        self.lamp = self.lamp / self.light  # lamps shine by themselves
        y = self.y[:, None]  # (1,1,size,1)
        shift = span(dice(), -0.14, 0.14)[:, None]
        upper = mix(self.top, self.middle, ((y - shift) / 0.42).clamp(0, 1))
        gradient = mix(upper, self.low, ((y - shift - 0.3) / 0.45).clamp(0, 1))
        self.image = gradient.expand(-1, -1, -1, size).clone()

    def ramp(self, table: tuple[tuple[float, ...], ...], t: Tensor) -> Tensor:
        """The colour at t in [0,1] on a ramp of anchors, in the present light: (B,3,1,1)."""
        colours = torch.tensor(table, device=t.device)
        place = t.flatten() * (len(table) - 1)
        left = place.floor().clamp(0, max(len(table) - 2, 0))
        a, b = colours[left.long()], colours[(left.long() + 1).clamp(max=len(table) - 1)]
        return mix(a, b, (place - left)[:, None])[:, :, None, None] * self.light

    def haze(self, colour: Tensor, amount: Param) -> Tensor:
        """The colour seen through air: nearer to that of the low sky."""
        return mix(colour, self.low, amount)

    def cover(self, distance: Tensor) -> Tensor:
        """Signed distance (negative inside) → coverage in [0,1] with a soft edge."""
        return (distance * (-1 / self.soft)).add_(0.5).clamp_(0, 1)

    def blend(self, alpha: Tensor, colour: Tensor) -> None:
        """Lay colour (B,3,1,1) or (B,3,H,W) over the picture with alpha (B|1,H|1,W|1)."""
        change = colour - self.image
        change *= alpha[:, None]
        self.image += change

    def fill(self, distance: Tensor, colour: Tensor, alpha: Param = 1.0) -> None:
        cover = self.cover(distance)
        self.blend(cover if isinstance(alpha, float) and alpha == 1.0 else cover * alpha, colour)

    def glow(self, x: Param, y: Param, radius: Param, colour: Tensor, strength: Param) -> None:
        """A soft round light that fades to nothing at `radius`."""
        near = (1 - self.circle(x, y, 0.0) / radius).clamp(min=0)
        self.blend(near * near * strength, colour)

    # -- signed distances, (B,H,W); u, v are local coordinates

    def local(
        self, x: Param, y: Param, angle: Tensor | None = None, flip: Param = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Coordinates around (x, y), turned clockwise by `angle` (radians), mirrored by flip = -1."""
        u, v = (self.x - x) * flip, self.y - y
        if angle is None:
            return u, v
        c, s = cos(angle), sin(angle)
        return u * c + v * s, v * c - u * s

    def circle(self, x: Param, y: Param, radius: Param) -> Tensor:
        return disc(self.x - x, self.y - y, radius)

    def waves(self, base: Param, height: Param, count: float) -> Tensor:
        """A rolling skyline y(x), (B,1,W): `base` plus two sines of decorative phase."""
        turn = 2 * math.pi
        long = sin(turn * (self.x * count + self.dice()))
        short = sin(turn * (self.x * count * 1.9 + self.dice()))
        return base + height * (0.65 * long + 0.35 * short)

    def land(self, skyline: Tensor, colour: Tensor, deep: Tensor, depth: float = 0.3) -> None:
        """Fill below the skyline y(x), shading from `colour` at its edge to `deep` further down."""
        below = self.y - skyline
        self.blend(self.cover(-below), mix(colour, deep, (below / depth).clamp(0, 1)[:, None]))


def disc(u: Tensor, v: Tensor, radius: Param) -> Tensor:
    return (u * u + v * v).sqrt() - radius


def ellipse(u: Tensor, v: Tensor, rx: Param, ry: Param) -> Tensor:
    """First-order distance to an ellipse: exact on the edge, where it counts."""
    a, b = u / rx, v / ry
    value = (a * a + b * b).sqrt()
    a, b = a / rx, b / ry
    return value * (value - 1) / ((a * a + b * b).sqrt() + 1e-4)


def capsule(u: Tensor, v: Tensor, ax: Param, ay: Param, bx: Param, by: Param, radius: Param) -> Tensor:
    """A thick line from (ax, ay) to (bx, by)."""
    u, v, dx, dy = u - ax, v - ay, bx - ax, by - ay
    along = ((u * dx + v * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    return disc(u - along * dx, v - along * dy, radius)


def box(u: Tensor, v: Tensor, half_width: Param, half_height: Param) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def polygon(u: Tensor, v: Tensor, *points: tuple[Param, Param]) -> Tensor:
    """A convex polygon, its corners given clockwise on screen."""
    distance = None
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        dx, dy = torch.as_tensor(bx - ax), torch.as_tensor(by - ay)
        length = (dx * dx + dy * dy).sqrt().to(u.device)
        edge = u * (dy / length) - v * (dx / length) + (ay * dx - ax * dy) / length
        distance = edge if distance is None else torch.maximum(distance, edge)
    return distance


def cut(*distances: Tensor) -> Tensor:
    """Intersection."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.maximum(result, distance)
    return result


def union(*distances: Tensor) -> Tensor:
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result


# ---------------------------------------------------------------------------------------------- scenery


def stars(c: Canvas, low: float = 0.45, by_day: float = 0.0) -> None:
    """Five soft stars above y = low, at night or, with alpha `by_day`, always."""
    nearest = union(*(c.circle((i + c.dice()) / 5, span(c.dice(), 0.04, low), 0.0) for i in range(5)))
    near = (1 - nearest / 0.026).clamp(min=0)
    c.blend(near * span(c.night, by_day, 0.9), c.cream / c.light)


def cloud(c: Canvas, x: Param, y: Param, size: Param, alpha: Param) -> None:
    """Three puffs on a flat base, about 0.28 × size wide."""
    u, v = c.local(x, y)
    puffs = union(
        disc(u, v + 0.02 * size, 0.062 * size),
        capsule(u, v + 0.01 * size, -0.085 * size, 0.0, 0.09 * size, 0.0, 0.04 * size),
    )
    c.fill(cut(puffs, v - 0.025 * size), mix(c.cream, c.low, 0.35), alpha)


def sky(c: Canvas, f: dict[str, Tensor], clouds: bool = True) -> None:
    """Stars, two faint clouds by day, and, where the class has a sun, a glowing sun (a crescent at night)."""
    stars(c)
    if clouds:
        shift = c.dice()
        cloud(
            c,
            span(shift, 0.05, 0.4),
            span(c.dice(), 0.3, 0.42),
            span(c.dice(), 0.8, 1.2),
            0.55 * (1 - c.night),
        )
        cloud(
            c,
            span(shift, 0.55, 0.95),
            span(c.dice(), 0.08, 0.24),
            span(c.dice(), 0.7, 1.0),
            0.45 * (1 - c.night),
        )
    if "sun_x" in f:
        x, y = sun_place(f)
        c.glow(x, y, 0.5, c.sun, 0.6)
        bite = -c.circle(x + 0.034, y - 0.022, 0.056) - 9 * (1 - c.night)
        c.fill(cut(c.circle(x, y, 0.07), bite), c.sun)


def sun_place(f: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return span(f["sun_x"], 0.12, 0.88), span(f["sun_y"], 0.1, 0.22)


def sea_colour(c: Canvas) -> Tensor:
    """Between the sky above and a blue or green, (B,3,1,1)."""
    return mix(c.top, c.ramp(ACCENT, span(c.dice(), 0.72, 1.0)), 0.5)


def hills(c: Canvas, base: Param, ground: Tensor, height: float = 0.035) -> None:
    """A hazy far ridge and a near meadow whose edge lies around y = base."""
    far = c.haze(ground * 0.9, 0.55)
    c.land(c.waves(base - 0.09, height, 1.1), far, c.haze(far, 0.4), 0.2)
    c.land(c.waves(base, height * 0.8, 0.7), ground, ground * 0.62, 0.35)


def spread_over(count: Tensor, jitter: float, c: Canvas, most: int) -> Iterator[tuple[int, Tensor]]:
    """Centres x (B,1,1) of `count` things spaced over the width; those beyond the count lie far outside."""
    for i in range(most):
        place = (i + 0.5 + jitter * (c.dice() - 0.5)) / count
        yield i, torch.where(count > i, place, torch.full_like(place, 9.0))


def pines(
    c: Canvas, count: Tensor, base: Tensor, height: Tensor, width: Tensor, tiers: Tensor, colour: Tensor
) -> None:
    """A row of `count` (2 … 5) pines; each column knows its nearest, so a row costs no more than one."""
    dx = torch.full_like(c.x, 9.0)
    tall = torch.ones_like(height)
    for _, place in spread_over(count, 0.3, c, 5):
        this, scale = (c.x - place).abs(), span(c.dice(), 0.82, 1.12)
        tall = torch.where(this < dx, scale, tall)
        dx = torch.minimum(this, dx)
    v = (c.y - base) / tall + height  # 0 at the tip
    slope = width / height
    tree = cut(dx - 0.09 * width, (v - height - 0.02).abs() - 0.06)
    crown = None
    for tier in range(4):
        place = torch.remainder(torch.full_like(tiers, float(tier)), tiers)
        tip, foot = place / tiers * 0.72, (place + 1) / tiers * 0.94
        reach = (0.55 + 0.45 * foot) / (foot - tip) * slope
        edge = cut((dx - (v - tip * height) * reach) * 0.85, v - foot * height)
        crown = edge if crown is None else union(crown, edge)
    c.fill(tree, mix(c.ink, colour, 0.25))
    c.fill(crown, mix(colour * 1.12, colour * 0.7, (v / height).clamp(0, 1)[:, None]))


# ---------------------------------------------------------------------------------------------- painters


def mountains(c: Canvas, f: dict[str, Tensor]) -> None:
    """Snowy peaks over a meadow with pines."""
    sky(c, f)
    rock = c.ramp(GROUND, f["rock_hue"])
    apex_x, apex_y = span(f["peak_x"], 0.25, 0.75), span(f["peak_height"], 0.5, 0.32)
    slope, snow = span(f["slope"], 0.58, 1.6), span(f["snow"], 0.05, 0.22)
    sun_x, _ = sun_place(f)
    zigzag = (torch.remainder(c.x * 9, 1.0) - 0.5).abs() * 0.09
    for shift, drop, air in ((-0.36, 0.12, 0.5), (0.36, 0.15, 0.42), (0.0, 0.0, 0.0)):
        x = apex_x + shift + (0.08 * (c.dice() - 0.5) if shift else 0.0)
        y = apex_y + drop
        edge = (y + slope * (c.x - x).abs() - c.y) * 0.7
        shadow = (c.x - x) * torch.where(sun_x > x, -1.0, 1.0) + 0.12 * (
            torch.remainder(c.y * 6, 1.0) - 0.5
        ).abs() * (c.y - y)
        c.fill(edge, c.haze(rock, air))
        c.fill(cut(edge, -shadow), c.haze(mix(rock * 0.6, c.top, 0.25), air))
        cap = cut(edge, c.y - y - snow * (1.0 - 0.3 * (drop > 0)) - zigzag + 0.02)
        c.fill(cap, c.haze(c.cream * c.light, air * 0.6))
        c.fill(cut(cap, -shadow), c.haze(mix(c.cream * c.light, c.top, 0.35), air * 0.6))
    meadow = c.haze(c.ramp(PLANT, c.dice()), 0.12)
    skyline = c.waves(span(c.dice(), 0.78, 0.9), 0.03, 0.7)
    c.land(skyline, meadow, meadow * 0.6)
    n = 2 + f["pines"]
    pines(
        c,
        n,
        skyline + 0.06,
        torch.full_like(n, 0.19),
        torch.full_like(n, 0.07),
        torch.full_like(n, 3.0),
        meadow * 0.55,
    )


def sailboat(c: Canvas, f: dict[str, Tensor]) -> None:
    """A two-sailed boat on a calm sea, the sun mirrored below it."""
    sky(c, f)
    horizon = span(f["horizon"], 0.52, 0.72)
    sea = sea_colour(c)
    far = c.waves(horizon - 0.02, 0.035, 0.9)
    c.land(far, c.haze(mix(sea, c.top, 0.5), 0.3), c.low, 0.2)
    c.land(horizon.expand(-1, 1, c.x.shape[-1]), c.haze(sea, 0.45), mix(sea * 0.75, c.top, 0.3), 0.35)
    sun_x, _ = sun_place(f)
    depth = c.y - horizon
    path = (1 - (c.x - sun_x).abs() / (0.09 + 0.5 * depth).clamp(min=0.02)).clamp(min=0)
    ripple = (0.75 + 0.25 * sin(depth * 110)) * (1 - depth / 0.24).clamp(0, 1) * c.cover(-depth)
    c.blend(path * ripple * 0.8, c.sun)

    size = span(f["size"], 0.75, 1.3)
    deck = horizon + 0.12
    u, v = c.local(span(f["boat_x"], 0.25, 0.75), deck, span(f["lean"], -0.34, 0.34))
    u, v = u / size, v / size
    hull, sail = c.ramp(ACCENT, f["hull_hue"]), c.ramp(ACCENT, f["sail_hue"])
    c.fill(ellipse(u, v - 0.085, 0.2, 0.018), sea * 0.55, 0.6)
    c.fill(capsule(u, v, 0.0, 0.02, 0.0, -0.36, 0.008), c.ink * 0.8 + 0.2 * hull)
    main = cut(polygon(u, v, (0.02, -0.35), (0.3, -0.03), (0.02, -0.03)), disc(u + 0.06, v + 0.1, 0.25))
    c.fill(main, sail)
    c.fill(cut(main, 0.055 - u - 0.1 * v), mix(sail, c.cream, 0.25))
    jib = cut(polygon(u, v, (-0.02, -0.31), (-0.02, -0.03), (-0.2, -0.03)), disc(u - 0.08, v + 0.1, 0.235))
    c.fill(jib, c.cream * c.light)
    body = polygon(u, v, (-0.19, 0.0), (0.2, 0.0), (0.13, 0.085), (-0.13, 0.085))
    c.fill(body, hull)
    c.fill(cut(body, v - 0.026), mix(hull, c.cream, 0.6))
    wave = c.waves(deck + 0.065 * size, 0.008, 2.0)
    c.land(wave, mix(sea, c.low, 0.25), mix(sea * 0.7, c.top, 0.35), 0.25)
    c.land(c.waves(deck + 0.15, 0.014, 1.4), mix(sea * 0.85, c.top, 0.2), mix(sea * 0.5, c.top, 0.5), 0.2)


def flower(c: Canvas, f: dict[str, Tensor]) -> None:
    """One large flower on a bent stem."""
    sky(c, f)
    ground = c.ramp(GROUND, f["ground_hue"])
    hills(c, span(c.dice(), 0.68, 0.92), ground)
    x, y = span(f["flower_x"], 0.3, 0.7), span(f["flower_y"], 0.29, 0.46)
    size = span(f["size"], 0.18, 0.27)
    green = c.ramp(PLANT, span(c.dice(), 0.2, 0.45)) * 0.85
    foot = x + span(c.dice(), -0.2, 0.2)
    t = ((c.y - y) / (0.98 - y)).clamp(0, 1)
    stem = x + (foot - x) * t * t
    c.fill(cut((c.x - stem).abs() - 0.016, y - c.y), green)
    for i, side in enumerate((1.0, -1.0, 1.0)):
        height = mix(y + size + 0.1, torch.full_like(y, 0.98), 0.5 * i)
        t = (height - y) / (0.98 - y)
        at = x + (foot - x) * t * t
        u, v = c.local(at + side * 0.105, height - 0.045, torch.full_like(x, -0.5 * side))
        leaf = ellipse(u, v, 0.12, 0.042)
        there = (f["leaves"] >= i).float()
        c.fill(leaf, green * 1.1, there)
        c.fill(cut(leaf, -v), green * 0.8, there)
    petal, heart = c.ramp(ACCENT, f["petal_hue"]), c.ramp(ACCENT, f["heart_hue"])
    count = torch.tensor([4.0, 5.0, 6.0, 8.0], device=x.device)[f["petals"].long()]
    turn = span(c.dice(), -0.12, 0.12) - math.pi / 2
    u0, v0 = c.local(x, y)
    along = None  # along the axis of the nearest petal
    for k in range(8):
        angle = turn + 2 * math.pi * torch.remainder(torch.full_like(count, float(k)), count) / count
        one = u0 * cos(angle) + v0 * sin(angle)
        along = one if along is None else torch.maximum(along, one)
    across = (u0 * u0 + v0 * v0 - along * along).clamp(min=0).sqrt()
    wide = span(f["petal_width"], 0.52, 1.15) * 0.58 * math.pi / count * size
    outer = ellipse(along - 0.58 * size, across, 0.44 * size, wide)
    inner = ellipse(along - 0.5 * size, across, 0.27 * size, wide * 0.42)
    far = (disc(u0, v0, 0.0) / size).clamp(0, 1)[:, None]
    c.fill(outer, mix(petal * 0.72, mix(petal, c.cream, 0.18), far))
    c.fill(inner, mix(petal, c.cream, 0.45))
    c.fill(disc(u0, v0, 0.27 * size), heart * 0.8)
    c.fill(disc(u0 + 0.02 * size, v0 + 0.03 * size, 0.19 * size), mix(heart, c.cream, 0.25))


def fish(c: Canvas, f: dict[str, Tensor]) -> None:
    """A round fish in slanting light over the sea floor."""
    slant = span(c.dice(), -0.35, 0.35)
    for i in range(2):
        beam = (c.x - (0.2 + 0.45 * i + 0.2 * c.dice()) - slant * c.y).abs() - 0.05 - 0.06 * c.y
        c.blend((0.5 - beam / 0.06).clamp(0, 1) * (0.34 * (1 - c.y)), c.sun)
    floor, deep = c.ramp(GROUND, f["floor_hue"]), span(c.dice(), 0.8, 0.95)
    c.land(c.waves(deep - 0.1, 0.035, 0.9), c.haze(floor, 0.5), floor, 0.25)
    weed = c.ramp(PLANT, c.dice())
    for side in (0.08, 0.9):
        sway = side + 0.05 * c.dice() + 0.025 * sin(c.y * 18 + 6 * c.dice())
        top = span(c.dice(), 0.56, 0.72)
        c.fill(cut((c.x - sway).abs() - 0.1 * (c.y - top).clamp(0, 0.24), top - c.y), weed * 0.75)
    c.land(c.waves(deep, 0.025, 0.8), floor, floor * 0.7, 0.2)

    face = 2 * f["facing"] - 1  # 1 swims to the right
    x, y, size = span(f["fish_x"], 0.34, 0.66), span(f["fish_y"], 0.43, 0.64), span(f["size"], 0.7, 1.2)
    u, v = c.local(x, y, span(f["tilt"], -0.5, 0.5) * face, 1.0)
    u, v = u * face / size, v / size
    body, fin = c.ramp(ACCENT, f["body_hue"]), c.ramp(ACCENT, f["fin_hue"])
    tail = union(
        ellipse((u + 0.25) * 0.8 - (v + 0.06) * 0.6, (v + 0.06) * 0.8 + (u + 0.25) * 0.6, 0.055, 0.1),
        ellipse((u + 0.25) * 0.8 + (v - 0.06) * 0.6, (v - 0.06) * 0.8 - (u + 0.25) * 0.6, 0.055, 0.1),
    )
    c.fill(tail, fin)
    c.fill(
        union(ellipse(u + 0.02, v + 0.11, 0.11, 0.075), ellipse(u + 0.03, v - 0.11, 0.06, 0.06)), fin * 0.88
    )
    shape = ellipse(u, v, 0.22, 0.135)
    c.fill(shape, mix(mix(body, c.cream, 0.12), body * 0.78, ((v + 0.1) / 0.2).clamp(0, 1)[:, None]))
    for i in range(3):
        bend = u - (0.035 - 0.075 * i) + 1.5 * v * v
        c.fill(cut(shape, bend.abs() - 0.019), c.cream * c.light, (f["stripes"] > i).float())
    c.fill(ellipse(u + 0.005, v - 0.035, 0.05, 0.03), fin)
    c.fill(disc(u - 0.135, v + 0.03, 0.034), c.cream)
    c.fill(disc(u - 0.142, v + 0.03, 0.019), c.ink)
    mouth = (x + face * (0.25 * size + 0.02)).clamp(0.1, 0.9)  # bubbles rise inside the picture
    for i in range(4):
        bubble = c.circle(mouth + face * 0.03 * (i % 2), y - 0.1 - 0.086 * i, 0.036)
        here = (f["bubbles"] >= i).float()
        c.fill(bubble, mix(c.top, c.ramp(ACCENT, torch.full_like(x, 0.9)), 0.4), 0.8 * here)
        c.fill(bubble + 0.009, c.cream, 0.9 * here)


def planet(c: Canvas, f: dict[str, Tensor]) -> None:
    """A banded planet with a ring and moons, above a strange horizon."""
    stars(c, 0.7, by_day=0.6)
    ground = c.ramp(GROUND, f["ground_hue"])
    x, y, r = span(f["planet_x"], 0.32, 0.68), span(f["planet_y"], 0.36, 0.52), span(f["size"], 0.13, 0.2)
    surface, ring = c.ramp(ACCENT, f["hue"]), c.ramp(ACCENT, f["ring_hue"])
    c.glow(x, y, r * 2.3, mix(surface, c.cream, 0.5), 0.55)
    u, v = c.local(x, y, span(f["tilt"], -0.6, 0.6))
    band = cut(ellipse(u, v, r * 1.75, r * 0.5), -ellipse(u, v, r * 1.3, r * 0.3))
    colour = mix(ring, c.cream, 0.2)
    c.fill(band, colour * 0.8)
    ball = disc(u, v, r)
    c.fill(ball, surface)
    w = v + 0.5 * u * u / r
    for i, place in enumerate((-0.42, 0.62)):
        c.fill(
            cut(ball, (w - place * r).abs() - 0.13 * r), mix(surface, c.cream, 0.5), (f["bands"] > i).float()
        )
    light = span(f["light"], -1.0, 1.0)
    c.fill(
        cut(ball, -c.circle(x + light * 0.65 * r, y - 0.3 * r, r * 1.06)),
        mix(surface * 0.35, c.top, 0.4),
        0.75,
    )
    c.fill(cut(band, -v), colour)
    for i, side in enumerate((-1.0, 1.0)):
        here = (f["moons"] > i).float()
        mu, mv = c.local(x + side * 0.75 * r, y - 1.42 * r)
        moon = disc(mu, mv, 0.047)
        c.fill(moon, ring * 0.7, here)
        c.fill(cut(moon, disc(mu + 0.016, mv + 0.016, 0.044)), mix(ring, c.cream, 0.6), here)
    hills(c, span(c.dice(), 0.76, 0.92), ground, 0.05)


def city(c: Canvas, f: dict[str, Tensor]) -> None:
    """A row of towers with lit windows before a hazy skyline."""
    sky(c, f)
    base, n = span(f["horizon"], 0.84, 0.97), 3 + f["towers"]
    wall, glass = c.ramp(GROUND, f["wall_hue"]), c.ramp(ACCENT, f["window_hue"]) / c.light
    c.glow(0.5, base, 0.7, c.lamp * c.light, 0.45 * c.night)
    column = (c.x * 11 + c.dice()).floor()
    back = base - 0.14 - 0.2 * torch.remainder(column * 0.618 + c.dice(), 1.0)
    c.fill(back - c.y, c.haze(mix(wall, c.top, 0.5), 0.45))

    pitch = 0.94 / n
    place = (c.x - 0.03) / pitch
    tower = torch.minimum(place.floor().clamp(min=0), n - 1)  # (B,1,W)
    # Each tower's share of the range of heights; the tallest has all of it.
    order = torch.arange(6, device=n.device).view(1, 1, 6)
    shares = torch.remainder(order * 0.618 + c.dice(), 1.0)
    shares = shares + 1 - torch.where(order < n, shares, 0.0).amax(2, keepdim=True)
    heights = shares.gather(2, tower.long())
    top = base - span(f["height"], 0.28, 0.5) * (0.45 + 0.55 * heights)
    u, v = (place - tower - 0.5) * pitch, c.y - top
    half = pitch * 0.44
    walls = cut(u.abs() - half, -v)
    shade = wall * 0.62
    c.fill(walls, mix(shade, mix(shade, c.top, 0.5), ((c.y - 0.35) / 0.5).clamp(0, 1)[:, None]))
    c.fill(cut(walls, half * 0.62 - u), mix(shade, c.ink, 0.35))
    style = torch.remainder(tower + (3 * c.dice()).floor(), 3.0)  # of the roof: gable, dome, flat
    gable, dome = u.abs() - half * (1 + v / 0.07), ellipse(u, v, half * 0.8, 0.055)
    roof = torch.where(
        style == 0, gable * 0.7, torch.where(style == 1, dome, cut(u.abs() - half * 0.5, -v - 0.03))
    )
    c.fill(cut(roof, v), mix(shade, mix(glass * c.light, c.ink, 0.35), 0.6))

    across = torch.where(n < 4.5, 3.0, 2.0)
    cell_x, cell_y = 2 * half * 0.94 / across, 0.085
    col = ((u + half * 0.94) / cell_x).floor()
    row = ((v - 0.02) / cell_y).floor()
    du, dv = u + half * 0.94 - (col + 0.5) * cell_x, v - 0.02 - (row + 0.5) * cell_y
    rows = ((base - top - 0.03) / cell_y).floor()
    outside = (row < 0) | (row >= rows) | (col < 0) | (col >= across)
    pane = box(du, dv, torch.clamp(cell_x * 0.34, max=0.028), 0.028) + outside.float()
    order = torch.remainder((tower * across + col) * 0.7549 + row * 0.5698 + c.dice(), 1.0)
    lit = (order < span(f["lit"], 0.12, 1.0)).float()
    c.fill(pane, mix(shade, c.ink, 0.6))
    c.fill(pane, mix(glass, c.cream, 0.15), lit)
    street = mix(c.ink, wall, 0.3) * c.light
    c.land(base.expand(-1, 1, c.x.shape[-1]), street, street * 0.6, 0.2)


def butterfly(c: Canvas, f: dict[str, Tensor]) -> None:
    """A butterfly with spotted wings above a meadow."""
    sky(c, f)
    hills(c, span(c.dice(), 0.7, 0.92), c.ramp(GROUND, f["ground_hue"]))
    x, y, size = (
        span(f["butterfly_x"], 0.35, 0.65),
        span(f["butterfly_y"], 0.34, 0.6),
        span(f["size"], 0.75, 1.15),
    )
    u, v = c.local(x, y, span(f["tilt"], -0.5, 0.5))
    u, v = u / size, v / size
    w = u.abs() / span(f["spread"], 0.6, 1.05)
    upper, lower = c.ramp(ACCENT, f["upper_hue"]), c.ramp(ACCENT, f["lower_hue"])
    rim = mix(c.ink * c.light, upper, 0.15)
    lu, lv = (w - 0.115) * 0.8 + (v - 0.095) * 0.6, (v - 0.095) * 0.8 - (w - 0.115) * 0.6
    lower_wing = ellipse(lu, lv, 0.125, 0.088)
    uu, uv = (w - 0.16) * 0.78 - (v + 0.085) * 0.62, (v + 0.085) * 0.78 + (w - 0.16) * 0.62
    upper_wing = ellipse(uu, uv, 0.185, 0.105)
    fade = (w / 0.26).clamp(0, 1)[:, None]
    c.fill(lower_wing, rim)
    c.fill(lower_wing + 0.017, mix(mix(lower, c.cream, 0.3), lower, fade))
    c.fill(upper_wing, rim)
    c.fill(upper_wing + 0.018, mix(mix(upper, c.cream, 0.35), upper, fade))
    for i, (su, sv, r) in enumerate(((0.09, 0.0, 0.044), (-0.005, 0.008, 0.036), (-0.085, 0.005, 0.028))):
        c.fill(disc(uu - su, uv - sv, r), c.cream * c.light, (f["spots"] >= i).float())
    c.fill(
        union(
            capsule(u.abs(), v, 0.005, -0.1, 0.06, -0.2, 0.006),
            disc(u.abs() - 0.062, v + 0.205, 0.014),
            capsule(u, v, 0.0, -0.1, 0.0, 0.13, 0.021),
            disc(u, v + 0.11, 0.028),
        ),
        c.ink * c.light,
    )


def balloon(c: Canvas, f: dict[str, Tensor]) -> None:
    """A hot-air balloon over rolling hills."""
    sky(c, f, clouds=False)
    hills(c, span(f["horizon"], 0.72, 0.94), c.ramp(GROUND, f["ground_hue"]))
    x, y, size = (
        span(f["balloon_x"], 0.32, 0.68),
        span(f["balloon_y"], 0.29, 0.44),
        span(f["size"], 0.75, 1.2),
    )
    for i, (side, rise) in enumerate(((-1.0, -0.1), (1.0, 0.1))):
        cloud(
            c,
            torch.remainder(x + side * 0.36, 1.0).clamp(0.12, 0.88),
            y + rise + 0.1,
            1.15,
            0.9 * (f["clouds"] > i).float(),
        )
    u, v = c.local(x, y)
    u, v = u / size, v / size
    hue, trim = c.ramp(ACCENT, f["hue"]), c.ramp(ACCENT, f["trim_hue"])

    def envelope(w: Tensor) -> Tensor:
        taper = polygon(w, v, (-0.165, 0.075), (0.165, 0.075), (0.05, 0.235), (-0.05, 0.235))
        return union(disc(w, v, 0.18), taper)

    c.fill(capsule(u.abs(), v, 0.045, 0.23, 0.03, 0.31, 0.006), c.ink * 0.7 + 0.3 * trim)
    whole = envelope(u)
    c.fill(whole, hue)
    n, pale = 1 + f["panels"], mix(trim, c.cream, 0.32)
    for i in range(3):
        width = (1 - (i + 1) / (n + 1)).clamp(min=0.1)
        stripe = envelope(u / width) * width
        c.fill(stripe, (pale, hue, pale)[i], (n > i).float())
    c.fill(cut(whole, 0.165 - v), trim)
    c.fill(
        cut(whole, 0.16 - disc(u + 0.06, v + 0.05, 0.0)),
        c.top,
        0.3 * ((u + v * 0.6 + 0.05) / 0.2).clamp(0, 1),
    )
    c.fill(ellipse(u + 0.07, v + 0.09, 0.05, 0.035), c.cream, 0.35)
    basket = polygon(u, v, (-0.045, 0.3), (0.045, 0.3), (0.036, 0.365), (-0.036, 0.365))
    c.fill(basket, mix(c.ink, c.ramp(GROUND, torch.full_like(x, 0.5)), 0.6))
    c.fill(cut(basket, v - 0.318), c.cream * c.light)


def lighthouse(c: Canvas, f: dict[str, Tensor]) -> None:
    """A banded lighthouse on a cliff by the sea, its beam across the sky."""
    sky(c, f)
    horizon = span(f["horizon"], 0.58, 0.74)
    sea = sea_colour(c)
    c.land(horizon.expand(-1, 1, c.x.shape[-1]), c.haze(sea, 0.5), mix(sea * 0.7, c.top, 0.3), 0.35)
    x, foot = span(f["tower_x"], 0.25, 0.75), span(c.dice(), 0.76, 0.88)
    tall = span(f["height"], 0.34, 0.56)
    lamp = foot - tall - 0.035
    side = 2 * f["side"] - 1
    u, v = c.local(x, lamp, span(f["beam"], -0.45, 0.3) * side)
    along = u * side
    beam = v.abs() - 0.025 - 0.2 * along
    c.blend(
        (0.5 - beam / 0.03).clamp(0, 1) * c.cover(-along) * (0.85 - 0.75 * along).clamp(min=0),
        c.lamp * c.light,
    )
    rock = c.ramp(GROUND, f["ground_hue"])
    dx = c.x - x
    cliff = foot - 0.01 + 0.9 * dx * dx + c.waves(0.0, 0.012, 1.6)
    c.land(cliff, rock, rock * 0.55, 0.3)
    u, v = c.local(x, foot)
    hue, white = c.ramp(ACCENT, f["hue"]), c.cream * c.light
    tower = polygon(u, v, (-0.062, -tall), (0.062, -tall), (0.098, 0.03), (-0.098, 0.03))
    t = (c.y - (foot - tall)) / (tall + 0.03)
    bands = 2 + f["bands"]
    wave = ((torch.remainder(t * bands, 1.0) - 0.5).abs() - 0.25) / bands * (tall + 0.03)
    c.fill(tower, white)
    c.fill(cut(tower, -wave), hue)
    c.fill(cut(tower, 0.02 - u), mix(c.ink * c.light, hue, 0.4), 0.32)
    top = v + tall
    c.fill(box(u, top + 0.035, 0.044, 0.04), c.lamp * c.light)
    c.fill(union(box(u, top, 0.082, 0.012), box(u, top + 0.035, 0.007, 0.035)), c.ink * c.light)
    c.fill(cut(ellipse(u, top + 0.07, 0.064, 0.058), top + 0.07), hue * 0.85)
    c.glow(x, lamp, 0.17, c.lamp * c.light, 0.75)
    c.land(c.waves(foot + 0.15, 0.015, 1.2), mix(sea, c.low, 0.2), sea * 0.6, 0.15)


def cactus(c: Canvas, f: dict[str, Tensor]) -> None:
    """A blooming cactus among dunes."""
    sky(c, f)
    ground = c.ramp(GROUND, f["ground_hue"])
    mesa_x, wide = c.dice(), span(c.dice(), 0.12, 0.2)
    mesa = polygon(
        c.x - mesa_x, c.y - 0.6, (-wide, 0.0), (wide, 0.0), (wide + 0.08, 0.2), (-wide - 0.08, 0.2)
    )
    c.fill(mesa, c.haze(mix(ground, c.top, 0.25), 0.35))
    hills(c, span(c.dice(), 0.68, 0.84), ground)
    x, tall, r = span(f["cactus_x"], 0.27, 0.73), span(f["height"], 0.28, 0.43), span(f["girth"], 0.045, 0.09)
    green = c.ramp(PLANT, f["cactus_hue"])
    u, v = c.local(x, span(c.dice(), 0.88, 0.94))
    c.fill(ellipse(u - 0.02, v - 0.005, 0.16, 0.022), ground * 0.5, 0.7)
    trunk = capsule(u, v, 0.0, -0.04, 0.0, -tall, r)
    arm = r * 0.62

    def branch(side: float, low: Tensor, rise: Tensor) -> Tensor:
        w = u * side
        reach = r + arm + 0.055
        return union(
            capsule(w, v, 0.0, low, reach, low, arm), capsule(w, v, reach, low, reach, low - rise, arm)
        )

    left, right = (f["arms"] != 1).float(), (f["arms"] != 0).float()  # left, right, both
    shape = union(
        trunk,
        branch(-1.0, -tall * 0.42, tall * 0.3) + 9 * (1 - left),
        branch(1.0, -tall * 0.55, tall * 0.36) + 9 * (1 - right),
    )
    shape = cut(shape, v - 0.005)
    c.fill(shape, green)
    c.fill(shape + arm * 0.75, mix(green, c.cream, 0.22))
    c.fill(cut(trunk, r * 0.3 - u, v - 0.005), mix(green * 0.5, c.top, 0.2), 0.45)
    bloom = c.ramp(ACCENT, f["bloom_hue"])
    petals = union(
        *(disc(u - s * 0.036, v + tall + r + h, 0.036) for s, h in ((-1, 0.012), (1, 0.012), (0, 0.035)))
    )
    c.fill(petals, bloom)
    c.fill(disc(u, v + tall + r + 0.008, 0.02), mix(bloom, c.cream, 0.6))


def mushroom(c: Canvas, f: dict[str, Tensor]) -> None:
    """A spotted mushroom in a clearing, with small companions."""
    sky(c, f)
    ground = c.ramp(GROUND, f["ground_hue"])
    hills(c, span(c.dice(), 0.62, 0.84), ground, 0.045)
    cap = c.ramp(ACCENT, f["cap_hue"])
    white = c.cream * c.light

    def one(x: Param, foot: Param, scale: Param, lean: Tensor, spots: Tensor | None, there: Param) -> None:
        tall = span(f["stem"], 0.24, 0.42)
        rx, ry = span(f["cap_width"], 0.18, 0.33), span(f["cap_height"], 0.13, 0.27)
        u, v = c.local(x, foot)
        u, v = u / scale, v / scale
        bend = -v / tall
        stem = cut((u - lean * bend * bend).abs() - 0.05 + 0.014 * bend, -v - tall - 0.03, v - 0.01)
        c.fill(
            stem,
            mix(white, mix(white, cap, 0.45) * 0.8, ((u - lean + 0.05) / 0.14).clamp(0, 1)[:, None]),
            there,
        )
        u, v = u - lean, v + tall
        c.fill(ellipse(u, v, rx * 0.99, 0.042), mix(white * 0.9, cap * 0.6, 0.35), there)
        dome = cut(ellipse(u, v, rx, ry), v - 0.002)
        c.fill(
            dome,
            mix(mix(cap, c.cream, 0.2), cap * 0.68, ((u + v * 0.8 + rx) / (2 * rx)).clamp(0, 1)[:, None]),
            there,
        )
        if spots is not None:
            places = (
                (0.0, -0.68, 0.034),
                (-0.52, -0.42, 0.034),
                (0.52, -0.42, 0.034),
                (0.0, -0.2, 0.03),
                (0.8, -0.17, 0.028),
            )
            for i, (px, py, r) in enumerate(places):
                c.fill(cut(dome, disc(u - px * rx, v - py * ry, r)), white, (spots >= i).float())

    x, foot, lean = span(f["mushroom_x"], 0.34, 0.66), span(c.dice(), 0.8, 0.92), span(f["lean"], -0.09, 0.09)
    one(x - 0.25, foot, 0.38, -0.5 * lean, None, (f["friends"] > 0).float())
    one(x + 0.25, foot + 0.02, 0.42, 0.5 * lean, None, (f["friends"] > 1).float())
    c.glow(x + lean, foot - span(f["stem"], 0.24, 0.42), 0.42, c.sun, 0.4)
    one(x, foot, 1.0, lean, f["spots"] + 1, 1.0)
    c.land(c.waves(foot + 0.02, 0.015, 1.3), ground * 0.8, ground * 0.5, 0.15)


def forest(c: Canvas, f: dict[str, Tensor]) -> None:
    """Tall pines around a glowing tent."""
    sky(c, f)
    ground, tree = c.ramp(GROUND, f["ground_hue"]), c.ramp(PLANT, f["tree_hue"])
    base = span(c.dice(), 0.68, 0.84)
    for rise, air, count in ((0.18, 0.62, 7.0), (0.1, 0.4, 5.0)):
        comb = (torch.remainder(c.x * count + c.dice(), 1.0) - 0.5).abs() * 2
        c.land(base - rise + 0.13 * (comb - 0.6), c.haze(tree * 0.8, air), c.haze(ground, air), 0.25)
    skyline = c.waves(base, 0.02, 0.7)
    c.land(skyline, ground, ground * 0.6, 0.3)
    n, tall = 2 + f["trees"], span(f["tree_height"], 0.3, 0.5)
    pines(c, n, skyline + 0.03, tall, 0.3 / n + 0.02, 2 + f["tiers"], tree * 0.72)
    x = span(f["tent_x"], 0.22, 0.78)
    tent = c.ramp(ACCENT, f["tent_hue"])
    u, v = c.local(x, 0.92)
    c.glow(x, 0.85, 0.3, c.lamp * c.light, 0.45)
    c.fill(polygon(u, v, (0.0, -0.2), (0.17, 0.0), (-0.17, 0.0)), tent)
    c.fill(polygon(u, v, (0.0, -0.2), (0.17, 0.0), (0.06, 0.0)), tent * 0.65)
    c.fill(polygon(u, v, (0.0, -0.13), (0.055, 0.0), (-0.055, 0.0)), mix(c.lamp * c.light, c.cream, 0.3))


PAINTERS: dict[str, Callable[[Canvas, dict[str, Tensor]], None]] = {
    painter.__name__: painter
    for painter in (
        mountains,
        sailboat,
        flower,
        fish,
        planet,
        city,
        butterfly,
        balloon,
        lighthouse,
        cactus,
        mushroom,
        forest,
    )
}


# ---------------------------------------------------------------------------------------------- drawing


def factor_values(name: str, seeds: Tensor) -> Tensor:
    """The factors of class `name` for seeds (B,): (B, MAX_FACTORS) float32, NaN beyond the class's own."""
    values = torch.full((len(seeds), MAX_FACTORS), float("nan"), device=seeds.device)
    for i, factor in enumerate(FACTORS[name]):
        u = uniform(seeds, i)
        values[:, i] = (u * factor.levels).floor() if factor.levels else u
    return values


def known_factors(class_ids: Tensor, seeds: Tensor) -> Tensor:
    """The factors (B, MAX_FACTORS) that `draw` returns with these pictures, without drawing them: 60,000
    pictures take minutes to draw at any size, their factors a second."""
    factors = torch.empty(len(seeds), MAX_FACTORS, device=seeds.device)
    for class_id in class_ids.unique().tolist():
        rows = class_ids == class_id
        factors[rows] = factor_values(CLASSES[class_id], _own_seeds(class_id, seeds[rows]))
    return factors


def _own_seeds(class_id: int, seeds: Tensor) -> Tensor:
    """The class enters them, so that one seed gives unrelated factors in each class."""
    return seeds * len(CLASSES) + class_id


def _paint(name: str, seeds: Tensor, factors: Tensor, size: int) -> Tensor:
    """One class, one chunk: (B,3,size,size) in [-1,1]."""
    streams = iter(range(DECOR_STREAM, 2 * DECOR_STREAM))
    named = {factor.name: factors[:, i].view(-1, 1, 1) for i, factor in enumerate(FACTORS[name])}
    canvas = Canvas(named["sky"], lambda: uniform(seeds, next(streams)).view(-1, 1, 1), size)
    PAINTERS[name](canvas, named)
    return canvas.image.clamp_(0, 1).mul_(2).sub_(1)


@torch.no_grad()
def draw(
    class_ids: Tensor, seeds: Tensor, size: int = 128, device: torch.device | str | None = None
) -> Scene:
    """Draw pictures of classes (B,) with seeds (B,), both int64, on `device` (default: that of seeds).

    Raises ValueError for a class outside CLASSES or tensors that do not match.
    """
    class_ids, seeds = torch.as_tensor(class_ids), torch.as_tensor(seeds)
    _check(class_ids, seeds)
    device = torch.device(device) if device is not None else seeds.device
    class_ids, seeds = class_ids.to(device), seeds.to(device)
    images = torch.empty(len(seeds), 3, size, size, device=device)
    factors = torch.empty(len(seeds), MAX_FACTORS, device=device)
    for name, rows, own in _chunks(class_ids, seeds):
        factors[rows] = factor_values(name, own)
        images[rows] = _paint(name, own, factors[rows], size)
    return Scene(images, factors)


@torch.no_grad()
def draw_factors(class_ids: Tensor, factors: Tensor, seeds: Tensor, size: int = 128) -> Tensor:
    """Draw pictures (B, 3, size, size) of classes (B,) with factors (B, MAX_FACTORS), on the seeds' device.
    Seeds (B,) decide what no factor does.

    Raises ValueError as `draw` does.
    """
    _check(class_ids, seeds)
    images = torch.empty(len(seeds), 3, size, size, device=seeds.device)
    for name, rows, own in _chunks(class_ids, seeds):
        images[rows] = _paint(name, own, factors[rows], size)
    return images


def _check(class_ids: Tensor, seeds: Tensor) -> None:
    if class_ids.shape != seeds.shape or class_ids.ndim != 1:
        raise ValueError(
            f"class_ids and seeds must be of one shape (B,), not {class_ids.shape} and {seeds.shape}"
        )
    if len(class_ids) and (class_ids.min() < 0 or class_ids.max() >= len(CLASSES)):
        raise ValueError(f"class_ids must lie in 0 … {len(CLASSES) - 1}")


def _chunks(class_ids: Tensor, seeds: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Parts of a batch, each of one class: its name, rows, and their `_own_seeds`."""
    chunk = CPU_CHUNK if seeds.device.type == "cpu" else DEVICE_CHUNK
    for class_id in class_ids.unique().tolist():
        for rows in (class_ids == class_id).nonzero()[:, 0].split(chunk):
            yield CLASSES[class_id], rows, _own_seeds(class_id, seeds[rows])
