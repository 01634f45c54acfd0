"""Training: exports that load, resume after a stop and after a kill, separate and coordinated modules."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nestar import cli, engine, transformer
from nestar.checkpoints import TOKENIZER_FILES, load_tokenizer
from nestar.cli import INTERRUPTED, command_parser, main
from nestar.cli.recipes import recipe_of
from nestar.cli.training import _run_name, compiles
from nestar.data import pools, tiny_worlds
from nestar.data.pools import ImagePool, latent_pool
from nestar.evaluation.features import FeatureNetworkConfig, load_features
from nestar.images import from_bytes
from nestar.model import NestAR, WeightsError
from nestar.nesting import Nesting, Scale
from nestar.pipeline import NestARPipeline
from nestar.settings import SettingsError
from nestar.tokenizer import Tokenizer
from nestar.training import loop, optim, presets
from nestar.training import nesting as nesting_module
from nestar.training.features import FeaturesConfig, FeaturesTask
from nestar.training.loop import Budget, Cadence, progress, train
from nestar.training.nesting import NOT_MUON, LatentPools, NestingTask
from nestar.training.optim import Float32Muon, MovingAverage, MuonAdamW, OptimizerConfig
from nestar.training.tokenizer import TokenizerTask
from tests.small import K2, K4, save_config, save_tokenizer, small_model, small_tokenizer
from tests.test_cli import files_up_to, refusal

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
FEATURES = FeaturesConfig(
    network=FeatureNetworkConfig(
        size=64, channels=(8, 16, 16), blocks=(0, 1, 1), place_channels=8, hidden=32, features=24
    ),
    batch=8,
    pool=64,
    held_out=24,
)
# No side jobs: what these tests compare must not depend on the clock.
QUIET = Cadence(checkpoint=1e9, validate=1e9, picture=1e9)


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one class: a sheet of twelve takes longer than the training."""
    monkeypatch.setattr(nesting_module, "PICTURED", 1)


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


def nesting_task(cache: Path, init: NestAR | None = None, **changes: Any) -> NestingTask:
    config = replace(presets.NESTINGS["smoke"], **changes)
    return NestingTask(config, small_tokenizer(), CPU, cache, init=init)


def tokenizer_task(cache: Path, init: Tokenizer | None = None, **changes: Any) -> TokenizerTask:
    return TokenizerTask(replace(presets.TOKENIZERS["smoke"], **changes), CPU, cache, init=init)


