"""Diversity without a browser: siblings, temperatures, what each module decides, the nearest real picture."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import diversity as benchmark
from nestar import batches, neighbours
from nestar.batches import Rows
from nestar.checkpoints import EMBEDDED, load_tokenizer
from nestar.cli import main
from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED, TRAIN_SEED, ImagePool
from nestar.evaluation import diversity
from nestar.evaluation.diversity import (
    Explained,
    FeatureSpace,
    Progress,
    distances,
    explained,
    measure,
    summary,
)
from nestar.evaluation.metrics import psnr
from nestar.images import from_pil, to_pil
from nestar.model import NestAR, WeightsError
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.sampler import PatchDone, Prefix, SolverSettings, sample
from nestar.settings import MAX_SEED, SampleSettings, SettingsError
from nestar.ui.diversity_desk import Desk, Sample, rows_of, samples_of
from tests.small import K2, K4, save_checkpoint, save_tokenizer, small_model, small_tokenizer

FEW = SolverSettings(steps=3, cfg=2.0)
IMAGES, HELD_OUT = 48, 2
SAME = 35.0
"""PSNR in dB that a picture is to keep in any batch; products of other shapes round otherwise."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def pipe(weights) -> NestARPipeline:
    return NestARPipeline.from_pretrained(weights, device="cpu")


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return FeatureSpace()


@pytest.fixture(scope="module")
def index(space) -> neighbours.NeighbourIndex:
    return neighbours.build_index(space, small_tokenizer(), images=IMAGES, held_out=HELD_OUT)


def tokens(model: NestAR, seeds: tuple[int, ...], settings: SolverSettings = FEW, **given: object) -> Tensor:
    """Finished sequences, (B, N, C)."""
    class_ids = torch.ones(len(seeds), dtype=torch.long)
    *_, last = (e for e in sample(model, class_ids, seeds, settings, **given) if isinstance(e, PatchDone))
    return last.sequence_BNC.clone()


def decibels(one: Image.Image, other: Image.Image) -> float:
    """PSNR of two pictures."""
    return psnr(from_pil([one]), from_pil([other])).item()


# ---- keep and resample ---------------------------------------------------------------------------

NESTINGS = [K4, K2, Nesting.nested(4, 4, 4, "raster"), Nesting.nested(3, 3, 2)]


@pytest.mark.parametrize("nesting", NESTINGS, ids=lambda n: f"{n.name}-{n.n}")
def test_siblings_share_the_kept_modules_and_no_token_more(nesting: Nesting) -> None:
    model = small_model(nesting)
    parent = tokens(model, (5,))
    for modules in range(nesting.modules + 1):
        kept = nesting.scales[modules - 1].tokens if modules else 0
        siblings = tokens(model, (11, 12), keep=[Prefix(5, modules)] * 2)
        for sibling, other in ((siblings[0], siblings[1]), (siblings[1], siblings[0])):
            torch.testing.assert_close(sibling[:kept], parent[0, :kept], atol=1e-5, rtol=1e-5)
            apart = [(sibling - each)[kept:].abs().amax(-1) for each in (parent[0], other)]
            assert all((distance > 1e-3).all() for distance in apart), "a token that should differ does not"


def test_a_prefix_belongs_to_its_row() -> None:
    model = small_model(K4)
    mixed = tokens(model, (3, 8, 9), keep=[Prefix(3, 0), Prefix(4, 1), Prefix(4, 2)])
    alone = torch.cat([tokens(model, (3,)), tokens(model, (8,), keep=[Prefix(4, 1)]), tokens(model, (4,))])
    torch.testing.assert_close(mixed, alone, atol=1e-4, rtol=1e-3)


def test_each_row_has_its_own_temperature() -> None:
    model = small_model(K4)
    rows = tokens(model, (6, 6, 7), temperatures=(0.0, 0.7, 1.5))
    alone = [
        tokens(model, (seed,), replace(FEW, temperature=temperature))
        for seed, temperature in ((6, 0.0), (6, 0.7), (7, 1.5))
    ]
    torch.testing.assert_close(rows, torch.cat(alone), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "given",
    [{"keep": [Prefix(1, 1)]}, {"temperatures": (1.0, 1.0, 1.0)}, {"keep": [Prefix(1, 3)] * 2}],
    ids=["one prefix", "three temperatures", "too many modules"],
)
def test_rows_that_do_not_fit_are_refused(given: dict) -> None:
    with pytest.raises(ValueError, match=r"one a row|cannot be kept"):
        tokens(small_model(K4), (1, 2), **given)


