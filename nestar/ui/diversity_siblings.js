followRuns({
  name: "diversity-siblings",
  button: "diversity-resample",
  draw(current, fresh) {
    if (fresh) laySheet(current.samples.map((sample) => (sample.modules ? "sibling" : "parent")));
    fillSheet(current);
    find(".progress").textContent = progress(current);
    if (current.state === "finished") document.dispatchEvent(new Event("nestar:diversity-siblings"));
  },
});
