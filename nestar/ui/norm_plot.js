// Velocity norm against t: a thin line a patch, a thick one for each module's mean, as SVG.
const PLOT = { width: 264, height: 128, left: 34, right: 8, top: 8, bottom: 20 };

const LEAST_SPAN = 0.2; // a flat line stays flat

// Round values that enclose `least` and `most`, some three steps apart.
function niceTicks(least, most) {
  const rough = Math.max(most - least, LEAST_SPAN) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const first = Math.floor(least / step);
  const last = Math.max(Math.ceil(most / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
}

function meanOf(rows) {
  return rows[0].map((_, place) => rows.reduce((sum, row) => sum + row[place], 0) / rows.length);
}

// `frames` are all of the run, so that the axis stands still; the first `made` of them are drawn.
function normPlot(modules, frames, made) {
  const all = frames.flatMap((frame) => frame.norms);
  const ticks = all.length ? niceTicks(Math.min(...all), Math.max(...all)) : [0, 1];
  const [bottom, top] = [ticks[0], ticks.at(-1)];
  const across = PLOT.width - PLOT.left - PLOT.right;
  const down = PLOT.height - PLOT.top - PLOT.bottom;
  const x = (t) => (PLOT.left + t * across).toFixed(1);
  const y = (norm) => (PLOT.top + ((top - norm) / (top - bottom)) * down).toFixed(1);
  // A step keeps the velocity of its beginning: the last one's lasts until t = 1.
  const points = (norms) =>
    [...norms, norms.at(-1)].map((norm, step) => `${x(step / norms.length)},${y(norm)}`).join(" ");
  const line = (kind, module, norms) =>
    `<polyline class="${kind}" data-module="${module}" style="${moduleStyle(module, 1)}" points="${points(norms)}"/>`;
  const drawn = frames.slice(0, made);
  const rows = (module) => drawn.filter((frame) => frame.module === module.number).map((frame) => frame.norms);
  const reached = modules.filter((module) => rows(module).length);
  const traces = reached.flatMap((module) =>
    rows(module).length > 1 ? rows(module).map((norms) => line("trace", module.number, norms)) : [],
  );
  const means = reached.map((module) => line("mean", module.number, meanOf(rows(module))));
  const rulers = ticks.map(
    (norm) =>
      `<line x1="${PLOT.left}" x2="${PLOT.width - PLOT.right}" y1="${y(norm)}" y2="${y(norm)}"/>` +
      `<text x="${PLOT.left - 6}" y="${Number(y(norm)) + 3.5}" text-anchor="end">${Number(norm.toPrecision(3))}</text>`,
  );
  const times = [0, 0.5, 1].map(
    (t) => `<text x="${x(t)}" y="${PLOT.height - 5}" text-anchor="middle">${t === 0 ? "t = 0" : t}</text>`,
  );
  const told = reached.map((module) => {
    const mean = meanOf(rows(module));
    return `module ${module.number} from ${mean[0].toFixed(2)} to ${mean.at(-1).toFixed(2)}`;
  });
  const label = told.length ? `Velocity norm from noise to tokens: ${told.join("; ")}` : "No velocity yet";
  return (
    `<svg viewBox="0 0 ${PLOT.width} ${PLOT.height}" role="img" aria-label="${label}">` +
    `<g>${rulers.join("")}${times.join("")}</g>${traces.join("")}${means.join("")}</svg>`
  );
}
