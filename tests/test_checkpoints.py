"""Where weights come from: round trips, damage of every kind, and devices."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestar import checkpoints, files
from nestar import model as model_module
from nestar.checkpoints import (
    assemble,
    free_name,
    load_tokenizer,
    open_checkpoint,
    resolve_device,
    sources_of,
)
from nestar.model import FORMAT_VERSION, NestAR, WeightsError
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.publish import prepare
from nestar.settings import SettingsError, find_nesting
from tests.small import (
    CHANNELS,
    CLASSES,
    K2,
    K4,
    SIZE,
    save_checkpoint,
    save_config,
    save_tokenizer,
    small_model,
    small_tokenizer,
)

CONFIG = "config.json"
MODULE = f"{K4.name}/module_2.safetensors"
MODULE_CONFIG = f"{K4.name}/config.json"
TOKENIZER = "tokenizer/diffusion_pytorch_model.safetensors"
TOKENIZER_CONFIG = "tokenizer/config.json"
TOKENIZER_SCALE = "tokenizer/tokenizer.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that the test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "weights"))


def refusal(source: Path | str) -> str:
    with pytest.raises(WeightsError) as caught:
        NestARPipeline.from_pretrained(source, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("nesting", [K4, K2], ids=lambda nesting: nesting.name)
def test_a_nesting_comes_back_bit_for_bit(nesting, tmp_path: Path) -> None:
    model = small_model(nesting)
    model.save_pretrained(tmp_path / "first", record={"steps": 7})
    loaded = NestAR.from_pretrained(tmp_path / "first")
    assert loaded.config == model.config
    assert not loaded.training
    for (name, value), (loaded_name, back) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == loaded_name
        assert back.dtype == torch.float32
        assert torch.equal(back, value.bfloat16().float()), name
    loaded.save_pretrained(tmp_path / "second")
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == ["config.json", *(f"module_{m}.safetensors" for m in range(1, len(nesting.scales) + 1))]
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    assert json.loads((tmp_path / "first/config.json").read_text())["training"] == {"steps": 7}


def test_a_tokenizer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.patch, loaded.scale, loaded.channels, loaded.stride) == (4, 0.5, 4, 16)
    assert loaded.state_dict().keys() == before.keys()
    for name, back in loaded.state_dict().items():
        assert back.dtype == torch.float32
        assert torch.equal(back, before[name].bfloat16().float()), name


@pytest.mark.parametrize("kind", [str, Path])
def test_a_local_folder(saved: Path, kind: Callable[[Path], str | Path]) -> None:
    checkpoint = open_checkpoint(kind(saved))
    assert (checkpoint.origin, checkpoint.folder) == (str(saved), saved)
    assert (checkpoint.classes, checkpoint.size) == (CLASSES, SIZE)
    assert checkpoint.nestings == (K4.name, K2.name)
    assert checkpoint.nesting(K2.name).config.nesting == K2


def test_no_source_means_the_embedded_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EMBEDDED", folder)
    checkpoint = open_checkpoint()
    assert (checkpoint.origin, checkpoint.folder) == ("embedded", folder)


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def pickled(file: Path) -> None:
    """What torch.save wrote in former times; reading it could run anything."""
    file.write_bytes(pickle.dumps({"embed.weight": [0.0] * 64}))


def torch_saved(file: Path) -> None:
    torch.save({"embed.weight": torch.zeros(4)}, file)


def edit_tensors(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def last(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[-1]


def lose_a_tensor(file: Path) -> None:
    edit_tensors(file, lambda tensors: tensors.pop(last(tensors)))


def add_a_tensor(file: Path) -> None:
    edit_tensors(file, lambda tensors: tensors.update(stowaway=torch.zeros(3)))


def reshape_a_tensor(file: Path) -> None:
    edit_tensors(file, lambda tensors: tensors.update({last(tensors): torch.zeros(3, 5)}))


@pytest.mark.parametrize("name", [MODULE, TOKENIZER])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove, "is missing."),
        (truncate, "is no whole safetensors file"),
        (empty, "is no whole safetensors file"),
        (pickled, "is no whole safetensors file"),
        (torch_saved, "is no whole safetensors file"),
        (lose_a_tensor, "lacks tensor"),
        (add_a_tensor, "has an unexpected tensor 'stowaway'"),
        (reshape_a_tensor, "shape"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_weight_file_is_refused_by_name(
    folder: Path, name: str, damage: Callable, said: str
) -> None:
    damage(folder / name)
    message = refusal(folder)
    assert message.startswith(str(folder / name))
    assert said in message


@pytest.mark.parametrize("name", [CONFIG, MODULE_CONFIG, TOKENIZER_CONFIG, TOKENIZER_SCALE])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing."),
        ("{", "cannot be read as JSON"),
        ("[1]", "must hold a JSON object."),
        (b"\xff\xfe", "cannot be read"),
    ],
    ids=["missing", "truncated", "list", "binary"],
)
def test_a_damaged_config_is_refused_by_name(
    folder: Path, name: str, content: str | bytes | None, said: str
) -> None:
    file = folder / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    message = refusal(folder)
    assert message.startswith(f"{file} ")
    assert said in message


@pytest.mark.parametrize("name", [CONFIG, MODULE_CONFIG])
@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, None, "1"])
def test_a_format_version_not_known_here_is_refused_by_name(folder: Path, name: str, version: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": version}))
    assert (
        refusal(folder) == f"{file} has format version {version}; this NestAR reads up to {FORMAT_VERSION}."
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (CONFIG, {"classes": None}),
        (CONFIG, {"size": "large"}),
        (CONFIG, {"size": 60_000}),
        (CONFIG, {"nestings": 5}),
        (MODULE_CONFIG, {"nesting": {}}),
        (MODULE_CONFIG, {"nesting": None}),
        (MODULE_CONFIG, {"dim": "wide"}),
        (MODULE_CONFIG, {"heads": 0}),
        (TOKENIZER_CONFIG, {"block_out_channels": 5}),
        (TOKENIZER_SCALE, {"patch": None}),
        (TOKENIZER_SCALE, {"scale": "half"}),
    ],
)
def test_a_config_with_wrong_values_is_refused_by_name(folder: Path, name: str, change: dict) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert refusal(folder).startswith(f"{file} ")


def test_a_config_without_its_fields_is_refused_by_name(folder: Path) -> None:
    for name, kept in ((CONFIG, {"format_version": 1}), (TOKENIZER_SCALE, {"patch": 4})):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps(kept))
        assert refusal(folder).startswith(f"{folder / name} lacks a valid ")
        (folder / name).write_text(before)


@pytest.mark.parametrize(
    ("field", "names", "said"),
    [
        ("nestings", "k4-lattice", "'nestings', a list of at most 64 names"),
        ("nestings", ["../there"], "'nestings': '../there' is no folder of up to 100 letters"),
        ("classes", ["flower", 5, "fish"], "'classes': '5' is no name of 1 to 200 printable characters"),
    ],
)
def test_a_list_of_names_that_is_none_is_named(folder: Path, field: str, names: object, said: str) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), field: names}))
    assert refusal(folder).startswith(f"{file} lacks a valid {said}")


def test_a_full_disk_leaves_the_weights_that_stood_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and new modules together would load, and draw nonsense."""
    before = {file: file.read_bytes() for file in (folder / K4.name).iterdir()}
    model = NestAR.from_pretrained(folder / K4.name)
    write = files.write_tensors

    def full(file: Path, tensors: Any) -> None:
        if file.name == "module_2.safetensors":
            raise OSError(28, "No space left on device")
        write(file, tensors)

    monkeypatch.setattr(model_module, "write_tensors", full)
    with pytest.raises(OSError):
        model.save_pretrained(folder / K4.name, record={"steps": 1})
    assert {file: file.read_bytes() for file in (folder / K4.name).iterdir()} == before


