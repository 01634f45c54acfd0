"""The page in a real browser, and its `/generate` endpoint."""

import base64
import importlib.machinery
import io
import itertools
import json
import os
import pickle
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace

import gradio as gr
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect

import app
from nestar import checkpoints
from nestar.model import WeightsError
from nestar.nesting import Nesting
from nestar.settings import SampleSettings
from nestar.ui import answers
from nestar.ui import frames as frames_module
from nestar.ui import generate as generate_module
from nestar.ui.assets import launch_options
from nestar.ui.runs import on_zero_gpu, streamer
from tests.conftest import PATIENCE_MS, schemes
from tests.small import K4, save_checkpoint, save_tokenizer, small_tokenizer

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
# Slow enough to be caught running on any machine.
MANY_STEPS = 200

RECORD_FRAMES = """() => {
  window.seen = [];
  const picture = document.querySelector(".picture img.over");
  new MutationObserver(() => {
    window.seen.push({alt: picture.alt, time: performance.now()});
  }).observe(picture, {attributes: true, attributeFilter: ["alt"]});
}"""


@pytest.fixture(scope="session")
def nesting(pipeline) -> Nesting:
    return pipeline.plan(4)


@pytest.fixture(scope="session")
def client(page_url) -> Client:
    return Client(page_url, verbose=False)


def decode(data_uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_uri.split(",", 1)[1])))


def set_steps(page, steps: int) -> None:
    page.get_by_label("Steps per patch, as a number").fill(str(steps))


# ---- what stands there on load -------------------------------------------------------------------


def test_a_finished_run_stands_there_on_load(visit, pipeline, nesting):
    page = visit().page
    stage = page.locator(".stage")
    expect(stage).to_have_attribute("data-state", "finished")
    expect(page.locator(".film .ready img")).to_have_count(len(nesting.scales))
    expect(page.locator(".token.known")).to_have_count(nesting.n)
    picture = page.locator(".picture img.over")
    assert picture.get_attribute("src").startswith("data:image/png")
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    expect(page.locator(".masthead")).to_contain_text(pipeline.origin)
    expect(page.locator(".masthead")).to_contain_text(str(pipeline.device))

    # Every class can be chosen by name and picture.
    for name in pipeline.classes:
        expect(page.get_by_role("radio", name=name, exact=True)).to_have_count(1)
    pictures = page.locator(".card img")
    expect(pictures).to_have_count(len(pipeline.classes))
    assert pictures.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")


def test_the_page_is_reached_by_keyboard_and_its_pictures_have_alternatives(visit):
    page = visit().page
    ids = {"generate", "stop", "dial-k", "dial-steps", "dial-temperature", "dial-cfg", "dial-seed"}
    for name in ids:  # what is not there yet when the focus comes by is passed over
        expect(page.locator(f"#{name}")).to_be_visible()
    wanted = ids | {"dice", "play", "scrubber", "speed"}  # the latter by class
    reached = set()
    for _ in range(80):  # two rounds
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(e => e.id || e.getAttribute('class'))(document.activeElement)"))
    assert wanted <= reached
    assert page.locator("img:not([alt])").count() == 0
    nameless = page.locator("button, input").evaluate_all(
        "all => all.filter(e => e.offsetParent && !(e.innerText || e.ariaLabel || e.labels?.length)).length"
    )
    assert nameless == 0


def test_k_without_weights_is_marked_and_says_why(visit, pipeline):
    page = visit().page
    trained = {nesting.k for nesting in pipeline.nestings.values() if nesting.order == "lattice"}
    missing = [k for k in generate_module.K_POSITIONS if k not in trained]
    marked = page.locator(".ticks .missing").all_inner_texts()
    assert marked == [str(k) for k in missing]
    for k in missing[:1]:
        page.locator("#dial-k").fill(str(generate_module.K_POSITIONS.index(k)))
        expect(page.locator("#hint-k")).to_contain_text(f"No weights for k = {k}")


@pytest.mark.parametrize(
    ("link", "k", "hint", "name"),
    [
        ("?k=1&order=raster", "1", "One-shot flow: 1 module, 1 turn instead of 64.", "One-shot flow"),
        ("?k=4&order=blocks", "4", "Cells: 1 module, 4 turns instead of 64.", "Cells (4)"),
    ],
)
def test_the_dials_say_what_a_link_asked_for_without_a_position_for_it(visit, link, k, hint, name):
    """And the turns are those of the method, by its name."""
    visited = visit(at=link)
    page = visited.page
    expect(page.locator(".message")).to_contain_text("The settings in the address stand in the controls")
    expect(page.locator('.dial[data-name="k"] output')).to_have_text(k)
    expect(page.locator("#hint-k")).to_contain_text(hint)
    expect(page.locator(".dials")).not_to_contain_text("No weights")
    assert page.locator("#dial-k").get_attribute("aria-valuetext").endswith(f"k = {k}")
    set_steps(page, 1)
    visited.generate()
    visited.wait_until_rested()
    expect(page.locator('.bar[data-name="nested"] .name')).to_have_text(name)
    before = len(page.locator(".ticks .current").all())
    page.locator("#dial-k").click(position={"x": 3, "y": 10})  # the first position, where no handle stands
    expect(page.locator(".ticks .current")).to_have_count(1)
    assert before == 0 and page.locator('.dial[data-name="k"] output').inner_text() != k