def features_task(cache: Path) -> FeaturesTask:
    return FeaturesTask(FEATURES, CPU, cache)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_tokenizer_is_trained_on_and_features_are_trained_from_the_command_line(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer_task(cache).export(tmp_path / "first", {"steps": 5})
    common = ["--steps", "1", "--device", "cpu", "--cache", str(cache)]
    call = ["train", "tokenizer", "--preset", "smoke", "--init", str(tmp_path / "first/tokenizer"), *common]
    assert main([*call, "--folder", str(tmp_path / "on")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["init"] == {"steps": 5}
    task = TokenizerTask(
        *(presets.TOKENIZERS["smoke"], CPU, cache),
        init=load_tokenizer(tmp_path / "first/tokenizer"),
        steps_before=5,
    )
    assert record["l1"] == round(task.train_step(0, 0.0)["l1"].item(), 5), "what the first five drew is drawn"
    first, on = (load_tokenizer(tmp_path / name / "tokenizer") for name in ("first", "on"))
    pairs = zip(first.parameters(), on.parameters(), strict=True)
    moved = [(one - other).abs().max().item() for one, other in pairs]
    assert 0 < max(moved) < 0.1, "a step from there"

    monkeypatch.setitem(presets.FEATURES, "tiny-worlds", FEATURES)
    assert main(["train", "features", *common, "--folder", str(tmp_path / "features")]) == 0
    assert load_features(tmp_path / "features/features").config == FEATURES.network


@pytest.mark.parametrize(
    ("flags", "name", "folder"),
    [
        ([], "k4-lattice", "nesting-tiny-worlds-k4"),
        (["--k", "2"], "k2-lattice", "nesting-tiny-worlds-k4-k2-lattice"),
        (["--order", "raster"], "k4-raster", "nesting-tiny-worlds-k4-k4-raster"),
        (["--k", "8", "--variant", "mine"], "k8-lattice.mine", "nesting-tiny-worlds-k4-k8-lattice.mine"),
    ],
)
def test_a_presets_nesting_and_shape_can_be_others(flags: list[str], name: str, folder: str) -> None:
    shape = ["--dim", "96", "--heads", "3", "--coordination", "0.5"]
    arguments = command_parser().parse_args(["train", "nesting", *flags, *shape, "--blocks", "18"])
    preset, config = recipe_of(arguments)
    assert (config.weights_name, _run_name(arguments, preset, config)) == (name, folder)
    model = config.model_config(channels=16)
    assert (model.dim, model.heads, model.blocks, config.coordination) == (96, 3, 18, 0.5)
    assert model.nesting == config.nesting and model.nesting.height == 8


def test_a_split_says_how_many_blocks_there_are() -> None:
    arguments = command_parser().parse_args(["train", "nesting", "--split", "4,8,6"])
    assert recipe_of(arguments)[1].model_config(channels=16).depths == (4, 8, 6)


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
        ("nesting", ["--tokenizer", str(tmp_path / "tokenizer/tokenizer"), "--pool", "40"]),
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
        assert not (folder / "state.safetensors.partial").exists()
    assert {"l1", "kl", "psnr", "psnr_4"} <= records["tokenizer"].keys()
    held = {f"{name}_{m}" for name in ("held", "held_clean") for m in (1, 2)}
    assert {"m1", "m2", "c1", *held} <= records["nesting"].keys()

    tokenizer = load_tokenizer(tmp_path / "tokenizer/tokenizer")
    nesting = presets.NESTINGS["smoke"].nesting
    exported = tmp_path / "nesting" / nesting.name
    assert NestAR.from_pretrained(exported).config.channels == tokenizer.channels == 16
    training = json.loads((exported / "config.json").read_text())["training"]
    assert (training["steps"], training["images_seen"]) == (3, 3 * 8)
    assert training["products"] == engine.products_in(CPU)
    assert training["config"]["pool"] == 40
    assert list((tmp_path / "cache").glob("latents_*_40_*.safetensors")), "as many were drawn"
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


@pytest.mark.parametrize("nested", [False, True])
def test_a_decoder_is_trained_on_for_the_same_latents(cache: Path, tmp_path: Path, nested: bool) -> None:
    tokenizer_task(cache, nested=nested).export(tmp_path / "first", {"steps": 0})
    first = load_tokenizer(tmp_path / "first/tokenizer")
    task = tokenizer_task(cache, init=first, decoder_only=True)
    train(task, Budget(steps=2, warmup_steps=1), tmp_path / "run", cadence=QUIET)
    second = load_tokenizer(tmp_path / "run/tokenizer")
    assert torch.equal(second.encode(task.held_out), first.encode(task.held_out))
    assert second.scale == first.scale
    assert second.nested == first.nested == nested
    known = {task._fill(4 * step, torch.Generator())[1] for step in range(8)}
    assert known == ({2, 4, 8} if nested else {4}), "when modules of any nesting, or of k = 4, close"
    assert second.latents_fingerprint == first.latents_fingerprint
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize(("modules", "coordination"), [((2,), 0.1), ((1,), 0.1), ((2,), 0.0), ((1,), 0.0)])
def test_some_modules_are_trained_and_the_others_stay(
    modules: tuple[int, ...], coordination: float, cache: Path, tmp_path: Path
) -> None:
    first = nesting_task(cache).model
    fill(first, 3)
    task = nesting_task(cache, init=first, modules=modules, coordination=coordination)
    record = train(task, Budget(steps=2, warmup_steps=1), tmp_path, cadence=QUIET)
    assert {name for name in record if name.startswith("m")} == {f"m{number}" for number in modules}
    exported = NestAR.from_pretrained(tmp_path / task.config.weights_name)
    for number, (before, after) in enumerate(
        zip(first.scaled_modules, exported.scaled_modules, strict=True), 1
    ):
        same = [
            torch.equal(one.bfloat16(), other.bfloat16())
            for one, other in zip(before.parameters(), after.parameters(), strict=True)
        ]
        assert all(same) if number not in modules else not any(same)
    seen = 2 * task.config.batch
    assert exported.record["modules"] == list(modules) and "images_seen" not in exported.record
    assert exported.record["images_seen_by_modules"] == seen


def test_weights_say_which_pictures_are_new_to_them(cache: Path, tmp_path: Path) -> None:
    """The number is the highest that any of the runs behind them has seen, whichever came last."""

    def exported(folder: str, init: NestAR | None = None, **changes: Any) -> NestAR:
        task = nesting_task(cache, init=init, **changes)
        train(task, Budget(steps=1, warmup_steps=1), tmp_path / folder, cadence=QUIET)
        return NestAR.from_pretrained(tmp_path / folder / task.config.weights_name)

    first = exported("first")
    assert first.record["pictures_before"] == presets.NESTINGS["smoke"].pool
    later = exported("later", first, pool_from=100, pool=16)
    assert later.record["pictures_before"] == 116
    assert exported("again", later, modules=(2,)).record["pictures_before"] == 116


def test_some_modules_alone_need_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    train = ["train", "nesting", "--preset", "smoke", "--steps", "1", "--device", "cpu"]
    train += ["--cache", str(cache), "--folder", str(tmp_path)]
    said = {
        "1": "Some modules are trained beside others that stay: --init names their weights.",
        "1,3": "k4-lattice has modules 1 to 2, no module 3.",
    }
    for modules, sentence in said.items():
        assert main([*train, "--modules", modules]) == 2
        assert sentence in capsys.readouterr().err
    assert main([*train, "--split", "2,2,2"]) == 2
    assert "a split of 6 blocks names a number of at least 1 for each of 2 modules" in capsys.readouterr().err


def test_who_serves_a_tokenizer_may_be_another_user(cache: Path, tmp_path: Path) -> None:
    tokenizer_task(cache).export(tmp_path, {"steps": 0})
    modes = {file.name: file.stat().st_mode & 0o044 for file in (tmp_path / "tokenizer").iterdir()}
    assert set(modes) == {*TOKENIZER_FILES, "tokenizer.json"}
    assert set(modes.values()) == {0o044}


def test_a_decoder_alone_needs_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "tokenizer", "--preset", "tiny-worlds-decoder", "--steps", "1", "--device", "cpu"]
    assert main([*train, "--cache", str(tmp_path), "--folder", str(tmp_path)]) == 2
    said = "A decoder alone is trained for an encoder: --init names its tokenizer."
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "refused before anything was drawn"


@pytest.mark.parametrize("bf16", [False, True])
def test_products_are_in_bf16_where_the_device_has_it(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that only emulates it takes three times as long."""
    monkeypatch.setattr(engine, "has_bf16", lambda device: bf16)
    expected = {"auto": bf16, "bf16": True, "float32": False}
    assert tuple(expected) == engine.PRECISIONS
    for precision, in_bf16 in expected.items():
        with engine.autocast(torch.device("cpu"), precision):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if in_bf16 else torch.float32)


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
    first = train(nesting_task(cache), Budget(steps=2), tmp_path, cadence=QUIET)
    before, log = load_file(tmp_path / "state.safetensors"), logged(tmp_path)
    record = train(nesting_task(cache), Budget(steps=2), tmp_path, cadence=QUIET)
    assert (record["steps"], record["finished"]) == (2, True)
    assert_equal_states(load_file(tmp_path / "state.safetensors"), before)
    assert record == first and "m1" in record, "its losses are not forgotten"
    assert logged(tmp_path) == log, "it closed once"


@pytest.mark.parametrize("lost", ["export", "picture", "line"])
def test_an_end_that_was_cut_short_is_made_up_for(cache: Path, tmp_path: Path, lost: str) -> None:
    """A kill between the last step and the end of the export."""
    first = train(nesting_task(cache), Budget(steps=1), tmp_path, cadence=QUIET)
    final, config = tmp_path / "samples/final.png", next(tmp_path.glob("k4*")) / "config.json"
    before = final.read_bytes()
    {"export": config, "picture": final, "line": tmp_path / "log.jsonl"}[lost].unlink()
    record = train(nesting_task(cache), Budget(steps=1), tmp_path, cadence=QUIET)
    assert config.exists() and final.read_bytes() == before
    assert record["finished"] and record["held_clean_1"] == first["held_clean_1"]
    assert logged(tmp_path)[-1] == record


def test_a_torn_line_costs_the_log_no_other(cache: Path, tmp_path: Path) -> None:
    train(nesting_task(cache), Budget(steps=1), tmp_path, cadence=QUIET)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text()[:-20])
    train(nesting_task(cache), Budget(steps=2), tmp_path, cadence=QUIET)
    torn, *whole = log.read_text().splitlines()
    with pytest.raises(ValueError):
        json.loads(torn)
    assert [json.loads(line)["steps"] for line in whole if "steps" in line] == [2]


def test_a_run_that_was_stopped_is_no_success_to_a_shell(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "nesting", "--preset", "smoke", "--steps", "2", "--device", "cpu"]
    command += ["--cache", str(cache), "--folder", str(tmp_path / "run")]
    step = NestingTask.train_step

    def interrupted(task: NestingTask, number: int, lr_factor: float) -> dict[str, torch.Tensor]:
        signal.raise_signal(signal.SIGINT)
        return step(task, number, lr_factor)

    with monkeypatch.context() as patch:
        patch.setattr(NestingTask, "train_step", interrupted)
        assert main(command) == INTERRUPTED
    assert json.loads(capsys.readouterr().out)["finished"] is False
    assert main(command) == 0


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


class Clockwork:
    """A task for the loop alone: a step takes a second of its clock, a contact sheet `sheet` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sheet: float = 0.0, device: str = "cpu"):
        self.now, self.sheet, self.device = 1000.0, sheet, device
        self.sheets: list[str] = []
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now))

    def train_step(self, step: int, lr_factor: float) -> dict[str, torch.Tensor]:
        self.now += 1
        return {"loss": torch.tensor(float(step), device=self.device)}

    def validate(self) -> dict[str, float]:
        return {}

    def picture(self, path: Path) -> None:
        self.now += self.sheet
        self.sheets.append(path.stem)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        pass


