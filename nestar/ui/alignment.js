// Velocity alignment: how far neighbouring modules are apart, measured live, and as the experiment has drawn it.
const [LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT] = [44, 12, 8, 36, 380, 220];
const DASHES = ["", "5 4", "2 3", "9 3 2 3", "1 4", "12 4"];
const aligning = find(".aligning");
const button = find(".measure");

// A round number at or above `most`, and that many thirds of it as marks.
function ceiling(most) {
  if (!(most > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(most));
  return unit * [1, 1.5, 2, 3, 4.5, 6, 7.5, 10].find((step) => step * unit >= most * 0.999);
}

// Lines [{label, hue, dash, points: [[t, y]]}] against t in 0 ... 1, as SVG; `label` says what is to be seen.
function linePlot(lines, label) {
  const top = ceiling(Math.max(0, ...lines.flatMap((line) => line.points.map(([, y]) => y))));
  const x = (t) => (LEFT + t * (WIDTH - LEFT - RIGHT)).toFixed(1);
  const y = (height) => (HEIGHT - BOTTOM - (height / top) * (HEIGHT - TOP - BOTTOM)).toFixed(1);
  const marks = [0, top / 3, (2 * top) / 3, top].map(
    (each) =>
      `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(each)}" y2="${y(each)}"/>` +
      `<text class="y" x="${LEFT - 6}" y="${Number(y(each)) + 4}">${Number(each.toPrecision(2))}</text>`,
  );
  const times = [0, 0.5, 1].map((t) => `<text class="x" x="${x(t)}" y="${HEIGHT - BOTTOM + 16}">${t}</text>`);
  const drawn = lines.map(({ hue, dash, points }) => {
    const path = points.map(([t, height]) => `${x(t)},${y(height)}`).join(" ");
    const dots = points.map(([t, height]) => `<circle cx="${x(t)}" cy="${y(height)}" r="2.4"/>`).join("");
    return `<g style="--hue:${hue}"><polyline points="${path}" stroke-dasharray="${dash}"/>${dots}</g>`;
  });
  const foot = `<text class="x" x="${x(0.5)}" y="${HEIGHT - 4}">t: from noise (0) to data (1)</text>`;
  return (
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escaped(label)}">` +
    `${marks.join("")}${times.join("")}${foot}${drawn.join("")}</svg>`
  );
}

function keys(lines) {
  return lines
    .map(
      ({ label, hue, dash }) =>
        `<li style="--hue:${hue}"><svg viewBox="0 0 28 8" width="28" height="8" aria-hidden="true">` +
        `<polyline points="0,4 28,4" stroke-dasharray="${dash}"/></svg>${escaped(label)}</li>`,
    )
    .join("");
}

function mean(numbers) {
  return numbers.reduce((sum, each) => sum + each, 0) / numbers.length;
}

function drawLive() {
  const lines = (calls.value?.lines ?? []).map(({ weights, pair, points }) => {
    const among = props.weights.indexOf(weights);
    const name = props.weights.length > 1 ? `, ${among ? "λ = 0" : "coordinated"}` : "";
    return {
      label: `modules ${pair} and ${pair + 1}${name}: ${mean(points.map((each) => each.difference)).toFixed(3)}`,
      hue: HUES[(pair - 1) % HUES.length],
      dash: DASHES[Math.max(0, among)],
      points: points.map(({ t, difference }) => [t, difference]),
    };
  });
  const said = lines.length ? `Mean over t: ${lines.map((line) => line.label).join("; ")}` : "Nothing measured yet";
  find(".live .plot").innerHTML = linePlot(lines, `Mean squared difference of velocities. ${said}`);
  find(".live .keys").innerHTML = keys(lines);
}

function drawExperiment() {
  const { experiment } = props; // of arms trained alike but for λ, once that has been run
  const box = find(".trained");
  box.hidden = !experiment;
  if (!experiment) return;
  box.innerHTML = experiment.panels
    .map(({ title, lines }) => {
      const styled = lines.map((line, place) => ({
        ...line,
        hue: HUES[place % HUES.length],
        dash: DASHES[place % DASHES.length],
      }));
      const label = `${title}, mean squared difference of velocities: ${lines.map((line) => line.label).join(", ")}`;
      const legend = `<ul class="keys">${keys(styled)}</ul>`;
      return `<figure><h3>${escaped(title)}</h3>${linePlot(styled, label)}${legend}</figure>`;
    })
    .join("");
  const millions = (experiment.parameters / 1e6).toFixed(1);
  const images = experiment.images.toLocaleString("en");
  const trained =
    `Trained alike but for λ: ${millions} million weights, on ${images} images each. Both modules’ velocities are compared ` +
    "on the earlier one’s last patch; with “all”, on all tokens that both know: that pulls both off their own velocities, " +
    "or, “detached”, teaches the earlier one alone. FID: distance of the samples from real pictures, lower is better.";
  box.insertAdjacentHTML("beforeend", `<p class="hint">${trained}</p>`);
}

function say(sentence, alarming = false) {
  const said = find(".said");
  if (said.textContent !== sentence) said.textContent = sentence;
  said.classList.toggle("alarm", alarming);
}

function showButton() {
  aligning.dataset.state = calls.state();
  button.textContent = calls.busy() ? "Stop" : "Measure";
  button.disabled = Boolean(props.reason);
}

function summary({ state, pictures }) {
  if (state === "running") return "";
  if (state === "stopped") return "Stopped.";
  const late = state === "out of time" ? "Time was up. " : "";
  return `${late}Mean squared difference over t, on ${plural(pictures, "held-out picture")}; 0 is agreement.`;
}

const calls = followCalls({
  call: "alignment",
  say,
  show: showButton,
  draw: drawLive,
  sentence: summary,
  failed: "nestar:alignment-failed",
  halted: "nestar:alignment-halted",
  ask: () => trigger("ask"),
});
button.addEventListener("click", (event) => {
  if (event.detail > 1) return; // a double click would start it and stop it
  if (calls.busy()) calls.stop(() => trigger("halt"));
  else calls.start("measure", () => trigger("measure"));
});
drawLive();
drawExperiment();
showButton();
if (props.reason) say(props.reason);
calls.update();
