"""Calls that no page of ours would send: of every API name, and of every event of the page.

`NESTAR_EXAMPLES=200 pytest tests/test_hostile_calls.py` sends that many of each; the suite sends fewer.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app
import nestar
from nestar import keepsakes
from nestar.data.tiny_worlds import CLASSES
from nestar.keepsakes import MAX_CHUNKS, MAX_TEXT, PNG_SIGNATURE
from nestar.nesting import Nesting
from nestar.settings import MAX_SEED
from nestar.ui import diversity_desk, lanes
from nestar.ui.assets import launch_options
from tests.small import K2, K4
from tests.test_page_failure import pipeline_of

REPOSITORY = Path(nestar.__file__).resolve().parent.parent
EXAMPLES = int(os.environ.get("NESTAR_EXAMPLES", "10"))
LONGEST_SENTENCE = 400
"""Characters of an error that a visitor may have to read."""

hostile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


class Door:
    """The page on small random weights, called as by somebody who means no good."""

    def __init__(self) -> None:
        self.demo = app.build_page(pipeline_of(K4, K2, Nesting.one_shot(4, 4), apart=True))
        _, self.url, _ = self.demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        self.client = httpx.Client(base_url=f"{self.url}gradio_api/", timeout=60)
        self._sessions = 0

    def listen(self, path: str) -> str:
        """All events of a stream, to its end."""
        heard = ""
        with self.client.stream("GET", path) as answer, suppress(httpx.RemoteProtocolError):
            for text in answer.iter_text():
                heard += text
        return heard

    def post(self, path: str, body: Any) -> httpx.Response:
        """`body` as JSON, with the numbers that JSON has not."""
        headers = {"content-type": "application/json"}
        return self.client.post(path, content=json.dumps(body).encode("utf-8", "replace"), headers=headers)

    def call(self, name: str, values: Any) -> str:
        """A call by name: what is told of it, or why it was not taken."""
        path = f"call/v2/{name}" if isinstance(values, dict) else f"call/{name}"
        answer = self.post(path, values if isinstance(values, dict) else {"data": values})
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
            return answer.text
        return self.listen(f"call/{name}/{answer.json()['event_id']}")

    def event(self, number: int, data: list[Any], event_data: Any) -> str:
        """An event of the page, as a browser sends it."""
        self._sessions += 1
        body = {"data": data, "event_data": event_data, "fn_index": number}
        body["session_hash"] = session = f"mallory{self._sessions}"
        answer = self.post("queue/join", body)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
            return answer.text
        return self.listen(f"queue/data?session_hash={session}")

    def close(self) -> None:
        self.client.close()
        self.demo.close(verbose=False)


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "LIMIT_SECONDS", 0.2)
        patch.setattr(diversity_desk, "PARENTS", 3)  # as few as a measurement takes
        opened = Door()
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Bad input is no fault of the program's: nothing of it may look so in the server's log."""
    caplog.set_level(logging.ERROR, "nestar")
    yield
    faults = [record for record in caplog.get_records("call") if record.name.startswith("nestar")]
    assert not faults, faults[0].exc_text or faults[0].getMessage()


def check_harmless(answer: str) -> None:
    """Nothing that a visitor should not read."""
    for leak in ("Traceback", 'File "', str(REPOSITORY), "site-packages", ".py"):
        assert leak not in answer, answer[:2000]


def check_call(answer: str) -> None:
    """A call by name ended with a result, or with one sentence."""
    check_harmless(answer)
    ended = re.search(r"^event: (complete|error)\ndata: (.*)$", answer, re.MULTILINE)
    if ended is None:  # it was not taken
        assert 0 < len(answer) < LONGEST_SENTENCE, answer[:2000]
        return
    if ended[1] == "error":
        said = json.loads(ended[2])
        sentence = said if isinstance(said, str) else (said or {}).get("error")
        assert sentence and len(sentence) < LONGEST_SENTENCE and "\n" not in sentence, answer[:2000]


def check_event(answer: str) -> None:
    """An event of the page ended with values, one of which may be a sentence."""
    check_harmless(answer)
    messages = [json.loads(line[5:]) for line in answer.splitlines() if line.startswith("data:")]
    if not messages:
        assert 0 < len(answer) < LONGEST_SENTENCE, answer[:2000]
        return
    (completed,) = (each for each in messages if each["msg"] == "process_completed")
    assert completed["success"] or 0 < len(completed["output"]["error"]) < LONGEST_SENTENCE
    for each in messages:
        for value in (each.get("output") or {}).get("data") or []:
            if isinstance(value, dict) and "message" in value:
                assert (
                    0 < len(value["message"]) < LONGEST_SENTENCE
                    and "inside the model" not in value["message"]
                )