def test_contact_sheets_take_no_more_than_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds each, so 200 seconds lie between two; the last one is always made."""
    slow = Clockwork(monkeypatch, sheet=10.0)
    train(slow, Budget(steps=450), tmp_path / "slow", cadence=replace(QUIET, picture=-1))
    assert slow.sheets == ["0000001", "0000202", "0000403", "final"]
    late = Clockwork(monkeypatch)
    deadline = late.now + 2
    train(late, Budget(steps=9), tmp_path / "late", cadence=replace(QUIET, picture=-1), deadline=deadline)
    assert late.sheets == ["0000001"]  # the deadline passed during step 2


@pytest.mark.parametrize(("device", "readings"), [("cpu", 45 + 1), ("meta", 2 + 1)])
def test_losses_are_read_seldom_where_reading_waits(
    device: str, readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """meta stands for a GPU: any other reading of a tensor there is an error."""
    read: list[float] = []
    monkeypatch.setattr(loop, "_read", lambda losses: read.append(0) or {})
    task = Clockwork(monkeypatch, device=device)
    assert train(task, Budget(steps=45), tmp_path, cadence=QUIET)["steps"] == 45
    assert len(read) == readings


def test_logged_losses_are_smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = train(Clockwork(monkeypatch), Budget(steps=3), tmp_path, cadence=QUIET)
    assert record["loss"] == pytest.approx(0.98 * (0.98 * 0 + 0.02 * 1) + 0.02 * 2, abs=1e-5)


def test_side_jobs_happen_on_the_way(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SHARE", 1e9)  # as if they took no time
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
def slow_step(number, lr_factor):
    print(number, flush=True)
    time.sleep(0.02 if number < 25 else 60)  # the last steps wait for the kill
    return step(number, lr_factor)
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
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    begun = random.randint(2, 20)
    assert any(int(line) == begun for line in process.stdout), "training ended before"
    time.sleep(random.uniform(0, 0.05))  # in the step, while its state is written, or in the next
    process.kill()
    process.communicate()
    with safe_open(folder / "state.safetensors", framework="pt") as stored:
        assert begun <= int(stored.metadata()["step"]) < 30, f"killed when step {begun} had begun"
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


def test_small_modules_draw_the_noise_of_the_same_images_more_often(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, rows = nesting_module.flow_matching_loss, {}

    def recorded(module: nn.Module, scale: Scale, x_BNC: torch.Tensor, ids_B: torch.Tensor, **rest: Any):
        rows[scale.number] = x_BNC, ids_B
        return original(module, scale, x_BNC, ids_B, **rest)

    monkeypatch.setattr(nesting_module, "flow_matching_loss", recorded)
    for power, expected in ((0.5, [3, 2, 1, 1]), (0.0, [1, 1, 1, 1]), (1.0, [8, 4, 2, 1])):
        task = nesting_task(cache, nesting=K2, draw_power=power)
        task.train_step(0, 1.0)
        images, ids = rows[4]
        assert len(images) == task.config.batch
        for number, draws in enumerate(expected, 1):
            assert torch.equal(rows[number][0], images.repeat(draws, 1, 1))
            assert torch.equal(rows[number][1], ids.repeat(draws))


def test_coordination_reaches_both_modules(cache: Path) -> None:
    after = {}
    for coordination in (0.0, 1.0):
        task = nesting_task(cache, coordination=coordination)
        fill(task.model, 0)
        after[coordination] = steps(task, 1)
    for alone, together in zip(after[0.0], after[1.0], strict=True):
        assert any(not torch.equal(alone[name], together[name]) for name in alone)


def test_coordination_brings_velocities_together(cache: Path) -> None:
    """Where it outweighs all else, as here, the modules' difference shrinks under noise not trained on."""
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


