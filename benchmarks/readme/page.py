"""The page: how fast it is, what a crowd does to it, and whether a seed's picture stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.readme import embedded, places
from benchmarks.readme.aims import TARGETS, goal
from benchmarks.readme.words import Row, spoken
from nestar.settings import SampleSettings


def first_picture_rows(report: dict[str, Any]) -> Iterator[Row]:
    """Seconds to the first frames and to the whole picture on one machine."""
    command = f"`{report['command']}`"
    machine = f"{report['cores']} cores"
    if "dtypes" in report:
        rate = report["matrix_gigaoperations_per_second"]
        machine += f" ({spoken(report['dtypes'])}, {rate:,.0f} billion operations a second)"
    now = embedded.parameters(f"k{report['k']}-lattice")
    if report["parameters"] != now:
        machine += f", earlier weights, of {report['parameters'] / 1e6:.1f} million parameters"
    for row in report["rows"]:
        note = f"{machine}, {row['steps']} steps of {row['solver'].capitalize()}, guidance {report['cfg']:g}"
        times = {
            "first_frame_seconds": "first patch",
            "first_module_seconds": "first module",
            "whole_picture_seconds": "whole picture",
        }
        seconds = ", ".join(f"{row[key]:.2f}" for key in times)
        aims = [f"{name} {goal(key, row[key], unit=' s')}" for key, name in times.items() if key in TARGETS]
        what = f"k = {report['k']}: {', '.join(times.values())}, streamed"
        yield what, f"{seconds} s", note, "<br>".join(aims), command


def speed_rows() -> Iterator[Row]:
    """Speed on the machines that ran the benchmarks."""
    for file in sorted(places.RESULTS.glob("first_picture*.json")):
        yield from first_picture_rows(places.read(file))
    page = places.result("click_to_paint")
    if page:
        command, memory = "`python -m benchmarks.click_to_paint`", page["memory_mib"]
        note = f"Chromium beside the sampler, {page['steps']} steps of {page['solver'].capitalize()}"
        for key, how in (("paced", "slowed to be seen, as the page begins"), ("as_it_comes", "as it comes")):
            seconds = f"{page[key]['first_s']:.2f} s, {page[key]['finished_s']:.2f} s"
            yield "click to first paint, to finished picture", seconds, f"{note}, {how}", "", command
        yield "memory of the page", f"{memory} MiB", "", goal("memory_mib", memory, unit=" MiB"), command


LEAVING = {"cut": "connection cut", "leave": "tab closed"}


def crowd_rows() -> Iterator[Row]:
    """What a crowd does to the page."""
    load, cancel, soak = (places.result(f"crowd_{what}") for what in ("load", "cancel", "soak"))
    if load:
        who = f"{load['visitors']} visitors at once, {load['cores']} cores shared with them"
        who += f"; {crowd_said(load)}"
        wait = load["wait_seconds"]
        light, command = load["light_call_seconds"]["p95"], "`python -m benchmarks.crowd load`"
        failed = f"{len(load['errors'])} of {load['pictures']}"
        yield "pictures that failed", failed, who, goal("errors", len(load["errors"])), command
        said = f"{wait['median']:.0f} s, {wait['p95']:.0f} s"
        yield "wait in the queue, median and 95th percentile", said, who, "", command
        alone = load.get("one_at_a_time")
        if alone:
            rates = [f"{each['pictures_per_second']:.2g}" for each in (load, alone)]
            yield (
                "pictures a second, those who wait made together; one at a time",
                "; ".join(rates),
                who,
                "",
                command,
            )
        yield "most runs that overtook one earlier visitor's", f"{load['most_overtaken']}", who, "", command
        yield (
            "the page itself meanwhile, 95th percentile",
            f"{light:.2f} s",
            who,
            goal("light", light, unit=" s"),
            command,
        )
    if cancel:
        command, growth = "`python -m benchmarks.crowd cancel`", cancel["memory_growth"]
        what = f"{cancel['runs']} runs, {cancel['stuck']} stuck; {crowd_said(cancel)}"
        ends = cancel["seconds_until_free"].items()
        freed = ", ".join(
            f"{LEAVING.get(name, name)} {each['p95'] * 1000:.0f} ms" for name, each in ends if each
        )
        yield "sampler free again after each way to leave, 95th percentile", freed, what, "", command
        yield "memory grown by these runs", f"{growth:.1%}", what, goal("growth", growth, ".0%"), command
    if soak:
        command, growth = "`python -m benchmarks.crowd soak`", soak["memory_growth"]
        what = f"{soak['calls']} calls through all tabs, {len(soak['errors'])} failed; {crowd_said(soak)}"
        yield "memory grown in a soak", f"{growth:.1%}", what, goal("growth", growth, ".0%"), command


def crowd_said(report: dict[str, Any]) -> str:
    """With which steps the page began, and whether its weights were others than today's; older reports do
    not say."""
    if "steps" not in report:
        return "by an earlier version, its steps not noted"
    steps = f"{report['steps']} steps of {report['solver'].capitalize()}"
    is_todays = report.get("fingerprint") == embedded.fingerprint(f"k{SampleSettings.k}-lattice")
    return steps if is_todays else f"{steps}, earlier weights"


def same_picture_rows() -> Iterator[Row]:
    """Whether a seed's picture depends on where it is made."""
    report = places.result("same_picture")
    command = "`python -m benchmarks.same_picture`"
    names = {
        "after_others": "after other pictures",
        "another_process": "in another process",
        "in_a_batch_of_16": "inside a batch of 16",
        "among_visitors": "made together with those of 7 visitors who want other things",
        "on_one_thread": "on one thread",
        "on_the_cpu": "on the CPU in place of the GPU",
    }
    for name, label in names.items():
        if found := report.get(name):
            least = f", the others at least {found['least_psnr']} dB" if found["least_psnr"] else ""
            equal = f"{found['equal']} of {found['pictures']} equal bit for bit{least}"
            goal_ = goal("same", found["at_least_35_db"], ".0%")
            yield (
                f"a seed's picture again, {label}",
                f"{found['at_least_35_db']:.1%} at 35 dB or more",
                equal,
                goal_,
                command,
            )
