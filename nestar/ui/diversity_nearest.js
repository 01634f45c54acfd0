// A sample beside the training picture nearest to it, and on one line how near others come: unseen real pictures,
// and training pictures that have merely gone through the tokenizer, as a copy would.
const WIDTH = 340;
let chosen = null; // the sample that is asked about, with its mark

function showImage(image, source, alt) {
  image.hidden = !source;
  if (source) image.src = source;
  else image.removeAttribute("src");
  image.alt = alt;
}

function bar([low, middle, high], row, name, at) {
  const y = 8 + 22 * row;
  return (
    `<rect class="${name}" x="${at(low)}" y="${y}" width="${Math.max(2, at(high) - at(low))}" height="10" rx="5"/>` +
    `<line class="middle" x1="${at(middle)}" x2="${at(middle)}" y1="${y - 1}" y2="${y + 11}"/>`
  );
}

function ruler(found) {
  const known = [["fresh", found.unseen, "unseen real pictures"], ["copied", found.copied, "copies (training pictures, re-encoded)"]];
  const rows = known.filter(([, marks]) => marks);
  const most = 1.06 * Math.max(found.distance, ...rows.map((row) => row[1][2]));
  const at = (distance) => Number(((distance / most) * WIDTH).toFixed(1));
  const height = 22 * rows.length + 6;
  const bars = rows.map(([name, marks], row) => bar(marks, row, name, at)).join("");
  const keys = rows.map(([name, , label]) => `<span class="key ${name}"><i></i>${label}</span>`).join("");
  return (
    `<svg viewBox="0 0 ${WIDTH} ${height}" aria-hidden="true">${bars}` +
    `<line class="own" x1="${at(found.distance)}" x2="${at(found.distance)}" y1="0" y2="${height}"/></svg>` +
    `<p class="keys"><span class="key own"><i></i>this sample</span>${keys}</p>`
  );
}

function verdict(found) {
  const [low, , high] = found.unseen;
  const range = `real pictures that training never saw stand ${low.toFixed(1)} to ${high.toFixed(1)} from their nearest`;
  const own = `${found.distance.toFixed(1)} away; ${range}`;
  const far = found.distance >= low;
  if (!found.copied) return `${own}. ${far ? "It is no nearer." : "Nearer than nearly all of them."}`;
  const most = found.copied[2];
  if (found.distance > most) return `${own}, copies up to ${most.toFixed(1)}. Farther than a copy would be.`;
  return far
    ? `${own}, copies up to ${most.toFixed(1)}. Both come so near: compare the two pictures.`
    : `${own}, copies up to ${most.toFixed(1)}. As near as a copy: compare the two pictures.`;
}

// One call at a time. Gradio's own "always_last" would do that too, but sends the first choice's data again.
function ask() {
  trigger("nearest", chosen);
}

followRuns({
  name: "diversity-nearest",
  late(found) {
    if (found.mark === chosen.mark) return false;
    calls.start(chosen.mark, ask);
    return true;
  },
  draw(found) {
    const { class_name, number, of } = found;
    showImage(find(".real"), found.image, `The nearest of the first ${of.toLocaleString("en")} training pictures: ${class_name}, number ${number}`);
    find(".real-label").textContent = `Nearest of the first ${of.toLocaleString("en")} training pictures`;
    find(".ruler").innerHTML = ruler(found);
    find(".ruler").hidden = false;
    find(".finding").textContent = verdict(found);
  },
});
document.addEventListener("nestar:diversity-chosen", ({ detail }) => {
  const underWay = calls.busy();
  chosen = { ...detail.sample, mark: detail.mark };
  showImage(find(".chosen"), detail.image, detail.alt);
  showImage(find(".real"), "", "");
  find(".ruler").hidden = true;
  find(".finding").textContent = "";
  calls.start(chosen.mark, underWay ? undefined : ask);
});
