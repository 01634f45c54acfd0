"""The nesting against its definition, over many grids and factors."""

from __future__ import annotations

import itertools
import json
import math
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nestar.nesting import Nesting, Patch, token_order

SIDES = st.integers(1, 12)
FACTORS = st.integers(2, 40)
# The machine may be shared with a training run, so no example has a time limit.
unhurried = settings(deadline=None)
POWER_SIDES = (1, 2, 4, 8, 16, 32)


@st.composite
def nestings(draw) -> Nesting:
    """Any nesting of any kind on a small grid."""
    height, width = draw(SIDES), draw(SIDES)
    kind = draw(st.sampled_from(("nested", "autoregressive", "cells", "one-shot")))
    order = draw(st.sampled_from(("lattice", "raster")))
    if kind == "nested":
        return Nesting.nested(height, width, draw(FACTORS), order)
    if kind == "autoregressive":
        return Nesting.autoregressive(height, width, order)
    if kind == "cells":
        return Nesting.cells(height, width, draw(st.integers(1, height)) * draw(st.integers(1, width)))
    return Nesting.one_shot(height, width)


@unhurried
@given(nestings())
def test_every_token_is_placed_and_generated_exactly_once(nesting):
    assert sorted(nesting.positions) == list(itertools.product(range(nesting.height), range(nesting.width)))
    assert nesting.flat == tuple(row * nesting.width + column for row, column in nesting.positions)
    generated = [token for patch in nesting.patches for token in range(patch.start, patch.stop)]
    assert generated == list(range(nesting.n))


@unhurried
@given(nestings())
def test_patches_of_a_module_are_contiguous_and_numbered(nesting):
    for number, scale in enumerate(nesting.scales, start=1):
        assert scale.number == number
        assert [patch.module for patch in scale.patches] == [number] * len(scale.patches)
        assert [patch.index for patch in scale.patches] == list(range(1, len(scale.patches) + 1))
        assert scale.patches[0].start == 0
        for before, after in itertools.pairwise(scale.patches):
            assert before.stop == after.start
        assert all(0 < patch.size <= scale.patches[0].size for patch in scale.patches)
    assert nesting.scales[-1].tokens == nesting.n
    assert nesting.modules == len(nesting.scales)


@unhurried
@given(SIDES, SIDES, FACTORS)
def test_module_m_takes_over_all_earlier_tokens_and_works_in_powers_of_k(height, width, k):
    nesting = Nesting.nested(height, width, k)
    for scale in nesting.scales:
        patch_size = k ** (scale.number - 1)
        assert {patch.size for patch in scale.patches[:-1]} <= {patch_size}
        assert scale.patches[-1].size <= patch_size
        assert len(scale.patches) <= k
    assert nesting.scales[0].generated == nesting.scales[0].patches
    for before, after in itertools.pairwise(nesting.scales):
        assert before.tokens == k**before.number
        assert after.patches[0] == Patch(after.number, 1, 0, before.tokens)
        assert after.generated == after.patches[1:]
        assert after.generated


@unhurried
@given(SIDES, SIDES, FACTORS)
def test_number_of_modules_is_the_rounded_up_logarithm(height, width, k):
    nesting = Nesting.nested(height, width, k)
    modules = nesting.modules
    assert k**modules >= nesting.n
    assert modules == 1 or k ** (modules - 1) < nesting.n


@pytest.mark.parametrize(
    ("k", "exponent"), [(k, m) for k in range(2, 30) for m in range(1, 12) if k**m <= 5000]
)
def test_powers_have_the_counts_of_the_paper(k, exponent):
    nesting = Nesting.nested(1, k**exponent, k, "raster")
    assert nesting.modules == exponent  # floating-point logarithms give 4 for n = 125, k = 5
    assert nesting.evaluations == k + (exponent - 1) * (k - 1)
    assert nesting.context_passes == exponent * (k - 1)
    assert {len(scale.patches) for scale in nesting.scales} == {k}


def test_log_trap():
    assert math.ceil(math.log(125, 5)) == 4
    assert Nesting.nested(5, 25, 5).modules == 3


