"""Previews against the finished picture: which are compared, and what the summary says."""

import itertools

import pytest
import torch

from nestar.evaluation.metrics import psnr
from nestar.evaluation.previews import coarse_to_fine, preview_psnr, psnr_of_tokens
from nestar.nesting import Nesting
from nestar.sampler import ModuleDone, PatchDone, SolverSettings, sample
from nestar.tokenizer import KEPT_WEIGHTS, fill_weights, filled
from tests.small import K2, K4, small_model, small_tokenizer

IDS, SEEDS, SETTINGS = torch.tensor([0, 2]), [3, 4], SolverSettings(steps=1)


def test_every_modules_preview_but_the_last_is_compared_with_the_finished_picture() -> None:
    model, tokenizer = small_model(K2), small_tokenizer()
    measured = preview_psnr(model, tokenizer, IDS, SEEDS, SETTINGS)
    assert measured.shape == (2, 3), "k = 2 on 16 tokens has four modules"
    standing = {}
    for event in sample(model, IDS, SEEDS, SETTINGS):
        if isinstance(event, PatchDone):
            tokens = event.sequence_BNC.clone()
        if isinstance(event, ModuleDone):
            with torch.inference_mode():
                standing[event.module] = tokenizer.preview(tokens, K2, event.known)
    for module in (1, 2, 3):
        torch.testing.assert_close(measured[:, module - 1], psnr(standing[module], standing[4]))


def test_tokens_that_stand_already_are_compared_alike() -> None:
    model, tokenizer = small_model(K2), small_tokenizer()
    *_, last = (event for event in sample(model, IDS, SEEDS, SETTINGS) if isinstance(event, PatchDone))
    ours = psnr_of_tokens(last.sequence_BNC, tokenizer, K2)
    torch.testing.assert_close(ours, preview_psnr(model, tokenizer, IDS, SEEDS, SETTINGS))


@pytest.mark.parametrize("nesting", [K4, Nesting.nested(4, 4, 4, order="raster")])
def test_a_decoder_that_never_saw_fills_has_its_guesses_softened(nesting: Nesting) -> None:
    ours, foreign = small_tokenizer(), small_tokenizer()
    ours.fills = True
    tokens = torch.randn(2, 16, ours.channels, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for known in (1, 4, 8):
            guess, soft = ours.preview(tokens, nesting, known), foreign.preview(tokens, nesting, known)
            assert soft.diff(dim=-1).abs().mean() < 0.9 * guess.diff(dim=-1).abs().mean()
            assert (soft - guess).abs().mean() < guess.std(), "it is the same guess"
        torch.testing.assert_close(foreign.preview(tokens, nesting, 16), ours.preview(tokens, nesting, 16))


def test_too_few_previews_make_no_summary() -> None:
    tokenizer = small_tokenizer()
    two_modules = preview_psnr(small_model(K4), tokenizer, IDS, SEEDS, SETTINGS)
    assert two_modules.shape == (2, 1) and coarse_to_fine(two_modules) is None
    one_module = preview_psnr(small_model(Nesting.one_shot(4, 4)), tokenizer, IDS, SEEDS, SETTINGS)
    assert one_module.shape == (2, 0) and coarse_to_fine(one_module) is None


def test_a_sample_rises_if_every_step_does() -> None:
    summary = coarse_to_fine(
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 4.0, 5.0], [3.0, 2.0, 1.0]])
    )
    assert summary["rising"] == 0.5 and summary["samples"] == 4
    assert summary["rising_at"] == [0.75, 0.5]
    assert summary["psnr"] == pytest.approx([1.75, 2.75, 2.75])


@pytest.mark.parametrize("order", ["lattice", "raster"])
@pytest.mark.parametrize("known", [1, 2, 5, 8, 15, 16])
def test_unknown_places_take_the_mean_of_their_nearest_known_tokens(order: str, known: int) -> None:
    nesting = Nesting.nested(4, 4, 2, order=order)
    tokens_BNC = torch.randn(2, nesting.n, 3, generator=torch.Generator().manual_seed(0))
    grid_BhwC = filled(tokens_BNC, nesting, known).permute(0, 2, 3, 1)
    made = nesting.positions[:known]
    for row, column in itertools.product(range(4), range(4)):
        squared = [(row - r) ** 2 + (column - c) ** 2 for r, c in made]
        nearest = [number for number, each in enumerate(squared) if each == min(squared)]
        expected = tokens_BNC[:, nearest].mean(1)
        torch.testing.assert_close(grid_BhwC[:, row, column], expected)
        if (row, column) in made:
            assert torch.equal(grid_BhwC[:, row, column], tokens_BNC[:, made.index((row, column))])


def test_what_is_not_known_does_not_show() -> None:
    tokens_BNC = torch.randn(2, 16, 3)
    spoilt = tokens_BNC.clone()
    spoilt[:, 5:] = torch.nan
    nesting = Nesting.nested(4, 4, 2)
    assert torch.equal(filled(spoilt, nesting, 5), filled(tokens_BNC, nesting, 5))


def test_many_weights_of_a_fill_are_not_kept() -> None:
    nesting = Nesting.autoregressive(64, 64)
    assert fill_weights(nesting, 3) is fill_weights(nesting, 3)
    many = KEPT_WEIGHTS // nesting.n + 1
    assert fill_weights(nesting, many) is not fill_weights(nesting, many)
