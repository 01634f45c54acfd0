"""The Generate tab in a real browser, on small random weights: replay, tokens, velocities, keepsakes."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect

import app
from nestar import keepsakes
from nestar.checkpoints import assemble
from nestar.model import fingerprint_of
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings
from nestar.ui import generate
from nestar.ui.answers import refused
from nestar.ui.frames import from_uri
from nestar.ui.generate import FIRST_SEED
from nestar.ui.kept import KeptRuns
from tests.conftest import Visit, served, visitors
from tests.small import CLASSES, K2, K4, save_checkpoint
from tests.test_keepsakes import BAD_FILES, KEPT, with_international_text, with_text
from tests.test_page import PHONE, RECORD_FRAMES, Hold, decode

RASTER = Nesting.nested(4, 4, 4, "raster")
# The least time that a replay of the small k = 4 nesting takes, without its last frame's.
REPLAY_MS = sum(keepsakes.holds([4, 4, 4, 4, 3, 3, 3])[1:-1])


def serve(folder, nestings) -> Iterator[tuple[NestARPipeline, str]]:
    pipeline = NestARPipeline.from_pretrained(save_checkpoint(folder, nestings), device="cpu")
    for model in pipeline.models.values():
        model.record = {"images_seen": 1000 * model.config.nesting.k}
    with served(app.build_page(pipeline)) as url:
        yield pipeline, url


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[tuple[NestARPipeline, str]]:
    """A page with k = 4 and 2 in lattice order and k = 4 in raster order."""
    yield from serve(tmp_path_factory.mktemp("small"), [K4, K2, RASTER])


@pytest.fixture(scope="module")
def lattice_only(tmp_path_factory) -> Iterator[tuple[NestARPipeline, str]]:
    """A page without weights for raster order."""
    yield from serve(tmp_path_factory.mktemp("lattice"), [K4])


@pytest.fixture
def visit_small(browser, small) -> Iterator[Callable[..., Visit]]:
    with visitors(browser, small[1]) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def small_client(small) -> Client:
    return Client(small[1], verbose=False)


@pytest.fixture
def hold(small, monkeypatch) -> Iterator[Hold]:
    holding = Hold(small[0], monkeypatch)
    yield holding
    holding.released.set()


def controls(page) -> dict[str, str]:
    """What stands in all controls."""
    numbers = {name: page.locator(f"#dial-{name}").input_value() for name in ("steps", "temperature", "cfg")}
    return numbers | {
        "class": page.locator("#classes input:checked").get_attribute("value"),
        "order": page.locator(".choices input:checked").get_attribute("value"),
        "k": page.locator(".dial output").inner_text(),
        "seed": page.locator("#dial-seed").input_value(),
    }


def set_controls(page) -> dict[str, str]:
    """Set every control to something unlike the defaults; returns what then stands in them."""
    page.get_by_role("radio", name="fish", exact=True).check()
    page.get_by_role("radio", name="raster").check()
    page.get_by_label("Steps per patch, as a number").fill("3")
    page.get_by_label("Temperature, as a number").fill("0.85")
    page.get_by_label("Guidance, as a number").fill("1.5")
    page.locator("#dial-seed").fill("9007199254740993")  # one more than a browser's numbers can hold
    return controls(page)


def expect_message(page, pattern: str) -> None:
    expect(page.locator(".message")).to_be_visible()
    expect(page.locator(".message")).to_contain_text(re.compile(pattern))


# ---- the picture before --------------------------------------------------------------------------


def test_the_picture_before_is_compared(visit_small):
    visited = visit_small()
    page, before = visited.page, visited.page.get_by_role("button", name="The one before")
    shown = page.locator(".picture img.over")
    title, note = page.locator(".hero .title"), page.locator(".hero .note")
    expect(before).to_be_hidden()
    pictures = [shown.get_attribute("src")]
    page.locator(".as-it-comes").check()
    for temperature in ("0.5", "0.7"):
        page.get_by_label("Temperature, as a number").fill(temperature)
        visited.generate()
        visited.wait_until_rested()
        expect(note).to_contain_text(f"temperature {temperature}")
        pictures.append(shown.get_attribute("src"))
        before.click()
        assert shown.get_attribute("src") == pictures[-2]
        expect(title).to_have_text(f"Before: flower, seed {FIRST_SEED}")
    expect(note).to_have_text("temperature 0.5, now 0.7.")
    before.click()
    assert shown.get_attribute("src") == pictures[-1]
    expect(note).to_contain_text("temperature 0.7")
    before.click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Picture", exact=True).click()
    assert keepsakes.read_png(Path(saved.value.path()).read_bytes())["temperature"] == 0.7
    expect(before).to_have_attribute("aria-pressed", "false")
    before.click()
    visited.generate()  # the same again
    visited.wait_until_rested()
    expect(before).to_be_visible()
    before.click()
    expect(note).to_have_text("Made with the same settings.")


def test_a_refused_run_takes_the_picture_before_away(visit_small):
    visited = visit_small()
    page = visited.page
    visited.generate()
    visited.wait_until_rested()
    before = page.get_by_role("button", name="The one before")
    before.click()
    page.locator("#dial-seed").fill("a lot")
    visited.generate()
    expect_message(page, "seed must be")
    expect(before).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".hero .title")).not_to_contain_text("Before")


# ---- replay --------------------------------------------------------------------------------------


def replay_ms(page, speed: str) -> float:
    """How long the replay takes at that speed, from its first frame to its last."""
    page.locator(".speed").select_option(speed)
    page.evaluate("window.seen = []")
    assert page.locator(".play").evaluate("play => (play.click(), play.title)") == "Pause"
    page.locator(".stage:not(.playing)").wait_for()
    expect(page.locator(".play")).to_have_attribute("title", "Replay")
    times = [each["time"] for each in page.evaluate("window.seen")]
    return times[-1] - times[0]


def test_replay_follows_the_speed(visit_small):
    page = visit_small().page
    page.evaluate(RECORD_FRAMES)
    slow, plain = (replay_ms(page, speed) for speed in ("0.5", "1"))
    fast = min(replay_ms(page, "4") for _ in range(3))  # a busy machine may hold any one of them up
    assert plain >= 0.95 * REPLAY_MS and slow >= 1.9 * REPLAY_MS
    assert fast < plain and fast < slow / 2


def test_space_and_arrows_work_on_the_timeline(visit_small):
    page = visit_small().page
    stage, made = page.locator(".stage"), page.locator('[data-name="evaluations"] b')
    page.locator(".speed").evaluate("speed => speed.add(new Option('slow', '0.01', true, true))")
    page.locator(".scrubber").focus()
    page.keyboard.press("ArrowLeft")
    expect(made).to_have_text("6")
    page.keyboard.press("Home")
    expect(made).to_have_text("1")
    page.keyboard.press("Space")
    expect(stage).to_have_class(re.compile(r"\bplaying\b"))
    page.keyboard.press("Space")
    expect(stage).not_to_have_class(re.compile(r"\bplaying\b"))


# ---- the token map -------------------------------------------------------------------------------


def lit(page) -> dict[str, set[int]]:
    """Cells by what the map shows of them while one is looked at."""
    return {
        name: set(page.locator(f".token.{name}").evaluate_all("all => all.map(e => Number(e.dataset.cell))"))
        for name in ("context", "own", "self")
    }


def test_a_token_says_what_it_could_see(visit_small):
    page = visit_small().page
    for place in (0, 3, 6, 15):
        check_token(page, place)


def check_token(page: Page, place: int) -> None:
    cell = K4.flat[place]
    patch = next(patch for patch in K4.patches if patch.start <= place < patch.stop)
    page.locator(f'.token[data-cell="{cell}"]').hover()
    assert lit(page) == {
        "context": set(K4.flat[: patch.start]),
        "own": set(K4.flat[patch.start : patch.stop]),
        "self": {cell},
    }
    line = page.locator(".looked")
    expect(line).to_contain_text(f"Module {patch.module}, patch {patch.index}: turn ")
    expect(line).to_contain_text(re.compile(r"of 7, at \d+\.\d\d s\. It saw"))
    expect(line).to_contain_text(f"the {patch.start} token" if patch.start else "no token before it")
    # The velocities of its module stand out.
    lines = page.locator(".norms polyline:not(.aside)")
    assert set(lines.evaluate_all("all => all.map(e => e.dataset.module)")) == {str(patch.module)}
    page.keyboard.press("Escape")
    expect(page.locator(".norms .aside")).to_have_count(0)
    assert lit(page) == {"context": set(), "own": set(), "self": set()}
    expect(line).to_contain_text("Choose a token")


def test_leaving_the_map_restores_it(visit_small):
    page = visit_small().page
    page.locator('.token[data-cell="5"]').hover()
    expect(page.locator(".map svg")).to_have_class(re.compile("looking"))
    page.locator(".hero .title").hover()
    expect(page.locator(".map svg")).not_to_have_class(re.compile("looking"))


def test_the_tokens_are_one_tab_stop_and_arrows_move_between_them(visit_small):
    page = visit_small().page
    stops = page.locator('.token[tabindex="0"]')
    expect(stops).to_have_count(1)
    stops.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.cell") == "8"
    assert lit(page)["self"] == {8}
    label = page.evaluate("document.activeElement.ariaLabel")
    assert label.startswith("Row 3, column 1. Module ") and "It saw" in label
    expect(stops).to_have_count(1)
    page.keyboard.press("Tab")
    assert lit(page)["self"] == set()


def test_a_tap_looks_at_a_token(visit_small):
    page = visit_small(**PHONE).page
    page.locator('.token[data-cell="9"]').tap()
    expect(page.locator(".token.self")).to_have_attribute("data-cell", "9")
    assert lit(page)["self"] == {9}
    page.locator(".hero .title").tap()
    expect(page.locator(".token.self")).to_have_count(0)


def test_tokens_can_be_looked_at_during_a_run(visit_small, hold):
    visited = visit_small()
    page = visited.page
    hold.after(2)
    visited.generate()
    expect(page.locator('[data-name="evaluations"] b')).to_have_text("2")
    page.locator(f'.token[data-cell="{K4.flat[6]}"]').hover()
    expect(page.locator(".looked")).to_contain_text("still to come. It will see the 4 tokens before it")
    assert lit(page)["context"] == set(K4.flat[:4])
    page.locator("#stop").click()


def test_the_steps_say_which_solver_takes_them(visit_small):
    said = visit_small().page.locator("#hint-steps")
    assert SampleSettings.solver == "heun"
    expect(said).to_have_text("From noise to patch in this many steps of Heun, 2 passes each.")
    assert generate.solver_steps("euler") == "steps"


# ---- velocities ----------------------------------------------------------------------------------


def test_velocities_are_drawn_with_a_line_a_module_as_far_as_the_run_is_shown(visit_small):
    page = visit_small().page
    means = page.locator(".norms .mean")
    expect(means).to_have_count(len(K4.scales))
    points = [
        len(line.split()) for line in means.evaluate_all("all => all.map(e => e.getAttribute('points'))")
    ]
    assert points == [SampleSettings.steps + 1] * 2  # and the end of the last one
    expect(page.locator(".norms .trace")).to_have_count(K4.evaluations)
    expect(page.locator(".norms svg")).to_have_attribute("aria-label", re.compile("module 1 .*module 2 "))
    page.locator(".scrubber").fill("1")
    expect(means).to_have_count(1)
    inside = page.locator(".norms").evaluate(
        """box => [...box.querySelectorAll("text, polyline")].every(e => {
            const [outer, inner] = [box.querySelector("svg"), e].map(each => each.getBoundingClientRect());
            return inner.left >= outer.left && inner.right <= outer.right && inner.top >= outer.top - 1;
        })"""
    )
    assert inside


def test_frames_carry_the_norms_of_the_velocities(small, small_client):
    job = small_client.submit(class_name="fish", k=2, steps=3, seed=4, api_name="/generate")
    received = [frame["norms"] for frame in job]
    expected = [frame.norms[0] for frame in small[0].stream("fish", k=2, steps=3, seed=4)]
    assert len(received) == K2.evaluations
    for got, norms in zip(received, expected, strict=True):
        assert got == pytest.approx(norms, abs=0.002) and len(got) == 3 and min(got) > 0


# ---- saving and restoring ------------------------------------------------------------------------

DROP = """([content, name, at]) => {
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name));
  const target = document.querySelector(at);
  for (const kind of ["dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def drop(page, data: bytes, name: str = "picture.png", at: str = "#stage .picture") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name, at])


def saved(page, what: str) -> tuple[str, bytes]:
    """Name and content of what the button saves."""
    with page.expect_download() as download:
        page.locator(f'[data-keep="{what}"]').click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_a_saved_picture_dropped_onto_the_page_restores_every_control(visit_small, small):
    visited = visit_small()
    page = visited.page
    before = controls(page)
    wanted = set_controls(page)
    assert all(wanted[name] != before[name] for name in wanted if name != "k")
    visited.generate()
    visited.wait_until_rested()
    name, data = saved(page, "png")
    assert name == "nestar-fish-k4-raster-seed9007199254740993.png"
    kept = keepsakes.read_png(data)
    assert kept["seed"] == 9007199254740993 and kept["weights"] == small[0].shown_origin
    picture = decode(page.locator(".picture img.over").get_attribute("src"))
    assert Image.open(io.BytesIO(data)).tobytes() == picture.tobytes()

    page.goto(small[1])
    page.locator(".film .ready").first.wait_for()
    assert controls(page) == before
    drop(page, data)
    expect_message(page, r"Restored: fish, k = 4, seed 9007199254740993\. Press Generate to see it\.$")
    assert controls(page) == wanted
    expect(page.locator(".stage.dropping")).to_have_count(0)
    visited.generate()
    visited.wait_until_rested()
    assert decode(page.locator(".picture img.over").get_attribute("src")).tobytes() == picture.tobytes()


def test_a_picture_dropped_beside_the_stage_or_on_another_tab_restores_its_settings(visit_small, small):
    page = visit_small().page
    page.get_by_role("tab", name="How it works").click()
    expect(page.locator("#studio")).to_be_hidden()
    kept = small[0].about(small[0].settings(class_name="fish", k=2, seed=31))
    drop(page, with_text(json.dumps(kept)), at="header.masthead")
    expect_message(page, r"Restored: fish, k = 2, seed 31\. Press Generate to see it\.$")
    assert controls(page)["seed"] == "31"


def test_a_picture_of_weights_that_were_trained_on_since_says_so(visit_small, small):
    page = visit_small().page
    kept = small[0].about(small[0].settings(class_name="fish", k=2, seed=31))
    assert kept["fingerprint"] == fingerprint_of(small[0].models["k2-lattice"])
    drop(page, with_text(json.dumps(kept | {"fingerprint": "00000000"})))
    expect_message(page, f"made with other {small[0].shown_origin} weights, so this page's will differ")


def test_a_picture_of_another_solver_than_the_pages_says_so(small):
    pipeline = small[0]
    first = pipeline.settings(class_name="fish", solver="euler")
    differs = " It was made with solver heun, so this page's will differ."
    for solver, said in (("euler", ""), ("heun", differs)):
        kept = pipeline.about(pipeline.settings(class_name="fish", solver=solver))
        assert generate.caveat(kept, pipeline, first) == said


def test_a_picture_restores_the_field_that_was_typed_in_last(visit_small, small):
    page = visit_small().page
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_label("Temperature, as a number").fill("1.2")  # and stays in it
    settings = small[0].settings(class_name="fish", k=4, seed=38, temperature=0.4)
    drop(page, with_text(json.dumps(small[0].about(settings))))
    expect_message(page, "Restored: fish, k = 4, seed 38")
    assert (controls(page)["seed"], controls(page)["temperature"]) == ("38", "0.4")


def test_a_sibling_from_diversity_says_what_it_shares(visit_small, small):
    page = visit_small().page
    kept = small[0].about(small[0].settings(class_name="fish", k=2, seed=31))
    drop(page, with_text(json.dumps(kept | {"parent": "6", "modules": 2})))
    expect_message(page, "made with modules 1 to 2 of seed 6, so this page's will differ")


def test_a_saved_picture_can_be_opened_with_a_button(visit_small):
    page = visit_small(**PHONE).page
    kept = KEPT | {"class_name": "fish", "seed": 12}
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a saved picture").click()
    data = with_international_text(json.dumps(kept | {"solver": "euler"}))
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": data})
    expect_message(page, "Restored: fish, k = 2, seed 12.*made with solver euler and weights from embedded")
    assert controls(page)["seed"] == "12"


UNFIT = {
    "unknown class": (with_text(json.dumps(KEPT | {"class_name": "unicorn"})), "unicorn"),
    "k without weights": (with_text(json.dumps(KEPT | {"k": 8})), "k = 8"),
    "out of range": (with_text(json.dumps(KEPT | {"cfg": -1})), "cfg"),
    "not a number": (with_text(json.dumps(KEPT | {"temperature": float("nan")})), "temperature"),
    "wrong kind": (with_text(json.dumps(KEPT | {"steps": {"a": 1}})), "steps"),
    "no class": (with_text(json.dumps({"version": 1})), "class_name"),
}


def test_files_that_restore_nothing_are_a_sentence_and_change_nothing(visit_small):
    page = visit_small().page
    before = controls(page)
    for fault, (data, word) in (BAD_FILES | UNFIT).items():
        page.evaluate("document.querySelector('.message').hidden = true")
        drop(page, data)
        expect_message(page, word)
        assert page.locator(".message").inner_text().endswith("."), fault
        assert controls(page) == before, fault


def test_the_animation_shows_the_run_that_is_on_screen(visit_small):
    page = visit_small().page
    name, data = saved(page, "animation")
    assert name == f"nestar-flower-k4-seed{FIRST_SEED}.webp"
    moving = Image.open(io.BytesIO(data))
    assert moving.n_frames == K4.evaluations
    expect(page.locator('[data-keep="animation"]')).to_be_enabled()


def test_an_animation_that_comes_takes_no_other_sentence_away(visit_small, monkeypatch):
    """One that says what to mend, for one."""
    asked, go_on, made = threading.Event(), threading.Event(), KeptRuns.animation

    def slowly(kept, run):
        asked.set()
        assert go_on.wait(120)
        return made(kept, run)

    monkeypatch.setattr(KeptRuns, "animation", slowly)
    page = visit_small().page
    with page.expect_download():
        page.locator('[data-keep="animation"]').click()
        expect_message(page, "The animation is being made.")
        assert asked.wait(120)
        page.get_by_label("Steps per patch, as a number").fill("999")
        page.locator("#generate").click()
        expect_message(page, "steps must be a whole number")
        go_on.set()
    expect_message(page, "steps must be a whole number")


def test_nothing_unfinished_can_be_saved(visit_small, hold):
    visited = visit_small()
    page = visited.page
    hold.after(2)
    visited.generate()
    expect(page.locator('[data-name="evaluations"] b')).to_have_text("2")
    for what in ("png", "animation"):
        expect(page.locator(f'[data-keep="{what}"]')).to_be_disabled()
    page.locator("#stop").click()


def test_a_share_link_restores_what_made_the_picture(visit_small, small):
    visited = visit_small(permissions=["clipboard-read", "clipboard-write"], at="?__sign=secret")
    page = visited.page
    wanted = set_controls(page)
    visited.generate()
    expect(page.locator(".stage")).to_have_attribute("data-state", "finished")
    page.get_by_role("button", name="Roll a new seed").click()
    assert controls(page) != wanted
    page.get_by_role("button", name="Copy link").click()
    expect_message(page, "Link copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(small[1]) and "secret" not in link
    assert page.url == link.replace("?", "?__sign=secret&", 1), "the visitor's own address keeps what is his"
    other = visit_small(at=link.removeprefix(small[1])).page
    expect_message(other, "The settings in the address stand in the controls")
    assert controls(other) == wanted
    # What is on screen is still the run of every first visit.
    expect(other.locator(".hero .title")).to_contain_text(f"seed {FIRST_SEED}")


def test_without_a_clipboard_the_link_is_copied_as_text(visit_small):
    """As over plain http, where one computer serves a room."""
    page = visit_small(permissions=["clipboard-read"]).page
    page.evaluate("() => void (window.own = navigator.clipboard)")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    button = page.get_by_role("button", name="Copy link")
    button.focus()
    page.keyboard.press("Enter")
    expect_message(page, "Link copied")
    assert page.evaluate("window.own.readText()") == page.url
    assert f"seed={FIRST_SEED}" in page.url and "class=flower" in page.url
    expect(button).to_be_focused()


def test_without_any_way_to_copy_the_address_is_the_link(visit_small):
    page = visit_small().page
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("() => void (document.execCommand = () => false)")
    page.get_by_role("button", name="Copy link").click()
    expect_message(page, "Copy this link")
    expect(page.locator(".message")).to_contain_text(page.url)


def test_a_press_before_the_link_is_answered_makes_its_picture(visit_small):
    page = visit_small().page
    answered = threading.Event()

    def late(route):
        answer = route.fetch()
        page.wait_for_timeout(500)
        route.fulfill(response=answer)
        answered.set()

    page.route(re.compile("/run/predict"), late, times=1)
    page.goto(page.url.partition("?")[0] + "?class=fish&steps=2&seed=9")
    page.locator(".film .ready").first.wait_for()
    page.locator("#generate").click()
    assert not answered.is_set()
    expect(page.locator(".hero .note")).to_contain_text("k = 4, 2 steps")
    assert re.search("class=fish.*seed=9", page.url)


def test_settings_that_do_not_get_through_are_said_to_be_lost(visit_small, small):
    visited = visit_small()
    page = visited.page
    before = controls(page)
    page.route(re.compile("/run/predict"), lambda route: route.fulfill(status=502), times=1)
    drop(page, with_text(json.dumps(small[0].about(small[0].settings(class_name="fish")))))
    expect_message(page, "The settings could not be restored. Try again in a moment.")
    assert controls(page) == before
    visited.complaints.clear()  # the browser's own, and Gradio's


def test_an_animation_that_does_not_come_can_be_asked_for_again(visit_small):
    visited = visit_small()
    page = visited.page
    page.route(re.compile("/component_server"), lambda route: route.fulfill(status=502), times=1)
    page.locator('[data-keep="animation"]').click()
    expect_message(page, "The animation did not come: the connection was lost.")
    visited.complaints.clear()  # the browser's own, and Gradio's
    with page.expect_download():
        page.locator('[data-keep="animation"]').click()


def test_an_animation_that_fails_is_said(visit_small, monkeypatch):
    def fails(self, run):
        raise OSError

    page = visit_small().page
    monkeypatch.setattr(KeptRuns, "animation", fails)
    page.locator('[data-keep="animation"]').click()
    expect_message(page, "The animation could not be made. Try again in a moment.")


def test_what_a_lender_of_gpus_says_is_passed_on():
    assert refused(gr.Error("You have used up your share."))["message"] == "You have used up your share."


def test_settings_outlive_a_lost_connection(visit_small, small):
    """Once the server is back Gradio loads the page anew."""
    visited = visit_small(at="?__theme=dark&seed=7")
    page = visited.page
    expect_message(page, "The settings in the address stand in the controls")  # it overwrites others
    wanted = set_controls(page)
    visited.generate()
    visited.wait_until_rested()
    assert "__theme=dark" in page.url and page.url.count("seed=") == 1, "a Space's own parameters stay"
    page.evaluate("window.before = true")
    page.context.set_offline(True)
    visited.generate()
    expect_message(page, "The connection was lost")
    page.context.set_offline(False)
    page.wait_for_function("!window.before")
    expect_message(page, "The settings in the address stand in the controls")
    assert controls(page) == wanted
    visited.complaints.clear()  # the browser's own about the network


@pytest.mark.parametrize(
    ("query", "word"),
    [("?class=unicorn", "unicorn"), ("?k=8", "k = 8"), ("?seed=-1", "seed"), ("?cfg=x", "cfg")],
)
def test_a_link_with_a_bad_value_says_so_and_leaves_the_defaults(visit_small, query, word):
    page = visit_small(at=query).page
    expect_message(page, word)
    usual = {name: f"{getattr(SampleSettings, name):g}" for name in ("k", "steps", "temperature", "cfg")}
    usual |= {"class": CLASSES[0], "order": SampleSettings.order, "seed": str(FIRST_SEED)}
    assert controls(page) == usual


def test_a_link_that_asks_for_other_things_is_left_alone(visit_small):
    page = visit_small(at="?__theme=dark").page
    page.wait_for_timeout(500)
    expect(page.locator(".message")).to_be_hidden()


# ---- orders --------------------------------------------------------------------------------------


def test_raster_order_grows_from_the_corner(visit_small):
    visited = visit_small()
    page = visited.page
    page.get_by_role("radio", name="raster").check()
    assert page.locator(".ticks .missing").all_inner_texts() == ["2", "8", "16"]
    visited.generate()
    visited.wait_until_rested()
    page.locator(".film button").first.click()
    known = page.locator(".token.known").evaluate_all("all => all.map(e => Number(e.dataset.cell))")
    assert sorted(known) == list(range(4))
    page.get_by_role("radio", name="lattice").check()
    assert page.locator(".ticks .missing").all_inner_texts() == ["8", "16"]


def test_an_order_without_weights_is_marked_and_says_why(browser, lattice_only):
    with visitors(browser, lattice_only[1]) as open_page:
        visited = open_page()
        page = visited.page
        expect(page.locator(".choices .missing")).to_have_text("raster")
        page.get_by_role("radio", name="raster").check()
        expect(page.locator(".dial.order .hint")).to_contain_text("No weights for raster order")
        visited.generate()
        expect_message(page, "k = 4 with order raster has no weights")


# ---- waiting -------------------------------------------------------------------------------------


def test_a_waiting_run_is_told_its_place_in_the_queue(visit_small, small, hold):
    hold.after(0)
    crowd = Client(small[1], verbose=False)
    first = crowd.submit(steps=2, api_name="/generate")
    assert hold.begun.acquire(timeout=60)
    crowd.submit(steps=2, api_name="/generate")  # not the visitor's steps, so that neither is made along
    deadline = time.monotonic() + 60
    while not httpx.get(f"{small[1]}gradio_api/queue/status").json()["queue_size"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    visited = visit_small()
    visited.generate()
    expect_message(visited.page, "you are number 2 of 2")
    first.cancel()
    assert hold.begun.acquire(timeout=60)
    expect_message(visited.page, "you are next")
    hold.released.set()


# ---- the endpoints -------------------------------------------------------------------------------


def test_every_action_has_an_endpoint(small, small_client):
    result = small_client.predict(
        class_name="fish",
        k=4,
        steps=2,
        temperature=0.9,
        cfg=1.5,
        seed=3,
        order="raster",
        api_name="/animation",
    )
    moving = Image.open(io.BytesIO(from_uri(result)))
    assert moving.format == "WEBP" and moving.n_frames == RASTER.evaluations
    final = list(small_client.submit(class_name="fish", k=2, steps=2, seed=3, api_name="/generate"))[-1]
    kept = small_client.predict(final["image"], api_name="/settings_of")
    expected = small[0].settings(class_name="fish", k=2, steps=2, seed=3)
    fingerprint = fingerprint_of(small[0].models["k2-lattice"])
    assert kept == keepsakes.about(expected, small[0].shown_origin, fingerprint)
    assert kept == small_client.predict(final["image"].partition(",")[2], api_name="/settings_of")


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        ("hello", "base64"),
        (base64.b64encode(BAD_FILES["plain"][0]).decode(), "no NestAR settings"),
        (base64.b64encode(UNFIT["unknown class"][0]).decode(), "unicorn"),
    ],
)
def test_settings_of_refuses_with_a_sentence(small_client, picture, word):
    with pytest.raises(AppError, match=word):
        small_client.predict(picture, api_name="/settings_of")


def test_page_and_calls_begin_with_the_weights_own_defaults(tmp_path):
    own = {"steps": 3, "cfg": 2.0, "solver": "euler"}
    folder = assemble(save_checkpoint(tmp_path), classes=CLASSES, defaults=own).folder
    page = app.build_page(NestARPipeline.from_pretrained(folder, device="cpu"))
    dials, stage, sheet = (
        next(block for block in page.blocks.values() if block.elem_id == name)
        for name in ("dials", "stage", "diversity-controls")
    )
    for part in (dials, sheet):
        assert (part.value["steps"], part.value["cfg"]) == (3, 2.0)
    assert "in this many steps." in dials.html_template
    assert {name: stage.value["settings"][name] for name in own} == own
    calls = page.get_api_info()["named_endpoints"]
    for name in ("/generate", "/animation", "/diversity", "/siblings", "/failure"):
        defaults = {each["parameter_name"]: each["parameter_default"] for each in calls[name]["parameters"]}
        assert (defaults["steps"], defaults["cfg"]) == (3, 2.0), name


def test_k_says_on_how_many_pictures_its_weights_were_trained_where_they_differ(
    visit_small, browser, lattice_only
):
    page = visit_small().page
    expect(page.locator("#hint-k")).to_have_text(re.compile(r"turns instead of 16\.$"))
    page.locator("#dial-k").fill("0")
    expect(page.locator("#hint-k")).to_have_text(re.compile(r" Less trained: 2,000 images seen\.$"))
    with visitors(browser, lattice_only[1]) as open_page:
        expect(open_page().page.locator("#hint-k")).to_have_text(re.compile(r"turns instead of 16\.$"))
