"""Modules that are taught guidance by what they were earlier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nestar.cli import main
from nestar.model import NestAR, WeightsError
from nestar.settings import SettingsError
from nestar.training import presets
from nestar.training.autoguidance import Teacher
from nestar.training.extrapolate import extrapolate
from nestar.training.loop import Budget, train
from nestar.training.nesting import NestingTask
from nestar.transformer import Context
from tests.small import K2, K4, small_model, small_tokenizer
from tests.test_extrapolate import apart
from tests.test_training import CPU, QUIET, fill


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def task_of(cache: Path, init: NestAR | None, away_from: NestAR | None, **changes: Any) -> NestingTask:
    config = replace(presets.NESTINGS["smoke"], **changes)
    return NestingTask(config, small_tokenizer(), CPU, cache, init=init, away_from=away_from)


def guided_task(cache: Path, by: float = 2.0) -> NestingTask:
    """Weights that are some way from earlier ones; module 2 is to be taught what lies beyond."""
    model = task_of(cache, None, None).model
    fill(model, 3)
    return task_of(cache, model, apart(model, 0.02), modules=(2,), autoguidance=by)


def seen(task: NestingTask) -> tuple[Any, ...]:
    """What module 2 is called with: eight rows, noised at one time."""
    scale = task.config.nesting.scales[1]
    x_BNC = task.held_latents[:8].float()
    sizes = [patch.size for patch in scale.patches]
    first = scale.patches[0].size
    y_BNC = torch.randn(8, sizes[1], x_BNC.shape[-1], generator=torch.Generator().manual_seed(2))
    return (
        y_BNC,
        torch.full((8, 1), 0.4),
        task.held_ids[:8],
        sizes[:2],
        Context(x_BNC[:, :first], torch.ones(8, 1)),
    )


def test_the_guide_is_autoguidance_and_stays_as_it_is(cache: Path) -> None:
    task = guided_task(cache, by=1.5)
    teacher, inputs = task.teachers[2], seen(task)
    v, earlier = teacher.module(*inputs), teacher.earlier(*inputs)
    torch.testing.assert_close(teacher(*inputs), v + 1.5 * (v - earlier))
    assert not teacher(*inputs).requires_grad
    before = teacher(*inputs)
    for step in range(3):
        task.train_step(step, 1.0)
    assert torch.equal(teacher(*inputs), before)


def test_a_module_comes_closer_to_its_guide(cache: Path) -> None:
    task = guided_task(cache)
    inputs, module = seen(task), task.model.scaled_modules[1]

    def away() -> float:
        with torch.no_grad():
            return (module(*inputs) - task.teachers[2](*inputs)).square().mean().item()

    before = away()
    for step in range(160):
        task.train_step(step, 0.3)
    assert away() < 0.5 * before


def test_the_others_stay_and_the_record_says_it(cache: Path, tmp_path: Path) -> None:
    task = guided_task(cache)
    first = {name: value.clone() for name, value in task.model.scaled_modules[0].state_dict().items()}
    record = train(task, Budget(steps=2, warmup_steps=1), tmp_path, cadence=QUIET)
    assert {name for name in record if name[0] in "mc"} == {"m2"}, "nothing of shared tokens"
    exported = NestAR.from_pretrained(tmp_path / task.config.weights_name)
    own = exported.scaled_modules[0].state_dict()
    assert all(torch.equal(first[name].bfloat16(), own[name].bfloat16()) for name in first)
    assert exported.record["autoguided"] == [{"modules": [2], "by": 2.0}]
    with pytest.raises(WeightsError, match="Module 2 of the earlier weights was moved on or guided itself"):
        extrapolate(apart(exported, 0.01), exported, 0.5)
    extrapolate(apart(exported, 0.01), exported, 0.5, [1])


def test_it_takes_both_weights_of_one_shape(cache: Path) -> None:
    model = task_of(cache, None, None).model
    for by, init, away_from in (
        (1.0, None, None),
        (0.0, model, model),
        (1.0, model, None),
        (1.0, None, model),
    ):
        with pytest.raises(SettingsError, match="it takes --away-from and --init"):
            task_of(cache, init, away_from, autoguidance=by)
    with pytest.raises(WeightsError, match="of another shape or nesting"):
        task_of(cache, model, small_model(K2), autoguidance=1.0)


@pytest.mark.parametrize(
    ("record", "said"),
    [({"latents": "0123abcd"}, "another tokenizer"), ({"classes": ["owl"]}, "other classes")],
)
def test_what_teaches_knows_these_tokens_and_classes(cache: Path, record: dict[str, Any], said: str) -> None:
    """Its own velocities are what is learned, whichever modules learn."""
    model, earlier = (task_of(cache, None, None).model for _ in range(2))
    model.record = record
    with pytest.raises(WeightsError, match=f"{said}: all its modules .* without autoguidance"):
        task_of(cache, model, earlier, autoguidance=1.0)


def test_the_command_guides_records_and_resumes_with_the_same_weights_alone(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["train", "nesting", "--preset", "smoke", "--device", "cpu", "--cache", str(cache)]
    first, second, guided = (tmp_path / name for name in ("first", "second", "guided"))
    here, there = (str(folder / "k4-lattice") for folder in (first, second))
    assert main([*call, "--steps", "2", "--folder", str(first)]) == 0
    assert main([*call, "--steps", "2", "--folder", str(second), "--init", here]) == 0
    call += ["--folder", str(guided), "--init", there, "--modules", "2", "--autoguidance", "2"]
    assert main([*call, "--steps", "2", "--away-from", here]) == 0
    record = NestAR.from_pretrained(guided / "k4-lattice").record
    assert record["autoguided"] == [{"modules": [2], "by": 2.0}] and record["config"]["autoguidance"] == 2
    assert record["away_from"]["steps"] == record["init"]["steps"] == 2 and "init" in record["init"]
    assert main([*call, "--steps", "3", "--away-from", here]) == 0
    capsys.readouterr()
    assert main([*call, "--steps", "4", "--away-from", there]) == 2
    assert "holds a run with away_from" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["-1", "9", "nan"])
def test_the_command_refuses_by_range(by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", "nesting", "--preset", "smoke", "--steps", "1", "--folder", str(tmp_path)]
    assert main([*call, "--autoguidance", by]) == 2
    assert "--autoguidance must be a number from 0 to 4" in capsys.readouterr().err
    assert main([*call, "--autoguidance", "1", "--coordination", "0.5"]) == 2
    assert "With --autoguidance neighbours are not coordinated" in capsys.readouterr().err


def test_other_parts_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", "tokenizer", "--steps", "1", "--folder", str(tmp_path), "--away-from", str(tmp_path)]
    assert main(call) == 2
    assert "--away-from does not apply to tokenizer." in capsys.readouterr().err


def test_a_guide_of_a_small_model_runs_without_context() -> None:
    model = small_model(K4)
    module = model.scaled_modules[0]
    y_BNC = torch.randn(2, 4, module.embed.in_features)
    inputs = (y_BNC, torch.full((2, 1), 0.5), torch.zeros(2, dtype=torch.long), [4], None)
    torch.testing.assert_close(Teacher(module, module, 3.0)(*inputs), module(*inputs))
