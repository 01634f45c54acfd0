// The player. The server sends every frame made so far with each update and runs flat out; this plays them at a pace
// at which growth is seen, and replays them afterwards.
const { module: MODULE_MS, frame: FRAME_MS } = props.pace; // the least time that each takes on screen at 1×
const MANY = 30; // more segments of the track than this stand without gaps

const find = (selector) => element.querySelector(selector);
const stage = find(".stage");
const [under, over] = [find("img.under"), find("img.over")];
const scrubber = find(".scrubber");
const asItComes = find(".as-it-comes");
const speed = find(".speed");
const before = find(".before");
const picker = find(".saved-picture");
const MAP_HINT =
  "Number and colour: the module. Darker: a later patch. Ringed: the last one made. Choose a token to see what it could see.";

let run = null; // the stage value being shown
let patches = []; // of its nesting, in the order they are made
let shown = -1; // index of the frame on screen
let playing = false;
let timer = null;
let looked = null; // the cell of the token that is looked at
let former = null; // the last finished run before this one
let reached = -1; // the furthest frame the visitor has seen of this run
let waiting = false; // Generate was pressed and the server has not answered yet
let ignoring = false; // Stop was pressed while waiting: the answer, if one still comes, is not wanted
let again = false; // Generate was pressed while a Stop was on its way, or what a link asks for
let linked = Object.keys(props.link).some((name) => new URLSearchParams(location.search).has(name)); // the latter
let remarked = ""; // the remark on this run that was made already

// ---- what is on screen --------------------------------------------------------------------------

function pictureOf(index) {
  // A frame may have given its picture up to keep a long run small: show the one before.
  for (let each = index; each >= 0; each--) if (run.frames[each].image) return run.frames[each].image;
  return "";
}

function swapPicture(source, description) {
  over.alt = description;
  if (over.getAttribute("src") === source) return;
  if (over.getAttribute("src")) {
    under.src = over.src;
    under.hidden = false;
  }
  over.src = source;
  over.hidden = false;
  over.style.animation = "none";
  void over.offsetWidth; // restart the fade
  over.style.animation = "";
}

function describe(frame) {
  const { class_name } = run.settings;
  if (frame.final) return `Finished picture: ${class_name}`;
  return `Preview of ${class_name} after module ${frame.module}, patch ${frame.patch}: ${frame.known} of ${run.nesting.n} tokens`;
}

// What made the picture: k, and the order of the tokens where it is not the one that goes from coarse to fine.
function methodSaid() {
  const { k, order } = run.settings;
  if (run.nesting.kind !== "nested") return run.nesting.label;
  return `k = ${k}` + (order === "lattice" ? "" : `, ${order}`);
}

function caption(frame) {
  const { class_name, seed } = run.settings;
  const module = run.nesting.modules[frame.module - 1];
  find(".title").textContent = frame.final
    ? `${class_name}, seed ${seed}`
    : `Module ${frame.module} of ${run.nesting.modules.length}, patch ${frame.patch} of ${module.patches.at(-1).index}`;
  find(".note").textContent = frame.final
    ? `${methodSaid()}, ${plural(run.settings.steps, "step")}, temperature ${run.settings.temperature}, ` +
      (run.settings.cfg === 1 ? "guidance off" : `guidance ${run.settings.cfg}`)
    : `${frame.known} of ${run.nesting.n} tokens stand; the decoder guesses the rest.`;
}

// The settings that a visitor sets, in words.
const SETTINGS = {
  class_name: "class",
  k: "k",
  order: "order",
  steps: "steps",
  temperature: "temperature",
  cfg: "guidance",
  seed: "seed",
};

// The finished picture of the run before, and what is otherwise now; `on` false: this run's frame again.
function compare(on) {
  if (!on) {
    show(shown);
    return;
  }
  const [then, now] = [former.settings, run.settings];
  const others = Object.keys(SETTINGS).filter((name) => then[name] !== now[name]);
  const said = others.map((name) => `${SETTINGS[name]} ${then[name]}, now ${now[name]}`);
  swapPicture(former.frames.at(-1).image, `The picture before: ${then.class_name}`);
  find(".title").textContent = `Before: ${then.class_name}, seed ${then.seed}`;
  find(".note").textContent = said.length ? `${said.join("; ")}.` : "Made with the same settings.";
  before.setAttribute("aria-pressed", "true");
}

