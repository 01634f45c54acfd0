"""Write the README's figures, a page of what experiments found, and the pictures beside it, from
`results/*.json` and the embedded configs: `python -m benchmarks.readme`.

No figure in the README's results is typed by hand; run this after the commands that the table names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from benchmarks import speed
from benchmarks.common import RESULTS
from benchmarks.peers import FEWER_BLOCKS
from nestar import plots
from nestar.checkpoints import EMBEDDED, load_tokenizer
from nestar.evaluation.experiments import NAMES
from nestar.evaluation.experiments.command import load
from nestar.evaluation.experiments.findings import fid_noise
from nestar.evaluation.experiments.rows import rounded
from nestar.evaluation.experiments.study import arms_said
from nestar.evaluation.inception import features_named
from nestar.evaluation.report import instruments
from nestar.files import write_json
from nestar.model import NestAR, Outline, fingerprint_of, summed_over_runs, trained_on
from nestar.nesting import Nesting
from nestar.registry import FACTORS, SIZES, XAR_MILLIONS, imagenet_config
from nestar.settings import SampleSettings
from nestar.training.presets import NESTINGS

ROOT = Path(__file__).parents[1]
EXPERIMENTS = RESULTS / "experiments"
FINDINGS = EXPERIMENTS / "README.md"
BY = "written by `python -m benchmarks.readme` -->\n"
SECTIONS = {name: f"<!-- {name}: {BY}" for name in ("results", "family", "speed", "findings", "sizes")}
"""Where the README's written parts begin; each ends with `<!-- end of NAME -->`."""

TARGETS: dict[str, tuple[float, ...]] = {
    "class_accuracy_of_few": (0.90,),
    "recall_of_reference_of_few": (0.8,),
    "class_accuracy": (0.98,),
    "precision_of_reference": (0.9,),
    "recall_of_reference": (0.9,),
    "seams": (1.15,),
    "tokenizer_psnr": (28, 30),
    "rising": (0.95,),
    "worst_r2": (0.8,),
    "worst_accuracy": (0.9,),
    "told_by_colour": (0.8,),
    "first_module_seconds": (0.4, 0.12),
    "whole_picture_seconds": (1.5, 0.5),
    "memory_mib": (1536,),
    "errors": (0,),
    "light": (0.5,),
    "growth": (0.05,),
    "same": (0.99,),
    "autoregression_over_k4_at_64": (10,),
    "autoregression_over_k4_at_256": (30,),
    "autoregression_over_k4_at_1024": (100,),
    "one_shot_over_k4": (2.5,),
    "one_shot_over_k2": (4,),
    "share_of_matrix_rate": (0.35,),
    "streamed_over_not": (1.3,),
}
"""What the project set out to reach: the first value soon, the second in the end."""
AT_MOST = (
    "seams",
    "told_by_colour",
    "first_module_seconds",
    "whole_picture_seconds",
    "memory_mib",
    "errors",
    "light",
    "growth",
    "streamed_over_not",
)