@pytest.mark.parametrize(("nested", "teaching"), [(True, {0, 1, 2}), (False, set())])
def test_nested_tokens_are_learned_from_grids_in_lattice_order(
    cache: Path, nested: bool, teaching: set[int]
) -> None:
    """Which of four steps teach the encoder, where all rows show unfinished grids."""
    task = tokenizer_task(cache, nested=nested, fill_share=1.0)
    latents, images = torch.zeros(8, 16, 4, 4, requires_grad=True), torch.zeros(8, 3, 64, 64)
    grids = [task._with_fills(latents, images, step, torch.Generator())[0] for step in range(4)]
    led = [torch.autograd.grad(grid.sum(), latents)[0].any() for grid in grids]
    assert {step for step in range(4) if led[step]} == teaching


def test_nested_tokens_are_shown_when_a_module_of_any_nesting_closes(cache: Path) -> None:
    task = tokenizer_task(cache, nested=True)
    fills = [task._fill(step, torch.Generator().manual_seed(step)) for step in range(400)]
    assert sum(nesting.order == "lattice" for nesting, _ in fills) == 300
    closing = [known for step, (_, known) in enumerate(fills) if step % 4 < 2]
    n = fills[0][0].n
    assert set(closing) == {2**power for power in range(1, n.bit_length() - 1)}
    assert {known for _, known in fills} == set(range(1, n)), "and all others now and then"