function offerFormer() {
  before.setAttribute("aria-pressed", "false");
  before.hidden = !former || playing || busy() || !run.frames.length;
}

function numbers(frame) {
  const { nesting } = run;
  const [made, calls] = frame ? [frame.evaluations, frame.function_evaluations] : [0, 0];
  const write = (name, text) => (find(`[data-name="${name}"]`).innerHTML = text);
  write("evaluations", `<b>${made}</b> of ${nesting.evaluations}`);
  write("function-evaluations", `<b>${calls}</b>` + (frame?.final ? "" : ` of ${nesting.function_evaluations}`));
  write("tokens", `<b>${frame ? frame.known : 0}</b> of ${nesting.n}`);
  const together = frame?.batch > 1 ? `, with ${plural(frame.batch - 1, "other")}` : "";
  write("seconds", `<b>${(frame ? frame.seconds : 0).toFixed(2)} s</b> on ${run.device}${together}`);
  const bar = (name, done, all) => {
    const each = find(`.bar[data-name="${name}"]`);
    each.style.setProperty("--all", all / nesting.n);
    each.style.setProperty("--done", all ? done / all : 0);
    each.querySelector(".count").textContent = all;
  };
  bar("nested", made, nesting.evaluations);
  bar("plain", 0, nesting.n);
  find('.bar[data-name="nested"] .name').textContent = nesting.label;
}

function moduleSeconds(number) {
  const last = (each) => run.frames.filter((frame) => frame.module === each).at(-1)?.seconds ?? 0;
  return last(number) - (number > 1 ? last(number - 1) : 0);
}

function film() {
  if (!playing) reached = run.frames.length - 1;
  const slots = [...find(".film").children];
  for (const [place, slot] of slots.entries()) {
    const index = run.frames.findIndex((frame) => frame.module === place + 1 && frame.module_done);
    const ready = index >= 0 && index <= reached;
    const button = slot.querySelector("button");
    button.disabled = !ready;
    button.dataset.frame = index;
    button.setAttribute("aria-pressed", String(ready && index === shown));
    slot.classList.toggle("ready", ready);
    slot.classList.toggle("active", shown >= 0 && run.frames[shown].module === place + 1);
    const image = slot.querySelector("img");
    image.hidden = !ready;
    if (ready) image.src = run.frames[index].image;
    else image.removeAttribute("src");
  }
}

function legend() {
  for (const [place, row] of [...find(".legend").children].entries()) {
    const made = shown >= 0 ? run.frames[shown].module : 0;
    const complete = shown >= 0 && (made > place + 1 || (made === place + 1 && run.frames[shown].module_done));
    row.querySelector(".time").textContent = complete ? `${moduleSeconds(place + 1).toFixed(2)} s` : "";
    row.classList.toggle("reached", made >= place + 1);
  }
}

// What the token that is looked at was, when it was made, and what it could see.
function lookedSentence() {
  const turn = patches.findIndex((patch) => patch.cells.includes(looked));
  const { module, patch, cells, known } = patches[turn];
  const frame = run.frames[turn];
  const made = frame && turn <= shown;
  const when = made ? `at ${frame.seconds.toFixed(2)} s` : "still to come";
  const before = known ? `the ${plural(known, "token")} before it` : "no token before it";
  const mates = cells.length > 1 ? ` and the ${plural(cells.length - 1, "other")} of its patch` : "";
  return (
    `Module ${module}, patch ${patch}: turn ${turn + 1} of ${patches.length}, ${when}. ` +
    `It ${made ? "saw" : "will see"} ${before}${mates}.`
  );
}

