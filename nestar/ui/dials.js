// The dials: k, order, steps, temperature, cfg and seed as one value.
const plans = props.plans;
const kRange = element.querySelector("#dial-k");
const ORDERS = {
  lattice: "Coarse first: module 1 spans the picture.",
  raster: "Corner first: module 1 begins at the top left.",
  blocks: "Square by square.",
};

function set(name, value) {
  props.value = { ...props.value, [name]: value };
}

// The k positions of the order that is chosen.
function positions() {
  return plans.filter((plan) => plan.order === props.value.order);
}

function trainedIn(order) {
  return plans.filter((plan) => plan.order === order && plan.has_weights).map((plan) => plan.k);
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
  const counts = new Set(plans.filter((each) => each.has_weights).map((each) => each.images));
  return counts.size > 1 && plan.images ? ` Trained on ${plan.images.toLocaleString("en")} pictures.` : "";
}

function showK() {
  const offered = positions();
  const plan = offered.find((each) => each.k === props.value.k);
  if (!plan) return;
  kRange.max = offered.length - 1;
  kRange.value = offered.indexOf(plan);
  kRange.setAttribute("aria-valuetext", plan.has_weights ? `k = ${plan.k}` : `k = ${plan.k}, no weights`);
  dial("k").querySelector("output").textContent = plan.k;
  dial("k").classList.toggle("missing", Boolean(whyMissing(plan)));
  const modules = plan.modules === 1 ? "1 module" : `${plan.modules} modules`;
  const turns = plan.evaluations === plan.n ? "token by token" : `${plan.evaluations} turns instead of ${plan.n}`;
  dial("k").querySelector(".hint").textContent = whyMissing(plan) || `${modules}, ${turns}.${trainedOn(plan)}`;
  dial("k").querySelector(".ticks").innerHTML = offered
    .map((each) => {
      const classes = [each.has_weights ? "" : "missing", each === plan ? "current" : ""].join(" ").trim();
      return `<span class="${classes}">${each.k}</span>`;
    })
    .join("");
}

function showOrder() {
  for (const radio of dial("order").querySelectorAll("input")) radio.checked = radio.value === props.value.order;
  const { order } = props.value;
  const missing = !trainedIn(order).length;
  dial("order").classList.toggle("missing", missing);
  dial("order").querySelector(".hint").textContent = missing
    ? `No weights for ${order} order: another order needs modules of its own.`
    : ORDERS[order] ?? "";
}

// k stays where the new order offers it, or goes to the nearest that it has.
function setOrder(order) {
  const { k } = props.value;
  const offered = plans.filter((plan) => plan.order === order).map((plan) => plan.k);
  const nearest = offered.reduce((best, each) => (Math.abs(each - k) < Math.abs(best - k) ? each : best));
  props.value = { ...props.value, order, k: nearest };
}

function show() {
  showK();
  showOrder();
  showNumbers(props.value);
}

kRange.addEventListener("input", () => {
  set("k", positions()[Number(kRange.value)].k);
  showK();
});
dial("order").querySelector(".choices").innerHTML = [...new Set(plans.map((plan) => plan.order))]
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
