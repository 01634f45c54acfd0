"""Training on pictures of one's own: what a folder gives, and from there to a served checkpoint."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from nestar.cli import main
from nestar.data import image_folder, pools
from nestar.data.image_folder import HELD_OUT_EVERY, open_folder
from nestar.images import to_bytes
from nestar.pipeline import NestARPipeline
from nestar.settings import SettingsError
from nestar.training.nesting import LatentPools
from tests.small import save_tokenizer, small_tokenizer

HALVES = np.concatenate([np.zeros((40, 20, 3)), np.full((40, 20, 3), 255)], axis=1).astype(np.uint8)


def picture(file: Path, array: np.ndarray = HALVES) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five pictures and of three, of several shapes."""
    rng = np.random.default_rng(0)
    for name, count in (("owl", 5), ("wren", 3)):
        for number in range(count):
            shape = (90 + 10 * number, 70, 3)
            picture(tmp_path / "birds" / name / f"{number}.png", rng.integers(0, 255, shape, dtype=np.uint8))
    (tmp_path / "birds" / "notes").mkdir()
    (tmp_path / "birds" / "notes" / "read.txt").write_text("no picture")
    return tmp_path / "birds"


def test_a_folder_a_class_and_some_held_out(root: Path) -> None:
    train, held = open_folder(root)
    assert train.classes == held.classes == ("owl", "wren")
    assert train.class_ids_N.tolist() == [0] * 4 + [1] * 2
    assert held.class_ids_N.tolist() == [0, 1]
    assert not set(train.files) & set(held.files)


def test_one_picture_in_many_is_held_out(tmp_path: Path) -> None:
    for number in range(2 * HELD_OUT_EVERY + 1):
        picture(tmp_path / "owl" / f"{number:03}.png", HALVES[:2, :2])
    train, held = open_folder(tmp_path)
    assert (len(train), len(held)) == (2 * HELD_OUT_EVERY - 1, 2)


def test_train_and_val_as_imagenet_has_them(tmp_path: Path) -> None:
    for part, name in (("train", "n01440764"), ("train", "n02099601"), ("val", "n02099601")):
        picture(tmp_path / part / name / "a.jpeg")
    train, held = open_folder(tmp_path)
    assert train.classes == ("tench", "golden retriever"), "synsets go by their names"
    assert (len(train), held.class_ids_N.tolist()) == (2, [1])
    picture(tmp_path / "val" / "n01443537" / "a.jpeg")
    with pytest.raises(SettingsError, match=r"val has class 'n01443537', which .*train has not"):
        open_folder(tmp_path)


def test_train_alone_holds_the_classes_unless_it_is_one(tmp_path: Path) -> None:
    for name in ("owl", "wren"):
        for number in (1, 2):
            picture(tmp_path / "split" / "train" / name / f"{number}.png")
            picture(tmp_path / "vehicles" / ("train" if name == "owl" else "tram") / f"{number}.png")
    train, held = open_folder(tmp_path / "split")
    assert (train.classes, len(train), len(held)) == (("owl", "wren"), 2, 2)
    assert open_folder(tmp_path / "vehicles")[0].classes == ("train", "tram")


def test_a_picture_is_the_square_in_its_middle_and_its_mirror(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), dtype=np.uint8)
    wide[:, 40:80] = HALVES  # black | black, white | black
    picture(tmp_path / "a" / "1.png", wide)
    picture(tmp_path / "a" / "2.png", wide)
    train, _ = open_folder(tmp_path)
    plain, mirrored = train.batch([0, 0], 20, flipped=[False, True])
    assert plain.shape == (3, 20, 20)
    assert plain[:, :, :8].max() < -0.9 and plain[:, :, 12:].min() > 0.9
    assert torch.equal(mirrored, plain.flip(-1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "there is no folder .*birds"),
        (lambda root: root.mkdir(), "has no folder of pictures: it takes one per class"),
        (lambda root: picture(root / "owl" / "1.png"), "Class 'owl' in .* has one picture"),
        (
            lambda root: [picture(root / "owl" / name) for name in ("1.png", "._2.png", ".thumbnails/1.png")],
            "Class 'owl' in .* has one picture",  # the others are a system's own
        ),
        (
            lambda root: [write(root / "owl" / f"{number}.HEIC", b"") for number in range(3)],
            r"owl has no pictures but \.heic, which are not read: allowed are \.jpg",
        ),
        (
            lambda root: [picture(root / "night\u00a0owl" / f"{number}.png") for number in range(2)],
            r"The folders make no classes: 'classes': .* is no name of 1 to \d+ printable characters\.$",
        ),
    ],
)
def test_a_folder_that_will_not_do_is_one_sentence(tmp_path: Path, make: object, said: str) -> None:
    make(tmp_path / "birds")
    with pytest.raises(SettingsError, match=said):
        open_folder(tmp_path / "birds")