function look() {
  const svg = find(".map svg");
  markLooked(svg, looked);
  find(".looked").textContent = looked === null ? MAP_HINT : lookedSentence();
  const module = patches.find((patch) => patch.cells.includes(looked))?.module;
  for (const line of stage.querySelectorAll(".norms polyline")) {
    line.classList.toggle("aside", module !== undefined && Number(line.dataset.module) !== module);
  }
  for (const token of svg.querySelectorAll(".token")) {
    const cell = Number(token.dataset.cell);
    const words = cell === looked ? `. ${lookedSentence()}` : `: ${token.dataset.name}`;
    const label = `Row ${token.dataset.row}, column ${token.dataset.column}${words}`;
    if (token.getAttribute("aria-label") !== label) token.setAttribute("aria-label", label);
  }
}

function plotNorms() {
  find(".norms").innerHTML = normPlot(run.nesting.modules, run.frames, shown + 1);
}

function keeps() {
  const finished = run?.state === "finished";
  for (const name of ["png", "animation"]) find(`[data-keep="${name}"]`).disabled = !finished;
}

function show(index) {
  shown = index;
  reached = Math.max(reached, shown);
  const frame = run.frames[index];
  const unfinished = run.state === "running" || index < run.frames.length - 1;
  if (frame) {
    swapPicture(pictureOf(index), describe(frame));
    caption(frame);
  }
  numbers(frame);
  const made = frame ? frame.evaluations : 0;
  markTokens(find(".map svg"), made, unfinished && playing);
  find(".map svg").setAttribute(
    "aria-label",
    frame ? `${frame.known} of ${run.nesting.n} tokens made, the last by ${patches[made - 1].name}` : "No token made yet",
  );
  scrubber.value = made;
  scrubber.setAttribute("aria-valuetext", frame ? describe(frame) : "Nothing yet");
  for (const [turn, segment] of [...stage.querySelectorAll(".segments i")].entries()) {
    segment.classList.toggle("known", turn < made);
  }
  film();
  legend();
  plotNorms();
  look();
  keeps();
  nameButton();
  offerFormer();
}

function lay() {
  // The skeleton of a run: everything that depends on its nesting alone.
  const { nesting } = run;
  patches = patchesOf(nesting);
  for (const [turn, patch] of patches.entries()) {
    patch.known = turn ? patches[turn - 1].known + patches[turn - 1].cells.length : 0;
  }
  if (looked >= nesting.n) looked = null;
  const focused = document.activeElement?.closest?.(".map .token")?.dataset.cell;
  find(".map").innerHTML = tokenMap(nesting);
  find(`.map [data-cell="${focused}"]`)?.focus({ preventScroll: true });
  find(".segments").innerHTML = patches
    .map((patch) => `<i style="${moduleStyle(patch.module, patch.tint)}"></i>`)
    .join("");
  find(".segments").classList.toggle("many", patches.length > MANY);
  scrubber.min = 1;
  scrubber.max = patches.length;
  find(".film").innerHTML = nesting.modules
    .map(
      (module) =>
        `<li style="${moduleStyle(module.number, 0.5)}"><button type="button" disabled aria-label="Show the picture after module ${module.number}">` +
        `<span class="frame"><img alt="" hidden></span><span class="label">Module ${module.number}</span>` +
        `<span class="sub">${module.tokens} of ${nesting.n} tokens</span></button></li>`,
    )
    .join("");
  find(".legend").innerHTML = nesting.modules
    .map((module) => {
      const tints = patches.filter((patch) => patch.module === module.number);
      const sizes = sizesSaid(tints.map((patch) => patch.cells.length));
      const ramp = tints.map((patch) => `<i style="${moduleStyle(patch.module, patch.tint)}"></i>`).join("");
      return (
        `<li><span class="name">Module ${module.number}</span><span class="ramp" aria-hidden="true">${ramp}</span>` +
        `<span>${sizes}</span><span class="time"></span></li>`
      );
    })
    .join("");
}

// ---- playing ------------------------------------------------------------------------------------

function pace(frame) {
  const inModule = run.nesting.modules[frame.module - 1].patches.length;
  return Math.max(FRAME_MS, MODULE_MS / inModule) / Number(speed.value);
}

