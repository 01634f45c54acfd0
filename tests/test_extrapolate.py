"""Weights moved on beyond their training."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nestar.cli import main
from nestar.model import NestAR, WeightsError
from nestar.settings import SettingsError
from nestar.training.autoguidance import guided_modules
from nestar.training.depth import at_depths
from nestar.training.extrapolate import extrapolate
from tests.small import CHANNELS, K2, K4, small_model


def apart(model: NestAR, distance: float) -> NestAR:
    """The same model at some distance, always in the same direction."""
    other, generator = deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(distance * torch.randn(parameter.shape, generator=generator))
    return other


def velocity(model: NestAR) -> Tensor:
    """Of module 1, for tokens of both classes at two times."""
    y_BNC = torch.randn(4, 4, CHANNELS, generator=torch.Generator().manual_seed(5))
    t_BP = torch.tensor([0.2, 0.9]).repeat(2)[:, None]
    with torch.no_grad():
        return model.scaled_modules[0](y_BNC, t_BP, torch.tensor([0, 0, 1, 1]), [4])


def test_to_first_order_it_is_autoguidance() -> None:
    """Half the distance leaves a quarter of the difference to v + a (v - v')."""
    model, errors, guidance = small_model(K4), [], []
    for distance in (0.001, 0.0005):
        earlier = apart(model, distance)
        guided = velocity(model) + 0.5 * (velocity(model) - velocity(earlier))
        moved = velocity(extrapolate(deepcopy(model), earlier, 0.5))
        errors.append((moved - guided).norm().item())
        guidance.append((guided - velocity(model)).norm().item())
    assert errors[0] < 0.1 * guidance[0]
    assert 3 < errors[0] / errors[1] < 5 and 1.8 < guidance[0] / guidance[1] < 2.2


@pytest.mark.parametrize("modules", [(), (2,)])
def test_moves_the_named_modules_alone(modules: tuple[int, ...]) -> None:
    model, before = small_model(K4), small_model(K4)
    earlier = apart(model, 0.1)
    extrapolate(model, earlier, 0.25, modules)
    for number, module in enumerate(model.scaled_modules, 1):
        moved = number in modules or not modules
        old, away = before.scaled_modules[number - 1], earlier.scaled_modules[number - 1]
        for own, was, far in zip(module.parameters(), old.parameters(), away.parameters(), strict=True):
            torch.testing.assert_close(own, was + 0.25 * (was - far) if moved else was)
    assert model.record["extrapolated"] == [{"modules": [*modules] or [1, 2], "by": 0.25, "away_from": {}}]


def test_command_writes_weights_and_what_was_done(tmp_path: Path) -> None:
    model = small_model(K4)
    model.save_pretrained(tmp_path / "new", record={"images_seen": 30, "init": {"images_seen": 10}})
    apart(model, 0.1).save_pretrained(tmp_path / "old", record={"images_seen": 10})
    folders = [str(tmp_path / "new"), "--away-from", str(tmp_path / "old")]
    assert (
        main(["extrapolate", *folders, "--by", "0.5", "--modules", "2", "--out", str(tmp_path / "once")]) == 0
    )
    again = [str(tmp_path / "once"), "--away-from", str(tmp_path / "old")]
    assert (
        main(["extrapolate", *again, "--by", "0.1", "--modules", "1", "--out", str(tmp_path / "twice")]) == 0
    )
    once, twice = (NestAR.from_pretrained(tmp_path / name) for name in ("once", "twice"))
    first = {"modules": [2], "by": 0.5, "away_from": {"images_seen": 10}}
    assert once.record["extrapolated"] == [first] and once.outline.images_seen == 40
    assert twice.record["extrapolated"] == [first, {**first, "modules": [1], "by": 0.1}]
    moved = [
        any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        for one, other in zip(
            once.scaled_modules, NestAR.from_pretrained(tmp_path / "new").scaled_modules, strict=True
        )
    ]
    assert moved == [False, True]


@pytest.mark.parametrize("by", [-0.1, 2.5, float("nan"), float("inf")])
def test_refuses_a_share_out_of_range(by: float) -> None:
    with pytest.raises(SettingsError, match=r"by 0 to 2 of their way, not by"):
        extrapolate(small_model(K4), small_model(K4), by)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(SettingsError, match="k4-lattice has modules 1 to 2, no module 7"):
        extrapolate(small_model(K4), small_model(K4), 0.5, [1, 7])
    with pytest.raises(WeightsError, match="another shape or nesting"):
        extrapolate(small_model(K4), small_model(K2), 0.5)
    model, other = small_model(K4), small_model(K4)
    model.record, other.record = {"latents": "1234abcd"}, {"latents": "5678abcd"}
    with pytest.raises(WeightsError, match="another tokenizer"):
        extrapolate(model, other, 0.5)


def test_leads_away_from_shallower_weights_as_if_they_had_silent_blocks() -> None:
    earlier = apart(small_model(K4), 0.1)
    model = at_depths(small_model(K4), (2, 3))
    moved = extrapolate(deepcopy(model), earlier, 0.5, [2])
    own, was = (each.scaled_modules[1].blocks[0].qkv.weight for each in (model, earlier))
    torch.testing.assert_close(moved.scaled_modules[1].blocks[0].qkv.weight, own + 0.5 * (own - was))
    assert not moved.scaled_modules[1].blocks[2].out.weight.any(), "silent in both: nothing to lead away from"
    with pytest.raises(WeightsError, match=r"^Module 2 of the earlier weights has more blocks"):
        extrapolate(small_model(K4), model, 0.5, [2])


def test_refuses_to_go_on_from_weights_that_were_moved_on() -> None:
    """Training from there leads back: the way goes against what training mends."""
    earlier = extrapolate(small_model(K4), apart(small_model(K4), 0.1), 0.5, [2])
    with pytest.raises(WeightsError, match="Module 2 of the earlier weights was moved on"):
        extrapolate(small_model(K4), earlier, 0.5)
    extrapolate(small_model(K4), earlier, 0.5, [1])


def test_what_a_later_training_left_as_it_was_is_still_moved_on() -> None:
    moved = {"extrapolated": [{"modules": [2], "by": 0.5}], "modules": [3]}
    for record, left in (
        (moved, {2}),
        ({"modules": [3], "init": moved}, {2}),
        ({"modules": [1], "init": {"modules": [3], "init": moved}}, {2}),
        ({"modules": [2], "init": moved}, set()),
        ({"init": moved}, set()),
        ({"modules": [1], "init": moved, "autoguided": [{"modules": [1], "by": 2.0}]}, {1, 2}),
        ({"modules": [1], "init": None}, set()),
        ({"modules": 3, "extrapolated": 5, "init": moved}, set()),  # a stranger's may hold anything
        ({"extrapolated": ["moved", {"modules": [[2], 1]}], "autoguided": {"modules": [2]}}, {1}),
    ):
        assert guided_modules(record) == left, record
