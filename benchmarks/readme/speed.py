"""Speed of the nestings side by side, over the number of tokens, and in a profile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.readme import embedded
from benchmarks.readme.aims import TARGETS, goal
from benchmarks.readme.imagenet import NO_STEPS, peer_lines, training_lines
from benchmarks.readme.places import result
from benchmarks.readme.words import Row, between, spoken, table

YARDSTICK, RIVALS = "k4-lattice", ("ar-raster", "one-shot")
"""What the others' time is held against, and whose is."""


def speed_parts() -> Iterator[str]:
    """What `benchmarks.speed` and `benchmarks.peers` measured."""
    report, peers = result("speed"), result("peers")
    if report:
        yield from (*side_by_side(report), "", *streamed(report["streaming"]), "", *grown(report))
        yield from ("", "![Turns, time and work over the number of tokens](speed.png)", "")
        yield from table(("aims for speed", "measured", "how", "target", "from"), speed_aims())
    inside = result("profiled")
    if inside:
        yield from ("", *profiled_lines(inside))
    if peers:
        yield from ("", *peer_lines(peers))
    steps = result("imagenet_step")
    yield from ("", *(training_lines(steps) if steps else [NO_STEPS]))


SMALL = "° Its passes are too small for this machine: the ratio says as much of that as of the method."


def in_short_parts() -> Iterator[str]:
    """What the README tells of all that."""
    page, report = list(at_the_page()), result("speed")
    if page:
        yield from (" ".join(page), "")
    if report:
        engine = report["engine"]
        told = list(in_short(engine, list(next(iter(engine["members"].values()))["batches"])))
        yield " ".join([*told, SMALL] if any("°" in line for line in told) else told)
        yield from ("", "![Turns, time and work over the number of tokens](benchmarks/results/speed.png)")


def at_the_page() -> Iterator[str]:
    """How long a visitor waits, in a sentence."""
    first, click = result("first_picture"), result("click_to_paint")
    for row in first.get("rows", [])[-1:]:
        yield (
            f"On {first['cores']} cores a guided picture of {row['steps']} steps of "
            f"{row['solver'].capitalize()} takes {row['whole_picture_seconds']:.2f} s, its first module "
            f"{row['first_module_seconds']:.2f} s."
        )
    if click:
        slowed, live = (click[key]["finished_s"] for key in ("paced", "as_it_comes"))
        yield (
            f"In the browser the picture stands {slowed:.2f} s after the click, slowed so that its growth is "
            f"seen, or {live:.2f} s with *As it comes*."
        )


def side_by_side(report: dict[str, Any]) -> Iterator[str]:
    """The family's members in turns, one picture at a time and many."""
    engine = report["engine"]
    members = engine["members"]
    batches = list(next(iter(members.values()))["batches"])
    rate = engine["matrix_gigaoperations_per_second"]["median"]
    solver = report["solver"].capitalize()
    yield (
        f"`python -m benchmarks.speed`: the same sampler and cache, {report['runs']} runs in turns, "
        f"{report['steps']} steps of {solver}, guided, {report['cores']} cores, device "
        f"{report['device']}, without decoding; the modules of *k* = 4 compute in "
        f"{spoken(engine['dtypes'])}. *Share of peak*: of the rate of {engine['rate_dtype']} matrix products "
        f"of {engine['matrix_side']}², {rate:,.0f} billion "
        f"operations a second. ° marks a ratio to a baseline that reaches less than {engine['fair_from']:g} "
        "of the nesting's own share of peak: its passes are too small for this machine, and the ratio says "
        "as much of the machine as of the method."
        + (" † random weights." if "random" in {member["weights"] for member in members.values()} else "")
        + "".join(f" {sentence}" for sentence in outgrown(members))
    )
    yield from ("", *in_short(engine, batches))
    for batch in (batches[0], batches[-1]):
        yield ""
        heads = (f"{batch} at a time", "turns", "operations, 10⁹", "s per picture", "share of peak")
        yield from table(
            (*heads, "plain autoregression takes", "one-shot takes"), side_by_side_rows(engine, batch)
        )


