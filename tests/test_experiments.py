"""Experiments: each end to end on tiny weights, what they reuse and refuse, search, findings, figures."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.transforms import Bbox
from PIL import Image
from torch import Tensor, nn

from nestar import cli, plots
from nestar.cli import main
from nestar.data import tiny_worlds
from nestar.data.pools import held_out_tokens
from nestar.evaluation import inception, report
from nestar.evaluation.experiments import (
    NAMES,
    alignment,
    arms,
    baseline,
    command,
    coordination,
    independence,
    latency,
    modules,
    order,
    precision,
    sampler,
    scaling,
    search,
    study,
)
from nestar.evaluation.experiments.findings import (
    CLOSE,
    clearly_least,
    clearly_less,
    clearly_more,
    fid_falls,
    fid_noise,
    kept_the_start,
    refused,
    share_error,
    share_noise,
)
from nestar.evaluation.experiments.rows import Rows, rounded
from nestar.evaluation.experiments.study import Options, OutOfTime, Study, conduct
from nestar.evaluation.features import FeatureNetwork, FeatureNetworkConfig
from nestar.evaluation.report import check_classes
from nestar.flow import grid_noise
from nestar.model import NestAR, WeightsError, fingerprint_of
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.sampler import SolverSettings
from nestar.settings import SCHEDULES, SettingsError
from nestar.training import presets
from nestar.training.loop import Budget
from nestar.training.nesting import NestingTask, NestingTrainConfig
from tests.small import K2, K4, save_checkpoint, save_config, small_model, small_tokenizer

CPU = torch.device("cpu")
SMALL = FeatureNetworkConfig(
    size=64, channels=(8, 16, 16), blocks=(0, 1, 1), place_channels=8, hidden=32, features=24
)
SMOKE = presets.NESTINGS["smoke"]
MEMBERS = (
    K2,
    K4,
    Nesting.nested(4, 4, 4, order="raster"),
    Nesting.autoregressive(4, 4),
    Nesting.one_shot(4, 4),
)
SAMPLES, FINAL = 24, 26
TRAINED = ("coordination", "independence", "precision", "baseline")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small grids and few repetitions, nothing drawn again; one thread, as results are compared."""
    monkeypatch.setattr(report, "redrawn_psnr", lambda images, ids, factors: images.flatten(1).mean(1))
    monkeypatch.setattr(sampler, "CALLS", (2, 4))
    monkeypatch.setattr(coordination, "HELD_OUT", 16)
    monkeypatch.setattr(NestingTask, "picture", lambda *_: None)  # contact sheets take most of a short run
    monkeypatch.setattr(study, "latencies", partial(latency.latencies, runs=1, batch=2))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every member, a feature network, and room for results, runs and pools."""
    folder = tmp_path_factory.mktemp("world")
    save_checkpoint(folder / "weights", ())
    for nesting in MEMBERS:
        small_model(nesting, len(tiny_worlds.CLASSES)).save_pretrained(folder / "weights" / nesting.name)
    save_config(folder / "weights", MEMBERS, tiny_worlds.CLASSES)
    torch.manual_seed(2)
    FeatureNetwork(SMALL).save_pretrained(folder / "features")
    return folder


def options_of(world: Path, out: Path | None = None, **changes: Any) -> Options:
    made = Options(
        samples=SAMPLES,
        final_samples=FINAL,
        steps=1,
        images=3 * SMOKE.batch,
        base=SMOKE,
        folder=out or world / "results",
        runs=world / "runs",
        cache=world / "cache",
    )
    return replace(made, **changes)


def study_of(
    name: str, world: Path, out: Path | None = None, weights: str = "weights", **changes: Any
) -> Study:
    pipeline = NestARPipeline.from_pretrained(world / weights, device="cpu")
    features = inception.features_named(world / "features", CPU)
    return Study(name, pipeline, features, options_of(world, out, **changes), progress=False)


def conducted(name: str, world: Path, *arguments: Any, **changes: Any) -> dict[str, Any]:
    return conduct(command.load(name), study_of(name, world, *arguments, **changes))


def without_times(entry: Any) -> Any:
    """A report without what is taken anew in every run."""
    if isinstance(entry, dict):
        timed = ("seconds", "seconds_per_picture", "pictures_per_second")
        return {
            key: without_times(value)
            for key, value in entry.items()
            if key not in timed and not key.startswith(("speed_up", "seconds_rise", "fastest"))
        }
    return [without_times(value) for value in entry] if isinstance(entry, list) else entry


# ---------------------------------------------------------------------------------------------- end to end


def few_axes(start: SolverSettings) -> search.Axes:
    """Without guidance both schedules are one."""
    schedules = [{"schedule": schedule} for schedule in SCHEDULES]
    return {"cfg": [{"cfg": start.cfg}, {"cfg": 1.0}], "schedule": schedules}


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_from_weights_to_json_and_figure_and_again_from_its_rows(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "search_axes", few_axes)
    written = conducted(name, world)
    folder = world / "results"
    assert written == json.loads((folder / f"{name}.json").read_text())
    assert (written["name"], written["finished"], written["unfinished"]) == (name, True, None)
    assert written["question"].endswith("?") and written["finding"]
    assert (written["samples"], written["final_samples"], written["search_seed"]) == (SAMPLES, FINAL, 1)
    assert written["weights"] == str(world / "weights") and written["rows"]
    expected = ["k8-lattice"] if name in ("scaling", "precision", "modules") else []
    assert written["missing"] == expected + ["cells4-blocks"] * (name == "scaling")
    assert written["images_per_arm"] == (3 * SMOKE.batch if name in TRAINED else None)
    for row in written["rows"]:
        if row["part"] in ("search", "star", "grid", "final"):
            final = row["part"] == "final"
            assert (row["samples"], row["seed"]) == ((FINAL, 0) if final else (SAMPLES, 1))
            assert row["fid"] > 0 and 0 <= row["precision"] <= 1 and row["function_evaluations"] > 0
            assert {
                "recall",
                "class_accuracy",
                "inception_score",
                "seams",
                "vendi",
                "bins_reached",
            } <= row.keys()
    with Image.open(folder / f"{name}.png") as figure:
        assert (figure.format, figure.width) == ("PNG", plots.WIDTH) and 300 < figure.height < 1000
        assert np.asarray(figure.convert("L")).std() > 5, "something is drawn"

    assert bool(written["arms"]) == (name in TRAINED)
    assert any(row["part"] == "final" for row in written["rows"]) == command.load(name).finals
    searched = [[row["member"], row["settings"]] for row in written["rows"] if row["part"] == "search"]
    assert all(searched.count(one) == 1 for one in searched), "settings that sample alike are tried once"
    for arm in written["arms"]:
        assert arm["images"] == 24 and {"held_clean_1", "held_clean_2"} <= arm["held_out"].keys()
    by_weights = {arm["weights"] for arm in written["arms"]}
    least = 2 * len(written["arms"]) // 3  # in three steps, from layers of zeros, little differs
    assert len(by_weights) >= least, "arms are trained differently"

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(report, "sample_images", forbidden)
    monkeypatch.setattr(tiny_worlds, "draw", forbidden)
    monkeypatch.setattr(arms, "train", forbidden)
    assert without_times(conducted(name, world)) == without_times(written)


def test_the_command_writes_where_it_is_told_and_prints_its_finding(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "order",
        "--repo",
        str(world / "weights"),
        "--features",
        str(world / "features"),
        "--device",
        "cpu",
    ]
    given += ["--samples", "24", "--final-samples", "36", "--steps", "1", "--out", str(tmp_path)]
    assert run(*given) == 0
    out, error = capsys.readouterr()
    assert (
        "lattice_has_less_fid" in out
        and "images each" not in out
        and f"{tmp_path / 'order.json'}" in out
        and "left out" not in error
    )
    assert run(*given, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "order.json").read_text())


def run(*given: str) -> int:
    arguments = cli.command_parser().parse_args(["experiment", *given])
    return arguments.run(arguments)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["order", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["order", "--samples", "7"], "at least 24 samples"),
        (["order", "--samples", "50", "--final-samples", "50"], "more than --samples (50)"),
        (["order", "--minutes", "nan"], "--minutes must be a finite number above 0"),
        (["order", "--steps", "0"], "steps must be a whole number from 1 to 200"),
        (["order", "--seed", "-1"], "seed must be a whole number"),
        (["order", "--images", "5"], "--images does not apply to order"),
        (["scaling", "--no-compile"], "--compile does not apply to scaling"),
        (["modules", "--final-samples", "7"], "at least 24 samples"),
        (["modules", "--samples", "30"], "--samples does not apply to modules"),
        (["baseline", "--final-samples", "300"], "--final-samples does not apply to baseline"),
        (["baseline", "--nesting", "k2-lattice"], "--nesting does not apply to baseline"),
        (["coordination", "--preset", "tiny-worlds-one-shot"], "one-shot is one module: there are no"),
        (["precision", "--preset", "tiny-worlds-one-shot"], "is one patch: there is no context"),
        (["independence", "--preset", "tiny-worlds-k4-separate"], "The recipe has lambda = 0"),
        (["baseline", "--preset", "huge"], "Unknown preset 'huge': allowed are tiny-worlds-k4"),
        (["baseline", "--preset", "smoke", "--images", "7"], "--images must be at least a batch of 8, got 7"),
        (["baseline", "--images", "200"], "does not fit a tokenizer of 16 pixels a token"),
        (["sampler", "--nesting", "k3-lattice"], "no weights for k3-lattice; it has k2-lattice"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    given: list[str], sentence: str, world: Path, tmp_path: Path
) -> None:
    places = ["--repo", str(world / "weights"), "--features", str(world / "features"), "--device", "cpu"]
    places += ["--out", str(tmp_path), "--runs", str(tmp_path / "runs"), "--cache", str(world / "cache")]
    with pytest.raises(SettingsError) as refused:
        run(*given, *places)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_the_sampler_experiment_takes_a_nesting_of_one_patch(world: Path, tmp_path: Path) -> None:
    """To which a schedule does nothing, so that its settings go by another name."""
    written = conducted("sampler", world, tmp_path, nesting="one-shot")
    assert written["finished"] and written["finding"]["least_fid_at"]["schedule"] == "constant"
    assert "linear_schedule_better_than_constant" not in written["finding"]
    star = [(row["axis"], json.dumps(row["settings"])) for row in written["rows"] if row["part"] == "star"]
    assert len(star) == len(set(star)), "what samples alike is measured once"


def test_an_evaluation_from_the_command_line_says_what_was_measured_with_what(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `push` and the README go by."""
    out = tmp_path / "report.json"
    places = ["--repo", str(world / "weights"), "--features", str(world / "features"), "--device", "cpu"]
    call = ["evaluate", *places, "--k", "4", "--samples", "24", "--steps", "1", "--seed", "3", "--json"]
    assert main([*call, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written == json.loads(capsys.readouterr().out)
    made = study_of("sampler", world)
    assert written["fingerprint"] == fingerprint_of(made.pipeline.models[K4.name])
    assert written["instruments"] == report.instruments(made.pipeline.tokenizer, made.features)
    assert (written["weights"], written["nesting"]) == (str(world / "weights"), K4.name)
    assert (written["samples"], written["seed"], written["settings"]["steps"]) == (24, 3, 1)


def test_weights_of_equal_images_stand_for_a_nesting_where_several_are_compared(
    world: Path, tmp_path: Path
) -> None:
    raster = MEMBERS[2]
    names = {K4.name: 0, f"{K4.name}.together": 1, raster.name: 2}
    save_checkpoint(tmp_path / "twice", ())
    for name, seed in names.items():
        torch.manual_seed(seed)
        model = small_model(raster if name == raster.name else K4, len(tiny_worlds.CLASSES))
        model.save_pretrained(tmp_path / "twice" / name, record={"images_seen": 100 + seed})
    save_config(tmp_path / "twice", (), tiny_worlds.CLASSES)
    config = tmp_path / "twice" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"nestings": list(names)}))
    made = study_of("order", world, tmp_path, weights=str(tmp_path / "twice"))
    models = made.pipeline.models
    assert made.members([K4.name, raster.name]) == {
        K4.name: models[f"{K4.name}.together"],
        raster.name: models[raster.name],
    }
    compared = {f"{K4.name}.together": 101, raster.name: 102}
    assert made.design == {
        "images_seen": compared,
        "fingerprints": {name: fingerprint_of(models[name]) for name in compared},
        "weights_that_stand_for": {K4.name: f"{K4.name}.together"},
    }
    assert made.members([K4.name]) == {K4.name: models[K4.name]}, "alone it stands for itself"


