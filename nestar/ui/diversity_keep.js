// Which parent, and how many of its modules its siblings keep: the value of `/siblings`' button.
let modules = []; // tokens that stand after each module of the parent's nesting

function sentence() {
  const { sample, modules: kept } = props.value;
  const [standing, all] = [modules[kept - 1], modules.at(-1)];
  return (
    `Siblings of ${sample.class_name}, seed ${sample.seed}, keep ${kept === 1 ? "module 1" : `modules 1 to ${kept}`}: ` +
    `${standing} of ${all} tokens. The rest is made again from other noise.`
  );
}

function show() {
  const { sample, modules: kept } = props.value ?? {};
  if (!sample || !modules.length) return;
  const alone = modules.length === 1;
  element.querySelector(".modules").hidden = alone;
  const hint = element.querySelector(".parent");
  hint.textContent = alone ? "This nesting has one module: nothing is left to make when it is kept." : sentence();
  for (const radio of element.querySelectorAll("input")) radio.checked = Number(radio.value) === kept;
}

function lay() {
  element.querySelector(".choices").innerHTML = modules
    .slice(0, -1)
    .map((_, place) => {
      const which = place ? `1–${place + 1}` : "1";
      const name = `name="diversity-kept" aria-label="Keep modules ${which}"`;
      return `<label><input type="radio" ${name} value="${place + 1}"><span>${which}</span></label>`;
    })
    .join("");
}

document.addEventListener("nestar:diversity-parent", ({ detail }) => {
  modules = detail.modules;
  lay();
  const kept = Math.max(1, Math.min(props.value?.modules ?? 1, modules.length - 1));
  props.value = { sample: detail.sample, modules: kept, round: 0 };
  show();
});
element.addEventListener("change", (event) => {
  props.value = { ...props.value, modules: Number(event.target.value) };
  show();
});
// The next press makes others.
document.addEventListener("nestar:diversity-siblings", () => {
  if (!props.value?.sample) return;
  props.value = { ...props.value, round: props.value.round + 1 };
});
watch("value", show);
show();
