"""What the page says of its weights, and while weights are on their way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

import app
from nestar.hub import Progress
from nestar.model import NestAR, WeightsError
from nestar.pipeline import Models, NestARPipeline
from nestar.ui.generate import K_POSITIONS
from tests.conftest import served, visitors
from tests.small import CLASSES, K2, K4, small_model, small_tokenizer

FILE = "k2-lattice/module_1.safetensors"


class Distant:
    """Loads k = 4 at once; k = 2 comes as slowly as the test lets it, or not at all."""

    def __init__(self) -> None:
        self.asked, self.arrived = threading.Event(), threading.Event()
        self.broken = False
        self.models = {nesting.name: small_model(nesting) for nesting in (K4, K2)}

    def load(self, name: str, progress: Progress | None) -> NestAR:
        if name == K2.name:
            if self.broken:
                raise WeightsError(f"The Hub does not answer and {FILE} is not in the cache.")
            self.asked.set()
            progress(FILE, 2 * 2**20, 5 * 2**20)
            assert self.arrived.wait(120)
        return self.models[name]


@pytest.fixture(scope="module")
def far() -> Distant:
    return Distant()


@pytest.fixture(scope="module")
def models(far: Distant) -> Models:
    outlines = {name: model.outline for name, model in far.models.items()}
    return Models(outlines, far.load, torch.device("cpu"))


@pytest.fixture(scope="module")
def demo(models: Models) -> Iterator[gr.Blocks]:
    made_by = {"classes": CLASSES, "origin": "user/far", "device": torch.device("cpu")}
    built = app.build_page(NestARPipeline(models, small_tokenizer(), **made_by))
    assert list(models.loaded) == [K4.name], "the page opens on one nesting and loads no other"
    with served(built):
        yield built


@pytest.fixture
def distant(far: Distant, models: Models) -> Iterator[Distant]:
    """What the page's weights come from; k = 2 has not come yet, as on a page that has just opened."""
    far.asked.clear()
    far.arrived.clear()
    far.broken = False
    yield far
    far.arrived.set()
    loader = models._loaders.pop(K2.name, None)
    if loader is not None:
        loader.join(60)
    models.loaded.pop(K2.name, None)


@pytest.fixture
def open_page(browser: Any, demo: gr.Blocks, distant: Distant) -> Iterator[Callable[..., Any]]:
    with visitors(browser, demo.local_url) as opened:
        yield opened


def ask_for_k2(visit: Any) -> None:
    visit.page.locator("#dial-k").fill(str(K_POSITIONS.index(2)))
    visit.generate()


def test_where_a_gpu_is_lent_a_call_at_a_time_all_weights_are_loaded_at_the_start(
    distant: Distant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "on_zero_gpu", lambda: True)
    distant.arrived.set()
    outlines, device = {name: model.outline for name, model in distant.models.items()}, torch.device("cpu")
    lent = Models(outlines, lambda name, _: distant.load(name, lambda *_: None), device)
    app.build_page(NestARPipeline(lent, small_tokenizer(), classes=CLASSES, origin="user/far", device=device))
    assert set(lent.loaded) == {K4.name, K2.name}


def test_guidance_is_said_to_rise_where_it_does(open_page: Callable[..., Any], demo: gr.Blocks) -> None:
    assert dials_of(demo).props["rising"] is True
    hint = open_page().page.locator("#hint-cfg")
    expect(hint).to_contain_text("off (1) at the first patch")


def test_guidance_is_not_said_to_rise_where_weights_have_it_constant() -> None:
    model, device = small_model(K4), torch.device("cpu")
    models = Models({K4.name: model.outline}, lambda name, progress: model, device)
    made_by = {"classes": CLASSES, "origin": "user/own", "device": device}
    pipeline = NestARPipeline(models, small_tokenizer(), defaults={"schedule": "constant"}, **made_by)
    assert dials_of(app.build_page(pipeline)).props["rising"] is False


def dials_of(demo: gr.Blocks) -> gr.HTML:
    return next(block for block in demo.blocks.values() if block.elem_id == "dials")


def test_weights_that_are_on_their_way_say_so(open_page: Callable[..., Any], distant: Distant) -> None:
    visit = open_page()
    ask_for_k2(visit)
    said = visit.page.locator(".stage .message")
    expect(said).to_have_text(f"Weights are on their way from the Hub: {FILE}, 40% of 5.0 MB.")
    distant.arrived.set()
    visit.wait_until_rested()
    expect(said).to_be_hidden()
    expect(visit.page.locator(".film .ready img")).to_have_count(len(K2.scales))


