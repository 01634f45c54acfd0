// Panel 5: the same turns on two orders of the tokens, on a picture of which only the tokens made so far are shown.
const ORDER_SIDE = 8;
const ORDER_K = 4;
const TURN_MS = 450;

// Distance of the cell, in tokens, from the nearest of `known`, and that one: [distance, cell].
function nearestKnown(cell, known, side) {
  const distance = (other) =>
    Math.hypot((cell % side) - (other % side), Math.floor(cell / side) - Math.floor(other / side));
  return known.map((other) => [distance(other), other]).reduce((best, each) => (each[0] < best[0] ? each : best));
}

// Colours of the cells as [red, green, blue], the unknown ones a mean of the known, nearer ones counting more.
function guessedColours(colours, known, side) {
  return colours.map((own, cell) => {
    if (known.includes(cell)) return own;
    const weights = known.map((other) => nearestKnown(cell, [other], side)[0] ** -4);
    const sum = weights.reduce((all, weight) => all + weight, 0);
    return own.map((_, channel) =>
      known.reduce((all, other, place) => all + (weights[place] / sum) * colours[other][channel], 0),
    );
  });
}

function orderPanel(panel) {
  const figures = [...panel.querySelectorAll("figure")];
  const [scrubber, fill] = [panel.querySelector(".scrubber"), panel.querySelector(".fill")];
  const nestings = figures.map((figure) => nestingOf(ORDER_SIDE, ORDER_K, figure.dataset.order));
  const [{ turns, n, modules }] = nestings; // alike for all orders
  const picture = new Image();
  let colours = null; // mean colour of each cell

  function meanColours() {
    const { naturalWidth: width, naturalHeight: height } = picture;
    const whole = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    whole.drawImage(picture, 0, 0);
    const [across, down] = [width / ORDER_SIDE, height / ORDER_SIDE];
    return Array.from({ length: n }, (_, cell) => {
      const corner = [(cell % ORDER_SIDE) * across, Math.floor(cell / ORDER_SIDE) * down];
      const bytes = whole.getImageData(...corner, across, down).data;
      const mean = (channel) => bytes.reduce((sum, byte, at) => sum + (at % 4 === channel ? byte : 0), 0);
      return [0, 1, 2].map((channel) => mean(channel) / (across * down));
    });
  }

  function drawGuess(context, side, known) {
    const small = new OffscreenCanvas(ORDER_SIDE, ORDER_SIDE);
    const pixels = small.getContext("2d").createImageData(ORDER_SIDE, ORDER_SIDE);
    for (const [cell, colour] of guessedColours(colours, known, ORDER_SIDE).entries()) {
      pixels.data.set([...colour, 255], 4 * cell);
    }
    small.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, side, side);
  }

  function draw(figure, nesting, made) {
    const canvas = figure.querySelector("canvas");
    if (!canvas.clientWidth || !colours) return;
    const { context, side } = openCanvas(canvas);
    const known = nesting.flat.slice(0, nesting.turns[made - 1].stop);
    const [cell, source, tone] = [side / ORDER_SIDE, picture.naturalWidth / ORDER_SIDE, tones()];
    context.fillStyle = cssValue("--wash");
    context.fillRect(0, 0, side, side);
    if (fill.checked) drawGuess(context, side, known);
    for (let each = 0; each < n; each++) {
      const [column, row] = [each % ORDER_SIDE, Math.floor(each / ORDER_SIDE)];
      const to = [column * cell, row * cell, cell, cell];
      const turn = nesting.turns[nesting.turnOf[each]];
      if (nesting.turnOf[each] < made) {
        context.drawImage(picture, column * source, row * source, source, source, ...to);
        if (made === turns.length) continue;
        context.strokeStyle = tone(turn.module, turn.tint);
        context.lineWidth = 2.5;
        context.strokeRect(to[0] + 1.5, to[1] + 1.5, cell - 3, cell - 3);
      } else if (!fill.checked) {
        context.strokeStyle = cssValue("--line-strong");
        context.lineWidth = 0.5;
        context.strokeRect(...to);
      }
    }
  }

  function captionOf(nesting, made) {
    const { stop } = nesting.turns[made - 1];
    if (stop === n) return `All ${n} tokens: the same picture, whichever came first.`;
    const known = nesting.flat.slice(0, stop);
    const gap = Math.max(...nesting.flat.map((cell) => nearestKnown(cell, known, ORDER_SIDE)[0]));
    const done = modules.find((module) => module.tokens === stop);
    const when = done ? `After module ${done.number}, ${stop} of ${n} tokens` : `${stop} of ${n} tokens`;
    return `${when}: the emptiest place is ${gap.toFixed(1)} tokens from a known one.`;
  }

  function show() {
    const made = Number(scrubber.value);
    for (const [place, figure] of figures.entries()) {
      const words = captionOf(nestings[place], made);
      figure.querySelector("figcaption").textContent = words;
      const order = figure.dataset.order;
      figure.querySelector("canvas").setAttribute("aria-label", `${props.picture_name}, ${order} order. ${words}`);
      draw(figure, nestings[place], made);
    }
    scrubber.setAttribute("aria-valuetext", `Turn ${made} of ${turns.length}: ${turns[made - 1].name}`);
    markSegments(panel.querySelector(".segments"), made);
  }

  laySegments(panel.querySelector(".segments"), turns);
  Object.assign(scrubber, { min: 1, max: turns.length, value: modules[0].patches.length }); // module 1 is done
  player(panel.querySelector(".timeline"), () => TURN_MS);
  scrubber.addEventListener("input", show);
  fill.addEventListener("change", show);
  picture.addEventListener("load", () => {
    colours = meanColours();
    show();
  });
  picture.src = props.picture;
  for (const figure of figures) drawWhenSeen(figure, show);
  show();
}
