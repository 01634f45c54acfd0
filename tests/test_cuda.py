"""What a GPU does otherwise: where data lies, what is waited for, and that pictures are the CPU's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nestar import engine, frames
from nestar.data import tiny_worlds
from nestar.data.pools import ImagePool, latent_pool
from nestar.engine import Work
from nestar.engines import Engines, cuda_graph
from nestar.frames import Readout
from nestar.images import from_pil
from nestar.model import NestAR
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.sampler import PatchDone, SolverSettings, sample
from nestar.training import presets
from nestar.training.features import FeaturesTask
from nestar.training.loop import Budget, Cadence, train
from nestar.training.nesting import NestingTask
from nestar.training.tokenizer import TokenizerTask
from tests.small import CLASSES, K2, K4, save_checkpoint, small_model, small_tokenizer
from tests.test_training import FEATURES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")
EVERY_STEP = Cadence(checkpoint=-1, validate=-1, picture=1e9)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def nesting_task(cache: Path, **changes: Any) -> NestingTask:
    return NestingTask(presets.NESTINGS["smoke"], small_tokenizer().to(CUDA), CUDA, cache, **changes)


def tokenizer_task(cache: Path) -> TokenizerTask:
    return TokenizerTask(presets.TOKENIZERS["smoke"], CUDA, cache)


def features_task(cache: Path) -> FeaturesTask:
    return FeaturesTask(FEATURES, CUDA, cache)


@pytest.mark.parametrize("make", [nesting_task, tokenizer_task, features_task])
def test_a_run_trains_validates_saves_and_resumes(
    make: Callable[[Path], Any], cache: Path, tmp_path: Path
) -> None:
    whole = make(cache)
    record = train(whole, Budget(steps=2), tmp_path, cadence=EVERY_STEP)
    assert (record["steps"], record["finished"]) == (2, True)
    assert all(value.isfinite().all() for value in whole.state_tensors().values())
    resumed = make(cache)
    assert train(resumed, Budget(steps=2), tmp_path, cadence=EVERY_STEP)["steps"] == 2  # loads, no more
    one, other = whole.state_tensors(), resumed.state_tensors()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert {value.device.type for name, value in other.items() if name.startswith("model.")} == {"cuda"}
    assert train(resumed, Budget(steps=3), tmp_path, cadence=EVERY_STEP)["steps"] == 3
    assert any(not torch.equal(one[name], value) for name, value in resumed.state_tensors().items())


def test_a_nesting_learns(cache: Path) -> None:
    task = nesting_task(cache)
    before = task.validate()
    for step in range(30):
        task.train_step(step, 1.0)
    after = task.validate()
    assert all(after[name] < 0.95 * before[name] for name in before)


def test_a_step_of_a_nesting_waits_for_nothing(cache: Path) -> None:
    """Every reading of a value on the device, and every copy that waits for it, is an error here."""
    task = nesting_task(cache)
    for step in range(2):  # makes the layouts and the optimisers' state
        task.train_step(step, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = task.train_step(2, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {value.device.type for value in losses.values()} == {"cuda"}
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler")
def test_compiled_modules_lose_as_much_as_eager_ones(cache: Path) -> None:
    try:
        compiled, eager = (nesting_task(cache, compile_modules=flag) for flag in (True, False))
        for step in range(2):
            losses = compiled.train_step(step, 1.0), eager.train_step(step, 1.0)
            for name in losses[1]:
                assert losses[0][name].item() == pytest.approx(losses[1][name].item(), rel=0.05, abs=1e-3)
    finally:
        torch._dynamo.reset()


def assert_same_pictures(one: Tensor, other: Tensor) -> None:
    """Alike but for a few pixels: an edge or a rounding may fall to the other side. In [-1, 1]."""
    difference = (one - other).abs()
    assert difference.mean() < 1e-3
    assert (difference > 0.02).float().mean() < 1e-3


@pytest.mark.parametrize("size", [64, 128])
def test_pictures_and_factors_are_those_of_the_cpu(size: int) -> None:
    ids, seeds = tiny_worlds.draw_indices(0, 48, seed=3)
    there, here = tiny_worlds.draw(ids, seeds, size, CUDA), tiny_worlds.draw(ids, seeds, size)
    assert there.images.device.type == there.factors.device.type == "cuda"
    assert torch.equal(there.factors.cpu().nan_to_num(-1), here.factors.nan_to_num(-1))
    assert_same_pictures(there.images.cpu(), here.images)


def test_an_image_pool_lies_on_the_device(tmp_path: Path) -> None:
    pool = ImagePool(tmp_path / "there", 24, 64, device=CUDA, batch=10)
    assert pool.images.device.type == "cuda" and pool.images.dtype == torch.uint8 and len(pool) == 24
    assert not (tmp_path / "there").exists()
    index = torch.tensor([7, 2, 23, 2, 0])
    images = pool.batch(index.to(CUDA))
    assert images.device.type == "cuda" and images.dtype == torch.float32
    assert_same_pictures(images.cpu(), ImagePool(tmp_path / "here", 24, 64).batch(index))


def test_latents_are_those_of_the_cpu(tmp_path: Path) -> None:
    """Both encode in bfloat16, so they agree to a few of its steps."""
    tokenizer = small_tokenizer()
    here, ids = latent_pool(tmp_path / "here.safetensors", tokenizer, 20, 64, shard=8)
    there, same_ids = latent_pool(tmp_path / "there.safetensors", tokenizer.to(CUDA), 20, 64, shard=8)
    assert there.device.type == same_ids.device.type == "cpu" and torch.equal(ids, same_ids)
    assert there.shape == here.shape and there.dtype == here.dtype == torch.float16
    difference = (there.float() - here.float()).abs()
    assert difference.mean() < 0.02 * here.float().std() and difference.max() < 0.2 * here.float().std()


SAMPLED = SolverSettings(steps=5, cfg=2.0)


def tokens(model: NestAR, settings: SolverSettings = SAMPLED, **given: Any) -> Tensor:
    events = sample(model, torch.arange(len(CLASSES)), [3, 1, 4], settings, **given)
    *_, last = (event for event in events if isinstance(event, PatchDone))
    return last.sequence_BNC.cpu()


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and pictures in float32 on the GPU, too, so that they can be held to the CPU's."""
    for module in (engine, frames):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("nesting", [K4, K2, Nesting.one_shot(4, 4)], ids=lambda nesting: nesting.name)
