// The race: lanes that grow as the server's patches come in, then a bar chart of what each of them took.
// The server works in slices, so that others get their turn: this asks for the next one until all have arrived.
const BARS = [
  { name: "seconds", title: "Seconds of sampling", hint: () => "Decoding left out.", digits: 2 },
  { name: "evaluations", title: "Turns", hint: () => "Patches that waited for the one before." },
  { name: "function_evaluations", title: "Function evaluations", hint: () => "Passes through a network, one after another." },
  { name: "tokens_processed", title: "Tokens processed", hint: sayTokens },
];
const ALIKE = 1.1; // counts whose ratio is below this are called alike
const NEAR = 0.995; // shares of parameters are said in whole percent
const contest = find(".contest");
const form = find("form");
const { entrants, rules } = props;

let sliceDone = false; // the server has ended a slice whose last value may still be on its way

// ---- before the start ---------------------------------------------------------------------------

function field() {
  const nested = entrants.nested ?? [];
  const chosen = nested.filter((entrant) => String(entrant.nesting.k) === form.elements.k.value);
  const others = Object.entries(entrants).filter(([kind]) => kind !== "nested");
  return [...chosen, ...others.map(([, own]) => own[0])];
}

function million(count) {
  return count < 1e5 ? `${(count / 1e3).toFixed(0)} thousand` : `${(count / 1e6).toFixed(2)} million`;
}

// At the steps that stand in the form.
function callsOf(nesting) {
  const steps = asTyped(form.elements.steps.value);
  return Number.isInteger(steps) && steps > 0 ? nesting.evaluations * rules.calls * steps + nesting.context_passes : "";
}

// `runners`: entrants, one a lane; those of a race that is under way may be others than the form names.
function lay(runners = field()) {
  find(".lanes").innerHTML = runners
    .map(
      ({ weights, label, idea, nesting, parameters, images }) =>
        `<li class="lane" data-weights="${escaped(weights)}" data-state="ready">` +
        `<h3>${escaped(label)}</h3><p class="hint idea">${idea}</p>` +
        `<div class="shot"><img alt="" hidden></div>` +
        `<p class="clock"><b>0.00 s</b> <span class="word"></span></p>` +
        `<div class="lane-foot"><div class="mini" aria-hidden="true">${tokenMap(nesting)}</div>` +
        `<dl><div><dt>Turns</dt><dd data-name="evaluations">${nesting.evaluations}</dd></div>` +
        `<div><dt>Function evaluations</dt><dd data-name="function_evaluations">${callsOf(nesting)}</dd></div>` +
        `<div><dt>Parameters</dt><dd>${million(parameters)}</dd></div>` +
        (images ? `<div><dt>Images seen</dt><dd>${images.toLocaleString("en")}</dd></div>` : "") +
        `</dl></div></li>`,
    )
    .join("");
  // The maps are decoration here: no stops for Tab.
  for (const token of element.querySelectorAll(".mini [tabindex]")) token.removeAttribute("tabindex");
  find(".tally").hidden = true;
  sayRules(runners);
}

// Of Generate's weights a variant runs where they saw more images than the others.
function moreTrained(runners) {
  return runners.find(({ weights, nesting }) => nesting.kind === "nested" && weights !== nesting.name)?.label;
}

function sayRules(runners) {
  const counts = runners.map((entrant) => entrant.parameters);
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  const within = least / most > NEAR ? "less than 1 %" : `${Math.ceil(100 * (1 - least / most))} %`;
  const turns = rules.together
    ? "They share one worker and go in turn, patch by patch: next is always the one with least on its clock."
    : "They share one worker and go one after another.";
  const sentences = [
    `Same class, noise, steps and device (${rules.device}); parameters differ by ${within}.`,
    ...(rules.rising ? ["Guidance rises over the patches; a lane with a single patch has it in full."] : []),
    ...(moreTrained(runners) ? [`${moreTrained(runners)} runs here with weights that saw as many images as the others’, not with Generate’s.`] : []),
    turns,
    "A clock counts its own lane’s sampling alone. Previews are decoded off the clock.",
    "Networks that have not run yet run once beforehand, off the clock: first passes are slow.",
    `After ${rules.limit} s of compute in all, whoever has not arrived is stopped.`,
  ];
  if (new Set(runners.map((entrant) => entrant.images)).size > 1) {
    sentences.push("They were not trained on equally many images: compare their clocks here, not their pictures.");
  }
  if (rules.together) {
    sentences.push(
      `Every ${rules.slice} s the race makes way for other visitors, unless ${rules.most} races wait already; ` +
        "clocks stand still meanwhile.",
    );
  }
  find(".rules ul").innerHTML = sentences.map((sentence) => `<li>${escaped(sentence)}</li>`).join("");
}

