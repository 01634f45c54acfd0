"""Weights from the Hub, through a stand-in for it on 127.0.0.1."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import re
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub.errors import FileMetadataError
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

from nestar import hub as hub_module
from nestar.checkpoints import load_tokenizer
from nestar.hub import HubRepository, _told
from nestar.model import WeightsError
from nestar.tokenizer import Tokenizer
from tests.hub import BUSY, COMMIT, Loader, StandInHub
from tests.small import K2, K4, save_checkpoint, save_tokenizer, small_tokenizer

CONFIG = "config.json"
TOKENIZER = "tokenizer/diffusion_pytorch_model.safetensors"
TOKENIZER_CONFIG = "tokenizer/config.json"
TOKENIZER_SCALE = "tokenizer/tokenizer.json"
WEIGHTS = f"{K4.name}/module_2.safetensors"
SAME = ("weights", "part", "cut", "torn", "swapped", "swapped-page")
"""Names of one checkpoint: a process has nothing of a name in its cache that it has not loaded yet."""


def served(name: str) -> str:
    """Where files of `user/name` are fetched."""
    return f"/user/{name}/resolve/{COMMIT}"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as somebody might publish it, with files beside it that must not be fetched."""
    folder = save_checkpoint(tmp_path_factory.mktemp("published") / "repository")
    for name in (
        "pytorch_model.bin",
        f"{K4.name}/module_1.bin",
        "tokenizer/diffusion_pytorch_model.bin",
        "run.py",
    ):
        (folder / name).write_bytes(pickle.dumps("arbitrary code"))
    return folder


def borrowing(folder: Path, place: dict[str, object]) -> Path:
    """A checkpoint whose config says that its tokenizer lies in another repository."""
    save_checkpoint(folder, [K4])
    shutil.rmtree(folder / "tokenizer")
    stored = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**stored, "tokenizer": place}))
    return folder


def like_kl16() -> AutoencoderKL:
    """Built as MAR's KL-16 is, but narrow and for the tokens of these tests."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(8, 8, 16, 16, 16),
        layers_per_block=2,
        latent_channels=small_tokenizer().channels,
        norm_num_groups=8,
        use_quant_conv=True,
        use_post_quant_conv=True,
    )


@pytest.fixture(scope="module")
def hub(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    """One Hub for all tests of this file."""
    other = tmp_path_factory.mktemp("other")
    (other / "model.safetensors").write_bytes(b"something else")
    birds = save_checkpoint(tmp_path_factory.mktemp("birds"), [K4], ("wren", "robin", "owl"))
    odd, more = tmp_path_factory.mktemp("odd"), tmp_path_factory.mktemp("more")
    for folder in (odd, more):
        save_checkpoint(folder, [K4])
    tokenizer = small_tokenizer()
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1)
    save_tokenizer(tokenizer, odd / "tokenizer")
    place = {"repository": "user/weights", "folder": "tokenizer", "patch": 4, "scale": 0.5}
    kl = tmp_path_factory.mktemp("kl")
    like_kl16().save_pretrained(str(kl))
    places = {
        "user/borrowed": place,
        "user/borrowed-kl": {"repository": "user/kl", "patch": 1, "scale": 0.2325},
        "user/borrowed-wrong": {name: value for name, value in place.items() if name != "patch"},
        "user/borrowed-gone": {**place, "repository": "user/gone"},
    }
    started = StandInHub(
        {
            **{f"user/{name}": published for name in SAME},
            "user/other": other,
            "user/gated": "GatedRepo",
            "user/refused": "",
            "user/busy": BUSY,
            "user/birds": birds,
            "user/kl": kl,
            "user/odd": odd,
            "user/more": more,
            **{name: borrowing(tmp_path_factory.mktemp("borrowed"), place) for name, place in places.items()},
        }
    )
    yield started
    started.stop()


@pytest.fixture(scope="module")
def loader(hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    started = Loader(hub.url, tmp_path_factory.mktemp("hf"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def pages(hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """A process that opens pages, with a cache of its own."""
    started = Loader(hub.url, tmp_path_factory.mktemp("pages"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pages take for the embedded weights: such as load in a moment."""
    return str(save_checkpoint(tmp_path_factory.mktemp("embedded"), [K4]))