function busy() {
  return waiting || run?.state === "running";
}

function setState(state) {
  stage.dataset.state = waiting ? "waiting" : state; // a replay may end meanwhile
  stage.classList.toggle("playing", playing);
  document.getElementById("studio")?.classList.toggle("busy", busy());
  nameButton();
  keeps();
  if (before.getAttribute("aria-pressed") === "true") compare(false);
  else offerFormer();
  markButtons();
}

function nameButton() {
  const play = find(".play");
  play.title = playing ? "Pause" : shown < (run?.frames.length ?? 0) - 1 ? "Play" : "Replay";
  play.setAttribute("aria-label", play.title);
}

// What the colours of Generate and Stop say, for those who do not see them. Gradio may mount them after this runs.
function markButtons() {
  const [generate, stop] = ["generate", "stop"].map((id) => document.getElementById(id));
  if (!generate || !stop) {
    requestAnimationFrame(markButtons);
    return;
  }
  generate.setAttribute("aria-disabled", String(busy()));
  stop.setAttribute("aria-disabled", String(!busy()));
}

function stopTimer() {
  clearTimeout(timer);
  timer = null;
}

function rest() {
  playing = false;
  stopTimer();
  setState(run.state);
  show(shown < 0 ? run.frames.length - 1 : shown);
  if (run.frames.length) return;
  find(".title").textContent = "Stopped";
  find(".note").textContent = "No patch was made; the picture is the one before.";
}

function tick() {
  timer = null;
  if (!playing) return;
  const last = run.frames.length - 1;
  if (shown < last) {
    // Frames seen before are a replay and keep the pace.
    show(asItComes.checked && shown === reached ? last : shown + 1);
    timer = setTimeout(tick, pace(run.frames[shown]));
  } else if (run.state !== "running") {
    rest();
    if (!waiting) announce();
  }
}

function play(from) {
  playing = true;
  stopTimer();
  element.querySelector('[role="status"]').textContent = ""; // the same words again would not be announced
  if (from !== undefined) show(from);
  setState(run.state);
  timer = setTimeout(tick, from === undefined ? 0 : pace(run.frames[from]));
}

function announce() {
  const status = element.querySelector('[role="status"]');
  const count = plural(run.frames.at(-1)?.evaluations ?? 0, "turn");
  if (run.state === "finished") status.textContent = `Finished after ${count}.`;
  if (run.state === "stopped") status.textContent = `Stopped after ${count}.`;
}

// `stays`: a click into it selects, and does not send it away.
function say(sentence, alarming, stays = false) {
  const message = find(".message");
  message.classList.toggle("stays", stays);
  message.hidden = !sentence;
  message.setAttribute("aria-live", alarming ? "assertive" : "polite");
  if (message.textContent !== sentence) message.textContent = sentence; // the same again would be read out again
  message.classList.toggle("quiet", !alarming);
}

// ---- updates from the server --------------------------------------------------------------------

function stopped() {
  // Stop was pressed: keep what stands, whatever else is still on its way.
  if (waiting) {
    waiting = false;
    ignoring = true;
    say("Stopped before the first patch.", false);
    setState(run.state);
    return;
  }
  run = { ...run, state: "stopped" };
  say(run.frames.length ? `Stopped after ${run.frames.length} of ${run.nesting.evaluations} turns.` : "Stopped before the first patch.", false);
  rest();
}

const stops = followStops({
  halted: "nestar:halted",
  failed: "nestar:failed",
  through: pressAgain,
});

// Generate, if it was pressed when it could not be.
function pressAgain() {
  if (!again || linked || stops.pending()) return;
  again = waiting = false;
  document.getElementById("generate")?.click();
}

// The controls stand as the link says, or nobody tells any more how.
function arrive() {
  linked = false;
  pressAgain();
}
if (linked) setTimeout(arrive, HALT_MS);

function breakOff(sentence) {
  // No more will come of the call: keep what stands and say why.
  const begun = run?.state === "running";
  waiting = false;
  if (begun) run = { ...run, state: "stopped" };
  say(sentence, true);
  if (begun) rest();
  else setState(run ? run.state : "empty");
}