// ---- lanes --------------------------------------------------------------------------------------

const WORDS = { stopped: "stopped", "out of time": "out of time" };

function place(lane) {
  const ahead = calls.value.lanes.filter((other) => other.state === "finished" && other.seconds < lane.seconds).length;
  return ["first", "second", "third", "fourth"][ahead] ?? "";
}

function describe(lane) {
  const { class_name } = calls.value.settings;
  if (lane.state === "finished") return `Finished picture of ${class_name} by ${lane.label}`;
  return `Preview of ${class_name} by ${lane.label}: ${lane.known} of ${lane.of.known} tokens`;
}

function drawLane(lane) {
  const box = find(`.lane[data-weights="${CSS.escape(lane.weights)}"]`);
  if (!box) return;
  const live = lane.state === "running" && calls.busy();
  box.dataset.state = lane.state;
  const image = box.querySelector("img");
  if (lane.image && image.getAttribute("src") !== lane.image) image.src = lane.image;
  image.hidden = !lane.image;
  image.alt = lane.image ? describe(lane) : "";
  box.querySelector(".clock b").textContent = `${lane.seconds.toFixed(2)} s`;
  // Places are final when all clocks are.
  const arrived = lane.state === "finished" ? (calls.busy() ? "done" : place(lane)) : "";
  box.querySelector(".word").textContent = arrived || WORDS[lane.state] || "";
  for (const name of ["evaluations", "function_evaluations"]) {
    const rest = `<span class="of"> of ${lane.of[name]}</span>`;
    const own = lane.state === "finished" ? lane[name] : `<b>${lane[name]}</b>${rest}`;
    box.querySelector(`[data-name="${name}"]`).innerHTML = own;
  }
  markTokens(box.querySelector(".mini svg"), lane.evaluations, live);
}

// ---- afterwards ---------------------------------------------------------------------------------

function sayTokens() {
  const counts = calls.value.lanes.map((lane) => lane.of.tokens_processed);
  const alike = Math.max(...counts) < ALIKE * Math.min(...counts);
  return alike ? "Alike: fewer turns do not mean fewer tokens." : "How often a token entered a network; guided, twice in one pass.";
}

function bars({ name, title, hint, digits = 0 }) {
  const [ROW, LEFT, RIGHT, WIDTH] = [26, 128, 58, 330];
  const most = Math.max(...calls.value.lanes.map((lane) => lane[name]), Number.EPSILON);
  const said = (lane) => (lane.state === "finished" ? "" : "> ") + lane[name].toFixed(digits);
  const rows = calls.value.lanes.map((lane, row) => {
    const width = Math.max(2, ((WIDTH - LEFT - RIGHT) * lane[name]) / most);
    const middle = row * ROW + ROW / 2;
    const open = lane.state === "finished" ? "" : " open";
    return (
      `<text x="0" y="${middle + 4}">${escaped(lane.label)}</text>` +
      `<rect class="${lane.kind}${open}" x="${LEFT}" y="${middle - 7}" ` +
      `width="${width.toFixed(1)}" height="14" rx="3"/>` +
      `<text class="value" x="${(LEFT + width + 6).toFixed(1)}" y="${middle + 4}">${said(lane)}</text>`
    );
  });
  const summary = calls.value.lanes.map((lane) => `${lane.label} ${said(lane)}`).join(", ");
  return (
    `<figure><h3>${title}</h3><p class="hint">${hint()}</p>` +
    `<svg viewBox="0 0 ${WIDTH} ${ROW * calls.value.lanes.length}" role="img" ` +
    `aria-label="${escaped(`${title}: ${summary}`)}">${rows.join("")}</svg></figure>`
  );
}

