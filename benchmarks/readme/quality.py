"""How good the pictures are, beside what real ones reach, and whether their factors can be seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.readme.aims import MISSED, TARGETS, goal
from benchmarks.readme.embedded import FAIR_K4, training_of
from benchmarks.readme.places import other_seeds, result
from benchmarks.readme.words import Row
from nestar.model import summed_over_runs
from nestar.settings import SampleSettings


def quality_rows() -> Iterator[Row]:
    """Quality of the embedded k = 4 nesting beside the references' own values, of several numbers of samples:
    each aim was set for one of them."""
    few, report, many = (result(f"{kind}_k4-lattice") for kind in ("few", "evaluate", "many"))
    shares = ("class_accuracy", "precision", "recall")
    measured = [each for each in (few, report, many) if each]
    for each in measured:
        yield from share_rows(each, shares, of_few=each is few)
    for each in measured[-1:]:  # of the most samples, as a class has few
        yield from weakest_rows(each)
        yield from factor_distance_rows(each)
    for each in measured:
        label = f"FID on own features, of {each['samples']:,} samples"
        yield label, f"{each['fid']:.2f}", beside(each, "fid", ".2f"), "", evaluation_of(each)
    if report:
        yield from redrawn_rows(report)
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
            goal(aim, report[key], **stated) + with_other_seeds(report, key) if aim in TARGETS else "",
            evaluation_of(report),
        )


def with_other_seeds(report: dict[str, Any], key: str) -> str:
    """A share of the references' with the other seeds that as many samples were made of, where some reach its
    aim and others do not."""
    alike = [each for each in other_seeds() if each["samples"] == report["samples"]]
    verdicts = {goal(key, each[key]) for each in (report, *alike)} if key in TARGETS else set()
    if len(verdicts) < 2:
        return ""
    said = (
        f"with seed {each['seed']} {each[key]:.3f}"
        + (f", {MISSED}" if MISSED in goal(key, each[key]) else "")
        for each in alike
    )
    return "; " + "; ".join(said)


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
            f"least recall of a class (near samples of any), of {report['samples']:,} samples",
            ", ".join(f"{name} {by_class[name]:.2f}" for name in least),
            " / ".join(ceilings),
            "",
            evaluation_of(report),
        )


def redrawn_rows(report: dict[str, Any], count: int = 4) -> Iterator[Row]:
    """Whether pictures are near what Tiny Worlds draws of the factors read from them, and the classes whose
    samples fall short of their real pictures by most."""
    if "redrawn" not in report:
        return
    sets = (report, report["reference"], report["reconstruction"])
    what = f"PSNR to the scene drawn again of the factors read in a picture, of {report['samples']:,} samples"
    sampled, *real = (f"{each['redrawn']:.1f} dB" for each in sets)
    yield what, sampled, " / ".join(real), "", evaluation_of(report)
    by_class = [each["redrawn_by_class"] for each in sets]
    short = sorted(by_class[0], key=lambda name: by_class[0][name] - by_class[1][name])[:count]
    real = [", ".join(f"{each[name]:.1f}" for name in short) for each in by_class[1:]]
    named = ", ".join(f"{name} {by_class[0][name]:.1f}" for name in short)
    yield (
        "the same of the classes that fall short by most, dB",
        named,
        " / ".join(real),
        "",
        evaluation_of(report),
    )


def factor_distance_rows(report: dict[str, Any]) -> Iterator[Row]:
    """Whether each factor of Tiny Worlds takes the samples' values as often as real pictures'."""
    if "coverage" not in report:
        return

    def told(coverage: dict[str, Any]) -> str:
        factor = coverage["farthest_factor"].replace(".", "'s ").replace("_", " ")
        return f"{coverage['histogram_distance']:.2f}, {factor} {coverage['farthest']:.2f}"

    what = "factors' histograms, from real ones' (0: alike, 1: apart), mean and each set's farthest"
    yield (
        f"{what}, of {report['samples']:,} samples",
        told(report["coverage"]),
        " / ".join(told(report[part]["coverage"]) for part in ("reference", "reconstruction")),
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


def deciding_rows() -> Iterator[Row]:
    """How much of a picture each module decides."""
    report = result("diversity_k4-lattice")
    if report:
        mean = report["mean"]
        shares = zip(mean["increments"], mean["increment_errors"], strict=True)
        yield (
            "share of variety that each module decides",
            ", ".join(f"{share:.2f} ± {error:.2f}" for share, error in shares),
            f"{report['siblings']} siblings of each of {report['parents']} samples a class",
            "",
            "`python -m benchmarks.diversity`",
        )


def fid_rows() -> Iterator[Row]:
    """Whether nesting costs FID: k = 4 beside both baselines, all at equal images."""
    others = ("one-shot", "ar-raster")
    reports = {name: result(f"evaluate_{name}") for name in (FAIR_K4, *others)}
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
        f"≤ each of these: {'reached' if reached else MISSED}",
        f"`python -m nestar evaluate --nesting NAME --samples {reports[FAIR_K4]['samples']}`",
    )


def preview_rows(k: int) -> Iterator[Row]:
    """Whether what stands after each module comes nearer to the picture."""
    report = result(f"evaluate_k{k}-lattice")
    growth = report.get("coarse_to_fine")
    if growth:
        values = ", ".join(f"{value:.1f}" for value in growth["psnr"])
        real = growth.get("of_real")
        yield (
            f"k = {k}: unfinished pictures nearer the finished one with every module",
            f"{growth['rising']:.1%} of {growth['samples']}",
            f"mean PSNR after each module but the last: {values} dB"
            + (f"; of as many real pictures' own tokens {real['rising']:.1%}" if real else ""),
            goal("rising", growth["rising"], ".0%"),
            f"`python -m nestar evaluate --k {k} --samples {report['samples']}`",
        )


def factor_rows() -> Iterator[Row]:
    """Whether a class of Tiny Worlds is given away by colour, and every factor is seen in the picture."""
    thumbnails = result("thumbnails")
    if thumbnails:
        share, side = thumbnails["accuracy"], thumbnails["side"]
        yield (
            f"Tiny Worlds: class told from {side} × {side} pixels by a linear classifier",
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
        "feature network: worst continuous factor, R²",
        f"{r2:.2f}",
        f"mean {record['mean_r2']:.2f}; lowest: {worst}",
        goal("worst_r2", r2),
        command,
    )
    yield (
        "feature network: worst discrete factor, accuracy",
        f"{accuracy:.0%}",
        f"mean {record['mean_accuracy']:.0%}",
        goal("worst_accuracy", accuracy, ".0%"),
        command,
    )
