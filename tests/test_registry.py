"""The named configurations at the paper's shape, and ImageNet's class names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nestar.data.imagenet import imagenet_classes, named, other_names
from nestar.model import NestAR
from nestar.registry import CONFIGURATIONS, FACTORS, SIZES, XAR_MILLIONS, imagenet_config
from nestar.sampler import PatchDone, SolverSettings, sample


def millions(name: str) -> float:
    return CONFIGURATIONS[name].parameters / 1e6


def test_every_size_and_factor_has_a_name() -> None:
    sizes = [f"imagenet256-{size}" for size in "sblh"]
    assert list(CONFIGURATIONS) == [*sizes, *(f"{size}-k{k}" for size in sizes for k in (2, 4, 8, 16))]
    assert all(CONFIGURATIONS[size] == CONFIGURATIONS[f"{size}-k4"] for size in sizes)
    for name, config in CONFIGURATIONS.items():
        assert (config.nesting.n, config.channels, config.classes) == (256, 16, 1000), name
        assert len(set(config.depths)) == 1, "blocks split evenly"
        assert config.dim % config.heads == 0 and config.dim // config.heads % 4 == 0, "for the 2-D RoPE"


def test_modules_are_the_papers() -> None:
    assert [imagenet_config("l", k).nesting.modules for k in FACTORS] == [8, 4, 3, 2]
    assert [imagenet_config("l", k).nesting.evaluations for k in FACTORS] == [9, 13, 18, 31]


@pytest.mark.parametrize(("size", "xar"), XAR_MILLIONS.items())
def test_total_sizes_stand_beside_xars(size: str, xar: int) -> None:
    for k in FACTORS:
        assert millions(f"imagenet256-{size}-k{k}") == pytest.approx(xar, rel=0.06)


def test_sizes_of_one_name_differ_little_between_factors() -> None:
    for size in SIZES:
        sizes = [millions(f"imagenet256-{size}-k{k}") for k in FACTORS]
        assert max(sizes) / min(sizes) < 1.08
    assert millions("imagenet256-s-k4") < 50


@pytest.mark.parametrize(("size", "k"), [("xl", 4), ("l", 3), ("L", 4)])
def test_unknown_configurations_are_refused_by_name(size: str, k: int) -> None:
    with pytest.raises(ValueError, match=r"'xl'.*s, b, l, h|'L'.*s, b, l, h|2, 4, 8, 16, got 3"):
        imagenet_config(size, k)


@pytest.mark.parametrize("k", FACTORS)
def test_the_shape_samples_to_the_end(k: int) -> None:
    """Narrow, but of the paper's shape: 256 tokens in the modules of this k, one of 1,000 classes."""
    config = replace(imagenet_config("s", k), dim=16, heads=2, cond_dim=8)
    model = NestAR(config).eval()
    events = list(sample(model, torch.tensor([207]), [0], SolverSettings(steps=1)))
    done = [event for event in events if isinstance(event, PatchDone)]
    assert len(done) == config.nesting.evaluations
    assert (done[-1].known, tuple(done[-1].sequence_BNC.shape)) == (256, (1, 256, 16))


def test_class_names_are_a_thousand_and_tell_classes_apart() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert [row.synset for row in classes] == sorted({row.synset for row in classes})
    assert len({row.name.casefold() for row in classes}) == 1000
    assert all(row.name == row.name.strip() and row.name for row in classes)
    assert [classes[i].name for i in (0, 1, 207, 388, 980, 999)] == [
        "tench",
        "goldfish",
        "golden retriever",
        "giant panda",
        "volcano",
        "toilet tissue",
    ]


def test_other_names_lead_to_a_class() -> None:
    others = other_names(("cougar", "golden retriever", "lighthouse"))
    assert "puma" in others["cougar"]
    assert "golden retriever" not in others, "it has no other name"
    assert "lighthouse" not in others, "ImageNet calls it a beacon"


def test_folders_of_synsets_get_names_and_others_keep_theirs() -> None:
    assert named(["n02099601", "n01440764"]) == ("golden retriever", "tench")
    assert named(["n02099601", "my dog"]) == ("n02099601", "my dog")
