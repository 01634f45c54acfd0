// What the scripts that follow calls have in common: whether the server answers, why a call ended without a value,
// which place it has in the queue, and when a Stop is through.
const PATIENCE_MS = 600; // a longer wait for the server's answer is explained
const PLACE_MS = 2000; // how often a call that waits asks for its place in the queue
const CHECK_MS = 3000; // how often the server is asked whether it is there, while a call is on its way
const ANSWER_MS = 15000; // a server that takes longer than this to say that it is there is not
const HALT_MS = 15000; // after this a Stop of whose end nobody told counts as through
const SETTLE_MS = 200; // so long no end of a call was heard of: the last one has come

const LOST_CONNECTION = "The connection was lost. This page loads anew when the server answers; if it does not, reload it.";

// Whether the server answers, and how many calls wait there, if it says so.
async function askServer() {
  const { root = "", api_prefix = "" } = window.gradio_config ?? {};
  // Of root only the path: behind a proxy the server may not know by which name and protocol it is reached.
  const path = new URL(root, location.href).pathname.replace(/\/$/, "");
  try {
    const options = { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) };
    const answer = await fetch(`${path}${api_prefix}/queue/status`, options);
    const there = answer.status < 500; // beyond: a proxy without its server
    return { there, waiting: (await answer.json().catch(() => null))?.queue_size };
  } catch {
    return { there: false };
  }
}

// `begun`: the server had begun with the call.
async function whyEnded(begun) {
  const { there, waiting } = await askServer();
  if (!there) return LOST_CONNECTION;
  if (begun) return "The run broke off on the server. Try again in a moment.";
  if (waiting) return "Too many visitors are waiting for the sampler. Try again in a moment.";
  return "The server did not take the run. Try again in a moment.";
}

// Gradio's requests to cancel that are on their way: until they are answered it may cancel what is sent now, or tell
// of the end of what it has cancelled. It tells no script of them. A call has a name once the server has taken it;
// what is cancelled before is cancelled then: Gradio would ask, of a call without a name, for nothing.
window.nestarCancelling ??= (() => {
  const underWay = { count: 0 };
  const taken = new Map(); // by function: the server's answer to its latest call
  let latest = null; // of those that were cancelled before it
  const send = window.fetch;
  window.fetch = async (...asked) => {
    const path = String(asked[0]?.url ?? asked[0]).split("?")[0];
    const [joins, cancels] = [path.endsWith("/queue/join"), /\/(cancel|reset)$/.test(path)];
    underWay.count += cancels;
    try {
      const body = joins || cancels ? JSON.parse(asked[1].body) : {};
      if (body.event_id === null && (taken.has(body.fn_index) || latest)) {
        latest = taken.get(body.fn_index) ?? latest; // "reset" does not say of which function
        const { event_id } = await latest;
        asked[1] = { ...asked[1], body: JSON.stringify({ ...body, event_id }) };
      }
      const answer = send(...asked);
      if (joins) taken.set(body.fn_index, answer.then((each) => each.clone().json()).catch(() => ({ event_id: null })));
      return await answer;
    } finally {
      underWay.count -= cancels;
    }
  };
  return underWay;
})();

// Gradio first has the server set the run's flag, then cancels whatever call it finds under way: a call sent in
// between would be taken along. `begin()` when Stop is pressed; `through()` is called when a call can be sent again.
// `halted`: the document's event for "no more is going to be cancelled"; `failed`: for a call that ended without a
// value, which each cancelled one does, up to twice, or not at all if its flag was quicker.
function followStops({ halted, failed, through }) {
  let going = null; // the timer of the Stops on their way
  let expected = 0; // Stops of which `halted` was not heard yet
  let ends = 0; // how often a call has ended

  function release() {
    clearTimeout(going);
    going = null;
    expected = 0;
    through();
  }

  async function settle(stop) {
    let heard;
    do {
      heard = ends;
      await askServer(); // which answers what it was asked before: as long as this takes, so long may the end
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
    } while ((heard !== ends || window.nestarCancelling.count) && going === stop);
    if (going === stop) release();
  }

  document.addEventListener(halted, () => {
    expected = Math.max(0, expected - 1);
    if (going !== null && expected === 0) settle(going);
  });
  // For others this is no failure.
  document.addEventListener(failed, (event) => {
    if (going === null) return;
    ends += 1;
    event.stopImmediatePropagation();
  });
  return {
    pending: () => going !== null,
    begin() {
      clearTimeout(going);
      going = setTimeout(release, HALT_MS);
      expected += 1;
    },
  };
}

// `busy()`: a call is on its way; `waits()`: the server has not begun with it; `say(sentence)`; `breakOff(sentence)`:
// no more will come; `failed`: the document's event for a call that ended without a value; `ask()`: ask for the place,
// which is told under the name `call`.
function attend({ call, busy, waits, say, breakOff, failed, ask }) {
  let since = null; // when the present wait began
  let asked = 0; // when it last asked for its place
  setInterval(async () => {
    if (!waits()) {
      since = null;
      return;
    }
    since ??= Date.now();
    const now = Date.now();
    if (now - since < PATIENCE_MS || now - asked < PLACE_MS) return;
    asked = now;
    // One question that does not get through, and Gradio loads the page anew when the server is back.
    if ((await askServer()).there && waits()) ask();
  }, PATIENCE_MS / 2);
  document.addEventListener("nestar:answer", ({ detail }) => {
    if (!waits() || detail.of !== call || !detail.place) return;
    const [place, all] = detail.place;
    const where = place === 1 ? "you are next" : `you are number ${place} of ${all}`;
    say(`Waiting for the sampler: ${where}.`);
  });
  document.addEventListener(failed, async () => {
    if (!busy()) return;
    const sentence = await whyEnded(!waits());
    if (busy()) breakOff(sentence);
  });
  // Of a lost connection Gradio tells no script: ask the server, one question at a time.
  let asking = false;
  setInterval(async () => {
    if (asking || !busy()) return;
    asking = true;
    if (!(await askServer()).there) {
      await new Promise((resolve) => setTimeout(resolve, CHECK_MS));
      // Values come by another way: one question that does not get through is no loss.
      if (busy() && !(await askServer()).there && busy()) breakOff(LOST_CONNECTION);
    }
    asking = false;
  }, CHECK_MS);
}
