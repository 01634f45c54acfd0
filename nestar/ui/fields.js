// Form fields, on every tab.

// Numbers are sent as typed: the server checks them in one place and answers with a sentence.
function asTyped(text) {
  const number = Number(text);
  return text.trim() === "" || Number.isNaN(number) ? text : number;
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
  select.value = String(chosen);
}
