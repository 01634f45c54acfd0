// The class chooser: radio cards whose choice is the component's value.
const radios = [...element.querySelectorAll('input[type="radio"]')];

function show() {
  for (const radio of radios) radio.checked = radio.value === props.value;
}

element.addEventListener("change", (event) => {
  props.value = event.target.value;
});
watch("value", show);
show();
// On a phone the cards are one row that scrolls: begin where the choice is.
const strip = element.querySelector(".cards");
const chosen = element.querySelector("input:checked")?.parentElement;
if (chosen) strip.scrollLeft = chosen.offsetLeft - strip.clientWidth / 2 + chosen.clientWidth / 2;
