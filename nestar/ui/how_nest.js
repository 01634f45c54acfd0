// Panel 1: the grid that grows patch by patch, beside it the modules as boxes inside boxes; and the dials, which the
// panels on factors and turns follow as well.
const LEAST = 2; // of k and of the grid's side
const MOST = 64;
// Where the sliders stop: every number while they are small. The number fields take all of LEAST ... MOST.
const STOPS = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64];
const GROWTH_MS = 4000; // about how long the whole grid takes to grow
const [FASTEST_MS, SLOWEST_MS] = [30, 420]; // a turn
const NUMBERED_SIDE = 12; // up to this side the cells carry their module's number

// The dials' choice; whoever listens gets the nesting now and after each change.
function nestingChoice() {
  const choice = { k: 4, side: 8, order: "lattice" };
  const listeners = [];
  let nesting = nestingOf(choice.side, choice.k, choice.order);
  return {
    current: () => nesting,
    listen(listener) {
      listeners.push(listener);
      listener(nesting);
    },
    change(part) {
      if (Object.entries(part).every(([name, value]) => choice[name] === value)) return;
      Object.assign(choice, part);
      nesting = nestingOf(choice.side, choice.k, choice.order);
      for (const listener of listeners) listener(nesting);
    },
  };
}

function dialsPanel(form, choice) {
  const refused = form.querySelector("#how-refused");

  function bindDial(name, label, describe) {
    const dial = form.querySelector(`[data-name="${name}"]`);
    const [number, range] = ["number", "range"].map((type) => dial.querySelector(`input[type="${type}"]`));
    Object.assign(range, { min: 0, max: STOPS.length - 1, step: 1 });
    Object.assign(number, { min: LEAST, max: MOST, step: 1 });
    range.addEventListener("input", () => choice.change({ [name]: STOPS[Number(range.value)] }));
    number.addEventListener("input", () => {
      const value = Number(number.value);
      const allowed = Number.isInteger(value) && value >= LEAST && value <= MOST;
      number.setAttribute("aria-invalid", String(!allowed));
      refused.textContent = allowed ? "" : `${label} must be a whole number from ${LEAST} to ${MOST}.`;
      if (allowed) choice.change({ [name]: value });
    });
    number.addEventListener("change", () => {
      // What was refused goes; the sentence stays until the next change.
      number.value = choice.current()[name];
      number.setAttribute("aria-invalid", "false");
    });
    choice.listen((nesting) => {
      if (number !== document.activeElement || Number(number.value) !== nesting[name]) number.value = nesting[name];
      range.value = STOPS.findLastIndex((stop) => stop <= nesting[name]);
      range.setAttribute("aria-valuetext", describe(nesting));
    });
  }
  bindDial("k", "k", (nesting) => `k = ${nesting.k}`);
  choice.listen(({ n }) => (form.querySelector(".so").textContent = `n = ${n}`));
  bindDial("side", "The grid's side", (nesting) => `${nesting.side} by ${nesting.side}, ${nesting.n} tokens`);
  form.addEventListener("input", (event) => event.target.type !== "number" && (refused.textContent = ""));
  form.addEventListener("change", (event) => {
    if (event.target.type === "radio") choice.change({ order: event.target.value });
  });
  form.addEventListener("submit", (event) => event.preventDefault()); // Enter in a number field
}

// Slots of a box: every patch, or the first, an ellipsis and the last. [[first turn, last turn, text], ...]
function slots(patches, firstTurn, room) {
  const one = (place) => [firstTurn + place, firstTurn + place, `${patches[place].stop - patches[place].start}`];
  const last = patches.length - 1;
  if (patches.length <= room) return patches.map((_, place) => one(place));
  const head = Array.from({ length: room - 2 }, (_, place) => one(place));
  return [...head, [firstTurn + room - 2, firstTurn + last - 1, "…"], one(last)];
}

// Module m's box: the box of module m - 1 as first patch, and its own patches beside it.
function boxesHtml(nesting) {
  let [html, turn] = ["", 0];
  for (const module of nesting.modules) {
    const made = madePatches(module);
    const tints = nesting.turns.slice(turn);
    const tiles = slots(made, turn, module.number === 1 ? 4 : 3).map(([first, last, text]) => {
      const style = moduleStyle(module.number, tints[last - turn].tint);
      return `<i class="tile" data-first="${first}" data-last="${last}" style="${style}"><b>${text}</b></i>`;
    });
    const style = moduleStyle(module.number, 0.5);
    html = `<div class="box" style="${style}"><span>${module.number}</span>${html}${tiles.join("")}</div>`;
    turn += made.length;
  }
  return html;
}

