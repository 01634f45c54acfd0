"""The tab "How it works": its nesting and its flow against Python's, and its six panels in a real browser."""

import itertools
import math
import re
from collections.abc import Callable, Iterator

import gradio as gr
import pytest
from playwright.sync_api import Locator, Page, expect

import app
from nestar.nesting import Nesting
from nestar.pipeline import NestARPipeline
from nestar.ui import how
from nestar.ui.assets import scripts
from tests.conftest import schemes, served, tab_visitors, visitors
from tests.small import save_checkpoint
from tests.test_page import CONTRAST, PHONE, contrast

# Declarations only: all that runs on its own is in how.js.
SCRIPT = scripts(*(name for name in how.SCRIPTS if name != "how.js"))


@pytest.fixture(scope="module")
def small_url(tmp_path_factory) -> Iterator[str]:
    """Address of the whole page on small random weights."""
    folder = save_checkpoint(tmp_path_factory.mktemp("weights"))
    with served(app.build_page(NestARPipeline.from_pretrained(folder, device="cpu"))) as url:
        yield url


@pytest.fixture(scope="module")
def alone_url() -> Iterator[str]:
    """Address of a page with that tab alone, which asks the server nothing and opens sooner."""
    with gr.Blocks() as demo, gr.Tabs(elem_id="tabs"), gr.Tab("How it works", elem_id="panel-how"):
        how.build()
    with served(demo) as url:
        yield url


@pytest.fixture
def visit_how(browser, alone_url) -> Iterator[Callable[..., Page]]:
    with visitors(browser, alone_url, ".how .tile") as open_page:
        yield lambda **options: open_page(**options).page


@pytest.fixture
def visit_tab(browser, small_url) -> Iterator[Callable[..., Page]]:
    """Opens the whole page and turns to the tab."""
    with tab_visitors(browser, small_url, "How it works", ".how .tile") as open_tab:
        yield open_tab


@pytest.fixture(scope="module")
def blank(browser) -> Iterator[Page]:
    """An empty page, to call the tab's functions on."""
    page = browser.new_page()
    yield page
    page.close()


def panel(page: Page, name: str) -> Locator:
    return page.locator(f'.how [data-panel="{name}"]')


def set_dials(page: Page, k: int, side: int) -> None:
    page.get_by_label("Nesting factor k, as a number").fill(str(k))
    page.get_by_label("Grid side, as a number").fill(str(side))


# ---- the same construction as in Python ----------------------------------------------------------

NESTINGS = f"""(cases) => {{
  {SCRIPT}
  return cases.map(([side, k, order]) => {{
    const {{ n, flat, modules, turns, turnOf, placeOf }} = nestingOf(side, k, order);
    return {{
      flat,
      turns: turns.map((turn) => [turn.module, turn.patch, turn.start, turn.stop]),
      scales: modules.map((module) => module.patches.map((patch) => [patch.start, patch.stop])),
      evaluations: countTurns(modules),
      processed: tokensProcessed(n, modules),
      consistent: flat.every(
        (cell, place) => placeOf[cell] === place && turns[turnOf[cell]].cells.includes(cell)),
    }};
  }});
}}"""


def described(nesting: Nesting) -> dict:
    return {
        "flat": list(nesting.flat),
        "turns": [[patch.module, patch.index, patch.start, patch.stop] for patch in nesting.patches],
        "scales": [[[patch.start, patch.stop] for patch in scale.patches] for scale in nesting.scales],
        "evaluations": nesting.evaluations,
        "processed": nesting.tokens_processed,
        "consistent": True,
    }


def test_the_nesting_in_the_browser_is_that_of_python(blank):
    cases = list(itertools.product(range(2, 17), range(2, 10), ("lattice", "raster")))
    cases += [
        (32, 2, "lattice"),
        (32, 8, "raster"),
        (64, 4, "lattice"),
        (64, 64, "lattice"),
        (27, 3, "lattice"),
    ]
    assert len(cases) > 240
    for case, got in zip(cases, blank.evaluate(NESTINGS, cases), strict=True):
        side, k, order = case
        assert got == described(Nesting.nested(side, side, k, order)), case


