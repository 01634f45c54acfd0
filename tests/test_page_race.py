"""The Race tab: whose turn it is, what the clocks count, slices, and the tab in a real browser."""

import math
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace

import gradio as gr
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect

import app
from nestar import keepsakes
from nestar.engine import Engine
from nestar.frames import Frame
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import SOLVER_CALLS, SampleSettings, SettingsError
from nestar.ui import lanes
from nestar.ui import race as race_module
from nestar.ui.frames import from_uri
from nestar.ui.lanes import Allowance, Entrant, Lane, PausedRaces, Race, Starter, tokens_through
from tests.conftest import schemes, served, tab_visitors
from tests.small import CLASSES, K2, K4, small_model, small_tokenizer
from tests.test_page import CONTRAST, PHONE

AR, CELLS, ONE = Nesting.autoregressive(4, 4), Nesting.cells(4, 4, 4), Nesting.one_shot(4, 4)
FAMILY = (ONE, CELLS, K4, AR, K2)


def pipeline_of(*nestings: Nesting, **variants: Nesting) -> NestARPipeline:
    """Random weights for these nestings; `variants` by the name of their folder."""
    models = {nesting.name: small_model(nesting) for nesting in nestings}
    models |= {name: small_model(nesting) for name, nesting in variants.items()}
    device = torch.device("cpu")
    return NestARPipeline(models, small_tokenizer(), classes=CLASSES, origin="small", device=device)


@pytest.fixture(scope="module")
def family() -> NestARPipeline:
    pipeline = pipeline_of(*FAMILY)
    for model in pipeline.models.values():
        model.record = {"images_seen": 9000 if model.config.nesting.kind == "nested" else 5000}
    return pipeline


# ---- who runs --------------------------------------------------------------------------------------


def test_lanes_are_one_of_each_kind_and_nestar_with_every_k(family):
    found = lanes.entrants(family)
    assert list(found) == ["nested", "autoregressive", "cells", "one-shot"]
    assert [entrant.nesting.k for entrant in found["nested"]] == [2, 4]
    for own in found.values():
        for entrant in own:
            stored = sum(p.numel() for p in family.models[entrant.weights].parameters())
            assert entrant.parameters == stored
    starter = Starter(family)
    assert [entrant.weights for entrant in starter.field(2)] == [
        "k2-lattice",
        "ar-raster",
        "cells4-blocks",
        "one-shot",
    ]
    with pytest.raises(SettingsError, match="k = 8"):
        starter.field(8)


def test_without_a_second_kind_there_is_no_race():
    assert not lanes.can_race(pipeline_of(K4, K2))
    assert not lanes.can_race(pipeline_of(K4, **{"k4-lattice.separate": K4}))
    assert lanes.can_race(pipeline_of(K4, ONE))
    tabs = [block.label for block in app.build_page(pipeline_of(K4)).blocks.values() if type(block) is gr.Tab]
    assert "Race" not in tabs and "When it fails" in tabs


def test_weights_that_saw_as_many_images_race_in_place_of_those_that_saw_more():
    together = f"{K4.name}.together"
    pipeline = pipeline_of(K4, K2, ONE, **{together: K4})
    found = lanes.entrants(pipeline)
    assert [entrant.weights for entrant in found["nested"]] == [K2.name, together]
    race = Starter(pipeline).race(k=4, class_name="fish", steps=1)
    assert [lane.entrant.weights for lane in race.lanes] == [together, ONE.name]
    race.close()


@pytest.mark.parametrize("nesting", [*FAMILY, Nesting.nested(3, 3, 2), Nesting.nested(4, 4, 3)])
def test_tokens_are_those_that_enter_networks(nesting, monkeypatch):
    entered = []
    for name in ("velocity", "remember"):
        method = getattr(Engine, name)

        def counted(self, x_BNC, *others, method=method):
            entered.append(x_BNC.shape[1])
            return method(self, x_BNC, *others)

        monkeypatch.setattr(Engine, name, counted)
    pipeline = pipeline_of(nesting)
    settings = pipeline.settings(class_name="fish", steps=3, solver="heun", nesting=nesting.name)
    for patches, _ in enumerate(pipeline.stream(**vars(settings)), 1):
        assert sum(entered) == tokens_through(nesting, patches, settings)
    calls = 2 * settings.steps
    assert sum(entered) == nesting.n * calls + nesting.tokens_processed - nesting.n


