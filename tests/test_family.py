"""The family's queue: equal images for all, in order, and the same weights whenever it was stopped."""

from __future__ import annotations

import gc
import itertools
import json
import shlex
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nestar.checkpoints import assemble
from nestar.cli import main
from nestar.cli.common import INTERRUPTED
from nestar.data.tiny_worlds import CLASSES
from nestar.model import NestAR
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import SettingsError, find_nesting
from nestar.tokenizer import Tokenizer
from nestar.training import family, loop, presets
from nestar.training.family import train_family
from nestar.training.nesting import LatentPools, NestingTask, NestingTrainConfig
from tests.small import save_tokenizer, small_tokenizer
from tests.test_cli import refusal
from tests.test_training import QUIET, assert_equal_states, fill

CPU = torch.device("cpu")
SMOKE = presets.NESTINGS["smoke"]
MEMBERS = {
    "nested": SMOKE,
    "flow": replace(SMOKE, nesting=Nesting.one_shot(4, 4)),
    "alone": replace(SMOKE, coordination=0.0, variant="separate"),
}
WEIGHTS = ["k4-lattice", "one-shot", "k4-lattice.separate"]
STEPS = 4
IMAGES = STEPS * SMOKE.batch + 3  # no whole number of batches

Queue = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def quick_and_exact() -> Iterator[None]:
    """One thread: results are compared bit for bit. No contact sheets: they take longer than training."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NestingTask, "picture", lambda task, path: None)
        # What a member leaves is collected; what other tests have left is not searched again for each.
        gc.collect()
        gc.freeze()
        yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    cache = tmp_path_factory.mktemp("cache")

    def run(folder: Path, **changes: Any) -> list[dict[str, Any]]:
        given = {"members": MEMBERS, "tokenizer": small_tokenizer(), "images": IMAGES} | changes
        return train_family(folder=folder, device=CPU, cache=cache, cadence=QUIET, **given)

    return run


@pytest.fixture(scope="module")
def whole(queue: Queue, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A queue that was never stopped: its folder and its report."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, queue(folder)


def after_each_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, NestingTask], object]) -> None:
    """Call `act` at the end of each training step with its number in the queue, from 1, and its task."""
    step, numbers = NestingTask.train_step, itertools.count(1)

    def train_step(task: NestingTask, *arguments: Any) -> dict[str, float]:
        losses = step(task, *arguments)
        act(next(numbers), task)
        return losses

    monkeypatch.setattr(NestingTask, "train_step", train_step)


def no_training(*_: Any, **__: Any) -> None:
    raise AssertionError("a member was trained")


def assert_same_queue(folder: Path, whole: Path) -> None:
    """States and exports are equal, bit for bit."""
    for member, weights in zip(MEMBERS, WEIGHTS, strict=True):
        state = Path(member) / loop.STATE_FILE
        assert_equal_states(load_file(folder / state), load_file(whole / state))
        exports = sorted((whole / member / weights).glob("*.safetensors"))
        assert exports
        for file in exports:
            assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_every_member_sees_equal_images_in_order(
    queue: Queue, whole: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    after_each_step(monkeypatch, lambda _, task: trained.append(task.config.weights_name))
    report = queue(tmp_path)
    assert trained == [name for name in WEIGHTS for _ in range(STEPS)]
    assert json.loads(json.dumps(report)) == report
    for row, (member, config), weights in zip(report, MEMBERS.items(), WEIGHTS, strict=True):
        assert (row["member"], row["nesting"], row["finished"]) == (member, weights, True)
        assert (row["steps"], row["images_seen"]) == (STEPS, STEPS * SMOKE.batch)
        assert row["weights"] == str(tmp_path / member / weights)
        model = NestAR.from_pretrained(row["weights"])
        assert model.config == config.model_config(small_tokenizer().channels)
        assert row["parameters"] == sum(value.numel() for value in model.parameters())
        numbers = [scale.number for scale in config.nesting.scales]
        assert row["held_out"].keys() == {f"{name}_{m}" for m in numbers for name in ("held", "held_clean")}
        stored = json.loads((tmp_path / member / weights / "config.json").read_text())["training"]
        assert (stored["preset"], stored["images_seen"]) == (member, STEPS * SMOKE.batch)
        assert stored["held_1"] == row["held_out"]["held_1"] > 0
        for file in (tmp_path / member / weights).glob("*.safetensors"):
            assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}
    assert_same_queue(tmp_path, whole[0])


def test_a_deadline_interrupts_and_the_next_call_goes_on(
    queue: Queue, whole: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second of this clock, and each call is given three."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    after_each_step(monkeypatch, lambda *_: setattr(clock, "now", clock.now + 1))
    folder = tmp_path / "queue"
    nothing = queue(folder, deadline=clock.now)
    assert not folder.exists()
    assert [(row["steps"], row["images_per_second"], row["weights"]) for row in nothing] == 3 * [
        (0, None, None)
    ]
    for steps in ((3, 0, 0), (4, 2, 0), (4, 4, 1), (4, 4, 4)):
        report = queue(folder, deadline=clock.now + 3)
        assert tuple(row["steps"] for row in report) == steps
        assert [row["finished"] for row in report] == [step == STEPS for step in steps]
        assert [bool(row["held_out"]) for row in report] == [step == STEPS for step in steps]
        for row in report:
            assert row["train_seconds"] == row["steps"]
            assert row["images_per_second"] == (SMOKE.batch if row["steps"] else None)
    assert_same_queue(folder, whole[0])


@pytest.mark.parametrize(("at", "steps"), [(2, (2, 0, 0)), (STEPS, (4, 0, 0)), (STEPS + 1, (4, 1, 0))])
def test_a_signal_stops_the_queue_after_the_step(
    at: int,
    steps: tuple[int, ...],
    queue: Queue,
    whole: tuple[Path, list],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where that step was a member's last: it is exported, and the next one is not begun."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        after_each_step(patch, lambda step, _: step == at and signal.raise_signal(signal.SIGTERM))
        report = queue(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert tuple(row["steps"] for row in report) == steps
    assert [row["finished"] for row in report] == [step == STEPS for step in steps]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name for name, step in zip(MEMBERS, steps, strict=True) if step
    )
    assert all(row["finished"] for row in queue(tmp_path))
    assert_same_queue(tmp_path, whole[0])


def test_finished_members_are_skipped(
    queue: Queue, whole: tuple[Path, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their states are no longer needed, nor are pools."""
    folder, report = whole
    monkeypatch.setattr(family, "NestingTask", no_training)
    monkeypatch.setattr(LatentPools, "load", no_training)
    assert queue(folder) == report
    assert queue(folder, members={"alone": MEMBERS["alone"]}) == report[2:]