FINAL_FIGURES = ("fid", "inception_score", "precision", "recall", "class_accuracy", "seams", "diversity")
"""What the README shows of an experiment's finalists."""
NO_SPEED = "Not measured yet.\n"
NO_STEPS = (
    "`python -m benchmarks.imagenet_step` takes optimiser steps of the ImageNet sizes at their whole batch, "
    "and projects the hours of a run from them; it has not been run, as there was no GPU."
)
NO_FAMILY = "Only one nesting has been measured so far.\n"
FAIR_K4 = "k4-lattice.together"
"""The weights of k = 4 that saw as many images as the family's other members."""
FAMILY_COLUMNS = {
    "class_accuracy": ("asked class recognised", ".1%"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "fid": ("FID", ".1f"),
    "seams": ("seams", ".2f"),
}
"""What the README shows of every embedded nesting, and how."""
LEAVING = {"cut": "connection cut", "leave": "tab closed"}
CEILINGS = {"reference": "real pictures", "reconstruction": "real ones through the tokenizer"}
"""What the family is held against, by its key in a report."""

Row = tuple[str, str, str, str, str]


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def goal(key: str, value: float, form: str = "g", unit: str = "") -> str:
    """The targets of a figure, and whether the measured value reaches each."""

    def judged(limit: float) -> str:
        lower = key in AT_MOST
        reached = value <= limit if lower else value >= limit
        return f"{'≤' if lower else '≥'} {limit:{form}}{unit}: {'reached' if reached else '**not reached**'}"

    return "; ".join(judged(limit) for limit in TARGETS[key])


def quality_rows() -> Iterator[Row]:
    """Quality of the embedded k = 4 nesting beside the references' own values, of several numbers of samples:
    each aim was set for one of them."""
    few, report, many = (read(RESULTS / f"{kind}_k4-lattice.json") for kind in ("few", "evaluate", "many"))
    shares = ("class_accuracy", "precision", "recall")
    measured = [each for each in (few, report, many) if each]
    for each in measured:
        yield from share_rows(each, shares, of_few=each is few)
    for each in measured[-1:]:  # of the most samples, as a class has few
        yield from weakest_rows(each)
    for each in measured:
        label = f"FID on own features, of {each['samples']:,} samples"
        yield label, f"{each['fid']:.2f}", beside(each, "fid", ".2f"), "", evaluation_of(each)
    if report:
        command, seams, psnr = evaluation_of(report), report["seams"], report["tokenizer_psnr"]
        name = "seams across token borders (1 = none)"
        yield name, f"{seams:.3f}", beside(report, "seams", ".3f"), goal("seams", seams), command
        reach = goal("tokenizer_psnr", psnr, unit=" dB")
        yield "tokenizer PSNR, held out", f"{psnr:.1f} dB", "", reach, command
    for k in (4, 2):
        yield from preview_rows(k)


def share_rows(report: dict[str, Any], names: Sequence[str], *, of_few: bool = False) -> Iterator[Row]:
    """Figures that are shares, and their aims where there are any."""
    for name in names:
        is_accuracy = name == "class_accuracy"
        key, form = (name, ".1%") if is_accuracy else (f"{name}_of_reference", ".3f")
        aim = f"{key}_of_few" if of_few else key
        stated = {"form": ".0%"} if is_accuracy else {"unit": " of the references'"}
        label = "asked class recognised" if is_accuracy else name
        yield (
            f"{label}, of {report['samples']:,} samples",
            f"{report[name]:{form}}",
            beside(report, name, form),
            goal(aim, report[key], **stated) if aim in TARGETS else "",
            evaluation_of(report),
        )


def weakest_rows(report: dict[str, Any], count: int = 4) -> Iterator[Row]:
    """The classes whose real pictures lie least within the samples' manifold."""
    by_class = report.get("recall_by_class")
    if by_class:
        least = sorted(by_class, key=by_class.__getitem__)[:count]
        ceilings = [
            ", ".join(f"{report[part]['recall_by_class'][name]:.2f}" for name in least)
            for part in ("reference", "reconstruction")
        ]
        yield (
            f"least recall of a class, of {report['samples']:,} samples",
            ", ".join(f"{name} {by_class[name]:.2f}" for name in least),
            " / ".join(ceilings),
            "",
            evaluation_of(report),
        )


def beside(report: dict[str, Any], key: str, form: str) -> str:
    """What the two sets of references reach in a figure."""
    return f"{report['reference'][key]:{form}} / {report['reconstruction'][key]:{form}}"


def evaluation_of(report: dict[str, Any]) -> str:
    """The command that wrote a report of k = 4."""
    settings = report["settings"].items()
    given = "".join(
        f" --{name} {value}" for name, value in settings if value != getattr(SampleSettings, name)
    )
    seed = f" --seed {report['seed']}" if report["seed"] else ""
    return f"`python -m nestar evaluate --k 4 --samples {report['samples']}{given}{seed}`"


def fid_rows() -> Iterator[Row]:
    """Whether nesting costs FID: k = 4 beside both baselines, all at equal images."""
    others = ("one-shot", "ar-raster")
    reports = {name: read(RESULTS / f"evaluate_{name}.json") for name in (FAIR_K4, *others)}
    if not all(reports.values()):
        return
    fid = {name: report["fid"] for name, report in reports.items()}
    images = {summed_over_runs(training_of(f"{name}/config.json"), "images_seen") for name in reports}
    if len(images) > 1:
        raise ValueError("The members whose FIDs stand beside each other did not see equal images.")
    reached = all(fid[FAIR_K4] <= fid[name] for name in others)
    yield (
        f"FID of `{FAIR_K4}`, {images.pop():,} images",
        f"{fid[FAIR_K4]:.2f}",
        ", ".join(f"`{name}` {fid[name]:.2f}" for name in others),
        f"≤ each of these: {'reached' if reached else '**not reached**'}",
        f"`python -m nestar evaluate --nesting NAME --samples {reports[FAIR_K4]['samples']}`",
    )


def preview_rows(k: int) -> Iterator[Row]:
    """Whether what stands after each module comes nearer to the picture."""
    report = read(RESULTS / f"evaluate_k{k}-lattice.json")
    growth = report.get("coarse_to_fine")
    if growth:
        values = ", ".join(f"{value:.1f}" for value in growth["psnr"])
        real = growth.get("of_real")
        yield (
            f"k = {k}: previews nearer the picture with every module",
            f"{growth['rising']:.1%} of {growth['samples']}",
            f"mean PSNR after each module but the last: {values} dB"
            + (f"; of as many real pictures' own tokens {real['rising']:.1%}" if real else ""),
            goal("rising", growth["rising"], ".0%"),
            f"`python -m nestar evaluate --k {k} --samples {report['samples']}`",
        )


def factor_rows() -> Iterator[Row]:
    """Whether a class of Tiny Worlds is given away by colour, and every factor is seen in the picture."""
    thumbnails = read(RESULTS / "thumbnails.json")
    if thumbnails:
        share, side = thumbnails["accuracy"], thumbnails["side"]
        yield (
            f"class told from {side} × {side} pixels by a linear classifier",
            f"{share:.1%}",
            f"{thumbnails['pictures']} pictures of {thumbnails['classes']} classes",
            goal("told_by_colour", share, ".0%"),
            "`python -m benchmarks.thumbnails`",
        )
    record = training_of("features/config.json")
    if not record:
        return
    command = f"`python -m nestar train features --minutes {record['train_seconds'] / 60:.2g}`"
    scores = [
        (f"{name} of {owner}", score)
        for owner, own in record["held_out"].items()
        for name, score in own.items()
    ]
    worst = ", ".join(f"{name} {score:.2f}" for name, score in sorted(scores, key=lambda pair: pair[1])[:3])
    r2, accuracy = record["worst_r2"], record["worst_accuracy"]
    yield (
        "worst continuous factor, R²",
        f"{r2:.2f}",
        f"mean {record['mean_r2']:.2f}; lowest: {worst}",
        goal("worst_r2", r2),
        command,
    )
    yield (
        "worst discrete factor, accuracy",
        f"{accuracy:.0%}",
        f"mean {record['mean_accuracy']:.0%}",
        goal("worst_accuracy", accuracy, ".0%"),
        command,
    )


def first_picture_rows(report: dict[str, Any]) -> Iterator[Row]:
    """Seconds to the first frames and to the whole picture on one machine."""
    command = f"`{report['command']}`"
    machine = f"{report['cores']} cores"
    if "dtypes" in report:
        rate = report["matrix_gigaoperations_per_second"]
        machine += f" ({spoken(report['dtypes'])}, {rate:,.0f} billion operations a second)"
    now = Outline.read(ROOT / "assets" / f"k{report['k']}-lattice").config.parameters
    if report["parameters"] != now:
        machine += f", earlier weights, of {report['parameters'] / 1e6:.1f} million parameters"
    for row in report["rows"]:
        note = f"{machine}, {row['steps']} steps of {row['solver'].capitalize()}, CFG {report['cfg']:g}"
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
    for file in sorted(RESULTS.glob("first_picture*.json")):
        yield from first_picture_rows(read(file))
    page = read(RESULTS / "click_to_paint.json")
    if page:
        command, live, memory = (
            "`python -m benchmarks.click_to_paint`",
            page["as_it_comes"],
            page["memory_mib"],
        )
        steps = f"{page['steps']} steps of {page['solver'].capitalize()}"
        note = f"Chromium beside the sampler, {steps}, as the page begins"
        yield "click to first paint", f"{live['first_s']:.2f} s", note, "", command
        yield "click to finished picture", f"{live['finished_s']:.2f} s", f"{note}, as it comes", "", command
        yield "memory of the page", f"{memory} MiB", "", goal("memory_mib", memory, unit=" MiB"), command


def crowd_rows() -> Iterator[Row]:
    """What a crowd does to the page."""
    load, cancel, soak = (read(RESULTS / f"crowd_{what}.json") for what in ("load", "cancel", "soak"))
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
    is_todays = report.get("fingerprint") == embedded_fingerprint(f"k{SampleSettings.k}-lattice")
    return steps if is_todays else f"{steps}, earlier weights"


def same_picture_rows() -> Iterator[Row]:
    """Whether a seed's picture depends on where it is made."""
    report = read(RESULTS / "same_picture.json")
    command = "`python -m benchmarks.same_picture`"
    names = {
        "after_others": "same seed after other pictures",
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
            yield label, f"{found['at_least_35_db']:.1%} at 35 dB or more", equal, goal_, command


def embedded_nestings() -> list[str]:
    """Names of the nestings with embedded weights."""
    return read(ROOT / "assets" / "config.json").get("nestings", [])


def training_rows() -> Iterator[tuple[str, str, str, str]]:
    """How long each embedded part was trained."""
    parts = {
        "tokenizer": "tokenizer/tokenizer.json",
        **{f"nesting {name}": f"{name}/config.json" for name in embedded_nestings()},
        "feature network": "features/config.json",
    }
    for part, file in parts.items():
        record = training_of(file)
        if record:
            total = {key: summed_over_runs(record, key) for key in ("train_seconds", "steps", "images_seen")}
            minutes = f"{total['train_seconds'] / 60:.0f} min, {record.get('device', 'cpu')}"
            seen = f", {total['images_seen']:,} images seen" if total["images_seen"] else ""
            more = summed_over_runs(record, "images_seen_by_modules")
            seen += f", {more:,} more by some of its modules" if more else ""
            before = record.get("pictures_before")
            seen += f" (pictures numbered below {before:,})" if before else ""
            for moved in record.get("extrapolated", []):
                modules = " and ".join(map(str, moved["modules"]))
                seen += f"; module {modules} moved on by {moved['by']:g}"
            yield part, minutes, f"{total['steps']:,} steps{seen}", f"`assets/{file}`"


def training_of(file: str) -> dict[str, Any]:
    """How an embedded part was trained, by its file in assets/."""
    return read(ROOT / "assets" / file).get("training", {})


def family_parts() -> Iterator[str]:
    """A table of all embedded nestings on the same settings, seeds and samples, once there are several."""
    reports = {}
    for name in embedded_nestings():
        report = read(RESULTS / f"evaluate_{name}.json")
        if report:
            reports[name] = report
    if len(reports) < 2:
        return
    heads = ("nesting", "images seen", "turns", *(words for words, _ in FAMILY_COLUMNS.values()))
    yield from table(heads, [*family_rows(reports), *ceiling_rows(next(iter(reports.values())))])
    measured = [(report["samples"], report["seed"], report.get("settings")) for report in reports.values()]
    if any(each != measured[0] for each in measured):
        raise ValueError(
            "The family's reports are not of equal samples, seeds and settings: measure them alike."
        )
    samples, seed, _ = measured[0]
    yield ""
    yield (
        "*Precision*: the share of samples that look like real pictures; *recall*: the share of real "
        "pictures that look like samples, hence variety; *FID*: distance from real pictures, less is better; "
        "*seams*: how much sharper edges are between tokens than inside them, 1 = no more. "
        f"FIDs of so many samples that are less than {fid_noise(samples):.0%} apart may differ by chance. "
        f"Each by `python -m nestar evaluate --nesting NAME --samples {samples}` (seed {seed}, the "
        "default settings, chosen for k = 4). *Images seen* counts repeats. Weights that have seen fewer "
        "images draw worse for that alone."
    )
    yield from other_seeds()


def other_seeds() -> Iterator[str]:
    """How the figures of the page's nesting come out with other seeds than the table's."""
    reports = sorted((read(file) for file in RESULTS.glob("seed*_k4-lattice.json")), key=itemgetter("seed"))
    if reports:
        seeds = " and ".join(str(report["seed"]) for report in reports)
        figures = (
            f"{words} {' and '.join(f'{report[key]:{form}}' for report in reports)}"
            for key, (words, form) in FAMILY_COLUMNS.items()
            if key in ("precision", "recall", "fid")
        )
        samples = " or ".join(f"{count:,}" for count in sorted({report["samples"] for report in reports}))
        yield ""
        yield f"`k4-lattice` with seeds {seeds}, {samples} samples each: {', '.join(figures)}."


def family_rows(reports: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    for name, report in reports.items():
        config = read(ROOT / "assets" / name / "config.json")
        turns = Nesting.from_dict(config["nesting"]).evaluations
        yield [f"`{name}`", trained_on(config.get("training")), str(turns), *family_figures(report)]


def ceiling_rows(report: dict[str, Any]) -> Iterator[list[str]]:
    """What real pictures reach themselves; the same in every report of equal samples."""
    for key, words in CEILINGS.items():
        if key in report:
            yield [words, "", "", *family_figures(report[key])]


def family_figures(report: dict[str, Any]) -> list[str]:
    return [f"{report[key]:{form}}" for key, (_, form) in FAMILY_COLUMNS.items()]


def speed_parts() -> Iterator[str]:
    """What `benchmarks.speed` and `benchmarks.peers` measured."""
    report, peers = read(RESULTS / "speed.json"), read(RESULTS / "peers.json")
    if report:
        yield from (*side_by_side(report), "", *streamed(report["streaming"]), "", *grown(report))
        yield ""
        yield from table(("aims for speed", "measured", "target"), speed_aims(report))
    inside = read(RESULTS / "profiled.json")
    if inside:
        yield from ("", *profiled_lines(inside))
    if peers:
        yield from ("", *peer_lines(peers))
    steps = read(RESULTS / "imagenet_step.json")
    yield from ("", *(training_lines(steps) if steps else [NO_STEPS]))


def side_by_side(report: dict[str, Any]) -> Iterator[str]:
    """The family's members in turns, one picture at a time and many."""
    engine = report["engine"]
    members = engine["members"]
    batches = list(next(iter(members.values()))["batches"])
    rate = engine["matrix_gigaoperations_per_second"]["median"]
    solver = report["solver"].capitalize()
    yield (
        f"`python -m benchmarks.speed`: the same sampler and cache, {report['runs']} runs in turns, "
        f"{report['steps']} steps of {solver}, CFG, {report['cores']} cores, device "
        f"{report['device']}, without decoding; the modules of *k* = 4 compute in "
        f"{spoken(engine['dtypes'])}. *Share of peak*: of the rate of {engine['rate_dtype']} matrix products "
        f"of {engine['matrix_side']}², {rate:,.0f} billion "
        f"operations a second. ° marks a ratio to a baseline that reaches less than {engine['fair_from']:g} "
        "of the nesting's own share of peak: its passes are too small for this machine, and the ratio says "
        "as much of the machine as of the method."
        + (" † random weights." if "random" in {member["weights"] for member in members.values()} else "")
        + "".join(f" {sentence}" for sentence in outgrown(members))
    )
    for batch in (batches[0], batches[-1]):
        yield ""
        heads = (f"{batch} at a time", "turns", "operations, 10⁹", "s per picture", "share of peak")
        yield from table(
            (*heads, "plain autoregression takes", "one-shot takes"), side_by_side_rows(engine, batch)
        )


def outgrown(members: dict[str, Any]) -> Iterator[str]:
    """Which members were measured with weights of another size than those that are embedded now."""
    for name, member in members.items():
        folder = ROOT / "assets" / name
        if member["weights"] != "embedded" or not folder.exists():
            continue
        label, now = member["label"], Outline.read(folder).config.parameters
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
            *(ratio(engine, name, other, batch) for other in ("ar-raster", "one-shot")),
        ]


def ratio(engine: dict[str, Any], name: str, other: str, batch: str) -> str:
    """How many times a nesting's seconds a baseline takes, marked where this is not fair."""
    found = engine["speed_up"][batch].get(name, {}).get(other)
    if found is None:
        return ""
    own, others = (
        engine["members"][each]["batches"][batch]["share_of_matrix_rate"] for each in (name, other)
    )
    return between(found, " x") + ("" if others >= engine["fair_from"] * own else " °")


def spoken(dtypes: Sequence[str]) -> str:
    """float32, float32 and bf16."""
    words = [name.replace("bfloat16", "bf16") for name in dtypes]
    return words[0] if len(set(words)) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
    yield ""
    yield "![Turns, time and work over the number of tokens](benchmarks/results/speed.png)"


def speed_aims(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the project set out to reach side by side, and what it did."""
    engine, growth = report["engine"], report["growth"]
    for n, times in growth["speed_up_of_k4_over_autoregression"].items():
        key = f"autoregression_over_k4_at_{n}"
        if key in TARGETS:
            what = f"plain autoregression over *k* = 4, n = {n}, {growth['steps']} steps, 1 at a time"
            yield what, between(times, " x") + growth_mark(report, n), goal(key, times["median"], unit=" x")
    for k in (4, 2):
        found = engine["speed_up"].get("64", {}).get(f"k{k}-lattice", {}).get("one-shot")
        if found:
            what = f"one-shot flow over *k* = {k}, 64 at a time"
            yield what, between(found, " x"), goal(f"one_shot_over_k{k}", found["median"], unit=" x")
    batch = engine["members"].get("k4-lattice", {}).get("batches", {}).get("64")
    if batch:
        share = batch["share_of_matrix_rate"]
        reach = goal("share_of_matrix_rate", share, ".0%")
        yield "share of peak of *k* = 4, 64 at a time", f"{share:.0%}", reach
    found = report["streaming"].get("k4-lattice")
    if found:
        times = found["streamed_over_not"]
        what = "streaming over not streaming, *k* = 4"
        yield what, between(times, " x"), goal("streamed_over_not", times["median"], unit=" x")


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


def between(found: dict[str, float], unit: str) -> str:
    """A median and its spread, where there were several runs."""
    spread = (
        f" ({found['lowest']:.3g} to {found['highest']:.3g})" if found["lowest"] < found["highest"] else ""
    )
    return f"{found['median']:.3g}{unit}{spread}"


def peer_lines(report: dict[str, Any]) -> Iterator[str]:
    """NestAR beside its peers at ImageNet's shape."""
    timed = "" if report["device"] else " Nothing was timed: there was no GPU."
    yield (
        "`python -m benchmarks.peers`: arithmetic at ImageNet's shape (256 x 256, guided, decoder left out); "
        f"peers as timing models written from their papers.{timed} Nobody has trained NestAR-B or -L, so "
        "nothing here says which quality they reach, and 50 steps of Euler a patch are our choice. The last "
        f"columns divide a peer's operations by those of {OURS['B']} (for B) or of {OURS['L']} (for L and "
        f"DiT-XL/2), which is no larger than the MAR of its letter; in brackets by those of {WHOLE_L}, where "
        "it is nearer in size to the peer:"
    )
    yield ""
    heads = ("", "shape", "parameters, 10⁶", "operations, 10¹²", "times NestAR, k = 4", "times NestAR, k = 2")
    yield from table(heads, peer_rows(report))
    for batch in report["rows"][0].get("batches", ()):
        yield ""
        heads = (f"{batch} at a time", "s per picture", "share of peak", "times k = 4", "times k = 2")
        yield from table(heads, timed_peer_rows(report, batch))


OURS = {"B": "NestAR-B", "L": f"NestAR-L of {FEWER_BLOCKS} blocks"}
WHOLE_L = "NestAR-L"


def peer_rows(report: dict[str, Any]) -> Iterator[list[str]]:
    for row in report["rows"]:
        yield [
            row["name"],
            row["shape"],
            f"{row['parameters'] / 1e6:.0f}",
            f"{row['operations'] / 1e12:.3g}",
            *operations_ratios(report, row),
        ]


def operations_ratios(report: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    """A peer's operations over NestAR's, at k = 4 and 2."""
    whole = {other["name"]: other["parameters"] for other in report["rows"]}
    for k, found in zip((4, 2), peer_ratios(report, row), strict=True):
        if found is None:
            yield ""
            continue
        ours, larger = (f"{name}, k = {k}" for name in (OURS["L"], WHOLE_L))
        nearer = abs(whole[larger] - row["parameters"]) < abs(whole[ours] - row["parameters"])
        more = report["ratios"][larger].get(row["name"]) if nearer and "-B" not in row["name"] else None
        yield f"{found['operations']:.3g}" + (f" ({more['operations']:.3g})" if more else "")


def timed_peer_rows(report: dict[str, Any], batch: str) -> Iterator[list[str]]:
    """Seconds beside those that the arithmetic allows; marked as in `ratio`."""
    for row in report["rows"]:
        own = row["batches"][batch]
        yield [
            row["name"],
            between({name: seconds / int(batch) for name, seconds in own["seconds"].items()}, ""),
            f"{own['share_of_matrix_rate']:.0%}",
            *("" if each is None else timed_ratio(each, batch) for each in peer_ratios(report, row)),
        ]


def timed_ratio(found: dict[str, Any], batch: str) -> str:
    mark = "" if found[f"fair_at_batch_{batch}"] else " °"
    return f"{found[f'seconds_at_batch_{batch}']:.3g} x{mark}"


def peer_ratios(report: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any] | None]:
    """A peer over NestAR of its letter, at k = 4 and 2; None for NestAR itself."""
    ours = OURS["B" if "-B" in row["name"] else "L"]
    return [report["ratios"][f"{ours}, k = {k}"].get(row["name"]) for k in (4, 2)]


def training_lines(report: dict[str, Any]) -> Iterator[str]:
    """What an optimiser step takes at ImageNet's scale, and what a whole run would."""
    yield (
        f"`python -m benchmarks.imagenet_step`: optimiser steps on one {report['device']}, in "
        f"{report['precision']}, blocks run twice for less memory; the hours are projected:"
    )
    yield ""
    heads = ("", "parameters, 10⁶", "batch", "images a second", "memory, GiB", "steps of the recipe", "hours")
    yield from table(heads, (training_row(row) for row in report["rows"]))


def training_row(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['parameters'] / 1e6:.0f}",
        f"{row['batch']:,}",
        f"{row['images_per_second']:.3g}",
        f"{row['memory_gib']:.3g}",
        f"{row['recipe_steps']:,}",
        f"{row['projected_hours']:,.0f}",
    ]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def result_parts() -> Iterator[str]:
    """All that was measured of pictures, of the page and of training, a table each."""
    yield (
        "Of the embedded *k* = 4; targets are our own. FID is on our own features and falls with the number "
        "of samples, so only figures of these tables with as many samples compare."
    )
    yield ""
    heads = ("pictures", "measured", "real pictures / through the tokenizer, or other", "target", "from")
    yield from table(heads, [*quality_rows(), *fid_rows(), *factor_rows()])
    yield ""
    heads = ("the page", "measured", "how", "target", "from")
    yield from table(heads, [*speed_rows(), *crowd_rows(), *same_picture_rows()])
    yield ""
    yield from table(("training of", "took", "saw", "stands in"), training_rows())


def size_parts() -> Iterator[str]:
    """The ImageNet sizes beside xAR's."""
    heads = ("", "width", "heads", "blocks", *(f"k = {k}" for k in FACTORS), "xAR")
    rows = [
        (
            f"NestAR-{name.upper()}",
            str(size.dim),
            str(size.heads),
            str(size.blocks),
            *(f"{imagenet_config(name, k).parameters / 1e6:,.0f}" for k in FACTORS),
            f"{XAR_MILLIONS[name]:,}" if name in XAR_MILLIONS else "",
        )
        for name, size in SIZES.items()
    ]
    yield from table(heads, rows)
    yield ""
    yield "Parameters in millions, of all modules together; *xAR*: those of the xAR of the same letter."


HEADLINES: dict[str, tuple[str, ...]] = {
    "coordination": ("difference_falls_with_lambda", "coordination_lowers_fid"),
    "scaling": (
        "fid",
        "best_fid",
        "most_precision",
        "most_recall",
        "best_nested_no_worse_than_baselines",
        "seconds_rise_with_k",
    ),
    "independence": ("together_better_than_alone", "alone_then_together_better_than_alone"),
    "order": (
        "lattice_has_less_fid",
        "lattice_has_more_precision",
        "lattice_has_more_recall",
        "lattice_minus_raster",
    ),
    "sampler": ("least_fid_at", "defaults_clearly_bettered", "cheapest_that_is_not_clearly_worse"),
    "precision": ("precision_moved_most_by", "gap_in_precision_at_defaults", "gap_in_recall_at_defaults"),
    "baseline": ("knows_more_than_means_and_covariance", "frechet_distance_of_tokens"),
    "modules": tuple(f"k{k}-lattice_recall_lost_by" for k in (4, 2, 8)),
}
"""Of each experiment's findings those that the README tells; the others stand in FINDINGS."""
SHOWN = "scaling"
"""The experiment whose figure the README shows."""


def headline_parts() -> Iterator[str]:
    """A row an experiment that has been run: what it asks and what it found."""
    reports = {name: read(EXPERIMENTS / f"{name}.json") for name in NAMES}
    rows = [
        (
            f"`{name}`",
            report["question"],
            "; ".join([*headlines(name, report), *stand_ins_said(report), *weights_said(report)]),
        )
        for name, report in reports.items()
        if report
    ]
    yield from table(("experiment", "asks", "found"), rows)
    yield ""
    if reports[SHOWN]:
        yield f"![{reports[SHOWN]['question']}]({(EXPERIMENTS / f'{SHOWN}.png').relative_to(ROOT)})"
        yield ""
    page = FINDINGS.relative_to(ROOT)
    yield f"All findings, their figures and the commands that measured them: [`{page}`]({page})."
    missing = [f"`{name}`" for name, report in reports.items() if not report]
    if missing:
        yield f"Not run yet: {', '.join(missing)}."


def refreshed(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """A report with what its rows say in the statements of today: those that it was written with may have
    been found wanting since."""
    return report | {"finding": rounded(load(name).find(report["rows"], report["arms"]))}


def headlines(name: str, report: dict[str, Any]) -> Iterator[str]:
    finding = report["finding"]
    for statement in HEADLINES[name]:
        if statement in finding:
            yield f"{statement.replace('_', ' ')}: {said(finding[statement])}"


def findings_page() -> str:
    """All that the experiments found, one after another, for the folder of their results."""
    reports = {name: read(EXPERIMENTS / f"{name}.json") for name in NAMES}
    parts = ["# What the experiments found\n", "Written by `python -m benchmarks.readme`.\n"]
    parts += ["\n".join(finding_lines(name, report)) + "\n" for name, report in reports.items() if report]
    return "\n".join(parts)


def finding_lines(name: str, report: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield report["question"]
    yield ""
    for statement, value in report["finding"].items():
        yield f"- {statement.replace('_', ' ')}: {said(value)}"
    finals = [row for row in report["rows"] if row["part"] == "final"]
    if finals:
        yield from ("", *final_table(finals))
    yield ""
    yield f"`{command_of(name, report)}`. {' '.join(conditions(report))}"
    if (EXPERIMENTS / f"{name}.png").exists():
        yield ""
        yield f"![{report['question']}]({name}.png)"


def command_of(name: str, report: dict[str, Any]) -> str:
    """What measured it; from its numbers, where an older report does not say."""
    if report.get("command"):
        return report["command"]
    parts = ["python -m nestar experiment", name]
    parts += ["--samples", f"{report['samples']}", "--final-samples", f"{report['final_samples']}"]
    parts += ["--seed", f"{report['seed']}"] if report["seed"] else []
    for arm in report.get("arms", [])[:1]:
        parts += ["--images", f"{report['images_per_arm']}"]
        parts += [f"--preset {preset}" for preset in NESTINGS if parameters_of(preset) == arm["parameters"]][
            :1
        ]
    return " ".join(parts)


@cache
def parameters_of(preset: str) -> int:
    """Of the nesting that a recipe trains behind the embedded tokenizer."""
    channels = read(ROOT / "assets" / FAIR_K4 / "config.json")["channels"]
    return NESTINGS[preset].model_config(channels).parameters


def final_table(finals: list[dict[str, Any]]) -> Iterator[str]:
    """Finalists as a table, with the figures that all of them have."""
    figures = [name for name in FINAL_FIGURES if all(name in row for row in finals)]
    settings = [", ".join(f"{key} {said(value)}" for key, value in row["settings"].items()) for row in finals]
    differ = len(set(settings)) > 1
    if not differ:
        yield from (f"Settings: {settings[0]}.", "")
    heads = ["finalist", *(["settings"] if differ else []), *(name.replace("_", " ") for name in figures)]
    rows = (
        [
            " ".join(str(row[label]) for label in ("member", "which") if label in row),
            *([own] if differ else []),
            *(said(row[name]) for name in figures),
        ]
        for row, own in zip(finals, settings, strict=True)
    )
    yield from table(heads, rows)


def conditions(report: dict[str, Any]) -> Iterator[str]:
    """On what the findings rest."""
    counts = {row["samples"] for row in report["rows"] if "samples" in row}
    if counts:
        yield f"Samples per row: {', '.join(map(str, sorted(counts)))}; device {report['device']}."
    timed = {(row["threads"], row["bf16"]) for row in report["rows"] if "threads" in row}
    for threads, bf16 in sorted(timed):
        yield f"Times on {threads} threads, {'with' if bf16 else 'without'} products in bf16."
    if report.get("arms"):
        yield arms_said(report)
    yield from (f"{words[0].upper()}{words[1:]}." for words in weights_said(report))
    yield from (f"Where nestings are compared, {words}." for words in stand_ins_said(report))
    yield from images_said(report)
    if report["missing"]:
        yield f"Without weights, left out: {', '.join(report['missing'])}."
    if not report["finished"]:
        yield "Not finished."


def stand_ins_said(report: dict[str, Any]) -> Iterator[str]:
    """Which weights are compared under a nesting's name."""
    for name, weights in report.get("settings", {}).get("weights_that_stand_for", {}).items():
        yield f"for {name} the weights of {weights}"


def images_said(report: dict[str, Any]) -> Iterator[str]:
    """How much its weights were trained."""
    seen = report.get("settings", {}).get("images_seen", {})
    if len(set(seen.values())) > 1:
        each = ", ".join(f"{name} {count:,}" for name, count in seen.items())
        yield f"Images seen: {each}; weights that have seen fewer draw worse for that alone."
    elif len(seen) > 1:
        yield f"Each of the weights saw {next(iter(seen.values())):,} images."


def weights_said(report: dict[str, Any]) -> Iterator[str]:
    """Which of its weights are not those that are embedded now."""
    settings = report.get("settings", {})
    prints = settings.get("fingerprints", {})
    others = [name for name, fingerprint in prints.items() if fingerprint != embedded_fingerprint(name)]
    if "images_seen" in settings and not prints:
        yield "measured on weights that the report does not name"
    if others:
        yield f"measured on other weights than the embedded: {', '.join(others)}"
    if report.get("instruments") not in (None, embedded_instruments()):
        yield "with another tokenizer or feature network than the embedded"


@cache
def embedded_instruments() -> dict[str, str]:
    """Fingerprints of the embedded tokenizer and feature network."""
    return instruments(load_tokenizer(EMBEDDED / "tokenizer"), features_named(None, torch.device("cpu")))


@cache
def embedded_fingerprint(name: str) -> str | None:
    """Of the embedded weights of this name; None without."""
    folder = ROOT / "assets" / name
    return fingerprint_of(NestAR.from_pretrained(folder)) if folder.exists() else None


def said(value: Any) -> str:
    """A finding's value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        said_each = {key.replace("_", " "): said(each) for key, each in value.items()}
        if len(said_each) > 1 and len(set(said_each.values())) == 1:
            return f"{next(iter(said_each.values()))} (all)"
        return ", ".join(
            f"{key} ({words})" if isinstance(each, dict) else f"{key} {words}"
            for (key, words), each in zip(said_each.items(), value.values(), strict=True)
        )
    if isinstance(value, list):
        return ", ".join(said(each) for each in value)
    return str(value)


def rewritten(text: str, section: str, content: str) -> str:
    """`text` with what stands between the section's two marks replaced."""
    begin, end = SECTIONS[section], f"<!-- end of {section} -->"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end)[1]


def written(text: str) -> str:
    """The README's text with its written parts as the results stand."""
    text = rewritten(text, "results", "".join(f"{line}\n" for line in result_parts()))
    text = rewritten(text, "family", "".join(f"{line}\n" for line in family_parts()) or NO_FAMILY)
    text = rewritten(text, "sizes", "".join(f"{line}\n" for line in size_parts()))
    text = rewritten(text, "speed", "".join(f"{line}\n" for line in speed_parts()) or NO_SPEED)
    return rewritten(text, "findings", "".join(f"{line}\n" for line in headline_parts()))


def redraw() -> None:
    """Draw the experiments' figures and that of `speed` from their reports, as their commands would today."""
    draws = {EXPERIMENTS / f"{name}.json": load(name).draw for name in NAMES}
    for file, draw in {**draws, RESULTS / "speed.json": speed.draw}.items():
        report = read(file)
        figure = draw(report) if report else None
        if figure is not None:
            plots.save(figure, file.with_suffix(".png"))


def main() -> None:
    for name in NAMES:
        file = EXPERIMENTS / f"{name}.json"
        report = read(file)
        if report and refreshed(name, report) != report:
            write_json(file, refreshed(name, report), allow_nan=False)
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text()))
    FINDINGS.write_text(findings_page())
    redraw()


if __name__ == "__main__":
    main()