def test_stop_ends_the_wait_for_weights_and_they_come_all_the_same(
    open_page: Callable[..., Any], distant: Distant
) -> None:
    visit = open_page()
    ask_for_k2(visit)
    expect(visit.page.locator(".stage .message")).to_contain_text("on their way")
    visit.page.locator("#stop").click()
    expect(visit.page.locator("#stage")).not_to_contain_text("on their way")
    distant.arrived.set()
    visit.generate()
    expect(visit.page.locator(".film .ready img")).to_have_count(len(K2.scales))
    visit.wait_until_rested()


def test_weights_that_cannot_be_had_are_one_sentence_and_the_others_serve(
    open_page: Callable[..., Any], distant: Distant
) -> None:
    distant.broken = True
    visit = open_page()
    ask_for_k2(visit)
    said = visit.page.locator(".stage .message")
    expect(said).to_have_text(f"The Hub does not answer and {FILE} is not in the cache.")
    visit.page.locator("#dial-k").fill(str(K_POSITIONS.index(4)))
    visit.generate()
    visit.wait_until_rested()
    expect(said).to_be_hidden()


def test_the_head_lists_the_nestings(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport={"width": 390, "height": 844}).page
    page.get_by_text("2 nestings", exact=True).click()
    expect(page.get_by_role("rowheader", name=K2.name)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_other_tabs_say_so_too(open_page: Callable[..., Any], distant: Distant) -> None:
    page = open_page().page
    page.get_by_role("tab", name="Diversity").click()
    page.locator("#diversity-nesting").select_option(label="k = 2")
    page.locator("#diversity-generate").click()
    grid = page.locator("#diversity-grid")
    expect(grid).to_contain_text(f"Weights are on their way from the Hub: {FILE}, 40% of 5.0 MB.")
    distant.arrived.set()
    grid.locator('[data-state="finished"]').wait_for()
    expect(grid).not_to_contain_text("on their way")


def test_who_waits_for_weights_gives_the_sampler_to_who_waits_for_it(
    open_page: Callable[..., Any], distant: Distant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestar.ui.answers.FETCH_SECONDS", 0.5)
    far, near = open_page(), open_page()
    ask_for_k2(far)
    said = far.page.locator(".stage .message")
    expect(said).to_contain_text("on their way")
    time.sleep(0.8)
    expect(said).to_contain_text("on their way")  # nobody else waits
    near.generate()
    near.wait_until_rested()
    expect(near.page.locator(".film .ready img")).to_have_count(len(K4.scales))
    expect(said).to_have_text(
        f"Weights are on their way from the Hub: {FILE}, 40% of 5.0 MB. "
        "Others wait for the sampler: try again in a moment."
    )
    distant.arrived.set()
    far.generate()
    far.wait_until_rested()
    expect(far.page.locator(".film .ready img")).to_have_count(len(K2.scales))


def test_a_revision_of_the_embedded_weights_is_refused_before_a_page_opens() -> None:
    with pytest.raises(WeightsError, match="the embedded weights have none"):
        app.open_page(None, "v1", "cpu")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("/generate", {"k": 2}),
        ("/diversity", {"k": 2, "count": 2}),
        ("/failure", {"k": 2, "failure": "hot"}),
    ],
)
def test_a_call_by_name_gives_the_sampler_up_too(
    open_page: Callable[..., Any],
    distant: Distant,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    values: dict[str, Any],
) -> None:
    monkeypatch.setattr("nestar.ui.answers.FETCH_SECONDS", 0.5)
    visit = open_page()
    client = Client(visit.page.url, verbose=False)
    far = client.submit(class_name="fish", steps=1, **values, api_name=name)
    assert distant.asked.wait(30)
    visit.generate()
    visit.wait_until_rested()
    with pytest.raises(AppError, match="Others wait for the sampler: try again in a moment"):
        far.result(timeout=30)


def test_who_waits_for_weights_by_name_and_leaves_is_gone(demo: gr.Blocks, distant: Distant) -> None:
    def await_runs(going: int, name: str) -> None:
        until = time.monotonic() + 60
        while demo.runs.going != going:
            assert time.monotonic() < until, f"{name}: {demo.runs.going} runs, not {going}"
            time.sleep(0.02)

    with httpx.Client(base_url=f"{demo.local_url}gradio_api", timeout=60) as client:
        for name in ("generate", "animation", "diversity", "nearest", "failure"):
            values = {"k": 2} | ({"failure": "hot"} if name == "failure" else {})
            event = client.post(f"/call/v2/{name}", json=values).json()["event_id"]
            with client.stream("GET", f"/call/{name}/{event}"):
                await_runs(1, name)
            await_runs(0, name)
        event = client.post("/call/v2/generate", json={"k": 4, "steps": 1}).json()["event_id"]
        with client.stream("GET", f"/call/generate/{event}") as answer:
            assert "event: complete" in answer.read().decode(), "the sampler is free"