def test_a_half_written_export_is_written_again_without_training(
    queue: Queue, whole: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "copy"))
    cut, gone = folder / "nested/k4-lattice/module_2.safetensors", folder / "flow/one-shot/config.json"
    cut.write_bytes(cut.read_bytes()[:-100])
    gone.unlink()
    monkeypatch.setattr(NestingTask, "train_step", no_training)
    assert all(row["finished"] for row in queue(folder))
    assert_same_queue(folder, whole[0])


def changed(**changes: Any) -> dict[str, NestingTrainConfig]:
    return {name: replace(config, **changes) for name, config in MEMBERS.items()}


def other_tokenizer() -> Tokenizer:
    tokenizer = small_tokenizer()
    fill(tokenizer, 3)
    return tokenizer


@pytest.mark.parametrize(
    ("member", "changes", "said"),
    [
        ("nested", {"images": 48}, f"images {IMAGES}; now asked for: images 48."),
        ("nested", {"members": changed(batch=4)}, "batch 8; now asked for: batch 4."),
        (
            "nested",
            {"members": changed(optimizer=replace(SMOKE.optimizer, lr=0.5), seed=1)},
            "optimizer.lr 0.001, seed 0; now asked for: optimizer.lr 0.5, seed 1.",
        ),
        (
            "alone",
            {"members": {"alone": replace(MEMBERS["alone"], coordination=0.5)}},
            "coordination 0.0; now asked for: coordination 0.5.",
        ),
        (
            "flow",
            {"members": {"flow": MEMBERS["nested"]}},
            "nesting.k 1, nesting.kind one-shot, nesting.order raster; now asked for: nesting.k 4, "
            "nesting.kind nested, nesting.order lattice.",
        ),
        # a new member beside the others, which would not be their equal
        ("alone", {"members": {"new": SMOKE}, "images": 48}, f"images {IMAGES}; now asked for: images 48."),
    ],
    ids=["images", "batch", "optimizer", "lambda", "nesting", "sibling"],
)
def test_a_run_made_otherwise_is_refused(
    member: str,
    changes: dict[str, Any],
    said: str,
    queue: Queue,
    whole: tuple[Path, list],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = whole[0]
    monkeypatch.setattr(family, "NestingTask", no_training)
    with pytest.raises(SettingsError) as caught:
        queue(folder, **changes)
    assert str(caught.value) == f"{folder / member} holds a run with {said}"
    assert sorted(path.name for path in folder.iterdir()) == sorted(MEMBERS)


def test_a_run_with_another_tokenizer_is_refused(queue: Queue, whole: tuple[Path, list]) -> None:
    said = r"nested holds a run with tokenizer [0-9a-f]{8}; now asked for: tokenizer [0-9a-f]{8}\.$"
    with pytest.raises(SettingsError, match=said):
        queue(whole[0], tokenizer=other_tokenizer())


def test_a_run_of_another_command_is_refused(queue: Queue, whole: tuple[Path, list], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "copy"))
    (folder / "flow/run.json").unlink()
    with pytest.raises(SettingsError) as caught:
        queue(folder)
    said = "holds a run that does not say what it was made with: no run.json."
    assert str(caught.value) == f"{folder / 'flow'} {said}"


