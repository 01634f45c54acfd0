"""From settings to frames: what each frame says, reproducibility, refusals, cancelling, streaming."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nestar import pipeline as pipeline_module
from nestar.batches import consecutive
from nestar.checkpoints import assemble
from nestar.engine import Engine
from nestar.frames import Frame
from nestar.images import to_pil
from nestar.model import NestAR, WeightsError
from nestar.nesting import Nesting
from nestar.pipeline import Models, NestARPipeline
from nestar.settings import MAX_SEED, SOLVER_CALLS, SampleSettings, SettingsError
from tests.small import CLASSES, K2, K4, SIZE, save_checkpoint, save_tokenizer, small_model, small_tokenizer

# One image instead of three takes other matrix kernels; their rounding may move a pixel by a grey level.
GREY_LEVEL = 1.0


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> NestARPipeline:
    return NestARPipeline.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("weights")), device="cpu")


@pytest.fixture
def calls(pipe: NestARPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every network pass of the k = 4 model as (what, module, rows)."""
    made: list[tuple[str, int, int]] = []

    modules = list(pipe.models[K4.name].scaled_modules)

    def watch(what: str) -> None:
        inner = getattr(Engine, what)

        def watched(engine: Engine, *arguments: object) -> object:
            made.append((what, modules.index(engine.module) + 1, engine.rows))
            return inner(engine, *arguments)

        monkeypatch.setattr(Engine, what, watched)

    watch("velocity")
    watch("remember")
    return made


def pixels(image: object) -> np.ndarray:
    return np.asarray(image, dtype=np.int64)


def distance(one: object, other: object) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(pixels(one) - pixels(other)).mean())


def test_what_a_loaded_pipeline_knows(pipe: NestARPipeline) -> None:
    assert pipe.classes == CLASSES
    assert pipe.nestings == {K4.name: K4, K2.name: K2}
    assert pipe.plan(4) == K4
    assert pipe.plan(k=2, order="lattice") == K2
    assert pipe.device == torch.device("cpu")
    with pytest.raises(SettingsError, match="k = 3 with order lattice has no weights"):
        pipe.plan(3)


@pytest.mark.parametrize("nesting", [K4, K2], ids=lambda nesting: nesting.name)
@pytest.mark.parametrize("solver", SOLVER_CALLS)
def test_every_field_of_every_frame(pipe: NestARPipeline, nesting: Nesting, solver: str) -> None:
    steps = 3
    frames = list(pipe.stream("fish", k=nesting.k, steps=steps, solver=solver, count=2))
    assert len(frames) == nesting.evaluations
    context = 0
    for number, (frame, patch) in enumerate(zip(frames, nesting.patches, strict=True), 1):
        scale = nesting.scales[patch.module - 1]
        # One at the start of each later module, one after each patch of a module but its last.
        context += number > 1
        assert (frame.module, frame.patch, frame.modules) == (patch.module, patch.index, len(nesting.scales))
        assert (frame.known, frame.n) == (patch.stop, nesting.n)
        assert frame.tokens == nesting.flat[patch.start : patch.stop]
        assert frame.evaluations == number
        assert frame.function_evaluations == number * steps * SOLVER_CALLS[solver] + context
        assert frame.module_done == (patch is scale.patches[-1])
        assert frame.final == (number == len(frames))
        assert len(frame.images) == 2
        assert {(image.size, image.mode) for image in frame.images} == {((SIZE, SIZE), "RGB")}
        assert frame.image is frame.images[0]
    assert frames[-1].function_evaluations == nesting.function_evaluations(steps, SOLVER_CALLS[solver])
    assert sorted(place for frame in frames for place in frame.tokens) == list(range(nesting.n))
    seconds = [frame.seconds for frame in frames]
    assert seconds[0] > 0
    assert all(later > earlier for earlier, later in itertools.pairwise(seconds))


def test_seconds_leave_the_consumer_out(pipe: NestARPipeline) -> None:
    stream = pipe.stream("fish", steps=1)
    first = next(stream)
    began = time.perf_counter()
    time.sleep(0.2)
    second = next(stream)
    assert second.seconds - first.seconds < time.perf_counter() - began - 0.2


