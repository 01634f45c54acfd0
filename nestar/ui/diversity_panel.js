// What every panel of the Diversity tab does alike: it waits for its turn, follows one run to its end, and says a
// sentence where one is due (calls.js has the waiting). A panel's own script calls `followRuns` with what it draws.
const section = find("[data-state]");
const STARTERS = ["generate", "warm", "measure", "resample"].map((name) => `#diversity-${name}`).join();

let calls; // of this panel, see `followRuns`
let starter; // id of the button that starts its runs, if one does

function say(sentence, alarming = false) {
  const status = find(".status");
  status.textContent = sentence;
  status.classList.toggle("alarm", alarming);
}

function show() {
  section.dataset.state = calls.state();
  section.setAttribute("aria-busy", String(calls.busy()));
  // What the colours of the buttons say, for those who do not see them.
  const going = document.querySelector('#diversity :is([data-state="running"], [data-state="waiting"])');
  document.getElementById(starter)?.setAttribute("aria-disabled", String(calls.busy()));
  document.getElementById("diversity-stop")?.setAttribute("aria-disabled", String(!going));
}

// `button`: the id of what starts a run, if a button does. `draw(value, fresh)`, `late(value)`: see `followCalls`.
function followRuns({ button, draw, late }) {
  starter = button;
  calls = followCalls({
    say,
    show,
    draw,
    late,
    sentence: ({ state }) => (state === "stopped" ? "Stopped." : ""),
    failed: "nestar:diversity-failed",
    halted: "nestar:diversity-halted",
    ask: () => document.dispatchEvent(new Event("nestar:diversity-ask")),
  });
  // Before Gradio's own: what is pressed while this panel's Stop is on its way is pressed again after it.
  document.addEventListener(
    "click",
    (event) => {
      const pressed = event.target.closest?.(STARTERS);
      if (!pressed || !calls.halting()) return;
      event.stopImmediatePropagation();
      event.preventDefault();
      const again = () => pressed.click();
      if (pressed.id === button) calls.start(button, again);
      else calls.hold(again);
    },
    true,
  );
  // The buttons are Gradio's own, and send the calls themselves.
  document.addEventListener("click", (event) => {
    if (button && event.target.closest?.(`#${button}`) && !calls.busy()) calls.start(button);
    if (event.target.closest?.("#diversity-stop")) calls.stop();
  });
  calls.update();
}
