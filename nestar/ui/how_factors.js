// Panel 2: the factorisation of the chosen nesting with its real indices; a factor can be chosen and is then drawn as
// what is made and what is seen.
const FACTORS_SHOWN = 4; // of a module; with more, an ellipsis stands for those before the last

function factorHtml(turn, number) {
  const given = turn.start ? ` | x<sub>${span(0, turn.start)}</sub>` : "";
  const spoken = `x ${span(turn.start, turn.stop)}${turn.start ? ` given x ${span(0, turn.start)}` : ""}`;
  return (
    `<button type="button" data-turn="${number}" aria-pressed="false" tabindex="-1" aria-label="${spoken}" ` +
    `style="${moduleStyle(turn.module, 0.1)}">p(x<sub>${span(turn.start, turn.stop)}</sub>${given})</button>`
  );
}

function factorsPanel(panel, choice) {
  const product = panel.querySelector(".product");
  const caption = panel.querySelector("figcaption");
  let nesting = null;

  function rowHtml(module) {
    const turns = [...nesting.turns.entries()].filter(([, turn]) => turn.module === module.number);
    const shown =
      turns.length > FACTORS_SHOWN ? [...turns.slice(0, FACTORS_SHOWN - 2), null, turns.at(-1)] : turns;
    const factors = shown.map((each) => (each ? factorHtml(each[1], each[0]) : '<span class="more">…</span>'));
    return (
      `<div class="row"><span class="name">Module ${module.number}</span>` +
      `<span class="factors">${factors.join(" ")}</span>` +
      `<span class="count">${plural(turns.length, "factor")}</span></div>`
    );
  }

  function choose(button) {
    for (const each of product.querySelectorAll("button")) {
      each.setAttribute("aria-pressed", String(each === button));
      each.tabIndex = each === button ? 0 : -1;
    }
    const turn = nesting.turns[Number(button.dataset.turn)];
    const strip = panel.querySelector(".strip");
    strip.style.cssText = moduleStyle(turn.module, 0.5);
    strip.style.setProperty("--from", turn.start / nesting.n);
    strip.style.setProperty("--to", turn.stop / nesting.n);
    const made = `Turn ${Number(button.dataset.turn) + 1}: ${plural(turn.cells.length, "token")} at once`;
    const given = turn.start ? `, given the ${turn.start} before` : ", none before";
    caption.textContent = `${made}${given}, with the weights of module ${turn.module}. The bar is the whole sequence.`;
  }

  function lay(next) {
    nesting = next;
    const whole = `<p class="whole">p(x<sub>${span(0, nesting.n)}</sub>) =</p>`;
    product.innerHTML = whole + nesting.modules.map(rowHtml).join("");
    const first = nesting.turns.findIndex((turn) => turn.module === nesting.modules.length);
    choose(product.querySelector(`[data-turn="${first}"]`)); // of the last module: most is seen and made there
  }

  product.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(button);
  });
  // What is said of a factor is read out to who walks the factors, and not while the sliders are moved.
  product.addEventListener("focusin", () => caption.setAttribute("aria-live", "polite"));
  product.addEventListener("focusout", () => caption.removeAttribute("aria-live"));
  // One stop for Tab; the arrows go from factor to factor.
  product.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...product.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (!step || !buttons.includes(document.activeElement)) return;
    event.preventDefault();
    if (!next) return;
    choose(next);
    next.focus();
  });
  choice.listen(lay);
}
