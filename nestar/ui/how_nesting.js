// The nesting in the browser, for square grids: the construction of nestar/nesting.py, so that sliders need no server.
// tests/test_page_how.py holds the two against each other.
const orders = new Map(); // token orders computed so far

// Ordered-dither (Bayer) order: base-4 digit j of a token's place moves it by side / 2^(j+1). Row-major cells.
function bayerOrder(side) {
  const moves = [[0, 0], [1, 1], [0, 1], [1, 0]];
  return Array.from({ length: side * side }, (_, place) => {
    let [row, column] = [Math.floor(side / 3), Math.floor(side / 3)];
    for (let rest = place, step = side >> 1; rest; rest >>= 2, step >>= 1) {
      row += moves[rest & 3][0] * step;
      column += moves[rest & 3][1] * step;
    }
    return (row % side) * side + (column % side);
  });
}

// From the centre on, the cell farthest from all chosen ones is next; ties go to the first. Row-major cells.
function farthestPointOrder(side) {
  const middle = (side - 1) >> 1;
  const distance2 = new Int32Array(side * side).fill(2 * side * side); // more than any; to the nearest chosen cell
  distance2[middle * side + middle] += 1;
  return Array.from(distance2, () => {
    let cell = 0;
    for (let each = 1; each < distance2.length; each++) if (distance2[each] > distance2[cell]) cell = each;
    const [row, column] = [Math.floor(cell / side), cell % side];
    // No cell is farther than this one was, so only those within its distance come closer.
    const reach = Math.floor(Math.sqrt(distance2[cell]));
    for (let r = Math.max(0, row - reach); r < Math.min(side, row + reach + 1); r++) {
      for (let c = Math.max(0, column - reach); c < Math.min(side, column + reach + 1); c++) {
        const squared = (r - row) ** 2 + (c - column) ** 2;
        if (squared < distance2[r * side + c]) distance2[r * side + c] = squared;
      }
    }
    return cell;
  });
}

// Row-major cells of a side x side grid in the order in which their tokens are made.
function tokenOrder(side, order) {
  const name = `${side} ${order}`;
  if (!orders.has(name)) {
    const powerOfTwo = (side & (side - 1)) === 0;
    if (order === "raster") orders.set(name, Array.from({ length: side * side }, (_, place) => place));
    else orders.set(name, powerOfTwo ? bayerOrder(side) : farthestPointOrder(side));
  }
  return orders.get(name);
}

// The scaled modules of n tokens: [{number, patchSize, tokens, patches: [{index, start, stop}]}]. Beyond module 1 the
// first patch is what the module takes over; `tokens` stand once it is done.
function nestedModules(n, k) {
  const modules = [];
  for (let size = 1; !modules.length || size < n; size *= k) {
    const count = Math.min(k, Math.ceil(n / size));
    const patches = Array.from({ length: count }, (_, place) => ({
      index: place + 1,
      start: place * size,
      stop: Math.min((place + 1) * size, n),
    }));
    modules.push({ number: modules.length + 1, patchSize: size, tokens: patches.at(-1).stop, patches });
  }
  return modules;
}

// Those of a module's patches that it makes itself.
function madePatches(module) {
  return module.number === 1 ? module.patches : module.patches.slice(1);
}

// Patches made one after another: k + (M-1)(k-1) for n = k^M.
function countTurns(modules) {
  return modules.reduce((sum, module) => sum + madePatches(module).length, 0);
}

// Tokens that enter a network when each patch is evaluated once and context enters once a module.
function tokensProcessed(n, modules) {
  return modules.reduce((sum, module) => sum + module.patches.at(-1).start, n);
}

// Everything the panels show of one nesting. `turns` are the patches in the order in which they are made, with module,
// patch, cells, tint, name (see token_map.js), start and stop; `turnOf` gives each cell's turn, `placeOf` its place.
function nestingOf(side, k, order) {
  const n = side * side;
  const flat = tokenOrder(side, order);
  const modules = nestedModules(n, k);
  const withCells = modules.map((module) => ({
    number: module.number,
    patches: madePatches(module).map((patch) => ({ ...patch, cells: flat.slice(patch.start, patch.stop) })),
  }));
  const spans = modules.flatMap(madePatches);
  const turns = patchesOf({ modules: withCells }).map((turn, place) => ({
    ...turn,
    start: spans[place].start,
    stop: spans[place].stop,
  }));
  const [turnOf, placeOf] = [new Int32Array(n), new Int32Array(n)];
  for (const [turn, { cells }] of turns.entries()) for (const cell of cells) turnOf[cell] = turn;
  for (const [place, cell] of flat.entries()) placeOf[cell] = place;
  return { side, n, k, order, flat, modules, turns, turnOf, placeOf };
}