# ---- whose turn it is, on a clock that the test turns ------------------------------------------------


class Clock:
    """Stands for the `time` module in `lanes`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(lanes, "time", turned)
    return turned


def frame_of(nesting: Nesting, made: int, seconds: float, decoding: float) -> Frame:
    patch = nesting.patches[made - 1]
    return Frame(
        images=(Image.new("RGB", (8, 8)),),
        module=patch.module,
        modules=nesting.modules,
        patch=patch.index,
        tokens=(),
        known=patch.stop,
        n=nesting.n,
        evaluations=made,
        function_evaluations=made,
        seconds=seconds,
        decoding=decoding,
        module_done=False,
        final=patch.stop == nesting.n,
        norms=((),),
        batch=1,
        device="cpu",
    )


class Track:
    """A race of made-up lanes: each patch takes `cost` seconds in `steps` steps, and 1 s to decode."""

    def __init__(self, clock: Clock, costs: dict[Nesting, float], together: bool = True, steps: int = 4):
        self.clock, self.steps, self.order = clock, steps, []
        self.allowance = Allowance()
        settings = SampleSettings("fish", steps=steps)
        own = [Lane(Entrant(n.name, n, 1000), settings, self._stream(n, cost)) for n, cost in costs.items()]
        self.race = Race(own, self.allowance, "cpu", together)
        self.lanes = {lane.entrant.weights: lane for lane in own}
        self.closed = []

    def _stream(self, nesting: Nesting, cost: float) -> Iterator[Frame]:
        try:
            for made in range(1, nesting.evaluations + 1):
                for _ in range(self.steps):
                    if self.allowance.is_set():
                        return
                    self.clock.now += cost / self.steps
                self.clock.now += 1
                self.order.append(nesting.name)
                yield frame_of(nesting, made, made * (cost + 1), made * 1.0)
        finally:
            self.closed.append(nesting.name)

    def go(self, seconds: float = math.inf, call: threading.Event | None = None) -> int:
        """Values that a slice of the race sends."""
        return sum(1 for _ in self.race.go(call or threading.Event(), seconds))


def test_next_is_the_lane_with_least_on_its_clock_and_decoding_is_off_it(clock, monkeypatch):
    monkeypatch.setattr(lanes, "LIMIT_SECONDS", 1000.0)
    track = Track(clock, {ONE: 5.0, CELLS: 2.0, K4: 1.0})
    track.go()
    assert [lane.state for lane in track.race.lanes] == ["finished"] * 3
    assert [lane.seconds for lane in track.race.lanes] == [5.0, 8.0, 7.0]
    # Clocks before each patch, the lane in the order above where two are equal.
    k4, cells = K4.name, CELLS.name
    assert track.order == [ONE.name, cells, k4, k4, cells, k4, k4, cells, k4, k4, cells, k4]
    assert track.race.spent == 5 + 8 + 7 + len(track.order)


def test_one_after_another_where_lanes_cannot_take_turns(clock, monkeypatch):
    monkeypatch.setattr(lanes, "LIMIT_SECONDS", 1000.0)
    track = Track(clock, {CELLS: 2.0, K4: 1.0}, together=False)
    track.go()
    assert track.order == [CELLS.name] * 4 + [K4.name] * 7


def test_a_slice_ends_with_its_patch_and_the_next_goes_on(clock):
    track = Track(clock, {ONE: 1.0, CELLS: 1.0})
    assert track.go(3.0) == 2 and track.race.spent == 4.0
    assert [lane.state for lane in track.race.lanes] == ["finished", "running"]
    clock.now += 500  # waiting for others counts for nobody
    assert track.go(3.0) == 2
    assert track.lanes[CELLS.name].seconds == 3.0 and track.race.to_json()["state"] == "running"
    track.go(3.0)
    assert track.race.to_json()["state"] == "finished"


def test_the_limit_holds_within_a_solver_step(clock):
    track = Track(clock, {ONE: 100.0, CELLS: 2.0}, steps=100)
    track.go()
    assert lanes.LIMIT_SECONDS <= track.race.spent <= lanes.LIMIT_SECONDS + 1
    assert [lane.state for lane in track.race.lanes] == ["out of time", "out of time"]
    assert track.race.to_json()["state"] == "finished"


def test_stop_ends_all_lanes_within_a_step(clock):
    track, call = Track(clock, {ONE: 4.0, CELLS: 4.0}), threading.Event()
    values = track.race.go(call, math.inf)
    next(values)
    call.set()
    before = clock.now
    assert list(values) == [None]
    assert clock.now == before
    assert [lane.state for lane in track.race.lanes] == ["finished", "stopped"]
    assert track.race.to_json()["state"] == "stopped"


def test_paused_races_are_bounded_and_let_go(clock):
    paused = PausedRaces(limit=2)
    assert not paused.full
    tracks = [Track(clock, {CELLS: 1.0}) for _ in range(3)]
    for number, track in enumerate(tracks):
        track.go(1.0)
        paused.put(f"visitor {number}", track.race)
    assert paused.full
    assert [track.closed for track in tracks] == [[CELLS.name], [], []]
    assert paused.take("visitor 0", tracks[0].race.run) is None
    assert paused.take("visitor 1", tracks[2].race.run) is None, "one's own race only"
    assert paused.take("visitor 1", tracks[1].race.run) is tracks[1].race
    assert paused.take("visitor 1", tracks[1].race.run) is None, "once"
    paused.drop(types.SimpleNamespace(session_hash="visitor 2"))
    assert tracks[2].closed == [CELLS.name] and tracks[1].closed == []


def test_networks_run_once_off_the_clock(family, monkeypatch):
    starter, cancel = Starter(family), threading.Event()
    asked = []
    stream = starter.stream
    monkeypatch.setattr(
        starter, "stream", lambda s, flag: asked.append((s.nesting, s.steps)) or stream(s, flag)
    )
    values = {"class_name": "fish", "steps": 3, "seed": 1}
    race = starter.race(4, **values)
    del asked[:]
    starter.warm_up(race, cancel)
    assert asked == [(lane.entrant.weights, 1) for lane in race.lanes]
    assert [lane.seconds for lane in race.lanes] == [0.0] * 4 and race.spent == 0
    del asked[:]
    starter.warm_up(starter.race(2, **values), cancel)
    assert ("k2-lattice", 1) in asked and ("k4-lattice", 1) not in asked and ("one-shot", 1) not in asked


# ---- in the browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(family) -> Iterator[str]:
    with served(app.build_page(family)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.fixture
def visit(browser, url) -> Iterator[Callable[..., Page]]:
    """Opens the page and turns to the tab."""
    with tab_visitors(browser, url, "Race", ".lane") as open_tab:
        yield open_tab


@pytest.fixture
def short_slices(monkeypatch) -> list[str]:
    """Slices of a few patches, as many as a slow machine needs; grows by one entry a slice, its race's id."""
    begun: list[str] = []
    go = Race.go

    def noted(self, call, seconds):
        begun.append(self.run)
        return go(self, call, seconds)

    monkeypatch.setattr(race_module, "SLICE_SECONDS", 0.1)
    monkeypatch.setattr(lanes, "LIMIT_SECONDS", 1000.0)
    monkeypatch.setattr(Race, "go", noted)
    return begun


