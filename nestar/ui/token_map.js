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
        `<g class="token" data-turn="${turn}" style="${moduleStyle(patch.module, patch.tint)}">` +
          `<title>Row ${row + 1}, column ${column + 1}: ${patch.name}</title>` +
          `<rect x="${column * UNIT + 0.6}" y="${row * UNIT + 0.6}" width="${UNIT - 1.2}" height="${UNIT - 1.2}" rx="1.6"/>` +
          `<text x="${(column + 0.5) * UNIT}" y="${(row + 0.5) * UNIT + 1.5}">${patch.module}</text></g>`,
      );
    }
  }
  const box = `0 0 ${nesting.width * UNIT} ${nesting.height * UNIT}`;
  return `<svg viewBox="${box}" role="img" class="${nesting.width > 12 ? "fine" : ""}">${cells.join("")}</svg>`;
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
