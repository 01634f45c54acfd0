"""The command line: the JSON object, the files it writes, and its refusals."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nestar.cli import READER_LEFT, main
from nestar.keepsakes import KEYWORD
from nestar.pipeline import NestARPipeline
from nestar.settings import SOLVER_CALLS, SampleSettings
from tests.small import K2, K4, SIZE, save_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("weights")))


@pytest.fixture(autouse=True)
def no_repository_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NESTAR_REPO", raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; returns its one sentence."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("nestar: ")
    assert printed.err.endswith(".\n")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("nestar: ").strip()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a full disk: no file grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_sample_prints_one_json_object_and_writes_the_picture(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "flower.png"
    command = [
        "sample",
        "--class",
        "flower",
        "--k",
        "4",
        "--steps",
        "3",
        "--temperature",
        "0.9",
        "--cfg",
        "2.5",
        "--seed",
        "7",
        "--out",
        str(out),
        "--json",
        "--stages",
        "--repo",
        weights,
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    result = json.loads(printed)
    seconds = result.pop("seconds")
    stages = result.pop("stages")
    assert result == {
        "class": "flower",
        "k": 4,
        "order": "lattice",
        "steps": 3,
        "solver": "heun",
        "cfg": 2.5,
        "schedule": SampleSettings.schedule,
        "temperature": 0.9,
        "seed": 7,
        "modules": 2,
        "evaluations": 7,
        "function_evaluations": K4.function_evaluations(3, SOLVER_CALLS["heun"]),
        "image": str(out),
    }
    assert [(stage["module"], stage["tokens"]) for stage in stages] == [(1, 4), (2, 16)]
    assert 0 < stages[0]["seconds"] < stages[1]["seconds"] == seconds
    names = ["flower-module-1.png", "flower-module-2.png", "flower.png"]
    assert sorted(file.name for file in out.parent.iterdir()) == names
    one, two, final = (np.asarray(Image.open(out.parent / name)) for name in names)
    assert final.shape == (SIZE, SIZE, 3)
    assert (two == final).all()
    assert (one != final).any()
    picture = NestARPipeline.from_pretrained(weights, device="cpu")(
        "flower", steps=3, temperature=0.9, cfg=2.5, seed=7
    ).image
    assert (np.asarray(picture) == final).all()


def test_several_pictures_have_their_seeds_in_their_names(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fish.png"
    command = ["sample", "--class", "fish", "--steps", "1", "--repo", weights, "--device", "cpu"]
    command += ["--seed", "7", "--out", str(out), "--json", "--stages"]
    assert main([*command, "--count", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    names = [str(tmp_path / name) for name in ("fish-7.png", "fish-8.png")]
    assert result["images"] == names and result["image"] == names[0]
    stages = [f"fish-{seed}-module-{module}.png" for seed in (7, 8) for module in (1, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*stages, "fish-7.png", "fish-8.png"])
    seeds = [json.loads(Image.open(name).text[KEYWORD])["seed"] for name in names]
    assert seeds == [7, 8]
    assert len({Image.open(name).tobytes() for name in names}) == 2
    said = refusal(capsys, *command, "--count", "17")
    assert said == "count must be a whole number from 1 to 16, got 17."


def test_without_json_one_line_for_people(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTAR_REPO", weights)
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--class", "fish", "--k", "2", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"nestar.png: fish, {K2.evaluations} sequential evaluations, ")
    assert printed.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["nestar.png"]


def test_repo_goes_before_the_environment(
    weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTAR_REPO", "/no/such/folder")
    assert refusal(capsys, "sample", "--class", "fish").startswith(
        "'/no/such/folder' is neither a folder here nor"
    )
    assert refusal(capsys, "sample", "--class", "cat", "--repo", weights).startswith(
        "class must be one of flower"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--class", "cat"], "class must be one of flower, fish, hot-air balloon; got 'cat'."),
        (
            ["--k", "8"],
            "k = 8 with order lattice has no weights; there are weights for k = 2 (lattice), k = 4",
        ),
        (["--k", "four"], "k must be a whole number, got 'four'; "),
        (["--steps", "201"], "steps must be a whole number from 1 to 200, got 201."),
        (["--temperature", "inf"], "temperature must be a number from 0 to 2, got inf."),
        (["--cfg", "nan"], "cfg must be a number from 0 to 20, got nan."),
        (["--seed", "1.5"], "seed must be a whole number from 0 to 9223372036854775807, got 1.5."),
        (["--order", "spiral"], "order must be one of lattice, raster, blocks; got 'spiral'."),
        (["--device", "tpu"], "Unknown device 'tpu': allowed are auto, cpu and cuda."),
        (["--repo", 300 * "x"], f"{300 * 'x'!r} is neither a folder here nor a Hub repository id"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    out = tmp_path / "out.png"
    message = refusal(capsys, "sample", "--class", "fish", "--repo", weights, "--out", str(out), *arguments)
    assert message.startswith(said)
    assert not out.exists()


def test_damaged_weights_and_an_unwritable_place_are_one_sentence(
    tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        refusal(capsys, "sample", "--class", "fish", "--repo", str(tmp_path))
        == f"{tmp_path / 'config.json'} is missing."
    )
    sample = ["sample", "--class", "fish", "--steps", "1", "--repo", weights, "--out"]
    assert refusal(capsys, *sample, str(tmp_path)) == f"{tmp_path} cannot be written (Is a directory)."
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, *sample, str(tmp_path / "file" / "out.png"))


def test_a_place_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    train = ["train", "nesting", "--preset", "smoke", "--steps", "1"]
    assert refusal(capsys, *train, "--folder", str(file)) == f"--folder: {file} is a file."
    cache = ["--cache", str(tmp_path / "cache")]
    said = refusal(capsys, *train, "--folder", str(file / "run"), *cache)
    assert said == f"{file / 'run/run.json'} cannot be written (Not a directory)."
    said = refusal(capsys, "train", "family", "--folder", str(file / "family"), *cache)
    assert said == f"{file / 'family/tiny-worlds-k4/run.json'} cannot be written (Not a directory)."
    assert not (tmp_path / "cache").exists(), "refused before anything was drawn"
    k4 = f"{weights}/{K4.name}"
    extrapolate = ["extrapolate", k4, "--away-from", k4, "--by", "1", "--out", str(file / "out")]
    assert refusal(capsys, *extrapolate) == f"{file / 'out'} cannot be used (Not a directory)."


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(
    tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, common = tmp_path / "out.png", ["--steps", "1", "--repo", weights, "--out"]
    with files_up_to(1000):
        said = refusal(capsys, "sample", "--class", "fish", *common, str(out))
        assert said == f"{out} cannot be written (File too large)." and not out.exists()
        assert main(["samples", "--count", "16", *common, str(tmp_path / "all.npz")]) == 2
    assert "nestar: The disk is full (" in capsys.readouterr().err
    assert not (tmp_path / "all.npz").exists()


def test_a_gpu_whose_memory_is_too_small_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("nestar.training.loop.train", full)
    monkeypatch.setattr("nestar.cli.training._task", lambda *_: None)
    monkeypatch.setattr("nestar.training.runs.write_run", lambda *_: None)
    said = refusal(capsys, "train", "nesting", "--steps", "1", "--device", "cpu")
    assert said.startswith("The GPU has no memory left: ") and "--accumulate" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["tokenizer", "--preset", "imagenet", "--steps", "1"],
            "Unknown preset 'imagenet': allowed are tiny-worlds, tiny-worlds-decoder, tiny-worlds-nested, "
            "smoke.",
        ),
        (["nesting"], "Give --minutes or --steps, one of the two."),
        (["nesting", "--steps", "1", "--minutes", "1"], "Give --minutes or --steps, one of the two."),
        (["nesting", "--steps", "0"], "The budget must be a finite number above 0, got 0."),
        (["nesting", "--minutes", "nan"], "The budget must be a finite number above 0, got nan."),
        (["nesting", "--steps", "1", "--batch", "0"], "--batch must be at least 1, got 0."),
        (["nesting", "--steps", "1", "--pool", "0"], "--pool must be at least 1, got 0."),
        (
            ["nesting", "--steps", "1", "--pool-from", "-1"],
            "--pool-from must be from 0 to 2147483647, got -1.",
        ),
        (["tokenizer", "--steps", "1", "--pool-from", "9"], "--pool-from does not apply to tokenizer."),
        (
            ["nesting", "--steps", "1", "--pool-from", "9", "--data", "pictures", "--tokenizer", "mine"],
            "--pool-from is of Tiny Worlds; of a folder (--data) all pictures are used.",
        ),
        (
            ["nesting", "--steps", "1", "--seed", "9" * 20],
            f"--seed must be from 0 to 2147483647, got {'9' * 20}.",
        ),
        (
            ["nesting", "--steps", "1", "--pool", "9", "--data", "pictures", "--tokenizer", "mine"],
            "--pool is of Tiny Worlds; of a folder (--data) all pictures are used.",
        ),
        (
            ["nesting", "--steps", "1", "--coordination", "-1"],
            "--coordination must be a finite number of at least 0, got -1.0.",
        ),
        (["tokenizer", "--steps", "1", "--coordination", "1"], "--coordination does not apply to tokenizer."),
        (["tokenizer", "--steps", "1", "--compile"], "--compile does not apply to tokenizer."),
        (
            ["tokenizer", "--steps", "1", "--device", "tpu"],
            "Unknown device 'tpu': allowed are auto, cpu and cuda.",
        ),
        (["nesting", "--steps", "1", "--tokenizer", "nowhere"], "nowhere/tokenizer.json is missing."),
        (
            ["nesting", "--steps", "1", "--k", "65"],
            "--k must be from 2 to 64, the tokens of the preset's grid, got 65.",
        ),
        (
            ["nesting", "--steps", "1", "--order", "blocks"],
            "Unknown order 'blocks' of a nesting: allowed are lattice, raster.",
        ),
        (
            ["nesting", "--steps", "1", "--preset", "tiny-worlds-one-shot", "--order", "raster"],
            "The preset's nesting is one-shot: --order goes with --k there.",
        ),
        (["nesting", "--steps", "1", "--heads", "0"], "--heads must be at least 1, got 0."),
        (
            ["nesting", "--steps", "1", "--dim", "100"],
            "dim must be a multiple of 4 times 6 heads, not 100.",
        ),
        (
            ["nesting", "--steps", "1", "--blocks", "9", "--split", "3,3,3"],
            "--split says how many blocks there are: leave out --blocks.",
        ),
        (
            ["nesting", "--steps", "1", "--variant", "../mine"],
            "--variant takes up to 40 letters, digits, - and _, not '../mine'.",
        ),
        (["tokenizer", "--steps", "1", "--k", "2"], "--k does not apply to tokenizer."),
        (["features", "--steps", "1", "--dim", "64"], "--dim does not apply to features."),
        (["family", "--variant", "mine"], "--variant does not apply to family."),
        (
            ["nesting", "--preset", "imagenet256-l", "--data", "pictures"],
            "--data needs --tokenizer, the folder of one that was trained on such pictures; the embedded "
            "one, assets/tokenizer, knows Tiny Worlds alone.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_training_input_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, "train", *arguments) == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), ("sample", "train", "evaluate")),
        (("sample",), ("--class", "--temperature", "--stages", "--json", "--repo")),
        (("train",), ("tokenizer", "nesting", "--minutes", "--preset")),
        (("evaluate",), ("--samples", "--json")),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m nestar")
    assert all(name in printed for name in named)


@pytest.mark.parametrize("classes", [None, 12, [["flower"]]])
def test_assemble_names_a_config_that_holds_no_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: object
) -> None:
    folder = save_checkpoint(tmp_path / "mine")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "classes": classes}))
    said = refusal(capsys, "assemble", str(folder), "--nesting", str(folder / K4.name))
    assert said.startswith(f"{file} lacks a valid 'classes'")


def test_weights_begin_with_what_they_were_assembled_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(save_checkpoint(tmp_path / "mine"))
    said = refusal(capsys, "assemble", folder, "--steps", "many")
    assert said == "steps must be a whole number from 1 to 200, got 'many'."
    assert main(["assemble", folder, "--nesting", f"{folder}/{K4.name}", "--steps", "3", "--cfg", "1"]) == 0
    capsys.readouterr()
    sample = ["sample", "--class", "fish", "--repo", folder, "--out", str(tmp_path / "fish.png"), "--json"]
    for given, cfg in (([], 1.0), (["--cfg", "2"], 2.0)):
        assert main([*sample, *given]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["steps"], summary["cfg"], summary["solver"]) == (3, cfg, "heun")


def test_a_reader_that_leaves_is_no_fault(weights: str) -> None:
    """As `python -m nestar ... | head -1`, which exits with main's status and says no more than main."""
    command = [sys.executable, "-m", "nestar", "push", weights, "user/repo", "--dry-run"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=200
        )
    finally:
        os.close(writer)
    assert (ended.stderr, ended.returncode) == ("", READER_LEFT)