def in_short(engine: dict[str, Any], batches: list[str]) -> Iterator[str]:
    """The two tables in two sentences."""
    sizes = [member["parameters"] / 1e6 for member in engine["members"].values() if "parameters" in member]
    told = []
    for batch in (batches[0], batches[-1]):
        times = engine["speed_up"][batch].get(YARDSTICK, {})
        rivals = [
            f"{engine['members'][name]['label']} takes {times[name]['median']:.2g} times as long"
            + unfair(engine, YARDSTICK, name, batch)
            for name in RIVALS
            if name in times
        ]
        if rivals:
            told.append(f"{batch} at a time, {' and '.join(rivals)}")
    if told:
        yield f"Beside *k* = 4, {'; '.join(told)}."
    if sizes:
        yield (
            "All have as many blocks as the *k* = 4 of the page and "
            f"{min(sizes):.1f} to {max(sizes):.1f} million parameters, more than those compared in quality."
        )


def outgrown(members: dict[str, Any]) -> Iterator[str]:
    """Which members were measured with weights of another size than those that are embedded now."""
    for name, member in members.items():
        if member["weights"] != "embedded" or not embedded.folder_of(name).exists():
            continue
        label, now = member["label"], embedded.parameters(name)
        if now != member.get("parameters", now):
            before, after = (f"{count / 1e6:.1f}" for count in (member["parameters"], now))
            yield f"{label} is here an earlier one of {before} million parameters, not today's of {after}."


def side_by_side_rows(engine: dict[str, Any], batch: str) -> Iterator[list[str]]:
    for name, member in engine["members"].items():
        own = member["batches"][batch]
        yield [
            member["label"] + ("" if member["weights"] == "embedded" else " †"),
            str(member["evaluations"]),
            f"{member['operations'] / 1e9:.3g}",
            between({name: seconds / int(batch) for name, seconds in own["seconds"].items()}, ""),
            f"{own['share_of_matrix_rate']:.0%}",
            *(ratio(engine, name, other, batch) for other in RIVALS),
        ]


def ratio(engine: dict[str, Any], name: str, other: str, batch: str) -> str:
    """How many times a nesting's seconds a baseline takes, marked where this is not fair."""
    found = engine["speed_up"][batch].get(name, {}).get(other)
    if found is None:
        return ""
    return between(found, " x") + unfair(engine, name, other, batch)


def unfair(engine: dict[str, Any], name: str, other: str, batch: str) -> str:
    """The mark of a ratio to a baseline that uses much less of the machine than the nesting."""
    own, others = (
        engine["members"][each]["batches"][batch]["share_of_matrix_rate"] for each in (name, other)
    )
    return "" if others >= engine["fair_from"] * own else " °"


def streamed(report: dict[str, Any]) -> Iterator[str]:
    """What streaming costs."""
    costs = ", ".join(
        f"{row['streamed_over_not']['median']:.2f} times as long at `{name}` "
        f"({row['streamed_over_not']['lowest']:.2f} to {row['streamed_over_not']['highest']:.2f})"
        for name, row in report.items()
        if name.count(".") == 0  # variants of a nesting take the same time
    )
    yield f"With a decoded frame for every patch one picture takes, beside one without: {costs}."


def growth_mark(report: dict[str, Any], n: str) -> str:
    """The mark of `ratio`, where plain autoregression over n tokens uses the machine that much less."""
    used = {
        row["contender"]: row["operations"] / row["seconds"]["median"]
        for row in report["growth"]["rows"]
        if row["n"] == int(n)
    }
    least = report["engine"]["fair_from"] * used["k = 4"]
    return "" if used["plain autoregression"] >= least else " °"