def test_the_open_tab_stands_in_the_address_and_comes_back(visit):
    """Gradio loads the page anew after a lost connection."""
    page = visit(at="?mine=1").page
    page.get_by_role("tab", name="How it works").first.click()
    expect(page.get_by_role("tabpanel", name="How it works")).to_be_visible()
    assert page.url.endswith("/?mine=1#how")
    page.reload()
    expect(page.get_by_role("tab", name="How it works").first).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("tabpanel", name="How it works")).to_be_visible()
    page.get_by_role("tab", name="Generate").first.click()
    expect(page.get_by_role("tabpanel", name="Generate")).to_be_visible()
    assert page.url.endswith("/?mine=1")


def test_the_table_of_nestings_goes_as_menus_do(visit):
    page = visit().page
    table = page.locator(".nestings table")
    for leave in (
        lambda: page.keyboard.press("Escape"),
        lambda: page.locator(".hero").click(),
        lambda: page.get_by_role("tab", name="How it works").click(),
    ):
        page.locator(".nestings summary").click()
        expect(table).to_be_visible()
        leave()
        expect(table).to_be_hidden()


def test_the_table_of_nestings_covers_nothing_on_a_tablet(visit):
    page = visit(viewport={"width": 768, "height": 1024}).page
    page.locator(".nestings summary").click()
    table = page.locator(".nestings table").bounding_box()
    assert table["y"] + table["height"] <= page.locator("#tabs").bounding_box()["y"] + 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 768


def test_the_track_has_room_for_every_turn(visit, pipeline):
    """Token by token, too: a segment of it has a pixel and more."""
    page = visit(viewport={"width": 768, "height": 1024}, at="?k=64&order=raster&steps=1").page
    expect(page.locator(".dial[data-name='k'] output")).to_have_text("64")
    page.locator("#generate").click()
    expect(page.locator(".segments i")).to_have_count(64)
    for width in (768, 1024):
        page.set_viewport_size({"width": width, "height": 1024})
        widths = page.locator(".segments i").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect().width)"
        )
        assert min(widths) >= 3, width


def test_generate_and_stop_say_when_they_are_off(visit, hold):
    page = visit().page
    generate, stop = page.locator("#generate"), page.locator("#stop")
    expect(generate).to_have_attribute("aria-disabled", "false")
    expect(stop).to_have_attribute("aria-disabled", "true")
    hold.after(1)
    page.get_by_label("Seed", exact=True).press("Enter")  # as a press of Generate
    expect(generate).to_have_attribute("aria-disabled", "true")
    expect(stop).to_have_attribute("aria-disabled", "false")
    stop.click()  # nothing else ends a run that is held
    expect(generate).to_have_attribute("aria-disabled", "false")
    expect(stop).to_have_attribute("aria-disabled", "true")


def test_one_run_at_a_time_however_often_generate_is_pressed(visit, hold):
    visited = visit()
    hold.after(1)
    for _ in range(3):
        visited.page.locator("#generate").dispatch_event("click")  # though it says that it is off
    assert hold.begun.acquire(timeout=60)
    hold.released.set()
    visited.page.locator('.stage[data-state="finished"]:not(.playing)').wait_for()
    assert not hold.begun.acquire(timeout=0.5), "another run has begun"


def test_on_a_phone_the_class_of_a_link_is_in_sight(visit):
    page = visit("?class=forest", **PHONE).page
    expect(page.get_by_role("radio", name="forest")).to_be_checked()
    card, strip = (page.locator(each).bounding_box() for each in (".card:has(:checked)", "#classes .cards"))
    assert strip["x"] <= card["x"] and card["x"] + card["width"] <= strip["x"] + strip["width"] + 1


def test_a_field_that_would_be_refused_is_marked(visit):
    page = visit().page
    for label, bad, good in (
        ("Seed", "a lot", "7"),
        ("Seed", "9223372036854775808", "9223372036854775807"),
        ("Steps per patch, as a number", "500", "6"),
        ("Steps per patch, as a number", "", "6"),
        ("Guidance, as a number", "-1", "2.55"),
    ):
        field = page.get_by_label(label, exact=True)
        allowed = page.locator("#dials .dial", has=field).locator(".allowed")
        for value, invalid in ((bad, "true"), (good, "false")):
            field.fill(value)
            expect(field).to_have_attribute("aria-invalid", invalid)
            words = re.compile(r"rom -?\d+ to \d+\.$" if invalid == "true" else "^$")
            expect(allowed).to_contain_text(words)
            assert field.get_attribute("aria-describedby") == allowed.get_attribute("id")
    steps = page.locator("#dial-steps")
    page.get_by_label("Steps per patch, as a number").fill("")
    assert steps.input_value() == "6", "no number leaves the slider where it is"


# ---- a run ---------------------------------------------------------------------------------------


def test_generate_grows_a_picture_frame_by_frame(visit, pipeline, nesting):
    visited = visit()
    page = visited.page
    before = page.locator(".picture img.over").get_attribute("src")
    page.get_by_role("radio", name=pipeline.classes[1], exact=True).check()
    page.locator("#dial-seed").fill("31")
    page.evaluate(RECORD_FRAMES)
    visited.generate()
    visited.wait_until_rested()

    seen = page.evaluate("window.seen")
    unfinished = [frame["alt"] for frame in seen if frame["alt"].startswith("Preview")]
    modules = [int(alt.split("module ")[1].split(",")[0]) for alt in unfinished]
    assert modules == sorted(modules)
    # The last patch of the last module is the finished picture; the ones before it are its previews.
    assert set(modules) == set(range(1, len(nesting.scales) + 1))
    assert len(unfinished) == nesting.evaluations - 1
    assert seen[-1]["alt"] == f"Finished picture: {pipeline.classes[1]}"
    assert seen[-1]["time"] - seen[0]["time"] >= 350 * (len(nesting.scales) - 1)

    after = page.locator(".picture img.over").get_attribute("src")
    assert after.startswith("data:image/png") and after != before
    expect(page.locator(".film .ready img")).to_have_count(len(nesting.scales))
    expect(page.locator(".hero .title")).to_contain_text("seed 31")
    expect(page.locator('[data-name="evaluations"]')).to_have_text(
        f"{nesting.evaluations} of {nesting.evaluations}"
    )
    expect(page.locator('.bar[data-name="plain"] .count')).to_have_text(str(nesting.n))
    expect(page.locator('.bar[data-name="nested"] .name')).to_have_text("NestAR, k = 4")