FLOW = f"""([points, times]) => {{
  {SCRIPT}
  const data = twoMoons();
  const velocities = points.map((point) => times.map((t) => marginalVelocity(point, t, data)));
  const misses = STEPS_OFFERED.map((steps) => {{
    const ends = points.map((point) => eulerPath(point, steps, data).at(-1));
    return {{ steps, miss: meanMiss(ends, data), ends }};
  }});
  return {{ data, velocities, misses }};
}}"""


def mean_of_pairs(y: tuple[float, float], t: float, data: list[list[float]]) -> list[float]:
    """Mean of x - ε over the data points x, each weighted by the density of the ε that puts its path on y."""
    pairs = [(x, [(a - t * b) / (1 - t) for a, b in zip(y, x, strict=True)]) for x in data]
    weights = [math.exp(-sum(value**2 for value in noise) / 2) for _, noise in pairs]
    return [
        sum(weight * (x[axis] - noise[axis]) for weight, (x, noise) in zip(weights, pairs, strict=True))
        / sum(weights)
        for axis in (0, 1)
    ]


def test_the_field_of_the_toy_is_the_mean_over_all_pairs_and_few_steps_miss_the_data(blank):
    points = [(0.3, -0.7), (-1.1, 0.4), (0.2, 0.1), (1.4, 1.2), (-0.6, -1.5)]
    times = [0.0, 0.25, 0.5, 0.8]
    flow = blank.evaluate(FLOW, [points, times])
    for point, row in zip(points, flow["velocities"], strict=True):
        for t, velocity in zip(times, row, strict=True):
            assert velocity == pytest.approx(mean_of_pairs(point, t, flow["data"]), abs=1e-9)
    one, two, five, many = flow["misses"]
    mean = [sum(point[axis] for point in flow["data"]) / len(flow["data"]) for axis in (0, 1)]
    assert all(end == pytest.approx(mean, abs=1e-9) for end in one["ends"])
    assert one["miss"] > two["miss"] > five["miss"] > many["miss"]
    assert many["miss"] < 0.05


# ---- the tab -------------------------------------------------------------------------------------


def test_the_tab_waits_until_it_is_opened_keeps_its_state_and_asks_the_server_nothing(browser, small_url):
    with visitors(browser, small_url) as open_page:
        page = open_page().page
        # Only then may its names for parts (.play, .scrubber) be those of other tabs.
        assert page.locator(".how").count() == 0
        asked: list[str] = []
        page.get_by_role("tab", name="How it works").first.click()
        page.locator(".how .tile").first.wait_for()
        page.wait_for_function(  # the page's own question on load
            "performance.getEntriesByType('resource').some(({name}) => name.includes('/run/predict'))"
        )
        page.on("request", lambda request: asked.append(request.url))
        set_dials(page, 8, 16)
        panel(page, "flow").get_by_role("radio", name="Sampling").check(force=True)
        panel(page, "checks").get_by_role("button", name="Show me").click()
        page.get_by_role("tab", name="Generate").first.click()
        expect(page.locator(".how")).not_to_be_visible()
        page.get_by_role("tab", name="How it works").first.click()
        expect(panel(page, "nest").locator('[data-name="tokens"]')).to_have_text("16 × 16 = 256")
        assert [url for url in asked if url.startswith("http")] == []


def test_the_first_panels_follow_the_dials(visit_how):
    page = visit_how()
    for k, side in ((2, 8), (3, 8), (7, 8), (5, 6), (64, 3), (4, 64)):
        check_first_panels(page, k, side)


