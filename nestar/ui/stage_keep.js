// Saving, sharing and restoring pictures, behind stage.js.
const MAKING = "The animation is being made.";
const LOST = { message: "The animation did not come: the connection was lost. Try again." };
const KEEPS = {
  png: () => download(run.frames.at(-1).image, `${run.name}.png`),
  animation: async (button) => {
    // Not disabled, which would take the keyboard's place from it.
    button.setAttribute("aria-disabled", "true");
    say(MAKING, false);
    // Gradio tells nothing of a question that did not get through: it has no answer.
    const answer = (await server.animation_of(run.run).catch(() => null)) ?? LOST;
    if (answer.uri) download(answer.uri, answer.name);
    // Another sentence may have come meanwhile.
    if (!answer.uri) say(answer.message, true);
    else if (find(".message").textContent === MAKING) say("", false);
    button.removeAttribute("aria-disabled");
  },
  link: share,
  open: () => picker.click(),
};

find(".keeps").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.getAttribute("aria-disabled")) return;
  hush();
  if (before.getAttribute("aria-pressed") === "true") compare(false); // what is kept is this run's
  KEEPS[button.dataset.keep](button);
});

// Of the picture that is shown, whatever stands in the controls by now.
async function share() {
  const address = linkTo(run.settings, props.link);
  rememberInAddress(run.settings);
  const copied = await copyText(address);
  const framed = window.parent !== window; // then the window's address is another
  const too = framed ? "" : ", and so does the address of this page";
  if (copied) say(`Link copied: it brings the settings of this picture back${too}.`, false);
  else say(`Copy this link: ${address}`, false, true);
}

async function restore(file) {
  if (!file) return; // dragged from where there is none
  if (waiting) {
    say("Your run is still waiting: open the picture once it has begun, or press Stop.", true);
    return;
  }
  let kept;
  try {
    kept = await readKept(file, props.keepsake);
  } catch (error) {
    say(error instanceof Unreadable ? error.message : "This file cannot be read.", true);
    return;
  }
  trigger("picture", { kept });
}

picker.addEventListener("change", () => {
  if (picker.files.length) restore(picker.files[0]);
  picker.value = ""; // the same file can be opened again
});

// Anywhere on the page: a browser would show the picture in place of the page.
function carriesFile(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

document.addEventListener("dragover", (event) => {
  const welcome = Boolean(carriesFile(event));
  stage.classList.toggle("dropping", welcome);
  if (welcome) event.preventDefault();
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) stage.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  stage.classList.remove("dropping");
  if (!carriesFile(event)) return;
  event.preventDefault();
  document.querySelector('[role="tab"]')?.click(); // Generate's, where the settings go
  restore(event.dataTransfer.files[0]);
});

document.addEventListener("nestar:unrestored", () => {
  say("The settings could not be restored. Try again in a moment.", true);
  arrive();
});
document.addEventListener("nestar:answer", ({ detail }) => {
  if (!detail.message) return;
  say(detail.message, detail.alarming);
  arrive();
});
