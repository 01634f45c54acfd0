"""The velocity transformer: causality, cache, shape; the model as a set of modules."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestar.engine import Engine
from nestar.model import NestAR, NestARConfig
from nestar.nesting import Nesting
from nestar.transformer import Context

CHANNELS, CLASSES = 4, 3


def make_model(nesting: Nesting, blocks: int = 4) -> NestAR:
    """A small model whose zero-initialised layers have been filled, so that every path carries signal."""
    torch.manual_seed(0)
    model = NestAR(NestARConfig(nesting, CHANNELS, CLASSES, dim=32, heads=2, blocks=blocks, cond_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


NESTINGS = [
    Nesting.nested(4, 4, 2),
    Nesting.nested(4, 4, 4),
    Nesting.nested(3, 5, 2),
    Nesting.nested(4, 4, 4, "raster"),
    Nesting.autoregressive(2, 3),
    Nesting.cells(4, 4, 4),
    Nesting.one_shot(3, 3),
]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"blocks": 3}, "at least 4, one per module"),
        ({"dim": 36}, "of 4 times"),
        ({"blocks": 8, "split": (1, 2, 5)}, "of 8 blocks names a number of at least 1 for each of 4 modules"),
        ({"blocks": 8, "split": (1, 2, 5, 0)}, "at least 1"),
        ({"blocks": 8, "split": (1, 2, 2, 2)}, "a split of 8 blocks"),
    ],
)
def test_a_config_of_modules_without_blocks_or_heads_without_width_is_refused(
    values: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        NestARConfig(Nesting.nested(4, 4, 2), **{"dim": 32, "heads": 2, "blocks": 4, **values})


@pytest.mark.parametrize("nesting", NESTINGS, ids=lambda nesting: f"{nesting.name}-{nesting.n}")
@torch.inference_mode()
def test_cached_velocities_equal_uncached_ones(nesting: Nesting) -> None:
    """Patch by patch behind a cache of clean context = one block-causal pass, earlier patches at t = 1."""
    model = make_model(nesting)
    x = torch.randn(2, nesting.n, CHANNELS)
    ids = torch.tensor([1, CLASSES])
    for module, scale in zip(model.scaled_modules, nesting.scales, strict=True):
        engine = Engine(module, ids, torch.tensor([[0.3, 1.0]]))
        for number, patch in enumerate(scale.patches):
            y = torch.randn(2, patch.size, CHANNELS)
            cached = engine.velocity(y, 0)
            times = torch.ones(2, number + 1)
            times[:, -1] = 0.3
            sizes = [p.size for p in scale.patches[: number + 1]]
            whole = module(torch.cat([x[:, : patch.start], y], 1), times, ids, sizes)
            torch.testing.assert_close(cached, whole[:, patch.start :], atol=1e-5, rtol=1e-4)
            engine.remember(x[:, patch.start : patch.stop])
        assert engine.length == scale.tokens


@pytest.mark.parametrize("nesting", NESTINGS, ids=lambda nesting: f"{nesting.name}-{nesting.n}")
@torch.inference_mode()
def test_training_shows_every_patch_what_sampling_shows_it(nesting: Nesting) -> None:
    """All generated patches in one pass with their context = one after another behind the cache."""
    model = make_model(nesting)
    x, ids = torch.randn(2, nesting.n, CHANNELS), torch.tensor([1, CLASSES])
    for module, scale in zip(model.scaled_modules, nesting.scales, strict=True):
        sizes = [patch.size for patch in scale.patches]
        start, before = scale.generated[0].start, scale.patches[-1].start
        t = torch.rand(2, len(scale.generated))
        context_t = torch.rand(2, len(sizes) - 1)
        y = torch.randn(2, scale.tokens - start, CHANNELS)
        context = Context(x[:, :before], context_t) if before else None
        together = module(y, t, ids, sizes, context)
        times = torch.cat([t, context_t], 1)  # the grid's first: those of the generated patches
        engine = Engine(module, ids, times)
        for number, patch in enumerate(scale.patches):
            if patch in scale.generated:
                at = number - (len(sizes) - len(scale.generated))
                part = slice(patch.start - start, patch.stop - start)
                alone = engine.velocity(y[:, part], at)
                torch.testing.assert_close(together[:, part], alone, atol=1e-5, rtol=1e-4)
            if number < len(sizes) - 1:
                engine.remember(x[:, patch.start : patch.stop], t.shape[1] + number)


@given(number=st.integers(0, len(NESTINGS) - 1), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_a_later_patch_never_influences_an_earlier_one(number: int, seed: int) -> None:
    nesting = NESTINGS[number]
    model = make_model(nesting)
    generator = torch.Generator().manual_seed(seed)
    for module, scale in zip(model.scaled_modules, nesting.scales, strict=True):
        sizes = [patch.size for patch in scale.patches]
        y = torch.randn(1, scale.tokens, CHANNELS, generator=generator)
        t = torch.rand(1, len(sizes), generator=generator)
        changed = int(torch.randint(len(sizes), (), generator=generator))
        patch = scale.patches[changed]
        other_y, other_t = y.clone(), t.clone()
        other_y[:, patch.start : patch.stop] += 1
        other_t[:, changed] = 1 - other_t[:, changed]
        ids = torch.zeros(1, dtype=torch.long)
        before, after = module(y, t, ids, sizes), module(other_y, other_t, ids, sizes)
        torch.testing.assert_close(before[:, : patch.start], after[:, : patch.start], atol=1e-6, rtol=1e-5)
        moved = (before - after)[:, patch.start :].abs().amax((0, 2))
        assert (moved > 1e-4).all(), "the patch itself and every later token must feel the change"


@torch.inference_mode()
def test_tokens_of_a_patch_see_each_other_in_both_directions() -> None:
    module = make_model(Nesting.one_shot(2, 2)).scaled_modules[0]
    y, ids = torch.randn(1, 4, CHANNELS), torch.zeros(1, dtype=torch.long)
    other = y.clone()
    other[:, 3] += 1
    moved = (
        module(y, torch.full((1, 1), 0.5), ids, [4]) - module(other, torch.full((1, 1), 0.5), ids, [4])
    ).abs()
    assert (moved.amax((0, 2)) > 1e-4).all()


def test_velocities_begin_at_zero_and_soon_depend_on_time_and_class() -> None:
    """adaLN-zero begins as identity: the first step moves the head, the second what conditions it."""
    module = NestAR(
        NestARConfig(Nesting.one_shot(2, 2), CHANNELS, CLASSES, dim=32, heads=2, blocks=2, cond_dim=16)
    ).scaled_modules[0]
    y_BNC = torch.randn(1, 4, CHANNELS).expand(4, -1, -1)
    t_B1, class_ids_B = torch.tensor([[0.2], [0.8], [0.2], [0.8]]), torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert module(y_BNC, t_B1, class_ids_B, [4]).abs().max() == 0
    for _ in range(3):
        (module(y_BNC, t_B1, class_ids_B, [4]) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    v_BNC = module(y_BNC, t_B1, class_ids_B, [4])
    for other in (v_BNC[1], v_BNC[2]):
        assert (v_BNC[0] - other).abs().max() > 1e-6


@pytest.mark.parametrize(("k", "depths"), [(2, (2,) * 6), (4, (4,) * 3), (8, (6, 6))])
def test_a_modules_size_follows_its_config(k: int, depths: tuple[int, ...]) -> None:
    config = NestARConfig(Nesting.nested(8, 8, k))
    assert config.depths == depths
    model = NestAR(config)
    assert tuple(len(module.blocks) for module in model.scaled_modules) == depths
    sees = [len(module.position) for module in model.scaled_modules]
    assert sees == [scale.tokens for scale in config.nesting.scales]
    wider = NestAR(NestARConfig(Nesting.nested(8, 8, k), dim=384))
    ratio = sum(p.numel() for p in wider.parameters()) / sum(p.numel() for p in model.parameters())
    assert 3 < ratio < 4


def test_blocks_may_be_split_by_hand(tmp_path: Path) -> None:
    nesting = Nesting.nested(4, 4, 4)
    shape = {"channels": CHANNELS, "classes": CLASSES, "dim": 32, "heads": 2, "cond_dim": 16}
    config = NestARConfig(nesting, **shape, blocks=5, split=(1, 4))
    model = NestAR(config)
    assert config.depths == tuple(len(module.blocks) for module in model.scaled_modules) == (1, 4)
    model.save_pretrained(tmp_path)
    assert NestAR.from_pretrained(tmp_path).config == config
    even = NestARConfig(nesting, **shape, blocks=5, split=(3, 2))
    assert even == NestARConfig(nesting, **shape, blocks=5) and "split" not in even.to_dict()


@pytest.mark.parametrize(
    "nesting",
    [
        Nesting.nested(8, 8, 2),
        Nesting.nested(8, 8, 4),
        Nesting.nested(8, 8, 8),
        Nesting.one_shot(8, 8),
        Nesting.autoregressive(8, 8),
        Nesting.cells(8, 8, 4),
    ],
    ids=lambda nesting: nesting.name,
)
def test_family_members_have_the_same_total_size(nesting: Nesting) -> None:
    """Equal width and blocks bring every member to 5.5 to 6.5 million parameters."""
    total = sum(p.numel() for p in NestAR(NestARConfig(nesting)).parameters())
    assert 5.5e6 <= total <= 6.5e6


def test_modules_share_no_parameters() -> None:
    model = make_model(Nesting.nested(4, 4, 4))
    owned = [{p.data_ptr() for p in module.parameters()} for module in model.scaled_modules]
    assert not owned[0] & owned[1]


ONCE, MORE = {"images_seen": 500, "steps": 4}, {"images_seen_by_modules": 1200, "modules": [2]}


@pytest.mark.parametrize(
    ("record", "images", "said"),
    [
        ({}, 0, "unknown"),
        (ONCE, 500, "500"),
        (ONCE | {"init": {"images_seen": 3000, "init": {"images_seen": 20}}}, 3520, "3,520"),
        (MORE | {"init": MORE | {"init": ONCE}}, 500, "500 (single modules 2,400 more)"),
        (MORE, 0, "unknown (single modules 1,200 more)"),
        ({"images_seen": "many", "init": ["no record"]}, 0, "unknown"),
    ],
)
def test_images_seen_count_the_runs_that_a_training_began_from(record: dict, images: int, said: str) -> None:
    model = make_model(Nesting.one_shot(2, 2))
    model.record = record
    assert (model.outline.images_seen, model.outline.images_said) == (images, said)
