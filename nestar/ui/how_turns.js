// Panel 3: turns against the number of tokens, both logarithmic, and tokens processed, which grow in a straight line.
const FEWEST = 4; // tokens on the plot's left edge
const MOST_TOKENS = 4096; // and on its right
const COMPARED = [2, 4, 8]; // lines of k beside the chosen one
const LABEL_GAP = 15; // pixels between the labels of two lines
const INSET = { left: 38, right: 104, top: 22, bottom: 30 };

// Numbers of tokens at which lines are computed: evenly spaced on the logarithmic axis.
function sampledTokens() {
  const steps = 12 * Math.log2(MOST_TOKENS / FEWEST);
  return Array.from({ length: steps + 1 }, (_, step) => Math.round(FEWEST * 2 ** (step / 12)));
}

// Heights for labels that would overlap: moved apart, in order, and kept above `floor`.
function spread(labels, floor) {
  const sorted = [...labels].sort((a, b) => b.y - a.y);
  let below = floor + LABEL_GAP;
  for (const label of sorted) below = label.at = Math.min(label.y, below - LABEL_GAP);
  return labels;
}

function polyline(points, kind) {
  const path = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  return `<polyline class="${kind}" points="${path}"/>`;
}

function labelsHtml(labels, x, floor) {
  return spread(labels, floor)
    .map(({ at, text, kind }) => `<text class="${kind}" x="${x}" y="${at}" dy="0.35em">${text}</text>`)
    .join("");
}

function svgHtml(width, height, words, content) {
  return `<svg width="${width}" height="${height}" role="img" aria-label="${words}">${content}</svg>`;
}

// The plot's frame: pixel coordinates of tokens and turns, and of a pixel the tokens again.
function logScale(width, height) {
  const [x0, x1, y0, y1] = [INSET.left, width - INSET.right, height - INSET.bottom, INSET.top];
  const across = (n) => x0 + ((x1 - x0) * Math.log(n / FEWEST)) / Math.log(MOST_TOKENS / FEWEST);
  const up = (turns) => y0 + ((y1 - y0) * Math.log(turns)) / Math.log(MOST_TOKENS);
  const tokensAt = (x) => FEWEST * (MOST_TOKENS / FEWEST) ** ((x - x0) / (x1 - x0));
  return { x0, x1, y0, y1, across, up, tokensAt };
}

function turnsChart(nesting, width, height) {
  const { x0, x1, y0, y1, across, up } = logScale(width, height);
  const ticks = [4, 16, 64, 256, 1024, 4096];
  const grid = ticks
    .map(
      (tick) =>
        `<line class="rule" x1="${x0}" x2="${x1}" y1="${up(tick)}" y2="${up(tick)}"/>` +
        `<text x="${x0 - 7}" y="${up(tick)}" dy="0.35em" text-anchor="end">${tick}</text>` +
        `<text x="${across(tick)}" y="${y0 + 16}" text-anchor="middle">${tick}</text>`,
    )
    .join("");
  const tokens = sampledTokens();
  const turnsOf = (n, k) => countTurns(nestedModules(n, k));
  const lines = [...new Set([...COMPARED, nesting.k])].map((k) => {
    const kind = k === nesting.k ? "chosen" : "other";
    const end = turnsOf(MOST_TOKENS, k);
    return {
      html: polyline(tokens.map((n) => [across(n), up(turnsOf(n, k))]), kind),
      label: { y: up(end), text: `k = ${k}: ${end}`, kind },
    };
  });
  lines.sort((a, b) => (a.label.kind === "chosen") - (b.label.kind === "chosen")); // the chosen line on top
  const plain = polyline([[across(FEWEST), up(FEWEST)], [across(MOST_TOKENS), up(MOST_TOKENS)]], "plain");
  const labels = [
    { y: up(MOST_TOKENS), text: "token by token", kind: "plain" },
    ...lines.map((line) => line.label),
  ];
  const turns = nesting.turns.length;
  const [x, y, high] = [across(nesting.n), up(turns), up(nesting.n)];
  const side = x > (x0 + x1) / 2 ? ["end", -9] : ["start", 9];
  const point =
    `<line class="drop" x1="${x}" x2="${x}" y1="${high}" y2="${y}"/>` +
    `<circle class="hollow" cx="${x}" cy="${high}" r="4"/><circle class="full" cx="${x}" cy="${y}" r="5"/>` +
    `<text class="value" x="${x + side[1]}" y="${y + 20}" text-anchor="${side[0]}">${plural(turns, "turn")}</text>` +
    (turns < nesting.n / 2
      ? `<text class="value faint" x="${x - 9}" y="${high - 6}" text-anchor="end">${nesting.n}</text>`
      : "");
  const words = `For ${nesting.n} tokens k = ${nesting.k} takes ${turns} turns; token by token takes ${nesting.n}.`;
  const drawn = plain + lines.map((line) => line.html).join("");
  return svgHtml(width, height, words, grid + drawn + point + labelsHtml(labels, x1 + 8, y0));
}

