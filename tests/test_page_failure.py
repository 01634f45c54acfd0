""" "When it fails": what is measured, healthy runs made once, and the tab in a real browser."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect

import app
from nestar import keepsakes
from nestar.data import tiny_worlds
from nestar.data.pools import held_out_tokens
from nestar.evaluation.experiments.alignment import TIMES, velocity_alignment
from nestar.images import from_pil
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.settings import SampleSettings, SettingsError
from nestar.ui import laboratory as laboratory_module
from nestar.ui.failure import signatures_to_json
from nestar.ui.frames import from_uri
from nestar.ui.generate import first_settings
from nestar.ui.laboratory import METERS, HealthyRuns, Laboratory, consequence, experiment_panels
from nestar.ui.runs import Turn
from nestar.ui.signatures import HOT, STRONG, compared, unequal
from tests.conftest import PATIENCE_MS, schemes, served, tab_visitors, visitors
from tests.small import CLASSES, K2, K4, small_model, small_tokenizer
from tests.test_page import CONTRAST, PHONE, Hold

K8 = Nesting.nested(4, 4, 8)
APART = f"{K4.name}.separate"
USUAL = f"Steps: {SampleSettings.steps}"
ALL = ("steps-1", "steps-2", "steps-3", "cold", "hot", "guidance", "separate", "k")


def pipeline_of(*nestings: Nesting, apart: bool = False, classes=tiny_worlds.CLASSES) -> NestARPipeline:
    """Random weights for these nestings, and others for k = 4 if `apart`."""
    models = {nesting.name: small_model(nesting, len(classes)) for nesting in nestings}
    if apart:
        models[APART] = small_model(K4, len(classes))
        with torch.no_grad():
            for parameter in models[APART].parameters():
                parameter.mul_(0.7)
    device = torch.device("cpu")
    return NestARPipeline(models, small_tokenizer(), classes=classes, origin="small", device=device)


@pytest.fixture(scope="module")
def family() -> NestARPipeline:
    return pipeline_of(K4, K2, K8, apart=True)


def provoked(laboratory: Laboratory, name: str, cancel=None, **values) -> list[dict]:
    failure = laboratory.find(name)
    given = {"class_name": "fish", "k": 4, "steps": 6, "seed": 3} | values
    return list(laboratory.provoke(failure, laboratory.sides(failure, **given), cancel or threading.Event()))


# ---- what is run and measured ------------------------------------------------------------------------


def test_weights_trained_on_different_numbers_of_images_are_not_compared_in_silence():
    pipeline = pipeline_of(K4, K2, apart=True)
    laboratory = Laboratory(pipeline)
    separate, large = laboratory.failures["separate"], laboratory.failures["k"]
    assert unequal(separate, pipeline) == "", "nothing says that they differ"
    pipeline.models[K4.name].record = {"images_seen": 12_000, "init": {"images_seen": 500}}
    pipeline.models[APART].record = {"images_seen": 4000}
    said = unequal(separate, pipeline)
    assert "12,500 and 4,000" in said
    assert unequal(large, pipeline) == "", "it cannot be shown at all"
    assert unequal(laboratory.failures["hot"], pipeline) == ""
    rows = {row["name"]: row for row in signatures_to_json(laboratory, first_settings(pipeline))}
    assert rows["separate"]["failures"][0]["remark"] == said


def test_both_sides_differ_in_what_the_failure_says_and_nothing_else(family):
    laboratory = Laboratory(family)
    own = {
        "steps-1": {"steps": (6, 1)},
        "steps-2": {"steps": (6, 2)},
        "steps-3": {"steps": (6, 3)},
        "cold": {"temperature": (SampleSettings.temperature, 0.0)},
        "hot": {"temperature": (SampleSettings.temperature, 1.5)},
        "guidance": {"cfg": (SampleSettings.cfg, 6.0)},
        "separate": {"nesting": (K4.name, APART)},
        "k": {"nesting": (K2.name, K8.name), "k": (2, 8)},
    }
    assert tuple(own) == tuple(laboratory.failures) == ALL
    for name, differ in own.items():
        failure = laboratory.find(name)
        sides = laboratory.sides(failure, class_name="fish", k=4, steps=6, seed=3)
        one, other = (vars(side) for side in sides)
        assert {key: (one[key], other[key]) for key in one if one[key] != other[key]} == differ
        assert one["count"] == (4 if name == "cold" else 1)


@pytest.mark.parametrize("name", ALL)
def test_both_pictures_come_as_they_are_made_and_then_the_figures(family, name):
    laboratory = Laboratory(family)
    values = provoked(laboratory, name)
    sides = laboratory.sides(laboratory.find(name), class_name="fish", k=4, steps=6, seed=3)
    plans = [family.plan_of(side) for side in sides]
    known = [tuple(side["known"] for side in value["sides"]) for value in values]
    n = K4.n
    stops = [[patch.stop for patch in plan.patches] for plan in plans]
    assert known == [(0, 0), *((stop, 0) for stop in stops[0]), *((n, stop) for stop in stops[1]), (n, n)]
    ended = values[-1]
    assert [value["state"] for value in values] == ["running"] * (len(values) - 1) + ["finished"]
    failure = laboratory.find(name)
    expected = [*failure.meters, *(["velocity_gap"] if failure.velocities else [])]
    assert [figure["name"] for figure in ended["figures"]] == expected
    assert ended["consequence"].startswith("Measured, left to right: ")
    for side, settings in zip(ended["sides"], sides, strict=True):
        assert [image[:14] for image in side["images"]] == ["data:image/png"] * settings.count
    expected = [family(**vars(settings)).images for settings in sides]
    for figure in ended["figures"]:
        if figure["name"] in laboratory_module.MEASURES:
            measure = laboratory_module.MEASURES[figure["name"]]
            again = [measure(from_pil(images), family.tokenizer.stride) for images in expected]
            assert figure["values"] == pytest.approx(again, rel=1e-3)


def test_without_noise_seeds_do_not_differ(family):
    figure = provoked(Laboratory(family), "cold")[-1]["figures"][0]
    assert figure["name"] == "spread" and figure["values"][0] > 1
    assert figure["values"][1] == pytest.approx(0, abs=0.1)  # rows of a batch may round differently


def test_a_healthy_run_is_made_once_for_its_settings(family, monkeypatch):
    laboratory, asked = Laboratory(family), []
    stream = laboratory.stream
    monkeypatch.setattr(laboratory, "stream", lambda s, cancel: asked.append(s) or stream(s, cancel))
    first = provoked(laboratory, "steps-1")[-1]
    again = provoked(laboratory, "steps-2")
    assert [side.steps for side in asked] == [6, 1, 2]
    assert again[1]["sides"][0] == first["sides"][0], "whole at once"
    provoked(laboratory, "steps-1", seed=4)
    assert [(side.steps, side.seed) for side in asked[3:]] == [(6, 4), (1, 4)]


def test_kept_runs_are_bounded():
    kept = HealthyRuns(pixels=200)
    one, two, three, huge = (SimpleNamespace(pixels=pixels) for pixels in (100, 100, 100, 1000))
    kept.put("a", one), kept.put("b", two), kept.get("a"), kept.put("c", three)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (one, None, three)
    kept.put("d", huge)
    assert (kept.get("a"), kept.get("d")) == (None, huge), "the last one always stays"


def test_stop_ends_a_run_on_either_side(family):
    laboratory = Laboratory(family)
    failure = laboratory.find("hot")
    sides = laboratory.sides(failure, class_name="fish", k=4, steps=6)
    for values_before in (2, K4.evaluations + 3):
        cancel = threading.Event()
        run = laboratory.provoke(failure, sides, cancel)
        for _ in range(values_before):
            value = next(run)
        cancel.set()
        (last,) = run
        assert last["state"] == "stopped" and last["sides"] == value["sides"]
        laboratory.kept = HealthyRuns()


def test_figures_see_what_they_are_named_for():
    flat = torch.zeros(2, 3, 32, 32)
    tiled = flat.clone()
    tiled[:, :, :, 16:] = 1.0
    ramp = torch.linspace(-1, 1, 32).expand(2, 3, 32, 32).contiguous()
    measures = laboratory_module.MEASURES
    assert measures["seams"](tiled, 16) == float("inf") and measures["seams"](ramp, 16) == pytest.approx(1)
    assert measures["detail"](flat, 16) == 0
    assert measures["detail"](ramp, 16) == pytest.approx(255 / 31 / 2)  # along one of two directions
    assert measures["contrast"](flat, 16) == 0 and measures["contrast"](ramp, 16) > 70
    assert measures["spread"](torch.stack([flat[0], flat[0] + 1]), 16) == pytest.approx(127.5)
    pictures = (Image.new("RGB", (4, 4), (255, 0, 0)),)
    assert from_pil(pictures)[0, :, 0, 0].tolist() == [1, -1, -1]


def test_the_consequence_in_words():
    def figure(name, before, after):
        return METERS[name].reading([before, after])

    labels = ["k = 2", "k = 8"]
    figures = [figure("seams", 1.0, 1.2), figure("detail", 8.0, 6.0), figure("contrast", 40.0, 40.02)]
    said = "Measured, left to right: seams 20 % up, detail 25 % down, contrast alike."
    assert consequence(figures, labels, False) == said
    assert consequence(figures, labels, True) == f"{said} Stronger seams here: k = 8."
    none = consequence([figure("seams", 0.96, 0.91)], labels, True)
    assert none.endswith("seams 5 % down. No seams on either side.")
    assert consequence([figure("spread", 0.0, 5.0)], labels, False).endswith("5.0 in place of none.")
    nearly = consequence([figure("contrast", 51.84, 51.95)], labels, False)
    assert nearly == "Measured, left to right: contrast alike.", "no change of 0 %"


@pytest.mark.parametrize(
    ("failure", "values", "said"),
    [
        ("steps-1", {"steps": 1}, "steps must be above 1, with which it fails, got 1."),
        ("hot", {"temperature": 2.0}, f"temperature must be below {HOT:g}, with which it fails, got 2."),
        ("guidance", {"cfg": STRONG}, f"cfg must be below {STRONG:g}, with which it fails, got {STRONG:g}."),
    ],
)
def test_a_healthy_side_is_milder_than_the_other(failure, values, said):
    laboratory = Laboratory(pipeline_of(K4, K2))
    one = laboratory.find(failure)
    with pytest.raises(SettingsError, match=f"^{re.escape(said)}$"):
        laboratory.sides(one, class_name=CLASSES[0], **values)
    healthy, broken = laboratory.sides(one, class_name=CLASSES[0])
    assert healthy != broken


def test_what_fails_no_worse_than_the_weights_own_settings_cannot_be_pressed():
    pipeline = pipeline_of(K4, K2)
    pipeline.defaults = {"steps": 3, "cfg": 7.0}
    laboratory = Laboratory(pipeline)
    rows = signatures_to_json(laboratory, first_settings(pipeline))
    reasons = {each["name"]: each["reason"] for row in rows for each in row["failures"]}
    begun = "These weights begin so themselves: "
    assert reasons["steps-3"] == f"{begun}steps must be above 3, with which it fails, got 3."
    assert reasons["guidance"] == f"{begun}cfg must be below {STRONG:g}, with which it fails, got 7."
    assert reasons["steps-2"] == reasons["cold"] == reasons["hot"] == ""
    # A call can still ask for it.
    laboratory.sides(laboratory.find("guidance"), class_name=CLASSES[0], cfg=2.0)


def test_what_lacks_weights_says_which():
    laboratory = Laboratory(pipeline_of(K4, K2))
    with pytest.raises(SettingsError, match=rf"^There are no weights for {APART} here\.$"):
        laboratory.find("separate")
    with pytest.raises(SettingsError, match=r"^There are no weights for k8-lattice here\.$"):
        laboratory.find("k")
    assert laboratory.find("steps-1").needs == ()


# ---- velocities --------------------------------------------------------------------------------------


def test_without_coordination_is_held_against_what_saw_as_many_images():
    together = f"{K4.name}.together"
    pipeline = pipeline_of(K4, K2, apart=True)
    assert compared(pipeline) == (K4.name, APART)
    other = NestARPipeline(
        {**dict(pipeline.models), together: small_model(K4)},
        pipeline.tokenizer,
        classes=pipeline.classes,
        origin="small",
        device=pipeline.device,
    )
    assert compared(other) == (together, APART)
    laboratory = Laboratory(other)
    assert laboratory.comparable() == [together, APART]
    sides = laboratory.sides(laboratory.find("separate"), class_name="fish")
    assert [settings.nesting for settings in sides] == [together, APART]


def test_alignment_is_that_of_the_experiment(family):
    laboratory, cancel = Laboratory(family), threading.Event()
    assert laboratory.comparable() == [K4.name, APART]
    values = list(laboratory.alignment([K4.name, APART], 6, cancel, seconds=float("inf")))
    assert values[-1]["state"] == "finished"
    counts = [sum(len(line["points"]) for line in value["lines"]) for value in values]
    assert counts == [*range(counts[-1] + 1), counts[-1]], "a point at a time"
    for name in (K4.name, APART):
        rows = velocity_alignment(family.models[name], *held_out_tokens(family.tokenizer, K4, 6))
        for pair in (1,):
            (line,) = [
                line for line in values[-1]["lines"] if (line["weights"], line["pair"]) == (name, pair)
            ]
            expected = [row["difference"] for row in rows if row["pair"] == pair]
            assert [point["t"] for point in line["points"]] == list(TIMES)
            assert [point["difference"] for point in line["points"]] == pytest.approx(expected, rel=1e-3)


def test_alignment_stops_and_is_bounded(family):
    laboratory, cancel = Laboratory(family), threading.Event()
    run = laboratory.alignment([K4.name], 4, cancel)
    next(run), next(run)
    cancel.set()
    assert [value["state"] for value in run] == ["stopped"]
    (*_, last) = laboratory.alignment([K4.name], 4, threading.Event(), seconds=0.0)
    assert last["state"] == "out of time" and len(last["lines"][0]["points"]) == 1


def test_velocities_need_tiny_worlds_and_neighbours():
    assert "other classes" in Laboratory(pipeline_of(K4, classes=("a", "b"))).why_no_velocities()
    lonely = Laboratory(pipeline_of(Nesting.nested(4, 4, 16)))
    assert "one module" in lonely.why_no_velocities()
    assert Laboratory(pipeline_of(K4)).why_no_velocities() == ""


def test_the_experiment_is_drawn_from_its_file(tmp_path):
    file = tmp_path / "coordination.json"
    assert experiment_panels(file) is None
    file.write_text("{")
    assert experiment_panels(file) is None
    rows = [
        {"part": "alignment", "member": arm, "pair": pair, "t": t, "difference": pair + t}
        for arm in ("lambda-0", "lambda-0.1")
        for pair in (1, 2)
        for t in (0.1, 0.9)
    ]
    arms = [
        {"arm": "lambda-0", "label": "λ = 0", "parameters": 8},
        {"arm": "lambda-0.1", "label": "λ = 0.1", "parameters": 8},
    ]
    final = {"part": "final", "member": "lambda-0.1", "fid": 21.96}
    report = {"arms": arms, "rows": [*rows, final], "images_per_arm": 9}
    file.write_text(json.dumps(report))
    found = experiment_panels(file)
    assert (found["images"], found["parameters"]) == (9, 8)
    assert [panel["title"] for panel in found["panels"]] == ["Modules 1 and 2", "Modules 2 and 3"]
    assert found["panels"][1]["lines"] == [
        {"label": "λ = 0", "points": [[0.1, 2.1], [0.9, 2.9]]},
        {"label": "λ = 0.1, FID 22.0", "points": [[0.1, 2.1], [0.9, 2.9]]},
    ]


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
    with tab_visitors(browser, url, "When it fails", ".signature") as open_tab:
        yield open_tab


def button(page: Page, name: str):
    return page.locator(f'[data-failure="{name}"]')


def row(page: Page, name: str):
    return page.locator(".signature").filter(has=button(page, name))


def test_a_failure_is_shown_beside_the_healthy_run_with_its_figures(visit):
    page = visit()
    page.locator(".failing [name=class_name]").select_option("fish")
    page.locator(".failing [name=seed]").fill("12")
    own = row(page, "steps-2")
    assert own.locator("figcaption b").all_inner_texts() == [USUAL, "Steps: 1"]
    button(page, "steps-2").click()
    expect(own.locator(".said")).to_contain_text("Measured, left to right: seams")
    assert own.locator("figcaption b").all_inner_texts() == [USUAL, "Steps: 2"]
    alts = [image.get_attribute("alt") for image in own.locator("img").all()]
    assert alts == [f"fish, seed 12, {USUAL}", "fish, seed 12, Steps: 2"]
    page.locator(".failing [name=class_name]").select_option("flower")
    assert own.locator(".of").all_text_contents() == ["fish, seed 12"] * 2, "a row says what it is of"
    shown = own.locator("img").evaluate_all(
        "images => images.every(image => image.complete && image.naturalWidth)"
    )
    assert shown
    assert own.locator("dt").all_inner_texts() == ["Seams", "Detail"] * 2
    # Another row: this one keeps what it shows.
    button(page, "cold").click()
    expect(row(page, "cold").locator(".said")).to_contain_text("spread of seeds")
    expect(row(page, "cold").locator("img:not([hidden])")).to_have_count(8)
    assert [image.get_attribute("alt") for image in own.locator("img").all()] == alts
    page.locator(".meters summary").click()
    expect(page.locator(".meters dt")).to_have_count(len(METERS))


@pytest.fixture
def unhurried(monkeypatch) -> None:
    """Velocities are compared to the end, on however slow a machine."""
    unbound = partialmethod(Laboratory.alignment, seconds=float("inf"))
    monkeypatch.setattr(Laboratory, "alignment", unbound)


@pytest.fixture
def hold(family, monkeypatch) -> Iterator[Hold]:
    holding = Hold(family, monkeypatch)
    yield holding
    holding.released.set()


def test_a_run_that_others_ended_says_so(visit, monkeypatch):
    """Its last pictures say no more than that it was stopped, and the visitor has pressed nothing."""

    def gives_way(turn: Turn) -> bool:
        turn.gave_way = True
        turn.set()
        return True

    monkeypatch.setattr(Turn, "is_set", gives_way)
    page = visit()
    page.locator(".failing [name=seed]").fill("98")
    button(page, "hot").click()
    expect(row(page, "hot").locator(".said")).to_contain_text("as others wait")


def test_the_button_of_the_run_stops_it(visit, hold):
    page = visit()
    hold.after(1)
    page.locator(".failing [name=seed]").fill("99")
    button(page, "hot").click()
    expect(button(page, "hot")).to_have_text("Stop")
    row(page, "hot").locator("img:not([hidden])").first.wait_for()
    expect(button(page, "cold")).to_have_attribute("aria-disabled", "true")
    button(page, "hot").click()
    expect(row(page, "hot").locator(".said")).to_have_text("Stopped.")
    expect(button(page, "hot")).to_have_text("Temperature 1.5")
    # Gradio cancels with Stop what is sent in the same moment: the panel waits until Stop is done.
    # The worker is free for the next one, which is held as well.
    button(page, "cold").click()
    expect(row(page, "cold").locator("img:not([hidden])")).to_have_count(4)
    assert row(page, "hot").locator("img:not([hidden])").count() == 1


def test_a_double_click_does_not_stop_what_it_starts(visit):
    page = visit()
    button(page, "steps-2").dblclick()
    expect(row(page, "steps-2").locator(".said")).to_contain_text("Measured, left to right: seams")


def test_a_key_that_is_held_does_not_stop_what_it_starts(visit, hold):
    page = visit()
    hold.after(1)
    page.locator(".failing [name=seed]").fill("97")
    button(page, "hot").focus()
    page.keyboard.down("Enter")
    assert hold.begun.acquire(timeout=10)
    page.keyboard.down("Enter")  # as a keyboard repeats it
    expect(row(page, "hot").locator(".said")).not_to_have_text("Stopped.")
    page.keyboard.up("Enter")
    page.keyboard.press("Enter")
    expect(row(page, "hot").locator(".said")).to_have_text("Stopped.")


def test_on_a_tablet_there_is_room_for_the_words(visit):
    page = visit(viewport={"width": 768, "height": 1024})
    for width in (768, 834):
        page.set_viewport_size({"width": width, "height": 1024})
        assert page.locator(".about").first.bounding_box()["width"] > 400, width


def test_a_lost_connection_is_said_and_ends_the_run(browser, url, hold):
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("tab", name="When it fails").first.click()
    hold.after(1)
    page.locator(".failing [name=seed]").fill("98")
    button(page, "hot").click()
    row(page, "hot").locator("img:not([hidden])").first.wait_for()
    context.set_offline(True)
    expect(row(page, "hot").locator(".said.alarm")).to_contain_text("The connection was lost.")
    expect(button(page, "hot")).to_have_text("Temperature 1.5")
    context.close()


def test_a_refused_seed_is_one_sentence_in_its_row(visit):
    page = visit()
    page.locator(".failing [name=seed]").fill("a lot")
    button(page, "guidance").click()
    expect(row(page, "guidance").locator(".said.alarm")).to_contain_text("seed must be a whole number")
    expect(button(page, "guidance")).to_have_text("Guidance 6")


def test_velocities_are_measured_live(visit, unhurried):
    page = visit()
    page.locator(".measure").click()
    expect(page.locator(".aligning .said")).to_contain_text("16 held-out pictures")
    expect(page.locator(".live .plot polyline")).to_have_count(2)
    expect(page.locator(".live .plot circle")).to_have_count(2 * len(TIMES))
    texts = page.locator(".live .keys li").all_inner_texts()
    assert [text.rpartition(":")[0] for text in texts] == [
        "modules 1 and 2, coordinated",
        "modules 1 and 2, λ = 0",
    ]


def test_it_fits_a_phone_and_can_be_read(visit):
    page = visit(**PHONE)
    button(page, "k").click()
    expect(row(page, "k").locator(".said")).to_contain_text("Measured")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for scheme in schemes(page):
        assert page.evaluate(CONTRAST.replace("#studio *", "#failures *, #alignment *")) == [], scheme
    assert page.locator("#failures img:not([alt])").count() == 0


@pytest.fixture(scope="module")
def bare_url() -> Iterator[str]:
    """A page with k = 4 alone, for classes that are not Tiny Worlds'."""
    pipeline = pipeline_of(K4, classes=("flower", "<b>${fish}</b>"))
    pipeline.defaults = {"steps": 3}  # one of the numbers that fail
    with served(app.build_page(pipeline)) as address:
        yield address