@pytest.mark.parametrize(
    "damage", [None, SyntaxError("broken PNG file"), OSError("truncated"), RuntimeError("AVIF")]
)
def test_a_file_that_is_no_picture_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: Exception | None
) -> None:
    (root / "owl" / "0.png").write_text("nothing to see")
    train, _ = open_folder(root)
    if damage is not None:  # as Pillow says it of some

        def fails(*_: object) -> None:
            raise damage

        monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(SettingsError, match=r"owl/0\.png cannot be read as a picture"):
        train.batch([0], 16)


def test_all_that_are_no_pictures_are_named_before_any_is_encoded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        write(root / "owl" / f"{number}.png", b"nothing to see")
    write(root / "owl" / "3.tiff", b"")
    picture(root / "wren" / "9.tiff", np.zeros((16, 16), dtype=np.float32))  # the last of its class: held out
    for folder in open_folder(root):
        with pytest.raises(SettingsError, match=r"cannot be read as pictures of 8 or 16 bits a channel\.$"):
            folder.check()
    with pytest.raises(SettingsError) as refused:
        LatentPools.of_folder(*open_folder(root), 64, small_tokenizer(), tmp_path / "cache")
    assert [
        str(root / f"owl/{name}") in str(refused.value) for name in ("0.png", "1.png", "2.png", "3.tiff")
    ] == [
        False,
        True,
        True,
        True,
    ]
    monkeypatch.setattr(image_folder, "NAMED", 1)
    with pytest.raises(SettingsError, match=r"owl/1\.png and 2 more cannot be read"):
        open_folder(root)[0].check()
    assert not (tmp_path / "cache").exists()


def test_what_is_encoded_is_not_opened_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = small_tokenizer()
    LatentPools.of_folder(*open_folder(root), 64, tokenizer, tmp_path / "cache")
    monkeypatch.setattr(image_folder, "_opens", lambda file: False)
    LatentPools.of_folder(*open_folder(root), 64, tokenizer, tmp_path / "cache")
    next((tmp_path / "cache").rglob("*.safetensors")).unlink()
    with pytest.raises(SettingsError, match="cannot be read as pictures"):
        LatentPools.of_folder(*open_folder(root), 64, tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("low", [0, 20_000])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, low: int) -> None:
    """As microscopes and X-rays have them."""
    ramp = np.linspace(low, 65_535, 256).astype(np.uint16).reshape(16, 16)
    for name in ("a", "b"):
        picture(tmp_path / "owl" / f"{name}.png", ramp)
    grey = to_bytes(open_folder(tmp_path)[0].batch([0], 16))[0]
    assert (grey.numpy() == ramp // 257).all()


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    hidden = np.zeros((16, 16, 4), dtype=np.uint8)  # black, and not to be seen
    hidden[:, 8:, 3] = 255
    for name in ("a", "b"):
        picture(tmp_path / "owl" / f"{name}.png", hidden)
    images = open_folder(tmp_path)[0].batch([0], 16)
    assert (images[..., :8] == 1).all() and (images[..., 8:] == -1).all()


def test_numbers_of_no_known_range_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "owl" / f"{name}.tiff", np.zeros((16, 16), dtype=np.float32))
    with pytest.raises(SettingsError, match=r"a\.tiff cannot be read as a picture \(neither 8 nor 16 bits"):
        open_folder(tmp_path)[0].batch([0], 16)


