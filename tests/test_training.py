"""Training: exports that load, resume after a stop and after a kill, separate and coordinated modules."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from nestar.checkpoints import load_tokenizer
from nestar.cli import main
from nestar.data import tiny_worlds
from nestar.data.pools import ImagePool
from nestar.model import NestAR, WeightsError
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.training import presets
from nestar.training.loop import Budget, Cadence, progress, train
from nestar.training.nesting import LatentPools, NestingTask
from nestar.training.tokenizer import TokenizerTask
from tests.small import K2, K4, save_config, small_tokenizer

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
# No side jobs: what these tests compare must not depend on the clock.
QUIET = Cadence(checkpoint=1e9, validate=1e9, picture=1e9)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Results are compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def nesting_task(cache: Path, **changes: Any) -> NestingTask:
    return NestingTask(replace(presets.NESTINGS["smoke"], **changes), small_tokenizer(), CPU, cache)


def tokenizer_task(cache: Path) -> TokenizerTask:
    return TokenizerTask(presets.TOKENIZERS["smoke"], CPU, cache)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def fill(module: torch.nn.Module, seed: int) -> None:
    """Add noise to every parameter: layers that begin at zero would hide what flows through them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


class StoppedAt:
    """A task that is sent a signal during step `at`."""

    def __init__(self, task: Any, at: int, number: signal.Signals):
        self._task, self._at, self._number = task, at, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def train_step(self, step: int, lr_factor: float) -> dict[str, float]:
        if step == self._at:
            signal.raise_signal(self._number)
        return self._task.train_step(step, lr_factor)


def test_both_recipes_from_the_command_line_to_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few steps of each smoke preset leave a log, samples, and exports that make a checkpoint together."""
    common = ["--preset", "smoke", "--steps", "3", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    records = {}
    for what, extra in (
        ("tokenizer", []),
        ("nesting", ["--tokenizer", str(tmp_path / "tokenizer/tokenizer")]),
    ):
        folder = tmp_path / what
        assert main(["train", what, *common, "--folder", str(folder), *extra]) == 0
        records[what] = json.loads(capsys.readouterr().out)
        assert (records[what]["steps"], records[what]["finished"], records[what]["preset"]) == (
            3,
            True,
            "smoke",
        )
        assert logged(folder)[-1] == records[what]
        assert Image.open(folder / "samples/final.png").size[0] > 64
        assert (folder / "state.safetensors").exists()
        assert not (folder / "state.partial").exists()
    assert {"l1", "kl", "psnr", "psnr_4"} <= records["tokenizer"].keys()
    held = {f"{name}_{m}" for name in ("held", "held_clean") for m in (1, 2)}
    assert {"m1", "m2", "c1", *held} <= records["nesting"].keys()

    tokenizer = load_tokenizer(tmp_path / "tokenizer/tokenizer")
    nesting = presets.NESTINGS["smoke"].nesting
    exported = tmp_path / "nesting" / nesting.name
    assert NestAR.from_pretrained(exported).config.channels == tokenizer.channels == 16
    training = json.loads((exported / "config.json").read_text())["training"]
    assert (training["steps"], training["images_seen"]) == (3, 3 * 8)
    weights = tmp_path / "weights"
    weights.mkdir()
    (tmp_path / "tokenizer/tokenizer").rename(weights / "tokenizer")
    exported.rename(weights / nesting.name)
    save_config(weights, [nesting], tiny_worlds.CLASSES)
    assert NestARPipeline.from_pretrained(weights, device="cpu")("flower", steps=1).image.size == (64, 64)


def test_exported_latents_have_unit_variance(cache: Path, tmp_path: Path) -> None:
    task = tokenizer_task(cache)
    fill(task.ema.module, 0)
    task.export(tmp_path, {"steps": 0})
    assert load_tokenizer(tmp_path / "tokenizer").encode(task.held_out).std().item() == pytest.approx(
        1, rel=0.02
    )


@pytest.mark.parametrize("what", ["nesting", "tokenizer"])
def test_stopped_and_resumed_is_the_same_as_in_one_go(what: str, cache: Path, tmp_path: Path) -> None:
    make = {"nesting": nesting_task, "tokenizer": tokenizer_task}[what]
    budget = Budget(steps=6, warmup_steps=2)
    whole = make(cache)
    assert train(whole, budget, tmp_path / "whole", cadence=QUIET)["finished"]
    stopped = train(StoppedAt(make(cache), 2, signal.SIGTERM), budget, tmp_path / "parts", cadence=QUIET)
    assert (stopped["steps"], stopped["finished"]) == (3, False)
    resumed = make(cache)
    assert train(resumed, budget, tmp_path / "parts", cadence=QUIET)["steps"] == 6
    assert_equal_states(resumed.state_tensors(), whole.state_tensors())
    assert_equal_states(
        load_file(tmp_path / "parts/state.safetensors"), load_file(tmp_path / "whole/state.safetensors")
    )


def test_a_finished_run_is_not_trained_on(cache: Path, tmp_path: Path) -> None:
    train(nesting_task(cache), Budget(steps=2), tmp_path, cadence=QUIET)
    before = load_file(tmp_path / "state.safetensors")
    record = train(nesting_task(cache), Budget(steps=2), tmp_path, cadence=QUIET)
    assert (record["steps"], record["finished"]) == (2, True)
    assert_equal_states(load_file(tmp_path / "state.safetensors"), before)


def test_signals_are_handed_back_after_training(cache: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    record = train(StoppedAt(nesting_task(cache), 0, signal.SIGINT), Budget(steps=2), tmp_path, cadence=QUIET)
    assert (record["steps"], record["finished"]) == (1, False)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not list(tmp_path.glob("k4*"))


def test_a_deadline_that_has_passed_leaves_a_state_to_go_on_from(cache: Path, tmp_path: Path) -> None:
    passed = time.monotonic()
    record = train(nesting_task(cache), Budget(steps=1), tmp_path, cadence=QUIET, deadline=passed)
    assert (record["steps"], record["finished"]) == (0, False)
    assert progress(tmp_path) == (0, 0.0)
    record = train(nesting_task(cache), Budget(steps=1), tmp_path, cadence=QUIET, deadline=passed + 1000)
    assert (record["steps"], record["finished"]) == (1, True)
    assert progress(tmp_path)[0] == 1


def test_side_jobs_happen_on_the_way(cache: Path, tmp_path: Path) -> None:
    every_step = Cadence(checkpoint=-1, validate=-1, picture=-1)
    train(nesting_task(cache), Budget(steps=2), tmp_path, cadence=every_step)
    entries = logged(tmp_path)
    assert [entry.get("step") for entry in entries[:-1]] == [1, 2]
    assert all(entry["held_clean_2"] > 0 and entry["held_1"] > 0 for entry in entries)
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [
        "0000001.png",
        "0000002.png",
        "final.png",
    ]


KILLED = """
import sys, time
from pathlib import Path
import torch
from nestar.training.loop import Budget, Cadence, train
from tests.test_training import nesting_task
torch.set_num_threads(1)
task = nesting_task(Path(sys.argv[1]))
step = task.train_step
def slow_step(*arguments):
    time.sleep(0.05)
    return step(*arguments)
