// What the panels of "How it works" share: words, canvases that follow their size and the colour scheme, a player.

// Tokens start ... stop - 1 as a reader counts them, from 1: "5" or "5…8".
function span(start, stop) {
  return stop - start === 1 ? `${stop}` : `${start + 1}…${stop}`;
}

// The value of a colour or number of the styles as it is in the present colour scheme.
function cssValue(name) {
  return getComputedStyle(element.querySelector(".how")).getPropertyValue(name).trim();
}

// A function (module, tint) -> colour, by the rule that .token has in page.css; canvases cannot use that rule itself.
function tones() {
  const [light, fall, chroma] = ["light", "fall", "chroma"].map((name) => Number(cssValue(`--token-${name}`)));
  return (module, tint) => `oklch(${light - fall * tint} ${chroma} ${HUES[(module - 1) % HUES.length]})`;
}

// Calls `redraw` now, and again when `target` changes its size (a tab may open later than it is laid out) or the page
// its colour scheme.
function drawWhenSeen(target, redraw) {
  new ResizeObserver(() => target.clientWidth && redraw()).observe(target);
  new MutationObserver(() => target.clientWidth && redraw()).observe(document.body, { attributeFilter: ["class"] });
}

// The drawing context of a square canvas in CSS pixels, cleared, and its side.
function openCanvas(canvas) {
  const side = canvas.clientWidth;
  const pixels = Math.round(side * devicePixelRatio);
  if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
  const context = canvas.getContext("2d");
  context.setTransform(pixels / side, 0, 0, pixels / side, 0, 0);
  context.clearRect(0, 0, side, side);
  return { context, side };
}

// One cell of a canvas grid: [x, y, width] in CSS pixels, with a gap that goes as cells grow small.
function cellBox(cell, gridSide, canvasSide) {
  const width = canvasSide / gridSide;
  const gap = width > 9 ? Math.min(4, width * 0.08) : 0;
  return [(cell % gridSide) * width + gap / 2, Math.floor(cell / gridSide) * width + gap / 2, width - gap];
}

function fillCell(context, [x, y, width]) {
  context.beginPath();
  context.roundRect(x, y, width, width, width > 9 ? Math.min(4, width * 0.16) : 0);
  context.fill();
}

// A button that walks a range input from where it stands, or from its start, to its end. `pace` tells the milliseconds
// of a step. The visitor's own hand on the range stops it.
function player(timeline, pace) {
  const [button, range] = [timeline.querySelector(".play"), timeline.querySelector('input[type="range"]')];
  let timer = null;

  function label() {
    timeline.classList.toggle("playing", timer !== null);
    button.title = timer === null ? "Play" : "Pause";
    button.setAttribute("aria-label", button.title);
  }
  function stop() {
    clearTimeout(timer);
    timer = null;
    label();
  }
  function move(value) {
    range.value = value;
    range.dispatchEvent(new Event("input"));
  }
  function step() {
    if (Number(range.value) >= Number(range.max)) return stop();
    move(Number(range.value) + Number(range.step));
    timer = setTimeout(step, pace());
    return label();
  }
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (Number(range.value) >= Number(range.max)) move(range.min);
    timer = setTimeout(step, pace());
    return label();
  });
  range.addEventListener("input", (event) => event.isTrusted && stop());
  return { stop, move: (value) => (stop(), move(value)) };
}

// Segments under a scrubber, one a turn, in the colours of module and patch.
function laySegments(container, turns) {
  container.innerHTML = turns.map((turn) => `<i style="${moduleStyle(turn.module, turn.tint)}"></i>`).join("");
  container.classList.toggle("many", turns.length > 40);
}

function markSegments(container, made) {
  for (const [turn, segment] of [...container.children].entries()) segment.classList.toggle("known", turn < made);
}

// Numbers in [0, 1) and normal ones that are the same on every visit (mulberry32; Box and Muller).
function randomNumbers(seed) {
  let state = seed;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}