def grown(report: dict[str, Any]) -> Iterator[str]:
    """How cost grows with n."""
    growth = report["growth"]
    sizes = ", ".join(map(str, dict.fromkeys(row["n"] for row in growth["rows"])))
    powers = ", ".join(
        f"{label}: {row['seconds']:.2g}"
        for label, row in growth["exponents"].items()
        if row["seconds"] is not None
    )
    ahead = ", ".join(
        f"{ratio['median']:.3g} times as long{growth_mark(report, n)} at n = {n}"
        for n, ratio in growth["speed_up_of_k4_over_autoregression"].items()
    )
    once = sorted({row["n"] for row in growth["rows"] if row["runs"] == 1})
    said_once = f"; at n = {' and '.join(map(str, once))} it ran once" if once else ""
    yield (
        f"Over n = {sizes} tokens ({growth['blocks']} blocks of width {growth['dim']} in all, random "
        f"weights, {growth['steps']} steps, one picture) plain autoregression takes, beside *k* = 4, "
        f"{ahead}{said_once}." + (f" Time grows as a power of n, with exponents {powers}." if powers else "")
    )


def speed_aims() -> Iterator[Row]:
    """What the project set out to reach side by side, and what it did."""
    report = result("speed")
    if not report:
        return
    engine, growth, command = report["engine"], report["growth"], "`python -m benchmarks.speed`"
    for n, times in growth["speed_up_of_k4_over_autoregression"].items():
        key = f"autoregression_over_k4_at_{n}"
        if key in TARGETS:
            how, aim = f"{growth['steps']} steps, 1 at a time", goal(key, times["median"], unit=" x")
            what = f"plain autoregression over *k* = 4, n = {n}"
            yield what, between(times, " x") + growth_mark(report, n), how, aim, command
    for k in (4, 2):
        found = engine["speed_up"].get("64", {}).get(f"k{k}-lattice", {}).get("one-shot")
        if found:
            aim = goal(f"one_shot_over_k{k}", found["median"], unit=" x")
            yield f"one-shot flow over *k* = {k}", between(found, " x"), "64 at a time", aim, command
    batch = engine["members"].get("k4-lattice", {}).get("batches", {}).get("64")
    if batch:
        share = batch["share_of_matrix_rate"]
        aim = goal("share_of_matrix_rate", share, ".0%")
        yield "share of peak of *k* = 4", f"{share:.0%}", "64 at a time", aim, command
    found = report["streaming"].get("k4-lattice")
    if found:
        times = found["streamed_over_not"]
        aim = goal("streamed_over_not", times["median"], unit=" x")
        yield "streaming over not streaming, *k* = 4", between(times, " x"), "", aim, command


def profiled_lines(report: dict[str, Any]) -> Iterator[str]:
    """Where a batch's time goes, and at which kinds of operations a nesting gains how much."""
    nested, baseline = report["members"].values()
    slower = baseline["seconds_without_profiler"] / nested["seconds_without_profiler"]
    yield (
        f"Where a batch of {report['rows']} spends its time (`python -m benchmarks.profiled`: "
        f"{report['steps']} steps of {report['solver'].capitalize()}, device {report['device']}, medians of "
        f"{report['runs']} runs in torch's profiler): by its matrix products, counted, {baseline['label']} "
        f"would take {baseline['operations'] / nested['operations']:.3g} times as long as {nested['label']}; "
        f"it took {slower:.3g} times as long. Kinds of operations in which it takes fewer times as long are "
        "where the nesting loses that:"
    )
    yield ""
    heads = ("operations", *(f"{member['label']}, s" for member in (nested, baseline)), "times as long")
    yield from table(heads, profiled_rows(nested, baseline))


def profiled_rows(nested: dict[str, Any], baseline: dict[str, Any]) -> Iterator[list[str]]:
    for kind, own in nested["kinds"].items():
        both = own["seconds"], baseline["kinds"][kind]["seconds"]
        shares = [
            f"{seconds:.3g} ({seconds / member['seconds']:.0%})"
            for seconds, member in zip(both, (nested, baseline), strict=True)
        ]
        yield [kind, *shares, f"{both[1] / both[0]:.2g}" if both[0] else ""]