task.train_step = slow_step
train(task, Budget(steps=30), Path(sys.argv[2]), cadence=Cadence(checkpoint=-1, validate=1e9, picture=1e9))
"""


def test_a_kill_at_any_moment_loses_no_more_than_a_step(cache: Path, tmp_path: Path) -> None:
    """SIGKILL while states are written at every step; the resumed run ends where an unbroken one does."""
    whole = nesting_task(cache)
    train(whole, Budget(steps=30), tmp_path / "whole", cadence=QUIET)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(cache), str(folder)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (folder / "state.safetensors").exists():
        assert process.poll() is None, "training ended before its first state"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.wait()
    with safe_open(folder / "state.safetensors", framework="pt") as stored:
        assert 1 <= int(stored.metadata()["step"]) < 30
    resumed = nesting_task(cache)
    assert train(resumed, Budget(steps=30), folder, cadence=QUIET)["finished"]
    assert_equal_states(resumed.state_tensors(), whole.state_tensors())
    assert NestAR.from_pretrained(folder / "k4-lattice").config == whole.model.config


def steps(task: NestingTask, count: int) -> list[dict[str, torch.Tensor]]:
    """The weights of every module after `count` steps."""
    for step in range(count):
        task.train_step(step, 1.0)
    return [module.state_dict() for module in task.model.scaled_modules]


@pytest.mark.parametrize("coordination", [0.0, 1.0])
def test_without_coordination_every_module_trains_as_if_alone(cache: Path, coordination: float) -> None:
    """Other weights in all other modules change nothing at lambda = 0, and do with coordination."""
    settings = {"nesting": K2, "coordination": coordination}
    for own in (0, 2):
        one, other = nesting_task(cache, **settings), nesting_task(cache, **settings)
        for task in (one, other):
            fill(task.model, 0)
        for m, module in enumerate(other.model.scaled_modules):
            if m != own:
                fill(module, 1 + m)
        after, beside = steps(one, 3)[own], steps(other, 3)[own]
        same = all(torch.equal(after[name], beside[name]) for name in after)
        assert same == (coordination == 0)


def test_coordination_reaches_both_modules(cache: Path) -> None:
    after = {}
    for coordination in (0.0, 1.0):
        task = nesting_task(cache, coordination=coordination)
        fill(task.model, 0)
        after[coordination] = steps(task, 1)
    for alone, together in zip(after[0.0], after[1.0], strict=True):
        assert any(not torch.equal(alone[name], together[name]) for name in alone)


def test_coordination_brings_velocities_together(cache: Path) -> None:
    """Where it outweighs all else, as here, the modules' difference shrinks on rows not trained on."""
    task = nesting_task(cache, coordination=1000.0)
    fill(task.model, 0)
    before = task.train_step(1000, 0.0)["c1"]
    steps(task, 15)
    assert task.train_step(1000, 0.0)["c1"] < 0.7 * before