def check_first_panels(page: Page, k: int, side: int) -> None:
    set_dials(page, k, side)
    nesting = Nesting.nested(side, side, k)
    nest = panel(page, "nest")
    expect(nest.locator('[data-name="modules"]')).to_contain_text(f"= {nesting.modules}")
    expect(nest.locator('[data-name="turns"]')).to_have_text(f"{nesting.evaluations} instead of {nesting.n}")
    expect(nest.locator('[data-name="formula"]')).to_contain_text(f"{nesting.evaluations} turns")
    expect(nest.locator(".box")).to_have_count(nesting.modules)
    expect(nest.locator(".legend li")).to_have_count(nesting.modules)
    for row, scale in enumerate(nesting.scales):
        sizes = [patch.size for patch in scale.generated]
        full, last = sizes.count(sizes[0]), sizes[-1]
        said = f"{full} × {sizes[0]}" + (f" + {last}" if full < len(sizes) else "")
        words = f"{said} token{'' if last == 1 else 's'}"
        expect(nest.locator(".legend li").nth(row)).to_contain_text(words)
    short = nesting.patches[-1].size < nesting.scales[-1].patches[0].size
    if short and len(nesting.scales[-1].patches) == k:
        expect(nest.locator('[data-name="formula"]')).to_contain_text("so the last module’s last patch has")
    expect(nest.locator(".segments .known")).to_have_count(nesting.evaluations)

    factors = panel(page, "factors")
    counts = [len(scale.generated) for scale in nesting.scales]
    expect(factors.locator(".count")).to_have_text(
        [f"{count} factor{'' if count == 1 else 's'}" for count in counts]
    )
    last = nesting.patches[-1]
    own = f"{last.start + 1}…{last.stop}" if last.size > 1 else f"{last.stop}"
    expect(factors.locator("button").last).to_have_text(f"p(x{own} | x1…{last.start})")
    expect(factors.locator(".more")).to_have_count(sum(count > 4 for count in counts))
    turns, tokens = nesting.evaluations, nesting.n
    expect(panel(page, "turns").locator('[data-name="turns"] svg')).to_have_attribute(
        "aria-label", f"For {tokens} tokens k = {k} takes {turns} turns; token by token takes {tokens}."
    )
    plain = Nesting.autoregressive(side, side)
    total, sequential = nesting.tokens_processed, plain.tokens_processed
    said = panel(page, "turns").locator('[data-name="sum"]')
    expect(said).to_contain_text(f"{total} in all, and token by token")
    expect(said).to_contain_text("as many" if total == sequential else f"token by token {sequential}.")


def test_the_order_changes_the_grid_and_no_count(visit_how):
    page = visit_how()
    canvas = panel(page, "nest").locator("canvas")
    lattice = canvas.evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("radio", name="Raster").check(force=True)
    expect(canvas).to_have_attribute(
        "aria-label", "8 by 8 tokens in raster order, coloured by module. " + FULL
    )
    assert canvas.evaluate("canvas => canvas.toDataURL()") != lattice


FULL = "Turn 10 of 10: module 3, patch 4 makes 16 tokens; 64 of 64 stand."


def test_a_number_out_of_range_is_refused_with_a_sentence(visit_how):
    page = visit_how()
    field = page.get_by_label("Nesting factor k, as a number")
    field.fill("65")
    refused = page.locator("#how-refused")
    expect(refused).to_have_text("k must be a whole number from 2 to 64.")
    expect(panel(page, "nest").locator('[data-name="turns"]')).to_have_text("10 instead of 64")
    field.press("Tab")
    expect(field).to_have_value("4")
    field.fill("7")
    expect(refused).to_have_text("")

    # The sliders stop at small numbers and say what they are.
    slider = page.locator("#how-k")
    slider.focus()
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "k = 2")
    slider.press("ArrowRight")
    expect(page.get_by_label("Nesting factor k, as a number")).to_have_value("3")
    slider.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "k = 64")
    side = page.locator("#how-side")
    side.press("End")
    expect(side).to_have_attribute("aria-valuetext", "64 by 64, 4096 tokens")


# Colour of the middle of a cell of the grid's canvas, away from its number.
CELL_COLOUR = """(canvas, [cell, side]) => {
  const width = canvas.width / side;
  const [x, y] = [(cell % side) + 0.2, Math.floor(cell / side) + 0.5].map((at) => Math.floor(at * width));
  const pixel = new OffscreenCanvas(1, 1).getContext("2d");
  pixel.drawImage(canvas, -x, -y);
  return [...pixel.getImageData(0, 0, 1, 1).data].join();
}"""


