"""Training in several processes takes the steps of one, stopped and resumed together, on mapped latents."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from nestar import processes
from nestar.cli import main
from nestar.data.image_folder import open_folder
from nestar.data.pools import LatentShards, encode_share, folder_latents, latent_pool
from nestar.flow import Part
from nestar.model import NestAR
from nestar.processes import Worker
from nestar.training import loop, presets
from nestar.training.epochs import Epochs
from nestar.training.loop import Cadence, progress
from nestar.training.nesting import NestingTask, parts_of
from nestar.transformer import Block
from tests.small import K4, free_port, save_tokenizer, small_model, small_tokenizer
from tests.test_cli import refusal
from tests.test_training import assert_equal_states

STEPS = 8
SECONDS = 240
"""In which a test's processes must have ended."""
CLOSE = 1e-4
"""Between losses of the same step in float32, by other orders of addition."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, 20 to train on, a tokenizer, and weights to begin from: in those of a fresh
    nesting, layers of zeros would hide what flows through them."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for name in ("owl", "wren"):
        (root / "birds" / name).mkdir(parents=True)
        for number in range(11):
            noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "birds" / name / f"{number:02}.png")
    save_tokenizer(small_tokenizer(), root / "tokenizer")
    small_model(K4, classes=2).save_pretrained(root / "begun", dtype=torch.float32)
    return root


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Before the runs that are shared by tests, too: what is equal bit for bit is so at equal threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        yield
    torch.set_num_threads(before)


def command(world: Path, run: str, *more: str) -> list[str]:
    data = ["--data", str(world / "birds"), "--tokenizer", str(world / "tokenizer")]
    places = ["--cache", str(world / "cache"), "--folder", str(world / run), "--device", "cpu"]
    recipe = ["--preset", "smoke", "--steps", str(STEPS), "--precision", "float32"]
    return ["train", "nesting", *recipe, *data, *places, "--init", str(world / "begun"), *more]


def observed(patch: pytest.MonkeyPatch, sent: dict[int, signal.Signals]) -> list[dict[str, float]]:
    """Losses of each step from now on, in a list that grows; states are written at every step, and this
    process is sent signals in the steps named."""
    losses: list[dict[str, float]] = []
    train_step = NestingTask.train_step

    def step(task: NestingTask, number: int, lr_factor: float) -> dict[str, Tensor]:
        if number in sent:
            signal.raise_signal(sent[number])
        read = train_step(task, number, lr_factor)
        losses.append({name: value.item() for name, value in read.items()})
        return read

    patch.setattr(NestingTask, "train_step", step)
    patch.setattr(NestingTask, "picture", lambda task, path: None)
    patch.setattr(loop, "Cadence", lambda: Cadence(checkpoint=0, validate=1e9, picture=1e9))
    return losses


def alone(world: Path, run: str, *more: str) -> list[dict[str, float]]:
    """Losses of each step in this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        losses = observed(patch, {})
        assert main(command(world, run, *more)) == 0
    return losses


def process(words: list[str], environment: dict[str, str], told: Path, sent: dict[int, int]) -> None:
    """One of the processes that a launcher starts; writes down its losses if it comes to its end."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    losses = observed(pytest.MonkeyPatch(), {step: signal.Signals(number) for step, number in sent.items()})
    status = main(words)
    told.write_text(json.dumps(losses))
    raise SystemExit(status)


def two(world: Path, run: str, sent: dict[int, int] | None = None) -> tuple[list[int], list[Any]]:
    """Exit states and losses of two processes, as torchrun starts them; the second one is sent signals."""
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    told = [world / f"{run}-{rank}.json" for rank in range(2)]
    started: list[BaseProcess] = []
    for rank in range(2):
        told[rank].unlink(missing_ok=True)
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        own = (sent or {}) if rank else {}
        started.append(
            context.Process(target=process, args=(command(world, run), environment, told[rank], own))
        )
        started[-1].start()
    for one in started:
        one.join(SECONDS)
        if one.is_alive():
            one.kill()
            one.join()
            pytest.fail("a process was left hanging")
    losses = [json.loads(file.read_text()) if file.exists() else None for file in told]
    return [one.exitcode for one in started], losses


@pytest.fixture(scope="module")
def whole(world: Path) -> list[dict[str, float]]:
    """Losses of a run in two processes that nothing stopped; they encode the pictures, too."""
    states, losses = two(world, "two")
    assert states == [0, 0]
    assert losses[0] == losses[1], "every process knows the batch's losses"
    return losses[0]


@pytest.fixture(scope="module")
def one(world: Path) -> list[dict[str, float]]:
    """Losses of the same run in one process, in one part a step."""
    return alone(world, "one")


def assert_same_run(world: Path, run: str, losses: list[dict[str, float]], like: list[Any]) -> None:
    """The steps that `one` took, up to orders of addition; of the weights, how far they went is compared."""
    assert len(losses) == len(like) == STEPS
    for own, other in zip(losses, like, strict=True):
        assert own == pytest.approx(other, abs=CLOSE)
    begun = NestAR.from_pretrained(world / "begun").state_dict()
    way, other = (
        torch.cat([(state[f"model.{name}"] - value).flatten() for name, value in begun.items()])
        for state in (load_file(world / name / loop.STATE_FILE) for name in (run, "one"))
    )
    assert (way - other).norm() < 0.01 * other.norm()


def test_two_processes_take_the_steps_of_one(
    world: Path, whole: list[dict[str, float]], one: list[dict[str, float]]
) -> None:
    assert_same_run(world, "two", whole, one)


def test_accelerate_sets_what_two_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun itself starts the workers of test_bulk.py. With `--cpu` accelerate would start one process."""
    words = ["import json, os, pathlib", "own = dict(os.environ)", "file = pathlib.Path(own['RANK'])"]
    (tmp_path / "tell.py").write_text("\n".join([*words, "file.write_text(json.dumps(own))"]))
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tell"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert [Worker.of_environment(own) for own in told] == [Worker(0, 2, 0), Worker(1, 2, 1)]
    assert told[0]["MASTER_ADDR"] == told[1]["MASTER_ADDR"]
    assert told[0]["MASTER_PORT"] == told[1]["MASTER_PORT"]