def test_every_module_is_seen_before_the_next_one_begins(visit, pipeline, nesting, monkeypatch):
    """After each module the sampler waits until the browser shows it: frames that came together at the end
    would never let it go on."""
    seen = [threading.Event() for _ in nesting.scales]
    stream = type(pipeline).stream

    def gated(self, *arguments, cancel=None, **options):
        for frame in stream(self, *arguments, cancel=cancel, **options):
            yield frame
            if frame.module_done and not frame.final:
                assert seen[frame.module - 1].wait(120)

    monkeypatch.setattr(type(pipeline), "stream", gated)
    visited = visit()
    visited.generate()
    picture = visited.page.locator(".picture img.over")
    for number, event in enumerate(seen[:-1], 1):
        expect(picture).to_have_attribute("alt", re.compile(f"^Preview.*module {number},"))
        event.set()
    visited.wait_until_rested()
    expect(picture).to_have_attribute("alt", re.compile("^Finished"))


def test_a_preview_is_called_a_guess_and_the_running_patch_is_marked(visit):
    visited = visit()
    page = visited.page
    set_steps(page, MANY_STEPS)
    visited.generate()
    expect(page.locator(".hero .note")).to_contain_text("the decoder guesses the rest")
    expect(page.locator(".token.running").first).to_be_visible()
    page.locator("#stop").click()
    expect(page.locator(".token.running")).to_have_count(0)


@pytest.fixture
def ended(pipeline, monkeypatch) -> list[bool]:
    """Grows by one entry when a stream returns by itself: whether its cancel flag was set.

    A generator closed at a yield would add nothing, so an entry says that the flag was seen inside a patch.
    """
    entries: list[bool] = []
    stream = type(pipeline).stream

    def watched(self, *arguments, cancel=None, **options):
        yield from stream(self, *arguments, cancel=cancel, **options)
        entries.append(cancel.is_set())

    monkeypatch.setattr(type(pipeline), "stream", watched)
    return entries


