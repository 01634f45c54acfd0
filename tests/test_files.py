"""Files are whole or as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nestar.files import append_line, together, whole, write_json, write_tensors


def test_a_failure_leaves_what_stood_there_and_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_json(file, {"a": 1})
    with pytest.raises(RuntimeError), whole(file) as partial:
        partial.write_text("{")
        assert json.loads(file.read_text()) == {"a": 1}
        raise RuntimeError
    assert json.loads(file.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [file]


def test_what_a_kill_leaves_is_cleared_by_the_next(tmp_path: Path) -> None:
    """safetensors writes beside its target, under names of its own."""
    file = tmp_path / "state.safetensors"
    left = tmp_path / "state.safetensors.partial"
    left.mkdir()
    (left / ".tmpXYZ").write_text("half")
    write_tensors(file, {"x": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == [file]


def test_files_that_belong_together_come_together(tmp_path: Path) -> None:
    folder = tmp_path / "weights"

    def write(text: str, fails: bool = False) -> None:
        with together(folder, last="config.json") as place:
            (place / "config.json").write_text(text)
            if fails:
                raise OSError
            (place / "module.txt").write_text(text)

    write("old")
    folder.joinpath("README").touch()
    with pytest.raises(OSError):
        write("new", fails=True)
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "config.json": "old",
        "module.txt": "old",
        "README": "",
    }
    write("new")
    assert folder.joinpath("config.json").read_text() == folder.joinpath("module.txt").read_text() == "new"


def test_the_last_is_away_while_the_others_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def seen(source: Path, target: Path) -> None:
        moved.append((target.name, tmp_path.joinpath("a-config").exists()))
        target.write_text(source.read_text())

    tmp_path.joinpath("a-config").touch()
    monkeypatch.setattr("nestar.files.os.replace", seen)
    with together(tmp_path, last="a-config") as place:
        for name in ("a-config", "b", "c"):
            place.joinpath(name).touch()
    assert sorted(moved[:2]) == [("b", False), ("c", False)] and moved[2:] == [("a-config", False)]


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_the_umask_allows(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "x.safetensors", {"x": torch.arange(6).view(2, 3).T})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode
    assert load_file(tmp_path / "x.safetensors")["x"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    link, file = tmp_path / "latest.json", tmp_path / "there" / "new.json"
    file.parent.mkdir()
    link.symlink_to(file)
    write_json(link, {"a": 1})
    assert link.is_symlink() and json.loads(file.read_text()) == {"a": 1}


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json(pipe, {"a": 1})
        assert json.loads(os.read(reader, 100)) == {"a": 1}
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")}, allow_nan=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", ["", '{"a": 1}\n', '{"a": 1}\n{"a'])
def test_a_line_is_appended_behind_a_torn_one_too(tmp_path: Path, before: str) -> None:
    file = tmp_path / "runs" / "log.jsonl"
    if before:
        file.parent.mkdir()
        file.write_text(before)
    append_line(file, {"b": 2})
    append_line(file, {"c": 3})
    assert file.read_text() == before + ("" if before in ("", before.rstrip() + "\n") else "\n") + (
        '{"b": 2}\n{"c": 3}\n'
    )
