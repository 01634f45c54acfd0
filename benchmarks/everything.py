"""All that the README's figures come from, measured anew where it does not belong to the embedded weights:
`python -m benchmarks.everything`; `--list` says what that is, and why.

One measurement after the other, each in a process of its own, as two at a time would slow each other. One
that fails keeps none of the others from being made. All of them take hours: `--minutes` begins none after so
long, and the next call goes on.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.readme import embedded, places
from nestar.evaluation.experiments import NAMES

K4 = "k4-lattice"
PLAIN = 2000
"""Samples of the table that holds the nestings beside each other."""

ARMS = "--images 51200 --preset tiny-worlds-k4-small"
"""What each arm that an experiment trains sees on a CPU, and how large it is."""

LEAST = 0.1
"""Minutes that an experiment is asked to take, at least: it refuses 0, and ends after its first row then."""

OPTIONS = {
    "baseline": f"--samples 200 {ARMS}",
    "coordination": f"--samples 200 {ARMS}",
    "independence": f"--samples 200 {ARMS}",
    "modules": "",
    "order": "--samples 200",
    "precision": f"--samples 500 {ARMS}",
    "sampler": "",
    "scaling": "--samples 200",
}
"""Of each experiment, where a CPU asks for less than its defaults; finalists have all their samples."""


@dataclass(frozen=True)
class Measurement:
    """A report and what writes it.

    Attributes:
        result: the report's name below `results/`, without its ending.
        command: what follows `python -m`.
        of: the weights that it is measured on, where the report does not name them beside their fingerprint;
            "" for what depends on none.
        asked: what the report has to say of how it was measured, where it does not name its command.
    """

    result: str
    command: str
    of: str = K4
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.result.rpartition("/")[2]

    @property
    def report(self) -> dict[str, Any]:
        """What it has found so far; empty where it has not run."""
        return places.read(RESULTS / f"{self.result}.json")

    @property
    def goes_on(self) -> bool:
        """Whether a call may break it off, and the next one takes it up."""
        return self.command.startswith("nestar experiment")


def evaluation(result: str, nesting: str, samples: int = PLAIN, seed: int = 0) -> Measurement:
    file = (RESULTS / f"{result}.json").relative_to(places.ROOT)
    seeded = f" --seed {seed}" if seed else ""
    command = f"nestar evaluate --nesting {nesting} --samples {samples}{seeded} --out {file}"
    asked = {"samples": samples, "seed": seed, "settings": embedded.solving()}
    return Measurement(result, command, nesting, asked)


def measurements() -> Iterator[Measurement]:
    """All of them, in the order in which they are needed."""
    yield evaluation(f"evaluate_{K4}", K4)
    yield evaluation(f"few_{K4}", K4, 500)
    yield evaluation(f"many_{K4}", K4, 5000)
    for seed in (7, 11):
        yield evaluation(f"seed{seed}_{K4}", K4, seed=seed)
    for name in embedded.nestings():
        if name != K4:
            yield evaluation(f"evaluate_{name}", name)
    yield Measurement("noise", "benchmarks.noise")
    yield Measurement(f"diversity_{K4}", "benchmarks.diversity")
    for name in ("first_picture", "click_to_paint", "speed", "profiled", "same_picture"):
        yield Measurement(name, f"benchmarks.{name}")
    yield Measurement("first_picture_float32", "benchmarks.first_picture --without-bf16")
    for what in ("load", "cancel", "soak"):
        yield Measurement(f"crowd_{what}", f"benchmarks.crowd {what}")
    yield Measurement("peers", "benchmarks.peers", of="")
    yield Measurement("thumbnails", "benchmarks.thumbnails", of="")
    for name in NAMES:
        yield Measurement(f"experiments/{name}", f"nestar experiment {name} {OPTIONS[name]}".strip())


def named_weights(measurement: Measurement) -> dict[str, str]:
    """Fingerprints of the weights that a report says it was measured on, by their names."""
    report = measurement.report
    several = report.get("fingerprints") or report.get("settings", {}).get("fingerprints")
    own = report.get("fingerprint") or report.get("weights", "")
    return several or ({measurement.of: own} if re.fullmatch("[0-9a-f]{8}", own) else {})


def why_anew(measurement: Measurement) -> str:
    """Why it has to be measured anew; empty if what there is stands."""
    report = measurement.report
    if not report:
        return "not measured yet"
    if not report.get("finished", True):
        return "not finished"
    asked, typed = f"python -m {measurement.command}", report.get("command")
    if typed not in (None, asked):
        return f"measured by `{typed}`"
    if others := [name for name, value in measurement.asked.items() if report.get(name) != value]:
        return f"measured with other {', '.join(others)}"
    instruments = report.get("instruments")
    if measurement.of:
        named = named_weights(measurement)
        if others := [name for name, own in named.items() if own != embedded.fingerprint(name)]:
            return f"measured on other weights: {', '.join(others)}"
        if not named and instruments is None:
            return "does not say on which weights it was measured"
    if instruments not in (None, embedded.instruments()):
        return "measured behind another tokenizer or feature network"
    return ""


def run(measurement: Measurement, minutes: float | None) -> bool:
    """Measure; whether it went well."""
    command = [sys.executable, "-m", *shlex.split(measurement.command)]
    if minutes is not None and measurement.goes_on:
        command += ["--minutes", f"{max(minutes, LEAST):.1f}"]
    print(f"{measurement.name}: {shlex.join(command[1:])}", flush=True)
    return subprocess.run(command, cwd=places.ROOT, check=False).returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    known = {each.name: each for each in measurements()}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"these alone (default: all): {', '.join(known)}"
    )
    parser.add_argument("--list", action="store_true", help="say what is to be measured, and measure nothing")
    parser.add_argument("--minutes", type=float, help="begin none after so long (default: no limit)")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; allowed are {', '.join(known)}")
    until = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    failed, left = [], []
    for name in arguments.names or known:
        reason = why_anew(known[name])
        remaining = None if until is None else (until - time.monotonic()) / 60
        if arguments.list:
            print(f"{name:28} {reason or 'stands'}")
        elif reason and remaining is not None and remaining <= 0:
            left.append(name)
        elif reason and not run(known[name], remaining):
            failed.append(name)
        elif reason and why_anew(known[name]):  # its time was over
            left.append(name)
    for words, names in (("Failed", failed), ("Left for the next call", left)):
        if names:
            print(f"{words}: {', '.join(names)}.")
    if not (arguments.list or failed or left):
        print("All stands; `python -m benchmarks.readme` writes it down.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