def wait_for_entry(entries: list[bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not entries and time.monotonic() < deadline:
        time.sleep(0.02)


def test_stop_keeps_what_stands_and_frees_the_worker(visit, nesting, ended):
    visited = visit()
    page = visited.page
    set_steps(page, MANY_STEPS)
    visited.generate()
    page.locator('.stage[data-state="running"] .token.known').first.wait_for()
    page.locator("#stop").click()
    expect(page.locator(".stage")).to_have_attribute("data-state", "stopped")
    expect(page.locator(".message")).to_contain_text(f"of {nesting.evaluations} turns")
    assert page.locator(".picture img.over").is_visible()
    wait_for_entry(ended)
    assert ended == [True]
    # The worker is free: a short run gets through at once.
    set_steps(page, 1)
    visited.generate()
    visited.wait_until_rested()


def test_generate_right_after_stop_makes_the_picture(visit, nesting):
    """Gradio's Stop takes along a call that is sent before it has been carried out: Generate waits for it."""
    visited = visit()
    page = visited.page
    for _ in range(2):
        set_steps(page, MANY_STEPS)
        visited.generate()
        page.locator('.stage[data-state="running"]').wait_for()
        set_steps(page, 1)
        page.evaluate("() => { for (const id of ['stop', 'generate']) document.getElementById(id).click(); }")
        page.locator('.stage[data-state="finished"]').wait_for()
        expect(page.locator(".message")).to_be_hidden()
        expect(page.locator(".token.known")).to_have_count(nesting.n)


@pytest.mark.parametrize("slow", ["/run/predict", "/cancel"])
def test_generate_right_after_stop_outlasts_a_slow_answer(visit, nesting, hold, slow):
    """Gradio cancels what it finds when the server has answered the Stop, by requests that it waits for, one
    after the other, however long the answers take."""
    answered = threading.Event()

    def late(route):
        hold.hears.set()
        answer = route.fetch()
        time.sleep(0.5)
        route.fulfill(response=answer)
        answered.set()

    visited = visit()
    page = visited.page
    hold.after(2)
    visited.generate()
    page.locator('.stage[data-state="running"]').wait_for()
    assert hold.begun.acquire(timeout=60)
    if slow == "/cancel":
        hold.hears.clear()  # a run that ends by its flag alone leaves Gradio nothing to cancel
    page.route(re.compile(slow), late, times=1)
    page.evaluate("() => { for (const id of ['stop', 'generate']) document.getElementById(id).click(); }")
    deadline = time.monotonic() + 60
    while not answered.is_set():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    page.wait_for_timeout(500)  # in which a run that has begun too early is cancelled
    hold.released.set()
    page.locator('.stage[data-state="finished"]').wait_for()
    expect(page.locator(".token.known")).to_have_count(nesting.n)


def test_a_stop_before_the_server_has_taken_the_run_ends_it(visit, hold):
    """Gradio's own request to cancel it does not say what."""
    visited = visit()
    page = visited.page
    hold.after(2)
    held = []
    page.route(re.compile("/queue/join"), lambda route: held.append(route), times=1)
    visited.generate()
    expect(page.locator(".stage")).to_have_attribute("data-state", "waiting")
    page.locator("#stop").click()
    expect(page.locator(".message")).to_have_text("Stopped before the first patch.")
    page.get_by_label("Seed", exact=True).fill("5")
    visited.generate()
    page.wait_for_timeout(500)  # longer than a Stop takes
    held[0].continue_()
    expect(page).to_have_url(re.compile("seed=5"))  # that of the run which has begun
    hold.released.set()
    visited.wait_until_rested()
    assert "seed=5" in page.url


def test_a_question_that_does_not_get_through_is_no_lost_connection(visit, hold, nesting):
    visited = visit()
    page = visited.page
    hold.after(2)
    visited.generate()
    page.locator('.stage[data-state="running"]').wait_for()
    asked = re.compile("/queue/status")
    page.route(asked, lambda route: route.fulfill(status=502), times=1)
    for _ in range(2):  # the second one is answered
        with page.expect_response(asked):
            pass
    page.wait_for_timeout(300)
    expect(page.locator(".message")).to_be_hidden()
    hold.released.set()
    visited.wait_until_rested()
    expect(page.locator(".token.known")).to_have_count(nesting.n)
    assert all("502" in said for said in visited.complaints)
    visited.complaints.clear()  # the browser's own


def test_closing_the_tab_stops_the_run(visit, ended):
    visited = visit()
    set_steps(visited.page, MANY_STEPS)
    visited.generate()
    visited.page.locator(".token.running").first.wait_for()
    visited.page.close()
    wait_for_entry(ended)
    assert ended == [True]


class Hold:
    """Makes runs stop after some patches and wait there, at no cost, for Stop; released, they go on."""

    def __init__(self, pipeline, monkeypatch):
        self.begun = threading.Semaphore(0)
        self.released = threading.Event()
        self.hears = threading.Event()  # while it is not set, a run goes on though it was stopped
        self.hears.set()
        self._stream, self._monkeypatch, self._kind = type(pipeline).stream, monkeypatch, type(pipeline)

    def after(self, patches: int, error: Exception | None = None) -> None:
        """From now on runs make `patches` patches and wait, or fail with `error`."""

        def held(pipeline, *arguments, cancel=None, **options):
            self.begun.release()
            frames = self._stream(pipeline, *arguments, cancel=cancel, **options)
            yield from itertools.islice(frames, patches)
            if error:
                raise error
            while not ((self.hears.is_set() and cancel.is_set()) or self.released.wait(0.02)):
                pass
            if not cancel.is_set():
                yield from frames

        self._monkeypatch.setattr(self._kind, "stream", held)


@pytest.fixture
def hold(pipeline, monkeypatch) -> Iterator[Hold]:
    holding = Hold(pipeline, monkeypatch)
    yield holding
    holding.released.set()


def expect_idle(page) -> None:
    """Nothing on the page says that a run is under way."""
    expect(page.locator(".stage")).to_have_attribute("data-state", re.compile("stopped|finished"))
    expect(page.locator("#studio")).not_to_have_class(re.compile(r"\bbusy\b"))
    expect(page.locator(".stage")).not_to_have_class(re.compile(r"\bplaying\b"))
    expect(page.locator(".token.running")).to_have_count(0)


def test_stopped_before_the_first_patch_the_page_does_not_say_that_it_works(visit, hold):
    visited = visit()
    page = visited.page
    hold.after(0)
    visited.generate()
    expect(page.locator(".hero .title")).to_have_text("Module 1 is at work")
    expect(page.locator(".token.running")).to_have_count(1)
    page.locator("#stop").click()
    expect(page.locator(".message")).to_have_text("Stopped before the first patch.")
    expect(page.locator(".hero .title")).to_have_text("Stopped")
    expect(page.locator(".hero .note")).to_contain_text("No patch was made")
    expect_idle(page)


# Presses "As it comes" once the run has finished and its playback has not, and forgets the frames until then.
SWITCH_WHEN_ALL_FRAMES_ARE_THERE = """() => {
  const stage = document.querySelector(".stage");
  new MutationObserver((_, observer) => {
    if (stage.dataset.state !== "finished" || !stage.classList.contains("playing")) return;
    observer.disconnect();
    stage.querySelector(".as-it-comes").click();
    setTimeout(() => (window.seen = []));
  }).observe(stage, {attributes: true});
}"""


def test_as_it_comes_leaves_no_frame_to_wait_for_and_replays_keep_the_pace(visit, pipeline, monkeypatch):
    frames = list(pipeline.stream(pipeline.classes[0], steps=1))
    monkeypatch.setattr(type(pipeline), "stream", lambda *_, **__: iter(frames))
    visited = visit()
    page = visited.page

    def seen() -> list[str]:
        """First words of the pictures' descriptions, each picture once."""
        descriptions = [frame["alt"] for frame in page.evaluate("window.seen")]
        return [description.split()[0] for description, _ in itertools.groupby(descriptions)]

    page.evaluate(RECORD_FRAMES)
    page.evaluate(SWITCH_WHEN_ALL_FRAMES_ARE_THERE)
    visited.generate()
    visited.wait_until_rested()
    assert seen() == ["Finished"]
    status = page.locator('.stage [role="status"]')
    expect(status).to_have_text(f"Finished after {len(frames)} turns.")
    page.evaluate("window.seen = []")
    said = "play => (play.click(), document.querySelector('.stage [role=status]').textContent)"
    assert page.locator(".play").evaluate(said) == ""
    visited.wait_until_rested()
    assert seen() == ["Preview"] * (len(frames) - 1) + ["Finished"]
    expect(status).to_have_text(f"Finished after {len(frames)} turns.")


def test_a_run_that_fails_half_way_keeps_what_stands(visit, hold):
    visited = visit()
    page = visited.page
    hold.after(2, RuntimeError("on purpose"))
    visited.generate()
    expect(page.locator(".message")).to_contain_text("The run failed on the server.")
    expect_idle(page)


def test_a_gpu_that_is_full_is_said(visit, pipeline, monkeypatch):
    stream = type(pipeline).stream
    monkeypatch.setattr(pipeline, "device", torch.device("cuda"))
    monkeypatch.setattr(
        type(pipeline),
        "stream",
        lambda own, *names, **values: (
            replace(frame, device="cuda" if frame.evaluations < 3 else "cpu")
            for frame in stream(own, *names, **values)
        ),
    )
    visited = visit()
    visited.page.get_by_label("Steps per patch, as a number").first.fill("1")
    visited.generate()
    visited.wait_until_rested()
    expect(visited.page.locator(".message")).to_contain_text("The GPU has no memory left")
    expect(visited.page.locator('[data-name="seconds"]')).to_contain_text("on cpu")


def test_a_lost_connection_is_said_and_ends_the_run(visit, hold):
    visited = visit()
    page = visited.page
    hold.after(2)
    visited.generate()
    expect(page.locator('[data-name="evaluations"] b')).to_have_text("2")
    page.context.set_offline(True)
    message = page.locator(".message")
    expect(message).to_contain_text("The connection was lost. This page loads anew")
    expect_idle(page)
    expect(page.locator(".token.known")).not_to_have_count(0)
    page.keyboard.press("Escape")
    expect(message).to_be_hidden()
    # Another attempt fails before its first frame, and not for too many visitors.
    visited.generate()
    expect(message).to_contain_text("The connection was lost.")
    expect_idle(page)
    page.context.close()
    visited.complaints.clear()  # the browser's own about the network


def test_a_stop_of_nothing_reaches_no_later_run(visit, pipeline, nesting):
    """The server would carry it out whenever it comes, on whatever run it finds."""
    visited = visit()
    page = visited.page
    # By their number: a page that waits for long asks for its place, by calls of the same address.
    config = page.evaluate("window.gradio_config")
    stop = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "stop")
    stops = {call["id"] for call in config["dependencies"] if [stop, "click"] in call["targets"]}
    sent: list[int] = []
    page.on("request", lambda r: sent.append(r.post_data_json.get("fn_index")) if r.post_data else None)
    page.locator("#stop").click(force=True)  # it says that it is off
    visited.generate()
    visited.wait_until_rested()
    expect(page.locator(".stage")).to_have_attribute("data-state", "finished")
    assert sent and stops and not stops & set(sent), "Stop was sent"


def test_a_full_queue_is_said_and_nothing_waits(browser, pipeline, hold, monkeypatch):
    monkeypatch.setattr(app, "QUEUE_LENGTH", 1)
    demo = app.build_page(pipeline)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    try:
        hold.after(0)
        crowd = Client(url, verbose=False)
        crowd.submit(api_name="/generate")
        assert hold.begun.acquire(timeout=60)
        crowd.submit(api_name="/generate")
        deadline = time.monotonic() + 60
        while not len(demo._queue) and time.monotonic() < deadline:
            time.sleep(0.02)
        page = context.new_page()
        page.goto(url)
        page.locator(".film .ready").first.wait_for()
        page.locator("#generate").click()
        expect(page.locator(".message")).to_contain_text("Too many visitors")
        expect_idle(page)
    finally:
        hold.released.set()
        context.close()
        demo.close(verbose=False)


def test_a_run_keeps_its_name_to_itself_over_restarts_of_the_server():
    names = {answers.refusal("No.")["run"] for _ in range(3)}
    assert len(names) == 3
    # Random, and no count that begins again with the server.
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)


