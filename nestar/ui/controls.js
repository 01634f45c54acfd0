// What the controls of "Generate" and "Diversity" do alike: dials with a number and a slider, a seed with its dice.
const LARGEST_ROLL = 100000;
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
    });
    number.addEventListener("input", () => {
      range.value = number.value;
      set(name, asTyped(number.value));
    });
  }
  seedField.addEventListener("input", () => set("seed", seedField.value));
  dial("seed").querySelector(".dice").addEventListener("click", () => {
    seedField.value = Math.floor(Math.random() * LARGEST_ROLL);
    set("seed", seedField.value);
  });
}

function showNumbers(value) {
  for (const name of NUMBERS) {
    const number = dial(name).querySelector('input[type="number"]');
    // Rewriting the field being typed in would move its cursor.
    if (number !== document.activeElement) number.value = value[name];
    dial(name).querySelector('input[type="range"]').value = value[name];
  }
  if (seedField !== document.activeElement) seedField.value = value.seed;
}
