"""Weights from a stranger: whatever is in their files, they load or one sentence names the file, and nothing
that a config asks for is built before its size and the weights' headers have been looked at."""

from __future__ import annotations

import ast
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import nestar
from nestar.checkpoints import assemble, check_fit, load_tokenizer, open_checkpoint
from nestar.data.tiny_worlds import CLASSES as WORLDS
from nestar.evaluation.diversity import FeatureSpace
from nestar.evaluation.features import FeatureNetwork, FeatureNetworkConfig, load_features
from nestar.limits import MAX_JSON, MAX_SHOWN, MAX_TOKENS, check_folder_names, shortened
from nestar.model import NestAR, NestARConfig, Outline, WeightsError
from nestar.neighbours import NeighbourIndex, load_index
from nestar.nesting import Nesting
from tests.small import CLASSES, K4, save_checkpoint, small_tokenizer

CONFIG, NESTING, TOKENIZER = "config.json", f"{K4.name}/config.json", "tokenizer/config.json"
SCALE, FEATURES, INDEX = "tokenizer/tokenizer.json", "features/config.json", "neighbours/config.json"
MODULE = f"{K4.name}/module_2.safetensors"
AUTOENCODER = "tokenizer/diffusion_pytorch_model.safetensors"
NETWORK, NEIGHBOURS = "features/features.safetensors", "neighbours/neighbours.safetensors"
CONFIGS = (CONFIG, NESTING, TOKENIZER, SCALE, FEATURES, INDEX)
WEIGHTS = (MODULE, AUTOENCODER, NETWORK, NEIGHBOURS)

DEEP: list[Any] = []
for _ in range(900):
    DEEP = [DEEP]