def test_a_call_is_the_end_of_its_stream(pipe: NestARPipeline) -> None:
    result = pipe("  Hot-Air Balloon ", steps=2, seed=5, cfg=3)
    last = list(pipe.stream("hot-air balloon", steps=2, seed=5, cfg=3.0))[-1]
    assert result.settings == pipe.settings(class_name="hot-air balloon", steps=2, seed=5, cfg=3.0)
    assert pixels(result.image).tolist() == pixels(last.image).tolist()
    assert (result.evaluations, result.function_evaluations) == (last.evaluations, last.function_evaluations)
    assert [frame.known for frame in result.frames] == [1, 2, 3, 4, 8, 12, 16]
    summary = result.summary()
    assert {
        key: summary[key] for key in ("class", "k", "steps", "cfg", "temperature", "seed", "modules")
    } == {
        "class": "hot-air balloon",
        "k": 4,
        "steps": 2,
        "cfg": 3.0,
        "temperature": SampleSettings.temperature,
        "seed": 5,
        "modules": 2,
    }
    assert [(stage["module"], stage["tokens"]) for stage in summary["stages"]] == [(1, 4), (2, 16)]
    assert summary["stages"][-1]["seconds"] == summary["seconds"] == round(result.seconds, 4)


def test_the_same_seed_and_settings_give_the_same_picture(pipe: NestARPipeline) -> None:
    one, again = (list(pipe.stream("fish", steps=4, seed=11)) for _ in range(2))
    for frame, repeated in zip(one, again, strict=True):
        assert frame.image.tobytes() == repeated.image.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 12},
        {"class_name": "flower"},
        {"temperature": 0.5},
        {"cfg": 4},
        {"schedule": "constant"},
        {"k": 2},
        {"steps": 8},
        {"solver": "euler"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_picture(pipe: NestARPipeline, change: dict) -> None:
    settings = {"class_name": "fish", "steps": 4, "seed": 11}
    assert pipe(**settings).image.tobytes() != pipe(**{**settings, **change}).image.tobytes()


def test_without_noise_all_seeds_agree(pipe: NestARPipeline) -> None:
    pictures = {pipe("fish", steps=3, temperature=0, seed=seed).image.tobytes() for seed in (0, 1, MAX_SEED)}
    assert len(pictures) == 1


@pytest.mark.parametrize("seed", [7, MAX_SEED - 1])
def test_image_b_of_a_batch_has_seed_plus_b(pipe: NestARPipeline, seed: int) -> None:
    batch = pipe("flower", steps=3, seed=seed, count=3).images
    seeds = [(seed + b) % (MAX_SEED + 1) for b in range(3)]
    alone = [pipe("flower", steps=3, seed=each).image for each in seeds]
    for b in range(3):
        assert distance(batch[b], alone[b]) < GREY_LEVEL
        assert distance(batch[b], alone[(b + 1) % 3]) > 3 * GREY_LEVEL


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"class_name": "cat"}, "class must be one of flower, fish, hot-air balloon; got 'cat'."),
        (
            {"k": 8},
            "k = 8 with order lattice has no weights; there are weights for k = 2 (lattice), k = 4",
        ),
        ({"order": "raster"}, "k = 4 with order raster has no weights"),
        ({"steps": 0}, "steps must be a whole number from 1 to 200, got 0."),
        ({"steps": 201}, "steps must be a whole number from 1 to 200, got 201."),
        ({"temperature": 2.5}, "temperature must be a number from 0 to 2, got 2.5."),
        ({"cfg": float("nan")}, "cfg must be a number from 0 to 20, got nan."),
        ({"cfg": float("inf")}, "cfg must be a number from 0 to 20, got inf."),
        ({"seed": 1.5}, f"seed must be a whole number from 0 to {MAX_SEED}, got 1.5."),
        ({"count": 17}, "count must be a whole number from 1 to 16, got 17."),
        ({"solver": "rk4"}, "solver must be one of euler, midpoint, heun; got 'rk4'."),
        ({"speed": 2}, "Unknown setting 'speed'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_at_the_call(
    pipe: NestARPipeline, calls: list, values: dict, said: str
) -> None:
    for ask in (pipe.stream, pipe, pipe.settings):
        with pytest.raises(SettingsError) as caught:
            ask(**{"class_name": "fish", **values})
        assert said in str(caught.value)
    assert calls == []


def test_nothing_is_computed_before_the_first_frame_is_asked_for(pipe: NestARPipeline, calls: list) -> None:
    pipe.stream("fish")
    assert calls == []


def test_the_first_frame_leaves_before_module_2_begins(pipe: NestARPipeline, calls: list) -> None:
    stream = pipe.stream("fish", steps=3, solver="euler")
    first = next(stream)
    assert (first.module, first.patch, first.known) == (1, 1, 1)
    assert calls == [("velocity", 1, 2)] * 3
    frames = [first, *(next(stream) for _ in range(3))]
    assert frames[-1].module_done
    assert {module for _, module, _ in calls} == {1}
    next(stream)
    # Module 2 enters the four tokens it takes over, then solves its second patch.
    assert calls[-4:] == [("remember", 2, 2), *[("velocity", 2, 2)] * 3]