def test_the_hub_by_commit_without_pickles(hub: StandInHub, loader: Loader) -> None:
    answer = loader.load("user/weights")
    assert answer.get("origin") == f"user/weights@{COMMIT[:7]}"
    expected = [CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_SCALE]
    for nesting in (K4, K2):
        expected += [f"{nesting.name}/config.json"]
        expected += [f"{nesting.name}/module_{scale.number}.safetensors" for scale in nesting.scales]
    assert answer["files"] == sorted(expected)
    fetched = [path for path in hub.served if path.startswith(served("weights"))]
    assert sum(path.endswith(".safetensors") for path in fetched) == 7
    assert not [path for path in hub.served if path.endswith((".bin", ".py"))]
    assert loader.load("user/weights", "v1")["origin"] == f"user/weights@{COMMIT[:7]}"


@pytest.mark.parametrize(
    ("source", "revision", "said"),
    [
        ("user/gone", None, "Hub repository user/gone was not found, or is private."),
        ("user/gated", None, "Hub repository user/gated is gated: ask for access and log in."),
        (
            "user/refused",
            None,
            "The Hub refuses config.json of user/refused (HTTP 403); check HF_TOKEN, or log in anew.",
        ),
        (
            "user/busy",
            None,
            "The Hub does not give config.json of user/busy (HTTP 429); try again later.",
        ),
        ("user/weights", "nowhere", "Hub repository user/weights has no revision 'nowhere'."),
        ("user/other", None, "Hub repository user/other has no config.json: it holds no NestAR weights."),
        (
            "no/such/folder",
            None,
            "'no/such/folder' is neither a folder here nor a Hub repository id (user/name).",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    loader: Loader, source: str, revision: str | None, said: str
) -> None:
    answer = loader.load(source, revision)
    assert answer.get("error") == said
    assert answer["seconds"] < 20


def test_only_what_is_used_is_fetched(hub: StandInHub, loader: Loader) -> None:
    """A page on a repository of many nestings opens on one of them."""
    answer = loader.load("user/part", nesting=K4.name)
    assert answer.get("loaded") == [K4.name] and answer["nestings"] == [K4.name, K2.name]
    fetched = [path.removeprefix(served("part")) for path in hub.served if path.startswith(served("part"))]
    assert [path for path in fetched if f"/{K2.name}/" in path] == [f"/{K2.name}/config.json"]
    assert f"/{K4.name}/module_1.safetensors" in fetched


def test_a_tokenizer_comes_from_its_own_repository(hub: StandInHub, loader: Loader, published: Path) -> None:
    """As diffusers stores it: the published KL-16 serves as it is, fold and scale stand in our config."""
    own = load_tokenizer(published / "tokenizer")
    answer = loader.load("user/borrowed")
    assert answer.get("tokenizer") == own.fingerprint
    assert not [file for file in answer["files"] if file.startswith("tokenizer/")]
    assert loader.load("user/borrowed-wrong")["error"].endswith("config.json names lacks a valid 'patch'.")
    assert loader.load("user/borrowed-gone")["error"] == (
        "Hub repository user/gone was not found, or is private."
    )


def test_a_published_kl16_serves_as_it_is(hub: StandInHub, loader: Loader) -> None:
    """Five levels and convolutions around the latents, at the root of its repository, not folded."""
    answer = loader.load("user/borrowed-kl")
    assert answer.get("tokenizer") == Tokenizer(like_kl16(), patch=1, scale=0.2325).fingerprint
    assert loader.load("user/borrowed-kl", nesting=K4.name)["loaded"] == [K4.name], "it decodes"


def test_several_repositories_show_their_nestings_together(loader: Loader) -> None:
    both = loader.load("user/weights, user/more@v1", nesting="k4-lattice.more")
    assert both.get("nestings") == [K4.name, K2.name, f"{K4.name}.more"]
    assert both["loaded"] == [f"{K4.name}.more"]
    assert both["origin"] == f"user/weights@{COMMIT[:7]}, user/more@{COMMIT[:7]}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "user/weights,user/birds",
            "user/birds@.* cannot stand beside user/weights@.*: it has other classes",
        ),
        (
            "user/weights,user/odd",
            "user/odd@.* cannot stand beside user/weights@.*: it has another tokenizer",
        ),
        ("user/weights,user/gone", "user/gone was not found"),
    ],
)
def test_repositories_that_do_not_go_together_are_named(loader: Loader, source: str, said: str) -> None:
    assert re.search(said, loader.load(source, nesting=K4.name)["error"])


