// Panel 4: flow matching on a toy of points in the plane, where the marginal velocity is known exactly, and beside it
// a picture mixed with noise at the same t.
const MOON_POINTS = 28; // data points of each of the two moons
const PAIRS = 140; // noise points of the cloud
const SAMPLES = 36; // of those, how many are sampled along the field
const STEPS_OFFERED = [1, 2, 5, 25];
const WALK_MS = 30; // a hundredth of the way
const LATEST_FIELD = 0.97; // towards t = 1 the field of single points grows without bound: arrows stop here
const ARROW_SHARE = 0.4; // of its length, at which a pair's velocity is drawn
const TOY_SEED = 5;

// Two interleaved half circles, about as wide as the noise.
function twoMoons() {
  return Array.from({ length: 2 * MOON_POINTS }, (_, place) => {
    const angle = (Math.PI * ((place % MOON_POINTS) + 0.5)) / MOON_POINTS;
    const [x, y] = [Math.cos(angle) - 0.5, Math.sin(angle) - 0.25];
    return place < MOON_POINTS ? [1.5 * x, 1.5 * y] : [-1.5 * x, -1.5 * y];
  });
}

// E[x - ε | y_t = y] over all pairs of a data point and Gaussian noise, for t < 1. Given y_t = (1-t) ε + t x, the
// chance of data point x is the softmax of -|y - t x|² / 2(1-t)², and x - ε = (x - y) / (1-t).
function marginalVelocity([u, v], t, data) {
  const scores = data.map(([a, b]) => -((u - t * a) ** 2 + (v - t * b) ** 2) / (2 * (1 - t) ** 2));
  const highest = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - highest));
  const sum = weights.reduce((all, weight) => all + weight, 0);
  const mean = [0, 1].map((axis) => data.reduce((all, point, place) => all + weights[place] * point[axis], 0) / sum);
  return [(mean[0] - u) / (1 - t), (mean[1] - v) / (1 - t)];
}

// Euler's path from noise along the marginal velocity: steps + 1 points.
function eulerPath(noise, steps, data) {
  const path = [noise];
  for (let step = 0; step < steps; step++) {
    const [[u, v], [du, dv]] = [path[step], marginalVelocity(path[step], step / steps, data)];
    path.push([u + du / steps, v + dv / steps]);
  }
  return path;
}

// Where a path of equal steps is at time t.
function along(path, t) {
  const place = Math.min(path.length - 2, Math.floor(t * (path.length - 1)));
  return mix(path[place], path[place + 1], t * (path.length - 1) - place);
}

function mix(from, to, t) {
  return [(1 - t) * from[0] + t * to[0], (1 - t) * from[1] + t * to[1]];
}

// Mean distance of points from the nearest data point.
function meanMiss(points, data) {
  const nearest = ([u, v]) => Math.min(...data.map(([a, b]) => Math.hypot(u - a, v - b)));
  return points.reduce((sum, point) => sum + nearest(point), 0) / points.length;
}

// ---- marks of the sketch; its y axis points up --------------------------------------------------

function dot([x, y], radius, kind) {
  return `<circle class="${kind}" cx="${x.toFixed(3)}" cy="${(-y).toFixed(3)}" r="${radius}"/>`;
}

function square([x, y]) {
  const corner = `x="${(x - 0.06).toFixed(3)}" y="${(-y - 0.06).toFixed(3)}"`;
  return `<rect class="data" ${corner} width="0.12" height="0.12" rx="0.02"/>`;
}

function arrow([x, y], [dx, dy], kind, head) {
  const length = Math.hypot(dx, dy);
  if (length < 1e-6) return "";
  const [ux, uy] = [dx / length, dy / length];
  const tip = [x + dx, y + dy];
  const wing = (side) => [tip[0] - head * (ux + side * 0.5 * uy), tip[1] - head * (uy - side * 0.5 * ux)];
  const to = (points) => points.map(([a, b]) => `${a.toFixed(3)} ${(-b).toFixed(3)}`).join("L");
  return `<path class="${kind}" d="M${to([[x, y], tip])}M${to([wing(1), tip, wing(-1)])}"/>`;
}

function label([x, y], text) {
  return `<text x="${x.toFixed(3)}" y="${(-y).toFixed(3)}" dy="0.3em" text-anchor="middle">${text}</text>`;
}

function trail(points, kind) {
  const path = points.map(([x, y]) => `${x.toFixed(3)},${(-y).toFixed(3)}`).join(" ");
  return `<polyline class="${kind}" points="${path}"/>`;
}

