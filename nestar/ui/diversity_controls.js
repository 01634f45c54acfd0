// The controls of the Diversity tab as one value.
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
  showNumbers(held);
}

for (const [name, options] of Object.entries(SELECTS)) {
  const select = dial(name).querySelector("select");
  fillSelect(select, options, held[name]);
  select.addEventListener("change", () => set(name, options[select.selectedIndex][0]));
}
wireNumbers(set);
// Before Gradio's own: a Stop of nothing would end the run that is asked for next.
document.addEventListener(
  "click",
  (event) => {
    const going = document.querySelector('#diversity :is([data-state="running"], [data-state="waiting"])');
    if (!event.target.closest?.("#diversity-stop") || going) return;
    event.stopImmediatePropagation();
    event.preventDefault();
  },
  true,
);
document.addEventListener("nestar:diversity-ask", ({ detail }) => trigger("ask", detail));
watch("value", keepHeld);
show();
