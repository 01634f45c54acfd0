// The class chooser: radio cards whose choice is the component's value; of many classes, a search among them.
const SHOWN = 12;
const radios = [...element.querySelectorAll('input[type="radio"]')];
const search = element.querySelector(".find");
const strip = element.querySelector(".cards");

function choose(name) {
  props.value = name;
  show();
}

function show() {
  for (const radio of radios) radio.checked = radio.value === props.value;
  // Cards that are in sight stay where they are: arrow keys go from one to the next.
  const chosen = radios.find((radio) => radio.checked);
  if (search && (!chosen || chosen.parentElement.hidden)) sift();
}

// Where a name begins with what was typed comes first, then where a word of it does, then other names.
function rank({ value, parentElement }, text) {
  const name = value.toLowerCase();
  const others = parentElement.dataset.others.toLowerCase();
  if (name.startsWith(text)) return 0;
  if (` ${name}`.includes(` ${text}`)) return 1;
  if (name.includes(text)) return 2;
  return others.includes(text) ? 3 : null;
}

function found() {
  const text = search.value.trim().toLowerCase().replace(/\s+/g, " ");
  const ranked = radios.map((radio, index) => ({ radio, index, rank: text ? rank(radio, text) : 0 }));
  return ranked
    .filter((entry) => entry.rank !== null)
    .sort((a, b) => a.rank - b.rank || a.index - b.index)
    .map((entry) => entry.radio);
}

// The chosen card stands first: a search changes nothing until one of its cards is picked.
function sift() {
  const matches = found();
  const chosen = radios.find((radio) => radio.checked);
  const shown = [...new Set([chosen, ...matches.slice(0, SHOWN)])].filter(Boolean);
  for (const radio of radios) radio.parentElement.hidden = !shown.includes(radio);
  strip.append(...shown.map((radio) => radio.parentElement));
  const more = matches.length - Math.min(matches.length, SHOWN);
  element.querySelector(".matches").textContent = !matches.length
    ? "No class goes by this name."
    : search.value.trim() && more > 0
      ? `${more.toLocaleString("en")} more: type on.`
      : "";
}

element.addEventListener("change", ({ target }) => {
  if (target !== search) choose(target.value);
});
if (search) {
  search.addEventListener("input", sift);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const [first] = search.value.trim() ? found() : [];
    if (first) choose(first.value);
  });
}
// On a phone the cards are one row that scrolls: a choice that a link or a picture has made may be out of sight.
function reveal() {
  const chosen = element.querySelector("input:checked")?.parentElement;
  if (!chosen) return;
  const [left, width] = [chosen.offsetLeft, chosen.clientWidth];
  const isInSight = left >= strip.scrollLeft && left + width <= strip.scrollLeft + strip.clientWidth;
  if (!isInSight) strip.scrollLeft = left - strip.clientWidth / 2 + width / 2;
}

watch("value", () => {
  show();
  reveal();
});
show();
if (search) sift();
reveal();
