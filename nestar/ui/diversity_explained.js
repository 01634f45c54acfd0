// How much of the differences among samples each module decides: a bar per module, with its standard error.
const [WIDTH, HEIGHT, TOP, FOOT] = [340, 190, 22, 40];
let asked = props.first; // class and nesting that the controls name

const percent = (share) => `${Math.round(100 * share)} %`;

// Whether there are too many bars for words below them.
const isNarrow = (increments) => increments.length > 4;

function plot({ increments, increment_errors, shares }) {
  const least = Math.min(0, ...increments.map((share, place) => share - increment_errors[place]));
  const most = Math.max(...increments.map((share, place) => share + increment_errors[place]), 0.05);
  const y = (share) => TOP + ((most - share) / (most - least)) * (HEIGHT - TOP - FOOT);
  const step = WIDTH / increments.length;
  const narrow = isNarrow(increments);
  const soFar = (share) => (narrow ? `Σ ${percent(share)}` : `${percent(share)} so far`);
  const bars = increments.map((share, place) => {
    const [middle, error] = [step * (place + 0.5), increment_errors[place]];
    const [high, low] = [y(Math.max(share, 0)), y(Math.min(share, 0))];
    const thick = Math.min(56, step * 0.62);
    const label = narrow ? place + 1 : `Module ${place + 1}`;
    return (
      `<g style="${moduleStyle(place + 1, 0.5)}">` +
      `<rect class="share" x="${middle - thick / 2}" y="${high}" width="${thick}" ` +
      `height="${Math.max(1, low - high)}" rx="3"/>` +
      `<path class="error" d="M${middle} ${y(share - error)}V${y(share + error)}"/>` +
      `<text class="value" x="${middle}" y="${y(Math.max(0, share + error)) - 6}">${percent(share)}</text>` +
      `<text class="name" x="${middle}" y="${HEIGHT - FOOT + 16}">${label}</text>` +
      `<text class="total" x="${middle}" y="${HEIGHT - FOOT + 32}">${soFar(shares[place + 1])}</text></g>`
    );
  });
  const words = increments.map((share, place) => `module ${place + 1} ${percent(share)}`).join(", ");
  return (
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" class="${narrow ? "many" : ""}" ` +
    `aria-label="Share of the differences that each module decides: ${words}">` +
    `<line class="axis" x1="0" x2="${WIDTH}" y1="${y(0)}" y2="${y(0)}"/>${bars.join("")}</svg>`
  );
}

// What was measured beforehand on these very weights, if anything was.
function stored() {
  const found = props.committed[asked.nesting];
  if (!found) return null;
  const own = found.classes[asked.class_name];
  const classes = Object.keys(found.classes).length;
  const whose = own ? asked.class_name : `mean over ${classes === 1 ? "1 class" : `${classes} classes`}`;
  const { parents, siblings, settings } = found;
  return { explained: own ?? found.mean, whose, nesting: asked.nesting, parents, siblings, settings };
}

function labelOf(nesting) {
  return props.nestings.find(({ name }) => name === nesting)?.label ?? nesting;
}

// The figures hold for the settings they were measured with, whatever stands in the controls now.
function showResult({ explained, whose, nesting, parents, siblings, settings }, when) {
  find(".plot").innerHTML = plot(explained);
  const families = `${plural(parents, "parent")} with ${plural(siblings, "sibling")} each`;
  const sums = isNarrow(explained.increments) ? " Σ: with all modules before." : "";
  const { steps, temperature, cfg } = settings;
  const dials = `${plural(steps, "step")}, temperature ${temperature}, ${cfg === 1 ? "guidance off" : `guidance ${cfg}`}`;
  find(".caption").textContent =
    `${when}: ${labelOf(nesting)}, ${whose}, ${families}, ${dials}. The lines are standard errors.${sums}`;
}

function showStored() {
  const found = stored();
  if (found) showResult(found, "Measured beforehand");
  else {
    find(".plot").innerHTML = "";
    const families = `${props.parents} parents and a sibling of each for every number of modules kept`;
    find(".caption").textContent = `Not measured yet for these weights. Measure makes ${families}.`;
  }
}

function draw(current) {
  if (current.state === "running") {
    const share = current.of ? current.done / current.of : 0;
    find(".plot").innerHTML =
      `<div class="meter" role="progressbar" aria-label="Measuring" aria-valuemin="0" aria-valuemax="100" ` +
      `aria-valuenow="${Math.round(100 * share)}" style="--done:${share}"><i></i></div>`;
    find(".caption").textContent = `${current.done} of ${plural(current.of, "turn")}`;
  } else if (current.explained) {
    const { explained, class_name: whose, nesting, settings } = current;
    showResult({ explained, whose, nesting, settings, ...explained }, "Measured now");
  } else showStored(); // it was stopped
}

followRuns({ name: "diversity-explained", button: "diversity-measure", draw });
document.addEventListener("nestar:diversity-controls", ({ detail }) => {
  const alike = (other) => other?.nesting === detail.nesting && other?.class_name === detail.class_name;
  if (alike(asked)) return;
  asked = detail;
  if (calls.busy()) return;
  // What was measured stands as long as nothing else is asked about.
  if (alike(calls.value) && calls.value.explained) draw(calls.value);
  else showStored();
});
if (!calls.value) showStored();
