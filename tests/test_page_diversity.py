"""The Diversity tab in a real browser, and its calls, on small random weights."""

import base64
import re
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect

import app
from benchmarks import diversity as benchmark
from nestar import keepsakes, neighbours
from nestar.batches import SWEEP
from nestar.evaluation import diversity as measures
from nestar.evaluation.diversity import FeatureSpace
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, SettingsError
from nestar.ui import diversity, frames
from nestar.ui.assets import asset
from nestar.ui.diversity_api import SIBLINGS
from nestar.ui.diversity_desk import Desk
from tests.conftest import schemes, served, tab_visitors, visitors
from tests.small import CLASSES, K2, K4, save_checkpoint
from tests.test_page import CONTRAST, PHONE, decode, wait_for_entry

IMAGES = 48
MANY_STEPS = 200


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> NestARPipeline:
    return NestARPipeline.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("weights")), device="cpu")


@pytest.fixture(scope="module")
def small_url(small, tmp_path_factory) -> Iterator[str]:
    """Address of the whole page on small weights, with an index of few training pictures, and with what each
    module of k = 2 decides measured beforehand."""
    folder = tmp_path_factory.mktemp("neighbours")
    neighbours.build_index(FeatureSpace(), small.tokenizer, images=IMAGES, held_out=2).save(folder)
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "FOLDER", folder)
        patch.setattr(measures, "RESULTS", results)
        weights = ["--repo", small.origin, "--nesting", "k2-lattice", "--device", "cpu"]
        benchmark.main([*weights, "--parents", "3", "--steps", "1", "--classes", "flower"])
        demo = app.build_page(small)
    with served(demo) as url:
        yield url


@pytest.fixture(scope="module")
def client(small_url) -> Client:
    return Client(small_url, verbose=False)


@pytest.fixture
def visit_tab(browser, small_url) -> Iterator[Callable[..., Page]]:
    """Opens the page and turns to the tab."""
    with tab_visitors(browser, small_url, "Diversity", "#diversity-class option") as open_tab:
        yield open_tab


def press(page: Page, button: str, panel: str, state: str = "finished") -> None:
    """Press a button of the tab and wait for its panel."""
    page.locator(f"#diversity-{button}").click()
    wait_for(page, panel, state)


def wait_for(page: Page, panel: str, state: str = "finished") -> None:
    page.locator(f'#diversity-{panel} [data-state="{state}"]').wait_for()


def quick(page: Page, count: int = 4) -> None:
    page.locator("#diversity-count").select_option(str(count))
    page.get_by_label("Steps per patch, as a number").last.fill("2")


# ---- in the browser --------------------------------------------------------------------------------

RECORD = """() => {
  window.seen = [];
  const progress = document.querySelector("#diversity-grid .progress");
  const images = document.querySelector("#diversity-grid .sheet");
  new MutationObserver(() => window.seen.push({
    text: progress.textContent, sources: [...images.querySelectorAll("img")].map((image) => image.src),
  })).observe(progress, {childList: true});
}"""


def test_nothing_is_computed_before_the_visitor_asks(visit_tab):
    page = visit_tab()
    expect(page.locator("#diversity-grid .invitation")).to_be_visible()
    expect(page.locator("#diversity-class option")).to_have_text(list(CLASSES))
    expect(page.locator("#diversity-nesting option")).to_have_text(["k = 4", "k = 2"])
    expect(page.locator("#diversity-stop")).to_have_attribute("aria-disabled", "true")
    expect(page.locator("#diversity-sweep .label")).to_have_text([f"{each:.1f}" for each in SWEEP])
    press(page, "resample", "siblings", "empty")
    expect(page.locator("#diversity-siblings .status")).to_contain_text("Choose a picture")


