// Pictures of one batch that grow in place, as buttons: choosing one shows the nearest real picture.
const sheet = find(".sheet");
let pressed = -1; // which picture is chosen, if one is

function describe(current, sample) {
  const kept = sample.modules ? `, keeps ${plural(sample.modules, "module")} of seed ${sample.parent}` : "";
  const what = `${current.settings.class_name}, seed ${sample.seed}${kept}, temperature ${sample.temperature}`;
  return current.state === "finished" ? what : `Preview of ${what}`;
}

function slot(label) {
  const item = document.createElement("li");
  item.innerHTML =
    '<button type="button" class="sample" aria-pressed="false" disabled>' +
    '<span class="frame"><img alt="" hidden></span><span class="label"></span></button>';
  item.querySelector(".label").textContent = label;
  return item;
}

// Places for the pictures, before the first of them is there.
function laySheet(labels) {
  pressed = -1;
  sheet.style.setProperty("--pictures", labels.length);
  sheet.dataset.count = labels.length;
  sheet.replaceChildren(...labels.map(slot));
}

function fillSheet(current) {
  for (const [place, item] of [...sheet.children].entries()) {
    const source = current.images[place];
    const image = item.querySelector("img");
    if (source) {
      image.src = source;
      image.alt = describe(current, current.samples[place]);
      image.hidden = false;
    }
    item.querySelector("button").disabled = current.state !== "finished";
  }
}

function progress(current) {
  if (!current.module) return `0 of ${plural(current.turns, "turn")}`;
  const where = `Module ${current.module} of ${current.modules.length}, patch ${current.patch}`;
  return `${where}: ${current.evaluations} of ${plural(current.turns, "turn")}, ${current.seconds.toFixed(1)} s`;
}

// A picture is chosen: the document is told, and with it the panel that asks for its neighbour.
function choose(place) {
  pressed = place;
  const own = sheet.children[place].querySelector("button");
  for (const button of document.querySelectorAll("#diversity .sample")) {
    button.setAttribute("aria-pressed", String(button === own));
  }
  const { value } = calls;
  const sample = { ...value.settings, ...value.samples[place] };
  const mark = `${value.run}:${place}`;
  const detail = { sample, mark, image: value.images[place], alt: describe(value, value.samples[place]) };
  document.dispatchEvent(new CustomEvent("nestar:diversity-chosen", { detail }));
}

sheet.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && !button.disabled) choose([...sheet.children].indexOf(button.parentElement));
});
