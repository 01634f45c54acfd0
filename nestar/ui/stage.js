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
