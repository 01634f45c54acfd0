// What the stage shows of a run at one of its frames, and of the run before. The state is stage.js's.
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
