"""The README's written parts."""

import pytest

from benchmarks import readme
from nestar.evaluation.experiments import NAMES

REPORT = {
    "question": "Which is best?",
    "finished": False,
    "missing": ["k8-lattice"],
    "finding": {"best_member": "k4-lattice", "fid": {"k4-lattice": 12.3456, "one-shot": 20.0}, "rises": True},
    "images_per_arm": 25_600,
    "device": "cpu",
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
    ],
}


def test_findings_are_written_as_they_are():
    text = "\n".join(readme.finding_lines("scaling", REPORT))
    assert "- best member: k4-lattice" in text
    assert "- fid: k4-lattice 12.3, one-shot 20" in text
    assert "- rises: yes" in text
    assert "| finalist | settings | fid | recall |" in text  # and no figure that is not there
    assert "| k4-lattice best | steps 25, cfg 1.5 | 12.3 | 0.5 |" in text
    for said in ("100, 500", "25,600 images", "left out: k8-lattice", "Not finished."):
        assert said in text


def test_a_part_is_replaced_between_its_marks_alone():
    text = f"above\n{readme.SECTIONS['findings']}old\n<!-- end of findings -->\nbelow"
    once = readme.rewritten(text, "findings", "new\n")
    assert once == f"above\n{readme.SECTIONS['findings']}new\n<!-- end of findings -->\nbelow"
    assert readme.rewritten(once, "findings", "new\n") == once


def test_the_readme_stands_as_its_command_writes_it():
    text = (readme.ROOT / "README.md").read_text()
    assert readme.written(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_explained_in_the_readme(name):
    assert f"`{name}`" in (readme.ROOT / "README.md").read_text()
