"""The evaluation: formulas against closed forms, the feature network, the report, the embedded weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED
from nestar.data.tiny_worlds import CLASSES, FACTORS, MAX_FACTORS, draw, draw_indices, known_factors
from nestar.evaluation import metrics, report
from nestar.evaluation.features import (
    ABSENT,
    WEIGHTS_FILE,
    FeatureNetwork,
    FeatureNetworkConfig,
    Reading,
    factor_levels,
    factor_scores,
    load_features,
    summarise,
)
from nestar.evaluation.report import Evaluator, evaluate
from nestar.model import NestAR, NestARConfig, WeightsError
from nestar.nesting import Nesting
from nestar.sampler import SolverSettings, sample_images
from nestar.tokenizer import Tokenizer, build_autoencoder
from nestar.training.features import FeaturesConfig, FeaturesTask, augment
from nestar.training.loop import Budget, train

EMBEDDED = Path(__file__).parents[1] / "assets" / "features"
SMALL = FeatureNetworkConfig(
    size=64, channels=(8, 16, 16), blocks=(0, 1, 1), place_channels=8, hidden=32, features=24
)


pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------ Frechet distance


def test_frechet_distance_of_known_gaussians():
    zero, one = torch.zeros(3), torch.eye(3)
    assert metrics.frechet_distance(zero, one, zero, one) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(zero, one, torch.tensor([3.0, 4.0, 0.0]), one) == pytest.approx(25)
    wide = torch.diag(torch.tensor([4.0, 9.0, 16.0]))  # sum of (sigma_a - sigma_b)^2
    assert metrics.frechet_distance(zero, one, zero, wide) == pytest.approx(1 + 4 + 9)


def test_frechet_distance_of_full_covariances_against_scipy():
    a, b = normal(5, 5), normal(5, 5, seed=1)
    cov_a, cov_b = a @ a.T, b @ b.T
    mean_a, mean_b = normal(5, seed=2), normal(5, seed=3)
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    expected = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * np.trace(root)
    assert metrics.frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected.item(), rel=1e-6)


def test_fid_takes_the_moments_of_its_samples():
    """Whitened samples have mean 0 and covariance 1 exactly; affine maps of them have known moments."""
    x = normal(500, 4)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    scale, shift = torch.tensor([2.0, 1.0, 0.5, 3.0]), torch.tensor([1.0, 0.0, -2.0, 0.5])
    expected = (scale - 1).square().sum() + shift.square().sum()
    assert metrics.fid(x, x * scale + shift) == pytest.approx(expected.item(), rel=1e-9)
    assert metrics.fid(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.fid(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two pictures"):
        metrics.fid(x, x[:1])


# ------------------------------------------------------------------------------------------ inception score


def test_inception_style_score_closed_forms():
    certain = torch.eye(6).repeat(5, 1) * 200
    assert metrics.inception_style_score(certain) == pytest.approx(6)
    assert metrics.inception_style_score(torch.zeros(30, 6)) == pytest.approx(1)
    assert metrics.inception_style_score(certain[:1].repeat(30, 1)) == pytest.approx(1)
    p, q = 0.9, 0.1  # two kinds of pictures, mirrored: KL of each to the even marginal
    logits = torch.tensor([[p, q], [q, p]]).log()
    expected = math.exp(p * math.log(2 * p) + q * math.log(2 * q))
    assert metrics.inception_style_score(logits) == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------- precision and recall


def two_modes(count: int) -> tuple[Tensor, Tensor]:
    return normal(count, 8), normal(count, 8, seed=1) + 100


def test_precision_and_recall_are_not_swapped():
    left, right = two_modes(200)
    both = torch.cat([left, right])
    precision, recall = metrics.precision_recall(both, left.flip(0))  # a mode of reality is missing
    assert precision == 1 and recall == pytest.approx(0.5)
    precision, recall = metrics.precision_recall(left, both)  # half of the fakes are like nothing real
    assert precision == pytest.approx(0.5) and recall == 1


def test_precision_and_recall_of_equal_and_of_distant_sets():
    left, right = two_modes(1100)  # more than one chunk
    assert metrics.precision_recall(left, left) == (1, 1)
    assert metrics.precision_recall(left, right) == (0, 0)
    with pytest.raises(ValueError, match="more than 3"):
        metrics.precision_recall(left, right[:3])


def test_a_class_that_is_missing_or_made_up_shows_in_its_own_shares():
    left, right = two_modes(50)
    real_ids = torch.tensor([0, 1]).repeat_interleave(50)
    fake_ids = torch.tensor([1, 0]).repeat(25)
    fakes_N, reals_N = metrics.within_manifolds(torch.cat([left, right]), left)
    assert metrics.means_by_class(reals_N, real_ids) == {CLASSES[0]: 1, CLASSES[1]: 0}
    assert metrics.means_by_class(fakes_N, fake_ids) == {CLASSES[0]: 1, CLASSES[1]: 1}
    fakes_N, _ = metrics.within_manifolds(left, torch.cat([left, right]))
    assert metrics.means_by_class(fakes_N, real_ids) == {CLASSES[0]: 1, CLASSES[1]: 0}


def test_neighbour_radius_is_the_kth_other_row():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]], dtype=torch.float64)
    assert metrics.neighbour_radii(line, 1).tolist() == [1, 1, 2, 4, 13]
    assert metrics.neighbour_radii(line, 3).tolist() == [7, 6, 4, 7, 19]


# ------------------------------------------------------------------------------------------- seams and PSNR


def ramp(size: int) -> Tensor:
    """Brightness that grows by 0.01 a pixel, along x and y alike."""
    line = torch.arange(size, dtype=torch.float64) * 0.01
    return (line[:, None] + line).expand(2, 3, size, size)


def test_seams_of_an_even_ramp_and_of_blocks():
    assert metrics.seams(ramp(32), 8) == pytest.approx(1)
    assert metrics.seams(torch.zeros(1, 3, 32, 32), 8) == 1
    blocks = ramp(4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert metrics.seams(blocks, 8) == math.inf
    assert metrics.seams(blocks + 0.5 * ramp(32), 8) == pytest.approx(1.5 / 0.5)
    assert metrics.seams(blocks + 0.5 * ramp(32), 4) < 3  # half of those borders are none


@pytest.mark.parametrize("dim", [2, 3])
def test_seams_are_seen_along_both_axes(dim):
    picture = ramp(32).clone()
    picture.narrow(dim, 16, 16).add_(1)
    across, inside = metrics.seam_gradients(picture, 16)
    assert across.tolist() == pytest.approx([0.51] * 2) and inside.tolist() == pytest.approx([0.01] * 2)


def test_an_empty_rim_is_no_seam():
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    picture[:, :, 4:28, 4:28] = ramp(24)[:1]
    picture[:, :, :4], picture[:, :, 28:] = picture[:, :, 4:5], picture[:, :, 27:28]  # flat beyond the middle
    picture[:, :, :, :4], picture[:, :, :, 28:] = picture[:, :, :, 4:5], picture[:, :, :, 27:28]
    assert metrics.seams(picture, 8) == pytest.approx(1)


def test_seams_need_borders_and_insides():
    for stride in (32, 1):
        with pytest.raises(ValueError, match="no border or no inside"):
            metrics.seams(ramp(32), stride)


def test_psnr_closed_form():
    image = torch.zeros(2, 3, 8, 8)
    other = image.clone()
    other[0] += 0.2
    other[1, :, :4] += 0.2  # half of the pixels
    assert metrics.psnr(image, other).tolist() == pytest.approx([20, 20 + 10 * math.log10(2)], rel=1e-5)
    assert metrics.psnr(image, image).tolist() == pytest.approx([100, 100])


# ------------------------------------------------------------------------------------------------ diversity


def test_mean_pairwise_distance_stays_within_classes():
    features = torch.tensor([[0.0, 0], [3, 4], [100, 0], [100, 1], [7, 7]])
    ids = torch.tensor([0, 0, 2, 2, 5])
    assert metrics.mean_pairwise_distance(features, ids) == pytest.approx((5 + 1) / 2)
    with pytest.raises(ValueError, match="two pictures"):
        metrics.mean_pairwise_distance(features[:2], torch.tensor([0, 1]))


def test_vendi_score_counts_different_pictures():
    assert metrics.vendi_score(torch.eye(7)) == pytest.approx(7)
    assert metrics.vendi_score(torch.ones(7, 5)) == pytest.approx(1)
    assert metrics.vendi_score(torch.eye(3).repeat(4, 1) * 9) == pytest.approx(3)  # lengths do not matter
    x = normal(20, 6)  # against the definition, on the kernel itself
    unit = x / x.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(unit @ unit.T / 20).clamp_min(1e-30)
    assert metrics.vendi_score(x) == pytest.approx((-(values * values.log()).sum()).exp().item(), rel=1e-6)


def test_class_accuracy_by_class():
    ids = torch.tensor([0, 0, 1, 1])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1]), len(CLASSES)).float()
    assert metrics.class_accuracy(logits, ids) == (0.75, {CLASSES[0]: 0.5, CLASSES[1]: 1.0})


def test_factor_coverage_of_whole_half_and_collapsed_ranges():
    ids, seeds = draw_indices(0, 6000, 3)
    real = known_factors(ids, seeds)
    same = metrics.factor_coverage(real, ids, real, ids)
    assert same["bins_reached"] == same["worst_bins"] == 1 and same["histogram_distance"] == 0
    assert same["farthest"] == 0
    fake = real.clone()
    planets = ids == CLASSES.index("planet")
    fake[planets, 0] *= 0.4999  # one factor of many: five of ten bins, half of the mass out of place
    half = metrics.factor_coverage(real, ids, fake, ids)
    assert half["worst_factor"] == half["farthest_factor"] == f"planet.{FACTORS['planet'][0].name}"
    assert half["worst_bins"] == 0.5 and half["farthest"] == pytest.approx(0.5, abs=0.06)
    stuck = metrics.factor_coverage(real, ids, torch.zeros_like(real), ids)
    widths = [1 / (factor.levels or metrics.BINS) for factors in FACTORS.values() for factor in factors]
    assert stuck["bins_reached"] == pytest.approx(sum(widths) / len(widths))


def test_factor_histogram_closes_its_last_bin():
    ends = metrics.factor_histogram(torch.tensor([0.0, 0.05, 0.95, 1.0]), 0)
    assert ends.tolist() == [0.5] + [0] * 8 + [0.5]
    assert metrics.factor_histogram(torch.tensor([0.0, 2.0, 2.0, 2.0]), 3).tolist() == [0.25, 0, 0.75]


# ----------------------------------------------------------------------------------------- feature network


def test_feature_network_shapes_and_size():
    network = FeatureNetwork().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) <= 2_500_000
    with torch.inference_mode():
        reading = network(torch.zeros(3, 3, 128, 128))
    assert reading.features.shape == (3, 256) and reading.class_logits.shape == (3, len(CLASSES))
    assert reading.factor_outputs.shape[:3] == (3, len(CLASSES), MAX_FACTORS)
    with pytest.raises(ValueError, match="128x128"):
        network(torch.zeros(1, 3, 64, 64))


def perfect_outputs(class_ids: Tensor, factors: Tensor) -> Reading:
    """What a network that knows everything would answer."""
    levels = factor_levels()[class_ids]
    outputs = torch.full((len(class_ids), len(CLASSES), MAX_FACTORS, 4), -7.0)  # wrong for every other class
    own = torch.nn.functional.one_hot(factors.nan_to_num(0).long().clamp(0, 3), 4) * 50.0
    own[..., 0] = torch.where(levels == 0, factors - 0.5, own[..., 0])
    own[..., 2:] = torch.where((levels == 2)[..., None], 99.0, own[..., 2:])  # levels that the factor has not
    outputs[torch.arange(len(class_ids)), class_ids] = own
    return Reading(torch.zeros(len(class_ids), 1), torch.eye(len(CLASSES))[class_ids] * 50, outputs)


def test_factors_are_read_and_judged_at_their_own_class():
    ids, seeds = draw_indices(0, 48, 2)
    factors = known_factors(ids, seeds)
    network = FeatureNetwork(SMALL)
    reading = perfect_outputs(ids, factors)
    read = network.read_factors(reading, ids)
    assert torch.equal(read.isnan(), factors.isnan())
    assert torch.allclose(read.nan_to_num(0), factors.nan_to_num(0), atol=1e-6)
    assert max(loss.item() for loss in network.loss(reading, ids, factors).values()) < 1e-6
    parts = (reading.features, reading.class_logits, reading.factor_outputs)
    blind = network.loss(Reading(*map(torch.zeros_like, parts)), ids, factors)
    assert blind["class"].item() == pytest.approx(1) and blind["discrete"].item() == pytest.approx(1)
    assert blind["continuous"].item() == pytest.approx(1, abs=0.2)
    assert (factor_levels() == ABSENT).sum() == factors[: len(CLASSES)].isnan().sum()


def test_known_factors_are_those_of_the_pictures():
    ids, seeds = draw_indices(5, 60, HELD_OUT_SEED)
    assert torch.equal(known_factors(ids, seeds).nan_to_num(-1), draw(ids, seeds, 8).factors.nan_to_num(-1))


def test_feature_network_round_trip_and_refusals(tmp_path):
    torch.manual_seed(0)
    network = FeatureNetwork(SMALL).bfloat16().float().eval()
    network.save_pretrained(tmp_path, record={"steps": 3})
    back = load_features(tmp_path)
    assert back.config == SMALL and not back.training and back.stem.weight.dtype == torch.float32
    image = draw(*draw_indices(0, 4, 2), 64).images
    assert torch.equal(back(image).features, network(image).features)

    weights = tmp_path / WEIGHTS_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match=WEIGHTS_FILE):
        load_features(tmp_path)
    weights.unlink()
    with pytest.raises(WeightsError, match=f"{WEIGHTS_FILE} is missing"):
        load_features(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text(json.dumps({**stored, "hidden": 33}))
    with pytest.raises(WeightsError, match="hidden"):
        load_features(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**stored, "factors": {"dragon": ["fire:0"]}}))
    with pytest.raises(WeightsError, match="other classes or factors"):
        load_features(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        load_features(tmp_path)


def test_augmentation_changes_no_picture_much_and_leaves_some_sharp():
    config = FeaturesConfig()
    images = draw(*draw_indices(0, 24, 4), 64).images
    changed = augment(images.clone(), config, torch.Generator().manual_seed(0))
    assert changed.abs().max() <= 1
    difference = (changed - images).abs().flatten(1).mean(1)
    assert difference.min() > 0 and difference.max() < 0.08
    assert (changed - images).abs().amax((1, 2, 3)).le(2.001 * config.brightness).sum() >= 12
    assert torch.equal(changed, augment(images.clone(), config, torch.Generator().manual_seed(0)))


def test_training_learns_and_resumes(tmp_path):
    config = FeaturesConfig(network=SMALL, batch=24, pool=48, held_out=24)
    device = torch.device("cpu")
    task = FeaturesTask(config, device, tmp_path / "cache")
    record = train(task, Budget(steps=60, warmup_steps=5), tmp_path / "run")
    assert record["finished"] and record["continuous"] < 0.8  # 1 is chance, and the average lags behind
    assert {"class_accuracy", "worst_r2", "mean_r2", "worst_accuracy", "mean_accuracy"} <= record.keys()
    network = load_features(tmp_path / "run" / "features")
    assert network.config == SMALL
    training = json.loads((tmp_path / "run" / "features" / "config.json").read_text())["training"]
    assert training["images_seen"] == 60 * 24
    assert {name: set(scores) for name, scores in training["held_out"].items()} == {
        name: {factor.name for factor in factors} for name, factors in FACTORS.items()
    }
    assert (tmp_path / "run" / "samples" / "final.png").exists()

    resumed = FeaturesTask(config, device, tmp_path / "cache")
    assert train(resumed, Budget(steps=60), tmp_path / "run")["steps"] == 60
    weights = {name: value.bfloat16() for name, value in resumed.ema.module.state_dict().items()}
    assert all(torch.equal(weights[name], value.bfloat16()) for name, value in network.state_dict().items())


# --------------------------------------------------------------------------------------------------- report


@pytest.fixture(scope="module")
def tiny() -> tuple[NestAR, Tokenizer, FeatureNetwork]:
    """An untrained model, tokenizer and feature network that fit together: 64 pixels, 4x4 tokens."""
    torch.manual_seed(0)
    model = NestAR(
        NestARConfig(
            Nesting.nested(4, 4, 4), channels=4, classes=len(CLASSES), dim=32, heads=2, blocks=2, cond_dim=16
        )
    )
    tokenizer = Tokenizer(build_autoencoder(patch=4, channels=(16, 16, 16), latent_channels=4), patch=4)
    return model.eval(), tokenizer.eval(), FeatureNetwork(SMALL).eval()


def test_report_is_whole_and_repeatable(tiny):
    settings = SolverSettings(steps=1, cfg=1.0)
    report = evaluate(*tiny, samples=72, settings=settings, seed=5, progress=False)
    assert json.loads(json.dumps(report)) == report
    assert report["samples"] == 72 and report["seed"] == 5 and report["settings"]["steps"] == 1
    assert report["nesting"] == tiny[0].config.nesting.name
    figures = {
        "fid",
        "inception_score",
        "precision",
        "recall",
        "class_accuracy",
        "class_accuracy_by_class",
        "precision_by_class",
        "recall_by_class",
        "redrawn",
        "redrawn_error",
        "redrawn_by_class",
        "seams",
        "diversity",
        "vendi",
        "coverage",
    }
    for part in (report, report["reference"], report["reconstruction"]):
        assert figures <= part.keys()
        for name in ("class_accuracy", "precision", "recall", "redrawn"):
            by_class = part[f"{name}_by_class"]
            assert set(by_class) == set(CLASSES)  # six pictures each
            assert sum(by_class.values()) / len(CLASSES) == pytest.approx(part[name])
        assert 0 < part["redrawn_error"] < part["redrawn"]
    assert 0 < report["sampling_seconds"] <= report["seconds"]
    # An untrained decoder makes nothing like Tiny Worlds; one half of them is like the other.
    assert report["reference"]["fid"] < report["reconstruction"]["fid"]
    assert report["reference"]["precision"] > report["precision"]
    assert report["tokenizer_psnr"] < 20
    assert report["precision_of_reference"] == report["precision"] / report["reference"]["precision"]

    model, *measured_with = tiny
    evaluator = Evaluator(*measured_with, samples=72, size=64)
    again, other = (evaluator.measure(model, settings, seed) for seed in (5, 6))
    assert again["fid"] == report["fid"] != other["fid"]
    assert again["redrawn"] == report["redrawn"] != other["redrawn"]


def test_given_modules_hold_tokens_of_other_pictures_of_the_same_classes(tiny, monkeypatch):
    model, tokenizer, features = tiny
    evaluator = Evaluator(tokenizer, features, samples=26, size=64)
    settings, taken, drawn = SolverSettings(steps=1, cfg=1.0), [], []
    whole = evaluator.measure(model, settings, 5)

    def sampled(model, tokenizer, ids, seeds, settings, given=None, engines=None):
        taken.append((ids, given))
        return sample_images(model, tokenizer, ids, seeds, settings, given, engines)

    def spied(ids, seeds, size):
        drawn.append((ids, seeds))
        return draw(ids, seeds, size)

    monkeypatch.setattr(report, "sample_images", sampled)
    monkeypatch.setattr(tiny_worlds, "draw", spied)
    given = evaluator.measure(model, settings, 5, given=1)
    assert given["fid"] != whole["fid"]
    ((ids, tokens_BKC),), ((of, seeds),) = taken, drawn
    assert torch.equal(ids, of), "of the classes that are asked for"
    assert not set(seeds.tolist()) & set(evaluator._seeds.tolist()), "no picture of the references"
    latents = tokenizer.encode(draw(of, seeds, 64).images).flatten(2).transpose(1, 2)
    assert torch.equal(tokens_BKC, latents[:, list(model.config.nesting.flat[:4])])
    with pytest.raises(ValueError, match="2 modules: 2 cannot be given"):
        evaluator.measure(model, settings, 5, given=2)


def test_report_refuses_what_does_not_fit(tiny):
    model, tokenizer, features = tiny
    with pytest.raises(ValueError, match="at least 24 samples"):
        evaluate(model, tokenizer, features, samples=23, progress=False)
    with pytest.raises(ValueError, match="128x128"):
        evaluate(model, tokenizer, FeatureNetwork().eval(), samples=24, progress=False)
    narrow = Tokenizer(build_autoencoder(patch=4, channels=(16, 16, 16), latent_channels=8), patch=4)
    with pytest.raises(ValueError, match="channels"):
        evaluate(model, narrow, features, samples=24, progress=False)


# --------------------------------------------------------------------------------------- embedded weights


def test_embedded_features_read_every_factor_of_held_out_pictures():
    """Also the proof that every factor of Tiny Worlds is visible."""
    network = load_features(EMBEDDED)
    ids, seeds = draw_indices(0, 1200, HELD_OUT_SEED)
    scene = draw(ids, seeds, network.config.size)
    accuracy, table = factor_scores(network, scene.images, ids, scene.factors)
    summary = summarise(table)
    assert accuracy >= 0.98, accuracy
    assert summary["worst_r2"] >= 0.8, table
    assert summary["worst_accuracy"] >= 0.9, table


def test_embedded_features_fit_their_share_of_the_repository():
    assert (EMBEDDED / WEIGHTS_FILE).stat().st_size <= 5 * 2**20