def test_arms_that_see_few_images_draw_no_more(world: Path) -> None:
    arguments = cli.command_parser().parse_args(["experiment", "baseline", "--images", "5000"])
    assert command._recipe(arguments).pool == 5000
    arguments = cli.command_parser().parse_args(["experiment", "baseline", "--preset", "smoke"])
    assert command._recipe(arguments).pool == SMOKE.pool


# ------------------------------------------------------------------------------- missing, out of time, reused


def test_what_has_no_weights_is_named_and_the_rest_runs(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "few", ())
    small_model(K4, len(tiny_worlds.CLASSES)).save_pretrained(tmp_path / "few" / K4.name)
    save_config(tmp_path / "few", [K4], tiny_worlds.CLASSES)
    made = study_of("scaling", world, tmp_path, weights=str(tmp_path / "few"))
    written = conduct(scaling.EXPERIMENT, made)
    assert written["missing"] == ["k2-lattice", "k8-lattice", "ar-raster", "one-shot", "cells4-blocks"]
    assert written["finding"]["fid"].keys() == {"k4-lattice"} and written["finished"]
    assert not {"best_fid", "fastest_at_a_batch"} & written["finding"].keys(), "nothing to compare with"
    study.tell(written, tmp_path)
    said = capsys.readouterr().err
    assert said == f"nestar: no weights for {', '.join(written['missing'])}: left out.\n"
    alone = conduct(order.EXPERIMENT, study_of("order", world, tmp_path, weights=str(tmp_path / "few")))
    assert (alone["missing"], alone["finding"]) == (["k4-raster"], {})


def counted(monkeypatch: pytest.MonkeyPatch) -> list[SolverSettings]:
    """The settings that pictures are sampled with from now on, a call each."""
    calls: list[SolverSettings] = []
    measure = report.Evaluator.measure

    def noted(self: Any, model: NestAR, settings: SolverSettings, seed: int, **more: Any) -> dict[str, Any]:
        calls.append(settings)
        return measure(self, model, settings, seed, **more)

    monkeypatch.setattr(report.Evaluator, "measure", noted)
    return calls


def test_out_of_time_keeps_finished_rows_and_the_next_call_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    with monkeypatch.context() as clock:
        clock.setattr(study, "has_passed", lambda deadline: len(calls) >= 5)
        first = conducted("order", world, tmp_path)
    assert not first["finished"] and first["unfinished"].startswith(
        "Time was up before k4-lattice was measured"
    )
    assert len(first["rows"]) == len(calls) == 5 and first["finding"] == {}
    late = conducted("order", world, tmp_path, deadline=time.monotonic() - 1)
    assert len(calls) == 5 and late["rows"] == first["rows"], "an exceeded budget samples nothing"
    second = conducted("order", world, tmp_path)
    assert second["finished"]
    assert [row["fid"] for row in second["rows"][:5]] == [row["fid"] for row in first["rows"]]
    asked = {json.dumps([row["member"], row["settings"], row["seed"]]) for row in second["rows"]}
    assert len(calls) == len(asked), "none is sampled twice"
    assert 22 <= len(calls) <= 26, "a search of eleven settings, some of them alike, and finalists, twice"