def test_the_pipeline_streams_the_parent_first(pipe: NestARPipeline) -> None:
    *_, last = pipe.siblings("fish", k=4, steps=3, parent=9, modules=1, seed=20, count=3)
    assert last.final and len(last.images) == 4
    parent = pipe("fish", k=4, steps=3, seed=9).image
    assert decibels(last.images[0], parent) >= SAME > decibels(last.images[1], parent)
    pictures = {image.tobytes() for image in last.images}
    assert len(pictures) == 4


def test_the_pipeline_streams_one_seed_at_all_temperatures(pipe: NestARPipeline) -> None:
    frames = list(pipe.temperatures("flower", k=2, steps=2, seed=3))
    assert [len(frame.images) for frame in frames] == [len(batches.SWEEP)] * K2.evaluations
    cold = pipe("flower", k=2, steps=2, seed=99, temperature=0).image
    first, *_, hottest = frames[-1].images
    assert decibels(first, cold) >= SAME > decibels(hottest, cold)


def test_no_temperatures_are_refused(pipe: NestARPipeline) -> None:
    for many in (0, 17):
        with pytest.raises(SettingsError, match=rf"^temperatures must be 1 to 16 numbers, got {many}\.$"):
            pipe.temperatures("flower", temperatures=[1.0] * many)


def test_without_previews_only_the_end_is_decoded(pipe: NestARPipeline) -> None:
    settings = pipe.settings(class_name="fish", k=4, steps=1)
    frames = list(pipe.stream_rows(settings, Rows((1, 2)), previews=False))
    assert [len(frame.images) for frame in frames] == [0] * (K4.evaluations - 1) + [2]


@pytest.mark.parametrize("modules", [0, 2, 1.5, True, "1", None, float("nan")])
def test_modules_that_cannot_be_kept_are_refused(pipe: NestARPipeline, modules: object) -> None:
    with pytest.raises(SettingsError, match="from 1 to 1 for k4-lattice"):
        pipe.siblings("fish", k=4, parent=1, modules=modules)


def test_one_module_leaves_nothing_to_resample() -> None:
    with pytest.raises(SettingsError, match="has one module"):
        batches.check_modules(1, Nesting.one_shot(4, 4))
    with pytest.raises(SettingsError, match="parent must be"):
        batches.siblings(None, K4, -1, 1)


def test_seeds_go_on_at_zero_after_the_largest() -> None:
    assert batches.seeds_from(MAX_SEED, 3) == (MAX_SEED, 0, 1)


# ---- what a module decides -----------------------------------------------------------------------


