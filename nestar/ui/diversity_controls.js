// The controls of the Diversity tab as one value. Numbers are sent as typed: the server checks them in one place and
// answers with a sentence.
const LARGEST_ROLL = 100000;
const dial = (name) => element.querySelector(`[data-name="${name}"]`);
const seedField = element.querySelector("#diversity-seed");
const SELECTS = {
  class_name: props.classes.map((name) => [name, name]),
  nesting: props.nestings.map(({ name, label }) => [name, label]),
  count: props.counts.map((count) => [count, String(count)]),
};

// A frame after the tab was first opened Gradio hands the first value back: what was chosen since then stays.
let held = { ...props.value };

function set(name, value) {
  held = { ...held, [name]: value };
  props.value = held;
  tell();
}

function keepHeld() {
  if (JSON.stringify(props.value) !== JSON.stringify(held)) props.value = held;
  show();
}

// What the plot of the modules shows depends on the class and the nesting.
function tell() {
  document.dispatchEvent(new CustomEvent("nestar:diversity-controls", { detail: { ...held } }));
}

function show() {
  for (const name of Object.keys(SELECTS)) dial(name).querySelector("select").value = String(held[name]);
  for (const name of Object.keys(props.sliders)) {
    const number = dial(name).querySelector('input[type="number"]');
    // Rewriting the field being typed in would move its cursor.
    if (number !== document.activeElement) number.value = held[name];
    dial(name).querySelector('input[type="range"]').value = held[name];
  }
  if (seedField !== document.activeElement) seedField.value = held.seed;
}

for (const [name, options] of Object.entries(SELECTS)) {
  const select = dial(name).querySelector("select");
  fillSelect(select, options, held[name]);
  select.addEventListener("change", () => set(name, options[select.selectedIndex][0]));
}
for (const [name, [least, most, step]] of Object.entries(props.sliders)) {
  const number = dial(name).querySelector('input[type="number"]');
  const range = dial(name).querySelector('input[type="range"]');
  Object.assign(range, { min: least, max: most, step });
  [number.min, number.max] = props.ranges[name];
  number.step = step;
  range.addEventListener("input", () => {
    number.value = range.value;
    set(name, Number(range.value));
  });
  number.addEventListener("input", () => {
    range.value = number.value;
    set(name, asTyped(number.value));
  });
}
seedField.addEventListener("input", () => set("seed", seedField.value));
element.querySelector(".dice").addEventListener("click", () => {
  seedField.value = Math.floor(Math.random() * LARGEST_ROLL);
  set("seed", seedField.value);
});
document.addEventListener("nestar:diversity-ask", () => trigger("ask"));
watch("value", keepHeld);
show();
