// The grid: what is chosen here becomes the parent of siblings, too.
let parent = -1; // its place in the sheet
sheet.addEventListener("click", () => setTimeout(tellParent));

function tellParent() {
  if (pressed < 0 || pressed === parent) return;
  parent = pressed;
  const { settings, samples, modules } = calls.value;
  const detail = { sample: { ...settings, ...samples[pressed] }, modules };
  document.dispatchEvent(new CustomEvent("nestar:diversity-parent", { detail }));
}

followRuns({
  name: "diversity-grid",
  button: "diversity-generate",
  draw(current, fresh) {
    if (fresh) {
      laySheet(current.samples.map((sample) => `seed ${sample.seed}`));
      parent = -1;
      document.dispatchEvent(new Event("nestar:diversity-fresh"));
      bringIntoView(section, "start");
    }
    fillSheet(current);
    find(".progress").textContent = progress(current);
    if (current.state === "stopped") document.dispatchEvent(new Event("nestar:diversity-unfinished"));
    if (current.state === "finished" && pressed < 0) {
      choose(0);
      tellParent();
    }
  },
});