def test_function_evaluations_count_network_passes(pipe: NestARPipeline, calls: list) -> None:
    for frame in pipe.stream("fish", steps=2, solver="midpoint"):
        assert frame.function_evaluations == len(calls)


@pytest.mark.parametrize(("cfg", "rows"), [(1, 2), (1.5, 4), (0, 4)])
def test_guidance_doubles_the_rows_and_1_turns_it_off(
    pipe: NestARPipeline, calls: list, cfg: float, rows: int
) -> None:
    pipe("fish", steps=1, cfg=cfg, count=2)
    assert {made for _, _, made in calls} == {rows}
    assert len(calls) == K4.function_evaluations(1, SOLVER_CALLS[SampleSettings.solver])


def test_a_cancelled_stream_ends(pipe: NestARPipeline, calls: list) -> None:
    cancel = threading.Event()
    stream = pipe.stream("fish", steps=3, cancel=cancel)
    frames = [next(stream), next(stream)]
    before = len(calls)
    cancel.set()
    assert list(stream) == []
    assert len(frames) == 2
    # At most the context pass of the finished patch: no further solver step.
    assert [what for what, _, _ in calls[before:]] in ([], ["remember"])


@pytest.mark.parametrize(("solver", "ended"), [("euler", 5), ("heun", 6)])  # a step of Heun's is two calls
def test_cancelling_takes_effect_within_one_solver_step(
    pipe: NestARPipeline, calls: list, monkeypatch: pytest.MonkeyPatch, solver: str, ended: int
) -> None:
    cancel = threading.Event()
    inner = Engine.velocity

    def cancelling(*arguments: object) -> torch.Tensor:
        if len(calls) == 4:
            cancel.set()
        return inner(*arguments)

    monkeypatch.setattr(Engine, "velocity", cancelling)
    assert list(pipe.stream("fish", steps=50, solver=solver, cancel=cancel)) == []
    assert len(calls) == ended