def test_noise_on_latents_is_measured_in_their_deviation(cache: Path) -> None:
    """On half of the whole grids; those of the first rows are unfinished."""
    task = tokenizer_task(cache, noise=0.5, fill_share=0.25)
    latents = 7 * torch.randn(400, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    added = task._noised(latents, torch.Generator().manual_seed(1)) - latents
    strength = added.std((1, 2, 3)) / 7
    assert not strength[:100].any()
    noised = strength[100:][strength[100:] > 0]
    assert 100 < len(noised) < 200
    assert noised.mean().item() == pytest.approx(0.25, abs=0.03) and 0.45 < noised.max() < 0.52
    assert tokenizer_task(cache)._noised(latents, torch.Generator()) is latents


def test_the_same_seed_trains_the_same_nesting_and_another_one_does_not(cache: Path) -> None:
    first = nesting_task(cache).model.state_dict()

    def trained(seed: int) -> dict[str, torch.Tensor]:
        task = nesting_task(cache, seed=seed)
        task.model.load_state_dict(first)  # what differs is what they draw
        return steps(task, 2)[0]

    one, again, other = (trained(seed) for seed in (0, 0, 1))
    assert_equal_states(one, again)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_begins_with_anothers_weights_draws_what_that_one_has_not(cache: Path) -> None:
    first = nesting_task(cache)
    init = NestAR(first.model.config)
    init.record = {"steps": 3, "images_seen_by_modules": 16, "init": {"steps": 2, "images_seen": 8}}
    later = nesting_task(cache, init=init)
    assert (later.steps_before, later.images_before) == (5, 24), "whose batches were of another size"
    for mine, its in zip(later._rows(0), first._rows(5), strict=True):
        assert torch.equal(mine, its)
    assert not torch.equal(later._rows(0)[0], first._rows(0)[0])
    drawn = [later._noise(0, 1), first._noise(5, 1), first._noise(0, 1)]
    one, same, other = (generator.initial_seed() for generator in drawn)
    assert one == same != other
    later.ema.module.load_state_dict(first.ema.module.state_dict())
    assert later.validate() == first.validate(), "held-out noise is the same in every run"


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


def stopped(*_: Any) -> None:
    raise InterruptedError


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


def test_a_run_beside_it_does_not_wipe_what_a_pool_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has drawn, and not told yet how far it is, when this one begins and is stopped."""
    other = ImagePool(tmp_path, 12, 16)
    drawn = other.images.copy()
    next(tmp_path.glob("*.progress")).unlink()

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(tiny_worlds, "draw", stopped)
        ImagePool(tmp_path, 12, 16)
    assert (other.images == drawn).all() and drawn.any()


def test_a_pool_counts_as_drawn_when_it_is_whole(tmp_path: Path) -> None:
    assert ImagePool.drawn(tmp_path, 12, 16) is None
    ImagePool(tmp_path, 12, 16)
    assert len(ImagePool.drawn(tmp_path, 12, 16)) == 12
    (progress,) = tmp_path.glob("*.progress")
    progress.write_text("4")
    assert ImagePool.drawn(tmp_path, 12, 16) is None and progress.read_text() == "4"


@pytest.mark.parametrize("left", ["nothing", "half"])
def test_what_was_told_of_a_file_that_is_gone_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """A new file is all black until its first pictures are drawn; a run may be stopped before."""
    drawn = ImagePool(tmp_path, 12, 16).images.copy()
    (file,) = tmp_path.glob("*.npy")
    if left == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    assert ImagePool.drawn(tmp_path, 12, 16) is None and file.exists() == (left == "half"), "it only looks"
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(tiny_worlds, "draw", stopped)
        ImagePool(tmp_path, 12, 16)
    assert (ImagePool(tmp_path, 12, 16).images == drawn).all()


def test_a_disk_without_room_for_a_pool_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory that is mapped to a file asks for room when it is written to, and ends the process for want of
    it."""
    train = ["train", "tokenizer", "--preset", "smoke", "--steps", "1", "--cache", str(tmp_path / "cache")]
    with files_up_to(2**13):
        said = refusal(capsys, *train, "--folder", str(tmp_path / "run"))
    assert said.startswith("The disk is full (")


def test_a_pool_gives_its_images_in_the_order_asked_for(tmp_path: Path) -> None:
    pool = ImagePool(tmp_path, 12, 16)
    index = torch.tensor([7, 2, 11, 2, 0])
    assert torch.equal(pool.batch(index), from_bytes(torch.from_numpy(pool.images[index.numpy()])))


def test_a_pool_begins_where_it_is_told(cache: Path, tmp_path: Path) -> None:
    """So that weights are trained on on pictures that they have not seen."""
    tokenizer, config = small_tokenizer(), replace(presets.NESTINGS["smoke"], pool=40, held_out=12)
    whole = LatentPools.load(config, tokenizer, tmp_path)
    later = LatentPools.load(replace(config, pool=16, pool_from=24), tokenizer, tmp_path)
    assert torch.equal(later.class_ids_N, whole.class_ids_N[24:])
    torch.testing.assert_close(later.latents_NChw, whole.latents_NChw[24:], rtol=0, atol=2e-3)
    assert torch.equal(later.held_latents_NChw, whole.held_latents_NChw), "measured on the same"
    assert not torch.equal(later.latents_NChw, whole.latents_NChw[:16])


def test_two_runs_may_make_the_same_pool_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is quicker: it has joined the shards, and cleared them up, before this one's last."""
    tokenizer, file = small_tokenizer(), tmp_path / "pool.safetensors"
    monkeypatch.setattr(pools, "CPU_BATCH", 8)
    expected = latent_pool(tmp_path / "alone.safetensors", tokenizer, 20, 64, shard=8)
    encoded, numbers = pools._encoded, iter(range(100))

    def after_the_other(*arguments: Any) -> torch.Tensor:
        if next(numbers) == 1:
            latent_pool(file, tokenizer, 20, 64, shard=8)
            assert file.exists() and not file.with_suffix(".parts").exists()
        return encoded(*arguments)

    monkeypatch.setattr(pools, "_encoded", after_the_other)
    found = latent_pool(file, tokenizer, 20, 64, shard=8)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.safetensors", "pool.safetensors"]


def test_encoding_goes_on_after_the_last_whole_shard(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, encode = small_tokenizer(), Tokenizer.encode
    monkeypatch.setattr(pools, "CPU_BATCH", 4)
    whole = latent_pool(tmp_path / "whole.safetensors", tokenizer, 20, 64, shard=8)
    numbers = iter(range(100))

    def stops(itself: Tokenizer, images: torch.Tensor) -> torch.Tensor:
        if next(numbers) == 3:  # in the second shard of 8, 8 and 4
            raise InterruptedError
        return encode(itself, images)

    monkeypatch.setattr(Tokenizer, "encode", stops)
    file = tmp_path / "parts.safetensors"
    with pytest.raises(InterruptedError):
        latent_pool(file, tokenizer, 20, 64, shard=8)
    assert not file.exists()
    resumed = latent_pool(file, tokenizer, 20, 64, shard=8)
    assert next(numbers) == 4 + 3  # the first shard was not encoded again
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole, strict=True))
    assert resumed[0].dtype == torch.float16 and len(resumed[0]) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]


