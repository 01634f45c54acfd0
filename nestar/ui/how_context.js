// The third quick check: on a grid of tokens the visitor selects what a patch may see, and the nesting judges.
const CHECK_SIDE = 6; // with k = 3 the third module makes two whole patches
const CHECK_K = 3;
const CHECK_MODULE = 3;

// "1", "1…3" or "1…3 and 7": places counted from 0 as runs counted from 1.
function runsText(places) {
  const runs = [];
  for (const place of places) {
    if (runs.at(-1)?.[1] === place) runs.at(-1)[1] += 1;
    else runs.push([place, place + 1]);
  }
  return runs.map(([start, stop]) => span(start, stop)).join(" and ");
}

// What is wrong with a selection of places for the patch `turn`, as sentences; none if it is right.
function faultsOf(selected, turn, n) {
  const places = Array.from({ length: n }, (_, place) => place);
  const missing = places.filter((place) => place < turn.start && !selected.has(place));
  const own = places.filter((place) => place >= turn.start && place < turn.stop && !selected.has(place));
  const later = places.filter((place) => place >= turn.stop && selected.has(place));
  const faults = [];
  if (later.length) faults.push(`Made only afterwards: ${runsText(later)}.`);
  if (missing.length) faults.push(`Standing already, and so seen: ${runsText(missing)}.`);
  if (own.length) faults.push(`The tokens of a patch see one another while they are made: ${runsText(own)}.`);
  return faults;
}

function contextQuestion(box) {
  const find = (selector) => box.querySelector(selector);
  const nesting = nestingOf(CHECK_SIDE, CHECK_K, "raster");
  const tasks = nesting.turns.filter((turn) => turn.module === CHECK_MODULE);
  const taken = tasks[0].start; // tokens that the module takes over
  const selected = new Set(); // places
  let task = 0; // which of the module's patches is asked for
  let painting = null; // whether the pointer that is down selects or clears
  let touched = null; // the cell that a finger came down on, until it is marked

  function ask() {
    const { patch } = tasks[task];
    find("h3").textContent = `What may patch ${patch} of module ${CHECK_MODULE} see while it is made?`;
    find(".task").textContent =
      `Select those tokens, its own included. k = ${CHECK_K}, raster order; colours are modules, tints patches.`;
    clear();
  }

  function mark(place, on) {
    if (on) selected.add(place);
    else selected.delete(place);
    find(".select").children[place].setAttribute("aria-pressed", String(on));
  }

  function clear() {
    for (let place = 0; place < nesting.n; place++) mark(place, false);
  }

  function say(html) {
    find(".feedback").innerHTML = html;
  }

  // `found`: by the reader, who else has asked for it.
  function explain(found) {
    const { patch, start } = tasks[task];
    const last = task === tasks.length - 1;
    const text = last
      ? `The module still takes over tokens ${span(0, taken)}; this patch sees patch ${patch - 1} as well. ` +
        "The context of a module is fixed, that of its patches grows."
      : `Before itself it sees tokens ${span(0, start)}: its module’s patch 1, just what module ${CHECK_MODULE} ` +
        "takes over. The module’s next patch sees this one as well.";
    const next = '<button type="button" class="plain next">And the next patch?</button>';
    say((found ? verdictHtml(true, text) : `<span>${text}</span>`) + (last ? "" : next));
  }

  find(".select").innerHTML = nesting.flat
    .map((cell, place) => {
      const turn = nesting.turns[nesting.turnOf[cell]];
      const name = `Token ${place + 1}, ${turn.name}`;
      return (
        `<button type="button" data-place="${place}" aria-pressed="false" tabindex="${place ? -1 : 0}" ` +
        `style="${moduleStyle(turn.module, turn.tint)}" aria-label="${name}">${place + 1}</button>`
      );
    })
    .join("");
  find(".select").addEventListener("pointerdown", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.releasePointerCapture?.(event.pointerId); // a finger's capture would keep it on this cell
    painting = button.getAttribute("aria-pressed") !== "true";
    touched = event.pointerType === "touch" ? button : null; // marked once it moves across or has tapped: it may scroll
    if (!touched) mark(Number(button.dataset.place), painting);
  });
  find(".select").addEventListener("pointermove", (event) => {
    if (painting === null || !event.buttons) return;
    const button = document.elementFromPoint(event.clientX, event.clientY)?.closest(".select button");
    if (!button || button === touched) return;
    if (touched) mark(Number(touched.dataset.place), painting);
    touched = null;
    mark(Number(button.dataset.place), painting);
  });
  addEventListener("pointerup", () => (painting = null));
  addEventListener("pointercancel", () => (painting = touched = null));
  find(".select").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    // Of the keyboard, or a tap: the mouse has marked the cell already.
    if (!button || (event.detail !== 0 && button !== touched)) return;
    touched = null;
    mark(Number(button.dataset.place), button.getAttribute("aria-pressed") !== "true");
  });
  find(".select").addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: CHECK_SIDE, ArrowUp: -CHECK_SIDE };
    const buttons = [...find(".select").children];
    const next = buttons[buttons.indexOf(document.activeElement) + steps[event.key]];
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (!next) return;
    for (const each of buttons) each.tabIndex = each === next ? 0 : -1;
    next.focus();
  });
  find(".check").addEventListener("click", () => {
    const faults = faultsOf(selected, tasks[task], nesting.n);
    if (faults.length) say(verdictHtml(false, faults[0]));
    else explain(true);
  });
  find(".tip").addEventListener("click", () =>
    say("<span>Two questions: which tokens stand already, and which are being made together with it?</span>"),
  );
  find(".reveal").addEventListener("click", () => {
    for (let place = 0; place < nesting.n; place++) mark(place, place < tasks[task].stop);
    explain(false);
  });
  find(".clear").addEventListener("click", () => {
    clear();
    say("");
  });
  find(".feedback").addEventListener("click", (event) => {
    if (!event.target.closest(".next")) return;
    task += 1;
    say("");
    ask();
    find(".select").querySelector('[tabindex="0"]').focus();
  });
  ask();
}