def test_a_nesting_for_other_classes_is_refused(folder: Path) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), "classes": ["flower"]}))
    assert refusal(folder) == f"{folder / MODULE_CONFIG} is for 3 classes; the checkpoint has 1."


def test_what_is_embedded_stays_within_its_bounds() -> None:
    sizes = [file.stat().st_size for file in checkpoints.EMBEDDED.rglob("*") if file.is_file()]
    assert max(sizes) <= 15 * 2**20 and sum(sizes) <= 120 * 2**20


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    for present, auto in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert resolve_device("auto").type == auto
    assert resolve_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WeightsError, match="No CUDA device was found"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(WeightsError, match=r"^There is no device 'cuda:2': CUDA devices found are 2\.$"):
        resolve_device("cuda:2")
    for name in ("tpu", "mps", "", "CUDA"):
        with pytest.raises(WeightsError, match=f"^Unknown device '{name}': allowed are auto, cpu and cuda.$"):
            resolve_device(name)


def test_assemble_puts_trained_parts_together(tmp_path: Path) -> None:
    parts = save_checkpoint(tmp_path / "parts")
    folder = tmp_path / "made"
    first = assemble(folder, classes=CLASSES, tokenizer=parts / "tokenizer", nestings=[parts / K4.name])
    assert (first.nestings, first.classes, first.size) == ((K4.name,), CLASSES, SIZE)
    both = assemble(folder, classes=CLASSES, nestings=[parts / K2.name])  # what stands already stays
    assert both.nestings == (K4.name, K2.name)
    same = open_checkpoint(parts).nesting(K2.name).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in both.nesting(K2.name).state_dict().items())
    assert both.tokenizer().channels == CHANNELS


