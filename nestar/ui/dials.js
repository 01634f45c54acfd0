// The dials: k, steps, temperature, cfg and seed as one value. Numbers are sent as typed: the server checks them
// in one place and answers with a sentence.
const plans = props.plans;
const dial = (name) => element.querySelector(`[data-name="${name}"]`);
const kRange = element.querySelector("#dial-k");
const seedField = element.querySelector("#dial-seed");
const NUMBERS = Object.keys(props.sliders);
const LARGEST_ROLL = 100000;

function set(name, value) {
  props.value = { ...props.value, [name]: value };
}

function asTyped(text) {
  const number = Number(text);
  return text.trim() === "" || Number.isNaN(number) ? text : number;
}

function showK() {
  const plan = plans.find((each) => each.k === props.value.k);
  if (!plan) return;
  kRange.value = plans.indexOf(plan);
  kRange.setAttribute("aria-valuetext", plan.has_weights ? `k = ${plan.k}` : `k = ${plan.k}, no weights`);
  dial("k").querySelector("output").textContent = plan.k;
  dial("k").classList.toggle("missing", !plan.has_weights);
  const modules = plan.modules === 1 ? "1 module" : `${plan.modules} modules`;
  const turns = plan.evaluations === plan.n ? "token by token" : `${plan.evaluations} turns instead of ${plan.n}`;
  const trained = plans.filter((each) => each.has_weights).map((each) => each.k).join(", ");
  dial("k").querySelector(".hint").textContent = plan.has_weights
    ? `${modules}, ${turns}.`
    : `No weights for k = ${plan.k}. Every k needs modules of its own; here are those for k = ${trained}.`;
  for (const [index, tick] of [...dial("k").querySelectorAll(".ticks span")].entries()) {
    tick.classList.toggle("current", plans[index] === plan);
  }
}

function show() {
  showK();
  for (const name of NUMBERS) {
    const number = dial(name).querySelector('input[type="number"]');
    // Rewriting the field being typed in would move its cursor.
    if (number !== document.activeElement) number.value = props.value[name];
    dial(name).querySelector('input[type="range"]').value = props.value[name];
  }
  if (seedField !== document.activeElement) seedField.value = props.value.seed;
}

kRange.max = plans.length - 1;
dial("k").querySelector(".ticks").innerHTML = plans
  .map((plan) => `<span class="${plan.has_weights ? "" : "missing"}">${plan.k}</span>`)
  .join("");
kRange.addEventListener("input", () => {
  set("k", plans[Number(kRange.value)].k);
  showK();
});
for (const name of NUMBERS) {
  const [least, most, step] = props.sliders[name];
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
watch("value", show);
show();
