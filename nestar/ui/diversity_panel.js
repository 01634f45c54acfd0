// What every panel of the Diversity tab does alike: it waits for its turn, follows one run to its end, and says a
// sentence where one is due (calls.js has the waiting). A panel's own script calls `followRuns` with what it draws.
const section = find("[data-state]");
const STARTERS = ["generate", "warm", "measure", "resample"].map((name) => `#diversity-${name}`).join();

let calls; // of this panel, see `followRuns`
let wasBusy = false;
let starter; // id of the button that starts its runs, if one does
const held = new Map(); // by button: presses that wait until this panel's Stop is through

function say(sentence, alarming = false) {
  const status = find(".status");
  if (status.textContent !== sentence) status.textContent = sentence; // the same again would be read out again
  status.classList.toggle("alarm", alarming);
}

function show() {
  section.dataset.state = calls.state();
  section.setAttribute("aria-busy", String(calls.busy()));
  sayEnd();
  // What the colours of the buttons say, for those who do not see them.
  const going = document.querySelector('#diversity :is([data-state="running"], [data-state="waiting"])');
  document.getElementById(starter)?.setAttribute("aria-disabled", String(calls.busy()));
  document.getElementById("diversity-stop")?.setAttribute("aria-disabled", String(!going));
}

// For those who do not see the pictures arrive, once a run.
function sayEnd() {
  const heard = find(".heard");
  if (heard && calls.busy()) heard.textContent = "";
  else if (heard && wasBusy && calls.state() === "finished") heard.textContent = "Finished.";
  wasBusy = calls.busy();
}

// Gradio may mount the buttons after this runs.
function showWhenMounted() {
  if (document.getElementById("diversity-stop")) show();
  else requestAnimationFrame(showWhenMounted);
}

function pressHeld() {
  const buttons = [...held.values()];
  held.clear();
  for (const pressed of buttons) {
    pressed.again = true;
    pressed.click();
    pressed.again = false;
  }
}

// `name`: of the panel's calls. `button`: the id of what starts a run, if a button does. `draw(value, fresh)`,
// `late(value)`: see `followCalls`.
function followRuns({ name, button, draw, late }) {
  starter = button;
  calls = followCalls({
    call: name,
    say,
    show,
    draw,
    late,
    sentence: ({ state }) => (state === "stopped" ? "Stopped." : ""),
    failed: `nestar:${name}-failed`,
    halted: "nestar:diversity-halted",
    ask: () => document.dispatchEvent(new CustomEvent("nestar:diversity-ask", { detail: { call: name } })),
  });
  // Before Gradio's own: what is pressed while this panel's Stop is on its way is pressed again after it, and a run
  // is on its way once. The button says which press is such a second one: another panel, whose Stop takes longer,
  // may have to hold it, too.
  document.addEventListener(
    "click",
    (event) => {
      const pressed = event.target.closest?.(STARTERS);
      const twice = pressed?.id === button && calls.busy() && !pressed?.again;
      if (!pressed || !(calls.halting() || twice)) return;
      event.stopImmediatePropagation();
      event.preventDefault();
      if (!calls.halting()) return;
      held.set(pressed.id, pressed);
      calls.hold(pressHeld);
      document.dispatchEvent(new CustomEvent("nestar:diversity-held", { detail: pressed.id }));
    },
    true,
  );
  // The panel whose press it is says that it waits, whichever panel holds it.
  document.addEventListener("nestar:diversity-held", ({ detail }) => {
    if (button === detail) calls.start(button, held.has(button) ? pressHeld : undefined);
  });
  // The buttons are Gradio's own, and send the calls themselves.
  document.addEventListener("click", (event) => {
    if (button && event.target.closest?.(`#${button}`) && !calls.busy()) calls.start(button);
    if (!event.target.closest?.("#diversity-stop")) return;
    held.clear();
    calls.stop();
  });
  calls.update();
  showWhenMounted();
}