def test_what_cannot_be_shown_is_off_and_says_why(browser, bare_url):
    with visitors(browser, bare_url) as open_page:
        page = open_page().page
        page.get_by_role("tab", name="When it fails").first.click()
        expect(button(page, "separate")).to_be_disabled()
        expect(row(page, "separate").locator(".reason")).to_have_text(
            f"There are no weights for {APART} here."
        )
        expect(row(page, "separate").locator(".pair")).to_be_hidden()
        expect(button(page, "steps-3")).to_be_disabled()
        expect(row(page, "steps-3").locator(".reason")).to_have_text(
            "3 steps: These weights begin so themselves: steps must be above 3, with which it fails, got 3."
        )
        expect(button(page, "steps-1")).to_be_enabled()
        expect(row(page, "steps-1").locator(".pair")).to_be_visible()
        expect(button(page, "k")).to_be_disabled()
        expect(page.locator(".measure")).to_be_disabled()
        expect(page.locator(".aligning .said")).to_contain_text("other classes")
        expect(page.locator(".trained")).to_contain_text("Trained alike but for λ")  # whatever weights serve
        options = page.locator(".failing [name=class_name] option").all_inner_texts()
        assert options == ["flower", "<b>${fish}</b>"]
        button(page, "steps-1").click()
        expect(row(page, "steps-1").locator(".said")).to_contain_text("Measured")