def test_rows_belong_to_weights_settings_and_seed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    made = study_of("order", world, tmp_path)
    model = made.pipeline.models["k4-lattice"]
    settings = made.options.settings
    first = made.probe("star", "a", model, settings)
    assert made.probe("grid", "b", model, settings, axis="cfg")["fid"] == first["fid"] and len(calls) == 1
    other = study_of("order", world, tmp_path, seed=4)
    assert other.probe("star", "a", model, settings)["fid"] != first["fid"] and len(calls) == 2
    made.probe("star", "a", model, replace(settings, cfg=1.0, schedule="linear"))
    made.probe("star", "a", model, replace(settings, cfg=1.0))
    assert len(calls) == 3, "without guidance a schedule does nothing"
    with torch.no_grad():
        model.scaled_modules[0].head.bias.add_(1)
    changed = study_of("order", world, tmp_path)
    assert changed.probe("star", "a", model, settings)["fid"] != first["fid"] and len(calls) == 4


def test_rows_survive_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "order")
    assert rows.once({"a": 1}, lambda: {"fid": 1 / 3, "seams": math.inf}) == {"fid": 0.333333, "seams": None}
    rows.once({"a": 2}, lambda: {"fid": 2.0})
    file = tmp_path / "order.partial.jsonl"
    file.write_text(file.read_text()[:-9])
    rows = Rows(tmp_path, "scaling")  # another experiment reads the same rows
    assert rows.get({"a": 1})["fid"] == 0.333333 and rows.get({"a": 2}) is None
    torn = Rows(tmp_path, "order")
    torn.once({"a": 2}, lambda: {"fid": 5.0})
    again = Rows(tmp_path, "order")
    assert (again.get({"a": 1})["fid"], again.get({"a": 2})["fid"]) == (0.333333, 5.0)


def test_rounded_leaves_what_json_has_not() -> None:
    assert rounded({"a": [1.23456789, math.nan, -math.inf], "b": (True, 7, "x", None)}) == {
        "a": [1.23457, None, None],
        "b": [True, 7, "x", None],
    }


# ------------------------------------------------------------------------------------------------ evaluator


