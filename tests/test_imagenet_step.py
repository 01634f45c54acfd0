"""What a training step at the paper's scale is measured with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import imagenet_step
from benchmarks.readme.imagenet import training_lines
from nestar.training.presets import NESTINGS, STEPS


def test_a_batch_runs_in_equal_parts() -> None:
    assert [imagenet_step.equal_part(3, most) for most in (1, 2, 3, 64)] == [1, 1, 3, 3], "two leave one over"
    assert imagenet_step.equal_part(2048, 100) == 64


def test_a_step_of_an_imagenet_size_is_taken_and_projected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "imagenet256-s"
    narrow = replace(NESTINGS[name], dim=48, heads=3, cond_dim=16)
    monkeypatch.setattr(imagenet_step, "POOL", 16)
    monkeypatch.setitem(imagenet_step.NESTINGS, name, narrow)
    out = tmp_path / "steps.json"
    small = ["--sizes", "s", "--batch", "1", "--steps", "1"]
    imagenet_step.main([*small, "--device", "cpu", "--out", str(out)])
    report = json.loads(out.read_text())
    (row,) = report["rows"]
    assert row["parameters"] == narrow.model_config(channels=16).parameters
    assert (row["batch"], row["rows_at_once"], report["device"]) == (1, 1, "cpu")
    assert all(loss > 0 for name, loss in row["losses"].items() if name.startswith("m"))
    hours = STEPS[row["name"]] * row["seconds_per_step"] / 3600
    assert row["projected_hours"] == pytest.approx(hours, rel=1e-2)
    *_, line = training_lines(report)
    assert line.startswith(f"| imagenet256-s | {row['parameters'] / 1e6:.0f} | 1 |")


def test_without_a_gpu_nothing_is_written_where_the_readme_looks(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        imagenet_step.main(["--device", "cpu"])
    assert "this is a rehearsal" in capsys.readouterr().err
