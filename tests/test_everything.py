"""Which of the README's figures belong to the embedded weights, and how the others are measured anew."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import everything
from benchmarks.common import RESULTS
from benchmarks.everything import Measurement
from benchmarks.readme import embedded
from nestar import cli

WEIGHED = Measurement("evaluate_k2-lattice", "nestar evaluate --nesting k2-lattice", of="k2-lattice")
FREE = Measurement("thumbnails", "benchmarks.thumbnails", of="")
ASKED = Measurement(*("few_k2-lattice", "nestar evaluate", "k2-lattice"), {"samples": 500, "seed": 0})
GROWS = Measurement("experiments/order", "nestar experiment order --samples 200")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results in which there are none yet, beside weights of which one fingerprint is known."""
    monkeypatch.setattr(everything, "RESULTS", tmp_path)
    monkeypatch.setattr(embedded, "fingerprint", {"k2-lattice": "0123abcd", "k4-lattice": "4444aaaa"}.get)
    monkeypatch.setattr(embedded, "instruments", lambda: {"tokenizer": "t", "features": "f"})
    return tmp_path


def store(results: Path, measurement: Measurement, report: dict[str, Any]) -> None:
    file = results / f"{measurement.result}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report))


def test_every_report_there_is_is_one_of_them() -> None:
    known = {RESULTS / f"{each.result}.json" for each in everything.measurements()}
    assert known >= set(RESULTS.rglob("*.json")) - {RESULTS / "imagenet_step.json"}  # which asks for a GPU
    names = [each.name for each in everything.measurements()]
    assert len(set(names)) == len(names)


def test_every_command_is_one_that_there_is() -> None:
    parser = cli.command_parser()
    for each in everything.measurements():
        module, *arguments = shlex.split(each.command)
        if module == "nestar":
            parser.parse_args(arguments)
        else:
            assert importlib.util.find_spec(module), module


@pytest.mark.parametrize(
    ("measurement", "report", "reason"),
    [
        (WEIGHED, {}, "not measured yet"),
        (WEIGHED, {"fid": 1.0}, "does not say on which weights"),
        (WEIGHED, {"weights": "embedded", "fingerprint": "0123abcd"}, ""),
        (WEIGHED, {"weights": "0123abcd"}, ""),
        (WEIGHED, {"nesting": "k2-lattice", "fingerprint": "ffffffff"}, "other weights: k2-lattice"),
        (WEIGHED, {"fingerprint": "0123abcd", "instruments": {"tokenizer": "t", "features": "f"}}, ""),
        (WEIGHED, {"fingerprint": "0123abcd", "instruments": {"tokenizer": "x"}}, "another tokenizer"),
        (GROWS, {"finished": False}, "not finished"),
        (GROWS, {"finished": True, "command": "python -m nestar experiment order"}, "measured by `python"),
        (
            GROWS,
            {
                "command": "python -m nestar experiment order --samples 200",
                "settings": {"fingerprints": {"k2-lattice": "0123abcd", "k4-lattice": "ffffffff"}},
            },
            "other weights: k4-lattice",
        ),
        (FREE, {"accuracy": 0.7}, ""),
        (ASKED, {"samples": 500, "seed": 0, "fingerprint": "0123abcd"}, ""),
        (ASKED, {"samples": 200, "seed": 0, "fingerprint": "0123abcd"}, "with other samples"),
        (ASKED, {"samples": 500, "fingerprint": "0123abcd"}, "with other seed"),
    ],
)
def test_what_belongs_to_other_weights_is_found(
    results: Path, measurement: Measurement, report: dict[str, Any], reason: str
) -> None:
    store(results, measurement, report)
    found = everything.why_anew(measurement)
    assert reason in found and bool(found) == bool(reason)


class Runs(list[list[str]]):
    """Stands in for the processes: their arguments. One fails, one comes to its end if it has the time."""

    def __init__(self, results: Path):
        super().__init__()
        self.results = results

    def __call__(self, command: list[str], **_: Any) -> Any:
        self.append(command[2:])
        if "order" in command:
            ended = "--minutes" not in command
            weights = {"fingerprints": {"k4-lattice": "4444aaaa"}}
            store(self.results, GROWS, {"finished": ended, "settings": weights})
        return type("Ended", (), {"returncode": int("evaluate" in command)})


@pytest.fixture
def runs(results: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(everything, "measurements", lambda: iter((WEIGHED, FREE, GROWS)))
    store(results, FREE, {"accuracy": 0.7})
    started = Runs(results)
    monkeypatch.setattr(everything.subprocess, "run", started)
    return started


def test_only_what_does_not_stand_is_measured_and_a_failure_is_told_at_the_end(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main([]) == 1
    assert runs == [shlex.split(WEIGHED.command), shlex.split(GROWS.command)]
    assert capsys.readouterr().out.endswith("Failed: evaluate_k2-lattice.\n")


def test_the_list_measures_nothing(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert everything.main(["--list"]) == 0 and not runs
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["not measured yet", "stands", "not measured yet"]


def test_a_budget_reaches_what_can_go_on_and_leaves_the_rest(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main(["order", "--minutes", "30"]) == 0
    assert "Left for the next call: order." in capsys.readouterr().out
    assert runs == [[*shlex.split(GROWS.command), "--minutes", "30.0"]]
    assert everything.main(["order", "--minutes", "0.02"]) == 0
    assert runs[1:] == [[*shlex.split(GROWS.command), "--minutes", "0.1"]], "0.0 would be refused"
    assert everything.main(["--minutes", "0"]) == 0 and len(runs) == 2
    assert "Left for the next call: evaluate_k2-lattice, order." in capsys.readouterr().out


def test_an_unknown_name_is_refused(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        everything.main(["everything"])
    assert "unknown: everything; allowed are evaluate_k2-lattice" in capsys.readouterr().err