def test_samples_are_those_of_the_cpu(nesting: Nesting, float32: None) -> None:
    model = small_model(nesting)
    here = tokens(model)
    torch.testing.assert_close(tokens(model.to(CUDA)), here, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "nesting",
    [K4, K2, Nesting.autoregressive(3, 3), Nesting.one_shot(4, 4)],
    ids=lambda nesting: nesting.name,
)
@pytest.mark.parametrize("guided", [True, False])
def test_recorded_passes_are_the_passes(nesting: Nesting, guided: bool) -> None:
    """As graphs, whatever class, seed and steps they are started with, and after others have been recorded
    and dropped."""
    model, replays = small_model(nesting).to(CUDA), []

    def recorder(work: Work) -> Work:
        replay = cuda_graph(work)
        return lambda: (replays.append(1), replay())[1]

    engines = Engines(model)
    assert engines.record(len(CLASSES), guided=guided, recorder=recorder)
    assert Engines(model).record(2, guided=guided)
    torch.cuda.empty_cache()
    for steps in (5, 2):
        settings = SolverSettings(steps=steps, cfg=2.0 if guided else 1.0)
        replays.clear()
        recorded, plain = tokens(model, settings, engines=engines), tokens(model, settings)
        torch.testing.assert_close(recorded, plain, atol=1e-4, rtol=1e-4)
        assert len(replays) == nesting.function_evaluations(steps, settings.calls_per_step)


def test_no_patch_waits_for_the_device() -> None:
    """Neither its steps nor the pictures of the patch before, which are made beside them."""
    model, tokenizer, beside = small_model(K4).to(CUDA), small_tokenizer().to(CUDA), torch.cuda.Stream()
    engines = Engines(model)
    assert engines.record(len(CLASSES), guided=True)

    def run(mode: str) -> list[Readout]:
        read = []
        events = sample(model, torch.arange(len(CLASSES)), [3, 1, 4], SAMPLED, engines=engines)
        try:
            for event in events:
                torch.cuda.set_sync_debug_mode(mode)
                if isinstance(event, PatchDone):
                    decode = partial(tokenizer.preview, event.sequence_BNC, K4, event.known)
                    read.append(Readout(event.norms_BS, decode, beside))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return read

    run("default")  # makes what is made on first use
    *_, last = run("error")
    assert len(last.images()) == len(last.norms()) == len(CLASSES)


def test_frames_are_those_of_the_cpu_and_each_leaves_once(tmp_path: Path, float32: None) -> None:
    there, here = (
        NestARPipeline.from_pretrained(save_checkpoint(tmp_path / device), device=device)
        for device in ("cuda", "cpu")
    )
    there.record()
    assert there.ahead == 1
    both = [list(pipe.stream("fish", steps=3, seed=3)) for pipe in (there, here)]
    for frame, other in zip(*both, strict=True):
        assert (frame.known, frame.evaluations, frame.final) == (other.known, other.evaluations, other.final)
        assert frame.norms[0] == pytest.approx(other.norms[0], rel=0.05)
        assert_same_pictures(from_pil(frame.images), from_pil(other.images))