def test_the_grid_grows_when_played_and_only_then(visit_how):
    page = visit_how()
    nest = panel(page, "nest")
    scrubber, canvas = nest.locator(".scrubber"), nest.locator("canvas")
    nesting = Nesting.nested(8, 8, 4)
    page.wait_for_timeout(600)  # more than a turn takes
    expect(scrubber).to_have_value(str(nesting.evaluations))
    made = canvas.evaluate(CELL_COLOUR, [nesting.flat[0], 8])
    scrubber.fill("0")
    empty = canvas.evaluate(CELL_COLOUR, [nesting.flat[0], 8])
    assert empty != made
    scrubber.fill("1")
    assert canvas.evaluate(CELL_COLOUR, [nesting.flat[0], 8]) == made
    assert canvas.evaluate(CELL_COLOUR, [nesting.flat[1], 8]) == empty
    expect(nest.locator(".tile.known")).to_have_count(1)
    scrubber.fill("8")
    assert nest.locator(".play").evaluate("play => (play.click(), play.title)") == "Pause"
    expect(scrubber).to_have_value("10")
    expect(nest.get_by_role("button", name="Play")).to_be_visible()
    # From its end it starts again; a press pauses it half way.
    nest.get_by_role("button", name="Play").click()
    nest.get_by_role("button", name="Pause").click()
    paused = scrubber.input_value()
    assert int(paused) < 10
    page.wait_for_timeout(600)
    assert scrubber.input_value() == paused


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_a_switch_slides_but_for_who_asked_for_less_motion(visit_how, motion):
    switch = panel(visit_how(reduced_motion=motion), "order").get_by_role("switch")
    sliding = switch.evaluate(
        """e => (e.click(), getComputedStyle(e).color, document.getAnimations())
             .filter((each) => each.transitionProperty === "transform").length"""
    )
    assert (sliding > 0) == (motion == "no-preference")


def test_a_token_under_the_pointer_says_what_it_could_see(visit_how):
    page = visit_how()
    nest = panel(page, "nest")
    nesting = Nesting.nested(8, 8, 4)
    place = nesting.scales[1].patches[2].start  # the first token of module 2's third patch
    row, column = nesting.positions[place]
    box = nest.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8)
    expect(nest.locator(".grid figcaption")).to_have_text(
        f"Token {place + 1}: module 2, patch 3, turn 6; made with 3 others, saw tokens 1…{place}."
    )
    page.mouse.move(0, 0)
    expect(nest.locator(".grid figcaption")).to_have_text(FULL)


def test_the_arrow_keys_walk_the_grid_from_token_to_token(visit_how):
    page = visit_how()
    nest = panel(page, "nest")
    said, canvas, nesting = nest.locator(".grid figcaption"), nest.locator("canvas"), Nesting.nested(8, 8, 4)
    canvas.focus()
    expect(said).to_have_attribute("aria-live", "polite")
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("Token 1: module 1")
    row, column = nesting.positions[0]
    page.keyboard.press("ArrowRight")
    place = nesting.positions.index((row, column + 1))
    expect(said).to_contain_text(f"Token {place + 1}: ")
    page.keyboard.press("ArrowDown")
    place = nesting.positions.index((row + 1, column + 1))
    expect(said).to_contain_text(f"Token {place + 1}: ")
    for _ in range(9):
        page.keyboard.press("ArrowUp")
    place = nesting.positions.index((0, column + 1))
    expect(said).to_contain_text(f"Token {place + 1}: ")
    page.keyboard.press("Escape")
    expect(said).to_have_text(FULL)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    expect(said).to_have_text(FULL)


def test_a_factor_shows_what_it_makes_and_sees_by_mouse_and_arrows(visit_how):
    page = visit_how()
    factors = panel(page, "factors")
    button = factors.get_by_role("button", name="x 5…8 given x 1…4")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(factors.locator("figcaption")).to_contain_text("Turn 5: 4 tokens at once, given the 4 before")
    strip, made = (factors.locator(name).bounding_box() for name in (".strip", ".strip .made"))
    assert made["x"] - strip["x"] == pytest.approx(strip["width"] * 4 / 64, abs=1)
    assert made["width"] == pytest.approx(strip["width"] * 4 / 64, abs=1)
    button.press("ArrowRight")
    expect(factors.get_by_role("button", name="x 9…12 given x 1…8")).to_be_focused()
    expect(factors.locator("figcaption")).to_contain_text("Turn 6")
    assert factors.locator('button[tabindex="0"]').count() == 1