function verdict() {
  const nested = calls.value.lanes.find((lane) => lane.kind === "nested" && lane.state === "finished");
  const late = calls.value.lanes.filter((lane) => lane.state !== "finished");
  const missing = late.length ? ` Not there in time: ${late.map((lane) => lane.label).join(", ")}.` : "";
  const spared = calls.value.lanes.filter((lane) => lane.device && !calls.value.device.startsWith(lane.device));
  const moved = spared.length
    ? ` The GPU had no memory left for ${spared.map((lane) => lane.label).join(", ")}, which went on on the CPU: ` +
      "clocks are not to be compared."
    : "";
  if (!nested) return `${missing}${moved}`.trim();
  const times = calls.value.lanes
    .filter((lane) => lane !== nested && lane.state === "finished")
    .map((lane) => {
      const ratio = Number((lane.seconds / nested.seconds).toPrecision(2));
      return `${lane.label} took ${ratio === 1 ? "as long" : `${ratio} times that`}`;
    });
  const { class_name, seed } = calls.value.settings;
  const whose = `${class_name}, seed ${seed}: `;
  return `${whose}${[`${nested.label}, took ${nested.seconds.toFixed(2)} s`, ...times].join("; ")}.${missing}${moved}`;
}

function drawTally() {
  const ended = calls.value.state === "finished";
  find(".tally").hidden = !ended;
  if (!ended) return;
  find(".verdict").textContent = verdict();
  find(".charts").innerHTML = BARS.map(bars).join("");
}

// ---- the course of a race -----------------------------------------------------------------------

function say(sentence, alarming = false) {
  const said = find(".said");
  if (said.textContent !== sentence) said.textContent = sentence;
  said.classList.toggle("alarm", alarming);
}

function setState() {
  contest.dataset.state = calls.state();
  find(".first").setAttribute("aria-disabled", String(calls.busy()));
  find(".halt").setAttribute("aria-disabled", String(!calls.busy()));
}

function runnerOf(weights) {
  return Object.values(entrants).flat().find((each) => each.weights === weights);
}

function draw(race, fresh) {
  if (fresh) lay(race.lanes.map(({ weights }) => runnerOf(weights)));
  race.lanes.forEach(drawLane);
  drawTally();
  goOn();
}

function goOn() {
  if (!sliceDone || calls.value?.state !== "paused") return;
  sliceDone = false;
  trigger("lap", { run: calls.value.run });
}

function sentence({ state }) {
  if (state === "paused") return undefined; // what it waits for stays
  return { stopped: "Stopped.", finished: "All lanes have ended." }[state] ?? "";
}

function stopped(race) {
  const lanes = race.lanes.map((lane) => (lane.state === "running" ? { ...lane, state: "stopped" } : lane));
  return { ...race, state: "stopped", lanes };
}

const calls = followCalls({
  call: "race",
  say,
  show: setState,
  draw,
  sentence,
  paused: "paused",
  stopped,
  failed: "nestar:race-failed",
  halted: "nestar:race-halted",
  ask: () => trigger("ask"),
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (calls.busy()) return;
  const { class_name, k, steps, seed } = form.elements;
  const values = { class_name: class_name.value, steps: asTyped(steps.value), seed: seed.value };
  sliceDone = false;
  calls.start("race", () => trigger("race", { ...values, k: entrants.nested ? Number(k.value) : null }));
});
find(".halt").addEventListener("click", () => {
  sliceDone = false;
  calls.stop(() => trigger("halt"));
});
form.elements.k.addEventListener("change", () => {
  if (calls.busy()) return;
  const last = calls.value;
  const [own] = field();
  if (last?.lanes.some(({ weights }) => weights === own.weights)) draw(last, true); // the race of that k
  else lay();
  say("");
});
form.elements.steps.addEventListener("input", () => {
  for (const box of element.querySelectorAll('.lane[data-state="ready"]')) {
    const { nesting } = runnerOf(box.dataset.weights);
    box.querySelector('[data-name="function_evaluations"]').textContent = callsOf(nesting);
  }
});
document.addEventListener("nestar:race-done", () => {
  if (!calls.busy() || calls.halting()) return; // of a slice that was stopped
  sliceDone = true;
  goOn();
});

fillSelect(form.elements.class_name, props.classes.map((name) => [name, name]), props.first.class_name);
fillSelect(form.elements.k, (entrants.nested ?? []).map(({ nesting }) => [nesting.k, nesting.k]), props.first.k);
find(".with-k").hidden = !entrants.nested;
form.elements.steps.value = props.first.steps;
form.elements.seed.value = props.first.seed;
followGenerate(form);
lay();
setState();
calls.update();