// After a lost connection Gradio loads the page anew: the settings come back with the address. The visitor's own
// parameters stay in it.
function rememberInAddress(settings) {
  history.replaceState(history.state, "", linkTo(settings, props.link, new URL(location.href)));
}

function update() {
  const value = props.value;
  if (!value || !value.run) return;
  if (value.state === "refused") {
    if (!ignoring) breakOff(value.message);
    return;
  }
  if (value.state === "fetching") {
    if (!ignoring) say(value.message, false);
    return;
  }
  const onLoad = !run;
  const fresh = onLoad || value.run !== run.run;
  if (fresh && ignoring) return;
  // Frames that were under way when Stop was pressed come late.
  if (!fresh && run.state === "stopped") return;
  if (fresh && run?.state === "finished") former = run;
  run = value;
  if (fresh) {
    waiting = false;
    say("", false);
    lay();
    shown = reached = -1;
    if (onLoad && run.state === "finished") {
      show(run.frames.length - 1);
      setState(run.state);
      return;
    }
    rememberInAddress(run.settings);
    window.nestarRan = run.settings; // for the forms of other tabs
    document.dispatchEvent(new CustomEvent("nestar:ran", { detail: run.settings }));
    bringIntoView(find(".picture"), "center");
    playing = true; // before anything is shown, so that the first patch's tokens are marked as running
    show(-1);
    find(".title").textContent = "Module 1 is at work";
    find(".note").textContent = `${run.settings.class_name}, seed ${run.settings.seed}`;
    play();
  } else {
    setState(run.state);
    if (!playing && run.state === "finished") announce(); // else when it has been played
    if (playing && timer === null) tick();
    else if (asItComes.checked && playing) {
      stopTimer();
      tick();
    } else if (!playing) film();
  }
  if (run.message && !remarked) say(run.message, false);
  remarked = run.message ?? "";
  if (run.state === "stopped") stopped();
}

// ---- the visitor's hands ------------------------------------------------------------------------

function hush() {
  // A sentence stands over the picture: it goes when the visitor turns to the frames.
  if (!waiting) say("", false);
}

scrubber.addEventListener("input", () => {
  if (!run?.frames.length) return;
  hush();
  playing = false;
  stopTimer();
  show(Math.min(Number(scrubber.value), run.frames.length) - 1);
  setState(run.state);
});
function playOrPause() {
  if (!run?.frames.length) return;
  hush();
  if (playing) {
    playing = false;
    stopTimer();
    setState(run.state);
    show(shown);
  } else play(shown >= run.frames.length - 1 ? 0 : shown);
}

find(".play").addEventListener("click", playOrPause);
before.addEventListener("click", () => {
  hush();
  compare(before.getAttribute("aria-pressed") === "false");
});
// Arrow keys are the slider's own.
scrubber.addEventListener("keydown", (event) => {
  if (event.key !== " ") return;
  event.preventDefault();
  playOrPause();
});
speed.addEventListener("change", () => {
  // The frame on screen goes by the new speed at once.
  if (!playing || timer === null) return;
  stopTimer();
  timer = setTimeout(tick, shown < 0 ? 0 : pace(run.frames[shown]));
});
watchTokens(find(".map"), (cell) => {
  looked = cell;
  if (run) look();
});
find(".film").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.disabled) return;
  hush();
  playing = false;
  stopTimer();
  show(Number(button.dataset.frame));
  setState(run.state);
});
// On the document: Gradio may mount the buttons after this runs. Before Gradio's own: a run may have to be held back,
// or there is one already.
document.addEventListener(
  "click",
  (event) => {
    // A Stop of nothing would end the run that is asked for next.
    const idle = event.target.closest?.("#stop") && !busy();
    if (idle) {
      event.stopPropagation();
      event.preventDefault();
    }
    if (!event.target.closest?.("#generate") || !(busy() || stops.pending() || linked)) return;
    event.stopPropagation();
    event.preventDefault();
    if (!stops.pending() && !linked) return; // one run at a time
    again = waiting = true;
    say("", false);
    setState("waiting");
  },
  true,
);
document.addEventListener("click", (event) => {
  if (event.target.closest?.("#generate")) {
    waiting = true;
    ignoring = false;
    say("", false);
    setState("waiting");
  }
  if (event.target.closest?.("#stop") && run && busy()) {
    again = false;
    stops.begin();
    stopped();
  }
});
document.addEventListener("input", (event) => {
  if (event.target.closest?.("#classes, #dials")) hush();
});
find(".message").addEventListener("click", ({ target }) => {
  if (!target.closest(".message").matches(".stays")) hush();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hush();
});