@pytest.mark.parametrize(("k", "modules", "evaluations"), [(2, 6, 7), (4, 3, 10), (8, 2, 15)])
def test_embedded_grid(k, modules, evaluations):
    nesting = Nesting.nested(8, 8, k)
    assert (nesting.modules, nesting.evaluations) == (modules, evaluations)
    assert nesting.positions == Nesting.nested(8, 8, 2).positions
    assert nesting.name == f"k{k}-lattice"


@pytest.mark.parametrize(("k", "evaluations"), [(2, 9), (4, 13), (8, 18), (16, 31), (256, 256), (1000, 256)])
def test_imagenet_grid(k, evaluations):
    assert Nesting.nested(16, 16, k).evaluations == evaluations


def test_truncated_last_module():
    third = Nesting.nested(16, 16, 8).scales[2]
    assert [patch.size for patch in third.generated] == [64, 64, 64]
    short = Nesting.nested(5, 7, 3)
    assert [[patch.size for patch in scale.patches] for scale in short.scales] == [
        [1, 1, 1], [3, 3, 3], [9, 9, 9], [27, 8],
    ]  # fmt: skip


def test_single_token():
    for nesting in (Nesting.nested(1, 1, 2), Nesting.autoregressive(1, 1), Nesting.one_shot(1, 1)):
        assert nesting.patches == (Patch(1, 1, 0, 1),)
        assert (nesting.evaluations, nesting.context_passes, nesting.tokens_processed) == (1, 0, 1)
        assert nesting.positions == ((0, 0),)


def test_counts_by_hand():
    nesting = Nesting.nested(4, 4, 4)
    # Module 1: four tokens, three of them enter again as context. Module 2: three patches of 4, context 12.
    assert nesting.context_passes == 3 + 3
    assert nesting.tokens_processed == (4 + 3) + (12 + 12)
    assert nesting.function_evaluations(25) == 7 * 25 + 6
    assert nesting.function_evaluations(10, calls_per_step=2) == 7 * 10 * 2 + 6


@unhurried
@given(nestings())
def test_counts_follow_a_walk_through_sampling(nesting):
    evaluations = passes = tokens = 0
    for scale in nesting.scales:
        entered = 0  # tokens whose keys and values this module has cached
        for patch in scale.generated:
            if patch.start > entered:
                passes, tokens, entered = passes + 1, tokens + patch.start - entered, patch.start
            evaluations, tokens = evaluations + 1, tokens + patch.size
    assert (nesting.evaluations, nesting.context_passes) == (evaluations, passes)
    assert nesting.tokens_processed == tokens


def is_lattice(positions, side: int, per_side: int) -> bool:
    """Whether positions are per_side x per_side points, evenly spaced both ways over the whole grid."""
    spacing = side // per_side
    rows = sorted({row for row, _ in positions})
    columns = sorted({column for _, column in positions})
    return (
        len(positions) == per_side**2
        and set(positions) == set(itertools.product(rows, columns))
        and all(line == list(range(line[0], side, spacing)) for line in (rows, columns))
        and max(rows[0], columns[0]) < spacing
    )


@pytest.mark.parametrize("side", POWER_SIDES)
def test_first_4_to_the_j_tokens_are_an_exact_lattice(side):
    positions = token_order(side, side, "lattice")
    for j in range(side.bit_length()):
        assert is_lattice(positions[: 4**j], side, 2**j)


@pytest.mark.parametrize("side", POWER_SIDES[1:])
def test_first_2_times_4_to_the_j_tokens_are_a_quincunx(side):
    positions = token_order(side, side, "lattice")
    for j in range(side.bit_length() - 1):
        half = side // 2 ** (j + 1)
        first, second = positions[: 4**j], positions[4**j : 2 * 4**j]
        assert [((r + half) % side, (c + half) % side) for r, c in first] == list(second)


def test_tokens_4_to_7_of_8x8_are_the_diagonal_offset_of_tokens_0_to_3():
    positions = token_order(8, 8, "lattice")
    assert set(positions[:4]) == {(2, 2), (2, 6), (6, 2), (6, 6)}
    assert [((r + 2) % 8, (c + 2) % 8) for r, c in positions[:4]] == list(positions[4:8])