function legendHtml(nesting) {
  return nesting.modules
    .map((module) => {
      const turns = nesting.turns.filter((turn) => turn.module === module.number);
      const sizes = sizesSaid(madePatches(module).map(({ start, stop }) => stop - start));
      const ramp = turns.map((turn) => `<i style="${moduleStyle(turn.module, turn.tint)}"></i>`).join("");
      return (
        `<li class="reached"><span class="name">Module ${module.number}</span><span class="ramp" aria-hidden="true">` +
        `${ramp}</span><span>${sizes}</span>` +
        `<span class="time">${module.tokens} stand</span></li>`
      );
    })
    .join("");
}

// How the turns add up, with what the last module lacks where n is no power of k.
function formulaHtml({ n, k, modules, turns }) {
  const M = modules.length;
  const last = modules.at(-1);
  if (n === k ** M) {
    const sum = `${k} + ${M - 1} · ${k - 1} = ${turns.length}`;
    return `<i>k</i> + (<i>M</i> − 1)(<i>k</i> − 1) = ${sum} turns, as <i>n</i> = <i>k</i><sup><i>M</i></sup>.`;
  }
  if (M === 1) return `${n} turns: <i>n</i> is less than <i>k</i>, so module 1 makes every token, one at a time.`;
  const sum = modules.map((module) => madePatches(module).length).join(" + ");
  const lacks = [];
  if (last.patches.length < k) lacks.push("the last module makes fewer patches");
  const { start, stop } = last.patches.at(-1);
  const whose = lacks.length ? "its" : "the last module’s";
  if (stop - start < last.patchSize) lacks.push(`${whose} last patch has ${stop - start} of ${last.patchSize} tokens`);
  return `${sum} = ${turns.length} turns: <i>n</i> is no power of <i>k</i>, so ${lacks.join(" and ")}.`;
}

