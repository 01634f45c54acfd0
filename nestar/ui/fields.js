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

// Class and seed of a form follow Generate's last run, until the visitor chooses others in the form itself.
function followGenerate(form) {
  const { class_name, seed } = form.elements;
  let own = false;
  const take = (settings) => {
    if (!own && settings) [class_name.value, seed.value] = [settings.class_name, settings.seed];
  };
  for (const field of [class_name, seed]) field.addEventListener("input", () => (own = true));
  document.addEventListener("nestar:ran", ({ detail }) => take(detail));
  take(window.nestarRan); // Gradio may mount this after the run
}