def full_gpu(pipe: NestARPipeline, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's own device counts as a GPU, which has memory for so many network passes."""
    passes = iter(range(after))
    modules = list(pipe.models[K4.name].scaled_modules)
    inner = Engine.velocity

    def velocity(engine: Engine, *arguments: object) -> object:
        if engine.module in modules and next(passes, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(engine, *arguments)

    monkeypatch.setattr(Engine, "velocity", velocity)
    monkeypatch.setattr(pipe, "device", torch.device("cuda"))


@pytest.mark.parametrize("after", [0, 5, 13])
def test_a_gpu_without_memory_hands_the_run_to_the_cpu(
    pipe: NestARPipeline, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(pipe.stream("fish", steps=2, seed=3, count=2))
    full_gpu(pipe, after, monkeypatch)
    spares: list[str] = []
    inner = pipe.models.spare
    monkeypatch.setattr(pipe.models, "spare", lambda name: (spares.append(name), inner(name))[1])
    frames = list(pipe.stream("fish", steps=2, seed=3, count=2))
    assert [frame.evaluations for frame in frames] == list(range(1, K4.evaluations + 1))
    for frame, other in zip(frames, expected, strict=True):
        assert all(distance(*both) == 0 for both in zip(frame.images, other.images, strict=True))
    for times in ([frame.seconds for frame in frames], [frame.decoding for frame in frames]):
        assert times == sorted(times)
    assert frames[-1].device == "cpu" and spares == [K4.name]


@pytest.mark.parametrize("previews", [True, False])
def test_frames_that_are_read_a_patch_later_are_the_same(
    pipe: NestARPipeline, previews: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipe.settings(class_name="fish", steps=2, seed=3, count=2)
    rows = consecutive(settings)
    at_once = list(pipe.stream_rows(settings, rows, previews=previews))
    monkeypatch.setattr(pipe, "ahead", 1)  # as on a GPU
    made: list[Frame] = []
    frames_at_pass: list[int] = []
    inner = Engine.velocity

    def velocity(engine: Engine, *given: object) -> object:
        frames_at_pass.append(len(made))
        return inner(engine, *given)

    monkeypatch.setattr(Engine, "velocity", velocity)
    for frame in pipe.stream_rows(settings, rows, previews=previews):
        made.append(frame)
    a_patch = settings.steps * SOLVER_CALLS[settings.solver]
    assert frames_at_pass[: 2 * a_patch] == [0] * 2 * a_patch, (
        "the second patch is queued before the first frame"
    )
    assert frames_at_pass[-1] == K4.evaluations - 2
    for frame, other in zip(made, at_once, strict=True):
        timeless = {"images": (), "seconds": 0.0, "decoding": 0.0}
        assert replace(frame, **timeless) == replace(other, **timeless)
        assert len(frame.images) == len(other.images)
        assert all(distance(*both) == 0 for both in zip(frame.images, other.images, strict=True))
    assert [frame.seconds for frame in made] == sorted(frame.seconds for frame in made)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_timed_stream_queues_nothing_before_a_frame_has_left(
    pipe: NestARPipeline, ahead: int, calls: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "ahead", ahead)
    for frame in pipe.stream("fish", steps=2, timed=True):
        assert len([what for what, *_ in calls if what == "velocity"]) == 4 * frame.evaluations


def test_frames_that_are_read_later_still_come_after_a_cancel(
    pipe: NestARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "ahead", 1)
    cancel, made = threading.Event(), []
    for frame in pipe.stream("fish", steps=2, cancel=cancel):
        made.append(frame.evaluations)
        cancel.set()
    assert made == [1, 2], "a patch stood that nobody was shown"


def test_a_cpu_without_memory_says_so(pipe: NestARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    full_gpu(pipe, 5, monkeypatch)
    monkeypatch.setattr(pipe, "device", torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        list(pipe.stream("fish", steps=2))


def test_a_spare_is_loaded_where_the_device_took_none() -> None:
    def load(name: str, progress: object) -> NestAR:
        return model

    model = small_model(K4)
    models = Models({K4.name: model.outline}, load, torch.device("cpu"))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(model, "to", lambda device: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    assert list(models.fetch(K4.name)) == [] and not models.loaded
    assert models.spare(K4.name) is model is models.spare(K4.name)


def test_whether_there_is_a_model_is_known_without_loading_it() -> None:
    def load(name: str, progress: Callable[..., None] | None) -> NestAR:
        raise AssertionError(f"{name} was loaded")

    models = Models({K4.name: small_model(K4).outline}, load, torch.device("cpu"))
    assert K4.name in models and K2.name not in models


def test_who_asks_for_a_download_that_is_under_way_hears_of_it_and_can_leave(
    pipe: NestARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "FETCH_PACE", 0.01)
    monkeypatch.setattr(pipeline_module, "FETCH_SILENCE", 0.0)
    told, go = threading.Event(), threading.Event()
    model = pipe.models[K4.name]

    def load(name: str, progress: Callable[..., None] | None) -> NestAR:
        assert told.wait(60)
        progress("module_1.safetensors", 5, 10)
        assert go.wait(60)
        return model

    models = Models({K4.name: model.outline}, load, torch.device("cpu"))
    first = models.fetch(K4.name)
    assert next(first) == ("", 0, 0), "nothing is known yet, and whoever waits can leave"
    first.close()
    told.set()
    second = models.fetch(K4.name)
    heard = next(word for word in second if word[0])
    assert heard == ("module_1.safetensors", 5, 10), "told to the first, who has left"
    go.set()
    for _ in second:
        pass
    assert models.loaded == {K4.name: model}


def test_many_who_ask_for_weights_that_do_not_come_wait_for_one_attempt(
    pipe: NestARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever leaves leaves no thread behind that tries once more, one after another."""
    monkeypatch.setattr(pipeline_module, "FETCH_PACE", 0.01)
    monkeypatch.setattr(pipeline_module, "FETCH_SILENCE", 0.0)
    go, attempts = threading.Event(), []

    def load(name: str, progress: Callable[..., None] | None) -> NestAR:
        attempts.append(name)
        if len(attempts) == 1:
            progress("module_1.safetensors", 5, 10)
            assert go.wait(60)
            raise WeightsError("The Hub is silent.")
        return pipe.models[K4.name]

    models = Models({K4.name: small_model(K4).outline}, load, torch.device("cpu"))
    callers = [models.fetch(K4.name) for _ in range(5)]
    assert all(next(word for word in caller if word[0])[1] == 5 for caller in callers)
    assert [thread.name for thread in threading.enumerate()].count(f"load {K4.name}") == 1
    go.set()
    for caller in callers:
        with pytest.raises(WeightsError, match="silent"):
            list(caller)
    assert len(attempts) == 1
    assert set(models.fetch(K4.name)) <= {("", 0, 0)}, "a new attempt has nothing of the old one's"
    assert len(attempts) == 2 and models.loaded


def test_a_call_cancelled_beforehand(pipe: NestARPipeline, calls: list) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(SettingsError, match=r"^The call was cancelled before its first patch\.$"):
        pipe("fish", cancel=cancel)
    assert calls == []


def test_a_stream_may_change_threads_and_leaves_gradients_alone(pipe: NestARPipeline) -> None:
    expected = pipe("fish", steps=2).image.tobytes()
    stream = pipe.stream("fish", steps=2)
    frames: list[Frame] = [next(stream)]
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()

    def go_on(rest: Iterator[Frame]) -> None:
        frames.extend(rest)

    thread = threading.Thread(target=go_on, args=(stream,))
    thread.start()
    thread.join()
    assert frames[-1].final
    assert frames[-1].image.tobytes() == expected


def test_two_streams_in_turns_do_not_disturb_each_other(pipe: NestARPipeline) -> None:
    alone = [[frame.image.tobytes() for frame in pipe.stream(name, steps=2)] for name in ("fish", "flower")]
    turns = list(zip(pipe.stream("fish", steps=2), pipe.stream("flower", steps=2), strict=True))
    assert [[frame.image.tobytes() for frame in frames] for frames in zip(*turns, strict=True)] == alone


def test_pictures_span_the_whole_range() -> None:
    image = to_pil(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5))[0]
    assert [image.getpixel((x, 0)) for x in range(5)] == [(v, v, v) for v in (0, 0, 128, 255, 255)]


def test_weights_from_a_folder_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, [K4])
    loaded = NestARPipeline.from_pretrained(tmp_path, device="cpu")
    assert loaded.origin == str(tmp_path)
    assert list(loaded.nestings) == [K4.name]


def test_weights_own_defaults_are_taken_where_a_call_says_nothing(tmp_path: Path) -> None:
    own = assemble(
        save_checkpoint(tmp_path / "own"), classes=CLASSES, defaults={"steps": 2, "solver": "euler"}
    )
    loaded = NestARPipeline.from_pretrained(own.folder, device="cpu")
    assert loaded("fish").settings == SampleSettings("fish", steps=2, solver="euler")
    assert loaded("fish", solver="heun").settings == SampleSettings("fish", steps=2)
    assert loaded("fish").image.tobytes() == loaded("fish", steps=2, solver="euler").image.tobytes()
    plain = save_checkpoint(tmp_path / "plain")
    for first, second, steps in ((own.folder, plain, 2), (plain, own.folder, SampleSettings.steps)):
        both = NestARPipeline.from_pretrained(f"{first},{second}", device="cpu")
        assert both.settings(class_name="fish").steps == steps  # of several the first one's


def test_a_tokenizer_of_other_channels_is_refused_and_both_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, [K4])
    save_tokenizer(small_tokenizer(channels=8), tmp_path / "tokenizer")
    with pytest.raises(WeightsError) as caught:
        NestARPipeline.from_pretrained(tmp_path, device="cpu")
    assert str(caught.value) == (
        f"{tmp_path / K4.name / 'config.json'} is for tokens of 4 channels; "
        f"the tokenizer of {tmp_path} has 8."
    )


def test_a_variant_is_reached_by_its_name(pipe: NestARPipeline) -> None:
    variant = f"{K4.name}.separate"
    other = small_model(K4)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    both = NestARPipeline(
        {variant: other, **pipe.models},
        pipe.tokenizer,
        classes=pipe.classes,
        origin="here",
        device=pipe.device,
    )
    asked = {"class_name": "fish", "steps": 2, "seed": 3}
    named = both(**asked, nesting=variant, k=2)
    assert named.image.tobytes() != both(**asked).image.tobytes() == pipe(**asked).image.tobytes()
    last = list(both.stream(**asked, nesting=variant))[-1]
    assert last.image.tobytes() == named.image.tobytes()
    summary = named.summary()
    assert (summary["nesting"], summary["k"], summary["order"]) == (variant, 4, "lattice")
    assert "nesting" not in both(**asked).summary()
    assert both.plan(2, nesting=variant) == K4
    refused = f"nesting must be one of {variant}, {K4.name}, {K2.name}; got 'k8-lattice'."
    for ask in (both.stream, both, both.settings):
        with pytest.raises(SettingsError) as caught:
            ask(**asked, nesting="k8-lattice")
        assert str(caught.value) == refused
    with pytest.raises(SettingsError, match=r"^nesting must be one of "):
        both.plan(nesting="k8-lattice")
