"""Publishing on the Hub: what goes, the model card, and the upload, to a stand-in on 127.0.0.1."""

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nestar import cli
from nestar.checkpoints import EMBEDDED, load_tokenizer
from nestar.data import tiny_worlds
from nestar.evaluation.features import load_features
from nestar.evaluation.report import instruments
from nestar.model import NestAR, WeightsError, fingerprint_of
from nestar.nesting import Nesting
from nestar.publish import CARD, prepare
from tests.hub import WRITER, Loader, WritableHub
from tests.small import CLASSES, K2, K4, save_checkpoint, save_config, small_model

REPOSITORY = "user/new-weights"
RECORD = {"images_seen": 900, "config": {"coordination": 0.1}, "init": {"images_seen": 100}}
FIGURES = {"class_accuracy": 0.987, "precision": 0.8, "recall": 0.7, "fid": 12.34, "seams": 1.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A checkpoint with a record of its training, a report on it, and files that are no part of it."""
    place = save_checkpoint(tmp_path_factory.mktemp("publish") / "made")
    small_model(K4).save_pretrained(place / K4.name, record=RECORD)
    (place / "figures").mkdir()
    (place / "figures/private.png").write_bytes(b"mine")
    used = instruments(load_tokenizer(place / "tokenizer"), load_features(EMBEDDED / "features"))
    report = {"samples": 500, "settings": {"steps": 25}, "reference": {"recall": 0.94}, **FIGURES}
    report |= {"instruments": used}
    (place / "results").mkdir()
    for name in (K4.name, K2.name):
        own = fingerprint_of(NestAR.from_pretrained(place / name)) if name == K4.name else "of others"
        (place / f"results/evaluate_{name}.json").write_text(json.dumps(report | {"fingerprint": own}))
    return place


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of `made`, to be changed."""
    return shutil.copytree(made, tmp_path / "made")


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[WritableHub]:
    started = WritableHub(tmp_path_factory.mktemp("hub"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def loader(hub, tmp_path_factory) -> Iterator[Loader]:
    started = Loader(hub.url, tmp_path_factory.mktemp("hf"))
    yield started
    started.close()


def test_what_is_published_comes_back_bit_for_bit(hub, loader, folder):
    done = loader.push(folder, REPOSITORY, WRITER)
    assert done["status"] == 0, done["said"]
    assert done["out"].strip().startswith(f"{hub.url}/{REPOSITORY}/commit/")
    (paths,) = hub.commits
    assert CARD in paths and "config.json" in paths and f"{K4.name}/module_1.safetensors" in paths
    assert not [path for path in paths if path.startswith(("figures", "results"))]
    assert "error" not in loader.load(REPOSITORY)
    there = hub.repositories[REPOSITORY]
    for name in (K4.name, K2.name):
        mine, back = NestAR.from_pretrained(folder / name), NestAR.from_pretrained(there / name)
        assert mine.record == back.record and mine.config == back.config
        for key, value in mine.state_dict().items():
            assert torch.equal(value, back.state_dict()[key]), key


def test_a_dry_run_shows_what_would_go_and_sends_nothing(folder, capsys):
    assert cli.main(["push", str(folder), REPOSITORY, "--dry-run"]) == 0
    said = capsys.readouterr().out
    size = (folder / K4.name / "module_1.safetensors").stat().st_size
    assert f"{size:,}  {K4.name}/module_1.safetensors" in said
    assert f"bytes would go to {REPOSITORY}" in said and "# new-weights" in said
    assert "private.png" not in said


def test_the_card_says_how_to_load_what_is_here_and_what_was_measured(folder):
    card = prepare(folder, REPOSITORY, results=folder / "results").card
    assert card.startswith("---\nlicense: mit\nlibrary_name: nestar\n")
    assert f'NestARPipeline.from_pretrained("{REPOSITORY}")' in card
    row = next(line for line in card.splitlines() if line.startswith(f"| `{K4.name}` | 2 |"))
    assert "| 7 of 16 |" in row and "| 1,000 | 0.1 |" in row
    (measured,) = [line for line in card.splitlines() if line.endswith("| 0.987 | 0.8 | 0.7 | 12.3 | 1.1 |")]
    assert measured.startswith(f"| `{K4.name}` | 500 | steps 25 |"), "and none of other weights"
    assert "recall 0.94" in card and '"images_seen": 900' in card
    assert "do not say what" in card and "Classes: flower, fish, hot-air balloon." in card


def test_the_card_has_no_lambda_of_weights_whose_neighbours_were_not_compared(folder):
    record = RECORD | {"autoguided": [{"modules": [2], "by": 2.0}]}
    small_model(K4).save_pretrained(folder / K4.name, record=record)
    assert "| 1,000 | - |" in prepare(folder, REPOSITORY).card


@pytest.mark.parametrize("foreign", [(), ("tokenizer",), ("features",)])
def test_the_card_leaves_out_what_another_decoder_made_or_other_features_measured(folder, foreign):
    file = folder / f"results/evaluate_{K4.name}.json"
    used = instruments(load_tokenizer(folder / "tokenizer"), load_features(EMBEDDED / "features"))
    used |= dict.fromkeys(foreign, "of another")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"instruments": used}))
    card = prepare(folder, REPOSITORY, results=folder / "results").card
    assert ("500 pictures of the data itself: recall 0.94." in card) == (not foreign)