def test_dragging_over_the_plot_chooses_the_number_of_tokens(visit_how):
    page = visit_how()
    chart = panel(page, "turns").locator('.chart[data-name="turns"]')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tokens = panel(page, "nest").locator('[data-name="tokens"]')
    page.mouse.move(box["x"] + 60, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 200)
    expect(tokens).to_have_text("64 × 64 = 4096")
    page.mouse.move(box["x"] + 5, box["y"] + 200)
    expect(tokens).to_have_text("2 × 2 = 4")
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 200)
    expect(tokens).to_have_text("2 × 2 = 4")


def finger_down(part) -> None:
    """What the browser tells while it cannot know yet whether the finger is about to scroll."""
    part.dispatch_event(
        "pointerdown", {"pointerType": "touch", "bubbles": True, "buttons": 1, "clientX": 300}
    )


def test_a_finger_that_scrolls_changes_nothing_and_a_tap_does(visit_how):
    page = visit_how(**PHONE)
    chart = panel(page, "turns").locator('.chart[data-name="turns"]')
    chart.scroll_into_view_if_needed()
    chart.evaluate("chart => (chart.setPointerCapture = () => {})")  # of a pointer that is made up
    tokens = panel(page, "nest").locator('[data-name="tokens"]')
    before = tokens.inner_text()
    finger_down(chart)
    expect(tokens).to_have_text(before)
    chart.tap(position={"x": chart.bounding_box()["width"] - 10, "y": 100})
    expect(tokens).to_have_text("64 × 64 = 4096")

    cell = panel(page, "checks").locator(".select button").nth(3)
    cell.scroll_into_view_if_needed()
    finger_down(cell)
    expect(cell).to_have_attribute("aria-pressed", "false")
    page.evaluate("dispatchEvent(new PointerEvent('pointercancel'))")
    for pressed in ("true", "false"):
        cell.tap()
        expect(cell).to_have_attribute("aria-pressed", pressed)


# How far the mixed picture is from the picture itself: the mean absolute difference, 0 ... 255.
PICTURE_ERROR = """async (canvas, source) => {
  const picture = new Image();
  picture.src = source;
  await picture.decode();
  const original = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  original.drawImage(picture, 0, 0);
  const [one, other] = [original, canvas.getContext("2d")].map(
    (context) => context.getImageData(0, 0, canvas.width, canvas.height).data);
  return one.reduce((sum, value, place) => sum + Math.abs(value - other[place]), 0) / one.length;
}"""


def test_the_path_from_noise_to_data_is_dragged_and_the_picture_follows(visit_how):
    page = visit_how()
    flow = panel(page, "flow")
    time, mixed, source = flow.locator(".time"), flow.locator(".mixed canvas"), how.picture()
    # The slider says its value itself; this one changes 30 times a second while it plays.
    expect(flow.locator(".clock")).to_have_attribute("aria-live", "off")
    page.wait_for_function("document.querySelector('.mixed canvas').width !== 300")  # the picture has come
    errors = []
    for t in (0, 0.5, 1):
        time.fill(str(t))
        expect(flow.locator(".clock")).to_have_text(f"t = {t:.2f}")
        errors.append(mixed.evaluate(PICTURE_ERROR, source))
    assert errors[0] > errors[1] > 10 and errors[2] < 0.5
    time.fill("0")
    ends = flow.locator(".scene .end")
    ends.first.scroll_into_view_if_needed()
    (x0, y0), (x1, y1) = (
        (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for box in (ends.nth(0).bounding_box(), ends.nth(1).bounding_box())
    )
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x0 + 0.7 * (x1 - x0), y0 + 0.7 * (y1 - y0), steps=4)
    assert float(time.input_value()) == pytest.approx(0.7, abs=0.02)
    page.mouse.move(x1 + (x1 - x0), y1 + (y1 - y0), steps=4)
    expect(time).to_have_value("1")
    page.mouse.up()
    before = ends.nth(0).get_attribute("cx")
    flow.get_by_role("button", name="Another pair").click()
    expect(ends.nth(0)).not_to_have_attribute("cx", before)