def test_a_nesting_learns(cache: Path) -> None:
    task = nesting_task(cache)
    held = task.validate()
    losses = [task.train_step(step, 1.0) for step in range(30)]
    for name in ("m1", "m2"):
        assert np.mean([loss[name] for loss in losses[-5:]]) < 0.9 * np.mean(
            [loss[name] for loss in losses[:5]]
        )
    after = task.validate()
    assert held.keys() == after.keys() == {"held_1", "held_2", "held_clean_1", "held_clean_2"}
    assert all(after[name] < 0.95 * held[name] for name in held)


def test_a_tokenizer_learns(cache: Path) -> None:
    task = tokenizer_task(cache)
    held = task.validate()
    losses = [task.train_step(step, 1.0) for step in range(30)]
    assert np.mean([loss["l1"] for loss in losses[-5:]]) < 0.8 * np.mean([loss["l1"] for loss in losses[:5]])
    assert task.validate()["psnr"] > held["psnr"] + 1


def test_the_same_seed_trains_the_same_nesting_and_another_one_does_not(cache: Path) -> None:
    one, again, other = (steps(nesting_task(cache, seed=seed), 2)[0] for seed in (0, 0, 1))
    assert_equal_states(one, again)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_budget() -> None:
    budget = Budget(steps=1000)
    assert [budget.lr_factor(step, 0) for step in (0, 49, 99, 500)] == pytest.approx([0.01, 0.5, 1, 1])
    assert [budget.lr_factor(step, 0) for step in (750, 1000)] == pytest.approx([0.5, 0])
    timed = Budget(minutes=2)
    assert [timed.share(5, seconds) for seconds in (0, 30, 120, 500)] == [0, 0.25, 1, 1]
    for values in (
        {},
        {"steps": 1, "minutes": 1.0},
        {"steps": 0},
        {"minutes": -1.0},
        {"minutes": float("nan")},
    ):
        with pytest.raises(ValueError, match="budget"):
            Budget(**values)


def test_an_image_pool_is_taken_up_where_it_stood(tmp_path: Path) -> None:
    whole = ImagePool(tmp_path / "whole", 12, 16, batch=4)
    assert len({whole.images[i].tobytes() for i in range(12)}) == 12
    ImagePool(tmp_path / "parts", 12, 16, batch=4)
    (images,) = (tmp_path / "parts").glob("*.npy")
    stored = np.lib.format.open_memmap(images, mode="r+")
    stored[:4] = 7  # kept: these count as drawn
    stored[4:] = 0
    stored.flush()
    images.with_suffix(".progress").write_text("4")
    resumed = ImagePool(tmp_path / "parts", 12, 16, batch=4)
    assert (resumed.images[:4] == 7).all()
    assert (resumed.images[4:] == whole.images[4:]).all()


def test_cached_latents_belong_to_their_tokenizer(tmp_path: Path) -> None:
    first = nesting_task(tmp_path)
    files = sorted(tmp_path.iterdir())
    written = [file.stat().st_mtime_ns for file in files]
    again = nesting_task(tmp_path)
    assert torch.equal(again.latents, first.latents)
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.iterdir())] == written
    tokenizer = small_tokenizer()
    fill(tokenizer, 3)
    other = NestingTask(presets.NESTINGS["smoke"], tokenizer, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(files)
    assert not torch.equal(other.latents, first.latents)


def test_tasks_may_share_pools_and_read_them_in_their_own_order(cache: Path) -> None:
    smoke = presets.NESTINGS["smoke"]
    pools = LatentPools.load(smoke, small_tokenizer(), cache)
    for nesting in (K4, Nesting.one_shot(4, 4)):
        config = replace(smoke, nesting=nesting)
        shared = NestingTask(config, small_tokenizer(), CPU, cache, pools=pools)
        alone = nesting_task(cache, nesting=nesting)
        assert torch.equal(shared.latents, alone.latents)
        assert torch.equal(shared.held_latents, alone.held_latents)
        assert_equal_states(shared.state_tensors(), alone.state_tensors())
        for token, (row, column) in enumerate(nesting.positions):
            assert torch.equal(shared.latents[:, token], pools.latents_NChw[:, :, row, column])
    with pytest.raises(ValueError, match=r"The pools hold \(64, 16\) latents, expected \(32, 16\)\."):
        NestingTask(replace(smoke, pool=32), small_tokenizer(), CPU, cache, pools=pools)


def test_a_run_may_start_from_other_weights(cache: Path) -> None:
    first = nesting_task(cache)
    smoke = presets.NESTINGS["smoke"]
    second = NestingTask(replace(smoke, seed=1), small_tokenizer(), CPU, cache, init=first.model)
    for averaged in (second.model, second.ema.module):
        same = averaged.state_dict()
        assert all(torch.equal(value, same[name]) for name, value in first.model.state_dict().items())
    with pytest.raises(WeightsError, match="another shape"):
        NestingTask(replace(smoke, dim=64), small_tokenizer(), CPU, cache, init=first.model)
    tokenizer = tokenizer_task(cache).tokenizer
    again = TokenizerTask(replace(presets.TOKENIZERS["smoke"], seed=1), CPU, cache, init=tokenizer)
    same = again.tokenizer.autoencoder.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in tokenizer.autoencoder.state_dict().items())
