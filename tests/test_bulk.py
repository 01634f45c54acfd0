"""Many samples as an npz: shared out among processes, taken up after a stop, read by others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nestar.cli import main
from nestar.evaluation import bulk
from nestar.evaluation.bulk import PART, Bulk
from nestar.processes import Worker
from tests.small import CLASSES, K4, SIZE, save_checkpoint

ROOT = Path(__file__).parent.parent
COUNT = 14


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("weights"), [K4]))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PART", 4)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def command(weights: str, out: Path, *more: str) -> list[str]:
    fixed = ["--repo", weights, "--device", "cpu", "--steps", "2", "--batch", "4"]
    return ["samples", "--count", str(COUNT), "--out", str(out), *fixed, *more]


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file) as stored:
        return stored["arr_0"], stored["arr_1"]


def test_an_npz_as_outside_evaluators_read_it(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "made" / "samples.npz"
    out.parent.mkdir()
    assert main(command(weights, out)) == 0
    pictures, labels = read(out)
    assert (pictures.dtype, pictures.shape) == (np.uint8, (COUNT, SIZE, SIZE, 3))
    assert labels.tolist() == [i % len(CLASSES) for i in range(COUNT)]
    assert len({picture.tobytes() for picture in pictures}) == COUNT


def test_processes_share_the_work_and_a_stopped_one_goes_on(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers and a kill give the bytes of one that ran through."""
    alone, shared = tmp_path / "alone.npz", tmp_path / "shared.npz"
    assert main(command(weights, alone)) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(command(weights, shared)) == 0
    assert not shared.exists(), "only the first worker joins"
    parts = sorted((tmp_path / "shared.parts").glob("*.npy"))
    assert [part.name for part in parts] == ["00000004.npy", "00000012.npy"]
    parts[0].unlink()  # as if it had been stopped before
    written = parts[1].stat().st_mtime_ns
    assert main(command(weights, shared)) == 0
    assert parts[0].exists() and parts[1].stat().st_mtime_ns == written
    monkeypatch.setenv("RANK", "0")
    assert main(command(weights, shared)) == 0
    assert all(np.array_equal(a, b) for a, b in zip(read(alone), read(shared), strict=True))


def test_parts_of_other_samples_are_refused(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "samples.npz"
    assert main(command(weights, out)) == 0
    assert main(command(weights, out, "--cfg", "1.5")) == 2
    assert "holds samples with cfg 3.0; now asked for: 1.5." in capsys.readouterr().err
    monkeypatch.setattr("nestar.engine.products_in", lambda device: "int8")
    assert main(command(weights, out)) == 2
    assert "; now asked for: int8." in capsys.readouterr().err
    (tmp_path / "samples.parts" / "asked.json").write_text("[]")
    assert main(command(weights, out)) == 2
    assert "asked.json must hold a JSON object." in capsys.readouterr().err


def test_a_batch_is_within_a_part(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(weights, tmp_path / "a.npz", "--batch", "5")) == 2
    assert "--batch must be at most 4, got 5." in capsys.readouterr().err


def test_every_class_gets_one_at_least(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(weights, tmp_path / "a.npz"), "--count", "2"]) == 2
    assert "--count must be at least one per class, 3, got 2." in capsys.readouterr().err


def test_the_data_itself_is_written_as_samples_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(save_checkpoint(tmp_path / "weights", [K4], ("owl", "wren")))
    pixels = np.random.default_rng(0).integers(0, 255, (7, SIZE, SIZE, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        file = tmp_path / "birds" / ("owl" if number < 4 else "wren") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(file)
    out = tmp_path / "reference.npz"
    data = [
        "samples",
        "--data",
        str(tmp_path / "birds"),
        "--repo",
        weights,
        "--out",
        str(out),
        "--batch",
        "4",
    ]
    assert main(data) == 0
    pictures, labels = read(out)
    assert np.array_equal(pictures, pixels) and labels.tolist() == [0] * 4 + [1] * 3
    assert main([*data, "--count", "4"]) == 0
    pictures, labels = read(out)
    assert np.array_equal(pictures, pixels[[0, 1, 3, 5]]) and labels.tolist() == [0, 0, 0, 1]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    out.unlink()
    assert main(data) == 0 and not out.exists(), "one process is enough"
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "birds" / "wren").rename(tmp_path / "birds" / "robin")
    capsys.readouterr()
    assert main(data) == 2
    assert capsys.readouterr().err == f"nestar: {tmp_path / 'birds'} has other classes than {weights}.\n"
    for flags, said in (
        (["--steps", "9"], "Of samples, not of data: --steps; with --data pictures are written as they are."),
        (["--count", "0"], "--count must be at least 1, got 0."),
    ):
        assert main([*data, *flags]) == 2
        assert capsys.readouterr().err == f"nestar: {said}\n"


def test_parts_cover_every_sample_once() -> None:
    made = Bulk(Path("nowhere"), 2 * PART + 5, 3, 0, {})
    assert [i for part in made.parts for i in part] == list(range(2 * PART + 5))
    assert Worker.of_environment({"RANK": "3", "WORLD_SIZE": "8"}) == Worker(3, 8)
    assert Worker.of_environment({}) == Worker(0, 1)


def test_torchrun_starts_the_workers(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run = subprocess.run(
        [*launcher, "-m", "nestar", *command(weights, out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    assert read(out)[0].shape == (COUNT, SIZE, SIZE, 3)