# ---- the endpoints -----------------------------------------------------------------------------------


def test_failure_endpoint_streams_both_sides(client):
    received = list(client.submit(failure="hot", class_name="fish", steps=3, seed=2, api_name="/failure"))
    ended = received[-1]
    assert ended["state"] == "finished"
    assert [side["label"] for side in ended["sides"]] == [
        f"Temperature {SampleSettings.temperature:g}",
        "Temperature 1.5",
    ]
    assert len(received) == 2 * K4.evaluations + 2
    assert ended["sides"][0]["images"] != ended["sides"][1]["images"]
    kept = keepsakes.read_png(from_uri(ended["sides"][1]["images"][0]))
    assert (kept["class_name"], kept["seed"], kept["temperature"]) == ("fish", 2, 1.5)


def test_each_picture_of_a_row_remembers_its_own_seed(family):
    *_, ended = provoked(Laboratory(family), "cold", seed=7)
    for side in ended["sides"]:
        seeds = [keepsakes.read_png(from_uri(image))["seed"] for image in side["images"]]
        assert len(seeds) > 1 and seeds == list(range(7, 7 + len(seeds)))


def test_alignment_endpoint_takes_any_weights_with_neighbours(client, unhurried):
    ended = list(client.submit(nesting=K2.name, pictures=2, api_name="/alignment"))[-1]
    assert [line["pair"] for line in ended["lines"]] == list(range(1, K2.modules))
    assert all(len(line["points"]) == len(TIMES) for line in ended["lines"])


@pytest.mark.parametrize(
    ("api", "values", "sentence"),
    [
        ("/failure", {"failure": "boredom"}, "failure must be one of steps-1"),
        ("/failure", {"failure": "cold", "seed": -1}, "seed must be"),
        ("/alignment", {"nesting": "one-shot"}, "nesting must be one of"),
        ("/alignment", {"pictures": 0}, "pictures must be"),
    ],
)
def test_endpoints_refuse_with_a_sentence(client, api, values, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(**values, api_name=api)