def test_accumulated_parts_take_the_steps_of_one_batch(world: Path, one: list[dict[str, float]]) -> None:
    """Neighbours share two rows of the eight: most parts have none."""
    assert_same_run(world, "parts", alone(world, "parts", "--accumulate", "8"), one)


def test_blocks_that_run_again_give_the_same_weights(
    world: Path, one: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, runs = Block.forward, 0

    def counted(block: Block, *given: Any) -> Tensor:
        nonlocal runs
        runs += torch.is_grad_enabled()
        return forward(block, *given)

    monkeypatch.setattr(Block, "forward", counted)
    assert alone(world, "again", "--checkpoint-activations") == one
    assert_equal_states(*(load_file(world / run / loop.STATE_FILE) for run in ("again", "one")))
    passes = 2 + 2  # both modules' own, and of the tokens they share
    assert runs == 2 * STEPS * passes * presets.NESTINGS["smoke"].blocks // 2, "forward, and again"


def test_stopped_killed_and_resumed_they_end_where_an_unbroken_run_does(
    world: Path, whole: list[dict[str, float]]
) -> None:
    """In the middle of an epoch of 20 pictures, batches of 8; and no process waits for one that is gone."""
    states, losses = two(world, "broken", {2: signal.SIGTERM})
    assert states == [0, 0] and len(losses[0]) == len(losses[1]) == 3, "one is asked to stop, both do"
    assert progress(world / "broken")[0] == 3 and not (world / "broken" / "k4-lattice").exists()
    states, _ = two(world, "broken", {5: signal.SIGKILL})
    assert states[0] > 0 and states[1] == -signal.SIGKILL
    assert progress(world / "broken")[0] == 5
    states, losses = two(world, "broken")
    assert states == [0, 0] and losses[0] == whole[5:]
    assert_equal_states(*(load_file(world / run / loop.STATE_FILE) for run in ("broken", "two")))
    for file in (world / "two" / "k4-lattice").glob("*.safetensors"):
        assert (world / "broken" / "k4-lattice" / file.name).read_bytes() == file.read_bytes()
    logged = (world / "two" / "log.jsonl").read_text().splitlines()
    assert len(logged) == 1, "one process logs"


def test_an_epoch_shows_every_picture_once_as_it_is_or_mirrored() -> None:
    epochs = Epochs(100, seed=3)
    shown = epochs.index(0, 300).view(3, 100)
    assert all(sorted((epoch % 100).tolist()) == list(range(100)) for epoch in shown)
    assert not torch.equal(shown[0] % 100, shown[1] % 100)
    assert all(30 < (epoch >= 100).sum() < 70 for epoch in shown)
    again = torch.cat([Epochs(100, seed=3).index(first, 8) for first in range(0, 296, 8)])
    assert torch.equal(again, shown.flatten()[:296])
    assert not torch.equal(Epochs(100, seed=4).index(0, 100), shown[0])


def test_parts_cover_a_batch_once_and_share_its_first_rows() -> None:
    parts = [part for rank in range(3) for part in parts_of(24, Worker(rank, 3), 2)]
    assert sorted(row for part in parts for row in range(24)[part.rows]) == list(range(24))
    assert [len(part.of_first(7)) for part in parts] == [2, 1, 1, 1, 1, 1]
    assert parts_of(24, Worker(), 1) == [Part(24, slice(0, None, 1))]


def both(encode: Callable[[Worker], Any]) -> list[Any]:
    """What two processes that see one folder get, here two threads."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(encode, [Worker(0, 2), Worker(1, 2)]))


def test_encoding_is_shared_and_what_is_there_is_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process waits for the other's files."""
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)
    tokenizer, (train, _) = small_tokenizer(), open_folder(world / "birds")

    kept = tmp_path / "8-16.safetensors"
    first = torch.full((8, 4, 4, 4), 7.0, dtype=torch.float16)
    save_file({"latents": first}, kept)
    given = both(lambda own: folder_latents(tmp_path, tokenizer, train, 64, flips=True, worker=own, shard=8))
    whole = folder_latents(tmp_path / "whole", tokenizer, train, 64, flips=True)
    index = torch.tensor([39, 8, 3, 3, 31, 32])
    assert len(given[0]) == len(whole) == 40
    assert torch.equal(given[0][index], given[1][index])
    assert torch.equal(given[0][index[1:2]], first[:1]), "encoded before: kept"
    others = index[index // 8 != 1]
    assert torch.allclose(given[0][others].float(), whole[others].float(), atol=0.02)
    written: list[tuple[int, int]] = []

    def pictures(part: slice, device: torch.device) -> Tensor:
        written.append((part.start, part.stop))
        return torch.zeros(part.stop - part.start, 3, 64, 64)

    files = encode_share(tmp_path / "own", tokenizer, 40, pictures, worker=Worker(1, 2), shard=8, batch=6)
    assert written == [(8, 14), (14, 16), (24, 30), (30, 32)] and [file.exists() for file in files] == [
        False,
        True,
    ] * 2 + [False]


def test_tiny_worlds_latents_are_encoded_together_and_joined_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)
    tokenizer, made = small_tokenizer(), tmp_path / "made.safetensors"
    given = both(lambda own: latent_pool(made, tokenizer, 12, 64, worker=own, shard=4))
    alone, class_ids = latent_pool(tmp_path / "alone.safetensors", tokenizer, 12, 64, shard=4)
    for latents, ids in given:
        assert torch.equal(latents, alone) and torch.equal(ids, class_ids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.safetensors", "made.safetensors"]


def test_waiting_for_a_process_that_is_gone_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(processes, "PATIENCE", timedelta(seconds=0.1))
    with pytest.raises(RuntimeError, match=r"have not written .*missing for 0:00:00\.1"):
        processes.wait_for([tmp_path, tmp_path / "missing"])


def test_latents_that_are_not_read_take_no_memory(tmp_path: Path) -> None:
    def held() -> int:
        status = Path("/proc/self/status").read_text()
        return sum(
            int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssF"))
        )

    rows = torch.arange(1024, dtype=torch.float16)[:, None, None, None]
    for number in range(2):
        latents = (rows + 1024 * number).expand(-1, 16, 32, 32).contiguous()
        save_file({"latents": latents}, tmp_path / f"{number}.safetensors")  # 32 MiB
    before = held()
    shards = LatentShards([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    read = shards[torch.tensor([5, 1024, 1023])]
    assert read.shape == (3, 16, 32, 32) and read[:, 0, 0, 0].tolist() == [5, 1024, 1023]
    assert held() - before < 8 * 1024, "KiB"


def test_of_the_held_out_pictures_some_of_every_class_are_measured(world: Path) -> None:
    train, _ = open_folder(world / "birds")
    some = train.at_most(4)
    assert some.class_ids_N.tolist() == [0, 0, 1, 1] and len(set(some.files)) == 4
    assert train.at_most(20) == train


@pytest.mark.parametrize(
    ("more", "environment", "said"),
    [
        (
            ["--accumulate", "3"],
            {},
            "A batch of 8 has no 3 equal parts (1 processes x 3 accumulated): it takes a multiple of 3.",
        ),
        (
            ["--accumulate", "2"],
            {"WORLD_SIZE": "3"},
            "A batch of 8 has no 6 equal parts (3 processes x 2 accumulated): it takes a multiple of 6.",
        ),
        (["--accumulate", "0"], {}, "--accumulate must be at least 1, got 0."),
        (["--precision", "fp8"], {}, "Unknown precision 'fp8': allowed are auto, bf16, float32."),
        (
            [],
            {"WORLD_SIZE": "2"},
            "There are 2 processes, but MASTER_ADDR is not set: start them by torchrun or accelerate launch.",
        ),
    ],
)
def test_what_cannot_be_shared_is_one_sentence(
    world: Path,
    more: list[str],
    environment: dict[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert refusal(capsys, *command(world, "refused", *more)) == said


def test_only_nestings_are_trained_by_several_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(capsys, "train", "tokenizer", "--steps", "1", "--accumulate", "2")
    assert said == "--accumulate does not apply to tokenizer."
    monkeypatch.setenv("WORLD_SIZE", "4")
    for what in ("tokenizer", "features", "family"):
        said = refusal(capsys, "train", what, "--steps", "1")
        assert said == f"`train {what}` runs in one process; the launcher started 4."