def test_layouts_that_validation_asked_for_first_serve_training(cache: Path) -> None:
    for layout in (transformer.patch_of_token, transformer._causal_layout, transformer._context_layout):
        layout.cache_clear()
    task = nesting_task(cache)
    assert task.validate()["held_1"] > 0
    with torch.inference_mode():
        transformer._causal_layout((1, 1, 1, 1), CPU)
        transformer._causal_layout((4,), CPU)
    assert task.train_step(0, 1.0)["m1"] > 0


def test_muon_in_float32_steps_as_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the bf16 that torch's own iterates in; whatever shape, and with a state that is handed on."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    generator = torch.Generator()
    ours, theirs = (
        [nn.Parameter(torch.randn(shape, generator=generator.manual_seed(1))) for shape in shapes]
        for shapes in (((8, 24), (24, 8), (8, 8)),) * 2
    )
    options = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    float32, theirs_in_it = Float32Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for step in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        before = ours[0].detach().clone()
        float32.step()
        theirs_in_it.step()
        assert (ours[0] - before).abs().max() > 1e-3
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        if step == 1:
            theirs_in_it.load_state_dict(copy.deepcopy(float32.state_dict()))
            float32.load_state_dict(copy.deepcopy(theirs_in_it.state_dict()))


@pytest.mark.parametrize("bf16", [True, False])
def test_muon_computes_in_what_the_device_has(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "has_bf16", lambda device: bf16)
    named = [("weight", nn.Parameter(torch.randn(4, 4)))]
    muon = MuonAdamW(named, OptimizerConfig())._optimizers["muon"]
    assert type(muon) is (torch.optim.Muon if bf16 else Float32Muon)


def optimizers_of(task: Any) -> list[tuple[nn.Module, MuonAdamW]]:
    """Each optimiser with the network it trains."""
    if isinstance(task, NestingTask):
        return list(zip(task.model.scaled_modules, task.optimizers, strict=True))
    network = task.network if isinstance(task, FeaturesTask) else task.tokenizer.autoencoder
    return [(network, task.optimizer)]