def test_the_card_names_weights_that_are_not_found_by_default(folder):
    raster = Nesting.nested(4, 4, 4, order="raster")
    for nesting, named in ((K4, False), (raster, True), (K2, True)):
        small_model(nesting).save_pretrained(folder / nesting.name)
        save_config(folder, (nesting,), ('"owl"', "b", "c"))
        (line,) = [each for each in prepare(folder, REPOSITORY).card.splitlines() if each.startswith("pipe(")]
        assert ast.literal_eval(line[len("pipe(") :].split(", seed")[0]) == '"owl"'
        assert (f'nesting="{nesting.name}"' in line) == named


def test_the_data_is_named_where_it_is_known_or_given(folder):
    assert "my photographs" in prepare(folder, REPOSITORY, data="These are my photographs.").card
    for nesting in (K4, K2):
        small_model(nesting, len(tiny_worlds.CLASSES)).save_pretrained(folder / nesting.name)
    save_config(folder, (K4, K2), tiny_worlds.CLASSES)
    assert "Tiny Worlds: illustrated scenes of 12 kinds" in prepare(folder, REPOSITORY).card
    assert len(CLASSES) == 3


@pytest.mark.parametrize(
    ("token", "to", "said"),
    [
        ("", REPOSITORY, "needs a Hub token"),
        ("hf_reader", REPOSITORY, f"does not let this token write to {REPOSITORY}"),
        (WRITER, "no/such/name", "'no/such/name' is no Hub repository id (user/name)."),
    ],
)
def test_a_hub_that_does_not_take_it_is_one_sentence(hub, loader, folder, token, to, said):
    before = list(hub.commits)
    done = loader.push(folder, to, token)
    assert done["status"] == 2
    assert said in done["said"] and len(done["said"].strip().splitlines()) == 1
    assert hub.commits == before


def test_a_card_that_the_hub_refuses_is_one_sentence_with_its_reason(hub, loader, folder, monkeypatch):
    monkeypatch.setattr(hub, "card_errors", [{"message": '"license" must be one of: mit, cc-by-4.0'}])
    before = list(hub.commits)
    done = loader.push(folder, REPOSITORY, WRITER)
    assert done["status"] == 2 and hub.commits == before
    assert done["said"].strip() == (
        f"nestar: {REPOSITORY} could not be published: Invalid metadata in README.md. "
        '- "license" must be one of: mit, cc-by-4.0.'
    )


def test_damaged_weights_are_not_published(folder):
    (folder / K2.name / "module_2.safetensors").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"module_2\.safetensors"):
        prepare(folder, REPOSITORY)
    save_config(folder, ())
    with pytest.raises(WeightsError, match="nothing to publish"):
        prepare(folder, REPOSITORY)