def test_more_steps_along_the_field_end_nearer_the_data(visit_how):
    page = visit_how()
    flow = panel(page, "flow")
    flow.get_by_role("radio", name="Sampling").check(force=True)
    expect(flow.get_by_role("button", name="Another pair")).to_be_hidden()
    assert flow.locator(".scene .field").count() > 100
    misses = []
    for steps in ("1", "2", "5", "25"):
        flow.get_by_role("radio", name=steps, exact=True).check(force=True)
        expect(flow.locator(".time")).to_have_value("1")
        words = flow.locator(".toy figcaption").inner_text()
        misses.append(float(words.split("on average ")[1].split()[0]))
    assert misses == sorted(misses, reverse=True) and misses[-1] < 0.05 < misses[0]


def emptiest(nesting: Nesting, known: int) -> float:
    """The largest distance of a cell from the nearest of the first `known` tokens."""
    return max(
        min(math.dist(cell, other) for other in nesting.positions[:known]) for cell in nesting.positions
    )


def test_both_orders_show_what_stands_after_the_same_turns(visit_how):
    page = visit_how()
    order = panel(page, "order")
    pictures = {name: order.locator(f'[data-order="{name}"]') for name in ("raster", "lattice")}
    nestings = {name: Nesting.nested(8, 8, 4, name) for name in pictures}
    for name, figure in pictures.items():
        gap = emptiest(nestings[name], 4)
        expect(figure.locator("figcaption")).to_have_text(
            f"After module 1, 4 of 64 tokens: the emptiest place is {gap:.1f} tokens from a known one."
        )
    drawn_anew = "[...document.querySelectorAll('[data-panel=order] canvas')].map((c) => c.toDataURL())"
    page.wait_for_function(f"new Set({drawn_anew}).size === 2")  # the picture has come
    drawn = [
        figure.locator("canvas").evaluate("canvas => canvas.toDataURL()") for figure in pictures.values()
    ]
    order.get_by_role("switch").check()
    filled = [
        figure.locator("canvas").evaluate("canvas => canvas.toDataURL()") for figure in pictures.values()
    ]
    assert len({*drawn, *filled}) == 4
    order.locator(".scrubber").fill("10")
    done = [figure.locator("canvas").evaluate("canvas => canvas.toDataURL()") for figure in pictures.values()]
    assert done[0] == done[1]  # the same picture, whichever came first


# ---- the checks ----------------------------------------------------------------------------------


def test_every_wrong_answer_says_why_and_the_right_one_is_told_by_word_and_shape(visit_how):
    page = visit_how()
    for name, right in (("velocity", "x − ε"), ("first", "It depends on the order")):
        question = page.locator(f'[data-question="{name}"]')
        feedback = question.locator(".feedback")
        said = set()
        for button in question.locator(".buttons button").all():
            button.click()
            correct = button.inner_text() == right
            expect(feedback.locator("b")).to_have_text("Right." if correct else "Not so.")
            expect(feedback.locator("svg.right")).to_have_count(int(correct))
            said.add(feedback.inner_text())
        assert len(said) == question.locator(".buttons button").count()
    shown = page.locator('[data-question="first"] .shown svg')
    for figure, order in zip(shown.all(), ("raster", "lattice"), strict=True):
        first = figure.locator("rect").evaluate_all(
            "all => all.flatMap((e, i) => (e.matches('.first') ? [i] : []))"
        )
        assert first == sorted(Nesting.nested(8, 8, 4, order).flat[:4])