// Tokens processed token by token: one module of n patches.
function plainlyProcessed(n) {
  return tokensProcessed(n, nestedModules(n, Math.max(2, n)));
}

// Linear axes that end at the chosen n.
function tokensChart(nesting, width, height) {
  const [x0, x1, y0, y1] = [INSET.left, width - INSET.right, height - INSET.bottom, INSET.top];
  const all = tokensProcessed(nesting.n, nesting.modules);
  const plain = plainlyProcessed(nesting.n);
  const tokens = Array.from({ length: 65 }, (_, step) => Math.max(1, Math.round((nesting.n * step) / 64)));
  const across = (n) => x0 + ((x1 - x0) * n) / nesting.n;
  const up = (count) => y0 + ((y1 - y0) * count) / Math.max(all, plain);
  const line = (kind, count) =>
    polyline(tokens.map((n) => [across(n), up(count(n, nestedModules(n, nesting.k)))]), kind);
  const labels = [
    { y: up(all), text: `k = ${nesting.k}: ${all}`, kind: "chosen" },
    { y: up(plain), text: "token by token", kind: "plain" },
    { y: up(nesting.turns.length), text: plural(nesting.turns.length, "turn"), kind: "other" },
  ];
  const frame =
    `<line class="rule" x1="${x0}" x2="${x1}" y1="${y0}" y2="${y0}"/>` +
    `<text x="${x0}" y="${y0 + 16}">0</text>` +
    `<text x="${x1}" y="${y0 + 16}" text-anchor="middle">n = ${nesting.n}</text>` +
    `<circle class="full" cx="${x1}" cy="${up(all)}" r="4"/>`;
  const words =
    `Up to ${nesting.n} tokens, those processed rise in step with them to ${all}, ` +
    `the turns only to ${nesting.turns.length}.`;
  const turns = line("other", (_, modules) => countTurns(modules));
  const lines = turns + line("plain", plainlyProcessed) + line("chosen", tokensProcessed);
  return svgHtml(width, height, words, frame + lines + labelsHtml(labels, x1 + 9, y0));
}

function sumText({ n, k, modules }) {
  const read = modules.map((module) => module.patches.at(-1).start);
  const shown = read.length > 5 ? [...read.slice(0, 2), "…", read.at(-1)] : read;
  const all = tokensProcessed(n, modules);
  const plain = plainlyProcessed(n);
  const readAs = `read as context${n === k ** modules.length ? ", a geometric sum" : ""}`;
  const beside = `token by token ${all === plain ? "as many" : plain}`;
  return (
    `${n} made, and ${shown.join(" + ")} ${readAs}: ${all} in all, and ${beside}. ` +
    "What nesting saves is turns, and each module is only a part of the network."
  );
}

function turnsPanel(panel, choice) {
  const [turns, tokens] = ["turns", "tokens"].map((name) => panel.querySelector(`.chart[data-name="${name}"]`));

  function draw() {
    const nesting = choice.current();
    panel.querySelector('[data-name="sum"]').textContent = sumText(nesting);
    if (!turns.clientWidth) return;
    turns.innerHTML = turnsChart(nesting, turns.clientWidth, turns.clientHeight);
    tokens.innerHTML = tokensChart(nesting, tokens.clientWidth, tokens.clientHeight);
  }

  function drag(event) {
    if (event.type === "pointermove" && !event.buttons) return;
    if (event.type === "pointerdown") {
      turns.setPointerCapture(event.pointerId);
      if (event.pointerType === "touch") return; // the page may be about to scroll: a tap or a move across chooses
    }
    const x = event.clientX - turns.getBoundingClientRect().left;
    const side = Math.round(Math.sqrt(logScale(turns.clientWidth, turns.clientHeight).tokensAt(x)));
    choice.change({ side: Math.min(MOST, Math.max(LEAST, side)) });
  }

  turns.addEventListener("pointerdown", drag);
  turns.addEventListener("pointermove", drag);
  turns.addEventListener("click", drag);
  choice.listen(draw);
  drawWhenSeen(turns, draw);
}