@pytest.mark.parametrize("make", [nesting_task, tokenizer_task, features_task])
def test_muon_trains_weights_of_layers_only(make: Any, cache: Path) -> None:
    for network, optimizer in optimizers_of(make(cache)):
        layers = [name for name, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        muon, adamw = set(optimizer.names["muon"]), set(optimizer.names["adamw"])
        assert muon and muon <= {f"{name}.weight" for name in layers}
        assert muon | adamw == {name for name, _ in network.named_parameters()} and not muon & adamw


def test_optimiser_state_belongs_to_its_parameter(cache: Path) -> None:
    """By name: a network that lists its parameters in another order takes the same state."""
    task = nesting_task(cache)
    steps(task, 2)
    module, state = task.model.scaled_modules[0], task.optimizers[0].state_tensors()
    assert {"muon.blocks.0.qkv.weight.momentum_buffer", "adamw.blocks.0.qk_scale.exp_avg"} <= state.keys()
    named = list(module.named_parameters())[::-1]
    config = task.config.optimizer
    other = MuonAdamW(named, config, exclude=NOT_MUON)
    other.load_state_tensors(state)
    assert_equal_states(other.state_tensors(), state)
    with pytest.raises(WeightsError, match=r"'adamw\.[\w.]+', which has no place"):
        MuonAdamW(named, config).load_state_tensors(state)


def test_the_average_is_torchs_own(cache: Path) -> None:
    """Bit for bit what `AveragedModel` makes of the same decay, without its way over the device."""
    torch.manual_seed(0)
    model = nn.Linear(5, 7)

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        torch._foreach_lerp_(averaged, current, 1 - min(0.5, (1 + float(count)) / (10 + float(count))))

    ours, theirs = MovingAverage(model, 0.5), AveragedModel(model, multi_avg_fn=update)
    for _ in range(12):
        fill(model, 1)
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert_equal_states(ours.state_dict(), theirs.state_dict())


def test_another_recipe_is_refused_in_a_folder_with_a_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NestingTask, "picture", lambda task, path: None)  # takes longer than all the rest
    other = small_tokenizer()
    fill(other, 3)
    for name, tokenizer in (("tokenizer", small_tokenizer()), ("other", other)):
        save_tokenizer(tokenizer, tmp_path / name)
    folder = tmp_path / "run"
    common = ["--preset", "smoke", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    command = ["train", "nesting", *common, "--folder", str(folder), "--tokenizer"]
    first = [*command, str(tmp_path / "tokenizer"), "--steps", "1"]
    assert main(first) == 0
    run = json.loads((folder / "run.json").read_text())
    assert run["config"] == json.loads(json.dumps(asdict(presets.NESTINGS["smoke"])))
    assert (run["device"], run["init"]) == ("cpu", None)
    state = (folder / "state.safetensors").read_bytes()
    capsys.readouterr()
    exported = str(folder / "k4-lattice")
    for changes, made, now in (
        (["--coordination", "0"], "coordination 0.1", "coordination 0.0"),
        (["--batch", "4", "--seed", "2"], "batch 8, seed 0", "batch 4, seed 2"),
        (["--init", exported], "init None", r"init [0-9a-f]{8}"),
        (["--tokenizer", str(tmp_path / "other")], r"tokenizer [0-9a-f]{8}", r"tokenizer [0-9a-f]{8}"),
    ):
        said = refusal(capsys, *first, "--steps", "2", *changes)
        assert re.fullmatch(rf"{folder} holds a run with {made}; now asked for: {now}\.", said)
    assert (folder / "state.safetensors").read_bytes() == state
    assert main([*first, "--steps", "2"]) == 0  # the same, with more of a budget
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    state = (folder / "state.safetensors").read_bytes()
    with files_up_to(len(state) - 1):
        assert main([*first, "--steps", "3"]) == 2
    assert "\nnestar: The disk is full (" in capsys.readouterr().err
    assert (folder / "state.safetensors").read_bytes() == state
    (folder / "run.json").unlink()
    said = "holds a run that does not say what it was made with: no run.json."
    assert refusal(capsys, *first) == f"{folder} {said}"


def test_a_state_of_another_shape_is_one_sentence(cache: Path, tmp_path: Path) -> None:
    train(nesting_task(cache), Budget(steps=1), tmp_path, cadence=QUIET)
    for changes in ({"dim": 16}, {"nesting": K2}, {"nesting": Nesting.one_shot(4, 4)}):
        with pytest.raises(WeightsError, match=r"state of another shape or format: see '[\w.]+'\.$"):
            train(nesting_task(cache, **changes), Budget(steps=1), tmp_path, cadence=QUIET)


def test_modules_are_compiled_on_cuda_unless_told_otherwise() -> None:
    for device, flags, compiled in (
        ("cuda", [], True),
        ("cuda", ["--no-compile"], False),
        ("cpu", [], False),
        ("cpu", ["--compile"], True),
    ):
        arguments = cli.command_parser().parse_args(["train", "nesting", *flags])
        assert compiles(arguments, torch.device(device)) == compiled


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
    loaded = LatentPools.load(smoke, small_tokenizer(), cache)
    for nesting in (K4, Nesting.one_shot(4, 4)):
        config = replace(smoke, nesting=nesting)
        shared = NestingTask(config, small_tokenizer(), CPU, cache, pools=loaded)
        alone = nesting_task(cache, nesting=nesting)
        assert torch.equal(shared.latents, alone.latents)
        assert torch.equal(shared.held_latents, alone.held_latents)
        assert_equal_states(shared.state_tensors(), alone.state_tensors())
        for token, (row, column) in enumerate(nesting.positions):
            assert torch.equal(shared.latents[:, token], loaded.latents_NChw[:, :, row, column])
    said = r"The pools hold \(64, 16, 12\) latents and classes, expected \(32, 16, 12\)\."
    with pytest.raises(ValueError, match=said):
        NestingTask(replace(smoke, pool=32), small_tokenizer(), CPU, cache, pools=loaded)


def test_a_run_may_start_from_other_weights(cache: Path) -> None:
    first = nesting_task(cache)
    smoke = presets.NESTINGS["smoke"]
    second = NestingTask(replace(smoke, seed=1), small_tokenizer(), CPU, cache, init=first.model)
    for averaged in (second.model, second.ema.module):
        same = averaged.state_dict()
        assert all(torch.equal(value, same[name]) for name, value in first.model.state_dict().items())
    with pytest.raises(WeightsError, match=r"another shape: dim \d+ \(the recipe has 64\)\.$"):
        NestingTask(replace(smoke, dim=64), small_tokenizer(), CPU, cache, init=first.model)
    tokenizer = tokenizer_task(cache).tokenizer
    again = TokenizerTask(replace(presets.TOKENIZERS["smoke"], seed=1), CPU, cache, init=tokenizer)
    same = again.tokenizer.autoencoder.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in tokenizer.autoencoder.state_dict().items())