def test_weights_carry_their_own_defaults(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    assert open_checkpoint(folder).defaults == {}
    general = {"solver": "heun", "temperature": 1.15, "schedule": "linear"}
    made = assemble(folder, classes=CLASSES, defaults={"steps": 50, "cfg": 2.5})
    # All of them: general ones of another version would change the pictures.
    assert made.defaults == open_checkpoint(folder).defaults == general | {"steps": 50, "cfg": 2.5}
    assert assemble(folder, classes=CLASSES).defaults == made.defaults  # what stands already stays
    more = assemble(folder, classes=CLASSES, defaults={"steps": 9, "solver": "euler"})
    assert more.defaults == made.defaults | {"steps": 9, "solver": "euler"}
    with pytest.raises(SettingsError, match=r"^steps must be a whole number from 1 to 200, got 0\.$"):
        assemble(folder, classes=CLASSES, defaults={"steps": 0})
    assert open_checkpoint(folder).defaults == more.defaults
    card = prepare(folder, "user/repo").card
    assert "begin with: steps 9, solver euler, temperature 1.15, cfg 2.5, schedule linear." in card


@pytest.mark.parametrize(
    ("defaults", "why"),
    [
        ({"cfg": "much"}, "cfg must be a number from 0 to 20, got 'much'."),
        ({"cfg": float("nan")}, "cfg must be a number from 0 to 20, got nan."),
        ({"cfg": 10**60}, "cfg must be a number from 0 to 20, got a number of more than 38 digits."),
        ({"steps": True}, "steps must be a whole number from 1 to 200, got True."),
        ({"temperature": None}, "temperature must be a number from 0 to 2, got None."),
        ({"k": 4}, "Unknown setting 'k'; allowed are steps, solver, temperature, cfg, schedule."),
        ({"solver": ["euler"]}, "solver must be one of euler, midpoint, heun; got a list."),
        ([50], 'It must be an object, such as {"steps": 50, "solver": "euler"}.'),
    ],
    ids=str,
)
def test_defaults_that_are_none_are_refused(tmp_path: Path, defaults: object, why: str) -> None:
    save_config(tmp_path, [K4])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"defaults": defaults}))
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value) == f"{file} lacks valid 'defaults'. {why}"


def test_assemble_keeps_the_names_of_variants(tmp_path: Path) -> None:
    """Two trainings of one nesting stand side by side; k and order pick the one without variant."""
    parts = save_checkpoint(tmp_path / "parts")
    variant = f"{K4.name}.separate"
    other = small_model(K4)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.save_pretrained(tmp_path / variant)
    (parts / K2.name).rename(parts / "second.run")  # no variant of its nesting
    made = assemble(
        tmp_path / "made",
        classes=CLASSES,
        tokenizer=parts / "tokenizer",
        nestings=[tmp_path / variant, parts / K4.name, parts / "second.run"],
    )
    assert made.nestings == (variant, K4.name, K2.name)
    assert assemble(made.folder, classes=CLASSES).nestings == made.nestings
    pipe = NestARPipeline.from_pretrained(made.folder, device="cpu")
    assert pipe.nestings == {variant: K4, K4.name: K4, K2.name: K2}
    assert all(not value.any() for value in pipe.models[variant].state_dict().values())
    assert any(value.any() for value in pipe.models[K4.name].state_dict().values())
    assert find_nesting(pipe.nestings, 4, "lattice") == K4.name
    assert find_nesting({variant: K4, K2.name: K2}, 4, "lattice") == variant
    with pytest.raises(SettingsError, match=r"weights for k = 2 \(lattice\), k = 4 \(lattice\)\.$"):
        pipe.settings(class_name="fish", k=8)


def test_assemble_refuses_parts_that_do_not_fit(tmp_path: Path) -> None:
    parts = save_checkpoint(tmp_path / "parts")
    with pytest.raises(WeightsError, match="3 classes; the checkpoint has 2"):
        assemble(
            tmp_path / "made", classes=CLASSES[:2], tokenizer=parts / "tokenizer", nestings=[parts / K4.name]
        )
    assert not (tmp_path / "made").exists()
    with pytest.raises(WeightsError, match=r"tokenizer\.json is missing"):
        assemble(tmp_path / "made", classes=CLASSES, nestings=[parts / K4.name])


