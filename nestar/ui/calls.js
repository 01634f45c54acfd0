// What the panels of "Diversity", "Race" and "When it fails" do alike: follow one call at a time from the press of a
// button to its end, say what it waits for, and notice when no answer will come.
const find = (selector) => element.querySelector(selector);

function escaped(text) {
  return String(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

// The calls of a panel, one at a time; their values come in `props.value`. The panel's own script says and draws:
// `say(sentence, alarming)`; `show()`: the state has changed; `draw(value, fresh)`: a value came, or what stands was
// stopped; `fresh`: the first of its run; `sentence(value)`: what to say of it, undefined to leave what stands there;
// `late(value)`, if given: whether it answers an earlier question than what is asked now, which is sent then;
// `paused`: the state, if there is one, in which a run waits for its turn again; `stopped(value)`: what is left of it
// when no more comes; `call`, `failed`, `ask`: see `attend`; `halted`: see `followStops`.
function followCalls({ call, say, show, draw, sentence, late, paused, stopped, failed, halted, ask }) {
  let ignoring = false; // it was stopped while it waited: the answer, if one still comes, is not wanted
  let byHand = false; // the visitor has stopped it
  let send = null; // what was asked for while a Stop was on its way
  // Before `attend`'s: a call that Stop has ended has not failed.
  const stops = followStops({
    halted,
    failed,
    through() {
      send?.();
      send = null;
    },
  });
  const calls = {
    value: null, // what is being shown
    asked: null, // what was asked for and the server has not begun yet
    state: () => (calls.asked !== null ? "waiting" : (calls.value?.state ?? "empty")),
    waits: () => ["waiting", paused].includes(calls.state()),
    busy: () => calls.waits() || calls.state() === "running",
    // `asked`: what is asked for, not null; `call()` sends it, if it is not sent by others or already under way.
    start(asked, call) {
      calls.asked = asked;
      ignoring = byHand = false;
      say("");
      show();
      if (stops.pending()) send = call ?? send;
      else call?.();
    },
    // Whether a Stop is on its way; `hold` has something done when it is through.
    halting: stops.pending,
    hold: (call) => {
      send = call;
    },
    // `halt()` sends the Stop.
    stop(halt = () => {}) {
      if (!calls.busy()) return;
      const waited = calls.asked !== null;
      byHand = true;
      send = null;
      stops.begin();
      halt();
      calls.breakOff("Stopped.", false);
      ignoring = waited;
    },
    // No more will come: keep what stands and say why.
    breakOff(words, alarming = true) {
      say(words, alarming);
      const going = calls.asked === null && calls.busy();
      calls.asked = null;
      if (going) calls.value = stopped?.(calls.value) ?? { ...calls.value, state: "stopped" };
      show();
      if (going) draw(calls.value, false);
    },
    update() {
      const next = props.value;
      // Nothing is sent while a Stop is on its way: what comes is of the call that it ends.
      if (!next?.run || stops.pending()) return;
      if (calls.asked !== null && late?.(next)) return;
      if (next.state === "refused") {
        // One that comes when nothing is on its way answers a call that Stop has ended, between two slices, say;
        // or it tells why the server has stopped the call itself.
        if (!ignoring && (calls.busy() || !byHand)) calls.breakOff(next.message);
        ignoring = false;
        return;
      }
      if (next.state === "fetching") {
        if (!ignoring) say(next.message);
        return;
      }
      const fresh = next.run !== calls.value?.run;
      if (fresh && ignoring) return;
      // Values that were under way when Stop was pressed come late.
      if (!fresh && calls.value.state === "stopped") return;
      calls.asked = null;
      calls.value = next;
      const words = sentence(next);
      if (words !== undefined) say(words);
      show();
      draw(next, fresh);
    },
  };

  // A key that is held would press its button again and again: start a run, stop it, start it.
  element.addEventListener("keydown", (event) => {
    if (event.repeat && event.key === "Enter" && event.target.matches("button")) event.preventDefault();
  });
  attend({ ...calls, call, say, failed, ask });
  watch("value", calls.update);
  return calls;
}