def additive_families(
    variances: tuple[float, ...], parents: int, siblings: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Features that are sums of what each module adds: of parents, and of families for m = 0 ... M kept."""
    generator = torch.Generator().manual_seed(seed)

    def parts(*shape: int) -> Tensor:
        deviations = torch.tensor(variances, dtype=torch.float64).sqrt()
        drawn = torch.randn(*shape, len(variances), 8, generator=generator, dtype=torch.float64)
        return drawn * deviations[:, None]

    own = parts(parents)
    families = []
    for kept in range(len(variances) + 1):
        others = parts(parents, siblings)
        others[:, :, :kept] = own[:, None, :kept]
        families.append(torch.cat([own[:, None], others], 1).sum(2))
    return own.sum(1), torch.stack(families)


def test_known_shares_are_found() -> None:
    """With independent parts, modules 1 ... m explain their part of the variance."""
    result = explained(*additive_families((5.0, 3.0, 2.0), parents=400, siblings=2, seed=0), ends=True)
    assert result.shares == pytest.approx((0, 0.5, 0.8, 1), abs=0.03)
    assert result.increments == pytest.approx((0.5, 0.3, 0.2), abs=0.04)
    assert result.ends == pytest.approx((0, 1), abs=0.03) and result.ends[1] == pytest.approx(1, abs=1e-12)
    assert (result.parents, result.siblings) == (400, 2)
    assert result.share_errors[0] == result.share_errors[-1] == 0


def test_the_jackknife_knows_how_far_repeated_measurements_scatter() -> None:
    results = [
        explained(*additive_families((2.0, 1.0, 1.0), parents=24, siblings=1, seed=seed), ends=True)
        for seed in range(150)
    ]
    for name, error in (("shares", "share_errors"), ("increments", "increment_errors")):
        scatter = torch.tensor([getattr(result, name) for result in results]).std(0)[:-1]
        claimed = torch.tensor([getattr(result, error) for result in results]).mean(0)[:-1]
        inner = scatter > 0
        torch.testing.assert_close(claimed[inner], scatter[inner], rtol=0.2, atol=0)


def test_ends_are_given_where_they_are_not_measured() -> None:
    parents, families = additive_families((1.0, 1.0), parents=30, siblings=1, seed=1)
    with_ends, without = explained(parents, families, ends=True), explained(parents, families[1:-1])
    assert without == replace(with_ends, ends=None)
    assert without.shares[0] == 0 and without.shares[-1] == 1
    assert "ends" not in without.to_json() and len(with_ends.to_json()["ends"]) == 2


def test_too_few_or_equal_samples_explain_nothing() -> None:
    parents, families = additive_families((1.0, 1.0), parents=2, siblings=1, seed=1)
    with pytest.raises(SettingsError, match="At least three"):
        explained(parents, families[1:-1])
    with pytest.raises(SettingsError, match="equal"):
        explained(torch.ones(4, 8), torch.ones(1, 4, 2, 8))


def quick(pipe: NestARPipeline):
    return lambda settings, rows, cancel: pipe.stream_rows(settings, rows, cancel=cancel, previews=False)


def test_measuring_samples_gives_zero_at_one_end_and_one_at_the_other(
    pipe: NestARPipeline, space: FeatureSpace
) -> None:
    settings = pipe.settings(class_name="fish", k=2, steps=2, seed=5)
    *steps, result = measure(quick(pipe), K2, space, settings, parents=12, siblings=2, ends=True)
    assert isinstance(result, Explained) and all(isinstance(step, Progress) for step in steps)
    assert len(result.increments) == K2.modules
    assert result.ends[0] == pytest.approx(0, abs=0.25)
    assert result.ends[1] == pytest.approx(1, abs=1e-3)  # one batch is rounded like another
    assert sum(result.increments) == pytest.approx(1)
    batches_made = 1 + 2 * (K2.modules + 1)
    assert [step.done for step in steps] == list(range(1, batches_made * K2.evaluations + 1))
    assert {step.of for step in steps} == {batches_made * K2.evaluations}


def test_a_cancelled_measurement_ends_without_a_result(pipe: NestARPipeline, space: FeatureSpace) -> None:
    settings, cancel = pipe.settings(class_name="fish", k=4, steps=2), threading.Event()
    steps = []
    for step in measure(quick(pipe), K4, space, settings, parents=3, cancel=cancel):
        steps.append(step)
        if len(steps) == K4.evaluations + 2:
            cancel.set()
    assert len(steps) == K4.evaluations + 2 and isinstance(steps[-1], Progress)


@pytest.mark.parametrize(("values", "sentence"), [({"temperature": 0}, "temperature 0"), ({}, "one module")])
def test_what_is_plain_beforehand_is_not_measured(pipe, space, values, sentence) -> None:
    settings = pipe.settings(class_name="fish", k=4, **values)
    nesting = K4 if values else Nesting.one_shot(4, 4)
    with pytest.raises(SettingsError, match=sentence):
        next(measure(quick(pipe), nesting, space, settings, parents=3))


def test_the_benchmark_writes_what_the_page_reads(
    weights, pipe, space, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(diversity, "RESULTS", tmp_path)
    small = ["--parents", "4", "--siblings", "1", "--steps", "1", "--device", "cpu", "--repo", str(weights)]
    benchmark.main([*small, "--classes", "fish", "flower"])
    stored = diversity.stored_results("k4-lattice", pipe.models["k4-lattice"], pipe.tokenizer, space)
    assert json.loads(capsys.readouterr().out) == stored["mean"]
    assert list(stored["classes"]) == ["fish", "flower"]
    for name in ("shares", "increments"):
        pairs = zip(*(each[name] for each in stored["classes"].values()), strict=True)
        assert stored["mean"][name] == pytest.approx([sum(pair) / 2 for pair in pairs], abs=1e-3)
    of_others = partial(diversity.stored_results, "k4-lattice")
    assert of_others(pipe.models["k2-lattice"], pipe.tokenizer, space) is None
    another = load_tokenizer(EMBEDDED / "tokenizer")
    assert of_others(pipe.models["k4-lattice"], another, space) is None
    with pytest.raises(SystemExit):
        benchmark.main([*small, "--classes", "unicorn"])


# ---- features, distances -------------------------------------------------------------------------


def test_distances_and_their_summary() -> None:
    found = summary(distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])))
    assert found["matrix"] == [[0, 5, 8], [5, 0, 5], [8, 5, 0]]
    assert (found["mean"], found["least"], found["most"]) == (6, 5, 8)
    with pytest.raises(ValueError, match="two"):
        summary(torch.zeros(1, 1))


def test_pictures_of_another_size_are_scaled_and_real_ones_are_held_out(space: FeatureSpace) -> None:
    class_ids, seeds = tiny_worlds.draw_indices(0, 12, HELD_OUT_SEED)
    fish = tiny_worlds.CLASSES.index("fish")
    large, usual = (tiny_worlds.draw(class_ids, seeds, size).images[fish] for size in (256, 128))
    big, own = space.describe(to_pil(large[None])), space.describe(to_pil(usual[None]))
    real = space.real("fish", 3)
    torch.testing.assert_close(real[:1], own, atol=0.05, rtol=0.05)
    assert (big - own).norm() < 0.5 * torch.pdist(real).min()
    assert space.real("hot-air balloon", 3) is None


# ---- nearest real picture ------------------------------------------------------------------------


def picture_number(number: int, stream: int = TRAIN_SEED) -> Tensor:
    return tiny_worlds.draw(*tiny_worlds.draw_indices(number, 1, stream), 128).images


def test_a_training_picture_finds_itself(index: neighbours.NeighbourIndex, space: FeatureSpace) -> None:
    for number in (0, 17, IMAGES - 1):
        found = index.nearest(space.describe(to_pil(picture_number(number)))[0], space)
        assert found.number == number and found.distance == pytest.approx(0, abs=1e-3)
        assert found.class_name == tiny_worlds.CLASSES[number % 12]
        assert found.image.tobytes() == to_pil(picture_number(number))[0].tobytes()


def test_the_nearest_is_the_nearest_of_all(index: neighbours.NeighbourIndex, space: FeatureSpace) -> None:
    """Among so few pictures nearly all are candidates: the search must agree with comparing everything."""
    own = space.describe(to_pil(picture_number(3, HELD_OUT_SEED)))[0]
    class_ids, seeds = tiny_worlds.draw_indices(0, IMAGES, TRAIN_SEED)
    everything = space.describe(to_pil(tiny_worlds.draw(class_ids, seeds, 128).images))
    distance = (everything - own).norm(dim=1)
    found = index.nearest(own, space)
    assert (found.number, found.distance) == (
        int(distance.argmin()),
        pytest.approx(distance.min().item(), 1e-4),
    )


def test_the_yardsticks_say_what_unseen_and_copied_pictures_have(index, space) -> None:
    assert index.unseen.shape == index.copied.shape == (12, HELD_OUT)
    fish = tiny_worlds.CLASSES.index("fish")
    held_out = [picture_number(fish + 12 * i, HELD_OUT_SEED) for i in range(HELD_OUT)]
    own = sorted(index.nearest(space.describe(to_pil(image))[0], space).distance for image in held_out)
    assert index.unseen[fish].tolist() == pytest.approx(own, rel=1e-3)
    measured = index.yardstick("fish", index.tokenizer)
    low, middle, high = measured["unseen"]
    assert own[0] <= low <= middle <= high <= own[1] + 1e-3
    assert measured["copied"] is not None
    assert index.yardstick("unicorn", "another")["copied"] is None


def test_an_index_is_small_and_comes_back_from_its_files(index, space, tmp_path) -> None:
    index.save(tmp_path)
    assert (tmp_path / neighbours.WEIGHTS_FILE).stat().st_size < 60_000
    again = neighbours.load_index(tmp_path, space)
    for name in neighbours.TENSORS:
        assert torch.equal(getattr(again, name), getattr(index, name))
    assert (again.features, again.tokenizer, again.size) == (index.features, index.tokenizer, index.size)
    assert index.codes.dtype == torch.int8 and index.codes.element_size() * index.codes.shape[1] <= 32


def test_an_index_that_is_missing_foreign_or_damaged_says_so(index, space, tmp_path) -> None:
    with pytest.raises(WeightsError, match="python -m nestar index"):
        neighbours.load_index(tmp_path / "nothing", space)
    for changed, sentence in (
        ({"features": "00000000"}, "another feature network"),
        ({"drawing": -1}, "other pictures"),
    ):
        index.save(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(WeightsError, match=sentence):
            neighbours.load_index(tmp_path, space)
    replace(index, basis=index.basis[:5]).save(tmp_path)
    with pytest.raises(WeightsError, match="damaged"):
        neighbours.load_index(tmp_path, space)
    index.save(tmp_path)
    (tmp_path / neighbours.WEIGHTS_FILE).write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="damaged"):
        neighbours.load_index(tmp_path, space)


def test_the_command_builds_the_same_index_from_a_pool(index, space, tmp_path, capsys) -> None:
    tokenizer = tmp_path / "tokenizer"
    save_tokenizer(small_tokenizer(), tokenizer)
    ImagePool(tmp_path / "cache", IMAGES, 128)  # already drawn
    few = ["--images", str(IMAGES), "--held-out", str(HELD_OUT), "--tokenizer", str(tokenizer)]
    places = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "index")]
    assert main(["index", *few, *places]) == 0
    assert f"{IMAGES} training pictures" in capsys.readouterr().out
    again = neighbours.load_index(tmp_path / "index", space)
    assert again.tokenizer != "" and torch.equal(again.codes, index.codes)
    torch.testing.assert_close(again.unseen, index.unseen)
    assert main(["index", "--images", "5", *places]) == 2
    assert "at least" in capsys.readouterr().err


# ---- the desk ------------------------------------------------------------------------------------


def test_a_sample_can_be_asked_for_again(pipe: NestARPipeline, tmp_path: Path) -> None:
    settings = pipe.settings(class_name="fish", k=4, steps=2, seed=30, count=2)
    desk, cancel = Desk(pipe, tmp_path), threading.Event()
    for rows in (
        batches.consecutive(settings),
        batches.siblings(settings, K4, 7, 1),
        batches.temperature_row(settings, (0.3, 1.2)),
    ):
        samples = samples_of(settings, rows)
        *_, last = desk.sheets(settings, rows, cancel)
        assert last["state"] == "finished" and len(last["images"]) == len(samples)
        remembered = [desk.features(each, cancel) for each in samples]
        for each, own in zip(samples, remembered, strict=True):
            desk._seen.clear()
            torch.testing.assert_close(desk.features(each, cancel), own, atol=0.05, rtol=0.05)
    parent, sibling = samples_of(settings, batches.siblings(settings, K4, 7, 1))[:2]
    assert parent.prefix is None and sibling.prefix == Prefix(7, 1)
    assert rows_of(sibling) == Rows((30,), (Prefix(7, 1),))
    assert sibling.to_json() == {
        "seed": "30",
        "temperature": SampleSettings.temperature,
        "parent": "7",
        "modules": 1,
    }


def test_a_stopped_sheet_says_so_and_a_missing_index_too(pipe: NestARPipeline, tmp_path: Path) -> None:
    settings = pipe.settings(class_name="fish", k=4, steps=2)
    desk, cancel = Desk(pipe, tmp_path), threading.Event()
    values = []
    for value in desk.sheets(settings, Rows((1,)), cancel):
        values.append(value)
        if len(values) == 3:
            cancel.set()
    assert [value["state"] for value in values] == ["running"] * 3 + ["stopped"]
    assert values[-1]["images"] == values[-2]["images"]
    with pytest.raises(WeightsError, match="python -m nestar index"):
        desk.nearest(Sample(settings), threading.Event())


def test_features_seen_lately_are_bounded(pipe: NestARPipeline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("nestar.ui.diversity_desk.REMEMBERED", 3)
    settings = pipe.settings(class_name="fish", k=4, steps=1, count=2)
    desk = Desk(pipe, tmp_path)
    for first in (0, 2, 4):
        own = replace(settings, seed=first)
        list(desk.sheets(own, batches.consecutive(own), threading.Event()))
    assert [each.settings.seed for each in itertools.islice(desk._seen, 9)] == [3, 4, 5]