# ---- values --------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-(10**40), 10**40),
    st.sampled_from([0, -1, 1, 2, 4, 16, 17, 201, 2**31, 2**53 + 1, MAX_SEED, MAX_SEED + 1, 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([1e-320, -0.0, 0.5, 1.0, 4.0, 1e308]),
)
texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            "fish",
            " FISH ",
            "4",
            "NaN",
            "9" * 5000,
            "x" * 100_000,
            "\0",
            "\u202e",
            "../../etc/passwd",
            "{{7*7}}${7*7}",
            "<script>alert(1)</script>",
            "k4-lattice",
            "k4-lattice.separate",
            "data:image/png;base64,AAAA",
            "http://127.0.0.1:1/",
        ]
    ),
)
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
nested = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
files = st.sampled_from(
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"url": "http://127.0.0.1:1/", "path": "x", "meta": {"_type": "gradio.FileData"}},
        {"__type__": "update", "value": 1},
        [[[[[[[[]]]]]]]],
    ]
)
values = st.one_of(plain, nested, files)

# A value of each parameter that is right and quick; `steps` stays small wherever it is.
RIGHT = {
    "class_name": st.sampled_from(CLASSES),
    "failure": st.just("hot"),
    "k": st.sampled_from([2, 4]),
    "steps": st.just(1),
    "count": st.sampled_from([1, 2]),
    "pictures": st.just(1),
}
# What is answered, and not refused before a value is looked at.
USUAL = {
    "generate": {"steps": 1, "class_name": "fish"},
    "race": {"steps": 1, "class_name": "fish"},
    "failure": {"failure": "hot", "steps": 1, "class_name": "fish"},
    "alignment": {"pictures": 1},
}
NAMES = {
    "generate": ("class_name", "k", "steps", "temperature", "cfg", "seed", "order"),
    "animation": ("class_name", "k", "steps", "temperature", "cfg", "seed", "order"),
    "diversity": ("class_name", "k", "steps", "temperature", "cfg", "seed", "count", "order"),
    "siblings": ("class_name", "k", "steps", "cfg", "parent", "modules", "seed", "count", "order"),
    "temperatures": ("class_name", "k", "steps", "cfg", "seed", "order"),
    "explained": ("class_name", "k", "steps", "temperature", "cfg", "seed", "order"),
    "nearest": ("class_name", "k", "steps", "temperature", "cfg", "seed", "sample", "order"),
    "race": ("class_name", "k", "steps", "temperature", "cfg", "seed"),
    "failure": ("failure", "class_name", "k", "steps", "temperature", "cfg", "seed"),
    "alignment": ("nesting", "pictures"),
    "settings_of": ("picture",),
}


@st.composite
def arguments(draw: st.DrawFn, names: tuple[str, ...]) -> dict[str, Any]:
    """Arguments by name, of which some are wrong."""
    wrong = draw(st.sets(st.sampled_from(names), max_size=3))
    given_ = {name: draw(RIGHT[name]) for name in names if name in RIGHT and name not in wrong}
    given_ |= {name: draw(values) for name in wrong}
    steps = given_.get("steps")
    if isinstance(steps, int | float) and 2 < steps <= 200:  # right, and slow
        given_["steps"] = 2
    if draw(st.integers(0, 9)) == 0:
        given_[draw(st.text(max_size=10))] = draw(values)
    return given_


# ---- the calls -----------------------------------------------------------------------------------


def test_every_name_is_called(door: Door) -> None:
    named = door.client.get("info").json()["named_endpoints"]
    assert {f"/{name}" for name in NAMES} == set(named)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_call_brings_it_ends_well(door: Door, name: str) -> None:
    @hostile
    @given(arguments(NAMES[name]))
    def send(brought: dict[str, Any]) -> None:
        check_call(door.call(name, brought))

    send()
    assert name not in USUAL or "event: complete" in door.call(name, USUAL[name]), "the worker still works"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("brought", [[None] * 40, [{}], [[]] * 3, None, "fish", 7])
def test_arguments_by_place_that_do_not_fit(door: Door, name: str, brought: Any) -> None:
    check_call(door.call(name, brought))


# Functions of the page's own events; on_link has what follows the page's address in place of data.
EVENTS = ("on_generate", "on_picture", "on_link", "on_grid", "on_siblings", "on_sweep", "on_explain")
EVENTS += ("on_nearest", "on_race", "on_lap", "on_provoke", "on_measure", "on_ask", "on_ask_for_rows")
EVENTS += ("on_ask_for_panel", "on_stop", "stop", "leave", "drop")


def events(demo: Any) -> dict[int, str]:
    """The page's own events that the server takes part in: their numbers, and their functions' names."""
    return {
        number: each.name
        for number, each in demo.fns.items()
        if each.api_visibility != "public" and each.fn is not None
    }


# What the page's scripts send by name.
SENT = ("nesting", "sample", "modules", "round", "parent", "mark", "failure", "run", "kept", "call")
SENT += NAMES["diversity"]


@st.composite
def data_of(draw: st.DrawFn, inputs: int) -> tuple[list[Any], Any]:
    """The values and the event's data that a browser would send, near what is right."""
    names = st.sampled_from(SENT)
    some = st.one_of(
        values, st.dictionaries(names, values, max_size=6), st.fixed_dictionaries({"steps": st.just(1)})
    )
    data = [draw(some) for _ in range(inputs)]
    return data, draw(some)