@pytest.mark.parametrize(
    ("name", "classes", "said"),
    [
        ("k4-lattice.old (1)", CLASSES, r"'nestings': 'k4-lattice\.old \(1\)' is no folder"),
        ("k4-lattice", ("a\nb", *CLASSES[1:]), "'classes': 'a' is no name"),
    ],
)
def test_assemble_writes_nothing_that_could_not_be_opened(
    tmp_path: Path, name: str, classes: tuple[str, ...], said: str
) -> None:
    parts = save_checkpoint(tmp_path / "parts")
    (parts / K4.name).rename(tmp_path / name)
    with pytest.raises(WeightsError, match=f"^The checkpoint would lack a valid {said}"):
        assemble(
            tmp_path / "made", classes=classes, tokenizer=parts / "tokenizer", nestings=[tmp_path / name]
        )
    assert not (tmp_path / "made").exists()


def test_assemble_refuses_two_parts_of_one_name(tmp_path: Path) -> None:
    parts, others = save_checkpoint(tmp_path / "parts"), save_checkpoint(tmp_path / "others")
    both = [parts / K4.name, others / K4.name]
    with pytest.raises(WeightsError, match=r"parts/k4-lattice and .*others/k4-lattice are both called k4"):
        assemble(tmp_path / "made", classes=CLASSES, tokenizer=parts / "tokenizer", nestings=both)
    assert not (tmp_path / "made").exists()


def test_assemble_renames_no_classes(tmp_path: Path) -> None:
    parts = save_checkpoint(tmp_path / "parts")
    small_model(K4).save_pretrained(parts / K4.name, record={"classes": list(CLASSES)})
    for others in (CLASSES[::-1], ("owl", "wren", "kite")):
        with pytest.raises(WeightsError, match="k4-lattice was trained on other classes"):
            assemble(parts, classes=others)
    assert open_checkpoint(parts).classes == CLASSES


def test_what_cannot_be_copied_whole_leaves_what_stood_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, made = save_checkpoint(tmp_path / "parts"), save_checkpoint(tmp_path / "made")
    trained = open_checkpoint(parts).nesting(K4.name)
    with torch.no_grad():
        next(trained.parameters()).add_(1)
    trained.save_pretrained(parts / K4.name)
    before = {file: file.read_bytes() for file in (made / K4.name).iterdir()}
    copy, copied = shutil.copy, []

    def until_full(file: Path, target: Path) -> None:
        if copied:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        copied.append(copy(file, target))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(shutil, "copy", until_full)
        assemble(made, classes=CLASSES, nestings=[parts / K4.name])
    assert copied and before == {file: file.read_bytes() for file in (made / K4.name).iterdir()}
    assert sorted(each.name for each in made.iterdir()) == ["config.json", K2.name, K4.name, "tokenizer"]
    assemble(made, classes=CLASSES, nestings=[parts / K4.name])
    after = {file.name: file.read_bytes() for file in (made / K4.name).iterdir()}
    assert after == {file.name: file.read_bytes() for file in (parts / K4.name).iterdir()}
    assert after != {file.name: content for file, content in before.items()}


def test_a_revision_is_of_a_repository(folder: Path) -> None:
    for source, said in ((None, "the embedded weights have none"), (folder, "the folder .* has none")):
        with pytest.raises(WeightsError, match=f"A revision is of a repository on the Hub; {said}"):
            open_checkpoint(source, "main")


def test_commas_part_sources_and_name_none(folder: Path) -> None:
    assert sources_of("user/repo, other/repo") == ["user/repo", "other/repo"]
    assert sources_of("user/repo,") == sources_of(" ,user/repo,, ") == ["user/repo"]
    assert sources_of(str(folder)) == [str(folder)]
    assert sources_of(",") == [","], "which is refused by its name"


def test_a_borrowed_tokenizer_stays_borrowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = save_checkpoint(tmp_path / "parts")
    made = save_checkpoint(tmp_path / "made", [K4])
    shutil.rmtree(made / "tokenizer")
    place = {"repository": "user/repo", "patch": 4, "scale": 0.5}
    stored = json.loads((made / CONFIG).read_text())
    (made / CONFIG).write_text(json.dumps({**stored, "tokenizer": place}))
    lent = load_tokenizer(parts / "tokenizer")
    monkeypatch.setattr(checkpoints.Checkpoint, "tokenizer", lambda self: lent)
    both = assemble(made, classes=CLASSES, nestings=[parts / K2.name])
    assert both.tokenizer_place == place and both.nestings == (K4.name, K2.name)
    assert not (made / "tokenizer").exists()
    own = assemble(made, classes=CLASSES, tokenizer=parts / "tokenizer")
    assert own.tokenizer_place is None and (made / "tokenizer").exists()