RECORD = """() => {
  window.seen = {};
  new MutationObserver(() => {
    for (const lane of document.querySelectorAll(".lane")) {
      const own = (window.seen[lane.dataset.weights] ??= []);
      const alt = lane.querySelector("img").alt;
      if (alt && own.at(-1) !== alt) own.push(alt);
    }
  }).observe(document.querySelector(".lanes"), {subtree: true, childList: true, attributes: true});
}"""


def start(page: Page, steps: int = 25, seed: str = "0") -> None:
    page.locator(".contest [name=steps]").fill(str(steps))
    page.locator(".contest [name=seed]").fill(seed)
    page.locator(".contest .first").click()


def wait_for(page: Page, state: str) -> None:
    page.locator(f'.contest[data-state="{state}"]').wait_for()


def test_all_lanes_grow_and_are_compared(visit, family, short_slices):
    page = visit()
    page.evaluate(RECORD)
    start(page, steps=40)
    wait_for(page, "finished")
    assert len(short_slices) > 2 and len(set(short_slices)) == 1
    expect(page.locator('.lane[data-state="finished"]')).to_have_count(4)
    tops = page.locator(".lane .shot").evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")
    assert len(set(tops)) == 1, "side by side"
    seen = page.evaluate("window.seen")
    tokens = {alt.split(": ")[1] for alt in seen["k4-lattice"] if alt.startswith("Preview")}
    assert "4 of 16 tokens" in tokens, "module 1's last frame"
    assert tokens & {"8 of 16 tokens", "12 of 16 tokens"}, "one of module 2's; a newer one may take its place"
    assert seen["k4-lattice"][-1].startswith("Finished picture of flower by NestAR")
    assert len(seen["one-shot"]) == 1 and len(seen["ar-raster"]) > len(seen["cells4-blocks"]) > 1
    expect(page.locator(".charts svg")).to_have_count(4)
    label = page.locator(".charts svg").nth(1).get_attribute("aria-label")
    assert label == "Turns: NestAR, k = 4 7, Plain autoregression 16, Cells (4) 4, One-shot flow 1"
    expect(page.locator(".verdict")).to_contain_text("NestAR, k = 4, took")
    words = page.locator(".lane .word").all_inner_texts()
    assert sorted(words) == ["first", "fourth", "second", "third"]
    page.locator(".rules summary").click()
    expect(page.locator(".rules")).to_contain_text("parameters differ by")
    # Another k, and the lanes stand ready again.
    expect(page.locator(".contest .said")).to_have_text("All lanes have ended.")
    page.locator(".contest [name=k]").select_option("2")
    expect(page.locator(".contest .said")).to_have_text("")
    expect(page.locator(".lane h3").first).to_have_text("NestAR, k = 2")
    expect(page.locator(".tally")).to_be_hidden()
    page.locator(".contest [name=k]").select_option("4")  # and back
    expect(page.locator(".lane h3").first).to_have_text("NestAR, k = 4")
    expect(page.locator('.lane[data-state="finished"] img')).to_have_count(4)
    expect(page.locator(".tally")).to_be_visible()