def test_a_revision_of_several_repositories_is_refused(loader: Loader) -> None:
    error = loader.load("user/weights,user/more", "v1", nesting=K4.name)["error"]
    assert error == "A revision goes with one repository; of several, write user/weights@v1."


def test_a_download_that_breaks_off_goes_on_and_is_told(hub: StandInHub, loader: Loader) -> None:
    hub.damage[WEIGHTS] = "cut"
    answer = loader.load("user/cut")
    assert answer.get("origin") and not hub.damage
    assert hub.served.count(f"{served('cut')}/{WEIGHTS}") == 2, "the second answer brought the rest"
    told = [(here, whole) for path, here, whole in answer["told"] if path == WEIGHTS]
    assert told[-1][0] == told[-1][1] > 0
    assert [here for here, _ in told] == sorted(here for here, _ in told)


@pytest.mark.parametrize("damaged", [False, True])
def test_what_came_by_xet_is_held_against_the_hubs_hash_too(tmp_path: Path, damaged: bool) -> None:
    """The client shares it among repositories, under Xet's hash: its own is a link to that."""
    content, repository = b"weights", tmp_path / "models--user--x"
    blob = repository / "blobs" / hashlib.sha256(b"other" if damaged else content).hexdigest()
    folder = repository / "snapshots" / COMMIT
    for place in (blob.parent, folder / "k4"):
        place.mkdir(parents=True)
    blob.write_bytes(content)
    shared = {"xet_hash": "ab" * 32, "cache_dir": tmp_path, "expected_size": len(content)}
    assert publish_blob_to_shared_store(blob_path=str(blob), **shared) and blob.is_symlink()
    (folder / "k4/module_1.safetensors").symlink_to(f"../../../blobs/{blob.name}")
    come = HubRepository("user/x", COMMIT, folder)
    if damaged:
        with pytest.raises(WeightsError, match="came damaged"):
            come._verify("k4/module_1.safetensors")
        assert not list(tmp_path.rglob("*.safetensors")) and not blob.is_symlink()
        assert come.missing(["k4/module_1.safetensors"])
    else:
        come._verify("k4/module_1.safetensors")
        assert (folder / "k4/module_1.safetensors").read_bytes() == content