def test_the_grid_grows_in_place_as_one_batch(visit_tab):
    page = visit_tab()
    quick(page, 9)
    page.locator("#diversity-seed").fill("40")
    page.evaluate(RECORD)
    press(page, "generate", "grid")
    expect(page.locator("#diversity-grid .label")).to_have_text([f"seed {40 + b}" for b in range(9)])
    seen = page.evaluate("window.seen")
    modules = [int(found[1]) for each in seen if (found := re.match(r"Module (\d)", each["text"]))]
    assert modules == sorted(modules) and set(modules) == set(range(1, K4.modules + 1))
    grown = [each["sources"] for each in seen if each["text"].startswith("Module")]
    assert all(len(set(sources)) == 9 for sources in grown), "every frame has nine pictures of its own"
    assert len({sources[0] for sources in grown}) >= K4.modules
    assert all(source.startswith("data:image/png") for source in grown[-1])
    expect(page.locator("#diversity-grid .heard")).to_have_text("Finished.")


def test_a_picture_is_chosen_and_its_neighbour_found(visit_tab):
    page = visit_tab()
    quick(page)
    press(page, "generate", "grid")
    wait_for(page, "nearest")
    samples = page.locator("#diversity-grid .sample")
    expect(samples.nth(0)).to_have_attribute("aria-pressed", "true")
    samples.nth(2).focus()
    page.keyboard.press("Enter")
    chosen = page.locator("#diversity-grid img").nth(2).get_attribute("src")
    expect(page.locator("#diversity-nearest .chosen")).to_have_attribute("src", chosen)
    wait_for(page, "nearest")
    expect(samples.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(samples.nth(0)).to_have_attribute("aria-pressed", "false")
    real = page.locator("#diversity-nearest .real")
    expect(real).to_have_attribute("alt", re.compile(f"nearest of the first {IMAGES} training pictures"))
    expect(real).to_have_js_property("naturalWidth", 128)
    expect(page.locator("#diversity-nearest .finding")).to_contain_text("training never saw")
    expect(page.locator("#diversity-keep .parent")).to_contain_text("seed 2, keep module 1: 4 of 16 tokens")


VERDICTS = {  # of a distance, where unseen pictures stand 3 to 7 away and copies 1 to 4
    2.0: "As near as a copy",
    3.5: "Both come so near",
    5.0: "Farther than a copy would be",
}


@pytest.mark.parametrize("distance", VERDICTS)
def test_what_is_said_of_a_copy(browser, distance):
    source = asset("diversity_nearest.js")
    function = source[source.index("function verdict") : source.index("// One call at a time")]
    page = browser.new_page()
    found = {"distance": distance, "unseen": [3, 5, 7], "copied": [1, 2, 4]}
    said = page.evaluate(f"(found) => {{ {function} return verdict(found); }}", found)
    page.close()
    assert VERDICTS[distance] in said and "3.0 to 7.0" in said and "up to 4.0" in said


@pytest.mark.parametrize("refused", [False, True])
def test_of_pictures_chosen_in_a_row_the_last_ones_neighbour_is_shown(visit_tab, monkeypatch, refused):
    page = visit_tab()
    quick(page)
    press(page, "generate", "grid")
    wait_for(page, "nearest")
    asked, go = [], threading.Event()

    def slow(desk, sample, cancel):
        asked.append(sample.settings.seed)
        assert go.wait(60)
        if refused and sample.settings.seed == 1:
            raise SettingsError("The first choice is refused.")
        return nearest(desk, sample, cancel)

    nearest = Desk.nearest
    monkeypatch.setattr(Desk, "nearest", slow)
    samples = page.locator("#diversity-grid .sample")
    for place in (1, 2, 3):
        samples.nth(place).click()
    go.set()
    wait_for(page, "nearest")
    chosen = page.locator("#diversity-grid img").nth(3).get_attribute("src")
    expect(page.locator("#diversity-nearest .chosen")).to_have_attribute("src", chosen)
    expect(page.locator("#diversity-nearest .finding")).to_contain_text("training never saw")
    assert asked == [1, 3], "what was chosen in between is not computed"
    assert page.locator("#diversity-nearest .status").text_content() == ""


def test_two_choices_right_after_stop_bring_the_second_ones_neighbour(visit_tab, monkeypatch):
    """Stop takes along what is sent before it is carried out, so both wait for it."""
    page = visit_tab()
    quick(page)
    press(page, "generate", "grid")
    wait_for(page, "nearest")
    begun = threading.Event()

    def slow(desk, sample, cancel):
        if sample.settings.seed != 1:
            return nearest(desk, sample, cancel)
        begun.set()
        assert cancel.wait(60)
        raise SettingsError("This was stopped.")

    nearest = Desk.nearest
    monkeypatch.setattr(Desk, "nearest", slow)
    samples = page.locator("#diversity-grid .sample")
    samples.nth(1).click()
    assert begun.wait(60)
    page.evaluate(
        """() => {
            const press = (what) => document.querySelector(what).click();
            press("#diversity-stop");
            for (const place of [2, 3]) document.querySelectorAll("#diversity-grid .sample")[place].click();
        }"""
    )
    expect(page.locator("#diversity-nearest .finding")).to_contain_text("training never saw")
    chosen = page.locator("#diversity-grid img").nth(3).get_attribute("src")
    expect(page.locator("#diversity-nearest .chosen")).to_have_attribute("src", chosen)
    wait_for(page, "nearest")


def test_distances_stand_beside_those_of_real_pictures(visit_tab):
    page = visit_tab()
    quick(page)
    press(page, "generate", "distances")
    heats = page.locator("#diversity-distances .heat")
    expect(heats).to_have_count(2)
    for heat in (0, 1):
        cells = heats.nth(heat).get_by_role("gridcell")
        expect(cells).to_have_count(16)
        cells.nth(1).dispatch_event("pointerover")  # a real pointer leaves when panels above grow
        reading = page.locator("#diversity-distances .reading")
        expect(reading).to_have_text(cells.nth(1).get_attribute("aria-label"))
        expect(reading).to_contain_text(
            "seed 0 and seed 1: " if heat == 0 else "real picture 1 and real picture 2: "
        )
        assert float(reading.inner_text().rsplit(" ", 1)[1]) > 0
    first = heats.first.get_by_role("gridcell").first
    first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#diversity-distances .reading")).to_contain_text("seed 1 and seed 0")
    assert heats.first.locator('[tabindex="0"]').count() == 1
    page.locator("#diversity-class").select_option("hot-air balloon")
    press(page, "generate", "grid")
    expect(page.locator("#diversity-distances .reading")).to_contain_text("no class hot-air balloon")
    expect(page.locator('#diversity-distances [data-name="real"]')).to_be_hidden()


def test_a_press_while_distances_are_measured_makes_the_next_pictures(visit_tab, monkeypatch):
    """The call before it has not ended then, though its pictures stand."""
    measured, go = Desk.distances, threading.Event()

    def held(self, *arguments):
        go.wait(60)
        return measured(self, *arguments)

    monkeypatch.setattr(Desk, "distances", held)
    page = visit_tab()
    quick(page)
    press(page, "generate", "grid")
    page.locator("#diversity-controls [data-name=seed] input").fill("40")
    page.locator("#diversity-generate").click()
    wait_for(page, "grid", "waiting")
    go.set()
    wait_for(page, "grid")
    expect(page.locator("#diversity-grid .label").first).to_have_text("seed 40")
    reading = page.locator('#diversity-distances [role="gridcell"]').first
    expect(reading).to_have_attribute("aria-label", "seed 40 and itself: 0")


def test_distances_that_cannot_be_measured_say_why(visit_tab, monkeypatch):
    page, stale = visit_tab(), "#diversity-distances .stale"
    quick(page)
    press(page, "generate", "distances")

    def fails(*_: object) -> None:
        raise SettingsError("There are no features.")

    monkeypatch.setattr(Desk, "features", fails)
    page.locator("#diversity-generate").click()
    reading = page.locator("#diversity-distances .reading")
    expect(reading).to_have_text("There are no features.")
    expect(page.locator(stale)).to_have_count(0)
    expect(page.locator("#diversity-distances .heat").first).to_be_hidden()
    page.locator("#diversity-distances").dispatch_event("pointerleave")
    expect(reading).to_have_text("There are no features.")


def test_what_breaks_in_one_panel_leaves_the_others_alone(visit_tab, ended):
    page = visit_tab()
    page.get_by_label("Steps per patch, as a number").last.fill(str(MANY_STEPS))
    page.locator("#diversity-generate").click()
    wait_for(page, "grid", "running")
    page.evaluate("document.dispatchEvent(new Event('nestar:diversity-sweep-failed'))")
    quick(page)  # and some time passes
    expect(page.locator("#diversity-grid .status")).to_have_text("")
    wait_for(page, "grid", "running")
    page.locator("#diversity-stop").click()
    wait_for(page, "grid", "stopped")


def test_a_call_that_the_server_does_not_take_is_said(browser, small_url):
    with visitors(browser, small_url) as open_page:
        visited = open_page()
        page = visited.page
        page.get_by_role("tab", name="Diversity").first.click()
        page.locator("#diversity-class option").first.wait_for(state="attached")
        page.route(re.compile("/queue/join"), lambda route: route.fulfill(status=503, json={}), times=1)
        page.locator("#diversity-generate").click()
        expect(page.locator("#diversity-grid .status")).to_have_text(
            "The server did not take the run. Try again in a moment."
        )
        visited.complaints.clear()  # the browser's own, and Gradio's
        quick(page)
        press(page, "generate", "grid")
        expect(page.locator("#diversity-grid .status")).to_have_text("")


def test_siblings_keep_their_parent_and_others_come_at_the_next_press(visit_tab):
    page = visit_tab()
    quick(page)
    page.locator("#diversity-nesting").select_option("k2-lattice")
    press(page, "generate", "grid")
    expect(page.get_by_label(re.compile("Keep modules"))).to_have_count(K2.modules - 1)
    page.get_by_label("Keep modules 1–3").check()
    expect(page.locator("#diversity-keep .parent")).to_contain_text("modules 1 to 3: 8 of 16 tokens")
    made = []
    for _ in range(2):
        press(page, "resample", "siblings")
        images = page.locator("#diversity-siblings img")
        expect(images).to_have_count(SIBLINGS + 1)
        made.append(images.evaluate_all("images => images.map((image) => image.alt)"))
        page.wait_for_timeout(100)
    assert all("keeps 3 modules of seed 0" in alt for alt in made[0][1:]) and "keeps" not in made[0][0]
    assert made[0][0] == made[1][0] and not set(made[0][1:]) & set(made[1][1:])
    page.locator("#diversity-siblings .sample").nth(1).click()
    wait_for(page, "nearest")
    expect(page.locator("#diversity-nearest .chosen")).to_have_attribute("alt", made[1][1])
    # The parent stays the grid's picture.
    expect(page.locator("#diversity-keep .parent")).to_contain_text("Siblings of flower, seed 0, keep")


def test_each_module_gets_a_bar_with_its_share(visit_tab):
    page = visit_tab()
    quick(page)
    expect(page.locator("#diversity-explained .caption")).to_contain_text("Not measured yet")
    press(page, "measure", "explained")
    expect(page.locator("#diversity-explained .share")).to_have_count(K4.modules)
    words = page.locator("#diversity-explained svg").get_attribute("aria-label")
    shares = [int(share) for share in re.findall(r"(-?\d+) %", words)]
    assert len(shares) == K4.modules and sum(shares) == pytest.approx(100, abs=1)
    expect(page.locator("#diversity-explained .definition")).to_contain_text("unrelated")
    expect(page.locator("#diversity-explained .caption")).to_contain_text(
        "Measured now: k = 4, flower, 16 parents with 1 sibling each, 2 steps, temperature 1.15, guidance 3."
    )
    # A refusal in between takes nothing away, whatever else was looked at.
    page.get_by_label("Temperature, as a number").last.fill("9")
    page.locator("#diversity-measure").click()
    expect(page.locator("#diversity-explained .status")).to_contain_text("temperature must be")
    page.locator("#diversity-class").select_option("fish")
    expect(page.locator("#diversity-explained .caption")).not_to_contain_text("Measured now")
    page.locator("#diversity-class").select_option("flower")
    expect(page.locator("#diversity-explained .caption")).to_contain_text("Measured now: k = 4, flower")


def test_what_was_measured_beforehand_stands_there(visit_tab):
    page = visit_tab()
    caption, bars = page.locator("#diversity-explained .caption"), page.locator("#diversity-explained .share")
    page.locator("#diversity-nesting").select_option("k2-lattice")
    expect(caption).to_contain_text(
        "Measured beforehand: k = 2, flower, 3 parents with 2 siblings each, 1 step, "
        "temperature 1.15, guidance 3."
    )  # as it was measured, and not as the controls say
    expect(bars).to_have_count(K2.modules)
    page.locator("#diversity-class").select_option("fish")
    expect(caption).to_contain_text("mean over 1 class")
    page.locator("#diversity-nesting").select_option("k4-lattice")
    expect(caption).to_contain_text("Not measured yet")
    expect(bars).to_have_count(0)


def test_temperature_is_swept_at_one_seed(visit_tab):
    page = visit_tab()
    quick(page)
    page.locator("#diversity-seed").fill("77")
    press(page, "warm", "sweep")
    alts = page.locator("#diversity-sweep img").evaluate_all("images => images.map((image) => image.alt)")
    assert [float(alt.rsplit(" ", 1)[1]) for alt in alts] == list(SWEEP)
    assert all("seed 77" in alt for alt in alts)


class Ended(list[bool]):
    """Grows by one entry when a batch ends: whether its cancel flag was set by then. `begun` is set while one
    is made."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()


@pytest.fixture
def ended(monkeypatch) -> Ended:
    entries = Ended()
    stream = NestARPipeline.stream_rows

    def watched(self, settings, *arguments, cancel=None, **options):
        entries.begun.set()
        try:
            for frame in stream(self, settings, *arguments, cancel=cancel, **options):
                yield frame
                if settings.steps == MANY_STEPS:
                    cancel.wait(10)  # small weights make 200 steps in 2 s, and a browser can be slower
        finally:  # Gradio may close it where it waits to be asked on
            entries.begun.clear()
            entries.append(cancel.is_set())

    monkeypatch.setattr(NestARPipeline, "stream_rows", watched)
    return entries


def test_waiting_shows_the_place_in_the_queue(visit_tab, client, monkeypatch):
    stream, go = NestARPipeline.stream_rows, threading.Event()

    def held(self, *arguments, cancel=None, **options):
        for frame in stream(self, *arguments, cancel=cancel, **options):
            yield frame
            while not (go.is_set() or cancel.is_set()):
                time.sleep(0.02)

    monkeypatch.setattr(NestARPipeline, "stream_rows", held)
    page = visit_tab()
    quick(page)
    other = client.submit(steps=1, count=2, api_name="/diversity")
    next(iter(other))  # it has begun
    page.locator("#diversity-generate").click()
    expect(page.locator("#diversity-grid .status")).to_have_text("Waiting for the sampler: you are next.")
    go.set()
    wait_for(page, "grid")
    expect(page.locator("#diversity-grid .status")).to_have_text("")


@pytest.mark.parametrize("waits", [False, True], ids=["one-stops", "two-stop"])
@pytest.mark.parametrize(("button", "panel"), [("generate", "grid"), ("warm", "sweep")])
def test_what_is_pressed_right_after_stop_is_computed(visit_tab, ended, button, panel, waits):
    """Gradio's cancel would take the new call along with the old one. Where another panel waits meanwhile,
    the one whose Stop takes longer holds what the other has already sent on."""
    page = visit_tab()
    quick(page)
    page.get_by_label("Steps per patch, as a number").last.fill(str(MANY_STEPS))
    page.locator("#diversity-generate").click()
    wait_for(page, "grid", "running")
    assert ended.begun.wait(60)
    if waits:
        page.locator("#diversity-measure").click()
        wait_for(page, "explained", "waiting")
    page.evaluate(f"""() => {{
      document.querySelector("#diversity-stop").click();
      document.querySelector("#diversity-{button}").click();
    }}""")
    wait_for_entry(ended)
    wait_for(page, panel, "running")
    assert ended.begun.wait(60)  # the panel says so a moment before
    ended.clear()
    page.locator("#diversity-stop").click()
    wait_for(page, panel, "stopped")
    wait_for_entry(ended)
    assert ended == [True]


def test_what_is_held_by_a_stop_says_that_it_waits_and_can_be_withdrawn(visit_tab, ended):
    page = visit_tab()
    quick(page)
    page.get_by_label("Steps per patch, as a number").last.fill(str(MANY_STEPS))
    page.locator("#diversity-generate").click()
    wait_for(page, "grid", "running")
    assert ended.begun.wait(60)
    stopping = []
    page.route(re.compile("/run/predict"), lambda route: stopping.append(route), times=1)
    page.locator("#diversity-stop").click()
    page.locator("#diversity-warm").click()
    page.locator("#diversity-measure").click()
    for panel in ("sweep", "explained"):
        wait_for(page, panel, "waiting")
    page.locator("#diversity-stop").click()
    for panel in ("sweep", "explained"):
        wait_for(page, panel, "empty")
        expect(page.locator(f"#diversity-{panel} .status")).to_have_text("Stopped.")
    page.locator("#diversity-resample").click()
    wait_for(page, "siblings", "waiting")
    sent = []
    page.on("request", lambda request: sent.append(request.url) if "/queue/join" in request.url else None)
    stopping[0].continue_()
    expect(page.locator("#diversity-siblings .status")).to_contain_text("Choose a picture in the grid first")
    assert len(sent) == 1 and ended == [True]


@pytest.mark.parametrize(
    ("button", "panel"), [("generate", "grid"), ("warm", "sweep"), ("measure", "explained")]
)
def test_stop_ends_every_kind_of_run_and_frees_the_worker(visit_tab, ended, button, panel):
    page = visit_tab()
    quick(page)
    page.get_by_label("Steps per patch, as a number").last.fill(str(MANY_STEPS))
    page.locator(f"#diversity-{button}").click()
    wait_for(page, panel, "running")
    assert ended.begun.wait(60)  # the panel says so a moment before
    page.locator("#diversity-stop").click()
    wait_for(page, panel, "stopped")
    expect(page.locator(f"#diversity-{panel} .status")).to_have_text("Stopped.")
    wait_for_entry(ended)
    assert ended[-1]  # the run before may be told of late
    quick(page)
    press(page, "generate", "grid")


def test_of_a_stopped_grid_no_distances_stand_and_nothing_can_be_chosen(visit_tab, ended):
    page = visit_tab()
    quick(page)
    press(page, "generate", "grid")
    wait_for(page, "distances")
    expect(page.locator("#diversity-grid .after")).to_be_visible()
    cells = page.locator("#diversity-distances .heat > div").first
    row, cell = (each.bounding_box() for each in (cells, cells.locator("i").first))
    assert cell["height"] == pytest.approx(row["height"], abs=1e-3)  # no line of the lightest colour below
    page.get_by_label("Steps per patch, as a number").last.fill(str(MANY_STEPS))
    page.locator("#diversity-generate").click()
    wait_for(page, "grid", "running")
    expect(page.locator("#diversity-generate")).to_have_attribute("aria-disabled", "true")
    page.locator("#diversity-stop").click()
    wait_for(page, "grid", "stopped")
    for hidden in ("#diversity-grid .after", "#diversity-distances .heat >> nth=0"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.locator("#diversity-distances .reading")).to_contain_text("between finished pictures")
    expect(page.locator("#diversity-generate")).to_have_attribute("aria-disabled", "false")
    expect(page.locator("#diversity-stop")).to_have_attribute("aria-disabled", "true")
    quick(page)
    press(page, "generate", "grid")
    expect(page.locator("#diversity-distances .heat").first).to_be_visible()


def test_a_refusal_is_a_sentence_where_it_arises(visit_tab):
    page = visit_tab()
    page.get_by_label("Temperature, as a number").last.fill("9")
    page.locator("#diversity-generate").click()
    expect(page.locator("#diversity-grid .status")).to_contain_text(
        "temperature must be a number from 0 to 2"
    )
    page.locator("#diversity-measure").click()
    expect(page.locator("#diversity-explained .status")).to_contain_text("temperature must be")


def test_what_stands_there_survives_another_tab(visit_tab):
    page = visit_tab()
    quick(page)
    press(page, "generate", "grid")
    page.get_by_role("tab", name="Generate").first.click()
    page.get_by_role("tab", name="Diversity").first.click()
    expect(page.locator("#diversity-grid img")).to_have_count(4)
    page.locator("#diversity-grid .sample").nth(3).click()
    wait_for(page, "nearest")
    expect(page.locator("#diversity-keep .parent")).to_contain_text("Siblings of flower, seed 3, keep")


def test_what_is_chosen_at_once_stays_when_gradio_hands_the_first_value_back(browser, small_url):
    """Gradio does so a frame after a tab was first opened; here that frame comes late."""
    with visitors(browser, small_url) as open_page:
        page = open_page().page
        page.evaluate("() => { window.requestAnimationFrame = (draw) => setTimeout(() => draw(0), 500); }")
        page.get_by_role("tab", name="Diversity").first.click()
        page.locator("#diversity-class option").first.wait_for(state="attached")
        quick(page)
        page.wait_for_timeout(700)
        expect(page.locator("#diversity-count")).to_have_value("4")
        press(page, "generate", "grid")
        expect(page.locator("#diversity-grid img")).to_have_count(4)


def test_it_can_be_read(visit_tab):
    page = visit_tab()
    quick(page)
    press(page, "generate", "grid")
    wait_for(page, "nearest")
    expect(page.locator("#diversity-generate")).to_be_enabled()
    for scheme in schemes(page):
        assert page.evaluate(CONTRAST.replace("#studio *", "[id^=diversity] *")) == [], scheme


def test_on_a_phone_nothing_overflows_and_the_buttons_stay_in_reach(visit_tab):
    page = visit_tab(**PHONE)
    quick(page, 16)
    page.evaluate("window.scrollTo(0, 0)")
    expect(page.locator("#diversity-generate")).to_be_in_viewport()
    press(page, "generate", "grid")
    expect(page.locator("#diversity-grid .sample").first).to_be_in_viewport()
    bar = page.locator("#diversity-actions").bounding_box()
    button = page.locator("#diversity-generate").bounding_box()
    assert bar["width"] == pytest.approx(PHONE["viewport"]["width"], abs=1) and button["x"] >= 12
    press(page, "measure", "explained")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    expect(page.locator("#diversity-stop")).to_be_in_viewport()
    names = page.locator("#diversity :is(button, input, select)").evaluate_all(
        "all => all.filter(e => e.offsetParent && !(e.innerText || e.ariaLabel || e.labels?.length)).length"
    )
    assert names == 0 and page.locator("#diversity img:not([alt])").count() == 0


# ---- calls by name ---------------------------------------------------------------------------------


def test_diversity_call_streams_the_batch(client):
    received = list(client.submit(class_name="fish", k=4, steps=2, seed=6, count=3, api_name="/diversity"))
    assert [value["known"] for value in received] == [patch.stop for patch in K4.patches]
    assert all(len(value["images"]) == 3 for value in received)
    last = received[-1]
    assert last["final"] and [sample["seed"] for sample in last["samples"]] == ["6", "7", "8"]
    assert {decode(image).format for image in last["images"]} == {"PNG"}
    assert keepsakes.KEYWORD in decode(last["images"][1]).text
    assert len(last["distances"]["samples"]["matrix"]) == len(last["distances"]["real"]["matrix"]) == 3


def test_siblings_call_begins_with_the_parent(client, small):
    values = {"class_name": "fish", "k": 4, "steps": 2, "seed": 50, "count": 2}
    *_, last = client.submit(**values, parent=6, modules=1, api_name="/siblings")
    assert len(last["images"]) == 3 and "parent" not in last["samples"][0]
    assert last["samples"][2] == {
        "seed": "51",
        "temperature": SampleSettings.temperature,
        "parent": "6",
        "modules": 1,
    }
    alone = small("fish", k=4, steps=2, seed=6).image
    extrema = [
        abs(one - other)
        for one, other in zip(decode(last["images"][0]).tobytes(), alone.tobytes(), strict=True)
    ]
    assert max(extrema) <= 3
    kept = [keepsakes.read_png(base64.b64decode(image.partition(",")[2])) for image in last["images"]]
    assert kept[0]["seed"] == 6 and keepsakes.shared(kept[0]) == {}
    assert kept[2]["seed"] == 51 and keepsakes.shared(kept[2]) == {"parent": "6", "modules": 1}
    told = client.predict(last["images"][2], api_name="/settings_of")
    assert (told["seed"], told["parent"], told["modules"]) == (51, "6", 1)


def test_temperatures_call_has_a_picture_a_temperature(client):
    *_, last = client.submit(class_name="fish", steps=1, api_name="/temperatures")
    assert [sample["temperature"] for sample in last["samples"]] == list(SWEEP)
    assert len(last["images"]) == len(SWEEP)


def test_explained_call_ends_with_the_shares(client):
    *steps, last = client.submit(class_name="fish", k=2, steps=1, api_name="/explained")
    assert [step["done"] for step in steps] == list(range(1, last["of"] + 1))
    found = last["explained"]
    assert len(found["shares"]) == K2.modules + 1 and found["shares"][0] == 0 and found["shares"][-1] == 1
    assert sum(found["increments"]) == pytest.approx(1, abs=1e-3)


def test_nearest_call_finds_a_training_picture(client):
    found = client.predict(class_name="fish", k=4, steps=1, sample=2, api_name="/nearest")
    again = client.predict(class_name="fish", k=4, steps=1, seed=2, api_name="/nearest")
    assert found == again and found["of"] == IMAGES and 0 <= found["number"] < IMAGES
    assert decode(found["image"]).size == (128, 128)
    values = {"class_name": "fish", "k": 4, "steps": 1, "seed": 2, "parent": 6, "modules": 1}
    assert client.predict(**values, api_name="/nearest")["distance"] != found["distance"]
    low, middle, high = found["unseen"]
    assert 0 < low <= middle <= high and found["distance"] > 0 and len(found["copied"]) == 3


@pytest.mark.parametrize(
    ("call", "values", "sentence"),
    [
        ("/diversity", {"count": 17}, "count must be a whole number from 1 to 16"),
        ("/diversity", {"class_name": "unicorn"}, "unicorn"),
        ("/siblings", {"modules": 2}, "modules must be a whole number from 1 to 1"),
        ("/siblings", {"parent": -1}, "parent must be"),
        ("/temperatures", {"k": 3}, "k = 3"),
        ("/explained", {"temperature": 0}, "At temperature 0"),
        ("/nearest", {"sample": 16}, "sample must be a whole number from 0 to 15"),
        ("/nearest", {"modules": 3}, "modules must be a whole number from 0 to 1"),
        ("/nearest", {"modules": 1, "parent": -1}, "parent must be"),
    ],
)
def test_calls_refuse_with_a_sentence(client, call, values, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(**values, api_name=call)


# ---- without a browser -----------------------------------------------------------------------------


def test_frames_of_the_page_keep_their_distance(monkeypatch):
    slept = []
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: 0.0)
    monkeypatch.setattr(frames, "time", clock)  # its name alone: other threads go on reading the real clock
    assert list(frames.paced(iter("abc"))) == ["a", "b", "c"]
    assert slept == [0, 0.05, 0.05]


def test_frames_that_come_too_fast_are_left_out(monkeypatch):
    now = iter([1.0, 1.0, 1.04, 1.06, 1.06, 1.1])  # who is let through reads the clock twice
    monkeypatch.setattr(frames, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert list(frames.spaced(iter("abcd"))) == ["a", "c"]


def test_what_was_measured_on_other_weights_is_not_shown(small, tmp_path, monkeypatch):
    monkeypatch.setattr("nestar.evaluation.diversity.RESULTS", tmp_path)
    space = FeatureSpace()
    assert diversity.committed(small, space) == {}
    (tmp_path / "diversity_k4-lattice.json").write_text('{"weights": "00000000"}')
    assert diversity.committed(small, space) == {}
    (tmp_path / "diversity_k4-lattice.json").write_text("{")
    assert diversity.committed(small, space) == {}


def test_a_large_batch_is_sent_in_less(small, monkeypatch):
    monkeypatch.setattr("nestar.ui.diversity_desk.MAX_SHEET_CHARACTERS", 10)
    settings = small.settings(class_name="fish", k=4, steps=1, count=2)
    desk = diversity.Desk(small, neighbours.FOLDER)
    *_, last = desk.sheets(settings, diversity.batches.consecutive(settings), threading.Event())
    assert last["final"] and all(image.startswith("data:image/jpeg") for image in last["images"])