def test_a_tokenizer_that_folds_nothing_takes_fewer_pictures_at_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first convolutions run at full resolution; the latents are the same."""
    taken: list[int] = []
    tokenizer = small_tokenizer()
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda given: (taken.append(len(given)), encode(given))[1])
    train, held = open_folder(root)
    together = LatentPools.of_folder(train, held, 64, tokenizer, tmp_path / "together").latents_NChw
    monkeypatch.setattr(pools, "PLACES_AT_ONCE", 3 * (64 // tokenizer.patch) ** 2)
    apart = LatentPools.of_folder(train, held, 64, tokenizer, tmp_path / "apart").latents_NChw
    assert taken == [12, 2, 3, 3, 3, 3, 2]
    every = torch.arange(12)
    assert torch.allclose(together[every].float(), apart[every].float(), atol=0.05)


def test_latents_are_encoded_once_with_mirror_images_behind(root: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    train, held = open_folder(root)
    pools = LatentPools.of_folder(train, held, 64, tokenizer, tmp_path / "cache")
    assert pools.class_ids_N.tolist() == ([0] * 4 + [1] * 2) * 2
    assert len(pools.latents_NChw) == 12 and len(pools.held_latents_NChw) == 2
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = tokenizer.encode(train.batch([1, 1], 64, flipped=[False, True]))
    assert torch.allclose(pools.latents_NChw[torch.tensor([1, 7])].float(), expected, atol=0.05)
    picture(root / "owl" / "0.png")  # another picture: another pool
    before = len(list((tmp_path / "cache").iterdir()))
    LatentPools.of_folder(*open_folder(root), 64, tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == before + 1, "the held-out pool is the same"


def test_another_picture_in_a_file_of_equal_size_makes_another_pool(tmp_path: Path) -> None:
    """As files have that are not packed."""
    for name in ("a.bmp", "b.bmp", "c.png"):
        picture(tmp_path / "owl" / name)
    file = tmp_path / "owl" / "a.bmp"
    before, size = open_folder(tmp_path)[0].fingerprint, file.stat().st_size
    with Image.open(file) as image:
        turned = ImageOps.invert(image.convert("RGB"))
    turned.save(file)
    assert file.stat().st_size == size and open_folder(tmp_path)[0].fingerprint != before


def test_a_class_that_only_train_gains_makes_another_pool_of_the_held_out(tmp_path: Path) -> None:
    """The same files then have other class ids."""
    for part in ("train", "val"):
        picture(tmp_path / part / "wren" / "a.png")
    before = open_folder(tmp_path)[1]
    picture(tmp_path / "train" / "owl" / "a.png")
    after = open_folder(tmp_path)[1]
    assert (before.files, before.fingerprint) != (after.files, after.fingerprint)
    assert before.files == after.files


def test_from_a_folder_to_a_checkpoint_that_knows_its_classes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tokenizer(small_tokenizer(), tmp_path / "tokenizer")
    train = ["train", "nesting", "--preset", "smoke", "--data", str(root), "--tokenizer", "tokenizer"]
    (root / "owl" / "6.heic").touch()
    assert main([*train, "--steps", "2", "--device", "cpu", "--folder", "run"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(
        "6 pictures of 2 classes at 64 x 64 pixels, and as many mirrored; 2 held out; not read: 1 .heic.\n"
    )
    assert "standard deviation is" in said, "nobody has set this tokenizer's scale"
    record = json.loads((tmp_path / "run" / "k4-lattice" / "config.json").read_text())["training"]
    assert record["classes"] == ["owl", "wren"] and record["config"]["pool"] == 12
    assert record["pictures_before"] == 0, "none of Tiny Worlds' stream, which is what this counts"
    assert main(["assemble", "mine", "--tokenizer", "tokenizer", "--nesting", "run/k4-lattice"]) == 0
    pipe = NestARPipeline.from_pretrained(tmp_path / "mine", device="cpu")
    assert pipe.classes == ("owl", "wren")
    assert pipe("wren", steps=1).image.size == (64, 64)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--modules", "1"], "Some modules are trained beside others that stay: --init names their weights."),
        (["--seed", "7"], "run holds a run with seed 0; now asked for: seed 7."),
    ],
)
def test_what_is_refused_is_refused_before_pictures_are_encoded(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tokenizer(small_tokenizer(), tmp_path / "tokenizer")
    train = ["train", "nesting", "--preset", "smoke", "--data", str(root), "--tokenizer", "tokenizer"]
    train += ["--steps", "1", "--device", "cpu", "--folder", "run"]
    if "--seed" in flags:
        assert main(train) == 0
    assert main([*train, *flags, "--cache", "elsewhere"]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("elsewhere").exists()


def test_weights_of_other_classes_are_refused_before_pictures_are_encoded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tokenizer(small_tokenizer(), tmp_path / "tokenizer")
    train = ["train", "nesting", "--preset", "smoke", "--data", str(root), "--tokenizer", "tokenizer"]
    train += ["--steps", "1", "--device", "cpu"]
    assert main([*train, "--folder", "first"]) == 0
    config = Path("first/k4-lattice/config.json")
    stored = json.loads(config.read_text())
    stored["training"]["classes"][0] = "another"
    config.write_text(json.dumps(stored))
    train += ["--modules", "2", "--init", "first/k4-lattice", "--folder", "second", "--cache", "elsewhere"]
    assert main(train) == 2
    assert "--init was trained on other classes" in capsys.readouterr().err
    assert not Path("elsewhere").exists()


def test_a_telephones_picture_stands_upright(tmp_path: Path) -> None:
    """Its file lies on its side and says so."""
    upright = Image.new("RGB", (16, 16), "white")
    upright.paste("black", (0, 0, 16, 8))  # the sky is dark
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    (tmp_path / "owl").mkdir()
    for name in ("a", "b"):
        upright.rotate(90).save(tmp_path / "owl" / f"{name}.png", exif=turned)
    train, _ = open_folder(tmp_path)
    images = train.batch([0], 16)
    assert images[0, :, :6].mean() < -0.9 and images[0, :, 10:].mean() > 0.9


@pytest.mark.parametrize("ending", ["png", "tiff"])  # Pillow turns the latter itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_pillow_would_turn_it(tmp_path: Path, orientation: int, ending: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    note = Image.Exif()
    note[0x0112] = orientation
    for name in ("owl/a", "owl/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"{name}.{ending}", exif=note)
    with Image.open(tmp_path / f"owl/a.{ending}") as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    train, _ = open_folder(tmp_path)
    assert (to_bytes(train.batch([0], 16))[0].permute(1, 2, 0).numpy() == upright).all()


def test_odd_notes_of_a_camera_do_not_matter(tmp_path: Path) -> None:
    """Its unit of resolution is a number too large for the field; Pillow fails to write that anew."""
    entries = ((0x0112, 3, 6), (0x0128, 4, 70_000))
    note = b"II*\0" + struct.pack("<IH", 8, len(entries))
    note += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4)
    upright = Image.new("RGB", (16, 16), "white")
    upright.paste("black", (0, 0, 16, 8))
    (tmp_path / "owl").mkdir()
    for name in ("a", "b"):
        upright.rotate(90).save(tmp_path / "owl" / f"{name}.png", exif=b"Exif\0\0" + note)
    with Image.open(tmp_path / "owl/a.png") as opened, pytest.raises(struct.error):
        ImageOps.exif_transpose(opened)
    images = open_folder(tmp_path)[0].batch([0], 16)
    assert images[0, :, :6].mean() < -0.9 and images[0, :, 10:].mean() > 0.9


def test_a_preset_of_other_classes_asks_for_its_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nesting", "--preset", "imagenet256-s-k4", "--steps", "1", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == ("nestar: This preset is for 1,000 classes of pictures: give --data.\n")
