followRuns({
  name: "diversity-sweep",
  button: "diversity-warm",
  draw(current, fresh) {
    if (fresh) laySheet(current.samples.map((sample) => sample.temperature.toFixed(1)));
    fillSheet(current);
    find(".progress").textContent = `Seed ${current.samples[0].seed}. ${progress(current)}`;
  },
});
// What will come stands there before it does.
if (!calls.value) laySheet(props.sweep.map((temperature) => temperature.toFixed(1)));