def test_the_scrubber_and_the_film_replay_every_frame(visit, nesting):
    page = visit().page
    scrubber = page.locator(".scrubber")
    pictures = set()
    for evaluations in range(1, nesting.evaluations + 1):
        scrubber.fill(str(evaluations))
        expect(page.locator('[data-name="evaluations"] b')).to_have_text(str(evaluations))
        pictures.add(page.locator(".picture img.over").get_attribute("src"))
    assert len(pictures) == nesting.evaluations
    page.locator(".film button").first.click()
    expect(page.locator(".token.known")).to_have_count(nesting.scales[0].tokens)
    page.locator(".play").click()
    expect(page.locator(".token.known")).to_have_count(nesting.n)


def test_a_refused_setting_is_one_sentence_and_the_picture_stays(visit):
    visited = visit()
    page = visited.page
    before = page.locator(".picture img.over").get_attribute("src")
    for label, value, good, sentence in (
        ("Seed", "a lot", "7", "seed"),
        ("Steps per patch, as a number", "500", "2", "steps"),
        ("Guidance, as a number", "-1", "2", "cfg"),
    ):
        field = page.get_by_label(label, exact=True)
        field.fill(value)
        visited.generate()
        message = page.locator(".message")
        expect(message).to_contain_text(sentence)
        expect(message).to_be_visible()
        assert "Traceback" not in message.inner_text()
        assert page.locator(".picture img.over").get_attribute("src") == before
        field.fill(good)


