// "When it fails": a row a signature, with buttons that provoke it. Each row keeps the last pair it showed.
const failing = find(".failing");
const form = find("form");
const TILES = { 1: "one", 4: "four" };

function rowOf(failure) {
  return find(`.signature[data-failures~="${CSS.escape(failure)}"]`);
}

function tiles(count) {
  return `<div class="tiles ${TILES[count]}">${'<div class="shot"><img alt="" hidden></div>'.repeat(count)}</div>`;
}

function sideHtml(label, count) {
  return `<figure class="side">${tiles(count)}<figcaption><b>${escaped(label)}</b><span class="of"></span><dl></dl></figcaption></figure>`;
}

function rowHtml({ title, why, failures }) {
  const [first] = failures;
  const buttons = failures.map(
    ({ name, button, reason }) =>
      `<button type="button" class="press" data-failure="${name}" data-label="${escaped(button)}"` +
      `${reason ? " disabled" : ""}>${escaped(button)}</button>`,
  );
  // A button may be out of use beside others.
  const hint = (kind) =>
    [...new Set(failures.map((each) => each[kind]).filter(Boolean))]
      .map((said) => {
        const own = failures.filter((each) => each[kind] === said);
        const whose = own.length < failures.length ? `${own.map((each) => each.button).join(", ")}: ` : "";
        return `<p class="hint ${kind}">${escaped(whose + said)}</p>`;
      })
      .join("");
  return (
    `<li class="signature" data-failures="${failures.map((each) => each.name).join(" ")}">` +
    `<div class="about"><h2>${escaped(title)}</h2><p>${escaped(why)}</p>` +
    `<div class="presses">${buttons.join("")}</div>${hint("reason")}${hint("remark")}<p class="said" role="status"></p></div>` +
    `<div class="pair">${first.labels.map((label) => sideHtml(label, first.count)).join("")}</div></li>`
  );
}

// The failure whose call is on its way.
function atWork() {
  return calls.asked ?? (calls.busy() ? calls.value.failure : null);
}

function say(sentence, alarming = false, failure = atWork() ?? calls.value?.failure) {
  const said = failure && rowOf(failure)?.querySelector(".said");
  if (!said) return;
  if (said.textContent !== sentence) said.textContent = sentence;
  said.classList.toggle("alarm", alarming);
}

// The button of the run under way stops it; all others wait.
function showButtons() {
  const working = atWork();
  failing.dataset.state = calls.state();
  for (const button of element.querySelectorAll("[data-failure]")) {
    const own = button.dataset.failure === working;
    button.textContent = own ? "Stop" : button.dataset.label;
    button.classList.toggle("first", own);
    button.setAttribute("aria-disabled", String(working !== null && !own));
  }
}

function drawSide(box, side, place, { settings, figures }) {
  const { class_name, seed } = settings;
  const shots = [...box.querySelectorAll(".shot img")];
  box.querySelector("b").textContent = side.label;
  box.querySelector(".of").textContent = `${class_name}, seed ${seed}`;
  for (const [index, image] of shots.entries()) {
    const source = side.images[index];
    image.hidden = !source;
    if (!source) continue;
    if (image.getAttribute("src") !== source) image.src = source;
    const own = shots.length > 1 ? `${seed} + ${index}` : seed;
    const stage = side.known === side.n ? "" : `, ${side.known} of ${side.n} tokens`;
    image.alt = `${class_name}, seed ${own}, ${side.label}${stage}`;
  }
  box.querySelector("dl").innerHTML = figures
    .map(({ label, texts }) => `<div><dt>${label}</dt><dd>${texts[place]}</dd></div>`)
    .join("");
}

function draw(value) {
  const boxes = rowOf(value.failure).querySelectorAll(".side");
  value.sides.forEach((side, place) => drawSide(boxes[place], side, place, value));
}

const calls = followCalls({
  call: "failure",
  say,
  show: showButtons,
  draw,
  sentence: ({ state, consequence }) => ({ stopped: "Stopped.", finished: consequence })[state] ?? "",
  failed: "nestar:failure-failed",
  halted: "nestar:failure-halted",
  ask: () => trigger("ask"),
});

find(".meters dl").innerHTML = props.meters
  .map(({ label, hint }) => `<dt>${escaped(label)}</dt><dd>${escaped(hint)}</dd>`)
  .join("");
find(".signatures").innerHTML = props.signatures.map(rowHtml).join("");
fillSelect(form.elements.class_name, props.classes.map((name) => [name, name]), props.first.class_name);
form.elements.seed.value = props.first.seed;
followGenerate(form);
form.addEventListener("submit", (event) => event.preventDefault());
failing.addEventListener("click", (event) => {
  const button = event.target.closest("[data-failure]");
  if (!button || event.detail > 1) return; // a double click would start it and stop it
  const { failure } = button.dataset;
  if (failure === atWork()) calls.stop(() => trigger("halt"));
  else if (!calls.busy()) {
    const values = { class_name: form.elements.class_name.value, seed: form.elements.seed.value };
    calls.start(failure, () => trigger("provoke", { failure, ...values }));
  }
});
showButtons();
calls.update();