def test_an_unfinished_run_stays_on_the_kind_of_device_it_began_on(
    queue: Queue, whole: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished one does not mind where the queue goes on, nor does its sibling."""
    folder = Path(shutil.copytree(whole[0], tmp_path / "copy"))
    for file in folder.glob("*/run.json"):
        run = json.loads(file.read_text())
        assert run["device"] == "cpu"
        file.write_text(json.dumps({**run, "device": "cuda"}))
    monkeypatch.setattr(family, "NestingTask", no_training)
    assert [row["steps"] for row in queue(folder)] == 3 * [STEPS]
    shutil.rmtree(folder / "flow/one-shot")
    with pytest.raises(
        SettingsError, match=r"flow holds a run with device cuda; now asked for: device cpu\.$"
    ):
        queue(folder)
    assert queue(folder, members={"alone": MEMBERS["alone"]})[0]["finished"]


def test_a_field_younger_than_the_run_stands_at_its_default(
    queue: Queue, whole: tuple[Path, list], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "copy"))
    file = folder / "nested/run.json"
    run = json.loads(file.read_text())
    del run["config"]["variant"]
    file.write_text(json.dumps(run))
    assert [row["steps"] for row in queue(folder)] == 3 * [STEPS]
    del run["config"]["batch"]  # no 8 by default
    file.write_text(json.dumps(run))
    with pytest.raises(SettingsError, match=r"batch 128; now asked for: batch 8\.$"):
        queue(folder)


def test_members_that_are_no_family_are_refused(queue: Queue, tmp_path: Path) -> None:
    members = MEMBERS | {"small": replace(SMOKE, pool=32)}
    with pytest.raises(SettingsError) as caught:
        queue(tmp_path / "queue", members=members)
    assert str(caught.value) == (
        "small has pool 32 and nested 64: members of a family differ in nesting, coordination, variant only."
    )
    with pytest.raises(SettingsError, match=r"^images must be at least a batch of 8, got 7\.$"):
        queue(tmp_path / "queue", images=7)
    assert not (tmp_path / "queue").exists()


def test_pools_are_shared_and_members_let_go_of(
    queue: Queue, whole: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One load of the pools; no member is alive when the next is built, whatever cycles hold it."""
    alive: list[weakref.ref] = []
    given: list[LatentPools] = []
    resets: list[None] = []

    class Watched(NestingTask):
        def __init__(self, *arguments: Any, compile_modules: bool, pools: LatentPools) -> None:
            assert compile_modules  # asked for; not done, it would take minutes
            assert all(member() is None for member in alive)
            assert len(resets) == len(alive)
            super().__init__(*arguments, pools=pools)
            self.itself = self
            alive.append(weakref.ref(self.model))
            given.append(pools)

    monkeypatch.setattr(family, "NestingTask", Watched)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(None))
    queue(tmp_path, compile_modules=True)
    assert len(alive) == len(resets) == 3
    assert given[0] is given[1] is given[2]
    assert_same_queue(tmp_path, whole[0])