def test_what_the_page_would_refuse_is_not_assembled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = save_checkpoint(tmp_path / "parts")
    monkeypatch.setattr(checkpoints, "MAX_PIXELS", 63 * 64)
    with pytest.raises(WeightsError, match=r"for pictures of 4,096 pixels; at most 4,032 are made"):
        assemble(
            tmp_path / "made", classes=CLASSES, tokenizer=parts / "tokenizer", nestings=[parts / K4.name]
        )
    assert not (tmp_path / "made").exists()


def test_nestings_for_pictures_of_two_sizes_make_no_checkpoint(tmp_path: Path) -> None:
    parts = save_checkpoint(tmp_path / "parts")
    small_model(Nesting.nested(2, 2, 2)).save_pretrained(parts / "small")
    with pytest.raises(WeightsError, match=r"k4-lattice of 64 x 64 and .*small of 32 x 32 pixels do not go"):
        assemble(parts, classes=CLASSES, nestings=[parts / "small"])


def test_a_nesting_stays_with_the_latents_it_was_trained_on(tmp_path: Path) -> None:
    """Another tokenizer of the same shape would decode its tokens to garbage, without any error. One whose
    decoder alone has been trained on fits."""
    parts = save_checkpoint(tmp_path / "parts")
    own = load_tokenizer(parts / "tokenizer").latents_fingerprint
    small_model(K4).save_pretrained(parts / K4.name, record={"latents": own})
    made = assemble(
        tmp_path / "made", classes=CLASSES, tokenizer=parts / "tokenizer", nestings=[parts / K4.name]
    )
    other = small_tokenizer()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_tokenizer(other, tmp_path / "other")
    message = f"trained on latents {own}; the tokenizer of .*other makes "
    with pytest.raises(WeightsError, match=message):
        assemble(made.folder, classes=CLASSES, tokenizer=tmp_path / "other")
    assert made.tokenizer().latents_fingerprint == own, "nothing was copied"

    decoder_on = load_tokenizer(parts / "tokenizer")
    with torch.no_grad():
        next(decoder_on.autoencoder.decoder.parameters()).add_(1)
    save_tokenizer(decoder_on, tmp_path / "on")
    assert assemble(made.folder, classes=CLASSES, tokenizer=tmp_path / "on").tokenizer().fingerprint == (
        decoder_on.fingerprint
    )


def test_a_name_that_is_taken_says_where_it_comes_from() -> None:
    assert free_name("k4-lattice", "user/more@0123456", ["k2-lattice"]) == "k4-lattice"
    taken = ["k4-lattice"]
    for expected in ("k4-lattice.more", "k4-lattice.more-2", "k4-lattice.more-3"):
        taken.append(free_name("k4-lattice", "user/more@0123456", taken))
        assert taken[-1] == expected


@pytest.mark.parametrize("written", ["{}", "{}/", "{}/../more@home"])
def test_a_folder_gives_its_own_name_to_what_is_taken(tmp_path: Path, written: str) -> None:
    folder = tmp_path / "user@lab" / "more@home"
    folder.mkdir(parents=True)
    assert free_name("k4-lattice", written.format(folder), ["k4-lattice"]) == "k4-lattice.more@home"


def test_another_tokenizer_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    """It would decode the tokens to garbage, without any error."""
    place = save_checkpoint(tmp_path / "mine", [K4])
    tokenizer = load_tokenizer(place / "tokenizer")
    record = {"latents": tokenizer.latents_fingerprint}
    small_model(K4).save_pretrained(place / K4.name, record=record)
    NestARPipeline.from_pretrained(place, device="cpu")
    prepare(place, "user/mine")
    described = json.loads((place / "tokenizer/tokenizer.json").read_text())
    (place / "tokenizer/tokenizer.json").write_text(json.dumps({**described, "scale": 0.18215}))
    for opened in (
        lambda: NestARPipeline.from_pretrained(place, device="cpu"),
        lambda: prepare(place, "a/b"),
    ):
        with pytest.raises(WeightsError, match=r"trained on latents \w{8}; the tokenizer of .* makes \w{8}"):
            opened()
