"""The speed benchmark: what it counts is what torch counts, and its report holds what the README takes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers, profiled, speed
from benchmarks.operations import picture_operations
from benchmarks.readme.imagenet import OURS
from benchmarks.readme.speed import profiled_lines
from nestar.data.tiny_worlds import CLASSES
from nestar.model import NestAR, NestARConfig
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.sampler import SolverSettings, sample
from tests.small import small_tokenizer

SHAPE = NestARConfig(Nesting.nested(4, 4, 4), channels=4, classes=3, dim=32, heads=2, blocks=5, cond_dim=16)
NESTINGS = [
    Nesting.nested(4, 4, 4),
    Nesting.nested(4, 4, 2),
    Nesting.nested(4, 5, 3),  # truncated
    Nesting.autoregressive(4, 4),
    Nesting.cells(4, 4, 4),
    Nesting.one_shot(4, 4),
]


@pytest.mark.parametrize("nesting", NESTINGS, ids=lambda nesting: f"{nesting.name}-{nesting.n}")
@pytest.mark.parametrize("settings", [SolverSettings(2), SolverSettings(1, "midpoint", cfg=1.0)], ids=str)
def test_operations_are_those_that_torch_counts(nesting: Nesting, settings: SolverSettings) -> None:
    config = replace(SHAPE, nesting=nesting)
    model = NestAR(config).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for _ in sample(model, torch.tensor([1]), [0], settings):
            pass
    assert picture_operations(config, settings) == counter.get_total_flops()


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    n = [64, 256, 1024]
    assert speed.exponent(n, [3 * x**power for x in n]) == pytest.approx(power, abs=1e-3)
    assert speed.exponent([64], [1.0]) is None


def test_contenders_have_as_many_blocks_as_the_yardstick() -> None:
    shape = {"channels": 4, "dim": 24, "heads": 2, "cond_dim": 8}
    models = {
        "k4-lattice": NestAR(NestARConfig(Nesting.nested(8, 8, 4), **shape, blocks=13, split=(3, 6, 4))),
        "k2-lattice": NestAR(NestARConfig(Nesting.nested(8, 8, 2), **shape, blocks=13)),
        "one-shot": NestAR(NestARConfig(Nesting.one_shot(8, 8), **shape, blocks=12)),
    }
    device = torch.device("cpu")
    pipeline = NestARPipeline(models, small_tokenizer(), classes=CLASSES, origin="small", device=device)
    found = speed.contenders(pipeline)
    assert {"k8-lattice", "ar-raster", "cells4-blocks", *models} == found.keys()
    assert {contender.model.config.blocks for contender in found.values()} == {13}
    assert [name for name, each in found.items() if each.trained] == ["k4-lattice", "k2-lattice"]


def test_a_profile_puts_every_operation_in_one_kind_and_the_readme_compares_kinds() -> None:
    named = [name for names in profiled.KINDS.values() for name in names]
    assert len(named) == len(set(named))
    events = [("aten::mm", 3, 2e6), ("aten::bmm", 2, 1e6), ("aten::copy_", 5, 5e5), ("aten::normal_", 1, 1e5)]
    kinds = profiled.by_kind(events)
    assert kinds["products"] == {"operations": 3, "seconds": 2.0}
    assert kinds["attention"]["operations"] == 2 and kinds["copies"]["seconds"] == 0.5
    assert kinds[profiled.REST] == {"operations": 1, "seconds": pytest.approx(0.1)}
    settings = SolverSettings(steps=2, solver="euler")
    racing = {
        name: speed.Contender(NestAR(replace(SHAPE, nesting=nesting)).eval(), trained=False)
        for name, nesting in (
            (speed.YARDSTICK, Nesting.nested(4, 4, 4)),
            (profiled.BASELINE, Nesting.one_shot(4, 4)),
        )
    }
    members = profiled.measure(racing, settings, rows=2, runs=2)
    for name, member in members.items():
        inside = sum(own["seconds"] for kind, own in member["kinds"].items() if kind != profiled.OUTSIDE)
        assert 0 < inside < member["seconds"]
        passes = racing[name].model.config.nesting.function_evaluations(2)
        assert member["kinds"]["products"]["operations"] > passes * SHAPE.blocks / 2
    report = {"device": "cpu", "steps": 2, "solver": "euler", "rows": 2, "runs": 2, "members": members}
    lines = list(profiled_lines(report))
    assert sum(line.startswith("| products |") for line in lines) == 1 and len(lines) == 4 + len(kinds) + 1


def test_ratios_are_taken_turn_by_turn() -> None:
    nestings = {"k4-lattice": Nesting.nested(4, 4, 4), "ar-raster": Nesting.autoregressive(4, 4)}
    taken = {
        "k4-lattice": [{"seconds": value} for value in (1.0, 2.0, 4.0)],  # the machine slowed down
        "ar-raster": [{"seconds": value} for value in (10.0, 20.0, 44.0)],
    }
    found = speed.speed_ups(taken, nestings)
    assert found == {"k4-lattice": {"ar-raster": {"median": 10.0, "lowest": 10.0, "highest": 11.0}}}


def test_growth_is_measured_and_drawn() -> None:
    report = speed.growth(torch.device("cpu"), replace(SHAPE, blocks=6), [2, 4], runs=2)
    assert [(row["n"], row["contender"]) for row in report["rows"]] == [
        (n, label) for n in (4, 16) for label in speed.growth_nestings(2)
    ]
    rows = {(row["n"], row["contender"]): row for row in report["rows"]}
    slow, fast = rows[16, "plain autoregression"], rows[16, "k = 4"]
    assert (slow["evaluations"], fast["evaluations"], fast["runs"]) == (16, 7, 2)
    found = report["speed_up_of_k4_over_autoregression"]["16"]
    assert 0 < found["lowest"] <= found["median"] <= found["highest"]
    assert report["exponents"]["plain autoregression"]["evaluations"] == 1
    assert report["exponents"]["one-shot flow"]["evaluations"] == 0
    json.dumps(report, allow_nan=False)
    figure = speed.draw({"growth": report})
    assert figure is not None
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["patches one after another", "seconds per picture", "billion operations"]
    assert all(axis.get_yscale() == "log" for axis in figure.axes)
    assert all(math.isfinite(limit) for axis in figure.axes for limit in axis.get_ylim())


def test_growth_is_told_turn_by_turn_and_who_is_slow_takes_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down from turn to turn; token by token takes longer than anyone waits."""
    slower = iter(range(1, 99))

    def once(engines: Any, settings: SolverSettings, rows: int, run: int) -> dict[str, float]:
        times = {"autoregressive": speed.PATIENCE * 5, "nested": 2.0, "one-shot": 1.0}
        return {
            "seconds": times[engines.model.config.nesting.kind] * (1 if settings.steps == 1 else next(slower))
        }

    monkeypatch.setattr(speed, "sample_once", once)
    report = speed.growth(torch.device("cpu"), replace(SHAPE, blocks=6), [2], runs=3)
    runs = {row["contender"]: row["runs"] for row in report["rows"]}
    assert runs == {label: 1 if label == "plain autoregression" else 3 for label in speed.growth_nestings(2)}
    ratio = speed.PATIENCE * 5 * 4 / (2.0 * 2)  # the fourth and the second of the first turn
    assert report["speed_up_of_k4_over_autoregression"]["4"] == dict.fromkeys(
        ("median", "lowest", "highest"), ratio
    )


