// "When it fails": a row a signature, with buttons that provoke it. Each row keeps the last pair it showed.
const failing = find(".failing");
const form = find("form");
const TILES = { 1: "one", 4: "four" };

let value = null; // the run being shown
let asked = null; // the failure whose button was pressed and which the server has not begun yet
let ignoring = false; // it was stopped while it waited: the answer, if one still comes, is not wanted

function rowOf(failure) {
  return find(`.signature[data-failures~="${CSS.escape(failure)}"]`);
}

function tiles(count) {
  return `<div class="tiles ${TILES[count]}">${'<div class="shot"><img alt="" hidden></div>'.repeat(count)}</div>`;
}

function sideHtml(label, count) {
  return `<figure class="side">${tiles(count)}<figcaption><b>${escaped(label)}</b><dl></dl></figcaption></figure>`;
}

function rowHtml({ title, why, failures }) {
  const [first] = failures;
  const buttons = failures.map(
    ({ name, button, reason }) =>
      `<button type="button" class="press" data-failure="${name}" data-label="${escaped(button)}"` +
      `${reason ? " disabled" : ""}>${escaped(button)}</button>`,
  );
  const reason = first.reason ? `<p class="hint reason">${escaped(first.reason)}</p>` : "";
  return (
    `<li class="signature" data-failures="${failures.map((each) => each.name).join(" ")}">` +
    `<div class="about"><h2>${escaped(title)}</h2><p>${escaped(why)}</p>` +
    `<div class="presses">${buttons.join("")}</div>${reason}<p class="said" role="status"></p></div>` +
    `<div class="pair">${first.labels.map((label) => sideHtml(label, first.count)).join("")}</div></li>`
  );
}

function busy() {
  return asked !== null || value?.state === "running";
}

function atWork() {
  return asked ?? (value?.state === "running" ? value.failure : null);
}

function say(sentence, alarming = false, failure = atWork() ?? value?.failure) {
  const said = failure && rowOf(failure)?.querySelector(".said");
  if (!said) return;
  if (said.textContent !== sentence) said.textContent = sentence;
  said.classList.toggle("alarm", alarming);
}

// The button of the run under way stops it; all others wait.
function showButtons() {
  const working = atWork();
  failing.dataset.state = asked ? "waiting" : (value?.state ?? "empty");
  for (const button of element.querySelectorAll("[data-failure]")) {
    const own = button.dataset.failure === working;
    button.textContent = own ? "Stop" : button.dataset.label;
    button.classList.toggle("first", own);
    button.setAttribute("aria-disabled", String(working !== null && !own));
  }
}

function drawSide(box, side, place) {
  const { class_name, seed } = value.settings;
  const shots = [...box.querySelectorAll(".shot img")];
  box.querySelector("b").textContent = side.label;
  for (const [index, image] of shots.entries()) {
    const source = side.images[index];
    image.hidden = !source;
    if (!source) continue;
    if (image.getAttribute("src") !== source) image.src = source;
    const own = shots.length > 1 ? `${seed} + ${index}` : seed;
    const stage = side.known === side.n ? "" : `, ${side.known} of ${side.n} tokens`;
    image.alt = `${class_name}, seed ${own}, ${side.label}${stage}`;
  }
  box.querySelector("dl").innerHTML = value.figures
    .map(({ label, texts }) => `<div><dt>${label}</dt><dd>${texts[place]}</dd></div>`)
    .join("");
}

function draw() {
  const boxes = rowOf(value.failure).querySelectorAll(".side");
  value.sides.forEach((side, place) => drawSide(boxes[place], side, place));
}

// No more will come: keep what stands and say why.
function breakOff(sentence, alarming = true) {
  const failure = atWork();
  ignoring = asked !== null;
  if (!asked && value?.state === "running") value = { ...value, state: "stopped" };
  asked = null;
  say(sentence, alarming, failure);
  showButtons();
}

function update() {
  const next = props.value;
  if (!next?.run) return;
  if (next.state === "refused") {
    if (!ignoring) breakOff(next.message);
    ignoring = false;
    return;
  }
  const fresh = next.run !== value?.run;
  if (fresh && ignoring) return;
  // Values that were under way when Stop was pressed come late.
  if (!fresh && value.state === "stopped") return;
  asked = null;
  value = next;
  const sentences = { running: "", stopped: "Stopped.", finished: value.consequence };
  say(sentences[value.state] ?? "", false, value.failure);
  draw();
  showButtons();
}

function provoke(failure) {
  asked = failure;
  ignoring = false;
  say("");
  showButtons();
  trigger("provoke", { failure, class_name: form.elements.class_name.value, seed: form.elements.seed.value });
}

find(".meters dl").innerHTML = props.meters
  .map(({ label, hint }) => `<dt>${escaped(label)}</dt><dd>${escaped(hint)}</dd>`)
  .join("");
find(".signatures").innerHTML = props.signatures.map(rowHtml).join("");
fillSelect(form.elements.class_name, props.classes.map((name) => [name, name]), props.first.class_name);
form.elements.seed.value = props.first.seed;
form.addEventListener("submit", (event) => event.preventDefault());
failing.addEventListener("click", (event) => {
  const button = event.target.closest("[data-failure]");
  if (!button) return;
  if (!busy()) provoke(button.dataset.failure);
  else if (button.dataset.failure === atWork()) {
    trigger("halt");
    breakOff("Stopped.", false);
  }
});
attend({
  busy,
  waits: () => asked !== null,
  say,
  breakOff,
  failed: "nestar:failure-failed",
  ask: () => trigger("ask"),
});
showButtons();
watch("value", update);
update();