def test_the_context_of_a_patch_is_selected_and_judged(visit_how):
    page = visit_how()
    question = page.locator('[data-question="context"]')
    cells, feedback = question.locator(".select button"), question.locator(".feedback")
    second, third = Nesting.nested(6, 6, 3, "raster").scales[2].generated

    def check() -> None:
        question.get_by_role("button", name="Check").click()

    check()
    expect(feedback).to_contain_text(f"Not so. Standing already, and so seen: 1…{second.start}.")
    # Dragging selects.
    question.locator(".select").evaluate("e => e.scrollIntoView({block: 'center'})")
    middle = [
        (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for box in (cells.nth(place).bounding_box() for place in range(second.stop))
    ]
    page.mouse.move(*middle[0])
    page.mouse.down()
    for place in range(1, second.start):
        page.mouse.move(*middle[place], steps=2)
    page.mouse.up()
    check()
    expect(feedback).to_contain_text(
        f"see one another while they are made: {second.start + 1}…{second.stop}."
    )
    page.mouse.move(*middle[second.start])
    page.mouse.down()
    for place in range(second.start + 1, second.stop):
        page.mouse.move(*middle[place], steps=2)
    page.mouse.up()
    # The keyboard goes on from there: one token too many.
    cells.nth(0).focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    expect(cells.nth(second.stop)).to_have_attribute("aria-pressed", "true")
    check()
    expect(feedback).to_contain_text(f"Made only afterwards: {second.stop + 1}.")
    cells.nth(second.stop).focus()
    page.keyboard.press("Space")
    check()
    expect(feedback.locator("b")).to_have_text("Right.")
    expect(feedback).to_contain_text(f"tokens 1…{second.start}")

    feedback.get_by_role("button", name="And the next patch?").click()
    expect(question.locator("h3")).to_contain_text("patch 3 of module 3")
    expect(question.locator('[aria-pressed="true"]')).to_have_count(0)
    question.get_by_role("button", name="Hint").click()
    expect(feedback).to_contain_text("which tokens stand already")
    question.get_by_role("button", name="Show me").click()
    expect(question.locator('[aria-pressed="true"]')).to_have_count(third.stop)
    expect(feedback).to_contain_text("this patch sees patch 2 as well")
    expect(feedback.locator("b")).to_have_count(0)  # nobody has answered
    question.get_by_role("button", name="Clear").click()
    expect(question.locator('[aria-pressed="true"]')).to_have_count(0)


# ---- how it looks --------------------------------------------------------------------------------


def try_everything(page: Page) -> None:
    """A state with everything on screen that can be: many modules, a refusal, all feedback."""
    set_dials(page, 2, 64)
    panel(page, "flow").get_by_role("radio", name="Sampling").check(force=True)
    for name in ("velocity", "first"):
        page.locator(f'[data-question="{name}"] .plain').first.click()
    panel(page, "checks").get_by_role("button", name="Show me").click()
    page.get_by_label("Nesting factor k, as a number").fill("1")


def test_nothing_overflows_a_phone_and_the_dials_stay_in_view(visit_tab):
    page = visit_tab(**PHONE)
    try_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    outside = page.evaluate(
        """() => [...document.querySelectorAll(".how *")].filter(
            (e) => !e.closest(".visually-hidden") && e.getBoundingClientRect().right > 391
        ).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    dials = page.locator(".how-dials")
    panel(page, "turns").evaluate("e => e.scrollIntoView({block: 'start'})")
    expect(dials).to_be_in_viewport(ratio=1)
    panel(page, "checks").evaluate("e => e.scrollIntoView({block: 'start'})")
    expect(dials).not_to_be_in_viewport()


def test_text_has_the_contrast_that_AA_asks_for(visit_tab):
    page = visit_tab()
    try_everything(page)
    assert "#studio *" in CONTRAST
    for scheme in schemes(page):
        assert page.evaluate(CONTRAST.replace("#studio *", ".how *")) == [], scheme
        # That function leaves SVG out: the plots' words stand on paper.
        fills = page.locator(".how .chart text").evaluate_all(
            "all => all.map((e) => getComputedStyle(e).fill)"
        )
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert len(set(fills)) == 3
        assert min(contrast(rgb(fill), rgb(paper)) for fill in set(fills)) >= 4.5, scheme


def rgb(colour: str) -> list[float]:
    return [float(number) for number in re.findall(r"[0-9.]+", colour)[:3]]


def test_everything_is_named_and_reached_by_keyboard(visit_how):
    page = visit_how()
    try_everything(page)
    nameless = page.locator(".how :is(button, input, canvas, svg[role], [role=img])").evaluate_all(
        """all => all.filter((e) => e.checkVisibility() &&
             !(e.innerText || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    page.locator("#how-k").focus()
    reached = set()
    for _ in range(60):
        reached.add(
            page.evaluate("(e => e.id || e.className || e.value || e.innerText)(document.activeElement)")
        )
        page.keyboard.press("Tab")
    wanted = {"how-k", "how-side", "lattice", "play", "scrubber", "time", "fill", "2", "field"}
    assert wanted | {"plain check", "plain tip", "plain reveal", "plain clear"} <= reached