NUMBERS = (10**9, 10**7, 2**63, 10**4000, -1, 0, 1, 1.5, 1e999, -1e999, float("nan"), True, None)
TEXTS = ("", "x", "1", "../..", "/etc", "\ud800", "a\nb", "x" * 10**5)
NASTY = st.sampled_from([*NUMBERS, *TEXTS, [], {}, [10**9], ["x"], [1] * 10**4, {"a": 1}, DEEP])
fuzzed = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a feature network and an index of training pictures; each test puts back what it
    damages."""
    folder = save_checkpoint(tmp_path_factory.mktemp("weights"), [K4])
    assemble(folder, classes=CLASSES, defaults={"steps": 3})
    torch.manual_seed(2)
    small = FeatureNetworkConfig(size=64, channels=(8, 8, 16), blocks=(0, 1, 1), hidden=16, features=16)
    FeatureNetwork(small).save_pretrained(folder / "features")
    space = FeatureSpace(folder / "features")
    yardstick = torch.rand(len(WORLDS), 3)
    codes = torch.zeros(40, 4, dtype=torch.int8)
    tensors = (torch.rand(16), torch.rand(16, 4), torch.rand(4), yardstick, yardstick.clone())
    NeighbourIndex(codes, *tensors, features=space.fingerprint, tokenizer="0", size=64).save(
        folder / "neighbours"
    )
    return folder


def load(folder: Path, file: str) -> list[nn.Module]:
    """Load the part of a checkpoint that `file` belongs to."""
    part = file.split("/")[0]
    if part == "tokenizer":
        return [load_tokenizer(folder / part)]
    if part == "features":
        return [load_features(folder / part)]
    if part == "neighbours":
        load_index(folder / part, FeatureSpace(folder / "features"))
        return []
    if part == K4.name:
        return [NestAR.from_pretrained(folder / part)]
    checkpoint = open_checkpoint(folder)
    return [checkpoint.nesting(name) for name in checkpoint.nestings]


def refused(folder: Path, file: str) -> str:
    """Why the part that `file` belongs to does not load; "" if it does, and then it is sound."""
    try:
        loaded = load(folder, file)
    except WeightsError as error:
        message = str(error)
        named = folder / file.split("/")[0] if file in (INDEX, NEIGHBOURS) else folder
        assert str(named) in message, "a file or the index's folder is named"
        assert len(message) < 700 and "\n" not in message and message.endswith(".")
        assert str(folder.parent) not in error.public, "a visitor does not read where it lies"
        message.encode()
        return message
    for network in loaded:
        assert all(value.isfinite().all() for value in network.state_dict().values())
    return ""


@contextmanager
def changed(file: Path, content: bytes) -> Iterator[None]:
    """`file` with another content for a while."""
    whole = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(whole)


@contextmanager
def edited(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Iterator[None]:
    """A safetensors file with other tensors for a while."""
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    edit(tensors)
    save_file(tensors, other := file.with_name("other"))
    with changed(file, other.read_bytes()):
        other.unlink()
        yield


def stored(value: object) -> bytes:
    """As JSON, with whatever JSON has no number for."""
    return json.dumps(value).encode()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to all values in a JSON object, those inside others too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*at, key)
        yield from places(each, (*at, key))


@pytest.mark.parametrize("file", [*CONFIGS, *WEIGHTS])
def test_what_is_whole_loads(folder: Path, file: str) -> None:
    assert refused(folder, file) == ""


@fuzzed
@given(file=st.sampled_from(WEIGHTS), data=st.data())
def test_a_cut_file_is_refused(folder: Path, file: str, data: st.DataObject) -> None:
    whole = (folder / file).read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, min(2000, len(whole) - 1)))
    with changed(folder / file, whole[:length]):
        assert refused(folder, file)


@fuzzed
@given(file=st.sampled_from(WEIGHTS), data=st.data())
def test_flipped_bits_are_refused_or_leave_sound_weights(
    folder: Path, file: str, data: st.DataObject
) -> None:
    whole = bytearray((folder / file).read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    places = st.integers(0, header - 1) | st.integers(0, len(whole) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=3)):
        whole[place] ^= 1 << data.draw(st.integers(0, 7))
    with changed(folder / file, bytes(whole)):
        refused(folder, file)


@settings(fuzzed, max_examples=120)
@given(file=st.sampled_from(CONFIGS), data=st.data())
def test_a_config_with_any_value_changed_is_refused_or_loads(
    folder: Path, file: str, data: st.DataObject
) -> None:
    config = json.loads((folder / file).read_bytes())
    *way, last = data.draw(st.sampled_from(list(places(config))))
    at = config
    for key in way:
        at = at[key]
    value = data.draw(NASTY | st.none().map(lambda _: KeyError))
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    with changed(folder / file, stored(config)):
        refused(folder, file)


@pytest.mark.parametrize("file", CONFIGS)
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b'{"format_version": 1' + b"0" * 5000 + b"}",
        b" " * (MAX_JSON + 1),
        b"\0" * 9,
    ],
    ids=["lists", "objects", "digits", "size", "zeros"],
)
def test_json_that_is_deep_or_long_is_refused(folder: Path, file: str, content: bytes) -> None:
    with changed(folder / file, content):
        assert file in refused(folder, file) or file == INDEX


ABSURD = [
    (CONFIG, {"nestings": [f"k{k}" for k in range(10**5)]}),
    (CONFIG, {"nestings": ["../weights/k4-lattice"]}),
    (CONFIG, {"nestings": ["/etc"]}),
    (CONFIG, {"nestings": [".."]}),
    (CONFIG, {"nestings": K4.name}),
    (CONFIG, {"classes": "abc"}),
    (CONFIG, {"classes": []}),
    (CONFIG, {"classes": ["fish", "\ud800", "cat"]}),
    (CONFIG, {"size": -1}),
    (CONFIG, {"format_version": True}),
    (CONFIG, {"format_version": 0}),
    (NESTING, {"dim": 10**9}),
    (NESTING, {"dim": 32.0}),
    (NESTING, {"dim": 36, "heads": 2}),
    (NESTING, {"blocks": 10**7}),
    (NESTING, {"blocks": True}),
    (NESTING, {"split": [2, 10**7]}),
    (NESTING, {"split": [1, 2, 1]}),
    (NESTING, {"split": 4}),
    (NESTING, {"split": []}),
    (NESTING, {"heads": -2}),
    (NESTING, {"classes": 10**12}),
    (NESTING, {"channels": 0}),
    (NESTING, {"cond_dim": 10**9}),
    (NESTING, {"dim": 8192, "heads": 8, "blocks": 256}),
    (NESTING, {"nesting": K4.to_dict() | {"height": 100_000, "width": 100_000}}),
    (NESTING, {"nesting": K4.to_dict() | {"height": 100, "width": 100}}),
    (NESTING, {"nesting": {"height": 10**9, "width": 1, "kind": "cells", "k": 1, "order": "blocks"}}),
    (NESTING, {"nesting": K4.to_dict() | {"k": 10**9}}),
    (NESTING, {"nesting": K4.to_dict() | {"height": -4, "width": -4}}),
    (TOKENIZER, {"block_out_channels": [10**9] * 3}),
    (TOKENIZER, {"block_out_channels": [16] * 10**5}),
    (TOKENIZER, {"layers_per_block": 10**7}),
    (TOKENIZER, {"latent_channels": 10**9}),
    (TOKENIZER, {"in_channels": 3, "out_channels": 3}),
    (SCALE, {"patch": 10**9}),
    (SCALE, {"patch": "4"}),
    (SCALE, {"scale": 0}),
    (SCALE, {"scale": float("nan")}),
    (SCALE, {"scale": 1e999}),
    (SCALE, {"scale": 10**400}),
    (FEATURES, {"hidden": 10**9}),
    (FEATURES, {"fold": 0}),
    (FEATURES, {"channels": [8] * 10**5}),
    (FEATURES, {"blocks": [0, 10**7, 1]}),
    (INDEX, {"images": 10**9}),
    (INDEX, {"size": 10**9}),
    (INDEX, {"tokenizer": 5}),
]


def peak() -> int:
    """Most bytes of memory that this process has had at once since `held`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held() -> int:
    """Bytes of memory in use. What an earlier test took at once is forgotten and hides nothing, on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


@pytest.mark.parametrize(("file", "change"), ABSURD, ids=lambda value: shortened(value)[:60])
def test_what_no_checkpoint_asks_for_is_refused_at_once(folder: Path, file: str, change: dict) -> None:
    config = json.loads((folder / file).read_bytes())
    with changed(folder / file, stored(config | change)):
        before, began = held(), time.process_time()
        message = refused(folder, file)
    assert file in message or (file == INDEX and "damaged" in message)
    assert time.process_time() - began < 5 and peak() - before < 64 * 2**20


@pytest.mark.parametrize(
    ("file", "weights", "change"),
    [
        (NESTING, f"{K4.name}/module_1", {"dim": 1536}),
        (TOKENIZER, "diffusion_pytorch_model", {"block_out_channels": [1024, 1024, 2048]}),
        (FEATURES, "features.safetensors", {"hidden": 8192, "place_channels": 256}),
    ],
)
def test_weights_are_held_against_their_config_before_it_is_built(
    folder: Path, file: str, weights: str, change: dict
) -> None:
    """Each of these would take 400 MB or more."""
    config = json.loads((folder / file).read_bytes())
    with changed(folder / file, stored(config | change)):
        before = held()
        message = refused(folder, file)
    assert f"{weights}" in message and "has shape" in message
    assert peak() - before < 64 * 2**20


def test_what_fits_the_bounds_is_described_without_memory_and_in_time() -> None:
    before, began = held(), time.process_time()
    largest = Nesting.nested(64, MAX_TOKENS // 64 - 1, 2)
    config = NestARConfig(largest, classes=1000, dim=2048, heads=16, blocks=256, cond_dim=512)
    assert NestARConfig.from_dict(config.to_dict()).parameters > 10**10
    assert time.process_time() - began < 20 and peak() - before < 2**28


def test_pictures_that_no_machine_decodes_are_refused(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    file = tmp_path / "config.json"
    largest = Outline(NestARConfig(Nesting.one_shot(64, 64), channels=tokenizer.channels), {})
    check_fit(largest, file, tokenizer, "made", "here")
    tokenizer.patch = 64
    with pytest.raises(WeightsError, match=r"config\.json is for pictures of 268,435,456 pixels"):
        check_fit(largest, file, tokenizer, "made", "here")


@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, file: str, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = max(name for name, each in tensors.items() if each.is_floating_point())
        tensors[name].view(-1)[-1] = value

    with edited(folder / file, spoil):
        message = refused(folder, file)
    assert file in message or (file == NEIGHBOURS and "damaged" in message)


@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_of_another_type_are_refused(folder: Path, file: str, dtype: torch.dtype) -> None:
    with edited(
        folder / file, lambda tensors: tensors.update({max(tensors): tensors[max(tensors)].to(dtype)})
    ):
        message = refused(folder, file)
    assert file in message or (file == NEIGHBOURS and "damaged" in message)


def test_a_tokenizer_elsewhere_is_looked_for_in_no_other_folder(folder: Path) -> None:
    place = {"repository": "user/repo", "patch": 4, "scale": 1.0, "folder": "a/../../b"}
    config = json.loads((folder / CONFIG).read_bytes())
    with changed(folder / CONFIG, stored(config | {"tokenizer": place})):
        checkpoint = open_checkpoint(folder)
        with pytest.raises(WeightsError, match=r"names lacks a valid 'folder': '\.\.' is no"):
            checkpoint.tokenizer()


@given(st.lists(st.text(alphabet="ab./\\ \0~:-", max_size=6), max_size=2, unique=True))
@fuzzed
def test_a_folder_in_a_checkpoint_lies_in_it(names: list[str]) -> None:
    inside = Path("/x/y")
    try:
        checked = check_folder_names("nestings", names)
    except ValueError:
        return
    assert all((inside / name).resolve().parent == inside for name in checked)


def test_of_a_strangers_file_a_sentence_repeats_one_short_line() -> None:
    assert shortened("a\nb") == "a" and shortened("") == ""
    assert len(shortened("x" * 10**6)) == MAX_SHOWN + 1
    assert shortened("a\ud800").encode() == b"a?"
    assert shortened(10**5000) == "int"
    deep = DEEP
    for _ in range(2000):
        deep = [deep]
    assert shortened(deep) == "list"


@pytest.mark.parametrize(
    "count", [float("nan"), 1e999, -5, 10**400, "many", True], ids=lambda count: str(count)[:5]
)
def test_a_record_of_any_counts_can_be_summed(folder: Path, count: object) -> None:
    config = json.loads((folder / NESTING).read_bytes())
    record = {"images_seen": 0.5, "init": {"images_seen": count, "init": DEEP}}
    with changed(folder / NESTING, stored(config | {"training": record})):
        assert Outline.read(folder / K4.name).images_seen in (0, 1)


def test_no_pickle_is_loaded() -> None:
    """Inception's published weights are one; torch reads of them tensors alone."""
    found = []
    for file in sorted(Path(nestar.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "joblib", "dill", "marshal", "shelve"} & set(names), file
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                found.append((file.name, {word.arg: ast.unparse(word.value) for word in node.keywords}))
            elif isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False", file
    assert found == [("inception.py", {"map_location": "'cpu'", "weights_only": "True"})]


def test_a_grid_that_is_too_large_is_refused_before_it_is_laid_out() -> None:
    grid = {"height": MAX_TOKENS, "width": MAX_TOKENS, "kind": "cells", "k": 1, "order": "blocks"}
    before, began = held(), time.process_time()
    with pytest.raises(ValueError, match="at most 4096 tokens"):
        NestARConfig.from_dict({**NestARConfig(K4).to_dict(), "nesting": grid})
    assert time.process_time() - began < 5 and peak() - before < 2**26