def test_references_are_drawn_once_and_agree_with_the_evaluation(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = NestARPipeline.from_pretrained(world / "weights", device="cpu")
    features = inception.features_named(world / "features", CPU)
    model, settings = pipeline.models["k4-lattice"], SolverSettings(steps=1)
    drawn: list[int] = []
    draw = tiny_worlds.draw
    monkeypatch.setattr(tiny_worlds, "draw", lambda ids, *rest: drawn.append(len(ids)) or draw(ids, *rest))
    evaluator = report.Evaluator(pipeline.tokenizer, features, samples=SAMPLES, size=64)
    one, other = (evaluator.measure(model, settings, seed) for seed in (3, 4))
    assert drawn == [SAMPLES] and one["fid"] != other["fid"]
    whole = report.evaluate(
        model, pipeline.tokenizer, features, samples=SAMPLES, settings=settings, seed=3, progress=False
    )
    for name in ("fid", "precision", "recall", "class_accuracy", "seams", "vendi", "coverage"):
        assert one[name] == whole[name]
    assert evaluator.ceilings["reference"] == whole["reference"]
    with pytest.raises(ValueError, match="128x128"):
        report.Evaluator(pipeline.tokenizer, features, samples=24, size=128).measure(model, settings, 0)


# ----------------------------------------------------------------------------------------------------- arms


def states(folder: Path) -> dict[str, Tensor]:
    return NestAR.from_pretrained(folder).state_dict()


def test_a_stopped_arm_goes_on_and_ends_as_an_unbroken_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = [arms.Arm("one", "one", replace(SMOKE, coordination=0.5))]
    changes = {"images": 6 * SMOKE.batch, "runs": tmp_path / "whole"}
    whole = arms.trained(study_of("baseline", world, tmp_path, **changes), arm)["one"]
    assert whole.record["finished"] and whole.record["steps"] == 6
    stopped = study_of("baseline", world, tmp_path, **{**changes, "runs": tmp_path / "parts"})
    train = arms.train

    def cut(*given: Any, **named: Any) -> dict[str, Any]:
        task, budget, folder = given
        step = task.train_step

        def until_three(number: int, factor: float) -> dict[str, float]:
            if number == 3:
                raise InterruptedError
            return step(number, factor)

        task.train_step = until_three
        return train(task, budget, folder, **named | {"cadence": replace(arms.CADENCE, checkpoint=-1)})

    with monkeypatch.context() as broken, pytest.raises(InterruptedError):
        broken.setattr(arms, "train", cut)
        arms.trained(stopped, arm)
    with pytest.raises(OutOfTime, match="Time was up before the arm one was trained"):
        late = {**changes, "runs": tmp_path / "parts", "deadline": time.monotonic() - 1}
        arms.trained(study_of("baseline", world, tmp_path, **late), arm)
    resumed = arms.trained(
        study_of("baseline", world, tmp_path, **{**changes, "runs": tmp_path / "parts"}), arm
    )
    one, other = states(whole.folder / K4.name), states(resumed["one"].folder / K4.name)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_deadline_stops_an_arm_between_steps(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nestar.training import loop

    asked = iter([False, False, True])
    monkeypatch.setattr(loop, "has_passed", lambda deadline: next(asked))
    made = study_of("baseline", world, tmp_path, runs=tmp_path / "runs")
    with pytest.raises(OutOfTime, match="The arm one was stopped at step 2 of 3"):
        arms.trained(made, [arms.Arm("one", "one", SMOKE)])
    assert made.arms == []


def test_arms_of_other_images_are_refused_and_equal_ones_shared(world: Path, tmp_path: Path) -> None:
    one = [arms.Arm("one", "one", SMOKE)]
    places = {"runs": tmp_path / "runs"}
    first = arms.trained(study_of("coordination", world, tmp_path, **places), one)["one"]
    made = study_of("independence", world, tmp_path, **places)
    shared = arms.trained(made, [arms.Arm("same", "same", SMOKE)])["same"]
    assert shared.folder == first.folder and not (tmp_path / "runs" / "independence").exists()
    assert (made.arms[0]["images"], made.arms[0]["differs"]) == (24, {})
    more = study_of("coordination", world, tmp_path, images=40, **places)
    with pytest.raises(SettingsError, match=r"one holds a run with images 24; now asked for: images 40"):
        arms.trained(more, one)
    other = [arms.Arm("one", "one", replace(SMOKE, clean_share=0.1))]
    with pytest.raises(SettingsError, match=r"with clean_share 0\.8; now asked for: clean_share 0\.1"):
        arms.trained(study_of("coordination", world, tmp_path, **places), other)
    run = first.folder / "run.json"
    stored = json.loads(run.read_text())
    stored["rate"]["warmup_steps"] = 100
    run.write_text(json.dumps(stored))
    (first.folder / SMOKE.weights_name / "config.json").unlink()
    with pytest.raises(SettingsError, match=r"warmup_steps 100; now asked for: .*warmup_steps 1"):
        arms.trained(study_of("coordination", world, tmp_path, **places), one)


def test_arms_differ_in_what_is_compared_and_see_equal_images() -> None:
    ours = coordination.coordination_arms(SMOKE)
    assert [arm.config.coordination for arm in ours] == [0.0, 0.01, 0.1, 1.0, 0.1, 0.1]
    assert [arm.config.coordination_tokens for arm in ours] == ["last"] * 4 + ["all-detached", "all"]
    noise = precision.noise_arms(SMOKE)
    assert [arm.config.clean_share for arm in noise] == pytest.approx([1.0, 0.8, 0.5, 0.0])
    assert SMOKE.clean_share in [arm.config.clean_share for arm in noise], "shared with the other experiments"
    shared = {"coordination", "coordination_tokens", "coordination_from", "clean_share"}
    for arm in [*ours, *noise]:
        assert all(
            value == asdict(SMOKE)[key] for key, value in asdict(arm.config).items() if key not in shared
        )


def test_modules_train_separately_until_coordination_begins(world: Path) -> None:
    def after(steps: int, **changes: Any) -> Tensor:
        task = NestingTask(replace(SMOKE, **changes), small_tokenizer(), CPU, world / "cache")
        with torch.no_grad():  # layers that begin at zero would hide what flows through them
            generator = torch.Generator().manual_seed(0)
            for parameter in task.model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for step in range(steps):
            task.train_step(step, 1.0)
        return task.model.scaled_modules[0].head.weight.detach()

    assert torch.equal(after(2, coordination=0.0), after(2, coordination_from=2))
    assert not torch.equal(after(3, coordination=0.0), after(3, coordination_from=2))
    with pytest.raises(ValueError, match=r"'some'.*last, all, all-detached"):
        NestingTrainConfig(coordination_tokens="some")


# ------------------------------------------------------------------------------------------------ alignment


class Constant(nn.Module):
    """Stands in for a scaled module: `value`, off by `before` on every token but the last patch's."""

    def __init__(self, value: float, before: float = 0.0):
        super().__init__()
        self.value, self.before = value, before

    def forward(self, y_BNC: Tensor, t: Tensor, ids: Tensor, sizes: list[int]) -> Tensor:
        velocity = torch.full_like(y_BNC, self.value)
        velocity[:, : sum(sizes[:-1])] += self.before
        return velocity


def test_a_module_is_aligned_with_itself() -> None:
    """Where both see one patch: on several, causal and whole attention answer differently."""
    module = small_model(Nesting.one_shot(4, 4)).scaled_modules[0]
    x, noise, ids = torch.randn(5, 16, 4), torch.randn(5, 16, 4), torch.tensor([0, 1, 2, 3, 0])
    one = alignment.align(module, Nesting.one_shot(4, 4).scales[0], module, x, noise, ids, 0.3)
    assert one["difference"] == 0 and one["cosine"] == pytest.approx(1, abs=1e-6)
    assert one["error_former"] == one["error_latter"] > 0 and "error_former_before" not in one
    several = alignment.align(module, Nesting.autoregressive(4, 4).scales[0], module, x, noise, ids, 0.3)
    assert several["difference"] > 0 and several["cosine"] < 1


def test_alignment_of_known_velocities() -> None:
    scale = K4.scales[0]
    x, noise, ids = torch.full((600, 16, 4), 2.0), torch.ones(600, 16, 4), torch.zeros(600, dtype=torch.long)
    found = alignment.align(Constant(1.0, before=9.0), scale, Constant(3.0), x, noise, ids, 0.5)
    expected = {"difference": 4, "cosine": 1, "error_former": 0, "error_latter": 4}
    before = {"error_former_before": 81, "error_latter_before": 4}
    assert found == pytest.approx(expected | before)
    assert alignment.align(Constant(1.0), scale, Constant(-2.0), x, noise, ids, 0.5)[
        "cosine"
    ] == pytest.approx(-1)


def test_alignment_covers_every_pair_and_time_with_the_same_noise() -> None:
    model = small_model(K2)
    x, ids = torch.randn(6, 16, 4), torch.zeros(6, dtype=torch.long)
    rows = alignment.velocity_alignment(model, x, ids, times=(0.2, 0.8))
    assert [(row["pair"], row["t"]) for row in rows] == [(m, t) for m in (1, 2, 3) for t in (0.2, 0.8)]
    assert rows == alignment.velocity_alignment(model, x, ids, times=(0.2, 0.8))
    first, both = (alignment.velocity_alignment(model, x[:n], ids[:n], times=(0.2,)) for n in (1, 2))
    noise = grid_noise([alignment.NOISE_SEED + 1], 16, 4)[:, list(K2.flat)]
    for m, (one, two) in enumerate(zip(first, both, strict=True)):
        modules, scale = model.scaled_modules[m : m + 2], K2.scales[m]
        second = alignment.align(modules[0], scale, modules[1], x[1:2], noise, ids[1:2], 0.2)
        mean = (one["difference"] + second["difference"]) / 2
        assert two["difference"] == pytest.approx(mean), "rows keep their noise whoever stands beside them"


def test_held_out_tokens_stand_in_the_nestings_order() -> None:
    tokenizer, lattice = small_tokenizer(), MEMBERS[1]
    in_order, ids = held_out_tokens(tokenizer, lattice, 5)
    raster, _ = held_out_tokens(tokenizer, MEMBERS[2], 5, batch=2)
    assert in_order.shape == (5, 16, 4) and ids.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(in_order, raster[:, list(lattice.flat)], atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------------- search


def test_the_search_finds_the_best_of_a_separable_objective() -> None:
    asked: list[SolverSettings] = []

    def score(settings: SolverSettings) -> float:
        asked.append(settings)
        return abs(settings.cfg - 1.4) + abs(settings.temperature - 1.2) + (settings.schedule == "constant")

    start = SolverSettings(steps=7)
    best = search.coordinate_search(score, start, search.search_axes(start))
    assert best == SolverSettings(steps=7, cfg=1.5, temperature=1.15, schedule="linear")
    assert len(asked) == len(set(asked)) == search.search_rows(search.search_axes(start)) == 11
    assert {(s.solver, s.steps) for s in asked} == {("heun", 7), ("euler", 14), ("euler", 28)}


def test_the_search_starts_elsewhere_and_keeps_what_was_tried_first() -> None:
    start = SolverSettings()
    assert search.coordinate_search(lambda s: 1.0, start, search.search_axes(start)) == start
    steps = {"steps": [{"steps": 5}, {"steps": 50}, {"steps": 10}]}
    assert search.coordinate_search(lambda s: -s.steps, start, steps).steps == 50
    cfgs = {"cfg": [{"cfg": 1.0}, {"cfg": 2.0}]}
    far = search.coordinate_search(lambda s: abs(s.cfg - 9), SolverSettings(cfg=9.0), cfgs)
    assert far.cfg == 9.0, "a start beyond the axis is one of its candidates"


def test_settings_that_sample_alike_are_asked_once() -> None:
    one_patch = lambda settings: search.effective(settings, 1)  # noqa: E731
    asked: list[SolverSettings] = []
    start = SolverSettings()
    search.coordinate_search(
        lambda s: asked.append(s) or s.cfg, start, search.search_axes(start), same=one_patch
    )
    assert len(asked) == 10 and {settings.schedule for settings in asked} == {"constant"}
    guided = SolverSettings(cfg=3.0, schedule="linear")
    assert search.effective(guided, 10) == guided


def test_a_members_own_best_settings_do_not_pay_for_fid_with_precision_or_recall(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Least FID alone would end without guidance, hot, at half the precision."""
    study = study_of("order", world, tmp_path)
    figures = {1.0: (10.0, 0.5, 0.7), 1.5: (11.0, 0.9, 0.5), 2.0: (12.0, 0.885, 0.59)}  # by cfg

    def probe(part: str, member: str, model: Any, settings: SolverSettings) -> dict[str, Any]:
        fid, precision, recall = figures.get(settings.cfg, (20.0, 0.9, 0.6))
        made = row(part, member, fid, precision=precision, recall=recall, settings=asdict(settings))
        study.rows.append(made)
        return made

    monkeypatch.setattr(study, "probe", probe)
    study.rows.append(row("final", "another", 1.0, precision=0.0, recall=0.0))
    start = study.options.settings
    assert start.cfg not in figures
    assert study.best_settings("k4", small_model(K4)) == replace(start, cfg=2.0)


@pytest.mark.parametrize(("recall_of_found", "fid_of_found"), [(0.59, 9.0), (0.4, 8.0), (0.6, 9.1)])
def test_own_best_settings_must_prove_so_on_the_finalists_samples(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recall_of_found: float,
    fid_of_found: float,
) -> None:
    study = study_of("order", world, tmp_path)
    start = study.options.settings
    found = replace(start, temperature=1.3)

    def final(member: str, model: Any, settings: SolverSettings) -> dict[str, Any]:
        fid, recall = (fid_of_found, recall_of_found) if settings == found else (9.0, 0.6)
        study.rows.append(row("final", member, fid, precision=0.9, recall=recall, settings=asdict(settings)))
        return study.rows[-1]

    monkeypatch.setattr(study, "best_settings", lambda member, model: found)
    monkeypatch.setattr(study, "final", final)
    keeps = (recall_of_found, fid_of_found) == (0.59, 9.0)
    assert study.compare_at_best({"k4": small_model(K4)}) == {"k4": found if keeps else start}
    parts = {row["settings"]["temperature"]: row["part"] for row in study.rows}
    assert parts == {start.temperature: "start" if keeps else "final", 1.3: "final" if keeps else "refused"}


def test_precision_samples_the_named_member_and_not_its_stand_in(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where members are compared, weights of equal images stand for a nesting; the grid is of one member."""
    asked: list[tuple[str, bool]] = []
    study = study_of("precision", world, tmp_path, nesting="k4-lattice")
    own, stand_in = study.pipeline.models["k4-lattice"], small_model(K4)

    class Enough(Exception):
        """The arms are not trained."""

    def members(names: Any) -> dict[str, NestAR]:
        names = tuple(names)
        return dict.fromkeys(names, stand_in if len(names) > 1 else own)

    def probe(part: str, member: str, model: NestAR, settings: Any, **labels: Any) -> None:
        asked.append((labels["axis"], model is own))

    def finals(member: str, model: NestAR, finalists: Any) -> None:
        asked.append(("final", model is own))
        raise Enough

    monkeypatch.setattr(precision, "finalists", lambda study: {})
    for name, instead in (("members", members), ("probe", probe), ("finals", finals)):
        monkeypatch.setattr(study, name, instead)
    with pytest.raises(Enough):
        precision.measure(study)
    assert {axis for axis, of_own in asked if not of_own} == {"k"}
    assert {axis for axis, of_own in asked if of_own} == {"constant", "linear", "temperature", "final"}


# ------------------------------------------------------------------------------------------------- findings


def row(part: str, member: str, fid: float, **values: Any) -> dict[str, Any]:
    settings = values.pop("settings", asdict(SolverSettings()))
    return {"part": part, "member": member, "fid": fid, "samples": 500, "settings": settings, **values}


def test_coordination_says_what_lambda_does_and_what_it_does_not() -> None:
    names = ["lambda-0", "lambda-0.01", "lambda-0.1", "lambda-1", "all-detached-0.1", "all-0.1"]
    described = [{"arm": name, "label": name} for name in names]
    finals = [row("final", name, fid) for name, fid in zip(names, (30, 28, 29, 35, 31, 40), strict=True)]
    errors = {"error_latter_before": 0.5}
    apart = [
        {
            "part": "alignment",
            "member": name,
            "pair": 1,
            "t": t,
            "difference": v + t,
            "error_former_before": v,
            **errors,
        }
        for name, v in zip(names, (4, 3, 2, 1, 2, 3), strict=True)
        for t in (0.0, 1.0)
    ]
    found = coordination.find(finals + apart, described)
    assert found["coordination_lowers_fid"] == dict.fromkeys(names[1:4], "too close to say")
    assert found["best_arm_by_fid"] == "too close to say"
    assert found["fid_falls_with_lambda"] == CLOSE and found["difference_falls_with_lambda"] == {"1": True}
    assert found["mean_difference_of_pair"]["lambda-0"] == {"1": 4.5}
    assert found["fid_of_all-0.1_minus_lambda-0.1"] == 11
    assert found["error_of_all-0.1_minus_lambda-0.1"] == {
        "error_former_before": 1,
        "error_latter_before": 0,
    }
    worse = [row("final", name, fid) for name, fid in zip(names, (20, 28, 29, 35, 31, 40), strict=True)]
    against = coordination.find(worse, described)
    assert against["coordination_lowers_fid"] == dict.fromkeys(names[1:4], False), "the paper: said so"
    assert against["best_arm_by_fid"] == "lambda-0" and against["fid_falls_with_lambda"] is False
    accuracies = zip(worse, (0.57, 0.568, 0.526, 0.496, 0.6, 0.6), strict=True)
    seen = [each | {"class_accuracy": share, "precision": 0.7, "recall": 0.2} for each, share in accuracies]
    told = coordination.find(seen, described)
    assert told["coordination_costs_class_accuracy"] == dict(
        zip(names[1:4], (CLOSE, CLOSE, True), strict=True)
    )
    assert set(told["coordination_costs_recall"].values()) == {CLOSE}
    assert "coordination_costs_recall" not in against
    partial_found = coordination.find(finals[:2], described)
    assert not {"fid_falls_with_lambda", "coordination_lowers_fid"} & partial_found.keys()


@pytest.mark.parametrize(("apart", "said"), [(0.9, CLOSE), (1.1, True)])
@pytest.mark.parametrize("samples", [200, 5000])
def test_fids_within_the_noise_of_so_many_samples_are_not_ranked(
    samples: int, apart: float, said: bool | str
) -> None:
    away = apart * fid_noise(samples) / 2
    less, more = (
        row("final", name, fid, samples=samples)
        for name, fid in (("a", 20.0 * (1 - away)), ("b", 20.0 * (1 + away)))
    )
    assert clearly_less(less, more) == said and clearly_less(more, less) in (CLOSE, False)
    assert (clearly_less(more, less) == CLOSE) == (said == CLOSE)
    assert clearly_least([more, less]) == ("a" if said is True else CLOSE)
    assert fid_falls([more, less]) == said
    assert fid_falls([less, more, less]) == (CLOSE if said == CLOSE else False)
    between = {**more, "fid": less["fid"] * 1.001}
    assert fid_falls([more, between, less]) == said and fid_falls([more, less, between]) == CLOSE
    assert clearly_least([less]) is fid_falls([less]) is None


def test_noise_falls_with_a_root_of_the_samples() -> None:
    assert fid_noise(200) == pytest.approx(3 * fid_noise(200 * 3**4))
    assert share_error(0.5, 200) == pytest.approx(0.05), "of a difference of two shares of 200"
    assert share_noise(0.5, 200) == pytest.approx(2 * share_noise(0.5, 800)) and share_noise(1.0, 200) == 0
    assert share_noise(0.5, 200, (1, -2, 1)) == pytest.approx(3**0.5 * share_noise(0.5, 200))


def test_members_that_kept_the_start_are_told_from_those_that_moved() -> None:
    rows = [row("search", name, 20.0) for name in ("kept", "moved", "refused")]
    rows += [row("start", "moved", 20.0), row("refused", "refused", 18.0)]
    rows += [row("final", name, 20.0) for name in ("kept", "moved", "refused", "never searched")]
    assert kept_the_start(rows) == ["kept"]
    assert refused(rows) == {"refused": {"fid": -2.0}}


@pytest.mark.parametrize(("samples", "said"), [(500, CLOSE), (5000, True)])
def test_a_recall_is_more_where_so_many_samples_can_say_so(samples: int, said: bool | str) -> None:
    lattice, raster = (
        row("final", name, 20.0, recall=recall, precision=0.7) | {"samples": samples}
        for name, recall in ((order.LATTICE, 0.49), (order.RASTER, 0.44))
    )
    found = order.find([lattice, raster], [])
    assert (found["lattice_has_more_precision"], found["lattice_has_more_recall"]) == (CLOSE, said)
    assert clearly_more(raster, lattice, "recall") == (CLOSE if said == CLOSE else False)
    most = scaling.find([lattice, raster | {"member": "one-shot"}], [])
    assert most["most_precision"] == CLOSE
    assert most["most_recall"] == (CLOSE if said == CLOSE else "k4-lattice")


def test_scaling_compares_with_both_ends() -> None:
    fid = {"k2-lattice": 40.0, "k4-lattice": 25.0, "k8-lattice": 32.0, "ar-raster": 19.0, "one-shot": 40.0}
    seconds = {"k2-lattice": 0.1, "k4-lattice": 0.2, "k8-lattice": 0.3, "ar-raster": 2.0, "one-shot": 0.05}
    rows = [row("final", name, value) for name, value in fid.items()]
    rows += [
        {"part": "latency", "member": name, "seconds_per_picture": value, "pictures_per_second": 1 / value}
        for name, value in seconds.items()
    ]
    rows.append(row("final", "one-shot, 12 calls", 19.0))  # the same weights: no rival of the members
    rows.append(rows[-2] | {"member": "one-shot, 12 calls", "seconds_per_picture": 0.025})
    rows += [row("final", "cells4-blocks", 33.0), rows[-1] | {"member": "cells4-blocks"}]
    found = scaling.find(rows, [])
    assert (found["best_fid"], found["best_nested"]) == ("ar-raster", "k4-lattice")
    assert found["best_nested_no_worse_than_baselines"] is False
    apart = {"ar-raster": 6, "one-shot": -15, "one-shot, 12 calls": 6, "cells4-blocks": -8}
    assert found["fid_of_best_nested_minus"] == apart
    assert found["speed_up_over_cells_one_at_a_time"]["k2-lattice"] == pytest.approx(0.25)
    assert (found["fid_falls_with_k"], found["seconds_rise_with_k"]) == (False, True)
    assert found["speed_up_over_autoregression_one_at_a_time"]["k4-lattice"] == pytest.approx(10)
    assert found["speed_up_over_one_shot_at_a_batch"]["k2-lattice"] == pytest.approx(0.5)
    assert found["speed_up_over_one_shot_at_12_calls_one_at_a_time"]["k2-lattice"] == pytest.approx(0.25)
    assert found["fastest_one_at_a_time"] == "one-shot, 12 calls"
    assert found["fastest_at_a_batch"] == "one-shot"


@pytest.mark.parametrize(("fid", "said"), [(19.0, False), (24.5, CLOSE), (26.0, True)])
def test_no_worse_is_said_only_where_no_baseline_may_be_better(fid: float, said: bool | str) -> None:
    rows = [row("final", "k4-lattice", 25.0), row("final", "one-shot", fid)]
    assert scaling.find(rows, [])["best_nested_no_worse_than_baselines"] == said


def test_one_shot_is_also_shown_with_the_calls_that_a_patch_of_the_others_has() -> None:
    start = SolverSettings(steps=6, solver="heun", cfg=3.0)
    searched = replace(start, steps=24, solver="euler", cfg=1.5)
    assert scaling.other_calls(searched, start) == [replace(start, cfg=1.5)], "24 calls it has itself"
    assert scaling.other_calls(start, start) == [replace(start, steps=12)]
    few = replace(start, steps=5, solver="euler")
    assert scaling.other_calls(few, start) == [start, replace(start, steps=12)]


@pytest.mark.parametrize("steps", [20, 25])
def test_every_axis_holds_the_settings_that_it_starts_from(steps: int) -> None:
    """Else the best of each axis together leaves the defaults even where they are best."""
    centre = SolverSettings(steps=steps)
    for axis in sampler.AXES.values():
        assert axis(centre).count(centre) == 1


def test_weights_of_other_classes_are_not_compared_with_tiny_worlds() -> None:
    check_classes(tiny_worlds.CLASSES)
    for classes in (("sparrow",) * len(tiny_worlds.CLASSES), tiny_worlds.CLASSES[::-1]):
        with pytest.raises(ValueError, match="other classes"):
            check_classes(classes)


def test_the_sampler_experiment_combines_the_best_of_each_axis_and_counts_the_cost() -> None:
    centre = SolverSettings(25, "euler", temperature=1.0, cfg=2.0, schedule="constant")

    def star(axis: str, fid: float, calls: int = 25, recall: float = 0.5, **moved: Any) -> dict[str, Any]:
        settings = asdict(replace(centre, **moved))
        figures = {"recall": recall, "precision": 0.9, "settings": settings}
        return row("star", "m", fid, axis=axis, calls=calls, **figures)

    rows = [
        star("solver", 30.0, 10, steps=10),
        star("solver", 26.0, 25),
        star("solver", 25.6, 50, steps=50),
        star("solver", 28.0, 10, 0.7, steps=5, solver="heun"),
        star("solver", 12.0, 2, 0.3, steps=1, solver="heun"),
        star("guidance", 26.0),
        star("guidance", 24.0, cfg=1.5),
        star("guidance", 23.0, cfg=3.0, schedule="linear"),
        star("guidance", 22.0, recall=0.4, cfg=4.0, schedule="linear"),
        star("temperature", 26.0),
        star("temperature", 27.0, temperature=1.1) | {"precision": 0.93},
        star("temperature", 29.0, recall=0.4, temperature=0.8) | {"precision": 0.99},
    ]
    best = replace(centre, steps=50, cfg=3.0, schedule="linear")
    quick_one = replace(best, steps=25)
    assert sampler.finalists(rows, centre) == {
        "defaults": centre,
        "best solver": replace(centre, steps=50),
        "best guidance": replace(centre, cfg=3.0, schedule="linear"),
        "best temperature": centre,
        "least FID": replace(centre, solver="heun", steps=1),
        "most recall": replace(centre, solver="heun", steps=5),
        "most precision, recall kept": replace(centre, temperature=1.1),
        "best of all axes": best,
        "the same, quick": quick_one,
    }, "25 calls are within two hundredths of the best; what pays with recall is but the least FID"
    level = {"precision": 0.9, "settings": asdict(best)}
    finals = [
        row(
            "final",
            "m",
            26.0,
            which="defaults",
            settings=asdict(centre),
            recall=0.5,
            precision=0.9,
            function_evaluations=250,
        ),
        row("final", "m", 22.0, which="best", recall=0.4, function_evaluations=500, **level),
        row(
            "final",
            "m",
            22.2,
            which="quick",
            settings=asdict(quick_one),
            recall=0.49,
            precision=0.9,
            function_evaluations=250,
        ),
    ]
    found = sampler.find(rows + finals, [])
    assert found["least_fid_of_axis"]["solver"] == {"solver": "heun", "steps": 1}
    close = CLOSE
    assert found["fid_falls_with_steps"]["euler"] == found["linear_schedule_better_than_constant"] == close
    assert found["less_fid_than_euler_at_equal_calls"] == {"midpoint": {}, "heun": {"10": close}}
    assert found["defaults_clearly_bettered"] == close
    paid = [one | {"recall": 0.4} if one["settings"]["cfg"] == 3.0 else one for one in rows]
    assert not sampler.find(paid + finals, [])["linear_schedule_better_than_constant"], "it pays with recall"
    assert found["least_fid_at"] == asdict(best)
    assert found["least_fid_with_precision_and_recall_kept_at"] == asdict(quick_one)
    assert found["cheapest_that_is_not_clearly_worse"] in (asdict(quick_one), asdict(centre))
    expected = {"recall": -0.1, "precision": 0.0, "function_evaluations": 250}
    assert found["least_fid_minus_defaults"] == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "warmup"), [(3, 1), (150, 15), (5000, 100)])
def test_an_arms_rate_is_not_still_rising_when_it_should_fall(
    steps: int, warmup: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = []

    def train(task: NestingTask, budget: Budget, *_: Any, **__: Any) -> dict[str, Any]:
        budgets.append(budget)
        return {"finished": False, "steps": 0}

    monkeypatch.setattr(arms, "train", train)
    changes = {"images": steps * SMOKE.batch, "runs": tmp_path}
    with pytest.raises(OutOfTime):
        arms.trained(study_of("baseline", world, **changes), [arms.Arm("one", "one", SMOKE)])
    assert [(budget.steps, budget.warmup_steps) for budget in budgets] == [(steps, warmup)]


def test_modules_says_which_of_them_loses_most_recall() -> None:
    own = [
        row("final", "k4-lattice", 12.0, recall=0.70, modules_given=0),
        row("final", "k4-lattice", 11.0, recall=0.72, modules_given=1),
        row("final", "k4-lattice", 11.5, recall=0.80, modules_given=2),
        row("all given", "k4-lattice", 7.0, recall=0.93, modules_given=3),
    ]
    unfinished = [row("final", "k2-lattice", 18.0, recall=0.6, modules_given=0)]
    found = modules.find(own + unfinished, [])
    assert found["k4-lattice_fid_by_modules_given"] == {"0": 12.0, "1": 11.0, "2": 11.5, "3": 7.0}
    lost = {"module_1": 0.02, "module_2": 0.08, "module_3": 0.13}
    assert found["k4-lattice_recall_lost_by"] == pytest.approx(lost)
    assert found["k4-lattice_recall_is_lost_most_by"] == CLOSE, "0.13 and 0.08 of 500 samples"
    own[3]["recall"] = 0.99  # of neighbours: by what the one has more the other has less
    assert modules.find(own, [])["k4-lattice_recall_is_lost_most_by"] == CLOSE, "0.19 and 0.08 of 500 samples"
    own[2]["recall"] = 0.75
    assert modules.find(own, [])["k4-lattice_recall_is_lost_most_by"] == "module_3"
    assert not any(name.startswith("k2") for name in found)


def test_precision_says_what_moves_it_and_what_closes_the_gap() -> None:
    def grid(axis: str, value: Any, share: float, recall: float) -> dict[str, Any]:
        figures = {"precision": share * 0.9, "precision_of_reference": share, "recall": recall}
        return row("grid", "m", 20.0, axis=axis, value=value, recall_of_reference=recall / 0.9, **figures)

    rows = [
        grid("constant", 1.0, 0.5, 0.8),
        grid("constant", 3.0, 0.95, 0.3),
        grid("constant", 4.0, 1.0, 0.2),
        grid("temperature", 0.9, 0.8, 0.5),
        grid("temperature", 1.1, 0.6, 0.7),
        grid("noise", 0.0, 0.1, 0.1),
        grid("noise", 0.5, 1.0, 0.9),  # arms: other models
        {**grid("constant", 2.0, 0.8, 0.6), "part": "final", "which": "defaults"},
    ]
    found = precision.find(rows, [])
    assert found["precision_moved_most_by"] == "constant"
    assert found["precision_span_of_axis"] == pytest.approx(
        {"constant": 0.45, "temperature": 0.18, "noise": 0.81}
    )
    few = [one | {"samples": 24} for one in rows]
    assert precision.find(few, [])["precision_moved_most_by"] == CLOSE
    assert found["gap_in_precision_at_defaults"] is True and found["gap_in_recall_at_defaults"] is True
    assert precision.find(few, [])["gap_in_precision_at_defaults"] == CLOSE, "0.9 and 0.72 of 24 samples"
    of_reference = rows[-1]["precision_of_reference"]
    assert found["precision_over_the_references"] == {"defaults": of_reference}, "of finalists alone"


def test_independence_reports_whatever_came_out() -> None:
    described = [
        {"arm": name, "label": name, "held_out": {"held_clean_1": 0.7}} for name in ("alone", "together")
    ]
    rows = [row("final", "alone", 20.0, precision=0.9), row("final", "together", 27.0, precision=0.8)]
    found = independence.find(rows, described)
    assert found["together_better_than_alone"] is False
    assert found["together_minus_alone"] == pytest.approx({"fid": 7, "precision": -0.1})
    assert "alone_then_together_better_than_alone" not in found


# ------------------------------------------------------------------------------------------------- baseline


def test_the_gaussians_loss_is_that_of_closed_forms() -> None:
    """Of unit variance: the mean of 1 / (t^2 + (1-t)^2) over the time law; what is known already costs 0."""
    x = torch.randn(4000, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).flatten(1)
    x = x - x.mean(0)
    white = (x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T).unflatten(1, (3, 2))
    z, weight = np.polynomial.hermite_e.hermegauss(60)
    t = 1 / (1 + np.exp(-z))
    expected = float((weight / (t**2 + (1 - t) ** 2)).sum() / weight.sum())
    ids = torch.zeros(len(white), dtype=torch.long)
    assert baseline.gaussian_loss(white, ids, [1, 1, 1]) == pytest.approx(expected, rel=0.01)
    assert baseline.gaussian_loss(white, ids, [3]) == pytest.approx(expected, rel=0.01)
    repeated = white[:, :1].expand(-1, 3, -1)
    assert baseline.gaussian_loss(repeated, ids, [1, 1, 1]) == pytest.approx(expected / 3, rel=0.01)
    two = torch.arange(len(white)) % 2
    apart = white + 3 * two[:, None, None]
    assert baseline.gaussian_loss(apart, two, [1, 1, 1]) == pytest.approx(expected, rel=0.01)
    assert baseline.gaussian_loss(apart, ids, [1, 1, 1]) > 1.1 * expected, "the class says where they are"


def test_the_gaussian_takes_no_credit_for_rows_that_it_was_fitted_to() -> None:
    """As many rows as an experiment has, and 64 dimensions: of white noise nothing can be told beforehand."""
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(20_000, 4, 16, generator=generator, dtype=torch.float64)
    sets = (many, *many.split(400)[:8])
    losses = [baseline.gaussian_loss(x, torch.arange(len(x)) % 12, [1, 1, 1, 1]) for x in sets]
    assert sum(losses[1:]) / 8 == pytest.approx(losses[0], rel=0.02)


def test_first_tokens_are_those_of_whole_samples() -> None:
    from nestar.sampler import PatchDone, sample

    model, settings = small_model(K4), SolverSettings(steps=2, cfg=1.0)
    ids = torch.tensor([0, 1, 2])
    whole = [event for event in sample(model, ids, [5, 6, 7], settings) if isinstance(event, PatchDone)][-1]
    first = baseline.first_tokens(model, ids, 5, settings)
    assert first.shape == (3, 4, 4)
    torch.testing.assert_close(first, whole.sequence_BNC[:, :4])


def test_the_curve_takes_every_step_once(world: Path, tmp_path: Path) -> None:
    entries = [
        {"step": 1, "held_clean_1": 0.9},
        {"step": 2, "held_clean_1": 0.8},
        {"step": 1, "held_clean_1": 0.7},
    ]
    entries += [{"step": 2}, {"steps": 3, "held_clean_1": 0.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    done = arms.Trained(arms.Arm("alone", "alone", SMOKE), small_model(K4), {}, tmp_path)
    assert baseline.curve(done) == [
        {"images": 8, "held_out_loss": 0.7},
        {"images": 16, "held_out_loss": 0.8},
        {"images": 24, "held_out_loss": 0.5},
    ]


# -------------------------------------------------------------------------------------------------- latency


def test_latencies_of_members(world: Path) -> None:
    pipeline = NestARPipeline.from_pretrained(world / "weights", device="cpu")
    settings = SolverSettings(steps=2, solver="heun")
    members = {name: (pipeline.models[name], settings) for name in ("k4-lattice", "one-shot", "ar-raster")}
    found = latency.latencies(members, pipeline.tokenizer, runs=3, batch=3)
    assert [found[name]["evaluations"] for name in members] == [7, 1, 16]
    for name, figures in found.items():
        nesting = pipeline.nestings[name]
        assert figures["function_evaluations"] == nesting.function_evaluations(2, 2)
        assert figures["seconds_per_picture"] > 0 and figures["pictures_per_second"] > 0
        assert (figures["device"], figures["threads"]) == ("cpu", torch.get_num_threads())
    assert found["one-shot"]["seconds_per_picture"] < found["ar-raster"]["seconds_per_picture"]


# -------------------------------------------------------------------------------------------------- figures


def test_figures_are_pngs_of_the_stated_size(tmp_path: Path) -> None:
    panels = plots.new_figure("A title", 4, columns=3)
    assert len(panels) == 4
    series = [plots.Series(f"line {n}", [1, 10, 100], [n, n, n]) for n in range(3)]
    plots.lines(panels[0], series, x_label="x", y_label="y", log_x=True, level=plots.Point("level", 0, 1.5))
    plots.lines(panels[1], [plots.Series("one", [0, 1], [1, 2])], x_label="", y_label="", ticks=["a", "b"])
    plots.points(panels[2], [plots.Point("p", 1, 2), plots.Point("q", 5, 2)], x_label="x", y_label="y")
    plots.bars(panels[3], ["a", "b"], [1.0, 0.0], x_label="x", level=plots.Point("most", 2.0, 0))
    plots.save(panels[0].figure, tmp_path / "deep" / "figure.png")
    with Image.open(tmp_path / "deep" / "figure.png") as figure:
        figure.load()
        assert figure.format == "PNG" and figure.size == (plots.WIDTH, 640)
        assert figure.convert("RGB").getpixel((2, 638)) == (255, 255, 255), "a light background"


def test_names_of_points_lie_over_no_marker_and_no_other_name() -> None:
    """As in `scaling.png`: two points close together near the right rim, three near the left one."""
    places = [(0.05, 18.7), (0.1, 19.0), (0.15, 18.9), (0.46, 15.1), (0.89, 15.0)]
    names = ["k = 2", "k = 4", "k = 8", "one-shot flow", "one-shot flow, 48 steps"]
    data = [plots.Point(name, *place) for name, place in zip(names, places, strict=True)]
    (panel,) = plots.new_figure("", 1)
    plots.points(panel, data, x_label="x", y_label="y", log_x=True)
    panel.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in panel.texts]
    markers = [Bbox.from_bounds(x, y, 0, 0).padded(3) for x, y in panel.transData.transform(places)]
    assert len(boxes) == len(names)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[:number], *markers]), names[number]


def test_labels_are_spread_and_keep_their_order() -> None:
    assert plots.spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    close = plots.spread([0.98, 0.97, 0.5, 0.99], 0.1)
    assert close == pytest.approx([0.9, 0.8, 0.5, 1.0])
    assert plots.spread([], 0.1) == []


# ------------------------------------------------------------------------------------------------ inception


class TinyInception(nn.Module):
    """Torchvision's interface on three numbers a picture: features before `fc`."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (299, 299)
        return self.fc(x.mean((2, 3)))


def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None) -> Path:
    """Only the library `name` is installed, with an empty hub cache; returns the cache's folder."""
    for known in inception.WEIGHTS:
        monkeypatch.delitem(sys.modules, known, raising=False)
    found = {name: ModuleSpec(name, None)} if name else {}
    monkeypatch.setattr(inception, "find_spec", found.get)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_inception_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library(monkeypatch, tmp_path, None)
    with pytest.raises(
        SettingsError, match="neither is installed: pip install torch-fidelity, and put weights-inc"
    ):
        inception.features_named(Path("inception"), CPU)
    monkeypatch.setattr(inception, "find_spec", {"torchvision": 1}.get)
    with pytest.raises(SettingsError, match=r"put inception_v3_google-0cc3c7bd\.pth into .*checkpoints"):
        inception.features_named(Path("inception"), CPU)
    with pytest.raises(WeightsError, match=r"none\.pth is missing"):
        inception.features_named(Path(f"inception:{folder / 'none.pth'}"), CPU)
    (folder / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"bad\.pth holds no weights of an Inception v3"):
        inception.features_named(Path(f"inception:{folder / 'bad.pth'}"), CPU)
    torch.save(TinyInception(1008).state_dict(), folder / "other.pth")
    with pytest.raises(SettingsError, match="takes torch_fidelity, which is not installed"):
        inception.load_inception(folder / "other.pth")


def test_inception_of_torchvision_measures_what_needs_no_classes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = library(monkeypatch, tmp_path, "torchvision")
    models = ModuleType("torchvision.models")
    models.inception_v3 = lambda **given: TinyInception()
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    torch.save(TinyInception().state_dict(), folder / inception.WEIGHTS["torchvision"])
    features = inception.features_named(Path("inception"), CPU)
    grey = torch.full((2, 3, 64, 64), 0.25)
    described = features.describe(grey, torch.tensor([0, 1]))
    torch.testing.assert_close(described[0], torch.full((2, 3), 0.25))
    assert described[1:] == (None, None)
    pipeline = NestARPipeline.from_pretrained(world / "weights", device="cpu")
    made = report.evaluate(
        pipeline.models["k4-lattice"],
        pipeline.tokenizer,
        features,
        samples=24,
        settings=SolverSettings(steps=1),
        progress=False,
    )
    assert {"fid", "precision", "recall", "diversity", "vendi"} <= made.keys()
    assert not {"inception_score", "class_accuracy", "coverage"} & made.keys()
    assert made["reference"]["fid"] < made["fid"]
    written = conduct(
        order.EXPERIMENT, Study("order", pipeline, features, options_of(world, tmp_path), progress=False)
    )
    assert "lattice_has_less_fid" in written["finding"] and "class_accuracy" not in written["rows"][0]


def test_inception_of_torch_fidelity_reads_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library(monkeypatch, tmp_path, "torch_fidelity")

    class Extractor(TinyInception):
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str):
            super().__init__(1008)
            assert features == ["2048"]
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

        def forward(self, x: Tensor) -> tuple[Tensor]:
            assert x.dtype == torch.uint8
            return (x.double().mean((2, 3)),)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save(TinyInception(1008).state_dict(), folder / inception.WEIGHTS["torch_fidelity"])
    features = inception.features_named(Path("inception"), CPU)
    read = features.describe(torch.ones(1, 3, 8, 8), torch.tensor([0]))[0]
    assert read.dtype == torch.float32 and read.tolist() == [[255.0] * 3]
