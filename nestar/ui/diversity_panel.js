// What every panel of the Diversity tab does alike: it waits for its turn, follows one run to its end, and says a
// sentence where one is due (calls.js has the waiting). A panel's own script calls `followRuns` with what it draws.
const section = find("[data-state]");

let value = null; // the run being shown
let waiting = false; // it was asked for and the server has not answered yet
let ignoring = false; // Stop was pressed while waiting: the answer, if one still comes, is not wanted

function say(sentence, alarming = false) {
  const status = find(".status");
  status.textContent = sentence;
  status.classList.toggle("alarm", alarming);
}

function setState(state) {
  section.dataset.state = state;
  section.setAttribute("aria-busy", String(state === "waiting" || state === "running"));
}

function busy() {
  return waiting || value?.state === "running";
}

function wait() {
  waiting = true;
  ignoring = false;
  say("");
  setState("waiting");
}

// No more will come of the call: keep what stands and say why.
function breakOff(sentence, alarming = true) {
  if (value?.state === "running") value = { ...value, state: "stopped" };
  waiting = false;
  say(sentence, alarming);
  setState(value ? value.state : "empty");
}

// `button`: the id of what starts a run, if a button does. `draw(value, fresh)`: show a value of a run.
function followRuns({ button, draw }) {
  function update() {
    const next = props.value;
    if (!next?.run) return;
    if (next.state === "refused") {
      if (!ignoring) breakOff(next.message);
      return;
    }
    const fresh = next.run !== value?.run;
    if (fresh && ignoring) return;
    // Values that were under way when Stop was pressed come late.
    if (!fresh && value.state === "stopped") return;
    waiting = false;
    value = next;
    setState(next.state);
    say(next.state === "stopped" ? "Stopped." : "");
    draw(next, fresh);
  }

  document.addEventListener("click", (event) => {
    if (button && event.target.closest?.(`#${button}`) && !busy()) wait();
    if (event.target.closest?.("#diversity-stop") && busy()) {
      ignoring = waiting;
      breakOff("Stopped.", false);
    }
  });
  attend({
    busy,
    waits: () => waiting,
    say,
    breakOff,
    failed: "nestar:diversity-failed",
    ask: () => document.dispatchEvent(new Event("nestar:diversity-ask")),
  });
  watch("value", update);
  update();
}
