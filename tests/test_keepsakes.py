"""Settings inside PNG files, and animations."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nestar import keepsakes
from nestar.cli import main
from nestar.model import NestAR, fingerprint_of
from nestar.settings import MAX_SEED, SampleSettings, SettingsError
from nestar.ui import kept as kept_module
from nestar.ui.frames import from_uri, to_uri
from nestar.ui.kept import KeptRuns, encode
from tests.small import save_checkpoint

SETTINGS = SampleSettings("hot-air balloon", k=2, steps=7, temperature=0.8, cfg=1.5, seed=MAX_SEED)
KEPT = keepsakes.about(SETTINGS, "embedded")


def png(info: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def with_text(text: str, keyword: str = keepsakes.KEYWORD) -> bytes:
    info = PngInfo()
    info.add_text(keyword, text)
    return png(info)


def with_international_text(text: str, compressed: bool = False) -> bytes:
    info = PngInfo()
    info.add_itxt(keepsakes.KEYWORD, text, lang="en", tkey="settings", zip=compressed)
    return png(info)


def huge_chunk() -> bytes:
    content = keepsakes.KEYWORD.encode() + b"\0" + json.dumps(KEPT).encode().ljust(keepsakes.MAX_TEXT + 1)
    crc = zlib.crc32(b"tEXt" + content)
    chunk = struct.pack(">I4s", len(content), b"tEXt") + content + struct.pack(">I", crc)
    plain = png()
    after_header = len(keepsakes.PNG_SIGNATURE) + 25  # IHDR's length, kind, 13 bytes and check sum
    return plain[:after_header] + chunk + plain[after_header:]


# Files that hold no settings of ours, by what is wrong with them, and a word of the sentence that says so.
BAD_FILES = {
    "no PNG": (b"GIF89a" + bytes(64), "no PNG"),
    "empty": (b"", "no PNG"),
    "cut off": (keepsakes.PNG_SIGNATURE + b"\0\0", "no NestAR settings"),
    "plain": (png(), "no NestAR settings"),
    "another program's": (with_text("a lighthouse, oil on canvas", "parameters"), "no NestAR settings"),
    "no JSON": (with_text("{class_name: flower"), "damaged"),
    "no object": (with_text("[1, 2]"), "damaged"),
    "nested deeply": (with_text("[" * 20_000), "damaged"),
    "another version": (with_text(json.dumps(KEPT | {"version": 2})), "version"),
    "compressed": (with_international_text(json.dumps(KEPT), compressed=True), "damaged"),
    "huge": (huge_chunk(), "damaged"),
}


def test_a_picture_remembers_its_settings() -> None:
    kept = keepsakes.read_png(png(keepsakes.png_info(KEPT)))
    assert kept == KEPT
    assert SampleSettings(**keepsakes.values(kept)) == SETTINGS
    assert (kept["weights"], kept["version"]) == ("embedded", keepsakes.VERSION)


def test_international_text_is_read_as_well() -> None:
    assert keepsakes.read_png(with_international_text(json.dumps(KEPT))) == KEPT


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_file_without_settings_is_one_sentence(fault: str) -> None:
    data, word = BAD_FILES[fault]
    with pytest.raises(SettingsError, match=word) as refused:
        keepsakes.read_png(data)
    assert str(refused.value).endswith(".")


def test_the_command_line_writes_them_too(tmp_path: Path) -> None:
    weights, out = save_checkpoint(tmp_path / "weights"), tmp_path / "fish.png"
    arguments = ["--k", "2", "--steps", "1", "--seed", "5", "--solver", "heun", "--repo", str(weights)]
    assert main(["sample", "--class", "fish", *arguments, "--device", "cpu", "--out", str(out)]) == 0
    expected = SampleSettings("fish", k=2, steps=1, seed=5, solver="heun")
    fingerprint = fingerprint_of(NestAR.from_pretrained(weights / "k2-lattice"))
    assert keepsakes.read_png(out.read_bytes()) == keepsakes.about(expected, weights.name, fingerprint)


@pytest.mark.parametrize(
    ("settings", "stem"),
    [
        (SampleSettings("lighthouse"), "nestar-lighthouse-k4-seed0"),
        (SampleSettings("Hot-air  balloon", k=2, seed=9), "nestar-hot-air-balloon-k2-seed9"),
        (SampleSettings("fish", order="raster"), "nestar-fish-k4-raster-seed0"),
        (SampleSettings("../../灯台"), "nestar-picture-k4-seed0"),
    ],
)
def test_file_names_are_plain(settings: SampleSettings, stem: str) -> None:
    assert keepsakes.file_stem(settings) == stem


def run_value(run: str = "r", dropped: tuple[int, ...] = ()) -> dict:
    """A stage value of two modules: four patches and three, each picture of a colour of its own."""
    frames = []
    for turn in range(7):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (36 * turn, 90, 255 - 36 * turn)).save(buffer, "PNG")
        uri = "" if turn in dropped else to_uri(buffer.getvalue(), "PNG")
        frames.append({"image": uri, "module": 1 + turn // 4})
    modules = [{"number": 1, "patches": [{}] * 4}, {"number": 2, "patches": [{}] * 3}]
    return {"run": run, "name": "nestar-x", "nesting": {"modules": modules}, "frames": frames}


@pytest.mark.parametrize("dropped", [(), (1, 2, 5)])
def test_an_animation_has_every_picture_and_the_whole_time(dropped: tuple[int, ...]) -> None:
    moving = Image.open(io.BytesIO(encode(run_value(dropped=dropped))))
    assert moving.format == "WEBP" and moving.n_frames == 7 - len(dropped)
    assert max(moving.size) == keepsakes.ANIMATION_SIDE
    assert moving.info["loop"] == 0
    durations, colours = [], []
    for place in range(moving.n_frames):
        moving.seek(place)
        moving.load()
        durations.append(moving.info["duration"])
        colours.append(np.asarray(moving.convert("RGB"))[0, 0].tolist())
    per_module = [max(keepsakes.FRAME_MS, keepsakes.MODULE_MS // count) for count in (4, 3)]
    assert sum(durations) == 4 * per_module[0] + 2 * per_module[1] + keepsakes.LAST_MS
    assert durations[-1] == keepsakes.LAST_MS
    shown = [turn for turn in range(7) if turn not in dropped]
    for turn, colour in zip(shown, colours, strict=True):
        assert np.abs(np.array(colour) - (36 * turn, 90, 255 - 36 * turn)).max() < 12


def test_kept_runs_are_bounded_and_the_one_on_load_stays() -> None:
    room = 2 * sum(len(frame["image"]) for frame in run_value("any")["frames"])
    kept = KeptRuns(run_value("on load"), room)
    for visitor in ("a", "b", "c"):
        kept.keep(visitor, run_value(f"first of {visitor}"))
    kept.keep("c", run_value("second of c"))
    assert [kept.find(f"first of {visitor}") is not None for visitor in ("a", "b", "c")] == [
        False,
        True,
        False,
    ]
    assert kept.animation("first of a") is None
    assert all(kept.animation(run)[1] == "nestar-x.webp" for run in ("on load", "second of c"))


def test_an_animation_is_encoded_once_and_does_not_wait_long_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    monkeypatch.setattr(kept_module, "encode", lambda run: made.append(run["run"]) or b"moving")
    monkeypatch.setattr(kept_module, "ANIMATIONS", 2)
    kept = KeptRuns(run_value("on load"))
    for visitor in ("a", "b"):
        kept.keep(visitor, run_value(visitor))
    for run in ("on load", "a", "on load", "b", "on load", "a"):
        assert kept.animation(run) == (b"moving", "nestar-x.webp")
    assert made == ["on load", "a", "b", "a"], "the one that was not asked for longest was given up"
    monkeypatch.setattr(kept_module, "TURN_SECONDS", 0.01)
    with kept._encoding, pytest.raises(TimeoutError):
        kept.animation("a")


def test_a_data_uri_is_read_back() -> None:
    assert from_uri(to_uri(b"abc", "PNG")) == b"abc"
    with pytest.raises(ValueError):
        from_uri("data:image/png;base64,#")