function flowPanel(panel) {
  const find = (selector) => panel.querySelector(selector);
  const [scene, range, canvas] = [find(".scene"), find(".time"), find("canvas")];
  const data = twoMoons();
  const random = randomNumbers(TOY_SEED);
  const noise = Array.from({ length: PAIRS }, () => [random.normal(), random.normal()]);
  const partner = noise.map(() => data[Math.floor(random.uniform() * data.length)]);
  // Pairs worth a look: far enough apart for the path to be dragged.
  const apart = ([u, v], pair) => Math.hypot(u - partner[pair][0], v - partner[pair][1]);
  const far = noise.flatMap((point, pair) => (apart(point, pair) > 2 ? [pair] : []));
  const paths = new Map(); // of each number of steps, computed once
  let [mode, steps, shown] = ["pair", 2, 0]; // shown: which of the far pairs

  function samplePaths() {
    if (!paths.has(steps)) paths.set(steps, noise.slice(0, SAMPLES).map((point) => eulerPath(point, steps, data)));
    return paths.get(steps);
  }

  function pairHtml(t) {
    const [from, to] = [noise[far[shown]], partner[far[shown]]];
    const [x, y] = mix(from, to, t);
    const velocity = [to[0] - from[0], to[1] - from[1]];
    const length = Math.hypot(...velocity);
    const beyond = (end, share) => [end[0] + (share * velocity[0]) / length, end[1] + (share * velocity[1]) / length];
    const cloud = noise.map((point, pair) => dot(mix(point, partner[pair], t), 0.035, "cloud")).join("");
    return (
      cloud + trail([from, to], "line") + dot(from, 0.08, "end") + dot(to, 0.08, "end") +
      label(beyond(from, -0.25), "ε") + label(beyond(to, 0.25), "x") +
      arrow([x, y], [ARROW_SHARE * velocity[0], ARROW_SHARE * velocity[1]], "velocity", 0.16) +
      `<g class="handle">${dot([x, y], 0.32, "reach")}${dot([x, y], 0.12, "now")}</g>`
    );
  }

  function fieldHtml(t) {
    const at = Math.min(t, LATEST_FIELD);
    let arrows = "";
    for (let x = -3; x <= 3; x += 0.5) {
      for (let y = -2.5; y <= 2.5; y += 0.5) {
        const [u, v] = marginalVelocity([x, y], at, data);
        const length = 0.36 / (1 + Math.hypot(u, v)); // long arrows saturate
        arrows += arrow([x, y], [u * length, v * length], "field", 0.09);
      }
    }
    const gone = samplePaths().map((path) => {
      const nodes = path.filter((_, node) => node / steps < t);
      return trail([...nodes, along(path, t)], "line faint") + dot(along(path, t), 0.06, "now");
    });
    return arrows + gone.join("");
  }

  function describe(t) {
    if (mode === "pair") {
      return t === 0 || t === 1
        ? `t = ${t} is all ${t ? "data" : "noise"}. Taught each arrow, x − ε, the network answers their mean.`
        : "Drag the dot. All along its straight path the velocity to be learned is the same: x − ε (drawn shorter).";
    }
    const miss = meanMiss(samplePaths().map((path) => path.at(-1)), data);
    const ends = `on average ${miss.toFixed(2)} from the nearest data point`;
    if (steps === 1) return `One Euler step lands every sample on the mean of all data, ${ends}.`;
    return `Arrows: the mean of x − ε over all pairs passing there, so paths bend. ${steps} Euler steps end ${ends}.`;
  }

  function show() {
    const t = Number(range.value);
    const words = describe(t);
    scene.innerHTML = data.map(square).join("") + (mode === "pair" ? pairHtml(t) : fieldHtml(t));
    const sketch = `Points in the plane at t = ${t.toFixed(2)}, between noise and two half circles of data`;
    scene.setAttribute("aria-label", sketch);
    find(".clock").textContent = `t = ${t.toFixed(2)}`;
    find(".toy figcaption").textContent = words;
    panel.dataset.mode = mode;
    showMixed(t);
  }

  // ---- the picture -------------------------------------------------------------------------------

  const picture = new Image();
  let pixels = null; // the picture's, in [-1, 1], red green blue
  let pixelNoise = null;

  function showMixed(t) {
    canvas.setAttribute("aria-label", `${props.picture_name} mixed with noise: ${Math.round(100 * t)} % picture`);
    if (!pixels) return;
    const context = canvas.getContext("2d");
    const mixed = context.createImageData(canvas.width, canvas.height);
    mixed.data.fill(255);
    for (let place = 0; place < pixels.length; place++) {
      const value = (1 - t) * pixelNoise[place] + t * pixels[place];
      mixed.data[4 * Math.floor(place / 3) + (place % 3)] = (value + 1) * 127.5; // clamped by its type
    }
    context.putImageData(mixed, 0, 0);
  }

  picture.addEventListener("load", () => {
    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
    pixels = Float32Array.from(bytes.filter((_, place) => place % 4 < 3), (byte) => byte / 127.5 - 1);
    pixelNoise = Float32Array.from(pixels, () => random.normal());
    show();
  });
  picture.src = props.picture;

  // ---- the visitor's hands -----------------------------------------------------------------------

  const playing = player(find(".timeline"), () => WALK_MS);

  function drag(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(scene.getScreenCTM().inverse());
    const [from, to] = [noise[far[shown]], partner[far[shown]]];
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
    const t = ((at.x - from[0]) * dx + (-at.y - from[1]) * dy) / (dx * dx + dy * dy);
    playing.move(Math.min(1, Math.max(0, t)));
  }

  scene.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".handle")) return;
    event.preventDefault();
    scene.setPointerCapture(event.pointerId);
  });
  scene.addEventListener("pointermove", (event) => scene.hasPointerCapture(event.pointerId) && drag(event));
  range.addEventListener("input", show);
  find(".another").addEventListener("click", () => {
    shown = (shown + 1) % far.length;
    show();
  });
  panel.addEventListener("change", (event) => {
    if (event.target.name === "how-flow") mode = event.target.value;
    else if (event.target.name === "how-steps") {
      steps = Number(event.target.value);
      range.value = 1; // where they end is what differs
    } else return;
    playing.stop();
    show();
  });
  const choices = STEPS_OFFERED.map((each) => {
    const checked = each === steps ? " checked" : "";
    return `<label><input type="radio" name="how-steps" value="${each}"${checked}><span>${each}</span></label>`;
  });
  find(".when-field").insertAdjacentHTML("beforeend", choices.join(""));
  show();
}
