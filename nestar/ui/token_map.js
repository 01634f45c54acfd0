// The token map: which module and patch made each token. Colour by module, tint by patch, as SVG.
// style attributes carry --hue and --tint; page.css turns them into a colour for light and dark.
const HUES = [28, 88, 152, 205, 262, 318];

function moduleStyle(number, tint) {
  return `--hue:${HUES[(number - 1) % HUES.length]};--tint:${tint.toFixed(3)}`;
}

// Patches in the order they are made: [{module, patch, cells, tint, name}], one for each frame of a whole run.
function patchesOf(nesting) {
  return nesting.modules.flatMap((module) =>
    module.patches.map((patch, place) => ({
      module: module.number,
      patch: patch.index,
      cells: patch.cells,
      tint: module.patches.length > 1 ? place / (module.patches.length - 1) : 0.5,
      name: `module ${module.number}, patch ${patch.index}`,
    })),
  );
}

function tokenMap(nesting) {
  const UNIT = 10;
  const cells = [];
  for (const [turn, patch] of patchesOf(nesting).entries()) {
    for (const cell of patch.cells) {
      const [row, column] = [Math.floor(cell / nesting.width), cell % nesting.width];
      cells.push(
        `<g class="token" role="img" tabindex="${cell === 0 ? 0 : -1}" data-turn="${turn}" data-cell="${cell}" ` +
          `data-row="${row + 1}" data-column="${column + 1}" data-name="${patch.name}" ` +
          `aria-label="Row ${row + 1}, column ${column + 1}: ${patch.name}" ` +
          `style="${moduleStyle(patch.module, patch.tint)}">` +
          `<rect x="${column * UNIT + 0.6}" y="${row * UNIT + 0.6}" width="${UNIT - 1.2}" height="${UNIT - 1.2}" rx="1.6"/>` +
          `<text x="${(column + 0.5) * UNIT}" y="${(row + 0.5) * UNIT + 1.5}">${patch.module}</text></g>`,
      );
    }
  }
  const box = `0 0 ${nesting.width * UNIT} ${nesting.height * UNIT}`;
  const size = `data-width="${nesting.width}" data-height="${nesting.height}"`;
  const fine = nesting.width > 12 ? "fine" : "";
  // An application, so that screen readers leave the arrow keys to it.
  const role = 'role="application" aria-roledescription="token map"';
  return `<svg viewBox="${box}" ${role} ${size} class="${fine}">${cells.join("")}</svg>`;
}

// Mark what stands after `made` patches; `running` says that the next one is being computed.
function markTokens(svg, made, running) {
  for (const token of svg.querySelectorAll(".token")) {
    const turn = Number(token.dataset.turn);
    token.classList.toggle("known", turn < made);
    token.classList.toggle("latest", turn === made - 1);
    token.classList.toggle("running", running && turn === made);
  }
}

// Light up what the token in `cell` could see: tokens of earlier patches are its context, those of its own patch see
// one another. Null: no token is looked at.
function markLooked(svg, cell) {
  const tokens = [...svg.querySelectorAll(".token")];
  const self = tokens.find((token) => Number(token.dataset.cell) === cell);
  svg.classList.toggle("looking", Boolean(self));
  for (const token of tokens) {
    const ahead = self ? Number(self.dataset.turn) - Number(token.dataset.turn) : NaN;
    token.classList.toggle("context", ahead > 0);
    token.classList.toggle("own", ahead === 0);
    token.classList.toggle("self", token === self);
  }
}

// The cell that an arrow key leads to, or undefined for another key.
function neighbour(cell, key, width, height) {
  const [row, column] = [Math.floor(cell / width), cell % width];
  const moves = {
    ArrowLeft: [row, Math.max(0, column - 1)],
    ArrowRight: [row, Math.min(width - 1, column + 1)],
    ArrowUp: [Math.max(0, row - 1), column],
    ArrowDown: [Math.min(height - 1, row + 1), column],
    Home: [0, 0],
    End: [height - 1, width - 1],
  };
  return moves[key] && moves[key][0] * width + moves[key][1];
}

// Let the tokens of the map inside `box` be looked at: by pointing, by tapping, or by Tab and the arrow keys.
// `tell` gets the cell, or null when the visitor has turned away. The map itself may be drawn anew at any time.
function watchTokens(box, tell) {
  let [pointed, focused] = [null, null];
  const cellOf = (target) => {
    const token = target.closest?.(".token");
    return token ? Number(token.dataset.cell) : null;
  };
  const say = () => tell(pointed ?? focused);
  box.addEventListener("pointerover", (event) => {
    const cell = cellOf(event.target);
    // A finger has no hover: its tap focuses. Between two tokens the one before stays.
    if (event.pointerType === "touch" || cell === null) return;
    pointed = cell;
    say();
  });
  box.addEventListener("pointerleave", () => {
    pointed = null;
    say();
  });
  box.addEventListener("click", (event) => event.target.closest(".token")?.focus({ preventScroll: true }));
  box.addEventListener("focusin", (event) => {
    focused = cellOf(event.target);
    for (const token of box.querySelectorAll(".token")) token.tabIndex = token === event.target ? 0 : -1;
    say();
  });
  box.addEventListener("focusout", () => {
    focused = null;
    say();
  });
  box.addEventListener("keydown", (event) => {
    const { width, height } = box.querySelector("svg").dataset;
    const next = neighbour(cellOf(event.target), event.key, Number(width), Number(height));
    if (next !== undefined) {
      event.preventDefault();
      pointed = null;
      box.querySelector(`[data-cell="${next}"]`).focus();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || (pointed ?? focused) === null) return;
    pointed = focused = null;
    say();
  });
}
