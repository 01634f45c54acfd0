// What the panels of "Race" and "When it fails" do alike while a call is on its way: say what it waits for, and
// notice when no answer will come.
const PATIENCE_MS = 600; // a longer wait for the server's answer is explained
const PLACE_MS = 1000; // how often a call that waits asks for its place in the queue
const CHECK_MS = 3000; // how often the server is asked whether it is there, while a call is on its way
const ANSWER_MS = 15000; // a server that takes longer than this to say so is not
const find = (selector) => element.querySelector(selector);

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function escaped(text) {
  return String(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

// Numbers are sent as typed: the server checks them in one place and answers with a sentence.
function asTyped(text) {
  const number = Number(text);
  return text.trim() === "" || Number.isNaN(number) ? text : number;
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
  select.value = String(chosen);
}

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

// `busy()`: a call is on its way; `waits()`: the server has not begun with it; `say(sentence)`; `breakOff(sentence)`:
// no more will come; `failed`: the document's event for a call that ended without a value; `ask()`: ask for the place.
function attend({ busy, waits, say, breakOff, failed, ask }) {
  let since = null; // when the present wait began
  setInterval(() => {
    if (!waits()) {
      since = null;
      return;
    }
    since ??= Date.now();
    if (Date.now() - since < PATIENCE_MS) return;
    ask();
  }, PLACE_MS / 2);
  document.addEventListener("nestar:place", ({ detail }) => {
    if (!waits() || !detail.place) return;
    const [place, all] = detail.place;
    const where = place === 1 ? "you are next" : `you are number ${place} of ${all}`;
    say(`Waiting for the sampler: ${where}.`);
  });
  document.addEventListener(failed, async () => {
    if (!busy()) return;
    const begun = !waits();
    const { there, waiting } = await askServer();
    if (!busy()) return;
    if (!there) breakOff("The connection was lost.");
    else if (begun) breakOff("The run broke off on the server. Try again in a moment.");
    else if (waiting) breakOff("Too many visitors are waiting for the sampler. Try again in a moment.");
    else breakOff("The server did not take the run. Try again in a moment.");
  });
  // Of a lost connection Gradio tells no script: ask the server.
  setInterval(async () => {
    if (busy() && !(await askServer()).there && busy()) breakOff("The connection was lost.");
  }, CHECK_MS);
}