PEERS = {
    "MAR": lambda: peers.Mar(dim=32, depth=2, heads=2, head_dim=16, head_depth=2, rounds=3),
    "DiT": lambda: peers.Diffusion(dim=32, depth=2, heads=2, steps=2),
    "xAR": lambda: peers.Cells(dim=32, depth=2, heads=2, steps=2),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_operations_are_those_that_torch_counts(name: str) -> None:
    model = PEERS[name]()
    model.steps = 2
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.generate(1)
    assert model.operations() == counter.get_total_flops()


def test_mar_makes_every_token_once_and_one_a_round_at_least() -> None:
    for rounds in (64, 256):
        known = peers.Mar(dim=8, depth=1, heads=1, head_dim=8, head_depth=1, rounds=rounds).known()
        assert (known[0], known[-1], len(known)) == (0, 256, rounds + 1)
        assert all(before < after for before, after in pairwise(known))


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    return peers.measure(None, 1)


def test_peers_have_the_sizes_that_their_papers_give(counted: dict[str, Any]) -> None:
    """Millions of parameters: MAR-B 208, MAR-L 479, DiT-XL/2 675, xAR-B 172, xAR-L 608."""
    rows = {row["name"]: row for row in counted["rows"]}
    sizes = {"MAR-B, 64 rounds": 208, "MAR-L, 256 rounds": 479, "DiT-XL/2, 50 steps": 675}
    for name, millions in {**sizes, "xAR-B": 172, "xAR-L": 608}.items():
        assert rows[name]["parameters"] == pytest.approx(millions * 1e6, rel=0.02)
    for letter, name in OURS.items():
        for k in (4, 2):
            assert rows[f"{name}, k = {k}"]["parameters"] <= rows[f"MAR-{letter}, 64 rounds"]["parameters"]


def test_the_committed_peers_are_counted_by_this_code(counted: dict[str, Any]) -> None:
    committed = json.loads((peers.RESULTS / "peers.json").read_text())
    assert [(row["name"], row["shape"], row["operations"]) for row in committed["rows"]] == [
        (row["name"], row["shape"], row["operations"]) for row in counted["rows"]
    ]
    for name, others in counted["ratios"].items():
        for other, found in others.items():
            assert committed["ratios"][name][other]["operations"] == found["operations"]


def test_a_peer_far_below_nestars_share_is_marked() -> None:
    def row(name: str, share: float) -> dict[str, Any]:
        batch = {"seconds": {"median": 2.0}, "share_of_matrix_rate": share}
        return {"name": name, "operations": 10, "batches": {"64": batch}}

    found = peers.ratios([row("NestAR-B, k = 4", 0.5), row("slow", 0.34), row("fair", 0.36)])
    assert {name: each["fair_at_batch_64"] for name, each in found["NestAR-B, k = 4"].items()} == {
        "slow": False,
        "fair": True,
    }