def off_centre(positions, side: int) -> float:
    """Tokens by which the mean position misses the middle of the grid, in the worse direction."""
    middle = (side - 1) / 2
    means = [sum(axis) / len(axis) for axis in zip(*positions, strict=True)]
    return max(abs(mean - middle) for mean in means)


@pytest.mark.parametrize("side", (2, 4, 8))
def test_lattices_are_within_half_a_token_of_centred(side):
    positions = token_order(side, side, "lattice")
    for j in range(1, side.bit_length()):
        assert off_centre(positions[: 4**j], side) <= 0.5


@pytest.mark.parametrize("side", POWER_SIDES)
def test_lattices_of_any_side_are_within_a_quarter_of_their_spacing_of_centred(side):
    positions = token_order(side, side, "lattice")
    for j in range(side.bit_length()):
        assert off_centre(positions[: 4**j], side) <= side / 2**j / 4


def covering_radius2(height: int, width: int, chosen) -> int:
    """Largest squared distance from a grid position to its nearest chosen one."""
    grid = itertools.product(range(height), range(width))
    return max(min((r - a) ** 2 + (c - b) ** 2 for a, b in chosen) for r, c in grid)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 5), (2, 7), (4, 3), (2, 4), (1, 9), (5, 1)])
def test_farthest_point_prefixes_cover_with_at_most_twice_the_best_radius(height, width):
    positions = token_order(height, width, "lattice")
    grid = list(itertools.product(range(height), range(width)))
    for size in range(1, len(grid)):
        best = min(covering_radius2(height, width, chosen) for chosen in itertools.combinations(grid, size))
        assert covering_radius2(height, width, positions[:size]) <= 4 * best


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
def test_each_farthest_point_is_the_farthest(height, width):
    """The property the guarantee rests on: each next position is as far from the chosen ones as any is."""
    assume(height != width or height not in POWER_SIDES)  # ordered dither, tested above
    positions = token_order(height, width, "lattice")
    assert abs(positions[0][0] - (height - 1) / 2) <= 0.5
    assert abs(positions[0][1] - (width - 1) / 2) <= 0.5
    for size in range(1, len(positions)):
        row, column = positions[size]
        reached = min((row - a) ** 2 + (column - b) ** 2 for a, b in positions[:size])
        assert reached == covering_radius2(height, width, positions[:size])


def test_large_grids_are_fast():
    started = time.process_time()
    for height, width in ((64, 63), (1, 4096), (96, 128)):
        token_order.__wrapped__(height, width, "lattice")
    assert time.process_time() - started < 15


@unhurried
@given(SIDES, SIDES)
def test_raster_is_row_major(height, width):
    assert Nesting.nested(height, width, 2, "raster").flat == tuple(range(height * width))


def test_autoregressive_baseline():
    nesting = Nesting.autoregressive(8, 8)
    assert (nesting.name, nesting.modules) == ("ar-raster", 1)
    assert (nesting.evaluations, nesting.context_passes) == (64, 63)
    assert {patch.size for patch in nesting.patches} == {1}
    assert nesting.tokens_processed == 127
    assert Nesting.autoregressive(8, 8, "lattice").flat == Nesting.nested(8, 8, 4).flat


def test_one_shot_baseline():
    nesting = Nesting.one_shot(8, 8)
    assert (nesting.name, nesting.patches) == ("one-shot", (Patch(1, 1, 0, 64),))
    assert nesting.function_evaluations(50) == 50
    assert nesting.tokens_processed == 64


def test_cells_baseline():
    nesting = Nesting.cells(8, 8, 16)
    assert (nesting.name, nesting.modules, nesting.evaluations) == ("cells16-blocks", 1, 16)
    for index, patch in enumerate(nesting.patches):
        row, column = index // 4 * 2, index % 4 * 2
        square = ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1))
        assert nesting.positions[patch.start : patch.stop] == square