def test_where_no_more_races_can_wait_one_runs_whole(visit, short_slices, monkeypatch):
    """Else the race that waits longest, which is next, would be given up."""
    monkeypatch.setattr(PausedRaces, "full", True)
    page = visit()
    start(page, steps=40)
    wait_for(page, "finished")
    assert len(short_slices) == 1


def test_function_evaluations_are_said_before_the_start(visit, family):
    page = visit()
    shown = page.locator('.lane [data-name="function_evaluations"]')
    for steps in ("3", "12"):
        page.locator(".contest [name=steps]").fill(steps)
        calls = SOLVER_CALLS[SampleSettings.solver]
        weights = page.locator(".lane").evaluate_all("all => all.map(e => e.dataset.weights)")
        wanted = [family.nestings[name].function_evaluations(int(steps), calls) for name in weights]
        assert shown.all_inner_texts() == list(map(str, wanted))
    page.locator(".contest [name=steps]").fill("")
    assert shown.all_inner_texts() == [""] * 4


def test_class_and_seed_follow_generate_until_they_are_chosen(visit):
    page = visit()
    form = page.locator(".contest")

    def generated(class_name: str, seed: str) -> None:
        page.get_by_role("tab", name="Generate").first.click()
        page.get_by_role("radio", name=class_name, exact=True).check()
        page.locator("#dial-seed").fill(seed)
        page.locator("#generate").click()
        page.locator(".hero .note", has_text=f"seed {seed}").or_(
            page.locator(".hero .title", has_text=f"seed {seed}")
        ).first.wait_for()
        page.get_by_role("tab", name="Race").first.click()

    generated("fish", "9007199254740993")
    assert form.locator("[name=class_name]").input_value() == "fish"
    assert form.locator("[name=seed]").input_value() == "9007199254740993"
    page.get_by_role("tab", name="When it fails").first.click()
    assert page.locator(".failing [name=seed]").input_value() == "9007199254740993"
    page.get_by_role("tab", name="Race").first.click()
    form.locator("[name=seed]").fill("3")
    generated("flower", "4")
    assert form.locator("[name=seed]").input_value() == "3"
    assert form.locator("[name=class_name]").input_value() == "fish"


