// In a Space the page is a frame as tall as its content: nothing sticks to the window's foot, which is the frame's.
document.documentElement.classList.toggle("framed", window.parent !== window);

// The table of nestings lies over what is below: it goes as menus do.
const table = element.querySelector(".nestings");
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !table.open) return;
  table.open = false;
  table.querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  if (!table.contains(event.target)) table.open = false;
});

// The open tab stands in the address, behind #: it comes back when the page is loaded anew, and can be linked to.
// Gradio names a tab's button after its panel, but not the other way round; panels come when they are first opened.
const tabs = () => [...document.querySelectorAll("#tabs [role=tab][data-tab-id]")];

const linkedTab = () => tabs().find((tab) => `#${tab.dataset.tabId}` === location.hash);

function namePanels() {
  for (const panel of document.querySelectorAll("#tabs [role=tabpanel][id]")) {
    panel.setAttribute("aria-labelledby", `${panel.id}-button`);
  }
}

function openLinked() {
  if (!tabs().length) {
    requestAnimationFrame(openLinked); // Gradio may mount them after this runs
    return;
  }
  namePanels();
  new MutationObserver(namePanels).observe(document.getElementById("tabs"), { childList: true });
  linkedTab()?.click();
}

document.addEventListener("click", (event) => {
  const tab = event.target.closest?.("#tabs [role=tab][data-tab-id]");
  if (!tab) return;
  const address = new URL(location.href);
  address.hash = tab.dataset.tabId === tabs()[0].dataset.tabId ? "" : tab.dataset.tabId;
  history.replaceState(history.state, "", address);
});
// Typed, or opened from a bookmark, while the page stands.
addEventListener("hashchange", () => (linkedTab() ?? (location.hash ? null : tabs()[0]))?.click());
openLinked();