def test_a_sentence_goes_when_the_visitor_turns_to_the_frames_or_sends_it_away(visit):
    visited = visit()
    page = visited.page
    message = page.locator(".message")
    page.get_by_label("Seed", exact=True).fill("a lot")
    for goes in (
        lambda: page.locator(".scrubber").fill("1"),
        lambda: page.locator(".film button").first.click(),
        lambda: page.locator(".play").click(),
        lambda: message.click(),
        lambda: page.keyboard.press("Escape"),
    ):
        visited.generate()
        expect(message).to_contain_text("seed must be")  # which waiting for the sampler comes before
        goes()
        expect(message).to_be_hidden()


def test_a_link_over_the_picture_can_be_selected_with_the_mouse(visit):
    page = visit().page
    page.evaluate("() => void (navigator.clipboard.writeText = () => Promise.reject(new Error('none')))")
    page.evaluate("() => void (document.execCommand = () => false)")
    page.get_by_role("button", name="Copy link").click()
    message = page.locator(".message")
    expect(message).to_contain_text("Copy this link: http")
    message.click()
    expect(message).to_be_visible()
    page.keyboard.press("Escape")
    expect(message).to_be_hidden()


# ---- how it looks --------------------------------------------------------------------------------


def tabbed_through(page) -> list[dict]:
    """What Tab reaches, in order, with its lower edge and the upper one of the bar of buttons."""
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                  const [e, bar] = [document.activeElement, document.querySelector("#actions")];
                  return {
                    name: e.id || e.getAttribute("class"),
                    studio: Boolean(e.closest("#studio")) && !bar.contains(e),
                    bottom: e.getBoundingClientRect().bottom,
                    bar: bar.getBoundingClientRect().top,
                  };
                }"""
            )
        )
    return reached


def test_on_a_phone_tab_follows_the_eye_and_the_bar_covers_nothing(visit):
    page = visit(**PHONE).page
    assert_inside(page, 390)
    expect(page.locator("#generate")).to_be_in_viewport()
    reached = tabbed_through(page)
    names = [each["name"] for each in reached]
    assert names.index("generate") < names.index("play") < names.index("dial-k") < names.index("dice")
    covered = [each["name"] for each in reached if each["studio"] and each["bottom"] > each["bar"]]
    assert covered == []


def test_on_a_desktop_tab_follows_one_column_then_the_other(visit):
    page = visit().page
    expect(page.locator(".dial output")).to_have_attribute("aria-live", "off")  # k's hint is announced
    if not page.evaluate("CSS.supports('reading-flow', 'source-order')"):
        pytest.skip("this Chromium does not know reading-flow")
    names = [each["name"] for each in tabbed_through(page)]
    assert names.index("generate") < names.index("dial-k") < names.index("dice") < names.index("play")


def test_text_and_controls_have_the_contrast_that_AA_asks_for(visit):
    page = visit().page
    for drawn_late in (".choices", ".keeps button", "#stop"):
        page.locator(drawn_late).first.wait_for(state="attached")
    for scheme in schemes(page):
        assert page.evaluate(CONTRAST) == [], scheme
        edges = page.evaluate(EDGES)
        weak = [edge for edge in edges if min(contrast(edge["edge"], edge[side]) for side in SIDES) < 3]
        assert weak == [], scheme
        # The track of a range input has no element of its own: look at its pixels, at the end without the
        # handle.
        track = Image.open(io.BytesIO(page.locator("#dial-k").screenshot())).convert("RGB")
        right, middle = track.width - 12, track.height // 2
        assert contrast(track.getpixel((right, middle)), track.getpixel((right, 1))) >= 3, scheme


SIDES = ("inside", "outside")
# The edge of each kind of control as [r, g, b], and what is on its two sides.
EDGES = """() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length === 3) return colour;
    }
    return [255, 255, 255];
  };
  const fields = ["#dial-seed", ".dial input[type=number]", ".dice", ".speed", ".choices"];
  return [...fields, ".play", "#stop", ".keeps button"].map((name) => {
    const e = document.querySelector(name);
    const edge = numbers(getComputedStyle(e).borderTopColor);
    return {name, edge, inside: behind(e), outside: behind(e.parentElement)};
  });
}"""


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """WCAG's contrast of two colours of 0 ... 255."""

    def luminance(colour: Sequence[float]) -> float:
        shares = [c / 255 for c in colour]
        red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_in_a_spaces_frame_buttons_and_sentences_stand_where_they_belong(visit):
    """It is as tall as its content: what sticks to the window's foot would lie below everything."""
    page = visit(**PHONE).page
    page.evaluate(
        """() => {
          const frame = Object.assign(document.createElement("iframe"), {src: location.href});
          frame.style.cssText = "width: 390px; height: 4000px; border: 0";
          document.body.replaceChildren(frame);
        }"""
    )
    frame = page.frame_locator("iframe")
    frame.locator(".film .ready").first.wait_for()
    frame.get_by_label("Seed", exact=True).fill("a lot")
    frame.locator("#generate").click()
    message = frame.locator(".message")
    expect(message).to_be_visible()
    said, picture, buttons, classes = (
        frame.locator(each).bounding_box() for each in (".message", ".picture", "#actions", "#classes")
    )
    assert classes["y"] + classes["height"] < buttons["y"] < picture["y"], "between classes and picture"
    assert picture["y"] < said["y"], "over the picture's foot, or below its caption"