def test_every_event_is_sent(door: Door) -> None:
    assert set(events(door.demo).values()) == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
def test_whatever_an_event_of_the_page_brings_it_ends_well(door: Door, name: str) -> None:
    numbers = [number for number, function in events(door.demo).items() if function == name]
    inputs = max(len(door.demo.fns[number].inputs) for number in numbers)

    @hostile
    @given(st.sampled_from(numbers), data_of(inputs))
    def send(number: int, brought: tuple[list[Any], Any]) -> None:
        check_event(door.event(number, *brought))

    send()


# ---- pictures ------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """A chunk of a PNG, whose length may lie."""
    checksum = zlib.crc32(kind + content)
    return (
        struct.pack(">I", len(content) if length is None else length)
        + kind
        + content
        + struct.pack(">I", checksum)
    )


def png(*chunks: bytes, side: int = 8) -> bytes:
    """A file that begins like a PNG of that side."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return PNG_SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


KEY = keepsakes.KEYWORD.encode() + b"\0"
KEPT = json.dumps(
    {"class_name": "fish", "k": 4, "steps": 2, "version": keepsakes.VERSION, "weights": "small"}
)
BOMB = zlib.compress(b"0" * 10**8, 1)
HOSTILE_PNGS = {
    "nothing": b"",
    "text": b"no picture at all",
    "jpeg": b"\xff\xd8\xff\xe0" + b"\0" * 100,
    "signature alone": PNG_SIGNATURE,
    "cut in a chunk": png(chunk(b"tEXt", KEY + KEPT.encode()))[:60],
    "bomb of pixels": png(side=2**31 - 1),
    "bomb of text": png(chunk(b"zTXt", KEY + b"\0" + BOMB)),
    "bomb of international text": png(chunk(b"iTXt", KEY + b"\x01\0\0\0" + BOMB)),
    "huge text": png(chunk(b"tEXt", KEY + b'{"class_name": "' + b"f" * 4_000_000 + b'"}')),
    "text just too long": png(chunk(b"tEXt", KEY + KEPT.encode().ljust(MAX_TEXT + 1))),
    "many chunks": png(*[chunk(b"tEXt", b"a\0b")] * (MAX_CHUNKS + 1), chunk(b"tEXt", KEY + KEPT.encode())),
    "chunk longer than the file": png(chunk(b"tEXt", KEY + KEPT.encode(), 2**32 - 1)),
    "no json": png(chunk(b"tEXt", KEY + b"{class: fish}")),
    "deep json": png(chunk(b"tEXt", KEY + b"[" * 60_000)),
    "a list": png(chunk(b"tEXt", KEY + b"[1, 2, 3]")),
    "no version": png(chunk(b"tEXt", KEY + b'{"class_name": "fish"}')),
    "another version": png(chunk(b"tEXt", KEY + KEPT.replace('"version": 1', '"version": 99').encode())),
    "other values": png(chunk(b"tEXt", KEY + KEPT.replace("4", '{"k": [4]}').encode())),
    "infinite": png(chunk(b"tEXt", KEY + KEPT.replace("4", "Infinity").encode())),
    "no utf-8": png(chunk(b"tEXt", KEY + b"\xff\xfe\xfd")),
    "another program's": png(chunk(b"tEXt", b"parameters\0fish\nSteps: 20, Sampler: Euler a, Seed: 1")),
    "a workflow": png(chunk(b"tEXt", b"prompt\0" + json.dumps({"3": {"class_type": "KSampler"}}).encode())),
}


@pytest.mark.parametrize("kind", HOSTILE_PNGS)
def test_a_hostile_picture_is_one_sentence(door: Door, kind: str) -> None:
    picture = base64.b64encode(HOSTILE_PNGS[kind]).decode()
    for uri in (picture, f"data:image/png;base64,{picture}"):
        answer = door.call("settings_of", {"picture": uri})
        check_call(answer)
        assert "event: error" in answer
    kept = HOSTILE_PNGS[kind].decode("latin-1")[:MAX_TEXT]
    (restore,) = (number for number, name in events(door.demo).items() if name == "on_picture")
    check_event(door.event(restore, [], {"kept": kept}))


def test_what_is_no_hostile_picture_is_read(door: Door) -> None:
    picture = base64.b64encode(png(chunk(b"tEXt", KEY + KEPT.encode()))).decode()
    answer = door.call("settings_of", {"picture": picture})
    assert "event: complete" in answer and '"class_name": "fish"' in answer


@hostile
@given(st.data())
def test_a_picture_with_flipped_bytes_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(png(chunk(b"tEXt", KEY + KEPT.encode())))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with suppress(nestar.settings.SettingsError):
        keepsakes.read_png(bytes(whole[:cut] if data.draw(st.booleans()) else whole))
