// What the controls of "Generate" and "Diversity" do alike: dials with a number and a slider, a seed with its dice.
const LARGEST_ROLL = 100000;
const LARGEST_SEED = BigInt(props.largest_seed); // as text: a number would end before it
const NUMBERS = Object.keys(props.sliders);
const dial = (name) => element.querySelector(`[data-name="${name}"]`);
const seedField = dial("seed").querySelector("input");

// `set(name, value)`: the visitor has changed something.
function wireNumbers(set) {
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
      mark(name);
    });
    number.addEventListener("input", () => {
      set(name, asTyped(number.value));
      slide(range, asTyped(number.value));
      mark(name);
    });
  }
  seedField.addEventListener("input", () => {
    set("seed", seedField.value);
    markSeed();
  });
  // Enter starts what these controls are for.
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches('input[type="number"], input[type="text"]')) {
      document.getElementById(props.starts)?.click();
    }
  });
  dial("seed").querySelector(".dice").addEventListener("click", () => {
    seedField.value = Math.floor(Math.random() * LARGEST_ROLL);
    seedField.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

// A slider told of no number would go to its middle.
function slide(range, value) {
  if (Number.isFinite(value)) range.value = value;
}

// What the server would refuse is marked, and what it would take is said.
function judge(name, input, isFine, allowed) {
  input.setAttribute("aria-invalid", String(!isFine));
  let said = dial(name).querySelector(".allowed");
  if (!said) {
    said = document.createElement("p");
    said.className = "allowed";
    said.setAttribute("role", "status");
    said.id = `${props.starts}-${name}-allowed`;
    input.setAttribute("aria-describedby", said.id);
    dial(name).append(said);
  }
  const sentence = isFine ? "" : allowed;
  if (said.textContent !== sentence) said.textContent = sentence; // the same again would be read out again
}

function mark(name) {
  const number = dial(name).querySelector('input[type="number"]');
  const [least, most] = props.ranges[name];
  const value = asTyped(number.value);
  const isWhole = name !== "steps" || Number.isInteger(value);
  const isFine = value !== "" && value >= least && value <= most && isWhole;
  judge(name, number, isFine, `${name === "steps" ? "Whole numbers from" : "From"} ${least} to ${most}.`);
}

function markSeed() {
  const isSeed = /^\s*\d+\s*$/.test(seedField.value) && BigInt(seedField.value) <= LARGEST_SEED;
  judge("seed", seedField, isSeed, `Whole numbers from 0 to ${LARGEST_SEED}.`);
}

function showNumbers(value) {
  for (const name of NUMBERS) {
    const number = dial(name).querySelector('input[type="number"]');
    // Rewriting the field being typed in would move its cursor; there both are equal.
    if (asTyped(number.value) !== value[name]) number.value = value[name];
    slide(dial(name).querySelector('input[type="range"]'), value[name]);
    mark(name);
  }
  if (seedField.value !== String(value.seed)) seedField.value = value.seed;
  markSeed();
}