def test_weights_that_are_not_those_of_generate_are_named(browser):
    pipeline = pipeline_of(K4, ONE, **{"k4-lattice.together": K4})
    for name, model in pipeline.models.items():
        model.record = {"images_seen": 9000 if name == K4.name else 5000}
    with (
        served(app.build_page(pipeline)) as address,
        tab_visitors(browser, address, "Race", ".lane") as visit,
    ):
        page = visit()
        page.locator(".rules summary").click()
        said = "NestAR, k = 4 runs here with weights that saw as many images as the others’"
        expect(page.locator(".rules")).to_contain_text(said)


def test_a_race_keeps_the_lanes_that_it_began_with(visit):
    """The form may name another k by the time of its first value."""
    page = visit()
    page.locator(".contest [name=steps]").fill("2")
    page.evaluate("""() => {
      document.querySelector(".contest .first").click();
      const k = document.querySelector(".contest [name=k]");
      k.value = "2";
      k.dispatchEvent(new Event("change", { bubbles: true }));
    }""")
    wait_for(page, "finished")
    expect(page.locator(".lane h3").first).to_have_text("NestAR, k = 4")
    expect(page.locator('.lane[data-state="finished"]')).to_have_count(4)


def test_a_waiting_call_gets_its_turn_between_slices(visit, client, short_slices, monkeypatch):
    called, stream = threading.Event(), NestARPipeline.stream

    def unhurried(self, *arguments, **options):
        """A race goes on until the call has been served."""
        for frame in stream(self, *arguments, **options):
            yield frame
            if options["steps"] == 60:
                called.wait(1)

    monkeypatch.setattr(NestARPipeline, "stream", unhurried)
    page = visit()
    start(page, steps=60)
    page.locator(".lane img:not([hidden])").first.wait_for()
    slices = len(short_slices)
    assert client.predict(steps=1, api_name="/generate")["final"]
    assert page.locator(".contest").get_attribute("data-state") in ("running", "paused")
    called.set()
    wait_for(page, "finished")
    assert len(short_slices) > slices
    expect(page.locator('.lane[data-state="finished"]')).to_have_count(4)


def test_stop_keeps_what_stands_and_frees_the_worker(visit, client, short_slices):
    page = visit()
    start(page, steps=200)
    page.locator(".lane img:not([hidden])").first.wait_for()
    page.locator(".contest .halt").click()
    wait_for(page, "stopped")
    expect(page.locator(".contest .said")).to_have_text("Stopped.")
    expect(page.locator('.lane[data-state="stopped"]')).not_to_have_count(0)
    expect(page.locator(".mini .running")).to_have_count(0)
    # A slice may have been on its way to the queue when Stop was pressed; it comes before this.
    assert client.predict(steps=1, api_name="/generate")["final"]
    slices = len(short_slices)
    assert client.predict(steps=1, api_name="/generate")["final"]
    expect(page.locator(".contest")).to_have_attribute("data-state", "stopped")
    assert len(short_slices) == slices, "nothing goes on"
    start(page, steps=2)
    wait_for(page, "finished")


def test_who_does_not_arrive_is_said(visit, monkeypatch):
    monkeypatch.setattr(lanes, "LIMIT_SECONDS", 0.6)
    page = visit()
    start(page, steps=200)
    wait_for(page, "finished")
    late = page.locator('.lane[data-state="out of time"]')
    expect(late).not_to_have_count(0)
    expect(late.first.locator(".word")).to_have_text("out of time")
    expect(page.locator(".verdict")).to_contain_text("Not there in time:")
    expect(page.locator(".charts rect.open")).to_have_count(4 * late.count())
    assert "> " in page.locator(".charts svg").first.get_attribute("aria-label")