def test_the_family() -> None:
    """5.5 to 6.5 million parameters each; equal in all but nesting, lambda and variant."""
    configs = [presets.NESTINGS[name] for name in presets.FAMILY]
    assert [config.weights_name for config in configs] == [
        "k4-lattice",
        "one-shot",
        "ar-raster",
        "k2-lattice",
        "k8-lattice",
        "k4-lattice.separate",
        "k4-raster",
        "cells4-blocks",
    ]
    assert [config.coordination for config in configs] == [0.1] * 5 + [0.0] + [0.1] * 2
    assert all(5.5e6 <= config.model_config(channels=16).parameters <= 6.5e6 for config in configs)
    shared = {replace(config, nesting=SMOKE.nesting, coordination=0.0, variant="") for config in configs}
    assert len(shared) == 1


def test_finished_members_assemble_into_a_checkpoint(whole: tuple[Path, list], tmp_path: Path) -> None:
    save_tokenizer(small_tokenizer(), tmp_path / "tokenizer")
    parts = [Path(row["weights"]) for row in whole[1]]
    made = assemble(
        tmp_path / "made", classes=CLASSES, tokenizer=tmp_path / "tokenizer", nestings=parts[::-1]
    )
    assert made.nestings == tuple(WEIGHTS[::-1])
    pipe = NestARPipeline.from_pretrained(made.folder, device="cpu")
    assert find_nesting(pipe.nestings, 4, "lattice") == "k4-lattice"
    for part, name in zip(parts, WEIGHTS, strict=True):
        assert_equal_states(pipe.models[name].state_dict(), NestAR.from_pretrained(part).state_dict())
    assert pipe("flower", steps=1).image.size == (64, 64)


def test_from_the_command_line_to_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "NESTINGS", MEMBERS)
    monkeypatch.setattr(presets, "FAMILY", tuple(MEMBERS))
    save_tokenizer(small_tokenizer(), tmp_path / "tokenizer")
    command = ["train", "family", "--images", "10", "--batch", "4", "--minutes", "5", "--device", "cpu"]
    command += ["--members", "alone, nested", "--folder", str(tmp_path / "family")]
    command += ["--tokenizer", str(tmp_path / "tokenizer"), "--cache", str(tmp_path / "cache")]
    assert main([*command, "--minutes", "1e-9"]) == INTERRUPTED  # what follows in a shell needs the weights
    assert [row["finished"] for row in json.loads(capsys.readouterr().out)] == [False, False]
    assert main(command) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [(row["member"], row["steps"], row["images_seen"]) for row in report] == [
        ("alone", 2, 8),
        ("nested", 2, 8),
    ]
    said = shlex.split(printed.err.splitlines()[-1])
    assert said[:4] == ["python", "-m", "nestar", "assemble"]
    assert main(said[3:]) == 0
    made = capsys.readouterr().out
    assert made == f"{tmp_path / 'family/checkpoint'}: k4-lattice.separate, k4-lattice\n"
    assert main([*command, "--minutes", "1e-9"]) == 0  # finished: no time is needed
    assert json.loads(capsys.readouterr().out) == report
    assert refusal(capsys, *command, "--images", "20") == (
        f"{tmp_path / 'family/alone'} holds a run with images 10; now asked for: images 20."
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["family", "--preset", "tiny-worlds-k4"], "--preset does not apply to family."),
        (["family", "--steps", "5"], "--steps does not apply to family."),
        (["family", "--init", "somewhere"], "--init does not apply to family."),
        (["family", "--coordination", "0"], "--coordination does not apply to family."),
        (["family", "--seed", "0"], "--seed does not apply to family."),
        (["family", "--pool", "9"], "--pool does not apply to family."),
        (["family", "--split", "4,4,4"], "--split does not apply to family."),
        (["family", "--batch", "0"], "--batch must be at least 1, got 0."),
        (["family", "--minutes", "0"], "The budget must be a finite number above 0, got 0.0."),
        (["family", "--minutes", "nan"], "The budget must be a finite number above 0, got nan."),
        (["family", "--images", "127"], "images must be at least a batch of 128, got 127."),
        (["family", "--device", "tpu"], "Unknown device 'tpu': allowed are auto, cpu and cuda."),
        (["family", "--tokenizer", "nowhere"], "nowhere/tokenizer.json is missing."),
        (
            ["family", "--members", "tiny-worlds-k4,smoke"],
            f"Unknown member 'smoke' of the family: allowed are {', '.join(presets.FAMILY)}.",
        ),
        (["nesting", "--steps", "1", "--images", "5"], "--images does not apply to nesting."),
        (["features", "--steps", "1", "--members", "smoke"], "--members does not apply to features."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, "train", *arguments) == said
    assert list(tmp_path.iterdir()) == []