def test_a_film_of_many_modules_fits_a_phone(visit, pipeline):
    page = visit(**PHONE).page
    trained = [nesting for nesting in pipeline.nestings.values() if nesting.order == "lattice"]
    deepest = max(trained, key=lambda nesting: nesting.modules)
    page.locator("#dial-k").fill(str(generate_module.K_POSITIONS.index(deepest.k)))
    page.locator("#generate").click()
    expect(page.locator(".film li")).to_have_count(deepest.modules)
    expect(page.locator('.stage[data-state="finished"]')).to_be_visible()
    for width in (390, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert_inside(page, width)
        cut = page.locator(".film :is(.label, .sub)").evaluate_all(
            "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
        )
        assert deepest.modules > 4 and cut == []


def assert_inside(page: BrowserPage, width: int) -> None:
    """Nothing but the strip of classes scrolls sideways; everything else ends inside the screen."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll("#studio *, .masthead *")].filter(
            e => !e.closest(".cards, .visually-hidden") && e.getBoundingClientRect().right > width + 1
        ).map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []


# Text elements whose colour is less than 4.5 : 1 against the nearest opaque background behind them.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (c) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = c.slice(0, 3).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backdrop = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const weak = [];
  for (const e of document.querySelectorAll(".masthead *, #studio *, footer *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest("svg")) continue;
    const pair = [luminance(rgba(getComputedStyle(e).color)), luminance(backdrop(e))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) weak.push([e.outerHTML.slice(0, 80), ratio.toFixed(2)]);
  }
  return weak;
}"""


def test_reduced_motion_is_honoured(visit):
    page = visit(reduced_motion="reduce").page
    assert page.locator(".picture img.over").evaluate("e => getComputedStyle(e).animationName") == "none"


# ---- the endpoint --------------------------------------------------------------------------------


def test_generate_endpoint_streams_the_frames(client, pipeline, nesting):
    job = client.submit(
        class_name=pipeline.classes[0], k=4, steps=3, temperature=0.9, cfg=1.5, seed=11, api_name="/generate"
    )
    received = list(job)
    assert [frame["evaluations"] for frame in received] == list(range(1, nesting.evaluations + 1))
    assert [frame["known"] for frame in received] == [patch.stop for patch in nesting.patches]
    assert [frame["final"] for frame in received] == [False] * (nesting.evaluations - 1) + [True]
    assert {frame["module"] for frame in received} == set(range(1, len(nesting.scales) + 1))
    sizes = {decode(frame["image"]).size for frame in received}
    assert len(sizes) == 1
    assert decode(received[-1]["image"]).format == "PNG"
    seconds = [frame["seconds"] for frame in received]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_generate_endpoint_has_defaults_and_repeats_itself(client):
    pictures = {client.predict(steps=2, api_name="/generate")["image"] for _ in range(2)}
    assert len(pictures) == 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"class_name": "unicorn"}, "unicorn"),
        ({"k": 3}, "k = 3"),
        ({"steps": 0}, "steps"),
        ({"temperature": 9.0}, "temperature"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_generate_endpoint_refuses_with_the_same_sentence(client, pipeline, values, sentence):
    with pytest.raises(AppError, match=sentence) as refused:
        client.predict(**values, api_name="/generate")
    expected = None
    try:
        pipeline.settings(**({"class_name": pipeline.classes[0]} | values))
    except ValueError as error:
        expected = str(error)
    assert expected in str(refused.value)


# ---- without a browser ---------------------------------------------------------------------------


@pytest.fixture
def small_embedded(tmp_path_factory, monkeypatch) -> None:
    """Embedded weights that load in a moment."""
    folder = save_checkpoint(tmp_path_factory.mktemp("embedded"), [K4])
    monkeypatch.setattr(checkpoints, "EMBEDDED", folder)


@pytest.mark.parametrize("damage", ["no config.json", "truncated", "pickle"])
def test_weights_that_cannot_be_loaded_give_the_embedded_ones_and_a_sentence(
    tmp_path, small_embedded, damage
):
    folder = save_checkpoint(tmp_path / "weights", [K4])
    if damage == "no config.json":
        at_fault = folder / "config.json"
        at_fault.unlink()
    else:
        at_fault = next(folder.glob(f"{K4.name}/*.safetensors"))
        content = at_fault.read_bytes()
        at_fault.write_bytes(content[:1000] if damage == "truncated" else pickle.dumps({"weights": 1}))
    notice = notice_of(app.open_page(str(folder), None, "cpu"))
    assert at_fault.name in notice and "embedded weights" in notice
    assert str(tmp_path) not in notice, "a visitor need not know where the weights lie"


def notice_of(demo: gr.Blocks) -> str:
    values = [block.value for block in demo.blocks.values() if isinstance(block, gr.HTML)]
    return next(value for value in values if isinstance(value, str) and 'class="notice"' in value)


@pytest.mark.parametrize("misfit", ["channels", "no nesting", "only one-shot", "unforeseen"])
def test_weights_that_load_but_do_not_fit_give_the_embedded_ones_too(
    tmp_path, small_embedded, monkeypatch, misfit
):
    folder = save_checkpoint(tmp_path / "weights", [Nesting.one_shot(4, 4)] if "only" in misfit else [K4])
    said = "no nesting with k &gt; 1"
    if misfit == "channels":
        save_tokenizer(small_tokenizer(channels=8), folder / "tokenizer")
        said = "is for tokens of 4 channels"
    elif misfit == "no nesting":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"nestings": []}))
    elif misfit == "unforeseen":
        said = "do not work here"
        build = generate_module.build

        def fragile(pipeline, demo):
            if pipeline.origin == str(folder):
                raise ZeroDivisionError
            build(pipeline, demo)

        monkeypatch.setattr(generate_module, "build", fragile)
    notice = notice_of(app.open_page(str(folder), None, "cpu"))
    assert folder.name in notice and said in notice and "embedded weights instead" in notice
    assert str(tmp_path) not in notice