def test_a_lane_that_went_on_elsewhere_is_named(visit, monkeypatch):
    inner = NestARPipeline.stream

    def moved(pipeline, *arguments, nesting, **values):
        for frame in inner(pipeline, *arguments, nesting=nesting, **values):
            yield replace(frame, device="gpu" if nesting == K2.name else frame.device)

    monkeypatch.setattr(NestARPipeline, "stream", moved)
    page = visit()
    said = "The GPU had no memory left for"
    for k, others in (("4", False), ("2", True)):
        page.locator("select[name=k]").select_option(k)
        start(page, steps=2)
        wait_for(page, "finished")
        verdict = page.locator(".verdict").text_content()
        assert (f"{said} NestAR, k = 2, which went on on the CPU" in verdict) is others, verdict


def test_a_refused_setting_is_one_sentence(visit):
    page = visit()
    start(page, seed="a lot")
    expect(page.locator(".contest .said.alarm")).to_contain_text("seed must be a whole number")
    expect(page.locator(".contest")).to_have_attribute("data-state", "empty")
    start(page, steps=1)
    wait_for(page, "finished")
    expect(page.locator(".contest .said.alarm")).to_have_count(0)
    pictures = page.locator(".lane img").evaluate_all("all => all.map(e => e.src)")
    start(page, seed="a lot")  # what stands there stays
    expect(page.locator(".contest .said.alarm")).to_contain_text("seed must be a whole number")
    assert page.locator(".lane img").evaluate_all("all => all.map(e => e.src)") == pictures
    expect(page.locator(".verdict")).to_be_visible()


def test_it_fits_a_phone_and_can_be_read(visit):
    page = visit(**PHONE)
    start(page, steps=1)
    wait_for(page, "finished")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for scheme in schemes(page):
        assert page.evaluate(CONTRAST.replace("#studio *", "#race *")) == [], scheme
    assert page.locator("#race img:not([alt])").count() == 0
    assert page.locator("#race .mini [tabindex]").count() == 0


def test_it_is_reached_by_keyboard_and_says_on_how_many_images_lanes_were_trained(visit):
    page = visit()
    page.locator(".contest [name=class_name]").focus()
    reached = []
    for _ in range(6):
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.className"))
        page.keyboard.press("Tab")
    assert reached == ["class_name", "k", "steps", "seed", "press first", "press halt"]
    expect(page.locator(".lane").first).to_contain_text("9,000")
    expect(page.locator(".lane").last).to_contain_text("5,000")
    page.locator(".rules summary").click()
    expect(page.locator(".rules")).to_contain_text("compare their clocks here, not their pictures")


# ---- the endpoint ------------------------------------------------------------------------------------


def test_race_endpoint_streams_all_lanes_to_their_end(client, family):
    received = list(client.submit(class_name="fish", k=2, steps=3, seed=5, api_name="/race"))
    ended = received[-1]
    assert ended["state"] == "finished"
    assert [lane["weights"] for lane in ended["lanes"]] == [
        "k2-lattice",
        "ar-raster",
        "cells4-blocks",
        "one-shot",
    ]
    for lane in ended["lanes"]:
        nesting = family.nestings[lane["weights"]]
        assert lane["image"].startswith("data:image/png") and lane["seconds"] > 0
        kept = keepsakes.read_png(from_uri(lane["image"]))
        assert (kept["class_name"], kept["seed"], kept["nesting"]) == ("fish", 5, lane["weights"])
        assert lane["evaluations"] == nesting.evaluations
        calls = SOLVER_CALLS[SampleSettings.solver]
        assert lane["function_evaluations"] == nesting.function_evaluations(3, calls)
        assert {name: lane[name] for name in lane["of"]} == lane["of"]
    turns = [sum(lane["evaluations"] for lane in value["lanes"]) for value in received]
    assert turns[:-1] == list(range(1, len(received))), "a value a patch"


def test_race_endpoint_refuses_with_a_sentence(client):
    with pytest.raises(AppError, match="k = 16"):
        client.predict(k=16, api_name="/race")