def test_what_answers_for_the_hub_and_describes_nothing_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As what a network asks its guests to sign in on."""

    def bare(*_: object, **__: object) -> str:
        raise FileMetadataError("Distant resource does not have a commit hash.")

    monkeypatch.setattr(hub_module, "_answers", lambda *_: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", bare)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(WeightsError, match=r"^What answers for the Hub does not describe user/weights"):
        HubRepository.open("user/weights")


@pytest.mark.parametrize("there", [True, False])
def test_a_cache_that_takes_no_more_serves_what_came_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    """The main branch has moved on, and its newest commit finds no room."""

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    came = tmp_path / COMMIT / CONFIG
    monkeypatch.setattr(hub_module, "_answers", lambda *_: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(came) if there else None
    )
    if there:
        assert HubRepository.open("user/weights").origin == f"user/weights@{COMMIT[:7]}"
    else:
        with pytest.raises(WeightsError, match=r"user/weights could not be downloaded \(No space left"):
            HubRepository.open("user/weights")


def test_of_what_comes_by_xet_one_count_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    bar = _told(lambda *each: told.append(each), "a")
    with XetDownloadProgressReporter(
        reconstruction_desc="a", total=10, log_level=20, tqdm_class=bar
    ) as by_xet:
        for done in (4, 10):
            counts = {"total_bytes_completed": done, "total_transfer_bytes_completed": done // 2}
            rates = {"total_bytes_completion_rate": None, "total_transfer_bytes_completion_rate": None}
            by_xet.update_progress(SimpleNamespace(total_bytes=10, **counts, **rates))
    assert told == [("a", 4, 10), ("a", 10, 10)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("torn", f"{WEIGHTS} of user/torn@{COMMIT[:7]} (came incomplete|could not be downloaded)"),
        ("swapped", f"{WEIGHTS} of user/swapped@{COMMIT[:7]} came damaged: its hash is not the Hub's"),
    ],
)
def test_half_a_file_and_another_are_refused_and_tried_again(
    hub: StandInHub, loader: Loader, damage: str, said: str
) -> None:
    hub.damage[WEIGHTS] = damage
    refused = loader.load(f"user/{damage}")
    hub.damage.clear()
    again = loader.load(f"user/{damage}")
    assert re.match(said, refused.get("error", ""))
    assert again.get("origin") == f"user/{damage}@{COMMIT[:7]}"


@pytest.mark.parametrize(
    ("source", "damage", "said"),
    [
        ("user/gone", None, "was not found, or is private"),
        ("user/swapped-page", "swapped", "came damaged: its hash is not the Hub"),
    ],
    ids=["404", "hash"],
)
def test_what_fails_is_a_sentence_on_the_page_and_the_embedded_weights_serve(
    hub: StandInHub,
    pages: Loader,
    embedded: str,
    source: str,
    damage: str | None,
    said: str,
) -> None:
    hub.damage.update({WEIGHTS: damage} if damage else {})
    answer = pages.load(source, None, page=embedded)
    hub.damage.clear()
    assert re.search(said, answer["notice"]) and "runs on the embedded weights instead" in answer["notice"]
    assert answer["weights"] == "embedded"


def test_the_page_on_the_hub_s_weights_says_nothing(pages: Loader, embedded: str) -> None:
    answer = pages.load("user/weights", None, page=embedded)
    assert (answer["notice"], answer["weights"]) == ("", f"user/weights@{COMMIT[:7]}")


def test_what_has_come_serves_while_the_hub_is_too_busy(hub: StandInHub, loader: Loader) -> None:
    assert loader.load("user/more").get("origin") == f"user/more@{COMMIT[:7]}"
    kept, hub.repositories["user/more"] = hub.repositories["user/more"], BUSY
    try:
        assert loader.load("user/more").get("origin") == f"user/more@{COMMIT[:7]}"
    finally:
        hub.repositories["user/more"] = kept


def test_a_silent_hub_and_a_dead_one(hub: StandInHub, loader: Loader, pages: Loader, embedded: str) -> None:
    """What has been downloaded is served from the cache, and what has not is refused, within seconds.

    The last test of this file: it stops the Hub that the others share.
    """
    assert "origin" in loader.load("user/weights")
    hub.stop()
    with (
        socket.create_server(("127.0.0.1", hub.server.server_port), backlog=16),  # accepts, never answers
        ThreadPoolExecutor() as threads,
    ):
        waiting = threads.submit(pages.load, "user/new", page=embedded)
        silent = [loader.load("user/weights"), loader.load("user/new")]
        unheard = waiting.result()
    dead = [loader.load("user/weights"), loader.load("user/new", "v1")]
    assert [answer[0].get("origin") for answer in (silent, dead)] == [f"user/weights@{COMMIT[:7]}"] * 2
    for answer in (unheard, pages.load("user/new", page=embedded)):
        assert "The Hub does not answer and user/new is not in the cache." in answer["notice"]
        assert answer["weights"] == "embedded"
    assert silent[1].get("error") == "The Hub does not answer and user/new is not in the cache."
    assert dead[1].get("error") == "The Hub does not answer and user/new@v1 is not in the cache."
    # Left to itself huggingface_hub retries for 23 s, or 388 s where nothing answers.
    assert max(answer["seconds"] for answer in silent + dead) < 15
    assert hub_module.PROBE_SECONDS + hub_module.PATIENT_SECONDS < 10, (
        "which are shorter in the processes above"
    )
