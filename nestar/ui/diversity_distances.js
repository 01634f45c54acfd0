// Two heat maps on one colour scale: distances among the samples, and among as many real pictures.
let sentence = ""; // what stands below the maps while nothing is pointed at
const READING = "The stronger the colour, the farther apart. Point at a cell, or use the arrow keys, to read it.";
const names = { samples: (index) => `seed ${calls.value.seeds[index]}`, real: (index) => `real picture ${index + 1}` };

function cellText(map, row, column) {
  const distance = calls.value[map].matrix[row][column].toFixed(2);
  const [one, other] = [names[map](row), names[map](column)];
  return row === column ? `${one} and itself: 0` : `${one} and ${other}: ${distance}`;
}

function lay(map, most) {
  const figure = find(`[data-name="${map}"]`);
  const shown = calls.value[map];
  figure.hidden = !shown;
  if (!shown) return;
  const { matrix, mean, least, most: farthest } = shown;
  const heat = figure.querySelector(".heat");
  const title = map === "real" ? `Real ${calls.value.class_name}` : "Samples";
  heat.setAttribute("aria-label", `${title}: distance of every two pictures`);
  heat.style.setProperty("--pictures", matrix.length);
  heat.replaceChildren(
    ...matrix.map((distances, row) => {
      const line = document.createElement("div");
      line.setAttribute("role", "row");
      line.append(
        ...distances.map((distance, column) => {
          const cell = document.createElement("i");
          cell.setAttribute("role", "gridcell");
          cell.setAttribute("aria-label", cellText(map, row, column));
          cell.tabIndex = row === 0 && column === 0 ? 0 : -1;
          cell.style.setProperty("--far", (most ? (100 * distance) / most : 0).toFixed(1));
          Object.assign(cell.dataset, { row, column });
          return cell;
        }),
      );
      return line;
    }),
  );
  const caption = figure.querySelector("figcaption");
  const bold = document.createElement("b");
  bold.textContent = title;
  caption.replaceChildren(bold, ` mean ${mean.toFixed(1)}, from ${least.toFixed(1)} to ${farthest.toFixed(1)}`);
}

function read(cell) {
  const map = cell.closest("figure").dataset.name;
  for (const each of element.querySelectorAll(".heat .read")) each.classList.remove("read");
  cell.classList.add("read");
  find(".reading").textContent = cellText(map, Number(cell.dataset.row), Number(cell.dataset.column));
}

function move(cell, rows, columns) {
  const heat = cell.closest(".heat");
  const [row, column] = [Number(cell.dataset.row) + rows, Number(cell.dataset.column) + columns];
  const next = heat.children[row]?.children[column];
  if (!next) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
for (const kind of ["pointerover", "pointerdown", "focusin"]) {
  element.addEventListener(kind, (event) => event.target.matches?.('[role="gridcell"]') && read(event.target));
}
element.addEventListener("keydown", (event) => {
  if (!MOVES[event.key] || !event.target.matches('[role="gridcell"]')) return;
  event.preventDefault();
  move(event.target, ...MOVES[event.key]);
});
element.addEventListener("pointerleave", (event) => {
  if (event.pointerType === "touch") return; // a finger is gone once it has tapped
  for (const each of element.querySelectorAll(".heat .read")) each.classList.remove("read");
  if (sentence) find(".reading").textContent = sentence;
});

function explain(words) {
  section.classList.remove("stale");
  sentence = find(".reading").textContent = words;
}

function without(words) {
  explain(words);
  for (const figure of element.querySelectorAll("figure")) figure.hidden = true;
}

// Until the new pictures are finished these are distances of the ones before, and it may be that none come.
document.addEventListener("nestar:diversity-fresh", () => section.classList.add("stale"));
function unfinished() {
  if (section.classList.contains("stale")) without("Distances are measured between finished pictures.");
}
for (const event of ["nestar:diversity-unfinished", "nestar:diversity-halted", "nestar:diversity-grid-failed"]) {
  document.addEventListener(event, unfinished);
}
followRuns({
  name: "diversity-grid",
  draw(current) {
    if (current.reason) {
      without(current.reason);
      return;
    }
    const most = Math.max(current.samples.most, current.real?.most ?? 0);
    lay("samples", most);
    lay("real", most);
    const unknown = `Tiny Worlds has no class ${current.class_name}, so there are no real pictures to compare with.`;
    explain(current.real ? READING : unknown);
  },
});
