// Panel 6: the quick checks. Two questions with answers to choose from here; the one on a grid is in how_context.js.
const MARKS = {
  right: '<path d="M4 12.5l5.5 5.5L20 6.5" fill="none" stroke="currentColor" stroke-width="3"/>',
  wrong: '<path d="M5.5 5.5l13 13m0-13l-13 13" fill="none" stroke="currentColor" stroke-width="3"/>',
};

const QUESTIONS = {
  velocity: {
    ask: "A straight path runs from noise ε at t = 0 to data x at t = 1. What is its true velocity at time t?",
    answers: [
      ["ε − x", false, "That points from data to noise: the way back."],
      ["x − y<sub>t</sub>", false, "That is the way still to go, (1 − t)(x − ε): nothing is left on arrival."],
      ["x − ε", true, "The derivative of y<sub>t</sub> = (1 − t) ε + t x by t is x − ε, the same at every t."],
      ["(1 − t) x + t ε", false, "That is a place, and of the path reversed: at t = 0 it stands at the data."],
    ],
  },
  first: {
    ask: "What does module 1 make: the top-left corner, or places all over the picture?",
    answers: [
      ["The top-left corner", false, "So it is in raster order, as on the left, but not in lattice order."],
      ["Places all over", false, "So it is in lattice order, as on the right, but not in raster order."],
      ["It depends on the order", true, "Module 1 makes the first k tokens; the order decides where they lie."],
    ],
    after: () => ["raster", "lattice"].map(firstTokensHtml).join(""),
  },
};

// Shape and word say it, and colour besides.
function verdictHtml(right, text) {
  const kind = right ? "right" : "wrong";
  const mark = `<svg class="${kind}" viewBox="0 0 24 24" aria-hidden="true">${MARKS[kind]}</svg>`;
  return `${mark}<span><b>${right ? "Right." : "Not so."}</b> ${text}</span>`;
}

function firstTokensHtml(order) {
  const { side, n, turnOf, turns } = nestingOf(ORDER_SIDE, ORDER_K, order);
  const cells = Array.from({ length: n }, (_, cell) => {
    const { module, tint } = turns[turnOf[cell]];
    const look = module === 1 ? ` class="first" style="${moduleStyle(module, tint)}"` : "";
    const corner = `x="${(cell % side) + 0.06}" y="${Math.floor(cell / side) + 0.06}"`;
    return `<rect${look} ${corner} width="0.88" height="0.88" rx="0.12"/>`;
  });
  const words = `The ${ORDER_K} tokens of module 1 in ${order} order`;
  return (
    `<figure><svg viewBox="0 0 ${side} ${side}" role="img" aria-label="${words}">${cells.join("")}</svg>` +
    `<figcaption class="hint">${order[0].toUpperCase()}${order.slice(1)}</figcaption></figure>`
  );
}

// A question with answers to press. Each may be tried; what it says stands below.
function choiceQuestion(box, { ask, answers, after }) {
  const buttons = answers.map(
    ([text], place) => `<button type="button" class="plain" data-place="${place}">${text}</button>`,
  );
  box.innerHTML =
    `<h3>${ask}</h3><p class="buttons">${buttons.join("")}</p><p class="feedback" role="status"></p>` +
    '<div class="shown" hidden></div>';
  box.querySelector(".buttons").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const [, right, why] = answers[Number(button.dataset.place)];
    for (const each of box.querySelectorAll(".buttons button")) each.classList.toggle("tried", each === button);
    box.querySelector(".feedback").innerHTML = verdictHtml(right, why);
    if (!after) return;
    const shown = box.querySelector(".shown");
    shown.innerHTML = after();
    shown.hidden = false;
  });
}

function checksPanel(panel) {
  for (const [name, question] of Object.entries(QUESTIONS)) {
    choiceQuestion(panel.querySelector(`[data-question="${name}"]`), question);
  }
  contextQuestion(panel.querySelector('[data-question="context"]'));
}
