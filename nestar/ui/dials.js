// The dials: k, order, steps, temperature, cfg and seed as one value.
const plans = props.plans; // some have no position: a link or a saved picture may have asked for them
const offered = plans.filter((plan) => plan.has_position);
const kRange = element.querySelector("#dial-k");
const ORDERS = {
  lattice: "Coarse first: module 1 spans the picture.",
  raster: "Row by row: module 1 begins at the top left.",
  blocks: "Square by square.",
};
const PULL = {
  growing: "Pull of the class, off (1) at the first patch and this at the last. More: clearer, less varied.",
  whole: "Pull of the class; 1 is off. More: clearer, less varied.",
};

function set(name, value) {
  props.value = { ...props.value, [name]: value };
}

// The k positions of the order that is chosen; of one that has none, those of the first that has some.
function positions() {
  const own = offered.filter((plan) => plan.order === props.value.order);
  return own.length ? own : offered.filter((plan) => plan.order === offered[0].order);
}

function trainedIn(order) {
  return offered.filter((plan) => plan.order === order && plan.has_weights).map((plan) => plan.k);
}

// Why this k cannot be had though another can; where the whole order has no weights, its own hint says so.
function whyMissing(plan) {
  const trained = trainedIn(plan.order).join(", ");
  return plan.has_weights || !trained
    ? ""
    : `No weights for k = ${plan.k}. Every k needs modules of its own; here are those for k = ${trained}.`;
}

// Weights that saw fewer pictures than others draw worse, and not because of their k.
function trainedOn(plan) {
  const seen = ({ images }) => parseInt(images?.replaceAll(",", ""), 10) || 0; // more words may follow the number
  const most = Math.max(...offered.map(seen));
  return seen(plan) && seen(plan) < most ? ` Less trained: ${plan.images} images seen.` : "";
}

function showK() {
  const along = positions();
  const plan = plans.find((each) => each.k === props.value.k && each.order === props.value.order);
  if (!plan) return;
  kRange.max = along.length - 1;
  kRange.value = along.indexOf(plan);
  kRange.classList.toggle("aside", !plan.has_position);
  const kind = plan.has_position ? "" : `${plan.method}: `;
  kRange.setAttribute("aria-valuetext", `${kind}k = ${plan.k}${plan.has_weights ? "" : ", no weights"}`);
  dial("k").querySelector("output").textContent = plan.k;
  dial("k").classList.toggle("missing", Boolean(whyMissing(plan)));
  const modules = plan.modules === 1 ? "1 module" : `${plan.modules} modules`;
  const turn = plan.evaluations === 1 ? "turn" : "turns";
  const turns = plan.evaluations === plan.n ? "token by token" : `${plan.evaluations} ${turn} instead of ${plan.n}`;
  dial("k").querySelector(".hint").textContent = whyMissing(plan) || `${kind}${modules}, ${turns}.${trainedOn(plan)}`;
  // One patch alone is guided in full.
  dial("cfg").querySelector(".hint").textContent = props.rising && plan.evaluations > 1 ? PULL.growing : PULL.whole;
  dial("k").querySelector(".ticks").innerHTML = along
    .map((each) => {
      const classes = [each.has_weights ? "" : "missing", each === plan ? "current" : ""].join(" ").trim();
      return `<span class="${classes}">${each.k}</span>`;
    })
    .join("");
}

function showOrder() {
  for (const radio of dial("order").querySelectorAll("input")) radio.checked = radio.value === props.value.order;
  const { order } = props.value;
  const missing = !plans.some((plan) => plan.order === order && plan.has_weights);
  const atOnce = plans.some((plan) => plan.kind === "one-shot" && plan.order === order && plan.k === props.value.k);
  dial("order").classList.toggle("missing", missing);
  dial("order").querySelector(".hint").textContent = missing
    ? `No weights for ${order} order: another order needs modules of its own.`
    : atOnce ? "" : ORDERS[order] ?? "";
}

// k stays where the new order offers it, or goes to the nearest that it has.
function setOrder(order) {
  const { k } = props.value;
  const its = offered.filter((plan) => plan.order === order).map((plan) => plan.k);
  const nearest = its.reduce((best, each) => (Math.abs(each - k) < Math.abs(best - k) ? each : best));
  props.value = { ...props.value, order, k: nearest };
}

function show() {
  showK();
  showOrder();
  showNumbers(props.value);
}

// A click, too: where no handle is shown it may fall on the value that the slider has already.
for (const kind of ["input", "click"]) {
  kRange.addEventListener(kind, () => {
    const { k, order } = positions()[Number(kRange.value)];
    props.value = { ...props.value, k, order };
    showK();
    showOrder();
  });
}
dial("order").querySelector(".choices").innerHTML = [...new Set(offered.map((plan) => plan.order))]
  .map(
    (order) =>
      `<label class="${trainedIn(order).length ? "" : "missing"}"><input type="radio" name="nestar-order" ` +
      `value="${order}"><span>${order}</span></label>`,
  )
  .join("");
dial("order").addEventListener("change", (event) => {
  setOrder(event.target.value);
  show();
});
wireNumbers(set);
watch("value", show);
show();