def test_a_tokenizer_that_is_trained_on_draws_what_it_has_not_seen(cache: Path) -> None:
    first = tokenizer_task(cache).tokenizer
    smoke = presets.TOKENIZERS["smoke"]

    def loss(steps_before: int, step: int) -> float:
        task = TokenizerTask(smoke, CPU, cache, init=first, steps_before=steps_before)
        return task.train_step(step, 0.0)["l1"].item()

    assert loss(4, 0) == loss(0, 4) != loss(0, 0)


def test_a_trained_module_may_begin_with_another_number_of_blocks(cache: Path) -> None:
    init = nesting_task(cache).model
    deeper = nesting_task(cache, init=init, blocks=5, split=(2, 3), modules=(2,)).model
    assert deeper.config.depths == (2, 3)
    one, other = (model.scaled_modules[0].state_dict() for model in (init, deeper))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with pytest.raises(
        WeightsError, match=r"^Module 2 of --init has 2 blocks: to have 3 it must be trained\.$"
    ):
        nesting_task(cache, init=init, blocks=5, split=(2, 3), modules=(1,))
    with pytest.raises(WeightsError, match=r"another shape: blocks 5 \(the recipe has 4\), split"):
        nesting_task(cache, init=deeper)


def test_weights_of_another_nesting_are_no_start(cache: Path) -> None:
    """Of one shape with the preset's, they take the tokens in another order."""
    raster = nesting_task(cache, nesting=Nesting.nested(4, 4, 4, order="raster"))
    with pytest.raises(WeightsError, match=r"^--init is of k4-raster, the recipe of k4-lattice\.$"):
        nesting_task(cache, init=raster.model)


@pytest.mark.parametrize(
    ("record", "said"),
    [({"latents": "0123abcd"}, "behind another tokenizer"), ({"classes": ["owl"]}, "on other classes")],
)
def test_modules_are_trained_beside_such_of_the_same_tokens_and_classes(
    cache: Path, record: dict[str, Any], said: str
) -> None:
    init = nesting_task(cache).model
    init.record = record
    nesting_task(cache, init=init)  # where all of them are trained on, they may come from elsewhere
    with pytest.raises(WeightsError, match=f"--init was trained {said}: all its modules"):
        nesting_task(cache, init=init, modules=(2,))
    init.record = {"latents": small_tokenizer().latents_fingerprint, "classes": list(tiny_worlds.CLASSES)}
    nesting_task(cache, init=init, modules=(2,))


@pytest.mark.parametrize(
    ("record", "before"),
    [
        ({}, 0),
        ({"pictures_before": 7, "config": {"pool": 5}}, 7),
        ({"config": {"pool": 5, "pool_from": 2}}, 7),
        ({"config": {"pool": "many"}}, 0),
        ({"config": "none"}, 0),
        ({"pictures_before": None}, 0),
    ],
)
def test_how_many_pictures_weights_may_have_seen(record: dict[str, Any], before: int) -> None:
    model = small_model(K4)
    model.record = record
    assert nesting_module.pictures_before(model) == before


def test_a_tokenizer_of_another_grid_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    config = replace(presets.NESTINGS["smoke"], size=2 * presets.NESTINGS["smoke"].size)
    with pytest.raises(SettingsError, match=r"^The recipe is for 4 x 4 tokens; the tokenizer makes 8 x 8 of"):
        NestingTask(config, small_tokenizer(), CPU, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