@pytest.mark.parametrize("broken_first", [True, False])
def test_of_several_sources_those_that_work_serve(tmp_path, small_embedded, broken_first):
    sound, broken = (save_checkpoint(tmp_path / name, [K4]) for name in ("sound", "broken"))
    (broken / "config.json").unlink()
    sources = [broken, sound] if broken_first else [sound, broken]
    demo = app.open_page(",".join(map(str, sources)), None, "cpu")
    assert "broken/config.json is missing. broken is left out." in notice_of(demo)
    values = [block.value for block in demo.blocks.values() if isinstance(block, gr.HTML)]
    assert any(isinstance(value, str) and ">sound<" in value for value in values)
    notice = notice_of(app.open_page(f"{broken},{broken}", None, "cpu"))
    assert "broken/config.json is missing. The page runs on the embedded weights instead." in notice


def test_the_embedded_weights_have_none_to_fall_back_on(small_embedded, monkeypatch):
    def fail(pipeline, demo):
        raise WeightsError("Nothing here.")

    monkeypatch.setattr(generate_module, "build", fail)
    with pytest.raises(WeightsError, match="Nothing here"):
        app.open_page(None, None, "cpu")


def test_an_order_is_shown_in_which_something_grows():
    for grows in (Nesting.cells(4, 4, 4), Nesting.nested(4, 4, 2, "raster"), K4):
        both = types.SimpleNamespace(nestings={"one-shot": Nesting.one_shot(4, 4), "grows": grows})
        assert generate_module.shown_order(both) == grows.order
        assert [each.k for each, has_weights in generate_module.k_plans(both) if has_weights] == [grows.k]


def test_a_sound_folder_is_named_as_the_origin(tmp_path):
    folder = save_checkpoint(tmp_path / "weights", [K4])
    demo = app.open_page(str(folder), None, "cpu")
    values = [block.value for block in demo.blocks.values() if isinstance(block, gr.HTML)]
    assert any(isinstance(value, str) and f">{folder.name}<" in value for value in values)
    assert not any(str(folder) in str(value) for value in values)
    assert not any(isinstance(value, str) and 'class="notice"' in value for value in values)


def test_class_names_from_foreign_weights_bring_no_code():
    cards = generate_module.class_cards(("<b>`${alert(1)}` {{this}}",))
    for active in ("<b>", "${", "{{", "`"):
        assert active not in cards


def test_on_zerogpu_the_stream_runs_inside_spaces_gpu_and_carries_no_flag(monkeypatch):
    entered = []

    class Pipeline:
        def stream(self, class_name, *, cancel, **values):
            yield class_name, values["k"], cancel

    def fake_gpu(function):
        def on_gpu(*arguments):
            entered.append(arguments)
            return function(*arguments)

        return on_gpu

    spaces = types.ModuleType("spaces")
    spaces.__spec__ = importlib.machinery.ModuleSpec("spaces", None)
    spaces.GPU = fake_gpu
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    settings = SampleSettings("flower", k=2)
    assert list(streamer(Pipeline())(settings, threading.Event())) == [("flower", 2, None)]
    assert entered == [(settings,)]
    assert on_zero_gpu()
    spaces.GPU = lambda function: function  # as on every other Space
    assert not on_zero_gpu()
    assert list(streamer(Pipeline())(settings, flag := threading.Event())) == [("flower", 2, flag)]


@pytest.mark.parametrize("lent", [True, False])
def test_where_a_gpu_is_lent_a_call_at_a_time_the_main_thread_loads(lent, monkeypatch):
    """What stands for the GPU between calls does so there alone."""
    monkeypatch.setattr(app, "on_zero_gpu", lambda: lent)
    monkeypatch.setattr(app, "_opened", lambda *_: threading.current_thread())
    assert (app.open_page(None, None, "cpu") is threading.main_thread()) == lent


def test_an_exit_waits_for_no_weights_on_their_way(monkeypatch):
    """A platform gives ten seconds."""
    go, left = threading.Event(), []
    monkeypatch.setattr(app, "_opened", lambda *_: go.wait(60))
    monkeypatch.setattr(app.os, "_exit", lambda status: (left.append(status), sys.exit(status)))
    monkeypatch.setattr(sys, "argv", ["app.py"])
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with pytest.raises(SystemExit):
            app.main()
    finally:
        signal.signal(signal.SIGTERM, before)
        go.set()
    assert left == [0]


def test_thinning_keeps_the_counts_and_the_ends_of_modules():
    frames = [
        {"image": "x" * 100, "module_done": index % 16 == 15, "evaluations": index + 1, "final": index == 63}
        for index in range(64)
    ]
    frames[-1]["image"] = "x" * 5000  # a finished picture alone takes no preview's room
    frames_module.thin(frames, limit=2000)
    assert 1000 < sum(len(frame["image"]) for frame in frames[:-1]) <= 2000
    assert [frame["evaluations"] for frame in frames] == list(range(1, 65))
    assert frames[0]["image"] and all(frame["image"] for frame in frames if frame["module_done"])
