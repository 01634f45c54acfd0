"""The README's written parts."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import aims, embedded, experiments, family, places, quality, speed, writing
from nestar import cli
from nestar.checkpoints import EMBEDDED
from nestar.evaluation.experiments import NAMES, findings
from tests.small import K2, K4

PAGE = places.ROOT / "nestar/ui/README.md"

REPORT = {
    "question": "Which is best?",
    "finished": False,
    "missing": ["k8-lattice"],
    "finding": {"best_member": "what was said when it was measured"},
    "samples": 100,
    "final_samples": 500,
    "seed": 0,
    "images_per_arm": 25_600,
    "arms": [{"arm": "a", "parameters": 1_506_408}],
    "device": "cpu",
    "settings": {"weights_that_stand_for": {"k4-lattice": "k4-lattice.together"}},
    "rows": [
        {"part": "search", "member": "k4-lattice", "samples": 100, "fid": 14.0},
        {
            "part": "final",
            "member": "k4-lattice",
            "which": "best",
            "settings": {"steps": 25, "cfg": 1.5},
            "samples": 500,
            "fid": 12.3456,
            "recall": 0.5,
        },
        {
            "part": "final",
            "member": "one-shot",
            "settings": {"steps": 50},
            "samples": 500,
            "fid": 20.0,
            "recall": 0.25,
        },
    ],
}


def test_findings_are_what_the_rows_say_today():
    report = experiments.refreshed("scaling", REPORT)
    assert experiments.refreshed("scaling", report) == report
    text = "\n".join(experiments.finding_lines("scaling", report))
    assert "- fid: k4-lattice 12.3, one-shot 20" in text
    assert "- best fid: k4-lattice\n" in text and "- best nested no worse than baselines: yes" in text
    assert "what was said" not in text
    assert "| finalist | settings | fid | recall |" in text  # and no figure that is not there
    assert "| k4-lattice best | steps 25, cfg 1.5 | 12.3 | 0.5 |" in text
    for said in (
        "100, 500",
        "Arms of 1.5 million weights saw 25,600 images each",
        "left out: k8-lattice",
        "Not finished.",
        "for k4-lattice the weights of k4-lattice.together",
    ):
        assert said in text


def test_a_finding_names_the_command_that_measured_it():
    arm = {"arm": "a", "parameters": experiments.parameters_of("tiny-worlds-k4-small")}
    text = "\n".join(experiments.finding_lines("coordination", REPORT | {"arms": [arm]}))
    flags = "--samples 100 --final-samples 500 --images 25600 --preset tiny-worlds-k4-small"
    assert f"`python -m nestar experiment coordination {flags}`" in text
    text = "\n".join(experiments.finding_lines("scaling", REPORT | {"arms": [], "seed": 7}))
    assert "--final-samples 500 --seed 7`" in text
    text = "\n".join(experiments.finding_lines("scaling", REPORT | {"arms": []}))
    assert "`python -m nestar experiment scaling --samples 100 --final-samples 500`" in text


def test_findings_of_other_weights_say_so(two_nestings, monkeypatch):
    monkeypatch.setattr(embedded, "fingerprint", {"k4-lattice": "new", "one-shot": "same"}.get)
    for fingerprint, said in (("old", True), ("new", False)):
        settings = {"fingerprints": {"k4-lattice": fingerprint, "one-shot": "same"}}
        report = experiments.refreshed("scaling", REPORT | {"settings": settings, "arms": []})
        page = "\n".join(experiments.finding_lines("scaling", report))
        assert ("Measured on other weights than the embedded: k4-lattice." in page) is said
        write(places.EXPERIMENTS / "scaling.json", report)
        lines = list(experiments.headline_parts())
        assert ("`scaling` was measured on other weights than the embedded: k4-lattice." in lines) is said
        assert lines[0] == "![Which is best?](results/experiments/scaling.png)"
        assert lines[-1].startswith("Not run yet: `coordination`,")
    unnamed = REPORT | {"settings": {"images_seen": {"k4-lattice": 9}}, "arms": []}
    assert "Measured on weights that the report does not name." in "\n".join(
        experiments.finding_lines("scaling", unnamed)
    )


def test_a_part_is_replaced_between_its_marks_alone():
    text = f"above\n{writing.SECTIONS['findings']}old\n<!-- end of findings -->\nbelow"
    once = writing.rewritten(text, "findings", "new\n")
    assert once == f"above\n{writing.SECTIONS['findings']}new\n<!-- end of findings -->\nbelow"
    assert writing.rewritten(once, "findings", "new\n") == once


def write(file: Path, stored: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(stored))


@pytest.fixture
def two_nestings(tmp_path, monkeypatch) -> Path:
    """A repository with two nestings that have been measured alike."""
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(places, "EXPERIMENTS", tmp_path / "results/experiments")
    monkeypatch.setattr(places, "FINDINGS", tmp_path / "results/experiments/README.md")
    names = [nesting.name for nesting in (K4, K2)]
    write(tmp_path / "assets/config.json", {"nestings": [*names, "k9-not-measured"]})
    for nesting, images in ((K4, 700), (K2, 300)):
        training = {"images_seen": images, "init": {"images_seen": 50, "images_seen_by_modules": images // 7}}
        write(
            tmp_path / "assets" / nesting.name / "config.json",
            {"nesting": nesting.to_dict(), "training": training},
        )
        figures = {
            "class_accuracy": 0.9,
            "precision": 0.8,
            "recall": 0.7,
            "fid": 12.34,
            "redrawn": 21.0,
            "redrawn_error": 0.1,
            "seams": 1.1,
        }
        more = {"samples": 500, "seed": 0, "reference": figures | {"fid": 5.0}}
        write(tmp_path / f"results/evaluate_{nesting.name}.json", figures | more)
    return tmp_path


def test_the_family_stands_beside_each_other_with_what_it_saw(two_nestings):
    lines = list(family.family_parts())
    measured = "90.0% | 0.800 | 0.700 | 12.3 | 21.0 | 1.10 |"
    assert f"| `{K4.name}` | 750 (single modules 100 more) | {K4.evaluations} | {measured}" in lines
    assert f"| `{K2.name}` | 350 (single modules 42 more) | {K2.evaluations} | {measured}" in lines
    assert "| real pictures |  |  | 90.0% | 0.800 | 0.700 | 5.0 | 21.0 | 1.10 |" in lines
    assert not any("k9" in line for line in lines)
    assert any("by chance, and so may pictures drawn again within 0.3 dB." in line for line in lines)


def test_figures_are_drawn_anew_from_their_reports_alone(two_nestings):
    stored = json.loads((EMBEDDED.parent / "benchmarks/results/experiments/scaling.json").read_text())
    moved = [row | {"fid": row["fid"] + 1} if "fid" in row else row for row in stored["rows"]]
    drawn = []
    for report in (stored, stored | {"rows": moved}, stored):
        write(places.EXPERIMENTS / "scaling.json", report)
        writing.redraw()
        drawn.append((places.EXPERIMENTS / "scaling.png").read_bytes())
    assert drawn[0] == drawn[2] != drawn[1]
    assert [file.name for file in two_nestings.rglob("*.png")] == ["scaling.png"]  # others have no report


def test_a_ratio_to_a_baseline_that_is_badly_used_is_marked():
    shares = {"k4-lattice": 0.4, "k2-lattice": 0.2, "ar-raster": 0.2}
    members = {name: {"batches": {"1": {"share_of_matrix_rate": share}}} for name, share in shares.items()}
    speed_up = {
        name: {"ar-raster": {"median": 20.0, "lowest": 18.0, "highest": 21.5}}
        for name in ("k4-lattice", "k2-lattice")
    }
    engine = {"members": members, "speed_up": {"1": speed_up}, "fair_from": 0.7}
    assert speed.ratio(engine, "k4-lattice", "ar-raster", "1") == "20 x (18 to 21.5) °"
    assert speed.ratio(engine, "k2-lattice", "ar-raster", "1") == "20 x (18 to 21.5)"
    assert speed.ratio(engine, "ar-raster", "one-shot", "1") == ""
    members["ar-raster"]["label"] = "plain autoregression"
    assert list(speed.in_short(engine, ["1"])) == [
        "Beside *k* = 4, 1 at a time, plain autoregression takes 20 times as long °; "
        "1 at a time, plain autoregression takes 20 times as long °."
    ]


def test_members_measured_otherwise_are_not_put_beside_each_other(two_nestings):
    file = two_nestings / f"results/evaluate_{K2.name}.json"
    write(file, json.loads(file.read_text()) | {"samples": 100})
    with pytest.raises(ValueError, match="equal samples"):
        list(family.family_parts())


@pytest.mark.parametrize(("recall", "reached"), [(0.75, "not reached"), (0.8, "reached"), (0.95, "reached")])
def test_aims_of_few_samples_are_held_to_few(two_nestings, recall: float, reached: str):
    figures = {"class_accuracy": 0.95, "precision": 0.9, "recall": 0.7, "fid": 12.3}
    both = figures | {"settings": {}}
    few = both | {"samples": 500, "seed": 0, "recall_of_reference": recall, "precision_of_reference": 0.5}
    write(
        two_nestings / f"results/few_{K4.name}.json", few | {"reference": figures, "reconstruction": figures}
    )
    (two_nestings / f"results/evaluate_{K4.name}.json").unlink()
    named = {row[0]: row for row in quality.quality_rows()}
    assert f"≥ 0.8 of the references': {reached}" in named["recall, of 500 samples"][3].replace("*", "")
    assert "reached" not in named["precision, of 500 samples"][3]
    assert named["asked class recognised, of 500 samples"][3] == "≥ 90%: reached"
    assert all("--samples 500" in row[4] for row in named.values())


def test_the_factor_that_samples_miss_most_is_named():
    def told(mean: float, most: float) -> dict[str, Any]:
        return {"coverage": {"histogram_distance": mean, "farthest": most, "farthest_factor": "fish.fin_hue"}}

    report = {"samples": 5000, "seed": 0, "settings": {}, "reference": told(0.05, 0.1)}
    (row,) = quality.factor_distance_rows(report | told(0.152, 0.451) | {"reconstruction": told(0.06, 0.2)})
    assert row[1:3] == (
        "0.15, fish's fin hue 0.45",
        "0.05, fish's fin hue 0.10 / 0.06, fish's fin hue 0.20",
    )
    assert not list(quality.factor_distance_rows(report))


MEASURED = sorted(
    file for kind in ("evaluate", "few", "many", "seed*") for file in places.RESULTS.glob(f"{kind}_*.json")
)


@pytest.mark.parametrize("file", MEASURED, ids=[file.stem for file in MEASURED])
def test_the_figures_are_those_of_the_embedded_weights(file):
    report = json.loads(file.read_text())
    name = file.stem.split("_", 1)[1]
    assert report["weights"] == "embedded" and report["fingerprint"] == embedded.fingerprint(name)
    assert report["instruments"] == embedded.instruments()


def test_the_same_pictures_are_those_of_the_embedded_weights():
    report = json.loads((places.RESULTS / "same_picture.json").read_text())
    assert report["fingerprint"] == embedded.fingerprint(f"k{report['k']}-lattice")


@pytest.mark.parametrize("name", NAMES)
def test_stored_findings_are_those_of_todays_code(name):
    report = places.read(places.EXPERIMENTS / f"{name}.json")
    assert experiments.refreshed(name, report) == report


def test_weights_and_images_that_differ_are_said():
    seen = {"k4-lattice": 9_000, "one-shot": 10}
    (said,) = experiments.images_said({"settings": {"images_seen": seen}})
    assert "k4-lattice 9,000, one-shot 10" in said and "draw worse" in said
    (said,) = experiments.images_said({"settings": {"images_seen": dict.fromkeys(seen, 10)}})
    assert said == "Each of the weights saw 10 images."
    assert not list(experiments.images_said({"settings": {}}))
    own = embedded.instruments()
    assert not list(experiments.weights_said({"instruments": own}))
    assert list(experiments.weights_said({"instruments": own | {"tokenizer": "another"}}))


SHARES = ("precision", "recall")


def test_what_chance_makes_is_as_measured() -> None:
    report = json.loads((places.RESULTS / "noise.json").read_text())
    assert report["fingerprint"] == embedded.fingerprint(report["nesting"])
    fid = max(row["fid_error_times_fourth_root"] for row in report["rows"])
    assert 0.8 * findings.FID_ERROR < fid <= findings.FID_ERROR
    shares = max(row[f"{name}_error_over_independent"] for row in report["rows"] for name in SHARES)
    assert 0.8 * findings.SHARE_ERROR < shares <= findings.SHARE_ERROR


def test_the_readme_and_its_pages_stand_as_their_command_writes_them():
    for file, written in ((places.README, writing.written), (places.TRAINING, writing.written_training)):
        assert written(file.read_text()) == file.read_text()
    assert experiments.findings_page() == places.FINDINGS.read_text()
    assert writing.results_page() == places.MEASURED.read_text()


def test_the_readme_tells_of_every_aim_that_is_missed(monkeypatch: pytest.MonkeyPatch):
    reached, missed = (f"≤ 1 s: {word}" for word in ("reached", aims.MISSED))
    rows = [("soon", "0.5 s", "how", reached, "`a`"), ("late", "2 s", "how", missed, "`b`")]
    monkeypatch.setattr(writing, "picture_rows", lambda: iter(rows))
    monkeypatch.setattr(writing, "page_rows", lambda: iter([("no aim", "1", "", "", "`c`")]))
    monkeypatch.setattr(writing, "speed_aims", lambda: iter(rows[:1]))
    said, _, *lines = writing.result_parts()
    assert said.endswith("Of 3 figures that we set ourselves aims for 2 reach them. These do not:")
    assert [line for line in lines if "s |" in line] == [f"| late | 2 s | how | {missed} |"]


COMMANDS = [
    line.partition(" -m nestar ")[2].partition("#")[0]
    for file in (places.README, places.TRAINING)
    for line in file.read_text().splitlines()
    if " -m nestar " in line and line.startswith(".venv/bin/")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_are_ones_that_there_are(command: str):
    cli.command_parser().parse_args(shlex.split(command))
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("file", [places.README, places.TRAINING, places.MEASURED, places.FINDINGS, PAGE])
def test_links_and_pictures_of_the_readme_and_its_pages_lead_somewhere(file: Path):
    text = file.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            place, _, heading = target.partition("#")
            there = (file.parent / place).resolve() if place else file
            assert there.exists(), target
            headings = re.findall(r"(?m)^#+ (.*)$", there.read_text()) if heading else []
            anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
            assert not heading or heading in anchors, target


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_explained_in_the_readme(name):
    text = (places.ROOT / "README.md").read_text()
    assert f"`{name}`" in writing.rewritten(text, "findings", ""), "outside of the table, too"


def test_classes_whose_samples_fall_short_of_their_drawings_are_named():
    real = {"fish": 20.0, "city": 26.0, "cactus": 24.0}
    sampled = {"fish": 19.5, "city": 23.0, "cactus": 22.9}
    sets = [{"redrawn": sum(own.values()) / 3, "redrawn_by_class": own} for own in (sampled, real)]
    report = {"samples": 2000, "seed": 0, "settings": {}, **sets[0]}
    report |= {"reference": sets[1], "reconstruction": sets[1]}
    whole, short = quality.redrawn_rows(report, count=2)
    assert whole[1:3] == ("21.8 dB", "23.3 dB / 23.3 dB")
    assert short[1:3] == ("city 23.0, cactus 22.9", "26.0, 24.0 / 26.0, 24.0")
    assert list(quality.redrawn_rows({"samples": 2000})) == [], "reports of before it was measured"