@unhurried
@given(SIDES, SIDES, st.data())
def test_cells_are_rectangles_of_near_equal_shape(height, width, data):
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    nesting = Nesting.cells(height, width, rows * columns)
    shapes = []
    for patch in nesting.patches:
        cell = nesting.positions[patch.start : patch.stop]
        (top, left), (bottom, right) = cell[0], cell[-1]
        assert list(cell) == list(itertools.product(range(top, bottom + 1), range(left, right + 1)))
        shapes.append((bottom - top + 1, right - left + 1))
    for lengths in zip(*shapes, strict=True):
        assert max(lengths) - min(lengths) <= 1


def test_cells_prefer_squares():
    assert Nesting.cells(8, 16, 8).positions[:4] == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert [patch.size for patch in Nesting.cells(8, 16, 8).patches] == [16] * 8


@unhurried
@given(nestings())
def test_dictionary_round_trip(nesting):
    again = Nesting.from_dict(json.loads(json.dumps(nesting.to_dict())))
    assert again == nesting
    assert (again.scales, again.positions, again.name) == (nesting.scales, nesting.positions, nesting.name)


def test_names_are_distinct():
    made = [Nesting.nested(8, 8, k, order) for k in (2, 4, 8) for order in ("lattice", "raster")]
    made += [Nesting.autoregressive(8, 8, order) for order in ("lattice", "raster")]
    made += [Nesting.cells(8, 8, 4), Nesting.cells(8, 8, 16), Nesting.one_shot(8, 8)]
    assert len({nesting.name for nesting in made}) == len(made)


FIELDS = Nesting.nested(8, 8, 4).to_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nesting.nested(0, 8, 4), "height must be a whole number of at least 1, got 0."),
        (lambda: Nesting.nested(8, 8.0, 4), "width must be a whole number of at least 1, got 8.0."),
        (lambda: Nesting.nested(8, 8, 1), "k must be a whole number of at least 2, got 1."),
        (lambda: Nesting.nested(8, 8, True), "k must be a whole number of at least 2, got True."),
        (lambda: Nesting.nested(8, 8, 2.0), "k must be a whole number of at least 2, got 2.0."),
        (lambda: Nesting.nested(8, 8, 4, "blocks"), "must be one of lattice, raster; got 'blocks'."),
        (lambda: Nesting.nested(8, 8, 4, None), "must be one of lattice, raster; got None."),
        (lambda: Nesting.autoregressive(8, -1), "width must be a whole number of at least 1, got -1."),
        (lambda: Nesting.autoregressive(None, 1), "height must be a whole number of at least 1, got None."),
        (lambda: Nesting.autoregressive(8, 8, "blocks"), "must be one of lattice, raster; got 'blocks'."),
        (lambda: Nesting.cells(8, 8, 0), "count of cells must be a whole number of at least 1, got 0."),
        (lambda: Nesting.cells(8, 8, 11), "at most 8 rows and 8 columns; 11 is not."),
        (lambda: Nesting.cells(8, 8, 128), "at most 8 rows and 8 columns; 128 is not."),
        (lambda: Nesting(8, 8, "cells", 4, "raster"), "must be one of blocks; got 'raster'."),
        (lambda: Nesting(8, 8, "one-shot", 2, "raster"), "k of kind one-shot must be its number of"),
        (lambda: Nesting(8, 8, "autoregressive", 8, "raster"), "must be its number of patches 64, got 8."),
        (lambda: Nesting(8, 8, "loop", 4, "raster"), "kind must be one of nested, autoregressive, cells,"),
        (lambda: Nesting.from_dict({"height": 8}), "fields height, width, kind, k, order; got height."),
        (lambda: Nesting.from_dict(FIELDS | {"depth": 1}), "got height, width, kind, k, order, depth."),
        (lambda: Nesting.from_dict(FIELDS | {"k": "4"}), "k must be a whole number of at least 2, got '4'."),
        (lambda: Nesting.from_dict("k4-lattice"), "got str."),
        (lambda: Nesting.one_shot(8, 8).function_evaluations(0), "steps must be a whole number"),
        (lambda: Nesting.one_shot(8, 8).function_evaluations(5, 0), "calls_per_step must be a whole number"),
        (lambda: token_order(8, 8, "spiral"), "must be one of lattice, raster; got 'spiral'."),
    ],
)  # fmt: skip
def test_errors_name_what_was_wrong_and_what_is_allowed(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