function nestPanel(panel, choice) {
  const find = (selector) => panel.querySelector(selector);
  const [canvas, scrubber, boxes] = [find("canvas"), find(".scrubber"), find(".boxes")];
  let nesting = null;
  let made = 0; // turns taken
  let pointed = null; // the cell under the pointer, or chosen by the arrow keys

  function draw() {
    const { context, side } = openCanvas(canvas);
    const tone = tones();
    const [ink, line, numberInk] = ["--ink", "--line", "--token-ink"].map(cssValue);
    const focus = pointed === null ? null : nesting.turns[nesting.turnOf[pointed]];
    context.font = `600 ${Math.max(8, (side / nesting.side) * 0.34)}px ${getComputedStyle(panel).fontFamily}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [turn, { module, tint, cells, start }] of nesting.turns.entries()) {
      context.globalAlpha = focus && start > focus.start ? 0.22 : 1;
      context.fillStyle = turn < made ? tone(module, tint) : line;
      for (const cell of cells) fillCell(context, cellBox(cell, nesting.side, side));
      if (turn >= made || nesting.side > NUMBERED_SIDE) continue;
      context.fillStyle = numberInk;
      for (const cell of cells) {
        const [x, y, width] = cellBox(cell, nesting.side, side);
        context.fillText(module, x + width / 2, y + width / 2);
      }
    }
    context.globalAlpha = 1;
    const outlined = focus ?? (made > 0 && made < nesting.turns.length ? nesting.turns[made - 1] : null);
    if (!outlined) return;
    context.strokeStyle = ink;
    context.lineWidth = side / nesting.side > 9 ? 2 : 1;
    for (const cell of outlined.cells) {
      const [x, y, width] = cellBox(cell, nesting.side, side);
      context.strokeRect(x, y, width, width);
    }
  }

  function describe() {
    if (pointed !== null) {
      const turn = nesting.turns[nesting.turnOf[pointed]];
      const place = nesting.placeOf[pointed] + 1;
      const seen = turn.start ? `saw tokens ${span(0, turn.start)}` : "saw no other token";
      const others = turn.cells.length > 1 ? `made with ${plural(turn.cells.length - 1, "other")}` : "made alone";
      return `Token ${place}: ${turn.name}, turn ${nesting.turnOf[pointed] + 1}; ${others}, ${seen}.`;
    }
    if (made === 0) return "Nothing stands yet: all noise.";
    const { name, cells, stop } = nesting.turns[made - 1];
    const turn = `Turn ${made} of ${nesting.turns.length}`;
    return `${turn}: ${name} makes ${plural(cells.length, "token")}; ${stop} of ${nesting.n} stand.`;
  }

  function show() {
    scrubber.value = made;
    const words = describe();
    find(".grid figcaption").textContent = words;
    scrubber.setAttribute("aria-valuetext", words);
    const size = `${nesting.side} by ${nesting.side} tokens in ${nesting.order} order`;
    canvas.setAttribute("aria-label", `${size}, coloured by module. ${words}`);
    markSegments(find(".segments"), made);
    for (const tile of boxes.querySelectorAll(".tile")) {
      tile.classList.toggle("known", Number(tile.dataset.first) < made);
    }
    if (canvas.clientWidth) draw();
  }

  const playing = player(find(".timeline"), () =>
    Math.min(SLOWEST_MS, Math.max(FASTEST_MS, GROWTH_MS / nesting.turns.length)),
  );

  function lay(next) {
    nesting = next;
    [made, pointed] = [nesting.turns.length, null];
    playing.stop();
    scrubber.max = made;
    laySegments(find(".segments"), nesting.turns);
    boxes.innerHTML = boxesHtml(nesting);
    boxes.classList.toggle("deep", nesting.modules.at(-1).patchSize > 99); // room for numbers on end only
    const { modules, turns, n, k } = nesting;
    boxes.setAttribute("aria-label", `${plural(modules.length, "module")}, each inside the next as its first patch`);
    const last = modules.at(-1);
    find(".nest figcaption").textContent =
      modules.length > 1
        ? `Module ${last.number} takes the ${last.patchSize} tokens before it as one patch. Numbers: tokens per patch.`
        : "One module makes every token by itself.";
    find(".legend").innerHTML = legendHtml(nesting);
    const write = (name, html) => (find(`[data-name="${name}"]`).innerHTML = html);
    write("tokens", `${nesting.side} × ${nesting.side} = <b>${n}</b>`);
    write("modules", `⌈log<sub>${k}</sub> ${n}⌉ = <b>${modules.length}</b>`);
    write("turns", `<b>${turns.length}</b> instead of ${n}`);
    find('[data-name="formula"]').innerHTML = formulaHtml(nesting);
    show();
  }

  function point(event) {
    const { left, top, width } = canvas.getBoundingClientRect();
    const { side } = nesting;
    const [column, row] = [event.clientX - left, event.clientY - top].map((at) => Math.floor((at / width) * side));
    const inside = Math.min(row, column) >= 0 && Math.max(row, column) < side;
    look(inside ? row * side + column : null);
  }

  function look(cell) {
    if (cell === pointed) return;
    pointed = cell;
    show();
  }

  // The arrow keys go from token to token, from the first one on.
  function step(event) {
    const { side, turns } = nesting;
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "Escape") look(null);
    if (!move) return;
    event.preventDefault();
    if (pointed === null) return look(turns[0].cells[0]);
    const [row, column] = [Math.floor(pointed / side) + move[0], (pointed % side) + move[1]];
    if (Math.min(row, column) >= 0 && Math.max(row, column) < side) look(row * side + column);
  }

  scrubber.addEventListener("input", () => {
    [made, pointed] = [Number(scrubber.value), null];
    show();
  });
  boxes.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) playing.move(Number(tile.dataset.last) + 1);
  });
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") look(null); // a finger is gone once it has tapped
  });
  canvas.addEventListener("keydown", step);
  // What is said of a token is read out to who walks the grid, and not while it grows.
  canvas.addEventListener("focus", () => find(".grid figcaption").setAttribute("aria-live", "polite"));
  canvas.addEventListener("blur", () => {
    find(".grid figcaption").removeAttribute("aria-live");
    look(null);
  });
  choice.listen(lay);
  drawWhenSeen(canvas, draw);
}