// ---- saving, sharing, restoring ------------------------------------------------------------------

const MAKING = "The animation is being made.";
const LOST = { message: "The animation did not come: the connection was lost. Try again." };
const KEEPS = {
  png: () => download(run.frames.at(-1).image, `${run.name}.png`),
  animation: async (button) => {
    // Not disabled, which would take the keyboard's place from it.
    button.setAttribute("aria-disabled", "true");
    say(MAKING, false);
    // Gradio tells nothing of a question that did not get through: it has no answer.
    const answer = (await server.animation_of(run.run).catch(() => null)) ?? LOST;
    if (answer.uri) download(answer.uri, answer.name);
    // Another sentence may have come meanwhile.
    if (!answer.uri) say(answer.message, true);
    else if (find(".message").textContent === MAKING) say("", false);
    button.removeAttribute("aria-disabled");
  },
  link: share,
  open: () => picker.click(),
};

find(".keeps").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.getAttribute("aria-disabled")) return;
  hush();
  if (before.getAttribute("aria-pressed") === "true") compare(false); // what is kept is this run's
  KEEPS[button.dataset.keep](button);
});

// Of the picture that is shown, whatever stands in the controls by now.
async function share() {
  const address = linkTo(run.settings, props.link);
  rememberInAddress(run.settings);
  const copied = await copyText(address);
  const framed = window.parent !== window; // then the window's address is another
  const too = framed ? "" : ", and so does the address of this page";
  if (copied) say(`Link copied: it brings the settings of this picture back${too}.`, false);
  else say(`Copy this link: ${address}`, false, true);
}

async function restore(file) {
  if (!file) return; // dragged from where there is none
  if (waiting) {
    say("Your run is still waiting: open the picture once it has begun, or press Stop.", true);
    return;
  }
  let kept;
  try {
    kept = await readKept(file, props.keepsake);
  } catch (error) {
    say(error instanceof Unreadable ? error.message : "This file cannot be read.", true);
    return;
  }
  trigger("picture", { kept });
}

picker.addEventListener("change", () => {
  if (picker.files.length) restore(picker.files[0]);
  picker.value = ""; // the same file can be opened again
});

// Anywhere on the page: a browser would show the picture in place of the page.
function carriesFile(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

document.addEventListener("dragover", (event) => {
  const welcome = Boolean(carriesFile(event));
  stage.classList.toggle("dropping", welcome);
  if (welcome) event.preventDefault();
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) stage.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  stage.classList.remove("dropping");
  if (!carriesFile(event)) return;
  event.preventDefault();
  document.querySelector('[role="tab"]')?.click(); // Generate's, where the settings go
  restore(event.dataTransfer.files[0]);
});

document.addEventListener("nestar:unrestored", () => {
  say("The settings could not be restored. Try again in a moment.", true);
  arrive();
});
document.addEventListener("nestar:answer", ({ detail }) => {
  if (!detail.message) return;
  say(detail.message, detail.alarming);
  arrive();
});

// After `followStops`: a call that Stop has ended has not failed.
attend({
  call: "generate",
  busy,
  waits: () => waiting,
  say,
  breakOff,
  failed: "nestar:failed",
  ask() {
    // Of a wait whose place nobody knows this stays.
    if (find(".message").hidden) say("Waiting for the sampler: it makes one run at a time.");
    trigger("ask");
  },
});

watch("value", update);
update();
